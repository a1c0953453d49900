"""Image files looked at closely: their kind, whether they are whole, and whether two of them show the same.

`vision.data.images.check_image` reads as little as it can, because it stands in front of every training. The doctor
has the time to read every byte.
"""

import hashlib
import re
import struct
import zlib
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from vision.data.images import Broken, check_image

KINDS: Dict[str, Tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WebP": (".webp",),
}
"""Kind of content -> the suffixes it may have, the usual one first."""

SIDE = 16
"""A thumbnail is SIDE x SIDE grey pixels."""

NEAR = 0.997
"""Correlation of two thumbnails from which on they show the same. A photograph halved in size and saved at quality 60
keeps above 0.999; of 364 blood smears no two come above 0.99."""

FLAT = 4.0
"""Grey levels: a picture whose thumbnail deviates less resembles every other one."""

MOST_PAIRS = 400_000_000
"""More pairs of images than this are not compared (about a minute)."""


class Look(NamedTuple):
    """What a whole file tells.

    Attributes:
        kind: of its content, a key of KINDS; "" for others.
        digest: of its bytes; "" for a file that cannot be read.
        size: (height, width) of the stored pixels.
        quarter_turned: the EXIF tag asks for it.
        thumbnail: uint8 (SIDE, SIDE) grey; None when the file does not decode.
        fault: code and reason, or two empty strings.
    """

    kind: str
    digest: str
    size: Tuple[int, int]
    quarter_turned: bool
    thumbnail: Optional[np.ndarray]
    fault: Tuple[str, str] = ("", "")


def kind_of(head: bytes) -> str:
    """Kind of an image file by its first 16 bytes; "" when it is none of KINDS."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"BM"):
        return "BMP"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    return "WebP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else ""


# --- whole or not -------------------------------------------------------------------------------------------

_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7\x01]", re.DOTALL)
"""What ends the coded pixels of a scan: a marker that is neither a stuffed zero nor a restart."""


def jpeg_end(data: bytes) -> int:
    """Where the end marker of a JPEG stands; whatever follows it is none of its own (ITU T.81, annex B).

    Segments are stepped over, so a thumbnail's end marker inside one is not seen.

    Raises Broken with "truncated-image" when there is none.
    """
    place, scans = 2, 0
    while True:
        found = (
            _MARKER.search(data, place)
            if scans
            else re.compile(rb"\xff+[^\xff]", re.DOTALL).match(data, place)
        )
        if not found:
            if place >= len(data) - 1 or scans:
                raise Broken(
                    "truncated-image", "the JPEG has no end marker (FFD9): its lower part is missing"
                )
            raise Broken(
                "damaged-image", f"no marker at byte {place}, where the JPEG's next segment should begin"
            )
        kind = data[found.end() - 1]
        if kind == 0xD9:
            if not scans:
                raise Broken("truncated-image", "the JPEG ends before its pixels begin")
            return found.start()
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:  # markers without a body
            place = found.end()
            continue
        if found.end() + 2 > len(data):
            raise Broken("truncated-image", "the JPEG stops inside a segment")
        scans += kind == 0xDA
        place = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))


def png_end(data: bytes) -> int:
    """Where the last chunk (IEND) of a PNG ends (ISO 15948, section 5); the checksums before it are verified.

    Raises Broken with "truncated-image" or "damaged-image".
    """
    place = 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            name = kind.decode("latin-1")
            raise Broken(
                "damaged-image", f"the checksum of the PNG's {name!r} chunk at byte {place} is wrong"
            )
        if kind == b"IEND":
            return end
        place = end
    raise Broken("truncated-image", "the PNG has no end chunk (IEND): its lower part is missing")


def _check_whole(kind: str, data: bytes) -> None:
    if kind == "JPEG":
        jpeg_end(data)
    elif kind == "PNG":
        png_end(data)
    elif kind == "WebP" and len(data) < struct.unpack_from("<I", data, 4)[0] + 8:
        raise Broken("truncated-image", "the WebP is shorter than its header says")


# --- the same or not ----------------------------------------------------------------------------------------


# libjpeg shrinks while it decodes.
_REDUCED = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def _thumbnail(data: bytes, size: Tuple[int, int]) -> np.ndarray:
    """SIDE x SIDE grey pixels of a file of (height, width). Raises Broken for what does not decode."""
    # Four pixels for each of the thumbnail: the last, broken block of a reduced decode must not show.
    reduce = max(each for each in _REDUCED if each == 1 or min(size) >= 4 * SIDE * each)
    try:
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduce] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise Broken(
            "damaged-image", f"OpenCV cannot decode it ({(error.err or str(error)).strip()})"
        ) from error
    if grey is None:
        raise Broken("damaged-image", "OpenCV cannot decode it")
    return cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def look(path: Path) -> Look:
    """Read one file to its last byte. Never raises: what is wrong is in `fault`."""
    kind, digest, size, turned, thumbnail, fault = "", "", (0, 0), False, None, ("", "")
    try:
        header = check_image(path)
        size, turned = header.size, header.quarter_turned
        data = path.read_bytes()
        kind, digest = kind_of(data[:16]), hashlib.sha256(data).hexdigest()
        _check_whole(kind, data)
        thumbnail = _thumbnail(data, size)
    except Broken as broken:
        fault = (broken.code, broken.reason)
    except OSError as error:
        fault = ("unreadable-image", error.strerror or str(error))
    return Look(kind, digest, size, turned, thumbnail, fault)


def _directions(thumbnails: Sequence[np.ndarray]) -> np.ndarray:
    """Thumbnails as vectors of length 1 round their mean: float32 (N, SIDE * SIDE); flat ones are all zero."""
    vectors = np.stack(list(thumbnails)).reshape(len(thumbnails), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(lengths > FLAT * SIDE, vectors / np.maximum(lengths, 1), 0)


def near_pairs(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> List[Tuple[int, int]]:
    """(number in `ours`, number in `theirs`) of thumbnails that show nearly the same; the best one for each of theirs.

    Nothing for more than MOST_PAIRS pairs.
    """
    if not len(ours) or not len(theirs) or len(ours) * len(theirs) > MOST_PAIRS:
        return []
    first, second = _directions(ours), _directions(theirs)
    pairs = []
    for start in range(0, len(second), 256):
        likeness = first @ second[start : start + 256].T
        best = likeness.argmax(axis=0)
        for number, which in enumerate(best.tolist()):
            if likeness[which, number] >= NEAR:
                pairs.append((which, start + number))
    return pairs
