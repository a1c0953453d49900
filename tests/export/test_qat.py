"""Fine-tuning with INT8 rounding in the loop: the rounding, its gradient, and what is left of it afterwards."""

import cv2
import numpy as np
import onnx
import pytest
import torch

from vision.data.sample import Dataset, Sample
from vision.data.shapes import paint_picture
from vision.errors import UserError
from vision.export import qat
from vision.export.onnx import export
from vision.export.quantize import round_int8

CLASSES = ("BACKGROUND", "disc", "square", "star")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Eight painted pictures with an object each."""
    folder, rng, samples = tmp_path_factory.mktemp("data"), np.random.default_rng(0), []
    for i in range(8):
        picture = paint_picture(rng, (96, 128), 1).image
        path = folder / f"{i}.png"
        cv2.imwrite(str(path), picture[..., ::-1])
        flags = np.zeros(1, bool)
        box = np.array([[20, 20, 80, 70]], np.float32)
        samples.append(Sample(str(i), path, box, np.array([1 + i % 3]), flags, flags.copy()))
    return Dataset("painted", CLASSES, samples)


def test_rounding_is_that_of_the_file():
    values = torch.linspace(-9, 9, 1001)
    scale = torch.tensor(0.05)
    expected = round_int8(values.numpy() / np.float32(0.05)) * np.float32(0.05)
    np.testing.assert_allclose(qat.fake_quantize(values, scale).numpy(), expected, atol=1e-6)


def test_the_gradient_passes_inside_the_range_only():
    values = torch.tensor([-8.0, -6.3, 0.01, 6.3, 8.0], requires_grad=True)
    qat.fake_quantize(values, torch.tensor(0.05)).sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 0]


def test_weights_are_rounded_channel_by_channel():
    weight = torch.randn(4, 3, 3, 3) * torch.tensor([1.0, 10.0, 0.0, 1e-4]).reshape(4, 1, 1, 1)
    rounded = qat.RoundedWeight()(weight)
    assert torch.isfinite(rounded).all() and not rounded[2].any()
    for before, after in zip(weight, rounded):
        assert (
            len(after.unique()) <= 255 and (before - after).abs().max() <= before.abs().max() / 127 / 2 + 1e-9
        )


def test_a_net_is_fine_tuned(small, small_input, dataset, monkeypatch):
    monkeypatch.setattr(qat, "BATCH", 4)
    monkeypatch.setattr(qat, "pick_device", lambda: torch.device("cpu"))
    before = {name: value.clone() for name, value in small.state_dict().items()}
    said = []
    tuned = qat.fine_tune(small, small_input, dataset, 2, say=said.append)
    for name, value in small.state_dict().items():
        assert torch.equal(value, before[name]), "the net that was given is left as it is"
    assert len(said) == 2 and "epoch 2 of 2" in said[1]
    layers = qat.convolutions(tuned)
    assert not any(
        hasattr(layer, "parametrizations") or layer._forward_pre_hooks for layer in layers.values()
    )
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in tuned.modules())
    # Nothing is rounded any more, the weights have moved, and the net is exported like any other.
    assert max(len(layer.weight.unique()) for layer in layers.values()) > 5000
    model = export(tuned, CLASSES, small_input).model
    assert {node.op_type for node in model.graph.node} >= {"Conv", "Softmax"}
    fresh = export(small, CLASSES, small_input).model
    weights = [onnx.numpy_helper.to_array(m.graph.initializer[0]) for m in (model, fresh)]
    assert weights[0].shape == weights[1].shape and 0 < np.abs(weights[0] - weights[1]).max() < 0.5


def test_what_cannot_be_fine_tuned(small, small_input, dataset):
    with pytest.raises(UserError, match="--qat 0: at least one epoch"):
        qat.fine_tune(small, small_input, dataset, 0)
    with pytest.raises(UserError, match="holds no image"):
        qat.fine_tune(small, small_input, Dataset("none", CLASSES, []), 1)
    with pytest.raises(UserError, match="--qat needs the data that the net was trained on"):
        qat.matching_dataset(dataset, (*CLASSES, "moon"))
    assert qat.matching_dataset(dataset, CLASSES) is dataset


def test_a_loss_that_is_not_finite_ends_it(small, small_input, dataset, monkeypatch):
    monkeypatch.setattr(qat, "pick_device", lambda: torch.device("cpu"))

    class Broken(torch.nn.Module):
        def forward(self, *arguments):
            return torch.tensor(float("nan")), torch.tensor(0.0)

    monkeypatch.setattr(qat, "MultiBoxLoss", Broken)
    with pytest.raises(UserError, match="the loss is nan in epoch 0"):
        qat.fine_tune(small, small_input, dataset, 1)
