"""Two training steps of every net against the original's losses, gradients and batch statistics."""

import sys

import numpy as np
import pytest
import torch

from vision.loss import MultiBoxLoss
from vision.matching import match
from vision.ssd import build


@pytest.fixture(scope="module")
def rule(reference):
    sys.path.insert(0, str(reference))
    try:
        import rule
    finally:
        sys.path.pop(0)
    return rule


def padded(numbers):
    boxes = [torch.tensor(numbers[f"gt_boxes_{i}"]).float() for i in range(4)]
    labels = [torch.tensor(numbers[f"gt_labels_{i}"]).long() for i in range(4)]
    return (
        torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True),
        torch.nn.utils.rnn.pad_sequence(labels, batch_first=True),
    )


@pytest.mark.parametrize("name", ["mb1-ssd", "mb2-ssd-lite", "mb3-small-ssd-lite", "sq-ssd-lite"])
def test_two_steps_are_the_originals(name, reference, rule):
    numbers = np.load(reference / "train_step.npz")
    net = build(name, 21)
    state = {
        key: torch.tensor(rule.weight(key, tuple(t.shape), rule.GAIN[name]))
        for key, t in net.state_dict().items()
    }
    net.load_state_dict(state)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    labels, targets = match(*padded(numbers), net.priors, net.spec.variances)
    assert int((labels > 0).sum()) == int(numbers[f"{name}/num_positive"].sum())

    images = torch.tensor(rule.normal_input(1, (4, 3, 300, 300)))
    expected = numbers[f"{name}/losses_f64"]
    for step, tolerance in enumerate((1e-4, 1e-2)):
        losses = MultiBoxLoss()(*net(images), labels, targets)
        for ours, truth in zip(losses, expected[step]):
            assert float(ours.detach()) == pytest.approx(truth, rel=tolerance)
        optimizer.zero_grad()
        sum(losses).backward()
        if step == 0:
            check_gradients(net, numbers, name)
            check_buffers(net, numbers, name)
        optimizer.step()


def check_gradients(net, numbers, name):
    truth = dict(zip(map(str, numbers[f"{name}/parameter_names"]), numbers[f"{name}/grad_norms_f64"]))
    ours = {key: float(p.grad.double().norm()) for key, p in net.named_parameters()}
    assert list(ours) == list(truth)
    worst = max(abs(ours[key] - truth[key]) for key in truth)
    assert worst <= 0.01 * max(truth.values())


def check_buffers(net, numbers, name):
    buffers = dict(net.named_buffers())
    buffers.pop("priors")
    if name == "sq-ssd-lite":  # has no BatchNorm, and so no such numbers
        assert not buffers
        return
    names = map(str, numbers[f"{name}/buffer_names"])
    for key, total in zip(names, numbers[f"{name}/buffer_sums_after_step1_f64"]):
        ours = float(buffers[key].double().sum())
        assert ours == pytest.approx(total, rel=1e-4, abs=1e-3 * buffers[key].numel() ** 0.5), key
