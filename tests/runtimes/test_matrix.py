"""Every net x every installed runtime x two resolutions: the same Detections as plain torch gives."""

import importlib.util

import numpy as np
import pytest
import torch

from vision.card import test_image as make_test_image
from vision.checkpoint import Checkpoint, save
from vision.detector import Detector
from vision.runtimes import RUNTIMES, open_detector
from vision.spec import net_names
from vision.ssd import Deployed, build, output_layer

pytest.importorskip("onnx")
export = pytest.importorskip("vision.export.onnx")

CLASSES = ("BACKGROUND", "cat", "dog", "bird")
SIZES = ((300, 300), (224, 352))
THRESHOLD = 0.6
INSTALLED = [
    name
    for name, line in RUNTIMES.items()
    if name != "detectnet" and importlib.util.find_spec(line.needs) is not None
]


def pictures(count, seed):
    """Smooth, with edges: noise alone looks the same everywhere to a net."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = np.repeat(np.repeat(coarse, 40, axis=0), 40, axis=1)
        images.append(np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8))
    return images


def lively(name, size):
    """A net with random weights that has something to say: its norms know the data, its outputs have spread."""
    torch.manual_seed(0)
    net = build(name, len(CLASSES), size)
    # The test image too, or the net would not be itself on it, and amplify every rounding.
    known = [*pictures(2, seed=1), make_test_image(size)]
    blob = torch.from_numpy(Detector(None, spec_input(net), CLASSES).preprocess(known))
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # the statistics of just this batch
            norm.reset_running_stats()
        # The last maps have one value for each image: a variance over 3 numbers, which must not be near 0.
        net.train()(blob)
        net.eval()
        for norm in norms:
            norm.running_var.clamp_(min=1e-2)
        for i, source in enumerate(net.source_maps(blob)):
            for headers, spread in ((net.classification_headers, 1.5), (net.regression_headers, 0.7)):
                layer = output_layer(headers[i])
                layer.weight *= spread / headers[i](source).std().clamp(min=1e-6)
    return net


def spec_input(net):
    spec = net.spec.input
    return type(spec)(*net.size, spec.mean, spec.std)


def torch_run(net):
    deployed = Deployed(net).eval()

    def run(blob):
        with torch.inference_mode():
            return tuple(output.numpy() for output in deployed(torch.from_numpy(blob)))

    return run


def missing(found, among):
    """How many detections have no counterpart of the same class, nearly the same box and score."""
    count = 0
    for box, score, label in zip(found.boxes, found.scores, found.labels):
        near = (
            (among.labels == label)
            & (np.abs(among.boxes - box).max(axis=1, initial=0) < 0.2)
            & (np.abs(among.scores - score) < 1e-3)
        )
        # Those on the threshold itself may be on either side of it.
        count += not near.any() and score > THRESHOLD + 1e-3
    return count


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[1]}x{size[0]}")
@pytest.mark.parametrize("name", net_names())
def test_every_runtime_detects_the_same(name, size, tmp_path):
    net = lively(name, size)
    trained = spec_input(net)
    truth = Detector(torch_run(net), trained, CLASSES)
    images = pictures(2, seed=2)
    expected = truth.detect(images, threshold=THRESHOLD)
    assert all(len(one) >= 5 for one in expected), "a comparison of nothing proves nothing"
    assert len(set(np.concatenate([one.labels for one in expected]))) == 3

    plan = export.Plan(dynamic_batch=size == SIZES[1])
    (tmp_path / "net.onnx").write_bytes(export.export(net, CLASSES, trained, plan).model.SerializeToString())
    content = Checkpoint(name, net.options, CLASSES, *size, trained.mean, trained.std, net.state_dict())
    save(content, tmp_path / "net.pth")
    for runtime in INSTALLED:
        path = tmp_path / ("net.onnx" if ".onnx" in RUNTIMES[runtime].suffixes else "net.pth")
        found = open_detector(path, runtime, device="cpu", threads=2).detect(images, threshold=THRESHOLD)
        for a, b in zip(expected, found):
            # Two boxes may overlap by just the limit of NMS; then rounding decides, and once is enough.
            assert missing(a, b) <= 0.02 * len(a) and missing(b, a) <= 0.02 * len(a), runtime
