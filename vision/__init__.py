"""SSD detectors, from a few photographs to the edge.

Importing this package imports nothing heavy: the floors below `vision.nets` need numpy and OpenCV only.
"""

__version__ = "0.1.0"
