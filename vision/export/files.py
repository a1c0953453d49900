"""Files that are written whole or not at all."""

import contextlib
import os
from pathlib import Path
from typing import Iterator, Sequence, Union

from vision.data.labels import write_labels
from vision.errors import UserError

PathLike = Union[str, Path]

LABELS = "labels.txt"


@contextlib.contextmanager
def replaced(path: PathLike) -> Iterator[Path]:
    """A temporary name in the same folder, which is made; renamed to `path` at the end.

    When the block fails nothing is left behind and what stood at `path` stays. Raises UserError when the disk
    refuses.
    """
    path = Path(path)
    # The suffix stays, for it tells readers what the file is.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; is the disk full or the folder not yours?"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: PathLike, content: bytes) -> None:
    """Write a file, whole or not at all. Raises UserError."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: PathLike, content: str) -> None:
    """Write UTF-8 with LF, whole or not at all. Raises UserError."""
    write_bytes(path, content.encode("utf-8"))


def publish_labels(classes: Sequence[str], output: Path) -> Path:
    """Write the label file beside the model; one that is there and says something else is not overwritten."""
    place = output.parent / LABELS
    if place.exists() and place.read_bytes() != ("\n".join(classes) + "\n").encode("utf-8"):
        place = output.with_name(f"{output.stem}-{LABELS}")
    with replaced(place) as temporary:
        write_labels(temporary, classes)
    return place
