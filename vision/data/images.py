"""Image files: reading them into RGB, and looking at their headers without decoding.

One rule for EXIF rotation: **pixels count as stored**, because annotation tools of the VOC kind write boxes and
sizes in stored pixels. The only exception: the annotation declares a width and height that fit the photograph
turned upright by its EXIF tag and not the stored pixels; then it was made on the upright picture, and the
photograph is turned on reading. (A half turn leaves no trace in the size, so it is never applied.) A photograph
without an annotation, to be looked at by a detector, is read `upright`, as people see it.
"""

import io
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple, Optional, Tuple, Union

import cv2
import numpy as np

from vision.errors import UserError

PathLike = Union[str, Path]
Size = Tuple[int, int]
"""(height, width) in pixels."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Suffixes of image files, compared in lower case."""


def split_suffix(name: str) -> Tuple[str, str]:
    """ "a/b.c.jpg" -> ("a/b.c", ".jpg"); a name without a suffix has "" for it."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix) if stem and "/" not in suffix else (name, "")


TAIL = 1 << 16
"""How far from the end of a file its end marker is looked for before the whole file is searched."""


class Header(NamedTuple):
    """What the first bytes of an image file say.

    Attributes:
        size: (height, width) of the stored pixels.
        quarter_turned: the EXIF tag wants the image turned by 90 or 270 degrees.
        body: where the coded pixels begin, as far as needed to look for their end.
    """

    size: Size
    quarter_turned: bool = False
    body: int = 0

    @property
    def upright_size(self) -> Size:
        """(height, width) after the turn that EXIF asks for."""
        return self.size[::-1] if self.quarter_turned else self.size

    def must_turn(self, declared: Optional[Size]) -> bool:
        """Whether the rule at the head of this file has the image turned for boxes given in `declared`."""
        return declared is not None and declared != self.size and declared == self.upright_size


class Broken(Exception):
    """Why a file is of no use (for readers, who turn it into a Finding or a UserError).

    Attributes: as in Finding; `reason` is its value.
    """

    def __init__(self, code: str, reason: str, where: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.where = where


# --- headers ------------------------------------------------------------------------------------------------


def _exif_orientation(segment: bytes) -> int:
    """Orientation 1..8 from the body of a JPEG APP1 segment (EXIF 2.3, tag 0x0112); 1 when it has none."""
    if not segment.startswith(b"Exif\0\0") or len(segment) < 14:
        return 1
    tiff = segment[6:]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    start = struct.unpack_from(order + "I", tiff, 4)[0]
    if start + 2 > len(tiff):
        return 1
    for entry in range(struct.unpack_from(order + "H", tiff, start)[0]):
        place = start + 2 + 12 * entry
        if place + 12 > len(tiff):
            break
        tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, place)
        if tag == 0x0112:
            return value
    return 1


def _jpeg_header(file: BinaryIO) -> Header:
    """Walk the marker segments of a JPEG up to its first scan (ITU T.81, annex B)."""
    file.seek(2)
    size, orientation = None, 1
    while True:
        marker = file.read(2)
        while marker[1:] == b"\xff":  # fill bytes
            marker = marker[1:] + file.read(1)
        if len(marker) < 2 or marker[0] != 0xFF:
            raise Broken("truncated-image", "the JPEG ends or is damaged before its pixels begin")
        kind = marker[1]
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:  # markers without a body
            continue
        length = file.read(2)
        if len(length) < 2 or kind == 0xD9:
            raise Broken("truncated-image", "the JPEG ends before its pixels begin")
        body = int.from_bytes(length, "big") - 2
        if kind == 0xDA:
            if size is None:
                raise Broken("unreadable-image", "the JPEG has no frame header")
            return Header(size, orientation in (5, 6, 7, 8), file.tell())
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            frame = file.read(body)
            if len(frame) >= 5:
                height, width = struct.unpack_from(">HH", frame, 1)
                size = (height, width)
        elif kind == 0xE1:
            orientation = max(orientation, _exif_orientation(file.read(body)))
        else:
            file.seek(body, 1)


def _read_header(file: BinaryIO) -> Optional[Header]:
    """Header of a JPEG, PNG or BMP; None for a kind of file that has to be decoded. Raises Broken."""
    head = file.read(32)
    if not head:
        raise Broken("unreadable-image", "the file is empty")
    if head.startswith(b"\xff\xd8"):
        return _jpeg_header(file)
    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
        width, height = struct.unpack_from(">II", head, 16)
        return Header((height, width))
    if head.startswith(b"BM") and len(head) >= 26 and struct.unpack_from("<I", head, 14)[0] >= 40:
        width, height = struct.unpack_from("<ii", head, 18)
        return Header((abs(height), width))
    if head.lstrip()[:1] in (b"<", b"{"):
        start = head.lstrip()[:16].decode("latin-1")
        raise Broken("unreadable-image", f"this is a text file that begins with {start!r}, not an image")
    return None


def _has_end(file: BinaryIO, header: Header, marker: bytes) -> bool:
    """Whether `marker` stands behind the beginning of the coded pixels."""
    length = file.seek(0, 2)
    for start in (max(header.body, length - TAIL), header.body):
        file.seek(start)
        if file.read().rfind(marker) >= 0:
            return True
    return False


def _check_end(file: BinaryIO, header: Header) -> None:
    """Raise Broken for a JPEG, PNG or BMP that stops early; OpenCV would decode it silently, grey below."""
    file.seek(0)
    head = file.read(34)
    first = head[:2]
    if first == b"\xff\xd8" and not _has_end(file, header, b"\xff\xd9"):
        raise Broken("truncated-image", "the JPEG has no end marker (FFD9): its lower part is missing")
    if first == b"\x89P" and not _has_end(file, header, b"IEND"):
        raise Broken("truncated-image", "the PNG has no end chunk (IEND): its lower part is missing")
    if first == b"BM" and len(head) == 34:
        begin, bits, coding = (int.from_bytes(head[a:b], "little") for a, b in ((10, 14), (28, 30), (30, 34)))
        row = (header.size[1] * bits + 31) // 32 * 4
        if coding == 0 and file.seek(0, 2) < begin + row * header.size[0]:
            raise Broken("truncated-image", "the BMP is shorter than its header says")


def check_image(path: PathLike) -> Header:
    """The header of an image file, after looking that the file is whole.

    JPEG, PNG and BMP are not decoded: the header and the end marker are read. Other kinds are decoded once.

    Raises Broken with code "missing-image", "unreadable-image" or "truncated-image".
    """
    try:
        with Path(path).open("rb") as file:
            header = _read_header(file)
            if header is not None:
                _check_end(file, header)
    except OSError as error:
        code = "missing-image" if isinstance(error, FileNotFoundError) else "unreadable-image"
        raise Broken(code, error.strerror or str(error)) from error
    if header is None:
        header = Header(_decode(Path(path).read_bytes(), cv2.IMREAD_COLOR).shape[:2])
    if min(header.size) < 1:
        raise Broken("unreadable-image", f"the header says {header.size[1]} x {header.size[0]} pixels")
    return header


def image_size(path: PathLike) -> Size:
    """(height, width) of the stored pixels, from the header where the format allows. Raises UserError."""
    try:
        return check_image(path).size
    except Broken as broken:
        raise UserError(f"{path}: {broken.reason}") from broken


# --- pixels -------------------------------------------------------------------------------------------------

# libjpeg scales in the DCT domain while it decodes: a half, a quarter or an eighth costs almost nothing.
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def _decode(data: bytes, flags: int) -> np.ndarray:
    """Coded bytes to RGB uint8 (H, W, 3). Raises Broken."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        image = None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    except cv2.error as error:
        reason = (error.err or str(error)).strip()
        raise Broken("unreadable-image", f"OpenCV cannot decode it ({reason})") from error
    if image is None:
        raise Broken(
            "unreadable-image", "OpenCV cannot decode it: not an image, damaged, or a format it lacks"
        )
    return image


def shrink(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The mean of every block of rows x columns pixels; a last part of a block is filled up from its edge.

    (H, W, 3) uint8 -> (ceil(H / rows), ceil(W / columns), 3) uint8. Pixel i of the result covers the pixels
    i * rows ... of the image exactly, as with a reduced JPEG decode, whatever the size.
    """
    height, width = image.shape[:2]
    below, right = -height % rows, -width % columns
    if below or right:
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = ((width + right) // columns, (height + below) // rows)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def read_image(
    path: PathLike, reduce: int = 1, size: Optional[Size] = None, upright: bool = False
) -> np.ndarray:
    """An image file as RGB.

    Grey and palette images become three channels, 16-bit ones eight bits, alpha is left out.

    Args:
        path: of any characters the file system takes (OpenCV's own reader fails on some on Windows).
        reduce: shrink by this power of two while decoding (1: not at all); see `shrink` for the pixel grid.
        size: (height, width) that the annotation declares, for the EXIF rule at the head of this file.
        upright: turn the photograph as EXIF says; for one that has no annotation.

    Returns: uint8 (ceil(H / reduce), ceil(W / reduce), 3), contiguous.

    Raises UserError for a file that is missing, empty or not an image.
    """
    try:
        data = Path(path).read_bytes()
        header = _read_header(io.BytesIO(data)) if size is not None or not data else None
        turn = upright or (header is not None and header.must_turn(size))
        is_jpeg = data.startswith(b"\xff\xd8")
        # A turned image whose sides are no multiples of `reduce` would start inside a block: decode it whole.
        by_decoder = min(reduce, 8) if is_jpeg and not turn else 1
        image = _decode(data, _REDUCED[by_decoder] | (0 if turn else cv2.IMREAD_IGNORE_ORIENTATION))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except Broken as broken:
        raise UserError(f"{path}: {broken.reason}") from broken
    rest = reduce // by_decoder
    return shrink(image, rest, rest) if rest > 1 else image
