"""Nets that answer like trained ones: scores and boxes that spread, without any training."""

import pytest
import torch

from vision.checkpoint import Checkpoint, save
from vision.export.onnx import preprocessed
from vision.export.verify import painted
from vision.ssd import build, output_layer

CLASSES = ("BACKGROUND", "disc", "square", "star")


def make_lively(net, pictures):
    """Scale the heads so that logits have a spread of 2.5 and locations one of 1 on these pictures."""
    spec = net.spec.input
    blob = torch.from_numpy(preprocessed(type(spec)(*net.size, spec.mean, spec.std), pictures))
    net.eval()
    with torch.no_grad():
        sources = net.source_maps(blob)
        for headers, spread in ((net.classification_headers, 2.5), (net.regression_headers, 1.0)):
            for header, source in zip(headers, sources):
                output_layer(header).weight *= spread / max(float(header(source).std()), 1e-6)
    return net


def make(name, classes=len(CLASSES), size=None, **options):
    torch.manual_seed(0)
    return make_lively(build(name, classes, size, **options), painted(1))


@pytest.fixture(scope="session")
def lively():
    """name, classes, size, options -> such a net."""
    return make


@pytest.fixture(scope="session")
def small():
    """A net that exports in a second: mb2-ssd-lite of half the width, at 96 x 128."""
    return make("mb2-ssd-lite", size=(96, 128), width_mult=0.5)


@pytest.fixture(scope="session")
def small_input(small):
    spec = small.spec.input
    return type(spec)(96, 128, spec.mean, spec.std)


@pytest.fixture
def small_checkpoint(small, tmp_path):
    """It in a file of its own folder."""
    spec = small.spec.input
    path = tmp_path / "run" / "best.pth"
    options = {"width_mult": 0.5}
    save(
        Checkpoint(
            "mb2-ssd-lite", options, CLASSES, 96, 128, spec.mean, spec.std, small.state_dict(), {"mAP": 0.5}
        ),
        path,
    )
    return path
