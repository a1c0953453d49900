"""Where things lie in a data set: the image that an annotation names, and the files that annotate a part."""

import re
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from vision.data.parts import canonical

_DECORATION = re.compile(
    r"^(instances|annotations?|labels?|coco)[-_.]|[-_.](annotations?|labels?|instances|coco|bbox|boxes)$"
)


def inside(name: str) -> Optional[str]:
    """A file name from a data set as a relative path that leads nowhere else; None for one that is no file name.

    "C:\\\\photos\\\\a.jpg", "/home/me/a.jpg" and "../../a.jpg" are "a.jpg": where it lay elsewhere says nothing here.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or parts[-1] == ".." or "\0" in name:
        return None
    elsewhere = name[:1] in "/\\" or ":" in parts[0] or ".." in parts
    return parts[-1] if elsewhere else "/".join(parts)


def part_of(stem: str) -> str:
    """The part that a file's stem names: "instances_train2017" -> "train2017", "_annotations.coco" -> ""."""
    word, before = stem.strip("_-. "), None
    while word != before:
        before = word
        word = _DECORATION.sub("", word).strip("_-. ")
        if word.lower() in ("annotations", "annotation", "instances", "labels", "coco"):
            word = ""
    return word


def image_folders(root: Path, file: Path, part: str) -> List[Path]:
    """Folders in which the images of an annotation file may lie, the likeliest first."""
    words = list(dict.fromkeys([part, canonical(part)])) if part else []
    beside = [file.parent, file.parent / "images"]
    named = [root / "images" / word for word in words] + [root / word for word in words]
    named += [root / word / "images" for word in words]
    plain = [root / "images", root / "JPEGImages", root / "data", root / "imgs", root]
    found = [folder for folder in beside + named + plain if folder.is_dir()]
    return list(dict.fromkeys(found))


def is_file(path: Path) -> bool:
    """Whether a file is there; False for names that no file can have (too long, unprintable)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


class ImageFolders:
    """Looks images up by name in several folders."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self._listed: Optional[Dict[str, Path]] = None

    def find(self, name: str) -> Optional[Path]:
        """The file of a name that is `inside`: as it is, else by its last part, else whatever the case."""
        last = name.rsplit("/", 1)[-1]
        for candidate in dict.fromkeys([name, last]):
            for folder in self.folders:
                if is_file(folder / candidate):
                    # Images lie together: the next one is most likely here, too.
                    self.folders.remove(folder)
                    self.folders.insert(0, folder)
                    return folder / candidate
        if self._listed is None:
            self._listed = {
                path.name.lower(): path
                for folder in reversed(self.folders)
                for path in folder.iterdir()
                if path.is_file()
            }
        return self._listed.get(last.lower())
