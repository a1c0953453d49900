"""Everything a training run can be told. One dataclass: the flags, their help and their checks come from it, and
every checkpoint stores it, so that `--resume` needs nothing else."""

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import vision.nets  # noqa: F401  (fills the registry)
from vision.cli import option
from vision.data.open_images import GROUP_RULES
from vision.errors import UserError
from vision.spec import InputSpec, canonical_name, net_names, net_options, net_spec, parse_resolution

log = logging.getLogger(__name__)

LAST = "last"
"""What `--resume` without a value means."""

EPOCHS, LEAST_STEPS = 60, 900
"""Of a run that is not told how long: so many epochs, and at least so many steps."""


@dataclass
class TrainConfig:
    """Options of `train_ssd.py`. Raises UserError for values that make no sense together."""

    # data
    datasets: List[str] = option(["data"], "one or more data set folders", flags=("--data",), metavar="DIR")
    validation_dataset: str = option(
        "", "folder to validate on (default: the test split of --data)", metavar="DIR"
    )
    dataset_type: str = option("auto", "voc, coco, yolo, csv or open_images; auto looks at the folder")
    labels: str = option(
        "", "label file (default: labels.txt of the data, else the names found)", metavar="FILE"
    )
    balance_data: bool = option(False, "draw as many images of every class as of the rarest")
    repeat_factor: float = option(
        0.0, "images of classes in less than this share of them come more often (0: no; 0.001 in LVIS)"
    )
    groups: str = option(
        "ignore", "boxes round groups: no object and no background, objects, or left out", choices=GROUP_RULES
    )
    strict: bool = option(False, "any fault in the data ends the run instead of being mended")
    no_check: bool = option(False, "do not look the data over before training (see docs/doctor.md)")

    # net
    net: str = option("mb1-ssd", f"one of {', '.join(net_names())}")
    resolution: str = option("", "input size, 300 or WIDTHxHEIGHT (default: the net's own, 300)")
    mb2_width_mult: float = option(1.0, "width multiplier of mb2-ssd-lite")
    conv4_3_norm: str = option(
        "batch", "norm on conv4_3 of vgg16-ssd; published weights fit batch", choices=("batch", "l2")
    )

    # weights to start from: the first of these that is given
    resume: str = option(
        "",
        "go on with a checkpoint of this script (no value: the last in the folder), or start from a flat one",
        const=LAST,
        metavar="FILE",
    )
    base_net: str = option("", "weights of the backbone: a file, or `torchvision`", metavar="FILE")
    pretrained_ssd: str = option(
        "", "a whole detector; heads are kept for classes of the same name", metavar="FILE"
    )
    freeze_base_net: bool = option(False, "do not train the backbone, its batch statistics included")
    freeze_net: bool = option(False, "train the heads only")

    # optimisation
    optimizer: str = option(
        "auto",
        "auto is adamw for a run from scratch that is given no learning rate, else sgd as in the older tools",
        choices=("auto", "adamw", "sgd"),
    )
    lr: Optional[float] = option(
        None,
        "learning rate (default: the net's own; the older tools: 0.001 or 0.01)",
        flags=("--learning-rate",),
    )
    base_net_lr: Optional[float] = option(None, "of the backbone (default: --lr)")
    extra_layers_lr: Optional[float] = option(
        None, "of the layers between backbone and heads (default: --lr)"
    )
    momentum: float = option(0.9, "of SGD; the first beta of AdamW")
    weight_decay: Optional[float] = option(
        None, "on convolution weights; biases and norms have none (default: 0.0005, AdamW 0.05)"
    )
    scheduler: str = option("cosine", "learning rate over time", choices=("cosine", "multi-step", "constant"))
    milestones: str = option("80,100", "epochs at which multi-step falls")
    gamma: float = option(0.1, "what multi-step multiplies by")
    t_max: float = option(0.0, "epochs until cosine reaches 0 (default: the whole run)")
    warmup: int = option(-1, "steps of linear warm-up (-1: 500 or a tenth of the run, whichever is less)")
    clip_grad: Optional[float] = option(
        None, "largest gradient norm, 0 for no limit (default: 20 for SGD; AdamW bounds its own steps)"
    )
    ema: float = option(
        -1.0,
        "decay of a moving average of the weights, which is what is validated and saved; -1 fits it to the "
        "length of the run, 0 for none",
    )
    batch_size: int = option(16, "images in a step (the older tools: 32 or 4)")
    num_epochs: int = option(
        0,
        "passes over the data (default: 60, and 900 steps at least; the older tools: 120 or 30)",
        flags=("--epochs",),
    )
    seed: int = option(0, "of the order, the augmentation and fresh weights")

    # machine
    use_cuda: bool = option(True, "use a GPU when there is one")
    amp: str = option("auto", "mixed precision", choices=("auto", "off", "bf16", "fp16"))
    channels_last: str = option("auto", "memory layout", choices=("auto", "on", "off"))
    num_workers: int = option(2, "processes that read and augment", flags=("--workers",))

    # output
    checkpoint_folder: str = option("models", "where checkpoints, log and curves go", flags=("--model-dir",))
    validation_epochs: int = option(1, "validate and save every so many epochs (the older tools: 5 or 1)")
    validation_mean_ap: bool = option(
        True, "compute mAP when validating", flags=("--validate-mean-ap", "--validation-mean-ap")
    )
    use_2007_metric: bool = option(True, "mAP by the 11-point rule of VOC2007")
    debug_steps: int = option(100, "log the loss every so many steps")
    save_samples: str = option("", "write pictures of augmented samples here before training", metavar="DIR")

    def __post_init__(self) -> None:
        self.net = canonical_name(self.net)
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            self._check(
                each.name, not isinstance(value, float) or math.isfinite(value), "must be a finite number"
            )
        for name in ("batch_size", "validation_epochs", "debug_steps", "gamma"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        for name in ("num_epochs", "num_workers", "t_max", "seed"):
            self._check(name, getattr(self, name) >= 0, "must not be below 0")
        self._check("seed", self.seed < 1 << 63, "must be below 2 ** 63")
        self._check("momentum", 0 <= self.momentum < 1, "must be at least 0 and below 1")
        for name in ("weight_decay", "clip_grad"):
            value = getattr(self, name)
            self._check(name, value is None or value >= 0, "must not be below 0")
        self._check("ema", 0 <= self.ema < 1 or self.ema == -1, "must be at least 0 and below 1, or -1")
        self._check("repeat_factor", 0 <= self.repeat_factor <= 1, "must be at least 0 and at most 1")
        self._check(
            "repeat_factor", not (self.repeat_factor and self.balance_data), "not with --balance_data"
        )
        self._check("lr", self.lr is None or self.lr > 0, "must be above 0")
        for name in ("base_net_lr", "extra_layers_lr"):
            value = getattr(self, name)
            self._check(name, value is None or value >= 0, "must not be below 0")
        self.spec()
        self.size()
        self.milestone_epochs()
        # Settled here, so that a checkpoint holds what was used and a resumed run uses it again.
        if self.optimizer == "auto":
            self.optimizer = "adamw" if self._from_scratch() and not self._rate_given() else "sgd"

    def settle_epochs(self, steps_per_epoch: int) -> None:
        """How long to train, where nobody said. Few photographs make few steps, and a net learns by steps."""
        if not self.num_epochs:
            self.num_epochs = max(EPOCHS, math.ceil(LEAST_STEPS / steps_per_epoch))
            log.info(
                "%d epochs of %d steps; --num_epochs sets another number", self.num_epochs, steps_per_epoch
            )

    def _from_scratch(self) -> bool:
        return not (self.base_net or self.pretrained_ssd or self.resume)

    def _rate_given(self) -> bool:
        return any(rate is not None for rate in (self.lr, self.base_net_lr, self.extra_layers_lr))

    def _check(self, name: str, good: bool, rule: str) -> None:
        if not good:
            raise UserError(f"--{name} {getattr(self, name)}: {rule}")

    def net_options(self) -> Dict[str, Any]:
        """Options of the chosen net that differ from its defaults. A flag meant for another net is refused."""
        asked = {"width_mult": self.mb2_width_mult, "conv4_3_norm": self.conv4_3_norm}
        standard = {"width_mult": 1.0, "conv4_3_norm": "batch"}
        known = net_options(self.net)
        changed = {name: value for name, value in asked.items() if value != standard[name]}
        for name, value in changed.items():
            if name not in known:
                flag = {"width_mult": "mb2_width_mult"}.get(name, name)
                raise UserError(f"--{flag} {value} does not apply to {self.net}")
        return changed

    def spec(self) -> Any:
        """The NetSpec of this run."""
        return net_spec(self.net, **self.net_options())

    def learning_rate(self) -> float:
        """Of the heads, and of all that has no rate of its own."""
        if self.lr is not None:
            return self.lr
        spec = self.spec()
        return spec.adamw_rate if self.optimizer == "adamw" else spec.learning_rate

    def decay(self) -> float:
        """Weight decay of what decays. AdamW's is not scaled by the gradient, so it takes a larger number."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.05 if self.optimizer == "adamw" else 5e-4

    def average_decay(self, steps: int) -> float:
        """Decay of the moving average of the weights in a run of so many steps; 0 for no average."""
        return 1 - 1 / max(steps / 15, 1) if self.ema == -1 else self.ema

    def largest_gradient(self) -> float:
        """The norm to which a longer gradient is cut; infinite for no limit."""
        if self.clip_grad is None:
            return float("inf") if self.optimizer == "adamw" else 20.0
        return self.clip_grad or float("inf")

    def size(self) -> Tuple[int, int]:
        """Input (height, width) in pixels."""
        return parse_resolution(self.resolution) if self.resolution else self.spec().input.size

    def input(self) -> InputSpec:
        """Size and normalisation."""
        height, width = self.size()
        return dataclasses.replace(self.spec().input, height=height, width=width)

    def milestone_epochs(self) -> Tuple[float, ...]:
        """`--milestones` as numbers."""
        try:
            return tuple(float(part) for part in self.milestones.split(",") if part.strip())
        except ValueError:
            raise UserError(f"--milestones {self.milestones!r}: write epochs with commas, 80,100") from None

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.checkpoint_folder)

    def to_dict(self) -> Dict[str, Any]:
        """Plain values, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Dict[str, Any]) -> "TrainConfig":
        """From a checkpoint's values; options that no longer exist are left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
