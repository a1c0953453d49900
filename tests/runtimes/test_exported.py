"""Exported files in every runtime that is installed: forms, batches, what they say of themselves, bad files."""

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vision.card import sidecar
from vision.data.labels import write_labels
from vision.errors import UserError
from vision.runtimes import open_detector
from vision.runtimes.exported import ExportedRun

ROOT = Path(__file__).parents[2]
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "opencv": "cv2"}
RUNTIMES = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package)]
needs_onnxruntime = pytest.mark.skipif("onnxruntime" not in RUNTIMES, reason="onnxruntime is not installed")


@pytest.fixture(params=RUNTIMES)
def runtime(request):
    return request.param


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (30 + 7 * i, 50, 3), dtype=np.uint8) // (i + 1) for i in range(5)]


def same(a, b, tolerance=1e-4):
    assert a.labels.tolist() == b.labels.tolist()
    assert np.allclose(a.scores, b.scores, atol=tolerance)
    assert np.allclose(a.boxes, b.boxes, atol=tolerance * 100)


# --- forms and batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["detectnet", "raw", "uint8"])
@pytest.mark.parametrize("batch", [1, 2, None])
def test_forms_and_batches(tiny, tmp_path, images, runtime, form, batch):
    card = tiny.card(form, dynamic_batch=batch is None)
    path = tiny.save(tmp_path / "tiny.onnx", form, batch, card)
    detector = open_detector(path, runtime, batch_size=3)
    assert detector.classes == tiny.classes and detector.input.size == tiny.size
    scores, boxes = detector.run(detector.preprocess(images))  # 5: more than a batch, no multiple of 2
    planes = type(detector)(None, tiny.input, tiny.classes).preprocess(images)
    expected_scores, expected_boxes = tiny.truth(planes)
    assert scores.dtype == boxes.dtype == np.float32
    assert np.allclose(scores, expected_scores, atol=1e-5) and np.allclose(boxes, expected_boxes, atol=1e-5)

    found = detector.detect(images, threshold=0.3)
    assert [one.size for one in found] == [image.shape[:2] for image in images]
    assert sum(map(len, found)) > 0
    for image, one in zip(images, found):
        same(detector.detect(image, threshold=0.3), one)


@needs_onnxruntime
def test_nms_inside_gives_what_nms_outside_gives(tiny, tmp_path, images):
    inside = open_detector(
        tiny.save(tmp_path / "in.onnx", "nms", None, tiny.card("nms", dynamic_batch=True, threshold=0.3))
    )
    outside = open_detector(tiny.save(tmp_path / "out.onnx", card=tiny.card()))
    dark = [np.zeros((9, 9, 3), np.uint8)]
    for a, b in zip(
        inside.detect(images + dark, threshold=0.3), outside.detect(images + dark, threshold=0.3)
    ):
        assert sorted(a.labels) == sorted(b.labels)
        same(a, b)


@needs_onnxruntime
def test_nms_inside_says_which_scores_it_never_shows(tiny, tmp_path, caplog):
    path = tiny.save(tmp_path / "in.onnx", "nms", 1, tiny.card("nms", threshold=0.3))
    with caplog.at_level(logging.INFO):
        open_detector(path)
    assert "nothing below a score of 0.3" in caplog.text


def test_opencv_refuses_nms_inside(tiny, tmp_path):
    path = tiny.save(tmp_path / "in.onnx", "nms", 1, tiny.card("nms"))
    with pytest.raises(UserError, match="NMS inside, which OpenCV cannot run"):
        open_detector(path, "opencv")


def test_nothing_found_by_nms_inside_is_a_good_result():
    class Model:
        form, classes, priors, batch = "nms", ("BACKGROUND", "cat"), None, None

    nothing = [
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
    ]
    scores, boxes = ExportedRun(Model, lambda blob: nothing, "stub")(np.zeros((2, 3, 4, 4), np.float32))
    assert scores.shape == (2, 1, 2) and boxes.shape == (2, 1, 4) and not scores.any()


# --- which runtime ------------------------------------------------------------------------------------------


@needs_onnxruntime
def test_auto_says_what_it_picked(tiny, tmp_path, caplog):
    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card())
    with caplog.at_level(logging.INFO):
        detector = open_detector(path)
    assert "runtime onnxruntime" in caplog.text and "mb1-ssd, onnxruntime" in detector.name
    assert detector.name.endswith("on CPU") or "on CUDA" in detector.name


def test_without_onnxruntime_another_is_picked(tiny, tmp_path, monkeypatch):
    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card())
    monkeypatch.setattr("vision.runtimes._is_installed", lambda package: package == "cv2")
    assert "OpenCV" in open_detector(path).name


def test_threads_and_providers(tiny, tmp_path, runtime):
    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card())
    assert open_detector(path, runtime, provider="cpu", threads=1).name.endswith("on CPU")
    with pytest.raises(UserError, match="there are|known"):
        open_detector(path, runtime, provider="quantum")
    with pytest.raises(UserError, match="0 threads"):
        open_detector(path, runtime, threads=0)
    with pytest.raises(UserError, match="no option 'treads'"):
        open_detector(path, runtime, treads=2)


# --- what files say, and what is said beside them -----------------------------------------------------------


@pytest.mark.parametrize("beside", [False, True])
def test_the_card_is_read_from_the_file_or_from_beside_it(tiny, tmp_path, runtime, beside):
    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card(), beside=beside)
    assert sidecar(path).exists() == beside
    assert open_detector(path, runtime).classes == tiny.classes


def test_what_is_told_must_agree(tiny, tmp_path):
    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card(options={"width_mult": 1.0}))
    write_labels(tmp_path / "same.txt", tiny.classes)
    write_labels(tmp_path / "other.txt", ["BACKGROUND", "dog", "cat"])
    open_detector(
        path,
        labels=tmp_path / "same.txt",
        net="ssd-mobilenet",
        size=tiny.size,
        width_mult=1.0,
        mean=(127, 127, 127),
    )
    for told, message in [
        (
            {"labels": tmp_path / "other.txt"},
            "In the file: BACKGROUND, cat, dog. Given: BACKGROUND, dog, cat",
        ),
        ({"net": "vgg16-ssd"}, "is a mb1-ssd, not a vgg16-ssd"),
        ({"size": (300, 300)}, "takes images of 64 x 96 .* pixels, not 300 x 300"),
        ({"width_mult": 0.5}, "exported with width_mult 1.0, not 0.5"),
        ({"alpha": 0.5}, "has no option 'alpha'"),
        ({"std": (1, 1, 1)}, "exported with std"),
    ]:
        with pytest.raises(UserError, match=message):
            open_detector(path, **told)


@needs_onnxruntime
def test_foreign_files_are_told_and_then_right(tiny, tmp_path, images, runtime):
    path = tiny.save(tmp_path / "tiny.onnx")
    write_labels(tmp_path / "labels.txt", tiny.classes)
    with pytest.raises(UserError, match="says nothing of itself .*: give its labels$"):
        open_detector(path, runtime)
    own = open_detector(tiny.save(tmp_path / "own.onnx", card=tiny.card()))
    foreign = open_detector(path, runtime, labels=tmp_path / "labels.txt")
    assert foreign.input.size == tiny.size  # from the graph
    for a, b in zip(foreign.detect(images, threshold=0.3), own.detect(images, threshold=0.3)):
        same(a, b)
    with pytest.raises(UserError, match="takes images of 64 x 96 .* only, not 300 x 300"):
        open_detector(path, runtime, labels=tmp_path / "labels.txt", size=(300, 300))


@needs_onnxruntime
def test_an_open_size_must_be_told(tiny, tmp_path):
    path = tiny.save(tmp_path / "tiny.onnx", size=("height", "width"))
    write_labels(tmp_path / "labels.txt", tiny.classes)
    with pytest.raises(UserError, match="give its labels and the size of its input"):
        open_detector(path)
    told = open_detector(path, labels=tmp_path / "labels.txt", size=(48, 32))
    assert told.input.size == (48, 32)
    assert told.detect(np.zeros((5, 5, 3), np.uint8)).size == (5, 5)


@needs_onnxruntime
@pytest.mark.parametrize(
    "told, mean, std",
    [
        ({}, 127.0, 128.0),
        ({"net": "mb1-ssd"}, 127.0, 128.0),
        ({"net": "vgg16-ssd"}, 123.0, 1.0),
        ({"mean": (1, 2, 3), "std": (4, 5, 6)}, 1.0, 4.0),
    ],
)
def test_normalisation_of_foreign_files(tiny, tmp_path, told, mean, std):
    path = tiny.save(tmp_path / "tiny.onnx")
    write_labels(tmp_path / "labels.txt", tiny.classes)
    spec = open_detector(path, labels=tmp_path / "labels.txt", **told).input
    assert (spec.mean[0], spec.std[0]) == (mean, std)


@needs_onnxruntime
def test_outputs_of_other_names_are_told_apart_by_their_shape(tiny, tmp_path):
    write_labels(tmp_path / "labels.txt", tiny.classes)
    path = tiny.save(tmp_path / "tiny.onnx", names=("a", "b"))
    detector = open_detector(path, labels=tmp_path / "labels.txt")
    blob = detector.preprocess([np.full((8, 8, 3), 200, np.uint8)])
    assert np.allclose(detector.run(blob)[1], tiny.truth(blob)[1], atol=1e-5)


# --- bad files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04 and so on", "weights of PyTorch"),
        (b"\x00\x01\x02\x03" * 100, "no ONNX file, or damaged"),
        (np.random.default_rng(0).bytes(5000), "no ONNX file, or damaged"),
        (b"\x08\x07", "holds no graph"),
    ],
)
def test_files_that_are_no_onnx(tmp_path, runtime, content, message):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_detector(tmp_path / "net.onnx", runtime)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_truncated_files(tiny, tmp_path, runtime, share):
    whole = tiny.save(tmp_path / "tiny.onnx", card=tiny.card()).read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="damaged or cut short|holds no graph"):
        open_detector(tmp_path / "cut.onnx", runtime)


def test_a_damaged_graph_is_said_by_the_runtime(tiny, tmp_path, runtime):
    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card())
    path.write_bytes(path.read_bytes().replace(b"GlobalAveragePool", b"GlobalAveragePaul"))
    with pytest.raises(UserError, match="cannot load it"):
        open_detector(path, runtime)


@needs_onnxruntime
def test_an_opset_of_the_future(tiny, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(tiny.save(tmp_path / "tiny.onnx", card=tiny.card())))
    model.opset_import[0].version = 99
    (tmp_path / "tiny.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="opset 99 .* export it again with --opset 11"):
        open_detector(tmp_path / "tiny.onnx", "onnxruntime")


def test_nets_that_are_no_detectors(tmp_path, runtime):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    write_labels(tmp_path / "labels.txt", ["BACKGROUND", "cat"])
    value = helper.make_tensor_value_info
    image = value("image", TensorProto.FLOAT, [1, 3, 8, 8])
    for inputs, message in [
        ([image], "no SSD with decoded boxes: it gives out"),
        ([image, image], "2 inputs"),
    ]:
        node = helper.make_node("Relu", ["image"], ["out"])
        graph = helper.make_graph([node], "net", inputs, [value("out", TensorProto.FLOAT, [1, 3, 8, 8])])
        model = onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
        (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match=message):
            open_detector(tmp_path / "net.onnx", runtime, labels=tmp_path / "labels.txt")


def test_wrong_class_counts(tiny, tmp_path, runtime):
    write_labels(tmp_path / "labels.txt", ["BACKGROUND", "cat"])
    with pytest.raises(UserError, match="scores 3 classes .* but 2 names are given"):
        open_detector(tiny.save(tmp_path / "foreign.onnx"), runtime, labels=tmp_path / "labels.txt")
    lying = tiny.card(classes=("BACKGROUND", "cat"))
    with pytest.raises(UserError, match="scores 3 classes .* but 2 names are given"):
        open_detector(tiny.save(tmp_path / "own.onnx", card=lying), runtime)


def test_graph_and_card_that_contradict_each_other(tiny, tmp_path, runtime):
    other = tiny.card(input=type(tiny.input)(300, 300))
    with pytest.raises(UserError, match="graph takes images of 64 x 96 .* says 300 x 300"):
        open_detector(tiny.save(tmp_path / "a.onnx", card=other), runtime)
    with pytest.raises(UserError, match="has no output locations .* the form 'raw'"):
        open_detector(tiny.save(tmp_path / "b.onnx", card=tiny.card("raw")), runtime)
    fewer = tiny.card("raw", priors=tiny.card().priors[:1], cells=((3, 4),))
    with pytest.raises(UserError, match="has 52 priors but its metadata describes 48"):
        open_detector(tiny.save(tmp_path / "c.onnx", "raw", card=fewer), runtime)


def test_a_stale_json_is_noticed(tiny, tmp_path, runtime):
    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card(weights_sha256="new"))
    tiny.save(tmp_path / "tiny.onnx", card=tiny.card(weights_sha256="old"), beside=True)
    tiny.save(path, card=tiny.card(weights_sha256="new"))
    with pytest.raises(UserError, match="is of another export .* weights_sha256 differ. Delete it"):
        open_detector(path, runtime)


@needs_onnxruntime
def test_a_foreign_net_without_softmax(tiny, tmp_path):
    write_labels(tmp_path / "labels.txt", tiny.classes)
    path = tiny.save(tmp_path / "tiny.onnx", softmax=False, names=("scores", "boxes_"))
    with pytest.raises(UserError, match="the softmax is missing"):
        open_detector(path, labels=tmp_path / "labels.txt")


@needs_onnxruntime
def test_a_foreign_net_without_decoding(tiny, tmp_path):
    write_labels(tmp_path / "labels.txt", tiny.classes)
    path = tiny.save(tmp_path / "tiny.onnx", "raw", names=("scores", "boxes"))
    with pytest.raises(UserError, match="negative width or height"):
        open_detector(path, labels=tmp_path / "labels.txt")


def test_a_runtime_that_computes_wrongly_is_caught(tiny, tmp_path, runtime):
    """The file's self-test is of a net with other weights: as if the runtime had a bug."""
    path = tiny.save(tmp_path / "tiny.onnx", card=type(tiny)(seed=1).card())
    with pytest.raises(UserError, match="gives wrong results for this net: the self-test .* is off by"):
        open_detector(path, runtime)


# --- odd images through a real runtime ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        np.full((1, 1, 3), 90, np.uint8),
        np.full((20000, 10, 3), 90, np.uint8),
        np.full((10, 20000), 90, np.uint8),
        np.full((40, 40), 90 * 257, np.uint16),
        np.full((40, 40, 4), 90, np.uint8),
        np.full((40, 40, 3), 90 / 255, np.float32),
    ],
)
def test_odd_images_give_what_plain_ones_give(tiny, tmp_path, runtime, image):
    detector = open_detector(tiny.save(tmp_path / "tiny.onnx", card=tiny.card()), runtime)
    found = detector.detect(image, threshold=0.2)
    plain = detector.detect(np.full((40, 40, 3), 90, np.uint8), threshold=0.2)
    assert found.size == image.shape[:2]
    assert len(plain) and np.allclose(np.sort(found.scores), np.sort(plain.scores), atol=1e-5)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((0, 0, 3), np.uint8), "no pixels"),
        (np.full((4, 4, 3), np.nan), "holds nan"),
        (None, "could the file not be read"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
    ],
)
def test_refused_images(tiny, tmp_path, runtime, image, message):
    detector = open_detector(tiny.save(tmp_path / "tiny.onnx", card=tiny.card()), runtime)
    with pytest.raises(UserError, match=message):
        detector.detect(image)


def test_no_images_are_no_detections(tiny, tmp_path, runtime):
    assert open_detector(tiny.save(tmp_path / "tiny.onnx", card=tiny.card()), runtime).detect([]) == []


# --- too big ------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from vision import cli
from vision.runtimes import open_detector
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
side = int(sys.argv[4])
def main(argv):
    open_detector(sys.argv[1], sys.argv[2], sys.argv[3], size=(side, side), threads=1)
sys.exit(cli.run(main))
"""


@pytest.mark.parametrize("side, code", [(64, 0), (40000, 2)])
def test_a_net_that_is_too_big_for_the_device(tiny, tmp_path, runtime, side, code):
    pytest.importorskip("resource")
    path = tiny.save(tmp_path / "tiny.onnx", size=("height", "width"))
    write_labels(tmp_path / "labels.txt", tiny.classes)
    arguments = [str(path), runtime, str(tmp_path / "labels.txt"), str(side)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert "not enough memory to run" in done.stderr and "Take a smaller" in done.stderr


@pytest.mark.parametrize(
    "error, message",
    [
        (MemoryError(), "not enough memory to run .* 2 images at once in stub"),
        (
            RuntimeError("[ONNXRuntimeError] : Failed to allocate memory for requested buffer"),
            "not enough memory",
        ),
        (RuntimeError("std::bad_alloc"), "not enough memory"),
        (
            RuntimeError("Something else\nand more"),
            r"stub failed on an input of \(2, 3, 4, 4\): Something else$",
        ),
    ],
)
def test_what_a_runtime_raises_becomes_a_clear_error(tiny, error, message):
    class Model:
        path, net, form, batch, input = "net.onnx", "mb1-ssd", "detectnet", None, tiny.input

    def infer(blob):
        raise error

    with pytest.raises(UserError, match=message):
        ExportedRun(Model, infer, "stub")(np.zeros((2, 3, 4, 4), np.float32))


# --- providers of ONNX Runtime ------------------------------------------------------------------------------

CPU, CUDA, AZURE = "CPUExecutionProvider", "CUDAExecutionProvider", "AzureExecutionProvider"


@needs_onnxruntime
@pytest.mark.parametrize(
    "name, available, chosen",
    [
        (None, [AZURE, CPU], CPU),
        (None, ["TensorrtExecutionProvider", CUDA, CPU], CUDA),
        ("cpu", [CUDA, CPU], CPU),
        ("CUDA", [CUDA, CPU], CUDA),
        (AZURE, [AZURE, CPU], AZURE),
    ],
)
def test_choice_of_a_provider(name, available, chosen):
    from vision.runtimes.onnxruntime import choose_provider

    assert choose_provider(name, available) == chosen


@needs_onnxruntime
def test_providers_that_are_not_there():
    from vision.runtimes.onnxruntime import choose_provider, split_number

    with pytest.raises(
        UserError, match="no provider 'cuda' here .*onnxruntime-gpu.*; there are: Azure.*, cpu"
    ):
        choose_provider("cuda", [AZURE, CPU])
    assert split_number(None) == (None, 0) and split_number("cuda:2") == ("cuda", 2)
    with pytest.raises(UserError, match="'x' is no number; write cuda:0"):
        split_number("cuda:x")


@needs_onnxruntime
def test_a_provider_that_falls_back(tiny, tmp_path, monkeypatch, caplog):
    """ONNX Runtime lists what it was built with, then runs on the CPU where the driver is missing."""
    import vision.runtimes.onnxruntime as module

    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card())
    monkeypatch.setattr(module.onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    real = module.open_session
    monkeypatch.setattr(module, "open_session", lambda path, provider, *_, **__: real(path, CPU))
    with pytest.raises(UserError, match="cannot use CUDA.* and fell back to CPU"):
        open_detector(path, "onnxruntime", provider="cuda")
    assert open_detector(path, "onnxruntime").name.endswith("on CPU")
    assert "cannot use CUDAExecutionProvider here" in caplog.text
