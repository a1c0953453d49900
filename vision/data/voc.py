"""Data sets with an XML for each image, as PASCAL VOC has them.

    ROOT/JPEGImages/a.jpg   ROOT/Annotations/a.xml   ROOT/ImageSets/Main/train.txt   (VOC, CVAT; any case; or images/)
    ROOT/a.jpg              ROOT/a.xml                                               (LabelImg: beside the images)
    ROOT/train/a.jpg        ROOT/train/a.xml                                         (Roboflow: folders are the parts)

The lists of ImageSets name the parts. Without them folders called train, val or test (in any usual spelling) do, and
without these the images are drawn.

What is wrong in a data set becomes a `Finding` with the file, the object, the value and what was done. The rules:

=================  ===============================================================================  ===========
code               what                                                                             done
=================  ===============================================================================  ===========
missing-annotation no XML for an image of the split; it is not taken as an image without objects    dropped
                   (each one that a list names; without lists one finding tells of all)
missing-listed     a line of the split file of which there is neither XML nor image                 dropped
bad-xml            malformed, not a VOC annotation                                                  dropped
unsafe-xml         has a DOCTYPE or ENTITY declaration (VOC needs none; entities can blow up)       dropped
missing-image      no image file for an annotation                                                  dropped
unreadable-image   empty, not an image                                                              dropped
truncated-image    the file stops early (OpenCV would fill it with grey, silently)                  dropped
several-images     more than one file fits                                                          one taken
duplicate-id       a line occurs twice in the split file                                            dropped
size-mismatch      the XML's width x height is not the file's: with the same aspect ratio the       boxes scaled
                   boxes are scaled to the file; otherwise they are taken in the file's pixels      or kept
exif-rotated       the XML fits the photograph turned upright by EXIF: it is turned on reading      (a note)
no-name, no-box    an object without <name>, or without the four corners                            dropped
bad-number         a corner is no number, NaN, infinite or beyond a million                         dropped
fraction-box       corners between 0 and 1: fractions where VOC wants pixels                        dropped
unknown-class      a name that is not among the classes                                             dropped
inverted-box       min and max exchanged: swapped when both corners lie in the image, else          swapped or
                                                                                                    dropped
outside-box        wholly outside the image                                                         dropped
clipped-box        partly outside, by more than one pixel (less is clipped in silence)              clipped
empty-box          narrower or lower than one pixel after clipping                                  dropped
random-split       no ImageSets and no folders of parts, or one list of all (CVAT's default.txt):   (a note)
                   images are split 80/20 by a hash of seed and name
=================  ===============================================================================  ===========

An XML without objects is an image without objects: kept, as a negative. A missing <difficult> is 0.
Corners are shifted by -1 from VOC's 1-based pixels.
"""

import math
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path, PureWindowsPath
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

import numpy as np

from vision.data.annotations import LARGEST_NUMBER, Verdict, judge, size_as_read
from vision.data.images import SUFFIXES, Broken, Size, check_image, split_suffix
from vision.data.labels import read_labels, read_text, suggest, with_background
from vision.data.parts import DRAWN, USUAL, canonical, choose, draw, drawn_note, in_order, is_whole
from vision.data.sample import Dataset, Finding, Sample
from vision.errors import UserError

PathLike = Union[str, Path]

NO_XML = "dropped; for an image without objects write an XML without <object>"

CLASS_FILES = ("labels.txt", "labelmap.txt")

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


_OF_ONE_CLASS = re.compile(r"_(train|val|trainval|test)$")
"""VOC's lists for one class: "cat_train.txt"."""


class _Object(NamedTuple):
    """One <object> as text: nothing is checked yet."""

    name: str
    corners: Tuple[str, ...]
    difficult: bool


class _Annotation(NamedTuple):
    """One XML file as text and numbers: nothing is checked yet."""

    filename: str
    size: Optional[Size]
    objects: List[_Object]


class Tree(NamedTuple):
    """Where things lie: folders of the images and of their XML (the same where they lie together), and the lists."""

    images: Path
    annotations: Path
    lists: Tuple[Path, ...]


class _Held(NamedTuple):
    """What a root holds, by stem below the folders of its tree: XML files, and names of image files."""

    root: Path
    tree: Tree
    files: Dict[str, Path]
    images: Dict[str, List[str]]


# --- the XML of one image -----------------------------------------------------------------------------------


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(text: str) -> float:
    """A number as written, NaN for anything else."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _parse(raw: bytes) -> _Annotation:
    """One annotation. Raises Broken for a file that is no VOC annotation."""
    # The parser would expand entities, and a kilobyte of them can fill the memory. (UTF-16 has a zero in
    # every other byte of these words.)
    if re.search(rb"<!(DOCTYPE|ENTITY)", raw.replace(b"\0", b"")):
        raise Broken("unsafe-xml", "it declares a DOCTYPE or ENTITY; delete the declaration")
    try:
        root = ElementTree.fromstring(raw)
    except ElementTree.ParseError as error:
        raise Broken("bad-xml", str(error).split(":")[0], f"line {error.position[0]}") from error
    except (ValueError, LookupError) as error:  # an encoding that Python does not know
        raise Broken("bad-xml", str(error), "line 1") from error
    if root.tag != "annotation":
        raise Broken("bad-xml", f"the outer element is <{root.tag}>, not <annotation>", "line 1")

    objects = []
    for element in root.findall("object"):
        box = element.find("bndbox")
        corners = () if box is None else tuple(_text(box, corner) for corner in _CORNERS)
        objects.append(_Object(_text(element, "name"), corners, _number(_text(element, "difficult")) > 0))
    height, width = _number(_text(root, "size/height")), _number(_text(root, "size/width"))
    known = 1 <= height <= LARGEST_NUMBER and 1 <= width <= LARGEST_NUMBER
    size = (int(height), int(width)) if known else None  # many tools write 0 x 0: it says nothing
    return _Annotation(_text(root, "filename"), size, objects)


# --- objects to boxes ---------------------------------------------------------------------------------------


def _judge(corners: Sequence[str], size: Size, scale: Tuple[float, float]) -> Verdict:
    """The box of one object by the rules at the head of this file.

    Args:
        corners: xmin, ymin, xmax, ymax as written: 1-based pixels of the declared size.
        size: (height, width) of the image as it will be read.
        scale: (x, y) from declared to real pixels.
    """
    if len(corners) != 4 or not all(corners):
        return Verdict(None, "no-box")
    values = [_number(corner) for corner in corners]
    if not all(abs(value) <= LARGEST_NUMBER for value in values):  # False for NaN
        return Verdict(None, "bad-number")
    if all(0 <= value <= 1 for value in values) and any(value % 1 for value in values):
        return Verdict(None, "fraction-box", "dropped; VOC boxes are in pixels")

    x1, y1, x2, y2 = ((value - 1) * scale[i % 2] for i, value in enumerate(values))
    return judge((x1, y1, x2, y2), size)


class _Reader:
    """Turns the annotations of one root into samples and collects the findings."""

    def __init__(self, held: _Held, classes: Tuple[str, ...], findings: List[Finding]) -> None:
        self.classes = classes
        self.number = {name: number for number, name in enumerate(classes)}
        self.images = held.images
        self.folder = held.tree.images
        self.findings = findings

    def report(self, code: str, file: Path, where: str, value: str, action: str) -> None:
        self.findings.append(Finding(code, str(file), where, value, action))

    def find_image(self, stem: str, annotation: _Annotation, xml: Path) -> Optional[Path]:
        """The image of an annotation: the file with its name, else the one that <filename> tells."""
        names = self.images.get(stem, [])
        told = PureWindowsPath(annotation.filename).name  # splits at both kinds of slash
        if not names and told:
            names = [name for name in self.images.get(Path(told).stem, []) if Path(name).name == told]
            names = names or self.images.get(Path(told).stem, [])
        if not names:
            action = f"dropped; looked in {self.folder} for {stem} with {' '.join(SUFFIXES)} in any case"
            self.report("missing-image", xml, "", f"<filename> {told}" if told else "", action)
            return None
        chosen = next((name for name in names if Path(name).name == told), names[0])
        if len(names) > 1:
            self.report("several-images", xml, "", ", ".join(names), f"{chosen} taken")
        return self.folder / chosen

    def objects_of(
        self, annotation: _Annotation, size: Size, scale: Tuple[float, float], xml: Path
    ) -> Tuple[List[Tuple[float, ...]], List[int], List[bool]]:
        """Boxes, labels and difficult flags of the objects that stand the rules."""
        boxes: List[Tuple[float, ...]] = []
        labels: List[int] = []
        difficult: List[bool] = []
        for position, thing in enumerate(annotation.objects, start=1):
            where = f"object {position} ({thing.name})" if thing.name else f"object {position}"
            if not thing.name:
                self.report("no-name", xml, where, "", "dropped")
                continue
            label = self.number.get(thing.name, 0)
            if not label:
                action = "dropped" + suggest(thing.name, self.classes)
                self.report("unknown-class", xml, where, thing.name, action)
                continue
            verdict = _judge(thing.corners, size, scale)
            if verdict.code:
                value = " ".join(f"{k}={v or '?'}" for k, v in zip(_CORNERS, thing.corners))
                self.report(verdict.code, xml, where, value or "no <bndbox>", verdict.action)
            if verdict.box is not None:
                boxes.append(verdict.box)
                labels.append(label)
                difficult.append(thing.difficult)
        return boxes, labels, difficult

    def read(self, stem: str, annotation: _Annotation, xml: Path) -> Optional[Sample]:
        """One sample, or None when its image is of no use."""
        path = self.find_image(stem, annotation, xml)
        if path is None:
            return None
        try:
            header = check_image(path)
        except Broken as broken:
            self.report(broken.code, path, "", broken.reason, "dropped")
            return None
        size, scale = size_as_read(header, annotation.size, xml, "", self.findings)
        boxes, labels, difficult = self.objects_of(annotation, size, scale, xml)
        return Sample(
            id=stem,
            path=path,
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            labels=np.array(labels, np.int64),
            difficult=np.array(difficult, bool),
            group=np.zeros(len(labels), bool),
            size=size,
        )


# --- folders and split files --------------------------------------------------------------------------------


def _walk(folder: Path) -> List[str]:
    """Paths below a folder, with forward slashes, sorted: one listing for each folder, no look at a file."""
    found = []
    for place, folders, names in os.walk(str(folder)):
        folders[:] = [name for name in folders if not name.startswith(".")]  # such as .ipynb_checkpoints
        inside = os.path.relpath(place, str(folder)).replace(os.sep, "/")
        found += [name if inside == "." else f"{inside}/{name}" for name in names]
    return sorted(found)


def _list_images(folder: Path) -> Dict[str, List[str]]:
    """Stem (below the folder) -> image files with that stem, in the order of SUFFIXES."""
    found: Dict[str, List[str]] = {}
    for name in _walk(folder):
        stem, suffix = split_suffix(name)
        if suffix.lower() in SUFFIXES:
            found.setdefault(stem, []).append(name)
    for names in found.values():
        names.sort(key=lambda name: SUFFIXES.index(split_suffix(name)[1].lower()))
    return found


def _list_annotations(folder: Path) -> Dict[str, Path]:
    """Stem (below the folder) -> XML file."""
    names = (split_suffix(name) for name in _walk(folder))
    return {stem: folder / (stem + suffix) for stem, suffix in names if suffix.lower() == ".xml"}


def _folders(root: Path) -> Dict[str, Path]:
    """The folders in a folder by their names in lower case; of two the one with capitals, as VOC has it."""
    if not root.is_dir():
        return {}
    return {path.name.lower(): path for path in sorted(root.iterdir(), reverse=True) if path.is_dir()}


def _is_annotation(path: Path) -> bool:
    """Whether an XML begins like VOC's (CVAT's own begin with <annotations>)."""
    try:
        with path.open("rb") as file:
            return re.search(rb"<annotation[\s>]", file.read(1000)) is not None
    except OSError:
        return False


def _holds_pairs(folder: Path) -> bool:
    """Whether a folder holds an image with its XML beside it."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in (".xml", *SUFFIXES)]
    images = {path.stem for path in files if path.suffix.lower() != ".xml"}
    return any(
        path.stem in images and _is_annotation(path) for path in files if path.suffix.lower() == ".xml"
    )


def _lists(root: Path) -> Tuple[Path, ...]:
    """The split files."""
    folder = _folders(_folders(root).get("imagesets", root / "ImageSets")).get("main")
    return tuple(sorted(folder.glob("*.txt"))) if folder is not None else ()


def find_tree(root: Path) -> Optional[Tree]:
    """The layout of a folder; None for one that has none of those at the head of this file."""
    inside = _folders(root)
    annotations, images = inside.get("annotations"), inside.get("jpegimages", inside.get("images"))
    if annotations and images:
        return Tree(images, annotations, _lists(root))
    heaps = [root] + [folder for name, folder in inside.items() if canonical(name) in USUAL]
    if root.is_dir() and not annotations and any(map(_holds_pairs, heaps)):
        return Tree(root, root, _lists(root))
    return None


def _tree(root: Path) -> Tree:
    """The same. Raises UserError where there is none."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    tree = find_tree(root)
    if tree is not None:
        return tree
    inside = _folders(root)
    lacks = [] if "annotations" in inside else ["Annotations"]
    lacks += [] if {"jpegimages", "images"} & set(inside) else ["JPEGImages"]
    names = sorted(path.name for path in root.iterdir())
    nested = [name for name in names if is_voc(root / name) or resembles_voc(root / name)]
    hint = (
        f"; did you mean {root / nested[0]}?"
        if nested
        else f"; it holds: {', '.join(names[:8]) or 'nothing'}"
    )
    raise UserError(f"{root}: not a VOC tree, it has no folder {' and no folder '.join(lacks)}{hint}")


def is_voc(root: PathLike) -> bool:
    """Whether a folder has VOC's own folder of annotations."""
    root = Path(root)
    # Listed, because where case does not count COCO's `annotations` would be there under this name as well.
    return root.is_dir() and any(path.name == "Annotations" and path.is_dir() for path in root.iterdir())


def resembles_voc(root: PathLike) -> bool:
    """Whether a folder holds VOC's XML in a layout that others share: beside the images, or in `annotations`."""
    tree = find_tree(Path(root))
    return tree is not None and any(map(_is_annotation, _list_annotations(tree.annotations).values()))


def _part(stem: str) -> str:
    """The part that the outermost folder of a stem names; "" without a folder."""
    folder, slash, _ = stem.partition("/")
    return canonical(folder) if slash else ""


def _parts_by_folder(stems: Iterable[str]) -> List[str]:
    """Parts that folders name; none where no folder is called like a usual part."""
    parts = in_order({_part(stem) for stem in stems} - {""})
    return parts if set(parts) & set(USUAL) else []


def voc_parts(root: PathLike) -> List[str]:
    """The split files that name parts of the whole, else the folders that do; none without any.

    Of train, val and trainval those that are used, see `read_voc`; without VOC's files for one class ("cat_train.txt").
    """
    tree = _tree(Path(root))
    there = [path.stem for path in tree.lists]
    if not there:
        return _parts_by_folder(_list_annotations(tree.annotations))
    if _lone_list(tree) is not None:
        return []
    plain = [name for name in there if not _OF_ONE_CLASS.search(name)] or there
    if "trainval" in plain:
        unused = ("train", "val") if "test" in plain or not {"train", "val"} <= set(plain) else ("trainval",)
        plain = [name for name in plain if name not in unused]
    return in_order(plain)


def _lone_list(tree: Tree) -> Optional[Path]:
    """The only split file, where its name is that of no part: it lists everything (CVAT's default.txt)."""
    if len(tree.lists) != 1 or _OF_ONE_CLASS.search(tree.lists[0].stem):
        return None
    return tree.lists[0] if is_whole(tree.lists[0].stem) else None


def _choose_list(lists: Sequence[Path], split: str) -> Path:
    """The split file for "train", "test" or an explicit name. Raises UserError when it is not there."""
    there = [path.stem for path in lists]
    # With train, val and trainval but no test, val is what is tested on, so trainval would train on the test.
    held_out_val = "val" in there and "train" in there and "test" not in there
    train = ["train"] if held_out_val else ["trainval", "train"]
    wanted = {"train": train, "test": ["test", "val"]}.get(split, [split])
    for name in wanted:
        if name in there:
            return lists[there.index(name)]
    raise UserError(
        f"{lists[0].parent}: no split {' or '.join(name + '.txt' for name in wanted)}{suggest(split, there)}; "
        f"there is {', '.join(name + '.txt' for name in there)}"
    )


def _stem_of(line: str, known: Set[str]) -> Optional[str]:
    """The image that a line of a split file names, or None for "not in this class" (a flag of -1).

    A line is a stem, perhaps with blanks in it, perhaps with its image suffix or a folder in front, and in
    VOC's files for one class followed by 1, 0 or -1.
    """
    candidates = [line]
    flagged = re.match(r"^(.*\S)\s+(-1|0|1)$", line)
    if flagged and line not in known:
        if flagged.group(2) == "-1":
            return None
        candidates.append(flagged.group(1))
    for text in candidates:
        text = text.replace("\\", "/")
        stem, suffix = split_suffix(text)
        bare = stem if suffix.lower() in SUFFIXES else text
        for candidate in (text, bare, bare.rsplit("/", 1)[-1]):
            if candidate in known:
                return candidate
    return candidates[-1]


def _read_split(path: Path, held: _Held, findings: List[Finding]) -> List[str]:
    """Stems that a split file lists, each once, and of which there is anything."""
    stems: Dict[str, None] = {}
    known = {*held.files, *held.images}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        stem = _stem_of(line.strip(), known) if line.strip() else None
        if stem is None:
            continue
        if stem in stems:
            findings.append(Finding("duplicate-id", str(path), f"line {number}", stem, "dropped"))
        elif stem not in known:
            action = "dropped; there is neither an XML nor an image of this name"
            findings.append(Finding("missing-listed", str(path), f"line {number}", stem, action))
            continue
        stems[stem] = None
    return list(stems)


def _stems(held: _Held, split: str, seed: int, findings: List[Finding]) -> List[str]:
    """Images of a split, in its order."""
    lists, whole = held.tree.lists, _lone_list(held.tree)
    if not lists:
        return _stems_unlisted(held, split, seed, findings)
    if whole is not None and whole.stem != split and canonical(split) in DRAWN:
        listed = _read_split(whole, held, findings)
        findings.append(drawn_note(held.root, f"ImageSets/Main holds {whole.name} alone", seed, len(listed)))
        return draw(listed, split, seed)
    return _read_split(_choose_list(lists, split), held, findings)


def _stems_unlisted(held: _Held, split: str, seed: int, findings: List[Finding]) -> List[str]:
    """Annotated images of a split that no list names: by folder, else drawn."""
    stems, bare = sorted(held.files), sorted(set(held.images) - set(held.files))
    parts = _parts_by_folder(stems)
    if parts:
        wanted = choose(split, parts, held.root)
        stems, bare = ([stem for stem in each if _part(stem) in wanted] for each in (stems, bare))
    else:
        findings.append(drawn_note(held.root, "no ImageSets/Main", seed, len(stems)))
        stems = draw(stems, split, seed)
    if bare:
        value = f"{len(bare)} image{'s' * (len(bare) > 1)} without an XML, the first {bare[0]}"
        findings.append(Finding("missing-annotation", str(held.tree.images), "", value, NO_XML))
    return stems


# --- the reader ---------------------------------------------------------------------------------------------


def _class_file(root: Path) -> Optional[Path]:
    """labels.txt, or what CVAT puts there."""
    return next((root / name for name in CLASS_FILES if (root / name).is_file()), None)


def _choose_classes(
    root: Path, classes: Optional[Sequence[str]], annotations: Dict[str, Union[_Annotation, Broken]]
) -> Tuple[str, ...]:
    """Given ones, else those of the class file, else every name in the annotations, sorted. BACKGROUND first."""
    if classes is not None:
        return with_background(list(classes))
    file = _class_file(root)
    if file is not None:
        return read_labels(file)
    names = {
        thing.name
        for annotation in annotations.values()
        if isinstance(annotation, _Annotation)
        for thing in annotation.objects
        if thing.name
    }
    return with_background(sorted(names))


def _load(path: Path) -> Union[_Annotation, Broken]:
    """An annotation, or what is wrong with its file."""
    try:
        return _parse(path.read_bytes())
    except Broken as broken:
        return broken
    except OSError as error:
        return Broken("bad-xml", error.strerror or str(error))


def read_voc(root: PathLike, split: str, classes: Optional[Sequence[str]] = None, seed: int = 0) -> Dataset:
    """Read one split of a VOC tree; the rules for what is wrong in it stand at the head of this file.

    Args:
        root: the folder described at the top of this module.
        split: "train" takes ImageSets/Main/trainval.txt, else train.txt; but train.txt before trainval.txt where
            val.txt has to serve as the test. "test" takes test.txt, else val.txt. Any other name is that file.
            Folders are chosen likewise. What is neither listed nor in folders of parts, or is all in one list of
            another name (CVAT's default.txt), is split 80/20.
        classes: class names (BACKGROUND may be among them), which also number the labels. None: labels.txt or
            CVAT's labelmap.txt in the root, else all names in all annotations of the root, whatever the split, sorted.
        seed: of the 80/20 split.

    Raises UserError when the folders or the split are not there. An empty result is not an error here.
    """
    root = Path(root)
    tree = _tree(root)
    files = _list_annotations(tree.annotations)
    held = _Held(root, tree, files, _list_images(tree.images))
    findings: List[Finding] = []
    stems = _stems(held, split, seed, findings)

    # The names of a root without labels.txt come from all its annotations: numbering must not hang on the split.
    everything = classes is None and _class_file(root) is None
    wanted = sorted(files) if everything else [stem for stem in stems if stem in files]
    annotations = {stem: _load(files[stem]) for stem in wanted}

    reader = _Reader(held, _choose_classes(root, classes, annotations), findings)
    samples = []
    for stem in stems:
        annotation = annotations.get(stem)
        if annotation is None:
            place = tree.annotations / f"{stem}.xml"
            reader.report("missing-annotation", place, "", "", NO_XML)
        elif isinstance(annotation, Broken):
            reader.report(annotation.code, files[stem], annotation.where, annotation.reason, "dropped")
        else:
            sample = reader.read(stem, annotation, files[stem])
            if sample is not None:
                samples.append(sample)
    return Dataset(f"{root.resolve().name}/{split}", reader.classes, samples, findings)
