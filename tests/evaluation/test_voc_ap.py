"""VOC AP: against the reference answers, the published ones, and a table of small cases."""

import json
from pathlib import Path

import numpy as np
import pytest

from vision.data.sample import Sample
from vision.detector import Detections
from vision.errors import UserError
from vision.evaluation.voc import average_precision, evaluate, iou_inclusive

CLASSES = ("BACKGROUND", "cat", "dog")


def found(boxes=(), scores=(), labels=(), classes=CLASSES):
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        tuple(classes),
        (240, 320),
    )


def truth(id="a", boxes=(), labels=(), difficult=None, group=None):
    count = len(labels)
    return Sample(
        id,
        Path(id + ".jpg"),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.zeros(count, bool) if difficult is None else np.array(difficult, bool),
        np.zeros(count, bool) if group is None else np.array(group, bool),
    )


BOX = [10, 10, 50, 50]
FAR = [100, 100, 150, 150]


def test_nothing_at_all():
    report = evaluate([], [], CLASSES)
    assert report.mean is None
    assert [result.ap for result in report.classes] == [None, None]


@pytest.mark.parametrize(
    "name, detections, samples, cat",
    [
        ("no detection", [found()], [truth(boxes=[BOX], labels=[1])], 0.0),
        ("no object", [found([BOX], [0.9], [1])], [truth()], None),
        ("only a difficult object", [found([BOX], [0.9], [1])], [truth("a", [BOX], [1], [True])], None),
        ("only a group", [found([BOX], [0.9], [1])], [truth("a", [BOX], [1], group=[True])], None),
        ("found", [found([BOX], [0.9], [1])], [truth(boxes=[BOX], labels=[1])], 1.0),
        ("as another class", [found([BOX], [0.9], [2])], [truth(boxes=[BOX], labels=[1])], 0.0),
        ("duplicate after", [found([BOX, BOX], [0.9, 0.8], [1, 1])], [truth(boxes=[BOX], labels=[1])], 1.0),
        ("false before", [found([FAR, BOX], [0.9, 0.8], [1, 1])], [truth(boxes=[BOX], labels=[1])], 0.5),
        (
            "difficult before",
            [found([FAR, FAR, BOX], [0.9, 0.85, 0.8], [1, 1, 1])],
            [truth("a", [FAR, BOX], [1, 1], [True, False])],
            1.0,
        ),
        (
            "in another image",
            [found([BOX], [0.9], [1]), found()],
            [truth("a"), truth("b", [BOX], [1])],
            0.0,
        ),
    ],
)
@pytest.mark.parametrize("metric", ["11point", "area"])
def test_small_cases(name, detections, samples, cat, metric):
    assert evaluate(detections, samples, CLASSES, metric=metric).classes[0].ap == cat


def test_a_class_without_objects_stays_out_of_the_mean():
    report = evaluate([found([BOX, FAR], [0.9, 0.8], [1, 2])], [truth(boxes=[BOX], labels=[1])], CLASSES)
    assert report.mean == 1.0
    assert report.classes[1].ap is None and report.classes[1].fp.tolist() == [True]


def test_an_overlap_of_exactly_the_threshold_counts():
    # 10 x 10 inclusive pixels against 10 x 5 of them
    half = [0, 0, 9, 4]
    assert iou_inclusive(np.array([[0, 0, 9, 9.0]]), np.array([half], np.float64))[0, 0] == 0.5
    assert (
        evaluate([found([half], [0.9], [1])], [truth(boxes=[[0, 0, 9, 9]], labels=[1])], CLASSES).mean == 1.0
    )


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan")])
def test_bad_threshold(threshold):
    with pytest.raises(UserError, match="IoU threshold"):
        evaluate([], [], CLASSES, iou_threshold=threshold)


def test_detections_must_fit_the_samples():
    with pytest.raises(ValueError, match="1 detections for 0 samples"):
        evaluate([found()], [], CLASSES)
    with pytest.raises(ValueError, match="detections of"):
        evaluate([found(classes=("BACKGROUND", "owl"))], [truth()], CLASSES)
    with pytest.raises(ValueError, match="outside 1..2"):
        evaluate([found()], [truth(boxes=[BOX], labels=[3])], CLASSES)


# --- the reference ------------------------------------------------------------------------------------------


def test_curves(reference):
    # The original compared with 0.30000000000000004 and its like, so that a recall of exactly 0.3, 0.6 or 0.7
    # missed its own point and got the precision of the next one. Exact tenths give these curves more:
    missed = {"tenths": (1.0 - 0.9) / 11, "saw": (0.75 - 5 / 7) / 11}
    for curve in json.loads((reference / "voc_ap.json").read_text())["curves"]:
        recall, precision = curve["recall"], curve["precision"]
        assert average_precision(recall, precision, "area") == pytest.approx(curve["ap_area"], abs=1e-12)
        eleven = curve["ap_11point"] + missed.get(curve["name"], 0)
        assert average_precision(recall, precision, "11point") == pytest.approx(eleven, abs=1e-12)


def test_equals_the_development_kit(reference):
    data = json.loads((reference / "voc_ap.json").read_text())["evaluations"]
    classes = data["classes"]
    detections, samples = [], []
    for image in data["images"]:
        mine = [(c, d) for c in classes for d in data["detections"].get(c, []) if d["image"] == image]
        objects = [(c, g) for c in classes for g in data["ground_truth"].get(c, []) if g["image"] == image]
        detections.append(
            found(
                [d["box"] for _, d in mine],
                [d["score"] for _, d in mine],
                [classes.index(c) for c, _ in mine],
                classes,
            )
        )
        samples.append(
            truth(
                image,
                [g["box"] for _, g in objects],
                [classes.index(c) for c, _ in objects],
                [g["difficult"] for _, g in objects],
            )
        )
    compared = 0
    for iou in (0.5, 0.3):
        for metric in ("11point", "area"):
            report = evaluate(detections, samples, classes, iou, metric)
            for result in report.classes:
                expected = data["results"][result.name]
                assert result.objects == expected["num_true_cases"]
                assert result.ap == pytest.approx(expected[f"devkit_iou{iou}_{metric}"], abs=1e-12)
                detail = expected[f"devkit_iou{iou}_detail"]
                assert np.cumsum(result.tp).tolist() == detail["tp"]
                assert np.cumsum(result.fp).tolist() == detail["fp"]
                compared += 1
    assert compared == 24


@pytest.mark.parametrize(
    "file, metric, published",
    [
        ("seven_images.json", "area", 0.2457),
        ("seven_images.json", "11point", 0.2684),
        ("eighty_five_images.json", "area", 0.3105),
    ],
)
def test_published_answers(reference, file, metric, published):
    data = json.loads((reference / "metrics" / file).read_text())
    images = data["images"]
    names = sorted({g[0] for image in images.values() for g in image["ground_truth"] + image["detections"]})
    classes = ["BACKGROUND"] + names
    detections = [
        found(
            [d[2:] for d in image["detections"]],
            [d[1] for d in image["detections"]],
            [classes.index(d[0]) for d in image["detections"]],
            classes,
        )
        for image in images.values()
    ]
    samples = [
        truth(
            id, [g[1:] for g in image["ground_truth"]], [classes.index(g[0]) for g in image["ground_truth"]]
        )
        for id, image in images.items()
    ]
    report = evaluate(detections, samples, classes, data["iou_threshold"], metric)
    assert report.mean == pytest.approx(published, abs=5e-5)
