import struct

import cv2
import numpy as np
import pytest

from vision.data.images import Broken, check_image, image_size, read_image, shrink, split_suffix
from vision.data.voc import read_voc
from vision.errors import UserError

HEIGHT, WIDTH = 45, 70


def scene(height=HEIGHT, width=WIDTH):
    """Smooth, so that JPEG keeps it: red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 40)], axis=2).astype(np.uint8)


def write(path, image, *flags):
    """Write RGB (or any other kind of array as it is) in the format of the suffix."""
    if image.ndim == 3 and image.shape[2] == 3:
        image = image[..., ::-1]
    path.write_bytes(cv2.imencode(path.suffix.lower(), image, list(flags))[1].tobytes())
    return path


def with_exif(path, orientation, order="<"):
    """Put an EXIF segment with an orientation behind the first marker of a JPEG."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(order + "HHIHH", 0x0100, 3, 1, 7, 0) + struct.pack(
        order + "HHIHH", 0x0112, 3, 1, orientation, 0
    )
    tiff = mark + struct.pack(order + "I", 8) + struct.pack(order + "H", 2) + entries + bytes(4)
    body = b"Exif\0\0" + tiff
    raw = path.read_bytes()
    path.write_bytes(raw[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + raw[2:])
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp", ".JPG"])
def test_every_format_is_read_as_rgb(tmp_path, suffix):
    path = write(tmp_path / f"one{suffix}", scene())
    image = read_image(path)
    assert image.dtype == np.uint8 and image.shape == (HEIGHT, WIDTH, 3) and image.flags.c_contiguous
    assert np.abs(image.astype(int) - scene()).mean() < 4
    assert check_image(path).size == image_size(path) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", ["grey", "grey16", "rgb16", "alpha"])
def test_other_kinds_of_pixels(tmp_path, kind):
    bgr = scene()[..., ::-1]
    stored = {
        "grey": bgr[..., 1],
        "grey16": bgr[..., 1].astype(np.uint16) * 257,
        "rgb16": bgr.astype(np.uint16) * 257,
        "alpha": np.dstack([bgr, np.full((HEIGHT, WIDTH), 7, np.uint8)]),
    }[kind]
    path = tmp_path / "one.png"
    path.write_bytes(cv2.imencode(".png", stored)[1].tobytes())
    wanted = np.repeat(scene()[..., 1:2], 3, axis=2) if "grey" in kind else scene()
    np.testing.assert_allclose(read_image(path), wanted, atol=1)


def test_names_in_any_script(tmp_path):
    path = write(tmp_path / "große 猫 é.png", scene())
    np.testing.assert_array_equal(read_image(path), scene())
    np.testing.assert_array_equal(read_image(str(path)), scene())


@pytest.mark.parametrize("raw", [None, b"", b"hello", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(9)])
def test_what_is_no_image_is_named(tmp_path, raw):
    path = tmp_path / "one.jpg"
    if raw is not None:
        path.write_bytes(raw)
    for read in (read_image, image_size, lambda p: read_image(p, 2, (HEIGHT, WIDTH))):
        with pytest.raises(UserError, match=r"one\.jpg"):
            read(path)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(UserError):
        read_image(tmp_path)
    with pytest.raises(Broken):
        check_image(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("reduce", [1, 2, 4, 8, 16])
def test_a_reduced_decode_lies_on_the_same_grid(tmp_path, suffix, reduce):
    """Every pixel is the mean of the block it stands for, whatever the size leaves over at the edge."""
    path = write(tmp_path / f"one{suffix}", scene(203, 315), cv2.IMWRITE_JPEG_QUALITY, 98)
    image = read_image(path, reduce)
    assert image.shape[:2] == (-(-203 // reduce), -(-315 // reduce))
    whole = shrink(read_image(path), reduce, reduce).astype(int)
    assert np.abs(image - whole)[:-1, :-1].max() <= 6
    assert np.abs(image - whole).max() <= 24  # the last blocks reach over the edge


def test_shrink_takes_means_of_blocks():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    means = image.reshape(2, 2, 2, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(shrink(image, 2, 3), means, atol=0.51)
    assert shrink(image, 3, 4).shape == (2, 2, 3)
    np.testing.assert_array_equal(shrink(image, 1, 1), image)


# --- EXIF ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation, turned", [(1, 0), (3, 0), (5, 1), (6, 1), (7, 1), (8, 1)])
def test_pixels_count_as_stored(tmp_path, orientation, turned, order):
    path = with_exif(write(tmp_path / "one.jpg", scene()), orientation, order)
    header = check_image(path)
    assert header.size == (HEIGHT, WIDTH) and header.quarter_turned == bool(turned)
    stored = read_image(path)
    np.testing.assert_array_equal(stored, read_image(path, size=(HEIGHT, WIDTH)))
    assert np.abs(stored.astype(int) - scene()).mean() < 4


@pytest.mark.parametrize("orientation, quarters", [(6, -1), (8, 1)])
@pytest.mark.parametrize("reduce", [1, 2])
def test_an_annotation_of_the_upright_photograph_has_it_turned(tmp_path, orientation, quarters, reduce):
    path = with_exif(write(tmp_path / "one.jpg", scene()), orientation)
    upright = read_image(path, reduce, size=(WIDTH, HEIGHT))
    wanted = shrink(np.ascontiguousarray(np.rot90(scene(), quarters)), reduce, reduce)
    assert upright.shape == wanted.shape
    assert np.abs(upright.astype(int) - wanted).mean() < 4


@pytest.mark.parametrize("declared, finding", [((HEIGHT, WIDTH), []), ((WIDTH, HEIGHT), ["exif-rotated"])])
def test_the_reader_tells_of_a_turned_photograph(tmp_path, declared, finding):
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / folder).mkdir()
    with_exif(write(tmp_path / "JPEGImages/one.jpg", scene()), 6)
    thing = "<object><name>x</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"
    size = f"<size><width>{declared[1]}</width><height>{declared[0]}</height></size>"
    (tmp_path / "Annotations/one.xml").write_text(f"<annotation>{size}{thing}</annotation>")
    dataset = read_voc(tmp_path, "train")
    assert [f.code for f in dataset.findings if f.code != "random-split"] == finding
    (sample,) = dataset.samples
    assert sample.size == declared and sample.boxes.tolist() == [[4, 4, 29, 39]]
    assert read_image(sample.path, size=sample.size).shape[:2] == declared


@pytest.mark.parametrize("length", range(0, 60, 3))
def test_damaged_exif_does_no_harm(tmp_path, length):
    """An EXIF segment that ends anywhere is as good as none."""
    path = with_exif(write(tmp_path / "one.jpg", scene()), 6)
    raw = path.read_bytes()
    body = raw[6 : 4 + struct.unpack(">H", raw[4:6])[0]][:length]
    rest = raw[4 + struct.unpack(">H", raw[4:6])[0] :]
    path.write_bytes(raw[:4] + struct.pack(">H", len(body) + 2) + body + rest)
    assert check_image(path).size == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "name, parts",
    [
        ("a.jpg", ("a", ".jpg")),
        ("a.b/c", ("a.b/c", "")),
        (".jpg", (".jpg", "")),
        ("a.b.JPG", ("a.b", ".JPG")),
    ],
)
def test_split_suffix(name, parts):
    assert split_suffix(name) == parts


@pytest.mark.parametrize("orientation, quarters", [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_without_an_annotation_a_photograph_can_be_read_as_people_see_it(tmp_path, orientation, quarters):
    path = with_exif(write(tmp_path / "one.jpg", scene()), orientation)
    upright = read_image(path, upright=True)
    assert np.abs(upright.astype(int) - np.rot90(scene(), quarters)).mean() < 4
