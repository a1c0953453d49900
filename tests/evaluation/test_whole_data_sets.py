"""Detectors over data sets: reading ahead, classes by name, detection files."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from vision.data.sample import Sample
from vision.detector import Detections, Detector
from vision.errors import UserError
from vision.evaluation.classes import common_classes, detections_under, sample_under
from vision.evaluation.detection_files import write_detections
from vision.evaluation.inference import detect_samples
from vision.spec import InputSpec

MODEL = ("BACKGROUND", "cat", "dog")


def truth(id, path="", labels=(), size=None):
    count = len(labels)
    return Sample(
        id,
        Path(path),
        np.arange(count * 4, dtype=np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.arange(count) % 2 == 0,
        np.zeros(count, bool),
        size,
    )


def found(boxes=(), scores=(), labels=(), classes=MODEL):
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        classes,
        (240, 320),
    )


def brightness(blob):
    """One box over all; its score is the image's mean brightness."""
    scores = np.zeros((len(blob), 1, 3), np.float32)
    scores[:, 0, 1] = blob.mean(axis=(1, 2, 3))
    return scores, np.tile(np.array([[[0, 0, 1, 1]]], np.float32), (len(blob), 1, 1))


def make_detector(batch_size):
    return Detector(
        brightness, InputSpec(16, 16, (0, 0, 0), (255, 255, 255)), MODEL, "stub", batch_size=batch_size
    )


# --- detect_samples -----------------------------------------------------------------------------------------


def test_no_samples():
    assert list(detect_samples(make_detector(4), [])) == []


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("readers", [0, 1, 3])
def test_order_is_kept(tmp_path, batch_size, readers):
    samples = []
    for i in range(10):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), np.full((10 + i, 20, 3), 20 * i + 10, np.uint8))
        samples.append(truth(str(i), path))
    results = list(detect_samples(make_detector(batch_size), samples, readers=readers))
    assert [one.size for one in results] == [(10 + i, 20) for i in range(10)]
    assert [one.scores[0] for one in results] == pytest.approx([(20 * i + 10) / 255 for i in range(10)])


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="gone.jpg"):
        list(detect_samples(make_detector(2), [truth("a", tmp_path / "gone.jpg")] * 9))


def test_settings_reach_the_postprocess(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full((5, 5, 3), 200, np.uint8))
    (nothing,) = detect_samples(make_detector(1), [truth("a", path)], max_detections=0)
    assert len(nothing) == 0


# --- classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, ignore, expected",
    [
        (("BACKGROUND", "cat", "dog"), False, ("BACKGROUND", "cat", "dog")),
        (("BACKGROUND", "dog", "cat"), False, ("BACKGROUND", "dog", "cat")),
        (("BACKGROUND", "dog"), False, ("BACKGROUND", "dog")),
        (("BACKGROUND", "owl", "dog"), True, ("BACKGROUND", "dog")),
    ],
)
def test_common_classes(data, ignore, expected):
    assert common_classes(MODEL, data, ignore) == expected


@pytest.mark.parametrize(
    "data, ignore, message",
    [
        (("BACKGROUND", "cat", "owl"), False, "model lacks: owl\n  model: cat, dog\n  data: cat, owl"),
        (("BACKGROUND", "Cat"), False, "Cat; did you mean 'cat'"),
        (("BACKGROUND", "owl"), True, "no class in common"),
        (("BACKGROUND",), False, "no class in common"),
    ],
)
def test_classes_that_do_not_fit(data, ignore, message):
    with pytest.raises(UserError) as error:
        common_classes(MODEL, data, ignore)
    assert message in str(error.value)


def test_numbering_under_other_classes():
    classes = ("BACKGROUND", "dog", "owl")
    detections = found([[0, 0, 1, 1], [0, 0, 2, 2]], [0.9, 0.8], [1, 2])
    renumbered = detections_under(detections, classes)
    assert renumbered.names == ["dog"] and renumbered.labels.tolist() == [1]
    assert renumbered.boxes.tolist() == [[0, 0, 2, 2]]
    assert len(detections_under(found(), classes)) == 0

    sample = sample_under(truth("a", labels=[1, 2, 2]), MODEL, classes)
    assert sample.labels.tolist() == [1, 1] and sample.boxes[:, 0].tolist() == [4, 8]
    assert sample.difficult.tolist() == [False, True]


# --- files --------------------------------------------------------------------------------------------------


def test_files_of_nothing(tmp_path):
    paths = write_detections(tmp_path / "new" / "folder", [], [])
    assert [path.name for path in paths] == ["detections.jsonl"]
    paths = write_detections(tmp_path, [found()], [truth("a")])
    assert sorted(path.name for path in paths) == ["det_test_cat.txt", "det_test_dog.txt", "detections.jsonl"]
    assert (tmp_path / "det_test_cat.txt").read_text() == ""


def test_lines_count_pixels_from_one(tmp_path):
    write_detections(tmp_path, [found([[0, 1.5, 10, 20]], [0.25], [2])], [truth("img1")])
    assert (tmp_path / "det_test_dog.txt").read_text() == "img1 0.25 1.0000 2.5000 11.0000 21.0000\n"


def test_blanks_and_strange_names_lose_nothing(tmp_path):
    classes = ("BACKGROUND", "a/b", "a:b", "A_b", "big dog", "größe")
    detections = found([[1, 2, 3, 4]] * 5, [0.5] * 5, [1, 2, 3, 4, 5], classes)
    paths = write_detections(tmp_path, [detections], [truth("my photo\t(1)", "my photo.jpg")])
    assert all(path.exists() for path in paths) and len({path.name.lower() for path in paths}) == 6
    for path in paths[1:]:
        assert path.read_text(encoding="utf-8").split()[0] == "my%20photo%09(1)"
        assert len(path.read_text(encoding="utf-8").split()) == 6
    line = json.loads(paths[0].read_text(encoding="utf-8"))
    assert line["image"] == "my photo\t(1)" and line["size"] == [240, 320]
    assert [one["class"] for one in line["objects"]] == list(classes[1:])
    assert line["objects"][0] == {"class": "a/b", "score": 0.5, "box": [1, 2, 3, 4]}


def test_a_name_that_is_no_utf8(tmp_path):
    name = b"stra\xdfe".decode("utf-8", "surrogateescape")  # as Python reads such a file's name
    paths = write_detections(tmp_path, [found([[1, 2, 3, 4]], [0.5], [1])], [truth(name, name + ".jpg")])
    line = json.loads(paths[0].read_text(encoding="utf-8"))
    assert (line["image"], line["path"]) == (name, name + ".jpg")
    assert paths[1].read_text(encoding="utf-8").startswith("stra\\udcdfe 0.5 ")
