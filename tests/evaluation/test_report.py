"""The report: counts, text, JSON and CSV."""

import csv
import json

import numpy as np
import pytest

from vision.data.images import read_image
from vision.evaluation.curves import draw_curves
from vision.evaluation.report import ClassResult, Counts, Report, precision_recall

CAT = ClassResult(
    "cat",
    0.75,
    images=3,
    objects=4,
    scores=np.array([0.9, 0.8, 0.5, 0.3], np.float32),
    tp=np.array([True, False, True, False]),
    fp=np.array([False, True, False, False]),  # the last one found a difficult object
)
NOBODY = ClassResult("owl", None, 0, 0, np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, bool))
REPORT = Report("VOC AP", 0.5, 5, [CAT, NOBODY], {"AP75": None, "AP50": 0.75})


def test_a_report_of_nothing():
    report = Report("VOC AP", 0.5, 0, [])
    assert report.mean is None and report.objects == 0
    assert "n/a" in report.text()
    assert report.to_dict()["classes"] == []


@pytest.mark.parametrize(
    "threshold, tp, fp",
    [(0.0, 2, 1), (0.5, 2, 1), (0.8, 1, 1), (0.85, 1, 0), (0.95, 0, 0)],
)
def test_counts(threshold, tp, fp):
    assert CAT.at(threshold) == Counts(tp, fp, 4) == REPORT.total(threshold)


@pytest.mark.parametrize(
    "counts, precision, recall, f1",
    [
        (Counts(0, 0, 0), None, None, None),
        (Counts(0, 0, 4), None, 0.0, 0.0),
        (Counts(0, 3, 0), 0.0, None, 0.0),
        (Counts(2, 2, 4), 0.5, 0.5, 0.5),
        (Counts(1, 0, 4), 1.0, 0.25, 0.4),
    ],
)
def test_shares(counts, precision, recall, f1):
    assert (counts.precision, counts.recall, counts.f1) == (precision, recall, f1)


def test_curve():
    recall, precision = CAT.curve()
    assert recall.tolist() == [0.25, 0.25, 0.5, 0.5]
    assert precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 2 / 3])
    # a difficult object found first: nothing is right or wrong yet
    recall, precision = precision_recall(np.array([False, True]), np.array([False, False]), 1)
    assert recall.tolist() == [0, 1] and precision.tolist() == [0, 1]


def test_the_mean_leaves_out_what_is_not_available():
    assert REPORT.mean == 0.75


def test_text_is_aligned():
    head, columns, line, *rows = REPORT.text(0.5).splitlines()
    assert "at scores of at least 0.5" in head
    table = [columns, line, *rows[:4]]
    assert len({len(row) for row in table}) == 1, table
    assert rows[0].split() == ["cat", "3", "4", "0.7500", "2", "1", "0.6667", "0.5000", "0.5714"]
    assert rows[1].split() == ["owl", "0", "0", "n/a", "0", "0", "n/a", "n/a", "n/a"]
    assert rows[3].split()[:4] == ["all", "5", "4", "0.7500"]
    assert rows[4:] == ["AP75: n/a", "AP50: 0.7500"]


def test_json_and_csv(tmp_path):
    REPORT.write_json(tmp_path / "r.json", 0.5)
    read = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert read == REPORT.to_dict(0.5)
    assert read["mean_ap"] == 0.75 and read["classes"][1]["ap"] is None and read["all"]["tp"] == 2

    REPORT.write_csv(tmp_path / "r.csv", 0.5)
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["cat", "owl", "all"]
    assert float(rows[0]["ap"]) == 0.75 and rows[1]["ap"] == ""


def test_curves_are_drawn(tmp_path):
    empty = read_image(draw_curves(Report("VOC AP", 0.5, 0, [NOBODY]), tmp_path / "empty.png"))
    picture = read_image(draw_curves(REPORT, tmp_path / "new" / "curves.png"))
    assert picture.shape == empty.shape
    # recall 0..0.25 at precision 1: the upper edge of the plot is in the class's colour there, not beyond
    row = np.abs(picture[50].astype(int) - empty[50]).sum(axis=1) > 60
    assert row[60:165].all() and not row[200:500].any()
