"""Small whole data sets in every format, for tests that break them."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Tuple

import cv2
import numpy as np
import pytest

HEIGHT, WIDTH = 90, 120
CLASSES = ("cat", "dog")
FORMATS = ("voc", "coco", "yolo", "csv", "open_images")


@dataclass
class Thing:
    """One object: corners in 0-based pixels."""

    name: str
    box: List[float]


@dataclass
class Picture:
    """One image and what is on it."""

    stem: str
    part: str
    things: List[Thing] = field(default_factory=list)
    size: Tuple[int, int] = (HEIGHT, WIDTH)


def coded(seed=0, suffix=".jpg", height=HEIGHT, width=WIDTH, quality=90):
    """Clouds, other ones for each seed, as the bytes of an image file."""
    coarse = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(suffix, image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def sound():
    """Nine pictures with cats and dogs, in which there is nothing to find."""
    pictures = []
    for number in range(9):
        things = [
            Thing("cat", [4 + number, 6, 44 + number, 42]),
            Thing("dog", [60, 5 + number, 100, 45 + number]),
            Thing("cat", [52, 50, 112, 86 - number]),
            Thing("dog", [6, 48, 48 - number, 88]),
        ]
        pictures.append(Picture(f"p{number}", "train" if number < 6 else "test", things))
    return pictures


class WholeSet:
    """A data set on disk: `root`, and where its files are."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind, self.root = kind, root

    def image(self, stem="p0", part="train", suffix=".jpg") -> Path:
        folder = {"voc": "JPEGImages", "yolo": f"images/{part}", "open_images": part}.get(self.kind, "images")
        return self.root / folder / (stem + suffix)

    def annotation(self, stem="p0", part="train") -> Path:
        name = {
            "voc": f"Annotations/{stem}.xml",
            "coco": f"annotations/instances_{part}.json",
            "yolo": f"labels/{part}/{stem}.txt",
            "csv": f"{part}_labels.csv",
            "open_images": f"sub-{part}-annotations-bbox.csv",
        }[self.kind]
        return self.root / name

    def write(self, pictures: List[Picture]) -> "WholeSet":
        for number, picture in enumerate(pictures):
            path = self.image(picture.stem, picture.part)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(coded(number, height=picture.size[0], width=picture.size[1]))
            self.annotation(picture.stem, picture.part).parent.mkdir(parents=True, exist_ok=True)
        for part in dict.fromkeys(picture.part for picture in pictures):
            getattr(self, f"_write_{self.kind}")(part, [p for p in pictures if p.part == part])
        return self

    def _write_voc(self, part, pictures):
        for picture in pictures:
            self.annotation(picture.stem).write_text(voc_xml(picture), encoding="utf-8")
        lists = self.root / "ImageSets/Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{part}.txt").write_text("".join(f"{picture.stem}\n" for picture in pictures))
        (self.root / "labels.txt").write_text("\n".join(CLASSES) + "\n")

    def _write_coco(self, part, pictures):
        names = list(dict.fromkeys([*CLASSES, *(t.name for p in pictures for t in p.things if t.name)]))
        images, annotations = [], []
        for number, picture in enumerate(pictures):
            size = {"height": picture.size[0], "width": picture.size[1]}
            images.append({"id": number, "file_name": f"{picture.stem}.jpg", **size})
            for thing in picture.things:
                x1, y1, x2, y2 = thing.box
                entry = {"id": len(annotations) + 1, "image_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                if thing.name:
                    entry["category_id"] = names.index(thing.name) + 1
                annotations.append(entry)
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
        whole = {"images": images, "annotations": annotations, "categories": categories}
        self.annotation(part=part).write_text(json.dumps(whole))

    def _write_yolo(self, part, pictures):
        for picture in pictures:
            lines = []
            for thing in picture.things:
                x1, y1, x2, y2 = thing.box
                height, width = picture.size
                numbers = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
                number = CLASSES.index(thing.name) if thing.name in CLASSES else 7
                lines.append(" ".join([str(number), *(f"{value:.6f}" for value in numbers)]))
            self.annotation(picture.stem, part).write_text("\n".join(lines) + "\n")
        names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
        (self.root / "data.yaml").write_text(f"train: images/train\nval: images/test\nnames:\n{names}")

    def _write_csv(self, part, pictures):
        with self.annotation(part=part).open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
            for picture in pictures:
                start = [f"{picture.stem}.jpg", picture.size[1], picture.size[0]]
                rows.writerows([*start, thing.name, *thing.box] for thing in picture.things)

    def _write_open_images(self, part, pictures):
        columns = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,"
        with self.annotation(part=part).open("w", newline="") as file:
            file.write(columns + "IsDepiction,IsInside,id,ClassName\n")
            rows = csv.writer(file)
            for picture in pictures:
                height, width = picture.size
                for thing in picture.things:
                    x1, y1, x2, y2 = thing.box
                    box = [f"{value:.6f}" for value in (x1 / width, x2 / width, y1 / height, y2 / height)]
                    rows.writerow(
                        [picture.stem, "xclick", "/m/0", 1, *box, 0, 0, 0, 0, 0, "/m/0", thing.name]
                    )


def voc_xml(picture: Picture) -> str:
    """The annotation of one picture, a line for each object."""
    height, width = picture.size
    lines = [f"<annotation><filename>{picture.stem}.jpg</filename>"]
    lines.append(f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    for thing in picture.things:
        tags = zip(("xmin", "ymin", "xmax", "ymax"), thing.box)
        box = "".join(f"<{tag}>{value + 1}</{tag}>" for tag, value in tags)
        name = f"<name>{thing.name}</name>" if thing.name else ""
        lines.append(f"<object>{name}<difficult>0</difficult><bndbox>{box}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])


@pytest.fixture(scope="session")
def sets():
    """What makes data sets: `sets.WholeSet(kind, root).write(sets.sound())`."""
    import types

    return types.SimpleNamespace(
        WholeSet=WholeSet,
        Thing=Thing,
        Picture=Picture,
        sound=sound,
        coded=coded,
        voc_xml=voc_xml,
        FORMATS=FORMATS,
    )
