"""Checkpoints: what is written comes back, nothing half-written stays, and bad files are named for what they are."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from vision import checkpoint as checkpoints
from vision.checkpoint import Checkpoint, load, open_net, read_state, save, save_state
from vision.errors import UserError
from vision.spec import InputSpec
from vision.ssd import build

CLASSES = ("BACKGROUND", "cat", "dog")
NET = "mb3-small-ssd-lite"


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build(NET, 3, (64, 96)).eval()


def a_checkpoint(net, **changes):
    values = {
        "net": NET,
        "options": {},
        "classes": CLASSES,
        "height": 64,
        "width": 96,
        "mean": (127.0, 127.0, 127.0),
        "std": (128.0, 128.0, 128.0),
        "state": net.state_dict(),
        "metrics": {"mean_ap": 0.5},
    }
    return Checkpoint(**{**values, **changes})


# --- round trip ---------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back(net, tmp_path):
    training = {
        "epoch": 3,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "rng": {"torch": torch.get_rng_state(), "numpy": np.random.default_rng(1).bit_generator.state},
        "nothing": None,
        "empty": [],
    }
    written = a_checkpoint(net, options={"width_mult": 0.5}, training=training)
    save(written, tmp_path / "deep" / "a.pth")
    found = load(tmp_path / "deep" / "a.pth")
    for name in ("net", "options", "classes", "height", "width", "mean", "std", "metrics"):
        assert getattr(found, name) == getattr(written, name), name
    assert found.input == InputSpec(64, 96)
    assert list(found.state) == list(written.state)
    assert all(torch.equal(found.state[key], t) for key, t in written.state.items())
    assert torch.equal(found.training["rng"]["torch"], training["rng"]["torch"])
    assert found.training["rng"]["numpy"] == training["rng"]["numpy"]
    assert torch.equal(found.training["optimizer"]["state"][0]["momentum_buffer"], torch.ones(2))
    assert found.training["nothing"] is None
    assert found.training["empty"] == []


def test_numpy_scalars_become_plain(net, tmp_path):
    save(
        a_checkpoint(net, metrics={"mean_ap": np.float32(0.5), "loss": np.float64(2), "n": np.int64(3)}),
        tmp_path / "a",
    )
    metrics = load(tmp_path / "a").metrics
    assert metrics == {"mean_ap": 0.5, "loss": 2.0, "n": 3}
    assert {type(value) for value in metrics.values()} == {float, int}


@pytest.mark.parametrize(
    "value",
    [object(), np.zeros(3), {1, 2}, {(1, 2): 3}, [print]],
    ids=["object", "array", "set", "tuple key", "function"],
)
def test_what_is_not_plain_is_refused_before_anything_is_written(net, tmp_path, value):
    with pytest.raises(TypeError, match="metrics: strange"):
        save(a_checkpoint(net, metrics={"strange": value}), tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


# --- writing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure, raised",
    [
        (OSError(28, "No space left on device"), UserError),
        (RuntimeError("unexpected pos"), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["full disk", "torch on a full disk", "Ctrl-C"],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(net, tmp_path, monkeypatch, failure, raised):
    path = tmp_path / "last.pth"
    save(a_checkpoint(net, metrics={"epoch": 1}), path)

    def half_written(content, file):
        file.write(b"half")
        raise failure

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(raised):
        save(a_checkpoint(net, metrics={"epoch": 2}), path)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth"]
    assert load(path).metrics == {"epoch": 1}


def test_a_folder_that_cannot_be_made_is_said(net, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save(a_checkpoint(net), tmp_path / "file" / "a.pth")


def test_a_flat_state_dict_is_what_torch_would_write(net, tmp_path):
    save_state(net.state_dict(), tmp_path / "flat.pth")
    found = torch.load(tmp_path / "flat.pth", weights_only=True)
    net.load_state_dict(found, strict=True)
    assert list(found) == list(net.state_dict())


# --- reading foreign files ----------------------------------------------------------------------------------


def prefixed(state, prefix):
    return OrderedDict((prefix + key, t) for key, t in state.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"state_dict": state, "epoch": 3, "best_score": 0.1},
        lambda state: prefixed(state, "module."),
        lambda state: {"model": prefixed(state, "module.")},
        lambda state: prefixed(state, "_orig_mod."),
        lambda state: prefixed(state, "module._orig_mod."),
        lambda state: {**state, "epoch": 3},
    ],
    ids=[
        "bare",
        "model",
        "state_dict",
        "DataParallel",
        "both",
        "compiled",
        "compiled in parallel",
        "with a number",
    ],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_foreign_files_are_read(net, tmp_path, wrap, legacy):
    torch.save(wrap(net.state_dict()), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    state, own = read_state(tmp_path / "a.pth")
    assert own is None
    assert list(state) == list(net.state_dict())
    assert all(torch.equal(state[key], t) for key, t in net.state_dict().items())


def test_an_own_checkpoint_is_recognised(net, tmp_path):
    save(a_checkpoint(net), tmp_path / "a.pth")
    state, own = read_state(tmp_path / "a.pth")
    assert own.classes == CLASSES
    assert list(state) == list(net.state_dict())


class Evil:
    def __reduce__(self):
        return os.system, ("echo should never run",)


def write_truncated(path):
    torch.save({"a": torch.zeros(10000)}, path)
    path.write_bytes(path.read_bytes()[:20000])


@pytest.mark.parametrize(
    "write, said",
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>Sign in</html>"), "is a web page"),
        (lambda path: path.write_bytes(b"<html><head>404</head></html>"), "is a web page"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (write_truncated, "is cut off"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "is cut off"),
        (lambda path: path.write_bytes(bytes(range(256)) * 9), "damaged, or no weights"),
        (lambda path: path.write_bytes(b"just some text"), "damaged, or no weights"),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "holds Python objects|damaged"),
        (lambda path: torch.save(Evil(), path), r"holds Python objects \((posix|nt)\.system\).*state_dict\(\), path\)"),
        (lambda path: torch.save(torch.nn.Linear(2, 2), path), r"Python objects \(torch.nn.modules.linear.Linear\)"),
        (lambda path: torch.save([1, 2], path), "holds no state dict.*a list"),
        (lambda path: torch.save(torch.zeros(3), path), "holds no state dict.*a Tensor"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no state dict.*the entries epoch"),
        (lambda path: torch.save({}, path), r"holds no state dict.*\(none\)"),
        (lambda path: torch.save({"format": checkpoints.FORMAT, "version": 99}, path), "version 99"),
        (lambda path: torch.save({"format": checkpoints.FORMAT, "version": 1}, path), "without net, options"),
    ],
)  # fmt: skip
def test_bad_files_are_named_for_what_they_are(tmp_path, write, said, capfd):
    path = tmp_path / "a.pth"
    write(path)
    with pytest.raises(UserError, match=f"a.pth.*{said}|{said}") as error:
        read_state(path)
    assert str(path) in str(error.value)
    assert "should never run" not in capfd.readouterr().out


def test_a_missing_file_names_its_neighbours(tmp_path):
    with pytest.raises(UserError, match="holds no .pth file"):
        read_state(tmp_path / "mb1.pth")
    for name in ("mb1-ssd-best.pth", "vgg.pth", "notes.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(
        UserError, match="there is no file .*mb1-ssd-bst.pth.* holds mb1-ssd-best.pth"
    ) as error:
        read_state(tmp_path / "mb1-ssd-bst.pth")
    assert "notes" not in str(error.value)
    with pytest.raises(UserError, match="is a folder"):
        read_state(tmp_path)
    with pytest.raises(UserError, match="nor a folder"):
        read_state(tmp_path / "nowhere" / "a.pth")


def test_load_wants_a_checkpoint(net, tmp_path):
    save_state(net.state_dict(), tmp_path / "flat.pth")
    with pytest.raises(UserError, match="bare weights"):
        load(tmp_path / "flat.pth")


# --- opening a net ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save(a_checkpoint(net, mean=(1.0, 2.0, 3.0)), folder / "own.pth")
    save_state(net.state_dict(), folder / "flat.pth")
    return folder


def test_bare_weights_have_the_size_of_the_run_beside_them(net, tmp_path, caplog):
    caplog.set_level("INFO")
    flat = tmp_path / "mb1-ssd-Epoch-9-Loss-2.3.pth"
    save_state(net.state_dict(), flat)
    words = {"net": NET, "classes": CLASSES}
    assert open_net(flat, **words)[2].size == (300, 300)
    (tmp_path / "best.pth").write_bytes(b"damaged")
    save(a_checkpoint(net), tmp_path / "last.pth")
    assert open_net(flat, **words)[2].size == (64, 96)
    assert "96 x 64, as last.pth beside it says" in caplog.text
    assert open_net(flat, **words, size=(96, 96))[2].size == (96, 96)
    # A run with other classes says nothing about these weights.
    save(a_checkpoint(net, classes=("BACKGROUND", "kite", "ball")), tmp_path / "last.pth")
    assert open_net(flat, **words)[2].size == (300, 300)


def outputs(net):
    with torch.no_grad():
        return net(torch.linspace(-1, 1, 3 * 64 * 96).view(1, 3, 64, 96))


def test_an_own_checkpoint_needs_nothing(net, files):
    found, classes, spec = open_net(files / "own.pth")
    assert not found.training
    assert (found.size, found.num_classes, classes) == ((64, 96), 3, CLASSES)
    assert spec == InputSpec(64, 96, (1.0, 2.0, 3.0))
    for a, b in zip(outputs(found), outputs(net)):
        assert torch.equal(a, b)


def test_what_agrees_with_a_checkpoint_may_be_said(files):
    open_net(files / "own.pth", net=NET, classes=list(CLASSES))


def test_another_size_may_be_asked_for(files):
    found, _, spec = open_net(files / "own.pth", size=(128, 64))
    assert found.size == spec.size == (128, 64)


def test_a_flat_file_opens_with_net_and_classes(net, files):
    found, classes, spec = open_net(files / "flat.pth", net=NET, classes=CLASSES, size=(64, 96))
    assert classes == CLASSES
    assert spec == InputSpec(64, 96)
    for a, b in zip(outputs(found), outputs(net)):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "file, given, said",
    [
        ("flat.pth", {}, "give the name of the net and its labels"),
        ("flat.pth", {"net": NET}, "give its labels"),
        ("flat.pth", {"classes": CLASSES}, "give the name of the net"),
        (
            "flat.pth",
            {"net": NET, "classes": CLASSES + ("cow",)},
            "trained for 3 classes, but there are 4 labels",
        ),
        ("flat.pth", {"net": "mb1-sdd", "classes": CLASSES}, "did you mean mb1-ssd"),
        ("flat.pth", {"net": "mb1-ssd", "classes": CLASSES}, f"(?s)do not fit.*The file is of {NET}"),
        ("flat.pth", {"net": NET, "classes": CLASSES, "width_mult": 0.5}, "no option 'width_mult'"),
        ("own.pth", {"net": "mb1-ssd"}, f"is a {NET}, not a mb1-ssd"),
        ("own.pth", {"classes": ("BACKGROUND", "cat", "cow")}, "Only in one of them: cow, dog"),
        ("own.pth", {"classes": ("BACKGROUND", "dog", "cat")}, "the order differs"),
        ("own.pth", {"width_mult": 0.5}, "has no option 'width_mult'"),
        ("own.pth", {"size": (0, 3)}, "input size"),
    ],
)
def test_contradictions_are_refused(files, file, given, said):
    with pytest.raises(UserError, match=said):
        open_net(files / file, **given)


def test_options_travel_in_the_checkpoint(tmp_path):
    net = build("mb2-ssd-lite", 3, (64, 64), width_mult=0.35)
    written = a_checkpoint(net, options=net.options, width=64)
    written.net = "mb2-ssd-lite"
    save(written, tmp_path / "a.pth")
    found, _, _ = open_net(tmp_path / "a.pth", width_mult=None)
    assert found.options == {"width_mult": 0.35, "onnx_compatible": False}
    with pytest.raises(UserError, match="made with width_mult 0.35, not 1.0"):
        open_net(tmp_path / "a.pth", width_mult=1.0)
