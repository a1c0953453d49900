"""COCO AP: against pycocotools on random scenes, and a table of small cases."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from vision.data.sample import Sample
from vision.detector import Detections
from vision.evaluation import coco

CLASSES = ("BACKGROUND", "cat", "dog", "owl", "fox")


def scene(seed, images=25, ties=False):
    """Samples and detections of all sizes, with crowds, misses, duplicates, equal scores and empty images."""
    rng = np.random.default_rng(seed)
    samples, detections = [], []
    for number in range(images):
        count = int(rng.integers(0, 12))
        low = rng.uniform(0, 300, (count, 2))
        boxes = np.concatenate([low, low + np.exp(rng.uniform(1, 5.3, (count, 2)))], axis=1)
        labels = rng.integers(1, 4, count)  # nobody is a fox
        group = rng.random(count) < 0.15
        copies = int(rng.integers(0, 4))
        shift = rng.normal(0, 0.12, (copies * count, 4))
        near = np.tile(boxes, (copies, 1))
        near = near + shift * np.tile(near[:, 2:] - near[:, :2], (1, 2))
        far = rng.uniform(0, 200, (int(rng.integers(0, 60)), 2))
        far = np.concatenate([far, far + rng.uniform(1, 150, far.shape)], axis=1)
        found = np.concatenate([near, far])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 0.5)
        found_labels = np.concatenate([np.tile(labels, copies), rng.integers(1, 5, len(far))])
        scores = rng.random(len(found))
        if ties:
            found, scores = np.rint(found), np.round(scores, 1)
            boxes = np.rint(boxes)
        samples.append(
            Sample(
                f"{number}",
                Path(f"{number}.jpg"),
                boxes.astype(np.float32),
                labels.astype(np.int64),
                np.zeros(count, bool),
                group,
            )
        )
        order = np.argsort(-scores, kind="stable")
        detections.append(
            Detections(
                found[order].astype(np.float32),
                scores[order].astype(np.float32),
                found_labels[order].astype(np.int64),
                CLASSES,
                (400, 400),
            )
        )
    return samples, detections


def by_pycocotools(samples, detections):
    """(the twelve numbers, AP of each class) with None for "no object"."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        x1, y1, x2, y2 = box.astype(np.float64)
        return [x1, y1, x2 - x1, y2 - y1]

    annotations, results = [], []
    for image, (sample, found) in enumerate(zip(samples, detections)):
        for box, label, group in zip(sample.boxes, sample.labels, sample.group):
            form = xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": form,
                    "area": form[2] * form[3],
                    "iscrowd": int(group),
                }
            )
        for box, label, score in zip(found.boxes, found.labels, found.scores):
            results.append(
                {"image_id": image, "category_id": int(label), "bbox": xywh(box), "score": float(score)}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(samples))],
            "annotations": annotations,
            "categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES) if label],
        }
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"]  # thresholds, recalls, classes, sizes, detections
    per_class = []
    for label in range(len(CLASSES) - 1):
        known = precision[:, :, label, 0, 2]
        known = known[known > -1]
        per_class.append(known.mean() if known.size else None)
    return [None if value == -1 else value for value in evaluator.stats], per_class


def close(a, b):
    return (a is None and b is None) or a == pytest.approx(b, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_equals_pycocotools(seed, ties):
    samples, detections = scene(seed, ties=ties)
    stats, per_class = by_pycocotools(samples, detections)
    report = coco.evaluate(detections, samples, CLASSES)
    ours = [report.summary[k] for k in ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")]
    ours += [report.summary[k] for k in ("AR 1", "AR 10", "AR 100")]
    assert all(close(a, b) for a, b in zip(ours, stats)), (ours, stats[:9])
    assert all(close(r.ap, b) for r, b in zip(report.classes, per_class))
    assert report.classes[3].ap is None
    assert report.mean == pytest.approx(report.summary["AP"], abs=1e-12)


def test_chunks_change_nothing(monkeypatch):
    samples, detections = scene(9)
    whole = coco.evaluate(detections, samples, CLASSES).summary
    monkeypatch.setattr(coco, "PAIRS_AT_ONCE", 1)
    assert coco.evaluate(detections, samples, CLASSES).summary == whole


def test_nothing_at_all():
    report = coco.evaluate([], [], CLASSES)
    assert report.mean is None and report.summary["AP"] is None and report.summary["AR 100"] is None
    assert coco.evaluate([], [], CLASSES[:1]).classes == []


def test_objects_without_detections_have_ap_zero():
    samples, detections = scene(3)
    none = [Detections(f.boxes[:0], f.scores[:0], f.labels[:0], CLASSES, f.size) for f in detections]
    report = coco.evaluate(none, samples, CLASSES)
    assert [result.ap for result in report.classes] == [0.0, 0.0, 0.0, None]
    assert report.summary["AR 100"] == 0.0


def test_a_difficult_object_does_not_count():
    box = np.array([[10, 10, 60, 60]], np.float32)
    one = np.ones(1, np.int64)
    sample = Sample("a", Path("a.jpg"), box, one, np.ones(1, bool), np.zeros(1, bool))
    found = Detections(box, np.ones(1, np.float32), one, CLASSES, (100, 100))
    result = coco.evaluate([found], [sample], CLASSES).classes[0]
    assert result.ap is None and not result.tp.any() and not result.fp.any()


def test_counts_are_at_iou_50():
    box = np.array([[0, 0, 100, 100]], np.float32)
    one = np.ones(1, np.int64)
    sample = Sample("a", Path("a.jpg"), box, one, np.zeros(1, bool), np.zeros(1, bool))
    boxes = np.array([[0, 0, 100, 60], [0, 0, 100, 100]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8], np.float32), np.ones(2, np.int64), CLASSES, (200, 200))
    result = coco.evaluate([found], [sample], CLASSES).classes[0]
    assert result.tp.tolist() == [True, False] and result.fp.tolist() == [False, True]
