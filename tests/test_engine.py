"""Training on a small generated data set: it learns, it resumes to the bit, and nothing non-finite gets in."""

import dataclasses
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train_ssd
from vision import checkpoint as checkpoints
from vision import cli, engine
from vision.config import TrainConfig
from vision.data.shapes import write_shapes
from vision.engine import Trainer, find_resumed, frozen_modules, parameter_groups
from vision.errors import UserError
from vision.precision import Precision
from vision.record import read_log
from vision.ssd import build

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, images=15, seed=3)
    return folder


@pytest.fixture
def options(shapes, tmp_path):
    """The smallest run there is: a dozen images at 96 x 96."""
    return {
        "datasets": [str(shapes)],
        "checkpoint_folder": str(tmp_path / "run"),
        "net": "mb3-small-ssd-lite",
        "resolution": "96",
        "batch_size": 5,
        "num_epochs": 2,
        "num_workers": 0,
        "amp": "off",
        "lr": 0.05,
    }


def train(options, **changes):
    config, resumed = find_resumed({**options, **changes})
    trainer = Trainer(config, resumed)
    return trainer, trainer.fit()


def test_a_run_leaves_what_it_promises(options, capsys):
    arguments = [f"--{name}={value}" for name, value in options.items() if name != "datasets"]
    assert cli.run(train_ssd.main, ["--data", *options["datasets"], *arguments]) == 0
    folder = Path(options["checkpoint_folder"])
    names = {path.name for path in folder.iterdir()}
    assert {"last.pth", "best.pth", "labels.txt", "voc-model-labels.txt", "log.csv", "curves.png"} <= names
    flat = [name for name in names if re.fullmatch(r"mb3-small-ssd-lite-Epoch-\d-Loss-[\d.]+\.pth", name)]
    assert 1 <= len(flat) <= 2
    # flat files are what the older tools read: tensors under their keys, nothing else
    state = torch.load(folder / flat[0], weights_only=True)
    assert list(state) == list(build("mb3-small-ssd-lite", 7).state_dict())

    best = checkpoints.load(folder / "best.pth")
    assert best.net == "mb3-small-ssd-lite" and (best.height, best.width) == (96, 96)
    assert best.classes == ("BACKGROUND", "disc", "square", "triangle", "star", "ring", "cross")
    assert (folder / "labels.txt").read_text().splitlines() == list(best.classes)
    rows = read_log(folder / "log.csv")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(row["val_loss"] > 0 and row["mAP"] is not None for row in rows)


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema": 0.0}, {"scheduler": "multi-step", "milestones": "1,3"}, {"lr": None}],
    ids=["standard", "no average", "multi-step", "adamw"],
)
def test_four_epochs_are_two_and_two(options, tmp_path, changes):
    changes = {"t_max": 4.0, **changes}
    _, straight = train(options, num_epochs=4, checkpoint_folder=str(tmp_path / "a"), **changes)
    train(options, num_epochs=2, checkpoint_folder=str(tmp_path / "b"), **changes)
    # nothing but --resume and what changes: the rest comes from the checkpoint
    _, resumed = train({}, resume=str(tmp_path / "b" / "last.pth"), num_epochs=4)
    a, b = (checkpoints.load(tmp_path / name / "last.pth") for name in "ab")
    same(a.state, b.state)
    assert straight.best == resumed.best
    assert straight.validation.loss == resumed.validation.loss
    states = [list(c.training["optimizer"]["state"].values()) for c in (a, b)]
    assert states[0] and all(torch.equal(m[key], n[key]) for m, n in zip(*states) for key in m)
    logs = [read_log(tmp_path / name / "log.csv") for name in "ab"]
    assert [row["val_loss"] for row in logs[0]] == [row["val_loss"] for row in logs[1]]


def test_stopped_in_mid_epoch_and_resumed_is_straight_on(options, tmp_path, monkeypatch):
    train(options, checkpoint_folder=str(tmp_path / "a"))
    original, steps = Trainer.step, []

    def step_then_signal(self, batch):
        steps.append(1)
        if len(steps) == 4:  # the first step of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(Trainer, "step", step_then_signal)
    _, outcome = train(options, checkpoint_folder=str(tmp_path / "b"))
    assert outcome.stopped_by == signal.SIGTERM and len(steps) == 4
    _, outcome = train({"checkpoint_folder": str(tmp_path / "b")}, resume="last")
    assert outcome.stopped_by is None
    same(*(checkpoints.load(tmp_path / name / "last.pth").state for name in "ab"))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_script_with_a_resumable_checkpoint(options, number, code):
    folder = Path(options["checkpoint_folder"])
    line = [sys.executable, str(ROOT / "train_ssd.py"), "--data", *options["datasets"]]
    changes = {**options, "num_epochs": 5000, "num_workers": 1}
    line += [f"--{name}={value}" for name, value in changes.items() if name != "datasets"]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (folder / "log.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, number)  # the whole group, workers too, as a terminal does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "Traceback" not in output and "--resume" in output
    assert checkpoints.load(folder / "last.pth").training["epoch"] >= 1


class Poison:
    """Makes chosen losses infinite."""

    def __init__(self, monkeypatch, steps):
        self.count = 0
        original = engine.MultiBoxLoss.forward

        def forward(criterion, *arguments):
            localisation, classification = original(criterion, *arguments)
            if torch.is_grad_enabled():
                self.count += 1
                if self.count in steps:
                    return localisation * float("inf"), classification
            return localisation, classification

        monkeypatch.setattr(engine.MultiBoxLoss, "forward", forward)


def test_a_bad_batch_is_named_kept_and_passed_over(options, monkeypatch, caplog):
    Poison(monkeypatch, {2})
    trainer, outcome = train(options)
    folder = Path(options["checkpoint_folder"])
    (path,) = folder.glob("bad-batch-*.npz")
    kept = np.load(path)
    assert kept["images"].shape[1:] == (96, 96, 3) and kept["images"].dtype == np.uint8
    (said,) = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert all(name in said for name in kept["ids"]) and str(path) in said
    assert all(torch.isfinite(value).all() for value in trainer.net.state_dict().values())
    assert np.isfinite(outcome.validation.loss)


def test_ten_bad_batches_in_a_row_end_the_run(options, monkeypatch):
    Poison(monkeypatch, range(1, 1000))
    with pytest.raises(UserError, match="10 steps in a row"):
        train(options, num_epochs=20)


@pytest.mark.parametrize(
    "net", ["mb1-ssd", "mb1-ssd-lite", "mb2-ssd-lite", "mb3-large-ssd-lite", "sq-ssd-lite"]
)
def test_a_last_batch_of_one_image(options, net):
    # 12 training images in batches of 11 leave one
    trainer, outcome = train(options, net=net, batch_size=11, num_epochs=1, resolution="160")
    assert len(trainer.train_set) % 11 == 1
    assert np.isfinite(outcome.validation.loss)


@pytest.mark.parametrize("flag, still_trains", [("freeze_base_net", True), ("freeze_net", False)])
def test_frozen_means_frozen(options, flag, still_trains):
    config = TrainConfig(**options)
    before = {k: v.clone() for k, v in engine.make_net(config, tuple("0123456")).state_dict().items()}
    trainer, _ = train(options, **{flag: True})
    after = trainer.net.state_dict()
    changed = {key.split(".")[0] for key in after if not torch.equal(before[key], after[key])}
    assert "base_net" not in changed  # weights and batch statistics
    assert ("extras" in changed) == still_trains
    assert {"classification_headers", "regression_headers"} <= changed


@pytest.mark.parametrize(
    "given, optimizer, rate, decay",
    [
        ({}, "adamw", 0.004, 0.05),
        ({"net": "vgg16-ssd"}, "adamw", 0.0003, 0.05),
        # an older command line: its rate is meant for SGD, and so is what starts from weights
        ({"lr": 0.01}, "sgd", 0.01, 5e-4),
        ({"base_net_lr": 0.001}, "sgd", 0.05, 5e-4),
        ({"base_net": "mobilenet.pth"}, "sgd", 0.05, 5e-4),
        ({"pretrained_ssd": "mb1.pth"}, "sgd", 0.05, 5e-4),
        ({"resume": "weights.pth"}, "sgd", 0.05, 5e-4),
        ({"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}, "adamw", 0.01, 0.1),
        ({"optimizer": "sgd"}, "sgd", 0.05, 5e-4),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_which_optimiser(given, optimizer, rate, decay):
    config = TrainConfig(datasets=["somewhere"], **given)
    assert (config.optimizer, config.learning_rate(), config.decay()) == (optimizer, rate, decay)
    assert config.largest_gradient() == (20 if optimizer == "sgd" else float("inf"))
    for limit, largest in ((0.0, float("inf")), (5.0, 5.0)):
        assert dataclasses.replace(config, clip_grad=limit).largest_gradient() == largest


def test_a_run_that_becomes_long_enough_for_an_average_keeps_its_weights(options):
    before, _ = train(options, num_epochs=1)
    assert before.average is None
    config, resumed = find_resumed({**options, "resume": "last", "num_epochs": 50})
    after = Trainer(config, resumed)
    assert after.average is not None
    same(before.net.state_dict(), after.net.state_dict())
    same(before.net.state_dict(), after.average.state_dict())


def test_what_the_command_line_changes_holds_from_there_on(options):
    train(options, num_epochs=1)
    trainer, _ = train(options, resume="last", momentum=0.5, weight_decay=0.1, lr=0.02, scheduler="constant")
    groups = trainer.optimizer.param_groups
    assert {group["momentum"] for group in groups} == {0.5}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
    assert {group["base_lr"] for group in groups} == {0.02}


def test_a_run_that_goes_on_where_float16_needs_a_scaler(options, monkeypatch):
    train(options, num_epochs=1)
    half = Precision(torch.device("cpu"), torch.float16, False)
    monkeypatch.setattr(engine, "pick_precision", lambda *_: half)
    config, resumed = find_resumed({**options, "resume": "last"})
    trainer = Trainer(config, resumed)
    assert trainer.scaler.is_enabled() and trainer.progress.epoch == 1


def test_the_same_size_in_other_words(options):
    train(options, num_epochs=1)
    config, resumed = find_resumed({**options, "resume": "last", "resolution": "96x96"})
    assert config.size() == (resumed.height, resumed.width)
    with pytest.raises(UserError, match="--resolution 96, not 96x64"):
        find_resumed({**options, "resume": "last", "resolution": "96x64"})


def test_a_run_goes_on_beside_its_checkpoint(options, tmp_path):
    train(options, num_epochs=1)
    moved = Path(options["checkpoint_folder"]).rename(tmp_path / "moved")
    train({}, resume=str(moved / "last.pth"), num_epochs=2)
    assert not Path(options["checkpoint_folder"]).exists()
    assert [row["epoch"] for row in read_log(moved / "log.csv")] == [0, 1]


def test_a_run_that_goes_on_elsewhere_loses_nothing_there(options, tmp_path):
    other = tmp_path / "other"
    train(options, num_epochs=1)
    train(options, num_epochs=1, seed=5, checkpoint_folder=str(other))
    kept = checkpoints.load(other / "best.pth").state
    last = str(Path(options["checkpoint_folder"]) / "last.pth")
    train({}, resume=last, num_epochs=2, checkpoint_folder=str(other))
    same(kept, checkpoints.load(other / "earlier-1" / "best.pth").state)
    assert (other / "best.pth").is_file()
    assert [row["epoch"] for row in read_log(other / "log.csv")] == [0, 1]


def test_a_full_disk_loses_no_best(options, monkeypatch):
    """Whichever file no longer fits, the epoch is trained and judged again."""
    folder = Path(options["checkpoint_folder"])
    write, written = checkpoints._write, []

    def full(content, path):
        written.append(path.name)
        if len(written) == fits:
            raise UserError("the disk is full")
        write(content, path)

    monkeypatch.setattr(checkpoints, "_write", full)
    for fits in (1, 2, 3):
        written.clear()
        with pytest.raises(UserError, match="the disk is full"):
            train(options, num_epochs=1, checkpoint_folder=str(folder / str(fits)))
        assert not (folder / str(fits) / "last.pth").exists()
    assert written[0] == "best.pth" and written[2] == "last.pth"


def test_a_best_that_is_gone_is_found_again(options):
    train(options, num_epochs=1)
    best = Path(options["checkpoint_folder"]) / "best.pth"
    best.unlink()
    train(options, resume="last")
    assert best.is_file()


def test_a_loss_without_a_number_is_not_the_best_for_ever(options):
    trainer = Trainer(TrainConfig(**options))
    trainer._write_labels()
    for loss, best in ((float("nan"), -float("inf")), (3.0, -3.0), (float("nan"), -3.0), (2.0, -2.0)):
        trainer._save(0, engine.Validation(loss, loss, 0.0, None))
        assert trainer.progress.best == best


def stopped_after(monkeypatch, options, count):
    """The folder of a run that a signal ends after so many steps."""
    original, steps = Trainer.step, []

    def step(self, batch):
        steps.append(1)
        if len(steps) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        _, outcome = train(options)
    assert outcome.stopped_by == signal.SIGTERM
    return Path(options["checkpoint_folder"])


@pytest.mark.parametrize("count", [2, 3], ids=["in mid-epoch", "after its last step"])
def test_the_log_of_a_stopped_run_is_that_of_a_straight_one(options, tmp_path, monkeypatch, count):
    straight, _ = train(options, checkpoint_folder=str(tmp_path / "straight"))
    folder = stopped_after(monkeypatch, options, count)
    train({"checkpoint_folder": str(folder)}, resume="last")
    for ours, theirs in zip(read_log(folder / "log.csv"), straight.record.rows):
        for name in ("epoch", "lr", "loss", "localisation", "val_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name


def test_batches_of_another_size_leave_the_share_of_the_epoch(options, monkeypatch):
    folder = stopped_after(monkeypatch, options, 2)  # of 3 steps with 5 of 12 images
    trained = []
    original = Trainer.step
    monkeypatch.setattr(
        Trainer, "step", lambda self, batch: (trained.append(self.progress.step), original(self, batch))[1]
    )
    train({"checkpoint_folder": str(folder)}, resume="last", batch_size=2, num_epochs=1)
    assert trained == [4, 5]  # of 6


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanishes_ends_a_run_that_can_go_on(options, tmp_path, workers):
    data = tmp_path / "data"
    shutil.copytree(options["datasets"][0], data)
    away = {path: path.read_bytes() for path in (data / "JPEGImages").iterdir()}
    trainer = Trainer(TrainConfig(**{**options, "datasets": [str(data)], "num_workers": workers}))
    for path in away:
        path.unlink()
    with pytest.raises(UserError, match=r"^\S+\.jpg: No such file or directory$"):
        trainer.fit()
    assert not multiprocessing.active_children()
    for path, content in away.items():
        path.write_bytes(content)
    _, outcome = train({"checkpoint_folder": options["checkpoint_folder"]}, resume="last")
    assert outcome.validation is not None


def test_one_process_trains(options, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        train(options)


def test_a_run_does_not_change_its_optimiser(options):
    train(options, num_epochs=1)
    with pytest.raises(UserError, match="was trained with sgd"):
        train(options, resume="last", optimizer="adamw")


def test_a_run_does_not_change_its_net(options):
    train(options, num_epochs=1)
    with pytest.raises(UserError, match="is a run with --net mb3-small-ssd-lite, not vgg16-ssd"):
        find_resumed({**options, "resume": "last", "net": "vgg16-ssd"})


def test_a_second_run_loses_nothing_of_the_first(options, caplog):
    train(options, num_epochs=1)
    folder = Path(options["checkpoint_folder"])
    first = checkpoints.load(folder / "best.pth").state
    with caplog.at_level("INFO"):
        train(options, num_epochs=1, seed=5)
    assert "holds an earlier run" in caplog.text
    same(first, checkpoints.load(folder / "earlier-1" / "best.pth").state)
    train(options, num_epochs=1, seed=6)
    assert (folder / "earlier-2" / "log.csv").is_file() and (folder / "best.pth").is_file()


def test_a_finished_run_says_so(options, caplog):
    train(options, num_epochs=1)
    with caplog.at_level("INFO"):
        train(options, resume="last", num_epochs=1)
    assert "nothing is left to do: 1 epochs are done" in caplog.text


def test_data_that_are_elsewhere(options, tmp_path):
    with pytest.raises(UserError, match=r"no such folder; name the data set with --data DIR"):
        train({**options, "datasets": [str(tmp_path / "nowhere")]})


def test_rates_and_decay_of_the_parts(options):
    config = TrainConfig(**options, base_net_lr=0.001, extra_layers_lr=0.002)
    net = build(config.net, 7, config.size())
    groups = parameter_groups(net, config)
    assert {(g["base_lr"], g["weight_decay"]) for g in groups} == {
        (rate, decay) for rate in (0.001, 0.002, 0.05) for decay in (0.0, 5e-4)
    }
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in net.parameters())
    frozen = parameter_groups(net, dataclasses.replace(config, freeze_base_net=True))
    assert {g["base_lr"] for g in frozen} == {0.002, 0.05}
    assert frozen_modules(net, config) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lr": 0.0}, "--lr 0.0"),
        ({"batch_size": 0}, "--batch_size 0"),
        ({"net": "mb9"}, "unknown net 'mb9'"),
        ({"resolution": "3x"}, "resolution '3x'"),
        ({"milestones": "1;2"}, "--milestones '1;2'"),
        ({"mb2_width_mult": 0.5}, "--mb2_width_mult 0.5 does not apply to mb3-small-ssd-lite"),
        ({"ema": 1.0}, "--ema 1.0"),
        ({"t_max": float("inf")}, "--t_max inf: must be a finite number"),
        ({"clip_grad": float("nan")}, "--clip_grad nan"),
        ({"seed": 1 << 63}, "--seed 9223372036854775808: must be below"),
    ],
)
def test_options_that_make_no_sense(options, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        TrainConfig(**{**options, **changes})


def test_a_size_that_the_net_cannot_take_is_refused_with_the_reason(options):
    with pytest.raises(UserError, match="smallest side"):
        Trainer(TrainConfig(**{**options, "net": "vgg16-ssd", "resolution": "200"}))


def test_resuming_on_other_classes_is_refused(options, tmp_path):
    train(options, num_epochs=1)
    other = tmp_path / "labels.txt"
    other.write_text("disc\nsquare\ntriangle\nstar\nring\ncross\nmoon\n")
    with pytest.raises(UserError, match="moon.*--pretrained_ssd"):
        train({"checkpoint_folder": options["checkpoint_folder"]}, resume="last", labels=str(other))


def test_flat_weights_start_a_new_run(options):
    trainer, _ = train(options, num_epochs=1)
    flat = next(Path(options["checkpoint_folder"]).glob("*Loss*.pth"))
    config, resumed = find_resumed({**options, "resume": str(flat)})
    assert resumed is None
    fresh = engine.make_net(config, trainer.classes)
    same(fresh.state_dict(), torch.load(flat, weights_only=True))


def test_nothing_to_resume(options):
    with pytest.raises(UserError, match=r"last\.pth"):
        find_resumed({"checkpoint_folder": options["checkpoint_folder"], "resume": "last"})


def test_the_schedule_says_when_it_does_not_end_with_the_run(options, caplog):
    caplog.set_level("INFO")
    engine.make_schedule(TrainConfig(**{**options, "t_max": 200.0, "num_epochs": 100}), 10)
    assert "200 epochs but the run has 100" in caplog.text
    caplog.clear()
    schedule = engine.make_schedule(TrainConfig(**options), 10)
    assert not caplog.records and schedule.steps == 20


@pytest.mark.parametrize(
    "said, steps, epochs", [(0, 1000, 60), (0, 15, 60), (0, 14, 65), (0, 1, 900), (3, 1, 3)]
)
def test_few_photographs_are_seen_more_often(said, steps, epochs, options):
    config = TrainConfig(**{**options, "num_epochs": said})
    config.settle_epochs(steps)
    assert config.num_epochs == epochs


def test_samples_can_be_looked_at(options, tmp_path):
    trainer = Trainer(TrainConfig(**options))
    path = engine.save_samples(trainer.train_set, trainer.augment, tmp_path / "samples")
    assert path.stat().st_size > 10_000
