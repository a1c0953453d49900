"""The log and the curves of a run."""

import pytest

from vision.errors import UserError
from vision.record import Record, draw_curves, read_log


def test_no_log_is_no_rows(tmp_path):
    assert read_log(tmp_path / "log.csv") == []


def test_rows_come_back_with_empty_cells_as_none(tmp_path):
    record = Record(tmp_path)
    record.add({"epoch": 0, "lr": 0.1, "loss": 3.5})
    record.add({"epoch": 1, "lr": 0.05, "loss": 2.5, "mAP": 0.25, "AP cat": None})
    rows = read_log(record.path)
    assert rows[0] == {"epoch": 0, "lr": 0.1, "loss": 3.5, "mAP": None, "AP cat": None}
    assert rows[1] == {"epoch": 1, "lr": 0.05, "loss": 2.5, "mAP": 0.25, "AP cat": None}
    assert record.picture.read_bytes().startswith(b"\x89PNG")


def test_resuming_keeps_what_was_before_and_forgets_what_comes_again(tmp_path):
    first = Record(tmp_path)
    for epoch in range(3):
        first.add({"epoch": epoch, "loss": 1.0})
    second = Record(tmp_path, earlier=tmp_path)
    assert second.goes_on and not first.goes_on
    second.rewind(2)
    second.add({"epoch": 2, "loss": 9.0})
    assert [(row["epoch"], row["loss"]) for row in read_log(second.path)] == [(0, 1), (1, 1), (2, 9)]
    assert Record(tmp_path).rows == []


def test_a_run_that_moves_takes_its_rows_along(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        Record(folder).add({"epoch": 0, "loss": float(folder == old)})
    moved = Record(new, earlier=old)
    assert not moved.goes_on and [row["loss"] for row in moved.rows] == [1.0]


@pytest.mark.parametrize(
    "text", ["epoch;loss\n0;1\n", "epoch,loss\n0,3.5 %\n", "epoch,loss\n0,1,2\n", "a\n1\n"]
)
def test_a_log_of_another_program_is_refused(tmp_path, text):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(UserError, match="log.csv is not as training wrote it"):
        Record(tmp_path, earlier=tmp_path)
    Record(tmp_path)


def test_names_of_any_kind(tmp_path, recwarn):
    row = {"epoch": 0, "mAP": 0.5, "AP カード": 0.5, "AP $5 or $\\no": 0.5, 'AP a,b;"c"': 0.5}
    Record(tmp_path).add(row)
    assert read_log(tmp_path / "log.csv") == [row] and (tmp_path / "curves.png").stat().st_size > 1000
    assert not recwarn.list


def test_a_file_that_is_locked_does_not_end_the_run(tmp_path, caplog):
    record = Record(tmp_path)
    record.add({"epoch": 0, "loss": 1.0})
    for path in (record.path, record.picture):
        path.unlink()
        path.mkdir()
    record.add({"epoch": 1, "loss": 1.0})
    assert "log.csv: cannot be written" in caplog.text and "curves.png: cannot be written" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "log.csv"]
    record.path.rmdir()
    record.add({"epoch": 2, "loss": 1.0})
    assert [row["epoch"] for row in read_log(record.path)] == [0, 1, 2]


def test_only_the_best_and_the_last_flat_files_stay(tmp_path):
    record, left = Record(tmp_path), []
    for number, better in enumerate([True, False, False, True, False]):
        path = tmp_path / f"{number}.pth"
        path.touch()
        record.keep_flat(path, better)
        left.append(sorted(p.stem for p in tmp_path.glob("*.pth")))
    assert left == [["0"], ["0", "1"], ["0", "2"], ["3"], ["3", "4"]]


def test_curves_of_a_run_that_has_just_begun(tmp_path):
    for rows in ([], [{"epoch": 0, "loss": 1.0, "lr": 0.1}]):
        draw_curves(rows, tmp_path / "curves.png")
        assert (tmp_path / "curves.png").stat().st_size > 1000
