"""Getting images and boxes of chosen classes from Open Images (https://storage.googleapis.com/openimages).

    classes     class names to ids, with the hierarchy
    fetch       one large file over HTTP, resumed
    boxes_csv   the rows of some classes out of a box file of any size
    plan        which images to take: filters, caps, negatives
    bucket      the images, from the S3 bucket
    download    all of it, into the folder that `vision.data.open_images` reads

What the folder looks like and what the attributes mean: docs/open_images.md.
"""
