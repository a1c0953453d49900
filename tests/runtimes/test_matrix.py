"""Every net x every installed runtime x two resolutions: the same Detections as plain torch gives."""

import importlib.util

import numpy as np
import pytest
import torch

from vision.checkpoint import Checkpoint, save
from vision.detector import Detector
from vision.runtimes import RUNTIMES, open_detector
from vision.spec import InputSpec, net_names
from vision.ssd import Deployed

pytest.importorskip("onnx")
export = pytest.importorskip("vision.export.onnx")

CLASSES = ("BACKGROUND", "cat", "dog", "bird")
SIZES = ((300, 300), (288, 352))
THRESHOLD = 0.6
INSTALLED = [
    name
    for name, line in RUNTIMES.items()
    if name not in ("detectnet", "tensorrt") and importlib.util.find_spec(line.needs) is not None
]


def torch_run(net):
    deployed = Deployed(net).eval()

    def run(blob):
        with torch.inference_mode():
            return tuple(output.numpy() for output in deployed(torch.from_numpy(blob)))

    return run


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[1]}x{size[0]}")
@pytest.mark.parametrize("name", net_names())
def test_every_runtime_detects_the_same(name, size, tmp_path, lively, pictures, same_detections):
    net = lively(name, size, len(CLASSES))
    spec = net.spec.input
    trained = InputSpec(*size, spec.mean, spec.std)
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
            assert same_detections(a, b, THRESHOLD), runtime
