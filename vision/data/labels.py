"""Label files: the names of the classes, BACKGROUND first."""

import codecs
import difflib
import re
from pathlib import Path
from typing import List, Sequence, Tuple, Union

from vision.errors import UserError
from vision.spec import BACKGROUND

PathLike = Union[str, Path]

# One line of CVAT's labelmap.txt: "name:R,G,B:parts:actions", the last two mostly empty.
_CVAT_LINE = re.compile(r"^(?P<name>[^:]+):\s*(?:\d+\s*,\s*\d+\s*,\s*\d+)?\s*:[^:]*:[^:]*$")


def read_text(path: PathLike) -> str:
    """A text file as people's editors leave it: UTF-8 with or without BOM, UTF-16 with BOM, else Latin-1."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def with_background(names: Sequence[str], source: str = "class names") -> Tuple[str, ...]:
    """BACKGROUND and then `names`, without any background lines among them (in any case).

    Raises UserError when a name occurs twice; `source` says where the names come from.
    """
    classes = [BACKGROUND] + [name for name in names if name.upper() != BACKGROUND]
    for position, name in enumerate(classes):
        if name in classes[:position]:
            raise UserError(f"{source}: class {name!r} is named twice; delete one of them")
    return tuple(classes)


def read_labels(path: PathLike) -> Tuple[str, ...]:
    """Class names of a label file, BACKGROUND first.

    One name a line, or names separated by commas on any line, or CVAT's "name:R,G,B::" lines with "#"
    comments. A BOM, CRLF, blank lines, blanks round a name and background lines in any case and number are
    taken as they come, so reading what was written from a read list never adds a class.

    Raises UserError when the file cannot be read, holds no class, or names one twice.
    """
    names: List[str] = []
    for line in read_text(path).splitlines():
        cvat = _CVAT_LINE.match(line.strip())
        if cvat:
            names.append(cvat.group("name").strip())
        elif not re.match(r"\s*#\s*label\s*:", line):  # the head of CVAT's labelmap.txt
            names.extend(part.strip().strip("\0\ufeff") for part in line.split(","))
    classes = with_background([name for name in names if name], str(path))
    if len(classes) == 1:
        raise UserError(f"{path}: holds no class name; write one class a line")
    return classes


def write_labels(path: PathLike, classes: Sequence[str]) -> None:
    """Write a label file: one class a line, BACKGROUND first, LF, UTF-8, no line for nothing at the end."""
    names = with_background([name.strip() for name in classes], str(path))
    for name in names:
        if not name or "," in name or len(name.splitlines()) != 1:
            raise UserError(
                f"{path}: class name {name!r} is empty or holds a comma or a line break; rename it"
            )
    Path(path).write_bytes(("\n".join(names) + "\n").encode("utf-8"))


def suggest(name: str, classes: Sequence[str]) -> str:
    """ "; did you mean 'WBC'?" when a class is near `name` (in case, blanks or spelling), else ""."""

    def plain(text: str) -> str:
        return re.sub(r"[\W_]+", "", text.split(":")[0]).lower()

    known = [other for other in classes if other != BACKGROUND]
    near = [other for other in known if plain(other) == plain(name)]
    if not near:
        folded = {plain(other): other for other in known}
        near = [folded[match] for match in difflib.get_close_matches(plain(name), folded, n=1, cutoff=0.6)]
    return f"; did you mean {near[0]!r}?" if near else ""
