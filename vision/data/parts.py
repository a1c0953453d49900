"""Training and test parts of a data set: what people call them, and drawing them where nobody has divided the data."""

import hashlib
import re
from pathlib import Path
from typing import Dict, Iterable, List, Sequence, Tuple

from vision.data.labels import suggest
from vision.data.sample import Finding
from vision.errors import UserError

TEST_SHARE = 0.2

DRAWN = ("train", "trainval", "test", "val")
"""What can be asked of data without parts."""

_NAMES = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "dev", "eval", "minival"),
    "test": ("test", "testing"),
    "trainval": ("trainval",),
}
USUAL = ("train", "val", "test")
"""Folders of one of these names, in any usual spelling, are the parts of a data set."""

_CANONICAL = {word: name for name, words in _NAMES.items() for word in words}

UNNAMED = ("", "default", "all", "annotations", "instances", "labels", "result", "coco", "data")
"""File names that name no part: such a file alone holds everything."""


def canonical(name: str) -> str:
    """ "train2017", "Training" -> "train"; "valid", "validation" -> "val"; other names stay as they are."""
    word = re.sub(r"[-_ ]?\d{4}$", "", name.strip().lower())
    return _CANONICAL.get(word, name)


def is_whole(name: str) -> bool:
    """Whether a file that is alone holds everything: it is called like no usual part ("mine" as well as "all")."""
    return name.lower() in UNNAMED or canonical(name) not in _NAMES


def choose(split: str, there: Sequence[str], place: Path) -> List[str]:
    """Which of the parts that are there a split takes.

    "train" is train, else trainval; "test" is test, else val; "trainval" is train and val; any other name is that part.

    Args:
        split: as asked for, in any of the usual spellings.
        there: canonical names.
        place: for the message.

    Raises UserError when there is none.
    """
    asked = canonical(split)
    if asked == "trainval" and "trainval" not in there:
        both = [name for name in ("train", "val") if name in there]
        if both:
            return both
    wanted = {"train": ["train", "trainval"], "test": ["test", "val"]}.get(asked, [asked])
    for name in wanted:
        if name in there:
            return [name]
    raise UserError(
        f"{place}: no split {' or '.join(wanted)}{suggest(split, there)}; there is {', '.join(there)}. "
        "To divide a data set: python -m vision.data split"
    )


def tested_of(total: int) -> int:
    """How many of all images `draw` puts aside for the test."""
    return max(1, round(total * TEST_SHARE)) if total > 1 else 0


def draw(names: Sequence[str], split: str, seed: int) -> List[str]:
    """The training or test part of all images: 80 % and 20 %.

    An image's place depends on the seed and its own name, so new images shuffle none of the old ones about.

    Raises UserError for a split that is neither part.
    """
    asked = canonical(split)
    if asked not in DRAWN:
        raise UserError(f"the images are in one heap: there is no split {split!r}; ask for train or test")

    def key(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()

    test = set(sorted(names, key=key)[: tested_of(len(names))])
    wants_test = asked in ("test", "val")
    return [name for name in names if (name in test) == wants_test]


def drawn_note(root: Path, reason: str, seed: int, total: int) -> Finding:
    """The finding that says how the parts were drawn: the same for both of them."""
    tested = tested_of(total)
    action = f"split 80/20: {total - tested} images for training, {tested} for test"
    return Finding("random-split", str(root), "", f"{reason}, seed {seed}", action)


def one_file_each(named: Iterable[Tuple[str, Path]]) -> Dict[str, Path]:
    """(part as written, file) -> file of each part. Raises UserError for two of one part."""
    found: Dict[str, Path] = {}
    for part, path in named:
        if part in found:
            raise UserError(
                f"{path} and {found[part]} both annotate {part or 'everything'}; move one of them away"
            )
        found[part] = path
    return found


def by_part(files: Dict[str, Path]) -> Dict[str, Path]:
    """Name as written -> file; the same under canonical names ("" for one that holds everything).

    One file alone holds everything unless its name is that of a usual part.
    Where two names mean the same ("val" and "valid") both stay as they are written.
    """
    if len(files) == 1 and is_whole(next(iter(files))):
        return {"": next(iter(files.values()))}
    names = [canonical(name) for name in files]
    found = {
        (canonical(name) if names.count(canonical(name)) == 1 else name): path for name, path in files.items()
    }
    return {name: found[name] for name in in_order(found)}


def in_order(names: Iterable[str]) -> List[str]:
    """Training parts first, then val and test, then others."""
    usual = ["trainval", "train", "val", "test"]
    return sorted(names, key=lambda name: (usual.index(name) if name in usual else len(usual), name))
