"""Which checkpoint of a folder is exported, and what can be found out about bare weights."""

import pytest
import torch

from vision.checkpoint import Checkpoint, save
from vision.data.labels import write_labels
from vision.errors import UserError
from vision.export.source import best_checkpoint, open_source
from vision.spec import net_names
from vision.ssd import build

CLASSES = ("BACKGROUND", "disc", "square", "star")
MB2 = {"width_mult": 0.5}


def write(path, mean_ap=None, training=None):
    """A tiny checkpoint; only its metrics matter."""
    metrics = {} if mean_ap is None else {"mAP": mean_ap}
    state = {"weight": torch.zeros(1)}
    mean, std = (127.0,) * 3, (128.0,) * 3
    save(Checkpoint("mb1-ssd", {}, CLASSES, 300, 300, mean, std, state, metrics, training), path)


def write_bare(path):
    torch.save({"weight": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"best.pth": 0.1, "last.pth": 0.9}, "best.pth"),
        ({"a.pth": 0.4, "b.pth": 0.6, "c.pth": 0.5}, "b.pth"),
        ({"a.pth": 0.4, "net-Epoch-1-Loss-0.1.pth": None}, "a.pth"),
        ({"net-Epoch-1-Loss-3.5.pth": None, "net-Epoch-2-Loss-12.25.pth": None}, "net-Epoch-1-Loss-3.5.pth"),
        ({"net-Epoch-10-Loss-2.pth": None, "net-Epoch-2-Loss-2.5.pth": None}, "net-Epoch-10-Loss-2.pth"),
        # "0_675" is no loss, though Python's float() takes it for 675
        ({"mobilenet-v1-ssd-mp-0_675.pth": None, "x-Loss-700.5.pth": None}, "x-Loss-700.5.pth"),
        ({"only.pth": None}, "only.pth"),
        ({"only.pth": None, "labels.txt": None}, "only.pth"),
    ],
)
def test_best_checkpoint(files, expected, tmp_path):
    for name, mean_ap in files.items():
        if not name.endswith(".pth"):
            (tmp_path / name).write_text("x")
        elif mean_ap is None:
            write_bare(tmp_path / name)
        else:
            write(tmp_path / name, mean_ap)
    assert best_checkpoint(tmp_path).name == expected


def test_damaged_files_are_passed_over(tmp_path, caplog):
    write(tmp_path / "a.pth", 0.4)
    (tmp_path / "b.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:300])
    assert best_checkpoint(tmp_path).name == "a.pth"
    assert "passed over" in caplog.text and "b.pth" in caplog.text


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "holds no checkpoint"),
        (["labels.txt"], "holds no checkpoint"),
        (["a.pth", "b.pth"], "a.pth, b.pth; none records its mAP"),
    ],
)
def test_folders_without_a_best(files, message, tmp_path):
    for name in files:
        write_bare(tmp_path / name)
    with pytest.raises(UserError, match=message):
        best_checkpoint(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        best_checkpoint(tmp_path / "nowhere")


# --- opening ------------------------------------------------------------------------------------------------


def test_a_checkpoint_knows_everything(small_checkpoint):
    source = open_source(small_checkpoint)
    assert (source.net.spec.name, source.classes, source.input.size) == ("mb2-ssd-lite", CLASSES, (96, 128))
    assert source.metrics == {"mAP": 0.5} and source.data == {}
    assert not source.net.training


def test_another_size(small_checkpoint):
    source = open_source(small_checkpoint, size=(160, 160))
    assert source.input.size == source.net.size == (160, 160)


def test_of_the_data_only_names_are_told(tmp_path, small):
    spec = small.spec.input
    training = {"config": {"datasets": ["/home/somebody/fruit", "toys/"]}}
    path = tmp_path / "last.pth"
    arguments = ("mb2-ssd-lite", MB2, CLASSES, 96, 128, spec.mean, spec.std, small.state_dict(), {})
    save(Checkpoint(*arguments, training), path)
    assert open_source(path).data == {"name": "fruit, toys"}
    save(Checkpoint(*arguments, {"data": {"name": "fruit", "sha256": "ab"}}), path)
    assert open_source(path).data == {"name": "fruit", "sha256": "ab"}


@pytest.mark.parametrize("name", net_names())
def test_bare_weights_are_recognised(name, tmp_path):
    with torch.device("meta"):
        state = build(name, len(CLASSES)).state_dict()
    path = tmp_path / "net.pth"
    torch.save({key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items()}, path)
    write_labels(tmp_path / "labels.txt", CLASSES)
    source = open_source(path)
    assert (source.net.spec.name, source.classes) == (name, CLASSES)


def test_bare_weights_of_an_odd_net(small, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(small.state_dict(), path)
    write_labels(tmp_path / "labels.txt", CLASSES)
    with pytest.raises(UserError, match="fit no net in its default form; say which net it is with --net"):
        open_source(path)
    assert open_source(path, "mb2-ssd-lite", **MB2).net.options["width_mult"] == 0.5


def test_bare_weights_without_labels(small, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(small.state_dict(), path)
    with pytest.raises(UserError, match="there is no labels.txt beside it"):
        open_source(path, "mb2-ssd-lite", **MB2)
    write_labels(tmp_path / "voc-model-labels.txt", CLASSES)
    assert open_source(path, "mb2-ssd-lite", **MB2).classes == CLASSES


@pytest.mark.parametrize("count", [2, 7])
def test_wrong_class_counts(count, small, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(small.state_dict(), path)
    write_labels(tmp_path / "labels.txt", ["BACKGROUND", *(f"class {i}" for i in range(1, count))])
    with pytest.raises(UserError, match=f"trained for 4 classes, but there are {count} labels"):
        open_source(path, "mb2-ssd-lite", **MB2)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"<html>", "web page"),
        (b"PK\x03\x04 cut", "cut off"),
        (b"\x08\x07onnx", "damaged"),
    ],
)
def test_files_that_are_no_weights(content, message, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_source(path)
