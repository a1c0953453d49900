"""Data sets: reading, checking and augmenting them. Numpy and OpenCV only."""
