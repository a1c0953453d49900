import pytest

from vision.data.labels import read_labels, suggest, with_background, write_labels
from vision.errors import UserError
from vision.spec import BACKGROUND

ABC = (BACKGROUND, "a", "b", "c d")


@pytest.mark.parametrize(
    "raw",
    [
        b"a\nb\nc d",
        b"a\nb\nc d\n",
        b"a\nb\nc d\n\n\n",
        b"a\r\nb\r\nc d\r\n",
        b"\xef\xbb\xbfa\nb\nc d\n",
        b"\n\na\n  b  \n\t\nc d\n",
        b"a,b,c d",
        b"a, b,\nc d,\n",
        b"BACKGROUND\na\nb\nc d\n",
        b"background\nBackground\na\nb\nBACKGROUND\nc d\n",
        "BACKGROUND\r\na\r\nb\r\nc d\r\n".encode("utf-16"),
        b"# label:color_rgb:parts:actions\nbackground:0,0,0::\na:12,0,255::\nb:1,2,3::\nc d:4,5,6::\n",
        b"a:::\nb:::\nc d:::\n",
    ],
)
def test_every_way_of_writing_a_label_file_gives_the_same_classes(tmp_path, raw):
    (tmp_path / "labels.txt").write_bytes(raw)
    assert read_labels(tmp_path / "labels.txt") == ABC


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "no class name"),
        (b"\xef\xbb\xbf\r\n\r\n", "no class name"),
        (b"BACKGROUND\n", "no class name"),
        (b"a\nb\na\n", "'a' is named twice"),
    ],
)
def test_a_label_file_without_use_is_refused(tmp_path, raw, words):
    path = tmp_path / "labels.txt"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=words) as refused:
        read_labels(path)
    assert str(path) in str(refused.value)


def test_a_missing_label_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.txt"):
        read_labels(tmp_path / "nothing.txt")


def test_names_keep_their_case_and_letters(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("Größe\nWBC\nwbc\na: b\n", encoding="utf-8")
    assert read_labels(path) == (BACKGROUND, "Größe", "WBC", "wbc", "a: b")


def test_writing_what_was_read_changes_nothing(tmp_path):
    path = tmp_path / "labels.txt"
    write_labels(path, ["a", "b", "c d"])
    first = path.read_bytes()
    assert first == b"BACKGROUND\na\nb\nc d\n"
    for _ in range(3):
        write_labels(path, read_labels(path))
    assert path.read_bytes() == first
    assert len(first.decode().splitlines()) == len(ABC)


@pytest.mark.parametrize("name", ["", "  ", "a,b", "a\nb"])
def test_a_name_that_could_not_be_read_back_is_not_written(tmp_path, name):
    with pytest.raises(UserError, match="rename it"):
        write_labels(tmp_path / "labels.txt", ["x", name])


def test_background_is_put_first_once():
    assert with_background([]) == (BACKGROUND,)
    assert with_background(["x", "background", "y", BACKGROUND]) == (BACKGROUND, "x", "y")


@pytest.mark.parametrize(
    "name, near",
    [
        ("wbc", "WBC"),
        ("W B C", "WBC"),
        ("WBC:1,2,3::", "WBC"),
        ("platlets", "Platelets"),
        ("horse", None),
        ("", None),
    ],
)
def test_suggest(name, near):
    said = suggest(name, (BACKGROUND, "RBC", "WBC", "Platelets"))
    assert said == (f"; did you mean {near!r}?" if near else "")


def test_the_background_is_never_suggested():
    assert suggest("backgroud", (BACKGROUND, "x")) == ""
