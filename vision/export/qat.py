"""Fine-tuning with rounding in the loop, for a net that loses too much when it is rounded afterwards.

Every convolution sees its input and its weights as INT8 would show them, and learns to live with it; the gradient
passes through the rounding as if it were not there (Bengio et al. 2013, "straight-through"; Jacob et al. 2018,
"Quantization and training of neural networks", section 3). Norms are folded first, so that what is rounded here is
what is rounded in the file. The scales of the inputs come from the same calibration as in `vision.export.quantize` and
stay as they are. What comes out is an ordinary net in float32, to be exported like any other.
"""

import copy
import logging
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vision.data.augment import Augmentation
from vision.data.images import read_image
from vision.data.sample import Dataset
from vision.detector import Detector
from vision.errors import UserError
from vision.export.quantize import Histogram
from vision.loader import EpochBatches, make_loader, to_blob
from vision.loss import MultiBoxLoss
from vision.matching import match
from vision.runtimes.pytorch import fold_norms, pick_device
from vision.spec import InputSpec
from vision.ssd import SSD

log = logging.getLogger(__name__)

RATE_SHARE = 0.05
"""Of the net's learning rate for AdamW, at the start; it falls to 0 along a cosine. The net is trained already."""

CALIBRATION_IMAGES = 64
BATCH = 16
LARGEST = 127.0


def fake_quantize(values: Tensor, scale: Tensor) -> Tensor:
    """To the nearest of the 255 numbers of INT8; gradient 1 inside the range, 0 outside.

    Args:
        scale: positive, of a shape that broadcasts with `values`.
    """
    clipped = torch.minimum(torch.maximum(values, -LARGEST * scale), LARGEST * scale)
    rounded = torch.round(clipped / scale) * scale
    return clipped + (rounded - clipped).detach()


class RoundedWeight(nn.Module):
    """The weights of a convolution (O, I, K, K) with one scale for each output channel."""

    def forward(self, weight: Tensor) -> Tensor:
        largest = weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
        return fake_quantize(weight, (largest / LARGEST).clamp(min=1e-8))


class RoundedInput:
    """A hook in front of a convolution."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, module: nn.Module, inputs: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        scale = torch.tensor(self.scale, device=inputs[0].device, dtype=inputs[0].dtype)
        return (fake_quantize(inputs[0], scale), *inputs[1:])


def convolutions(net: nn.Module) -> Dict[str, nn.Conv2d]:
    """By their names in the net."""
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}


def fine_tune(
    net: SSD,
    spec: InputSpec,
    dataset: Dataset,
    epochs: int,
    seed: int = 0,
    say: Callable[[str], None] = log.info,
) -> SSD:
    """The net, trained on for so many epochs with its convolutions rounded to INT8.

    Args:
        net: trained; it is left as it is.
        spec: the image it was trained on.
        dataset: training images; labels as the net's.

    Returns: a new net in eval mode, its norms folded, without any rounding in it.

    Raises UserError for no epochs, no images, and a loss that is not finite.
    """
    if epochs < 1:
        raise UserError(f"--qat {epochs}: at least one epoch is needed")
    if not len(dataset):
        raise UserError(
            f"{dataset.name} holds no image; --qat trains on annotated ones (--calib with a data set)"
        )
    device = pick_device()
    folded = copy.deepcopy(net).eval()
    fold_norms(folded)
    folded.to(device)
    hooks = [
        convolution.register_forward_pre_hook(RoundedInput(scale))
        for convolution, scale in _scales(folded, spec, dataset, device)
    ]
    layers = convolutions(folded)
    for layer in layers.values():
        parametrize.register_parametrization(layer, "weight", RoundedWeight())
    try:
        _train(folded, spec, dataset, epochs, seed, device, say)
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    return folded.cpu().eval()


def _scales(
    net: SSD, spec: InputSpec, dataset: Dataset, device: torch.device
) -> List[Tuple[nn.Conv2d, float]]:
    """For each convolution the scale of its input, by the rule of `vision.export.quantize`."""
    histograms = {name: Histogram() for name in convolutions(net)}

    def watch(name: str) -> Callable[[Any, Any], None]:
        return lambda module, inputs: histograms[name].add(inputs[0].detach().cpu().numpy())

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in convolutions(net).items()]
    step = max(len(dataset) // CALIBRATION_IMAGES, 1)
    reader = Detector(_not_run, spec, ())
    with torch.inference_mode():
        for sample in dataset.samples[::step][:CALIBRATION_IMAGES]:
            net(torch.from_numpy(reader.preprocess([read_image(sample.path, size=sample.size)])).to(device))
    for hook in hooks:
        hook.remove()
    return [(layer, histograms[name].clipping("int8") / LARGEST) for name, layer in convolutions(net).items()]


def _not_run(blob: Any) -> Any:
    raise NotImplementedError("only the preprocessing is used")


def _train(
    net: SSD,
    spec: InputSpec,
    dataset: Dataset,
    epochs: int,
    seed: int,
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    batches = EpochBatches(len(dataset), BATCH, seed)
    loader = make_loader(dataset.samples, Augmentation(spec.size, spec.mean, seed), batches, 0)
    optimizer = torch.optim.AdamW(net.parameters(), RATE_SHARE * net.spec.adamw_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    criterion = MultiBoxLoss()
    net.train()
    for epoch in range(epochs):
        batches.epoch, total = epoch, 0.0
        for batch in loader:
            batch = batch.to(device)
            labels, targets = match(batch.boxes, batch.labels, net.priors, net.spec.variances)
            logits, locations = net(to_blob(batch, spec))
            loss = sum(criterion(logits, locations, labels, targets))
            if not torch.isfinite(loss):
                raise UserError(
                    f"the loss is {float(loss.detach())} in epoch {epoch} of --qat; is the net trained?"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        say(f"fine-tuning with rounding, epoch {epoch + 1} of {epochs}: loss {total / len(batches):.4f}")


def matching_dataset(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Raises UserError where labels of the data are not those of the net."""
    if tuple(dataset.classes) != tuple(classes):
        raise UserError(
            f"{dataset.name} has the classes {', '.join(dataset.classes)}, the net {', '.join(classes)}; --qat "
            "needs the data that the net was trained on"
        )
    return dataset
