"""The byte filter against the csv module, its memory, and the tables it makes."""

import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.errors import UserError
from vision.open_images.boxes_csv import Filtered, RowRules, check_whole, filter_boxes, write_table

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
NAMES = {"/m/1": "Cat", "/m/2": "Nail, iron"}


def row(image: str, mid: str = "/m/1", box: str = "0.1,0.5,0.2,0.6", flags: str = "0,0,0,0,0") -> str:
    return f"{image},xclick,{mid},1,{box},{flags}"


def filtered(path: Path, text: str, rules: RowRules = RowRules()) -> Tuple[List[Dict[str, str]], Filtered]:
    """The rows that are kept of a box file, and the result."""
    path.write_bytes(text.encode())
    out = io.BytesIO()
    result = filter_boxes(path, out, NAMES, rules)
    return list(csv.DictReader(io.StringIO(out.getvalue().decode()))), result


def test_only_a_header(tmp_path: Path) -> None:
    rows, result = filtered(tmp_path / "x.csv", HEADER)
    assert (rows, result.read, result.kept) == ([], 0, 0)


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    text = "LabelName,IsGroupOf,YMax,YMin,XMax,XMin,ImageID,XClick1X\n"
    text += "/m/1,1,.4,.3,.2,.1,abc,-1\n/m/9,1,.4,.3,.2,.1,d,-1"
    rows, result = filtered(tmp_path / "x.csv", text)
    assert (result.read, result.kept) == (2, 1)
    assert rows == [
        {
            "ImageID": "abc",
            "Source": "",
            "LabelName": "/m/1",
            "Confidence": "1",
            "XMin": ".1",
            "XMax": ".2",
            "YMin": ".3",
            "YMax": ".4",
            "IsOccluded": "-1",
            "IsTruncated": "-1",
            "IsGroupOf": "1",
            "IsDepiction": "-1",
            "IsInside": "-1",
            "id": "/m/1",
            "ClassName": "Cat",
        }
    ]


def test_quotes_crlf_and_bom(tmp_path: Path) -> None:
    text = "\ufeff" + "\r\n".join([HEADER, '"a","x","/m/2",1,0,1,0,1,0,0,0,0,0', row("b", "/m/2")])
    rows, _ = filtered(tmp_path / "x.csv", text)
    assert [(each["ImageID"], each["ClassName"]) for each in rows] == [
        ("a", "Nail, iron"),
        ("b", "Nail, iron"),
    ]


@pytest.mark.parametrize(
    ("without", "flags", "stays"),
    [
        (("depiction",), "0,0,0,1,0", False),
        (("depiction",), "0,0,0,-1,0", True),  # unknown is not true
        (("depiction",), "1,1,1,0,1", True),
        ((), "1,1,1,1,1", True),
        (("occluded",), "1,0,0,0,0", False),
        (("truncated",), "0,1,0,0,0", False),
        (("group",), "0,0,1,0,0", False),
        (("inside",), "0,0,0,0,1", False),
        (("occluded", "truncated", "group", "inside", "depiction"), "-1,-1,-1,-1,-1", True),
    ],
)
def test_attributes(tmp_path: Path, without: Tuple[str, ...], flags: str, stays: bool) -> None:
    rows, result = filtered(tmp_path / "x.csv", f"{HEADER}\n{row('a', flags=flags)}", RowRules(without))
    assert bool(rows) is stays
    assert result.ruled_out == (set() if stays else {"a"})


@pytest.mark.parametrize(("size", "stays"), [(0.0, True), (0.2, True), (0.25, False)])
def test_smallest_box(tmp_path: Path, size: float, stays: bool) -> None:
    text = f"{HEADER}\n{row('a', box='0.5,0.75,0.25,0.46')}"
    assert bool(filtered(tmp_path / "x.csv", text, RowRules(min_size=size))[0]) is stays


def test_an_inverted_box_is_left_to_the_reader(tmp_path: Path) -> None:
    text = f"{HEADER}\n{row('a', box='0.5,0.1,0.2,0.6')}"
    assert len(filtered(tmp_path / "x.csv", text)[0]) == 1
    assert len(filtered(tmp_path / "x.csv", text, RowRules(min_size=0.1))[0]) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/m/1", "fields are missing"),
        ("a,xclick,/m/1,1,0.1,0.2", "fields are missing"),
        (row("../a"), "the image id is no id"),
        (row(""), "the image id is no id"),
        (row("a", box="0.1,nan,0.2,0.3"), "the box is not four finite numbers"),
        (row("a", box="0.1,x,0.2,0.3"), "the box is not four finite numbers"),
    ],
)
def test_bad_rows_are_reported_with_their_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "x.csv"
    rows, result = filtered(path, "\n".join([HEADER, row("good"), line, "", row("better")]))
    assert [each["ImageID"] for each in rows] == ["good", "better"]
    assert result.bad == 1
    assert str(result.findings[0]).startswith(f"[bad-row] {path}: line 3: {line[:80]}")
    assert reason in result.findings[0].action


def test_what_is_no_box_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column ImageID, LabelName"):
        filtered(tmp_path / "x.csv", "a,b,c\n1,2,3\n")


CELL = st.sampled_from(["/m/1", ",/m/2,", "/m/1/m/2"]) | st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r\n"), max_size=8
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([*NAMES, "/m/3", "/m/11"]), CELL, st.sampled_from(["-1", "0", "1"])))
)
def test_agrees_with_the_csv_module(
    tmp_path_factory: pytest.TempPathFactory, rows: List[Tuple[str, str, str]]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER.split(","))
    for number, (mid, source, flag) in enumerate(rows):
        writer.writerow([f"id{number}", source, mid, 1, 0.1, 0.2, 0.3, 0.4, flag, flag, flag, flag, flag])
    expected = [
        (each["ImageID"], each["LabelName"], each["IsGroupOf"])
        for each in csv.DictReader(io.StringIO(text.getvalue()))
        if each["LabelName"] in NAMES and each["IsDepiction"] != "1"
    ]
    kept, result = filtered(tmp_path_factory.getbasetemp() / "csv_module.csv", text.getvalue())
    assert [(each["ImageID"], each["LabelName"], each["IsGroupOf"]) for each in kept] == expected
    assert result.read == len(rows)


@settings(deadline=None)
@given(st.binary(max_size=500))
def test_any_bytes_are_filtered_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(HEADER.encode() + b"\n" + row("a").encode() + b"\n" + data)
    out = io.BytesIO()
    result = filter_boxes(path, out, NAMES, RowRules())
    assert result.kept >= 1


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Peak resident memory of a process that filters 150,000 rows, against one that filters none."""
    script = (
        "import sys, pathlib\n"
        "from vision.open_images.boxes_csv import filter_boxes, RowRules\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "with open(str(path) + '.out', 'wb') as out:\n"
        "    kept = filter_boxes(path, out, {'/m/1': 'Cat'}, RowRules()).kept\n"
        "peak = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0]\n"
        "print(kept, peak)\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells the peak of one process")
    peaks = []
    for count in (0, 150_000):
        path = tmp_path / f"{count}.csv"
        rows = "".join(row(f"{i:016x}", f"/m/{i % 100}") + "\n" for i in range(count))
        path.write_text(f"{HEADER}\n{rows}")
        root = Path(__file__).parents[2]
        run = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True, cwd=root
        )
        kept, peak = map(int, run.stdout.split())
        assert kept == count // 100
        peaks.append(peak)
    assert path.stat().st_size > 8e6
    assert peaks[1] - peaks[0] < 5_000  # kilobytes


# --- tables -------------------------------------------------------------------------------------------------


def table(tmp_path: Path, lines: List[str], chosen: List[str], **options: bool) -> List[Tuple[str, str]]:
    source, spool, target = (tmp_path / name for name in ("full.csv", "spool.csv", "sub.csv"))
    source.write_text("\n".join([HEADER, *lines]))
    with spool.open("wb") as file:
        filter_boxes(source, file, NAMES, RowRules(()))
    count = write_table(spool, target, set(chosen), **options)
    with target.open(newline="") as file:
        rows = [(each["ImageID"], each["XMax"]) for each in csv.DictReader(file)]
    assert count == len(rows)
    return rows


def test_a_table_holds_the_chosen_images(tmp_path: Path) -> None:
    lines = [row("a"), row("b"), row("a", box="0,1,0,1")]
    assert table(tmp_path, lines, []) == []
    assert table(tmp_path, lines, ["a"]) == [("a", "0.5"), ("a", "1")]
    assert not list(tmp_path.glob("*.part"))


def test_overlapped_boxes(tmp_path: Path) -> None:
    group = row("a", box="0,0.50,0,1", flags="0,0,1,0,0")
    lines = [
        row("a", box="0.1,0.2,0.1,0.2"),  # inside the group box
        group,
        row("a", box="0.4,0.61,0.1,0.2"),  # less than half inside
        row("a", "/m/2", "0.1,0.3,0.1,0.2"),  # of another class
        row("b", box="0.1,0.4,0.1,0.2"),  # in another image
    ]
    everything = [("a", "0.2"), ("a", "0.50"), ("a", "0.61"), ("a", "0.3"), ("b", "0.4")]
    assert table(tmp_path, lines, ["a", "b"]) == everything
    assert table(tmp_path, lines, ["a", "b"], remove_overlapped=True) == everything[1:]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        (f"{HEADER}\n{row('a')}\n", True),
        (f"{HEADER}\r\n{row('a')}", True),
        (f"{HEADER}\n", True),
        (f"{HEADER}\n{row('a')}\n{row('b')[:-4]}", False),
        (f"{HEADER}\n{row('a')}\n00", False),
        ("", False),
    ],
)
def test_a_file_that_was_cut_is_noticed(tmp_path: Path, text: str, whole: bool) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    if whole:
        check_whole(path)
    else:
        with pytest.raises(UserError, match=r"x\.csv"):
            check_whole(path)
