"""Which images are taken: filters, caps, negatives, seeds."""

from pathlib import Path
from typing import Dict, List, Optional, Set

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.errors import UserError
from vision.open_images.classes import ClassSpec
from vision.open_images.plan import (
    Caps,
    Images,
    apply_filters,
    apportion,
    choose,
    choose_negatives,
    count_classes,
    in_order,
    read_image_ids,
)

CLASSES = ["Cat", "Dog"]
CAT, CATS, DOG, DOGS = 0, 1, 2, 3  # the codes of a box: single and group


def filters(cat: ClassSpec = ClassSpec("Cat"), dog: ClassSpec = ClassSpec("Dog")) -> Dict[str, ClassSpec]:
    return {"Cat": cat, "Dog": dog}


FILTERED: Images = {"one": [CAT], "group": [CATS], "both": [CAT, CATS], "dogs": [DOGS], "mixed": [CAT, DOG]}


@pytest.mark.parametrize(
    ("specs", "excluded", "left"),
    [
        (filters(), set(), "one group both dogs mixed"),
        (filters(), {"one", "elsewhere"}, "group both dogs mixed"),
        (filters(ClassSpec("Cat", group=False)), set(), "one dogs mixed"),
        (filters(ClassSpec("Cat", group=True)), set(), "group dogs"),
        (filters(dog=ClassSpec("Dog", group=False)), set(), "one group both mixed"),
        (filters(dog=ClassSpec("Dog", group=True)), set(), "one group both dogs"),
        (filters(ClassSpec("Cat", group=True), ClassSpec("Dog", group=False)), set(), "group"),
    ],
)
def test_filters(specs: Dict[str, ClassSpec], excluded: Set[str], left: str) -> None:
    assert list(apply_filters(FILTERED, CLASSES, specs, excluded, 0)) == left.split()


def test_filters_of_nothing() -> None:
    assert apply_filters({}, CLASSES, filters(ClassSpec("Cat", False, 0.5)), {"a"}, 0) == {}


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 1.0])
def test_a_fraction_of_the_images_of_a_class(fraction: float) -> None:
    images: Images = {f"cat{i}": [CAT] for i in range(100)}
    images.update({f"dog{i}": [DOG] for i in range(50)})
    specs = filters(ClassSpec("Cat", None, fraction))
    left = apply_filters(images, CLASSES, specs, set(), 3)
    assert sum(name.startswith("cat") for name in left) == round(100 * fraction)
    assert sum(name.startswith("dog") for name in left) == 50
    backwards = dict(reversed(list(images.items())))
    assert set(apply_filters(backwards, CLASSES, specs, set(), 3)) == set(left)


def test_counts() -> None:
    counts = count_classes(FILTERED, CLASSES)
    assert (counts["Cat"].images, counts["Cat"].boxes, counts["Cat"].groups) == (4, 5, 2)
    assert (counts["Dog"].images, counts["Dog"].boxes, counts["Dog"].groups) == (2, 2, 1)
    assert count_classes({}, CLASSES)["Dog"].images == 0


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (None, [3, 4], [None, None]),
        (0, [3, 4], [0, 0]),
        (9, [3, 4], [3, 4]),
        (10, [900, 90, 10], [7, 2, 1]),
        (10, [1000, 1, 0], [9, 1, 0]),
        (2, [1, 50, 7], [0, 1, 1]),
        (6, [10, 10, 10], [2, 2, 2]),
        (5, [], []),
    ],
)
def test_apportion(total: Optional[int], weights: List[int], shares: List[Optional[int]]) -> None:
    assert apportion(total, weights) == shares


@settings(deadline=None)
@given(st.integers(0, 200), st.lists(st.integers(0, 60), max_size=5))
def test_apportion_is_exact(total: int, weights: List[int]) -> None:
    shares = [share or 0 for share in apportion(total, weights)]
    assert sum(shares) == min(total, sum(weights))
    assert all(0 <= share <= weight for share, weight in zip(shares, weights))
    if total >= len(weights):
        assert all(share > 0 for share, weight in zip(shares, weights) if weight)


IMAGES = st.dictionaries(
    st.integers(0, 999).map(str), st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=40
)
LIMIT = st.one_of(st.none(), st.integers(0, 30))


@settings(deadline=None)
@given(IMAGES, IMAGES, LIMIT, LIMIT, LIMIT, st.integers(0, 5))
def test_caps_hold_and_do_not_depend_on_the_order(
    train: Images,
    test: Images,
    images: Optional[int],
    per_class: Optional[int],
    boxes: Optional[int],
    seed: int,
) -> None:
    splits = {"train": train, "test": test}
    chosen = choose(splits, CLASSES, Caps(images, per_class, boxes), seed)
    for split in splits:
        assert set(chosen[split]) <= set(splits[split])
    total = sum(map(len, chosen.values()))
    assert images is None or total <= images
    if per_class is None and boxes is None:
        available = len(train) + len(test)
        assert total == (available if images is None else min(images, available))
    counts = [count_classes(part, CLASSES) for part in chosen.values()]
    for name in CLASSES:
        assert per_class is None or sum(count[name].images for count in counts) <= per_class
        assert boxes is None or sum(count[name].boxes for count in counts) <= boxes
    backwards = {split: dict(reversed(list(part.items()))) for split, part in splits.items()}
    again = choose(backwards, CLASSES, Caps(images, per_class, boxes), seed)
    assert {split: set(part) for split, part in again.items()} == {s: set(p) for s, p in chosen.items()}


def test_a_cap_on_images_balances_the_classes() -> None:
    images: Images = {f"cat{i}": [CAT] for i in range(1000)}
    images.update({f"dog{i}": [DOG] for i in range(20)})
    counts = count_classes(choose({"train": images}, CLASSES, Caps(images=30), 0)["train"], CLASSES)
    assert (counts["Cat"].images, counts["Dog"].images) == (15, 15)


def test_another_seed_is_another_order() -> None:
    ids = [str(i) for i in range(100)]
    assert in_order(ids, 1) == in_order(reversed(ids), 1) != in_order(ids, 2)


def test_negatives(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    rows = [
        ("sure", "cat", "0"),
        ("sure", "dog", "0"),
        ("cat", "cat", "1"),
        ("cat", "dog", "0"),
        ("kitten", "cat", "0"),
        ("kitten", "kitten", "1"),  # a subclass of an asked one
        ("half", "cat", "0.0"),
        ("subclass", "kitten", "0"),  # no kitten, yet maybe a cat
        ("other", "tree", "0"),
        ("boxed", "cat", "0"),
        ("../x", "cat", "0"),
        ("odd", "cat", "maybe"),
        ("machine", "cat", "0.4"),
    ]
    text = "\n".join(
        ["ImageID,Source,LabelName,Confidence", *(f"{i},verification,{m},{c}" for i, m, c in rows), "x,y"]
    )
    path.write_text(text)

    def negatives(count: int) -> List[str]:
        return choose_negatives(path, {"cat", "dog"}, {"cat", "dog", "kitten"}, {"boxed"}, count, 0)

    assert negatives(9) == ["sure", "half"]
    assert negatives(1) == ["sure"]
    assert negatives(0) == []


def test_filter_file(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(b"\xef\xbb\xbfImageID\r\n0a1b\r\n\r\ntrain/0c2d.jpg\n0e3f,x\n")
    assert read_image_ids(path) == {"0a1b", "0c2d", "0e3f"}
    path.write_bytes(b"")
    assert read_image_ids(path) == set()
    path.write_text("0a1b\nwhat is this\n")
    with pytest.raises(UserError, match="line 2: 'what is this' is no image id"):
        read_image_ids(path)
