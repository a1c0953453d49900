"""Which images to take: the filters of the classes, caps, and negatives. The same seed gives the same images."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Set

from vision.data.open_images import column_numbers, fields, lines
from vision.errors import UserError
from vision.open_images.boxes_csv import IMAGE_ID, Box
from vision.open_images.classes import ClassSpec

# ImageID -> one number per box: 2 * class number, + 1 for a group box. Small, because all classes of the train
# split make 1.7 million images.
Images = Dict[str, List[int]]


@dataclass(frozen=True)
class Caps:
    """Upper limits; None is no limit. A class's limit counts every image or box of it, also in images that were
    taken for another class.
    """

    images: Optional[int] = None
    images_per_class: Optional[int] = None
    annotations_per_class: Optional[int] = None


@dataclass(frozen=True)
class ClassCount:
    """Images, boxes and, among them, group boxes of one class."""

    images: int = 0
    boxes: int = 0
    groups: int = 0


def shuffle_key(seed: int, image_id: str) -> bytes:
    """Where an image stands in the order of choice: by its id and the seed alone, never by the file's order."""
    return hashlib.blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()


def in_order(image_ids: Iterable[str], seed: int) -> List[str]:
    """The images in the order of choice."""
    return sorted(image_ids, key=lambda image_id: shuffle_key(seed, image_id))


def images_of_boxes(boxes: Iterable[Box], classes: Sequence[str]) -> Images:
    """The images of a filtered box file."""
    number = {name: position for position, name in enumerate(classes)}
    images: Images = {}
    for box in boxes:
        images.setdefault(box.image_id, []).append(2 * number[box.name] + box.group)
    return images


def read_image_ids(path: Path) -> Set[str]:
    """The images named in a filter file: an id a line; "train/0a1b.jpg" names 0a1b."""
    ids = set()
    for number, line in lines(path):
        word = line.decode("utf-8", "replace").strip().strip("\ufeff").split(",")[0]
        if not word or (number == 1 and word == "ImageID"):
            continue
        image_id = Path(word).stem
        if not IMAGE_ID.fullmatch(image_id):
            raise UserError(f"{path}: line {number}: {word[:80]!r} is no image id")
        ids.add(image_id)
    return ids


# --- filters ------------------------------------------------------------------------------------------------


def apply_filters(
    images: Images, classes: Sequence[str], specs: Dict[str, ClassSpec], excluded: Set[str], seed: int
) -> Images:
    """The images that no class's filter (`Name:~group:0.5`) and no filter file excludes.

    An image goes as soon as one of its classes excludes it.
    """
    out = set(excluded)
    for number, name in enumerate(classes):
        spec = specs[name]
        members = [image_id for image_id, codes in images.items() if _has(codes, number)]
        if spec.group is not None:
            unwanted = 2 * number + (0 if spec.group else 1)
            out.update(image_id for image_id in members if unwanted in images[image_id])
        if spec.fraction < 1:
            left = in_order((image_id for image_id in members if image_id not in out), seed)
            out.update(left[round(spec.fraction * len(left)) :])
    return {image_id: codes for image_id, codes in images.items() if image_id not in out}


def _has(codes: List[int], number: int) -> bool:
    return 2 * number in codes or 2 * number + 1 in codes


def count_classes(images: Images, classes: Sequence[str]) -> Dict[str, ClassCount]:
    """Class name -> how much there is of it."""
    tally = [[0, 0, 0] for _ in classes]
    for codes in images.values():
        for number in {code // 2 for code in codes}:
            tally[number][0] += 1
        for code in codes:
            tally[code // 2][1] += 1
            tally[code // 2][2] += code % 2
    return {name: ClassCount(*counts) for name, counts in zip(classes, tally)}


# --- caps ---------------------------------------------------------------------------------------------------


def apportion(total: Optional[int], weights: Sequence[int]) -> List[Optional[int]]:
    """Divide `total` over parts in proportion to their weights (largest remainder).

    No part gets more than its weight; every part that has any gets at least one, where the total reaches.
    """
    if total is None:
        return [None] * len(weights)
    if total >= sum(weights):
        return list(weights)
    largest_first = sorted(range(len(weights)), key=lambda part: -weights[part])
    shares = [0] * len(weights)
    for part in largest_first[:total]:
        shares[part] = min(weights[part], 1)
    left = total - sum(shares)
    beyond = [weight - share for weight, share in zip(weights, shares)]
    quotas = [left * each / max(sum(beyond), 1) for each in beyond]
    shares = [share + int(quota) for share, quota in zip(shares, quotas)]
    by_remainder = sorted(range(len(weights)), key=lambda part: int(quotas[part]) - quotas[part])
    for part in by_remainder[: total - sum(shares)]:
        shares[part] += 1
    return list(shares)


def choose(splits: Dict[str, Images], classes: Sequence[str], caps: Caps, seed: int) -> Dict[str, Images]:
    """Split -> the images to take.

    The caps are divided over the splits in proportion to what each has. Inside a split the classes take turns,
    the rarest first, so that a cap on all images balances them.
    """
    counts = {split: count_classes(images, classes) for split, images in splits.items()}
    of_images = apportion(caps.images, [len(images) for images in splits.values()])
    per_class = [
        apportion(caps.images_per_class, [counts[split][name].images for split in splits]) for name in classes
    ]
    boxes = [
        apportion(caps.annotations_per_class, [counts[split][name].boxes for split in splits])
        for name in classes
    ]
    return {
        split: _choose_in_split(
            images, of_images[i], [shares[i] for shares in per_class], [shares[i] for shares in boxes], seed
        )
        for i, (split, images) in enumerate(splits.items())
    }


def _choose_in_split(
    images: Images,
    most: Optional[int],
    most_images: List[Optional[int]],
    most_boxes: List[Optional[int]],
    seed: int,
) -> Images:
    if most is None and set(most_images) | set(most_boxes) <= {None}:
        return images
    queues: List[List[str]] = [[] for _ in most_images]
    for image_id in reversed(in_order(images, seed)):
        for number in {code // 2 for code in images[image_id]}:
            queues[number].append(image_id)
    turns = sorted(range(len(queues)), key=lambda number: len(queues[number]))
    room = _Room(most_images, most_boxes)
    chosen: Images = {}
    while any(queues) and (most is None or len(chosen) < most):
        for number in turns:
            if most is not None and len(chosen) >= most:
                break
            queue = queues[number]
            while queue:
                image_id = queue.pop()
                if image_id not in chosen and room.take(images[image_id]):
                    chosen[image_id] = images[image_id]
                    break
    return chosen


class _Room:
    """What the caps per class still allow."""

    def __init__(self, images: List[Optional[int]], boxes: List[Optional[int]]):
        self.images = [float("inf") if each is None else each for each in images]
        self.boxes = [float("inf") if each is None else each for each in boxes]

    def take(self, codes: List[int]) -> bool:
        """Book an image, if all of its classes have room for it."""
        needs = {number: 0 for number in {code // 2 for code in codes}}
        for code in codes:
            needs[code // 2] += 1
        if any(self.images[number] < 1 or self.boxes[number] < count for number, count in needs.items()):
            return False
        for number, count in needs.items():
            self.images[number] -= 1
            self.boxes[number] -= count
        return True


# --- negatives ----------------------------------------------------------------------------------------------


def choose_negatives(
    labels: Path, asked: Set[str], wanted: Set[str], not_these: Set[str], count: int, seed: int
) -> List[str]:
    """Images that people verified not to hold the asked classes.

    Args:
        labels: <split>-annotations-human-imagelabels-boxable.csv; Confidence 0 is "verified absent".
        asked: class ids of the asked classes.
        wanted: the same with all classes that count as one of them; an image with any of these is no negative.
        not_these: images that are no negatives for other reasons.
        count: so many at most.

    Returns: ImageIDs; those verified for the most asked classes first, then in the order of choice.
    """
    column = column_numbers(labels, ("ImageID", "LabelName", "Confidence"))
    image, label, confidence = (column[name] for name in ("ImageID", "LabelName", "Confidence"))
    mids = {mid.encode() for mid in wanted | asked}
    absent: Dict[str, int] = {}
    present = set(not_these)
    for _, line in lines(labels):
        parts = line.split(b",", label + 1)
        if len(parts) <= label or parts[label].strip(b'" ') not in mids:
            continue
        row = fields(line)
        if len(row) <= max(image, label, confidence) or not IMAGE_ID.fullmatch(row[image]):
            continue
        try:
            verified = float(row[confidence])
        except ValueError:
            continue
        if verified > 0:
            present.add(row[image])
        elif verified == 0 and row[label] in asked:
            absent[row[image]] = absent.get(row[image], 0) + 1
    candidates = in_order((image_id for image_id in absent if image_id not in present), seed)
    candidates.sort(key=lambda image_id: -absent[image_id])
    return candidates[:count]
