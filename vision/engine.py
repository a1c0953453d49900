"""Training: the loop, validation, and checkpoints that a run can always be continued from."""

import contextlib
import copy
import logging
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from vision import checkpoint as checkpoints
from vision.checkpoint import Checkpoint
from vision.config import LAST, TrainConfig
from vision.data import open_dataset, summary
from vision.data.augment import Augmentation, Resized, apply_gain
from vision.data.balance import balanced, repeat_factors
from vision.data.check import Question
from vision.data.labels import read_labels, write_labels
from vision.data.precheck import check_before_training
from vision.data.sample import Dataset
from vision.data.sheets import contact_sheet
from vision.detector import Detections, Detector
from vision.errors import UserError
from vision.evaluation.inference import SCORE_THRESHOLD
from vision.evaluation.report import Report
from vision.evaluation.voc import evaluate
from vision.loader import Batch, EpochBatches, make_loader, to_blob
from vision.loss import MultiBoxLoss
from vision.matching import match
from vision.precision import pick_device, pick_precision
from vision.record import Record, set_aside
from vision.schedule import Schedule
from vision.spec import InputSpec
from vision.ssd import SSD, Deployed, build
from vision.weights import load_base_net, load_weights

log = logging.getLogger(__name__)

BAD_STEPS_IN_A_ROW = 10
"""So many non-finite losses one after the other end a run: it will not recover."""


# --- what a run is made of ----------------------------------------------------------------------------------


def open_data(config: TrainConfig) -> Tuple[Dataset, Dataset]:
    """Training and validation sets under one numbering of classes; what is wrong in them is logged."""
    for root in config.datasets:
        if not Path(root).expanduser().exists():
            whose = " (the run that is resumed was started elsewhere)" if config.resume else ""
            raise UserError(f"{root}: no such folder{whose}; name the data set with --data DIR")
    labels = read_labels(config.labels) if config.labels else None
    how: Dict[str, Any] = {"strict": config.strict, "groups": config.groups}
    train = open_dataset(config.datasets, "train", config.dataset_type, labels=labels, **how)
    log.info(summary(train))
    roots = [config.validation_dataset] if config.validation_dataset else config.datasets
    valid = open_dataset(roots, "test", config.dataset_type, labels=train.classes, **how)
    log.info(summary(valid, train.findings))
    if not config.no_check:
        places = [Path(root).expanduser() for root in dict.fromkeys([*config.datasets, *roots])]
        asked = Question(places, config.dataset_type, labels, net=config.net, size=config.size())
        log.info(check_before_training(asked, {"train": train, "test": valid}, config.strict))
    if config.balance_data:
        before = len(train)
        train = balanced(train, config.seed)
        log.info("balanced: %d of %d images", len(train), before)
    return train, valid


def repeats_of(dataset: Dataset, config: TrainConfig) -> Optional[np.ndarray]:
    """How often each image comes in an epoch, float64 (N,); None for once."""
    if not config.repeat_factor:
        return None
    repeats = repeat_factors(dataset, config.repeat_factor)
    log.info("repeated: %d images in an epoch instead of %d", round(repeats.sum()), len(dataset))
    return repeats


def make_net(config: TrainConfig, classes: Tuple[str, ...]) -> SSD:
    """A fresh net, or one with published weights; the report of what was loaded is logged."""
    torch.manual_seed(config.seed)
    net = build(config.net, len(classes), config.size(), **config.net_options())
    source = config.resume or config.pretrained_ssd
    if config.resume or (config.pretrained_ssd and not config.base_net):
        state, own = checkpoints.read_state(source)
        report = load_weights(net, state, source, classes, own.classes if own else None)
        log.info("%s", report)
    elif config.base_net:
        log.info("%s", load_base_net(net, config.base_net))
    return net


def frozen_modules(net: SSD, config: TrainConfig) -> List[nn.Module]:
    """The parts that `--freeze_base_net` and `--freeze_net` leave as they are."""
    if config.freeze_net:
        return [net.base_net, net.extras, net.source_layer_add_ons]
    return [net.base_net] if config.freeze_base_net else []


def parameter_groups(net: SSD, config: TrainConfig) -> List[Dict[str, Any]]:
    """Groups for the optimiser: backbone, layers between, heads; each apart into what decays and what does not.

    Biases and the scales of norms have no weight decay (arXiv 1812.01187, section 3.1). Each group keeps its
    own rate as `base_lr`, which the schedule multiplies.
    """
    frozen = {id(p) for module in frozen_modules(net, config) for p in module.parameters()}
    parts: List[Tuple[Optional[float], List[nn.Module]]] = [
        (config.base_net_lr, [net.base_net]),
        (config.extra_layers_lr, [net.extras, net.source_layer_add_ons]),
        (None, [net.classification_headers, net.regression_headers]),
    ]
    groups = []
    for rate, modules in parts:
        parameters = [p for module in modules for p in module.parameters() if id(p) not in frozen]
        base_lr = config.learning_rate() if rate is None else rate
        for decays in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decays]
            if chosen:
                decay = config.decay() if decays else 0.0
                groups.append({"params": chosen, "base_lr": base_lr, "weight_decay": decay})
    return groups


def make_optimizer(net: SSD, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW (arXiv 1711.05101).

    From scratch the gradients of the heads are tens of times those of the backbone, and SGD must go at the pace
    that the steepest of them bears; AdamW gives each weight a pace of its own.
    """
    groups, rate = parameter_groups(net, config), config.learning_rate()
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(config.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum)


def make_schedule(config: TrainConfig, steps_per_epoch: int) -> Schedule:
    """The schedule of a run, counted in steps; says so when it does not end with the run."""
    total = config.num_epochs * steps_per_epoch
    horizon = round((config.t_max or config.num_epochs) * steps_per_epoch)
    if config.scheduler == "cosine" and horizon != total:
        left = 0.5 * (1 + np.cos(np.pi * min(total / horizon, 1.0)))
        log.info(
            "cosine reaches 0 after %g epochs but the run has %d: the last step trains with %.3g of the "
            "learning rate. Leave --t_max out to end both together.",
            config.t_max,
            config.num_epochs,
            left,
        )
    return Schedule(
        config.scheduler,
        horizon,
        tuple(round(epoch * steps_per_epoch) for epoch in config.milestone_epochs()),
        config.gamma,
        config.warmup if config.warmup >= 0 else min(500, horizon // 10),
    )


# --- validation ---------------------------------------------------------------------------------------------


@dataclass
class Validation:
    """What a net does on a validation set.

    Attributes:
        loss, localisation, classification: means over the batches.
        report: average precisions, or None where they were not asked for.
    """

    loss: float
    localisation: float
    classification: float
    report: Optional[Report]

    @property
    def mean_ap(self) -> Optional[float]:
        """mAP, or None where it was not computed or no class has ground truth."""
        return self.report.mean if self.report else None


@torch.inference_mode()
def validate(
    net: SSD,
    dataset: Dataset,
    loader: Any,
    device: torch.device,
    spec: InputSpec,
    mean_ap: bool = True,
    metric: str = "11point",
) -> Validation:
    """Loss and mAP in one pass, in float32, so that `eval_ssd.py` gives the same mAP.

    Args:
        dataset: the ground truth, in the order of the loader.
        loader: yields unaugmented `Batch`es.
        metric: "11point" or "area".
    """
    was_training = net.training
    net.eval()
    deployed, criterion = Deployed(net), MultiBoxLoss()
    detector = Detector(run=_not_run, input=spec, classes=dataset.classes, name=net.spec.name)
    losses: List[Tuple[float, float]] = []
    found: List[Detections] = []
    for batch in tqdm(loader, desc="validate", leave=False, disable=None):
        batch = batch.to(device)
        logits, locations = net(to_blob(batch, spec))
        labels, targets = match(batch.boxes, batch.labels, net.priors, net.spec.variances)
        losses.append(tuple(float(part) for part in criterion(logits, locations, labels, targets)))  # type: ignore
        if mean_ap:
            scores, boxes = deployed.decode(logits, locations)
            sizes = [dataset.samples[len(found) + i].size for i in range(len(batch))]
            found += detector.postprocess(scores.cpu().numpy(), boxes.cpu().numpy(), sizes, SCORE_THRESHOLD)  # type: ignore[arg-type]
    net.train(was_training)
    localisation, classification = np.mean(losses, axis=0)
    report = evaluate(found, dataset.samples, dataset.classes, 0.5, metric) if mean_ap else None
    return Validation(localisation + classification, localisation, classification, report)


def _not_run(blob: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    raise NotImplementedError("validation runs the net itself; only the postprocess is shared")


# --- the loop -----------------------------------------------------------------------------------------------


class StopSignals:
    """While active, Ctrl-C and SIGTERM are only noted, so that the loop ends between two steps.

    A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.caught: Optional[int] = None
        self._before: Dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: whoever owns it handles signals
                return self
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = number
        log.info("stopping after this step; once more to stop at once")


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: the one that runs, or the next.
        step: steps of it that are done.
        best: best mAP so far (or the negated loss, where there is no mAP).
        bad_steps: non-finite losses in a row.
    """

    epoch: int = 0
    step: int = 0
    best: float = -float("inf")
    bad_steps: int = 0


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        validation: the last one, or None.
        stopped_by: the signal that ended it early, or None.
    """

    validation: Optional[Validation]
    best: float
    stopped_by: Optional[int] = None


@dataclass
class Sums:
    """Running sums since the last line of the log."""

    localisation: float = 0.0
    classification: float = 0.0
    steps: int = 0
    images: int = 0
    waited: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def add(self, localisation: float, classification: float, images: int) -> None:
        """Count one step."""
        self.localisation += localisation
        self.classification += classification
        self.steps += 1
        self.images += images

    def figures(self) -> Dict[str, float]:
        """Mean losses, images a second, and the share of time spent waiting for data."""
        steps, seconds = max(self.steps, 1), max(time.perf_counter() - self.began, 1e-9)
        return {
            "loss": (self.localisation + self.classification) / steps,
            "localisation": self.localisation / steps,
            "classification": self.classification / steps,
            "images_per_second": self.images / seconds,
            "waited": self.waited / seconds,
            "seconds": seconds,
        }


class Trainer:
    """One run: everything it is made of, and the loop.

    Args:
        config: all options.
        resumed: the checkpoint that the run continues, or None.
    """

    def __init__(self, config: TrainConfig, resumed: Optional[Checkpoint] = None) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "training is one process on one device; several would each train the same and write over each "
                "other. Start it without torchrun: python train_ssd.py ..."
            )
        self.config = config
        self.train_set, self.valid_set = open_data(config)
        self.classes = self.train_set.classes
        if resumed is not None and resumed.classes != self.classes:
            raise UserError(
                f"{config.resume} was trained for {', '.join(resumed.classes)}; the data has "
                f"{', '.join(self.classes)}. To start a new run from its weights use --pretrained_ssd."
            )
        self.input = config.input()
        self.device = pick_device(config.use_cuda)
        self.precision = pick_precision(self.device, config.amp, config.channels_last)

        if resumed is None:
            net = make_net(config, self.classes)
        else:
            net = build(config.net, len(self.classes), config.size(), **config.net_options())
        self.net = net.to(self.device, memory_format=self.precision.memory_format)  # type: ignore[call-overload]
        for module in frozen_modules(net, config):
            module.requires_grad_(False)

        self.optimizer = make_optimizer(net, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.needs_scaler)
        self.criterion = MultiBoxLoss()
        self.batches = EpochBatches(
            len(self.train_set), config.batch_size, config.seed, repeats=repeats_of(self.train_set, config)
        )
        config.settle_epochs(len(self.batches))
        self.schedule = make_schedule(config, len(self.batches))
        self.average_decay = config.average_decay(self.schedule.steps)
        self.average = copy.deepcopy(self.net).eval() if self.average_decay else None
        self.augment = Augmentation(self.input.size, self.input.mean, config.seed)
        on_gpu = self.device.type == "cuda"
        self.train_loader = make_loader(
            self.train_set.samples, self.augment, self.batches, config.num_workers, on_gpu
        )
        self.valid_loader = make_loader(
            self.valid_set.samples,
            Resized(self.input.size),
            EpochBatches(len(self.valid_set), config.batch_size, shuffle=False),
            config.num_workers,
            on_gpu,
        )
        self.progress = Progress()
        self.sums = Sums()  # of the epoch
        self.validation: Optional[Validation] = None
        self.record = Record(config.folder, Path(config.resume).parent if resumed else None)
        if resumed is not None:
            self._restore(resumed)

    # the loop

    def fit(self) -> Outcome:
        """Train to the last epoch, or until a signal."""
        config = self.config
        if self.progress.epoch >= config.num_epochs:
            log.info(
                "nothing is left to do: %d epochs are done; go on with a larger --num_epochs",
                self.progress.epoch,
            )
            return Outcome(self.validation, self.progress.best)
        if not self.record.goes_on:
            set_aside(config.folder)
        self._write_labels()
        log.info(
            "%s at %d x %d (width x height), %d classes, %s; %d images in %d steps an epoch",
            config.net,
            self.input.width,
            self.input.height,
            len(self.classes) - 1,
            self.precision,
            len(self.train_set),
            len(self.batches),
        )
        loaders = contextlib.closing(self.train_loader), contextlib.closing(self.valid_loader)
        with StopSignals() as stop, logging_redirect_tqdm(), loaders[0], loaders[1]:
            while self.progress.epoch < config.num_epochs:
                try:
                    figures = self._train_epoch(stop)
                except UserError:
                    if not self.progress.bad_steps:  # an image can no longer be read; the weights are sound
                        log.info("stopped; go on with --resume %s", self._save_last())
                    raise
                if stop.caught is not None:
                    path = self._save_last()
                    log.info("stopped; go on with --resume %s", path)
                    return Outcome(self.validation, self.progress.best, stop.caught)
                self._end_epoch(figures)
        return Outcome(self.validation, self.progress.best)

    def _train_epoch(self, stop: StopSignals) -> Dict[str, float]:
        """One epoch, from the step at which the progress stands."""
        progress, total = self.progress, len(self.batches)
        self._train_mode()
        self.batches.epoch, self.batches.first_step = progress.epoch, progress.step
        sums = Sums()
        bar = tqdm(
            total=total, initial=progress.step, desc=f"epoch {progress.epoch}", leave=False, disable=None
        )
        with bar:
            for batch, waited in _timed(self.train_loader):
                localisation, classification = self.step(batch)
                progress.step += 1
                for each in (self.sums, sums):
                    each.waited += waited
                    each.add(localisation, classification, len(batch))
                bar.update()
                if progress.step % self.config.debug_steps == 0:
                    self._log_steps(sums.figures())
                    sums = Sums()
                if stop.caught is not None:
                    break
        return self.sums.figures()

    def _train_mode(self) -> None:
        self.net.train()
        for module in frozen_modules(self.net, self.config):
            module.eval()  # frozen means frozen: batch statistics too

    def step(self, batch: Batch) -> Tuple[float, float]:
        """One update; returns the two losses (0 and 0 for a batch that was skipped)."""
        update = self.progress.epoch * len(self.batches) + self.progress.step
        factor = self.schedule.factor(update)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

        batch_on_device = batch.to(self.device)
        localisation, classification = self._losses(batch_on_device)
        loss = localisation + classification
        values = float(localisation.detach()), float(classification.detach())
        if not np.isfinite(sum(values)):
            self._refuse(batch, f"loss {sum(values)}")
            return 0.0, 0.0

        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.config.largest_gradient())
        # A scaler expects overflows and skips those steps itself.
        if not self.precision.needs_scaler and not torch.isfinite(norm):
            self._refuse(batch, f"gradient norm {float(norm)}")
            return 0.0, 0.0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.progress.bad_steps = 0
        if self.average is not None:
            update_average(self.average, self.net, self.average_decay, update)
        return values

    def _losses(self, batch: Batch) -> Tuple[Tensor, Tensor]:
        labels, targets = match(batch.boxes, batch.labels, self.net.priors, self.net.spec.variances)
        blob = to_blob(batch, self.input).contiguous(memory_format=self.precision.memory_format)
        with self.precision.autocast():
            logits, locations = self.net(blob)
        return self.criterion(logits, locations, labels, targets)

    def _refuse(self, batch: Batch, reason: str) -> None:
        """Skip a step whose numbers are not finite: name the images, keep the batch, give up after ten."""
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.bad_steps += 1
        path = self.config.folder / f"bad-batch-epoch{self.progress.epoch}-step{self.progress.step}.npz"
        np.savez_compressed(
            path,
            images=batch.images.numpy(),
            gains=batch.gains.numpy(),
            boxes=batch.boxes.numpy(),
            labels=batch.labels.numpy(),
            ids=np.array(batch.ids),
        )
        log.warning(
            "epoch %d, step %d: %s; this step is skipped. Images: %s. The batch is in %s",
            self.progress.epoch,
            self.progress.step,
            reason,
            ", ".join(batch.ids),
            path,
        )
        if self.progress.bad_steps >= BAD_STEPS_IN_A_ROW:
            raise UserError(
                f"{BAD_STEPS_IN_A_ROW} steps in a row without a finite loss. The weights are probably lost: "
                f"start again with a lower --lr than {self.config.learning_rate():g} or with --amp off. "
                f"The batches are in {self.config.folder}."
            )

    # the end of an epoch

    def _end_epoch(self, figures: Dict[str, float]) -> None:
        progress, config = self.progress, self.config
        epoch = progress.epoch
        row: Dict[str, Any] = {"epoch": epoch, "lr": self.optimizer.param_groups[-1]["lr"], **figures}
        log.info(
            "Epoch: %d, Average Loss: %.4f, Average Regression Loss: %.4f, Average Classification Loss: %.4f, "
            "%.1f images/s, %.0f %% of the time waiting for data",
            epoch,
            figures["loss"],
            figures["localisation"],
            figures["classification"],
            figures["images_per_second"],
            100 * figures["waited"],
        )
        last = epoch + 1 == config.num_epochs
        validates = last or (epoch + 1) % config.validation_epochs == 0
        progress.epoch, progress.step, self.sums = epoch + 1, 0, Sums()
        if validates:
            self.validation = self._validate()
            row.update(self._figures_of(self.validation))
        self.record.add(row)
        if validates:
            self._save(epoch, self.validation)  # type: ignore[arg-type]

    def _validate(self) -> Validation:
        metric = "11point" if self.config.use_2007_metric else "area"
        found = validate(
            self.deployable,
            self.valid_set,
            self.valid_loader,
            self.device,
            self.input,
            self.config.validation_mean_ap,
            metric,
        )
        mean_ap = "n/a" if found.mean_ap is None else f"{found.mean_ap:.4f}"
        log.info(
            "Epoch: %d, Validation Loss: %.4f, Validation Regression Loss: %.4f, "
            "Validation Classification Loss: %.4f, mAP: %s",
            self.progress.epoch - 1,
            found.loss,
            found.localisation,
            found.classification,
            mean_ap,
        )
        return found

    @staticmethod
    def _figures_of(found: Validation) -> Dict[str, Any]:
        figures: Dict[str, Any] = {
            "val_loss": found.loss,
            "val_localisation": found.localisation,
            "val_classification": found.classification,
            "mAP": found.mean_ap,
        }
        if found.report:
            figures.update({f"AP {result.name}": result.ap for result in found.report.classes})
        return figures

    @property
    def deployable(self) -> SSD:
        """The net that is validated and saved: the moving average where there is one."""
        return self.net if self.average is None else self.average

    def _log_steps(self, figures: Dict[str, float]) -> None:
        log.info(
            "Epoch: %d, Step: %d/%d, Avg Loss: %.4f, Avg Regression Loss %.4f, Avg Classification Loss: %.4f",
            self.progress.epoch,
            self.progress.step,
            len(self.batches),
            figures["loss"],
            figures["localisation"],
            figures["classification"],
        )

    # files

    def _write_labels(self) -> None:
        folder = self.config.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Under the name of the newer tools, and under the one of the original.
            kind = "open-images" if "open" in self.config.dataset_type.lower() else "voc"
            for name in ("labels.txt", f"{kind}-model-labels.txt"):
                write_labels(folder / name, self.classes)
        except OSError as error:
            raise UserError(
                f"cannot write into {folder}: {error.strerror}; choose another --model-dir"
            ) from None
        if self.config.save_samples:
            path = save_samples(self.train_set, self.augment, Path(self.config.save_samples))
            log.info("augmented samples: %s", path)

    def _save(self, epoch: int, found: Validation) -> None:
        """`last.pth`; `best.pth` when it is; and flat state dicts of both under the original's file name."""
        score = -found.loss if found.mean_ap is None else found.mean_ap
        better = score > self.progress.best
        if better:
            self.progress.best = score
            checkpoints.save(self._checkpoint(None), self.config.folder / "best.pth")
        flat = self.config.folder / f"{self.config.net}-Epoch-{epoch}-Loss-{found.loss}.pth"
        checkpoints.save_state(self.deployable.state_dict(), flat)
        self.record.keep_flat(flat, better)
        # The last to be written: should the disk be full before, this epoch is trained and saved again.
        self._save_last()
        log.info("Saved model %s%s", flat, " (best so far)" if better else "")

    def _save_last(self) -> Path:
        path = self.config.folder / "last.pth"
        checkpoints.save(self._checkpoint(self._training_state()), path)
        return path

    def _checkpoint(self, training: Optional[Dict[str, Any]]) -> Checkpoint:
        metrics: Dict[str, float] = {}
        if self.validation:
            metrics = {k: float(v) for k, v in self._figures_of(self.validation).items() if v is not None}
        return Checkpoint(
            net=self.config.net,
            options=self.config.net_options(),
            classes=self.classes,
            height=self.input.height,
            width=self.input.width,
            mean=self.input.mean,
            std=self.input.std,
            state=self.deployable.state_dict(),
            metrics={"epoch": float(self.progress.epoch), **metrics},
            training=training,
        )

    def _training_state(self) -> Dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "steps": len(self.batches),
            "losses": [self.sums.localisation, self.sums.classification, self.sums.steps],
            "best": self.progress.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "net": self.net.state_dict() if self.average is not None else None,
            "rng": torch.get_rng_state(),
        }

    def _restore(self, resumed: Checkpoint) -> None:
        training = resumed.training
        assert training is not None
        self.deployable.load_state_dict(resumed.state)
        # Without an average so far, what was saved is the net; this run may have one (--ema, or its length).
        self.net.load_state_dict(resumed.state if training["net"] is None else training["net"])
        before = training["config"].get("optimizer", "sgd")
        if before != self.config.optimizer:
            raise UserError(
                f"{self.config.resume} was trained with {before}, which keeps other things in mind than "
                f"{self.config.optimizer}. Resume without --optimizer, or start a new run with --pretrained_ssd."
            )
        own = [
            {k: v for k, v in group.items() if k not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        try:
            self.optimizer.load_state_dict(training["optimizer"])
        except ValueError as error:
            raise UserError(
                f"{self.config.resume}: the optimiser's state does not fit ({error}). A run cannot change what "
                "is frozen on the way; start a new one with --pretrained_ssd."
            ) from None
        # Rates, decay and momentum are this run's, should the command line have changed them.
        for group, wanted in zip(self.optimizer.param_groups, own):
            group.update(wanted)
        if training["scaler"]:  # empty, should the device so far have needed none
            self.scaler.load_state_dict(training["scaler"])
        torch.set_rng_state(training["rng"])
        # The same share of the epoch, should the batches be of another size now.
        step = training["step"] * len(self.batches) // training.get("steps", len(self.batches))
        self.progress = Progress(training["epoch"], step)
        self.sums = Sums(*training.get("losses", ()))
        if self.record.goes_on and (self.config.folder / "best.pth").is_file():
            self.progress.best = training["best"]
        self.record.rewind(training["epoch"])
        log.info("resuming at epoch %d, step %d", self.progress.epoch, self.progress.step)


def _timed(loader: Any) -> Iterator[Tuple[Batch, float]]:
    """Batches, each with the seconds it was waited for."""
    before = time.perf_counter()
    for batch in loader:
        yield batch, time.perf_counter() - before
        before = time.perf_counter()


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights and batch statistics (Polyak and Juditsky 1992).

    The decay rises from 0.1 with the first steps, so that the average is not one of the random start.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), net.state_dict().values()):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def save_samples(dataset: Dataset, augment: Augmentation, folder: Path, count: int = 24) -> Path:
    """A contact sheet of augmented training samples with their boxes; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(min(count, len(dataset))):
        image, boxes, labels, gain = augment(dataset.samples[number], 0, number)
        items.append((apply_gain(image, float(gain)), boxes, labels))
    path = folder / "augmented.jpg"
    contact_sheet(items, dataset.classes, path)
    return path


def find_resumed(config_values: Dict[str, Any]) -> Tuple[TrainConfig, Optional[Checkpoint]]:
    """The options of a run from what the command line gave, and the checkpoint it continues.

    With `--resume`, the checkpoint's own options hold unless the command line says otherwise. A file of bare
    weights is no run to continue: it only gives the start.
    """
    asked = config_values.get("resume", "")
    if not asked:
        return TrainConfig(**config_values), None
    if asked == LAST:
        folder = Path(config_values.get("checkpoint_folder", TrainConfig.checkpoint_folder))
        asked = str(folder / "last.pth")
    _, found = checkpoints.read_state(asked)
    config_values = {**config_values, "resume": asked}
    if found is None or found.training is None:
        log.info("%s holds weights only: a new run starts from them", asked)
        return TrainConfig(**config_values), None
    before = found.training["config"]
    # Beside the checkpoint, wherever the run was started or has been moved since.
    config = TrainConfig.from_dict({**before, "checkpoint_folder": str(Path(asked).parent), **config_values})
    trained = TrainConfig.from_dict(before)
    for name in ("net", "mb2_width_mult", "conv4_3_norm", "resolution"):
        was, now = getattr(trained, name), getattr(config, name)
        if trained.size() == config.size() if name == "resolution" else was == now:
            continue
        raise UserError(
            f"{asked} is a run with --{name} {was or 'as the net has it'}, not {now}. Resume without "
            f"--{name}, or start a new run in another --checkpoint_folder."
        )
    return config, found


def fit(config: TrainConfig, resumed: Optional[Checkpoint] = None) -> Outcome:
    """Train as the options say."""
    return Trainer(config, resumed).fit()
