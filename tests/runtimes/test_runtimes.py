"""The table of runtimes, and PyTorch against the reference's whole predictions."""

import sys

import numpy as np
import pytest
import torch

import vision.runtimes
from vision.checkpoint import Checkpoint, save
from vision.data.labels import write_labels
from vision.detector import Detector
from vision.errors import UserError
from vision.runtimes import Runtime, choose_runtime, model_arguments, open_detector
from vision.runtimes.pytorch import TorchRun, fold_norms
from vision.spec import net_names
from vision.ssd import Deployed, build

VOC = ("BACKGROUND", *(f"class{i}" for i in range(1, 21)))
CLASSES = ("BACKGROUND", "cat", "dog")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rule(reference):
    sys.path.insert(0, str(reference))
    try:
        import rule
    finally:
        sys.path.pop(0)
    return rule


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained net in a checkpoint, and its bare weights."""
    folder = tmp_path_factory.mktemp("nets")
    net = build("mb2-ssd-lite", len(CLASSES), (96, 128), width_mult=0.5)
    spec = net.spec.input
    save(
        Checkpoint("mb2-ssd-lite", net.options, CLASSES, 96, 128, spec.mean, spec.std, net.state_dict()),
        folder / "net.pth",
    )
    torch.save(net.state_dict(), folder / "bare.pth")
    write_labels(folder / "labels.txt", CLASSES)
    return folder


# --- the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, runtime, message",
    [
        ("net.zip", "auto", r"nothing here runs a .zip file. Known: .pth"),
        ("net", "auto", "nothing here runs a nameless file"),
        ("net.pth", "torch", "unknown runtime 'torch'; known: auto, pytorch"),
        ("net.pth", "auto", "net.pth: no such file"),
    ],
)
def test_what_cannot_be_opened(tmp_path, name, runtime, message):
    with pytest.raises(UserError, match=message):
        open_detector(tmp_path / name, runtime)


def test_a_folder_is_no_model(tmp_path):
    (tmp_path / "net.pth").mkdir()
    with pytest.raises(UserError, match="is a folder, not a model"):
        open_detector(tmp_path / "net.pth")


def test_a_runtime_that_is_not_installed_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "net.pth").write_bytes(b"")
    line = Runtime("pytorch", (".pth",), "no_such_package", "pip install no_such_package")
    monkeypatch.setitem(vision.runtimes.RUNTIMES, "pytorch", line)
    with pytest.raises(UserError, match="try: pip install no_such_package"):
        open_detector(tmp_path / "net.pth")


def test_of_several_runtimes_the_first_installed_is_taken(tmp_path, monkeypatch):
    table = {
        "missing": Runtime("missing", (".onnx",), "no_such_package", ""),
        "there": Runtime("there", (".onnx",), "numpy", ""),
        "also": Runtime("also", (".onnx",), "cv2", ""),
    }
    monkeypatch.setattr(vision.runtimes, "RUNTIMES", table)
    assert choose_runtime(tmp_path / "net.ONNX") == "there"
    assert choose_runtime(tmp_path / "net.onnx", "also") == "also"


# --- PyTorch ------------------------------------------------------------------------------------------------


def test_a_checkpoint_knows_everything(checkpoint):
    detector = open_detector(checkpoint / "net.pth", batch_size=3)
    assert detector.classes == CLASSES and detector.input.size == (96, 128) and detector.batch_size == 3
    images = [np.zeros((20 + i, 30, 3), np.uint8) for i in range(4)]
    found = detector.detect(images, threshold=0.1)
    assert [one.size for one in found] == [(20 + i, 30) for i in range(4)]
    assert sum(map(len, found)) > 0


def test_bare_weights_are_told(checkpoint):
    told = open_detector(
        checkpoint / "bare.pth",
        labels=checkpoint / "labels.txt",
        net="mb2-ssd-lite",
        size=(96, 128),
        device="cpu",
        width_mult=0.5,
    )
    known = open_detector(checkpoint / "net.pth", device="cpu")
    blob = np.random.default_rng(0).normal(size=(1, 3, 96, 128)).astype(np.float32)
    for a, b in zip(told.run(blob), known.run(blob)):
        assert np.array_equal(a, b)


def test_bare_weights_alone_are_refused(checkpoint):
    with pytest.raises(UserError, match="give the name of the net and its labels"):
        open_detector(checkpoint / "bare.pth")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there(checkpoint, device):
    with pytest.raises(UserError, match=f"device '{device}' cannot be used"):
        open_detector(checkpoint / "net.pth", device=device)


@pytest.mark.parametrize("name", net_names())
def test_folding_changes_no_output(name):
    torch.manual_seed(0)
    net = build(name, 3)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    net.eval()
    images = torch.randn(1, 3, 300, 300)
    run = TorchRun(net, CPU)
    with torch.inference_mode():
        scores, boxes = Deployed(net)(images)
    folded_scores, folded_boxes = run(images.numpy())
    np.testing.assert_allclose(folded_scores, scores.numpy(), atol=1e-4)
    np.testing.assert_allclose(folded_boxes, boxes.numpy(), atol=1e-3)


def test_folding_leaves_no_norm_behind_a_convolution_and_the_net_given_alone():
    net = build("mb1-ssd", 3).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    run = TorchRun(net, CPU)
    assert not [m for m in run.net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    chain = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 3, 1))
    fold_norms(chain)
    assert isinstance(chain[0], torch.nn.BatchNorm2d)


# --- the reference's whole predictions ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["mb1-ssd", "sq-ssd-lite", "mb3-small-ssd-lite"])
def predictor(request, reference, rule):
    """(net's name, detector with rule weights, image, expected numbers)."""
    name = request.param
    net = build(name, len(VOC))
    state = {
        key: torch.from_numpy(np.asarray(rule.weight(key, tuple(value.shape), rule.GAIN[name])))
        for key, value in net.state_dict().items()
    }
    net.load_state_dict(state)
    image = rule.pattern_image(375, 500) if name == "mb1-ssd" else rule.noise_image(5, 240, 320)
    detector = Detector(TorchRun(net, CPU), net.spec.input, VOC, name)
    with np.load(reference / "predictor.npz") as numbers:
        return name, detector, image, {key: numbers[key] for key in numbers if key.startswith(name + "/")}


@pytest.mark.parametrize("variant", ["hard_top10", "hard_all", "soft_top10"])
def test_equals_the_original_predictor(predictor, variant):
    """Up to what we do otherwise: boxes are clipped, sorted by score over all classes, and IoU has no eps."""
    name, detector, image, numbers = predictor
    top_k, threshold, iou_threshold, candidates, sigma = numbers[f"{name}/{variant}/parameters"]
    found = detector.detect(
        image, threshold, iou_threshold, int(top_k), int(candidates), variant.partition("_")[0], sigma
    )
    height, width = image.shape[:2]
    boxes = np.clip(numbers[f"{name}/{variant}/boxes"], 0, [width, height, width, height])
    labels, scores = numbers[f"{name}/{variant}/labels"], numbers[f"{name}/{variant}/scores"]
    assert abs(len(found) - len(boxes)) <= 0.01 * len(boxes)
    assert (np.diff(found.scores) <= 0).all()

    same = (
        (labels[:, None] == found.labels)
        & (np.abs(scores[:, None] - found.scores) < 1e-4)
        & (np.abs(boxes[:, None] - found.boxes).max(axis=2) < 0.05)
    )
    assert (~same.any(axis=1)).sum() <= 0.01 * len(boxes)
    assert (~same.any(axis=0)).sum() <= 0.01 * len(boxes)


def test_counts_at_the_lowest_threshold(predictor):
    name, detector, image, numbers = predictor
    found = detector.detect(image, 0.01)
    counts = np.bincount(found.labels, minlength=len(VOC))
    expected = numbers[f"{name}/hard_default/count_per_class"]
    assert (np.abs(counts - expected) <= np.maximum(1, 0.01 * expected)).all()
    sums = np.bincount(found.labels, found.scores, len(VOC))
    np.testing.assert_allclose(
        sums, numbers[f"{name}/hard_default/score_sum_per_class"], rtol=0.01, atol=0.02
    )


def test_a_name_may_be_a_net_or_a_pair(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="mb1-ssd is no model file"):
        model_arguments(["mb1-ssd"], 0, "")
    for half in ("init", "predict"):
        (tmp_path / f"mb1-ssd_{half}_net.pb").write_bytes(b"")
    assert model_arguments(["mb1-ssd", "film.mp4"], 0, "") == ("mb1-ssd", ["film.mp4"], None, None)
    older = ["mb1-ssd", "mb1.pth", "labels.txt", "film.mp4"]
    assert model_arguments(older, 0, "") == ("mb1.pth", ["film.mp4"], "mb1-ssd", "labels.txt")
