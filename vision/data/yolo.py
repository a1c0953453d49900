"""Data sets in YOLO's text files: a line `class x y width height` for each object, in fractions of the image.

    ROOT/data.yaml                                   path, train, val, test, names
    ROOT/images/train/a.jpg   ROOT/labels/train/a.txt
    ROOT/train/images/a.jpg   ROOT/train/labels/a.txt                 (Roboflow)
    ROOT/a.jpg                ROOT/a.txt                              (LabelImg, Darknet: labels beside the images)
    ROOT/train/a.jpg          ROOT/train/a.txt   ROOT/train/_darknet.labels              (Roboflow's "YOLO Darknet")
    ROOT/obj.data             classes, train, valid, names                      (Darknet, CVAT's "YOLO 1.1")

`train`, `val` and `test` are folders, text files that list images, or lists of these; relative to `path`, or to the
YAML where `path` leads nowhere. In a .data file they are text files; one that is alone holds everything, for Darknet
insists on `train`. A file that is not where a path says (CVAT writes `data/` in front) is looked for without its outer
folders. Without either there are `images/` and `labels/`, and the names of the classes stand in classes.txt (or
obj.names, labels.txt, or are given).

Numbers of classes are taken by name. x and y are of the centre. A line with more numbers is the outline of a segment,
and its enclosing box is taken (with `kpt_shape` in the YAML: keypoints, which are passed over). The fractions are of
the pixels as stored, before any EXIF rotation. What is wrong becomes a `Finding`, by the rules in
`vision.data.annotations`, and besides:

=================  ===============================================================================  ===========
bad-line           neither 5 numbers nor the outline of a segment                                   dropped
bad-annotation     a label file that cannot be read                                                 dropped
=================  ===============================================================================  ===========

An image without a label file, or with an empty one, is an image without objects.
"""

import math
import os
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from vision.data.annotations import Annotation, Object, drawn, joined, short, to_dataset, to_name, to_number
from vision.data.images import SUFFIXES, split_suffix
from vision.data.labels import read_labels, read_text, with_background
from vision.data.locate import is_file
from vision.data.parts import canonical, choose
from vision.data.sample import Dataset, Finding
from vision.errors import UserError

YAML_SUFFIXES = (".yaml", ".yml")
DATA_SUFFIX = ".data"
HEAP_FILES = ("classes.txt", "obj.names")
PART_FILE = "_darknet.labels"
CLASS_FILES = (*HEAP_FILES, "labels/classes.txt", "labels.txt", f"train/{PART_FILE}")
PART_KEYS = ("train", "val", "valid", "test")
LARGEST_YAML = 1 << 18
DEEPEST_YAML = 20

Source = Tuple[Path, ...]
"""Folders of images, or text files that list them: what a part is made of."""


class _Layout(NamedTuple):
    """What a root says before any label file is read.

    Attributes:
        names: of the classes by number; empty where nothing tells.
        parts: part -> its sources; "" for one heap.
        keypoints: lines go on with keypoints behind the box.
        file: the YAML or .data file, or the root.
    """

    names: Dict[int, str]
    parts: Dict[str, Source]
    keypoints: bool
    file: Path


# --- the YAML -----------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> Dict[str, Any]:
    """A YAML file as mappings, lists and texts. Raises UserError for one that is not a mapping, or unsafe."""
    text = read_text(path)
    if len(text) > LARGEST_YAML:
        raise UserError(f"{path}: is over 256 KB; a data.yaml is a few lines")
    try:
        import yaml
    except ImportError:
        raise UserError(f"{path}: reading it needs PyYAML: pip install pyyaml") from None
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UserError(
                    f"{path}: has an alias (*name); a few lines of them can fill the memory. Write it out"
                )
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:  # each token takes the time of the depth
                raise UserError(f"{path}: nested too deeply to be a data.yaml")
        # BaseLoader makes nothing but texts of the leaves: a class called `no` stays one.
        loaded = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path}: {where}{short(error.problem or str(error))}; not YAML") from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: {short(str(error))}; not YAML") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds {short(loaded)}, not `train:`, `val:` and `names:`")
    return loaded


def _names(value: Any, path: Path) -> Dict[int, str]:
    """Class number -> name, from a list or a mapping. Raises UserError."""
    if isinstance(value, list):
        items: List[Tuple[Any, Any]] = list(enumerate(value))
    elif isinstance(value, dict):
        items = list(value.items())
    else:
        told = "has no `names`" if value is None else f"`names` is {short(value)}"
        raise UserError(f"{path}: {told}; write a list of the classes")
    names: Dict[int, str] = {}
    for number, name in items:
        key, text = to_number(number), to_name(name)
        if not (key >= 0 and key % 1 == 0 and key < 1e6) or not text:
            raise UserError(f"{path}: names: {short(number)}: {short(name)} is no class number with its name")
        names[int(key)] = text
    return {number: names[number] for number in sorted(names)}


def _strings(value: Any) -> List[str]:
    """A text, or the texts of a list."""
    values = value if isinstance(value, list) else [value]
    return [each.strip() for each in values if isinstance(each, str) and each.strip()]


def _resolve(text: str, bases: Iterable[Path]) -> Optional[Path]:
    """The folder or file that a YAML names: below one of the bases, also where a leading ../ is one too many."""
    relative = text.replace("\\", "/")
    bare = relative
    while bare.startswith(("../", "./")):
        bare = bare.split("/", 1)[1]
    bases = list(bases)
    for base in bases:
        for candidate in (base / relative, base / bare):
            try:
                if candidate.exists():
                    return candidate
            except (OSError, ValueError):
                return None
    return next((base / tail for base in bases for tail in _tails(bare) if is_file(base / tail)), None)


def _tails(path: str) -> List[str]:
    """ "data/obj/a.jpg" -> "obj/a.jpg", "a.jpg": a file that has moved, without folders that are not there."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return ["/".join(parts[start:]) for start in range(1, len(parts))]


def _sources(path: Path, loaded: Dict[str, Any]) -> Dict[str, Source]:
    """Part -> sources. A part that leads nowhere is left out, unless all do: then UserError."""
    told = loaded.get("path")
    own = [path.parent / told] if isinstance(told, str) and told.strip() and "\0" not in told else []
    bases = own + [path.parent]
    parts: Dict[str, Source] = {}
    lost = []
    for key in PART_KEYS:
        texts = _strings(loaded.get(key))
        found = [_resolve(text, bases) for text in texts]
        there = tuple(place for place in found if place is not None)
        if there and len(there) == len(texts):
            parts.setdefault(canonical(key), there)
        lost += [f"{key}: {short(text)}" for text, place in zip(texts, found) if place is None]
    if parts.get("val") == parts.get("test") and "test" in parts:
        del parts["val"]  # written for tools that want one: it is the same
    if not parts:
        looked = " and ".join(str(base) for base in bases)
        what = ", ".join(lost) if lost else "no train, val or test"
        raise UserError(f"{path}: {what}: not there; looked below {looked}")
    return parts


def _find_yaml(root: Path) -> Optional[Path]:
    """The YAML of a root: data.yaml, else the only one; the root itself when it is one."""
    if root.suffix.lower() in YAML_SUFFIXES and is_file(root):
        return root
    if not root.is_dir():
        return None
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in YAML_SUFFIXES and is_file(path))
    preferred = [path for path in files if path.stem.lower() in ("data", "dataset")]
    chosen = preferred or files
    return chosen[0] if len(chosen) == 1 or preferred else None


def _looks_like_yolo(path: Path, separator: str = ":") -> bool:
    """Whether a YAML or .data file has names and a part, without PyYAML and without trust in it."""
    try:
        words = {line.split(separator, 1)[0].strip() for line in read_text(path).splitlines()[:10_000]}
    except UserError:
        return False
    return "names" in words and bool(words & set(PART_KEYS))


# --- Darknet's .data ----------------------------------------------------------------------------------------


def _find_data(root: Path) -> Optional[Path]:
    """The only .data file of a root."""
    files = [path for path in root.iterdir() if path.suffix.lower() == DATA_SUFFIX] if root.is_dir() else []
    found = [path for path in files if is_file(path) and _looks_like_yolo(path, "=")]
    return found[0] if len(found) == 1 else None


def _data_layout(path: Path) -> _Layout:
    """What lines of `key = value` say."""
    pairs = [line.partition("=") for line in read_text(path).splitlines()]
    told = {key.strip(): value.strip() for key, _, value in pairs}
    parts = _sources(path, told)
    if set(parts.values()) == {parts.get("train")}:
        parts = {"": parts["train"]}
    file = _resolve(told["names"], [path.parent]) if told.get("names") else None
    return _Layout(_read_names(file or _class_file(path.parent)), parts, False, path)


# --- layouts without a YAML ---------------------------------------------------------------------------------


def _bare_parts(root: Path) -> Dict[str, Source]:
    """Parts of a root with images/ and labels/, whichever is outside; "" for one heap. May be empty."""
    images = root / "images"
    if images.is_dir() and (root / "labels").is_dir():
        below = [folder for folder in sorted(images.iterdir()) if folder.is_dir()]
        named = {canonical(folder.name): (folder,) for folder in below}
        return dict(named) if set(named) & {"train", "val", "test"} else {"": (images,)}
    below = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
    found = [f / "images" for f in below if (f / "images").is_dir() and (f / "labels").is_dir()]
    parts: Dict[str, Source] = {canonical(images.parent.name): (images,) for images in found}
    parts.update({canonical(folder.name): (folder,) for folder in below if is_file(folder / PART_FILE)})
    return parts if set(parts) & {"train", "val", "test"} else {}


def _class_file(root: Path) -> Optional[Path]:
    return next((root / name for name in CLASS_FILES if is_file(root / name)), None)


def _read_names(file: Optional[Path]) -> Dict[int, str]:
    return dict(enumerate(read_labels(file)[1:])) if file else {}


def _is_heap(root: Path) -> bool:
    """Images and their .txt in one folder, with LabelImg's classes.txt or Darknet's obj.names."""
    named = any(is_file(root / name) for name in HEAP_FILES)
    return named and any(path.suffix.lower() in SUFFIXES for path in root.iterdir())


def _layout(root: Path) -> _Layout:
    """Raises UserError where there is none."""
    yaml_file = _find_yaml(root)
    if yaml_file is not None:
        loaded = read_yaml(yaml_file)
        names = _names(loaded.get("names"), yaml_file)
        return _Layout(names, _sources(yaml_file, loaded), "kpt_shape" in loaded, yaml_file)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    data_file = _find_data(root)
    if data_file is not None:
        return _data_layout(data_file)
    parts = _bare_parts(root)
    if not parts and _is_heap(root):
        parts = {"": (root,)}
    if not parts:
        raise UserError(f"{root}: not a YOLO data set: no data.yaml, and no images/ beside labels/")
    return _Layout(_read_names(_class_file(root)), parts, False, root)


def is_yolo(root: Path) -> bool:
    """Whether a folder has a data.yaml, an obj.data, or images/ beside labels/, or is itself such a YAML."""
    root = Path(root)
    yaml_file = _find_yaml(root)
    if yaml_file is not None and _looks_like_yolo(yaml_file):
        return True
    return root.is_dir() and (_find_data(root) is not None or bool(_bare_parts(root)) or _is_heap(root))


def yolo_parts(root: Path) -> List[str]:
    """Names of the parts, canonical; none where the images lie in one heap."""
    return [part for part in _layout(Path(root)).parts if part]


# --- images and their labels --------------------------------------------------------------------------------


def _images_below(folder: Path) -> List[Tuple[str, Path]]:
    """(id, path) of all images below a folder."""
    # Unlike `rglob`, `walk` passes over folders that may not be read or are gone meanwhile.
    found = sorted(
        Path(place) / name
        for place, _, names in os.walk(str(folder))
        for name in names
        if split_suffix(name)[1].lower() in SUFFIXES
    )
    return [(split_suffix(path.relative_to(folder).as_posix())[0], path) for path in found]


def _images_listed(file: Path) -> List[Tuple[str, Path]]:
    """(id, path) of the images that a text file lists, relative to it (or absolute, or to the folder above)."""
    found = []
    for line in read_text(file).splitlines():
        text = line.strip().replace("\\", "/")
        if not text or "\0" in text:
            continue
        bare = text[2:] if text.startswith("./") else text
        above = (file.parent, file.parent.parent)
        places = [folder / each for each in (bare, *_tails(bare)) for folder in above]
        path = next((place for place in places if is_file(place)), places[0])
        found.append((split_suffix(path.name)[0], path))
    return found


def _tell_apart(found: List[Tuple[str, Path]]) -> List[Tuple[str, Path]]:
    """Ids of different files that are the same get as much of their folders in front as they need."""
    for depth in range(2, 8):
        owners: Dict[str, set] = {}
        for each, path in found:
            owners.setdefault(each, set()).add(path)
        if all(len(paths) == 1 for paths in owners.values()):
            break
        found = [
            (
                split_suffix("/".join(path.parts[-depth:]).lstrip("/"))[0] if len(owners[each]) > 1 else each,
                path,
            )
            for each, path in found
        ]
    return found


def label_places(image: Path) -> List[Path]:
    """Where the labels of an image may be: below `labels` where it lies below `images`, else beside it."""
    parts = image.parts
    places = []
    for position in range(len(parts) - 2, -1, -1):
        if parts[position].lower() == "images":
            places.append(Path(*parts[:position], "labels", *parts[position + 1 :]).with_suffix(".txt"))
            break
    places.append(image.with_suffix(".txt"))
    return places


def _label_file(image: Path) -> Optional[Path]:
    return next((place for place in label_places(image) if is_file(place)), None)


def told_labels(images: Sequence[Path]) -> str:
    """How many images have a label file, and where they were looked for; for data without a single object."""
    if not images:
        return ""
    count = sum(_label_file(image) is not None for image in images)
    if count:
        return (
            f"; {count} of {len(images)} images have a label file, the others count as images without objects"
        )
    places = " and ".join(str(place) for place in label_places(images[0]))
    return f"; not one image has a label file: those of {images[0].name} were looked for at {places}"


def _object(line: str, number: int, layout: _Layout) -> Optional[Object]:
    """One line; None where it is neither a box nor an outline."""
    words = line.split()
    values = [to_number(word) for word in words]
    count = len(values)
    box = count == 5 or (layout.keypoints and count > 5)
    outline = count >= 7 and count % 2 == 1
    if not box and not outline:
        return None
    if box:
        x, y, width, height = values[1:5]
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    elif all(map(math.isfinite, values)):
        corners = (min(values[1::2]), min(values[2::2]), max(values[1::2]), max(values[2::2]))
    else:
        corners = (math.nan, math.nan, math.nan, math.nan)
    known = values[0] >= 0 and values[0] % 1 == 0
    name = layout.names.get(int(values[0]), "") if known else ""
    return Object(name or f"number {short(words[0], 20)}", corners, f"line {number}", short(line))


def _objects(file: Path, layout: _Layout, findings: List[Finding]) -> List[Object]:
    try:
        text = read_text(file)
    except UserError as error:
        findings.append(Finding("bad-annotation", str(file), "", str(error), "dropped"))
        return []
    things = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        thing = _object(line, number, layout)
        if thing is None:
            action = "dropped; wanted is `class x y width height`, or an outline of at least 3 points"
            findings.append(Finding("bad-line", str(file), f"line {number}", short(line), action))
        else:
            things.append(thing)
    return things


def _annotations(sources: Source, layout: _Layout, findings: List[Finding]) -> List[Annotation]:
    """One for each image of a part."""
    images: List[Tuple[str, Path]] = []
    base = layout.file.parent if is_file(layout.file) else layout.file
    for source in sources:
        if source.resolve() in base.resolve().parents:
            raise UserError(
                f"{layout.file}: {source} holds the data set itself; name the folder of the images alone"
            )
        images += _images_below(source) if source.is_dir() else _images_listed(source)
    annotations = []
    for sample_id, path in _tell_apart(images):
        labels = _label_file(path)
        things = _objects(labels, layout, findings) if labels else []
        file = labels if labels is not None else layout.file
        there = path if is_file(path) else None
        annotations.append(Annotation(sample_id, there, file, "", things, fractions=True))
    return annotations


# --- the reader ---------------------------------------------------------------------------------------------


def read_yolo(root: Path, split: str, classes: Optional[Sequence[str]] = None, seed: int = 0) -> Dataset:
    """Read one part of a data set in YOLO's text files.

    Args:
        root: the folder described at the top of this module, or its YAML.
        split: train, val, test (else val), trainval, or the name of a part. Images in one heap are divided 80/20.
        classes: names, which number the labels; None: those of the data set, in its order.
        seed: of the 80/20 split.

    Raises UserError when there is no such part, for a YAML that is none, and where nothing names the classes.
    """
    root = Path(root)
    layout = _layout(root)
    if not layout.names and classes is not None:
        # The files number classes that nothing else names: the given ones, in their order.
        layout = layout._replace(names=dict(enumerate(with_background(list(classes))[1:])))
    if not layout.names:
        raise UserError(
            f"{root}: the label files number the classes and nothing names them; "
            "write the names into classes.txt, one a line, or give a label file"
        )
    names = list(dict.fromkeys(layout.names.values()))
    numbering = with_background(names) if classes is None else with_background(list(classes))
    wanted = [""] if "" in layout.parts else choose(split, list(layout.parts), layout.file)
    findings: List[Finding] = []
    annotations = joined({part: _annotations(layout.parts[part], layout, findings) for part in wanted})
    if wanted == [""]:
        annotations, note = drawn(annotations, root, "the images lie in one heap", split, seed)
        # What was found in files of the other part does not belong here.
        read = {str(annotation.file) for annotation in annotations}
        findings = [finding for finding in findings if finding.file in read] + [note]
    name = root.resolve().parent.name if root == layout.file and root.suffix else root.resolve().name
    return to_dataset(f"{name}/{split}", numbering, annotations, findings)
