"""Pairs of Caffe2 in the real thing: an environment with the last PyTorch that has it, on Python 3.9.

The environment is made here, once, and kept in `.envs/` (git ignores it); it takes 2 GB. Where the interpreter or
the packages are not to be had, the tests are skipped and say so.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from vision.caffe2_net import Pair, find_pair, image_blob, messages, pair_named, read_net
from vision.card import ModelCard, read_card, write_sidecar
from vision.data.labels import write_labels
from vision.errors import UserError
from vision.spec import InputSpec, net_names

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("google.protobuf")
export = pytest.importorskip("vision.export.onnx")
caffe2 = pytest.importorskip("vision.export.caffe2")

pytestmark = pytest.mark.timeout(900)  # whoever comes first makes an environment

ROOT = Path(__file__).parents[2]
VERSION = "3.9"
PINS = [
    "torch==1.10.2",
    "future==1.0.0",
    "six==1.17.0",
    "protobuf==3.20.3",
    "numpy==1.26.4",
    "opencv-python-headless==4.11.0.86",
    "onnxruntime==1.19.2",
]
CLASSES = ("BACKGROUND", "cat", "dog", "bird")
SIZE = (160, 224)
BATCHES = (1, 4, 1)


@pytest.fixture(scope="session")
def python(environments):
    """Runs a command line where Caffe2 is, with the package as it is now."""
    base = environments.interpreter(VERSION)
    if base is None:
        pytest.skip(f"no Python {VERSION} here that starts; Caffe2 needs it")
    return environments.runner(environments.venv("caffe2", base, PINS, "--no-compile"))


def converted(net, folder, name, size):
    """The net as ONNX and as a pair, with its card; the prefix of the files."""
    spec = net.spec.input
    trained = InputSpec(*size, spec.mean, spec.std)
    exported = export.export(net, CLASSES, trained, export.Plan(dynamic_batch=True))
    (folder / f"{name}.onnx").write_bytes(exported.model.SerializeToString())
    caffe2.write_nets(caffe2.convert(exported.model, name), folder / name)
    write_sidecar(exported.card, pair_named(folder / name).predict)
    return folder / name


# --- every net ----------------------------------------------------------------------------------------------

# Plain Caffe2, nothing of ours: its own messages, its own workspace.
WORKSPACE = """
import sys
import numpy as np
from caffe2.proto import caffe2_pb2
from caffe2.python import workspace
from google.protobuf import text_format

prefix = sys.argv[1]
nets = []
for kind in ("init_net", "predict_net"):
    content = open(prefix + "_" + kind + ".pb", "rb").read()
    net = caffe2_pb2.NetDef()
    net.ParseFromString(content)
    text = text_format.Parse(open(prefix + "_" + kind + ".pbtxt").read(), caffe2_pb2.NetDef())
    if kind == "predict_net":
        assert text == net, "the text says something else"
    else:
        for op in net.op:
            left = [each for each in op.arg if each.name != "values"]
            del op.arg[:]
            op.arg.extend(left)
        assert text == net, "the text says something else"
        net.ParseFromString(content)
    assert not list(net.FindInitializationErrors())
    nets.append(net)
init, predict = nets
workspace.RunNetOnce(init)
workspace.CreateNet(predict)
found = {}
with np.load(prefix + "_inputs.npz") as inputs:
    for key in inputs:
        workspace.FeedBlob("input_0", inputs[key])
        workspace.RunNet(predict.name)
        for output in ("scores", "boxes"):
            found[key + "_" + output] = workspace.FetchBlob(output)
np.savez(prefix + "_found.npz", **found)
"""


def answering(name, size, picture, **options):
    """A net with random weights whose outputs spread, for these pictures.

    Its norms stay as they are made. The `lively` nets, whose norms know three pictures, magnify rounding: there
    onnxruntime and torch themselves are 1e-4 off the same net in float64, and nothing closer can be asked.
    """
    import torch

    from vision.ssd import build, output_layer

    torch.manual_seed(0)
    net = build(name, len(CLASSES), size, **options).eval()
    spec = net.spec.input
    blob = torch.from_numpy(export.preprocessed(InputSpec(*size, spec.mean, spec.std), [picture]))
    with torch.no_grad():
        for i, source in enumerate(net.source_maps(blob)):
            for headers, spread in ((net.classification_headers, 2.0), (net.regression_headers, 0.7)):
                output_layer(headers[i]).weight *= spread / headers[i](source).std().clamp(min=1e-6)
    return net


# vgg16-ssd takes nothing smaller.
CASES = [(name, SIZE if not name.startswith("vgg") else (268, 300), {}) for name in net_names()]
CASES += [("mb2-ssd-lite", (300, 300), {}), ("vgg16-ssd", (268, 268), {"conv4_3_norm": "l2"})]


@pytest.mark.parametrize("name, size, options", CASES)
def test_every_net_agrees_with_onnxruntime(python, pictures, tmp_path, name, size, options):
    net = answering(name, size, pictures(1, seed=1)[0], **options)
    prefix = converted(net, tmp_path, name, size)
    trained = InputSpec(*size, net.spec.input.mean, net.spec.input.std)
    blobs = {
        f"{i}": export.preprocessed(trained, pictures(count, seed=i + 2))
        for i, count in enumerate(BATCHES[:1] if options else BATCHES)
    }
    np.savez(f"{prefix}_inputs.npz", **blobs)
    python("-c", WORKSPACE, prefix)
    session = onnxruntime.InferenceSession(f"{prefix}.onnx", providers=["CPUExecutionProvider"])
    with np.load(f"{prefix}_found.npz") as found:
        for key, blob in blobs.items():
            scores, boxes = session.run(["scores", "boxes"], {"input_0": blob})
            assert np.ptp(scores) > 0.5, "scores that are all alike prove nothing"
            np.testing.assert_allclose(found[f"{key}_scores"], scores, rtol=0, atol=1e-4)
            np.testing.assert_allclose(found[f"{key}_boxes"], boxes, rtol=0, atol=1e-4)


# --- the scripts --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory, lively, pictures):
    """A folder with a pair, its ONNX file, labels and photographs in the VOC layout."""
    folder = tmp_path_factory.mktemp("caffe2")
    converted(lively("mb2-ssd-lite", SIZE, len(CLASSES)), folder, "net", SIZE)
    write_labels(folder / "labels.txt", CLASSES)
    data = folder / "data"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (data / name).mkdir(parents=True)
    for i, image in enumerate(pictures(3, seed=5)):
        cv2.imwrite(str(data / "JPEGImages" / f"{i}.png"), image[..., ::-1])
        height, width = image.shape[:2]
        (data / "Annotations" / f"{i}.xml").write_text(
            f"<annotation><filename>{i}.png</filename><size><width>{width}</width><height>{height}</height>"
            "<depth>3</depth></size><object><name>cat</name><bndbox><xmin>10</xmin><ymin>10</ymin><xmax>60</xmax>"
            "<ymax>50</ymax></bndbox></object></annotation>"
        )
    (data / "ImageSets/Main/test.txt").write_text("0\n1\n2\n")
    (data / "labels.txt").write_text("\n".join(CLASSES[1:]) + "\n")
    return folder


# Several command lines in one process: there Caffe2 is started once, and holds several nets.
SCRIPTS = """
import contextlib, importlib.util, io, json, sys
from vision import cli
said = []
for path, *words in json.loads(sys.stdin.read()):
    spec = importlib.util.spec_from_file_location("script", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["script"] = module
    spec.loader.exec_module(module)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(module.main, words)
    said.append([code, out.getvalue(), err.getvalue()])
print("\\n" + json.dumps(said))
"""


@pytest.fixture(scope="module")
def scripts(python):
    """Command lines (script, words) -> (exit code, stdout, stderr) of each."""

    def run(lines):
        words = [[str(ROOT / script), *map(str, line)] for script, line in lines]
        return json.loads(python("-c", SCRIPTS, stdin=json.dumps(words)).splitlines()[-1])

    return run


def test_the_example_takes_a_pair(scripts, model, tmp_path):
    picture = model / "data" / "JPEGImages" / "0.png"
    names = ("net", "net_init_net.pb", "net_predict_net.pb", "net.onnx")
    options = ["--output", tmp_path / "out.png", "--threads", "1", "--json"]
    lines = [[model / name, picture, *options, tmp_path / f"{name}.json"] for name in names]
    said = scripts([("run_ssd_example.py", line) for line in lines])
    for name, (code, out, err) in zip(names, said):
        assert code == 0, err
        assert ("Caffe2 on CPU" in out) == (name != "net.onnx")
    *found, expected = (json.loads((tmp_path / f"{name}.json").read_text())[0]["objects"] for name in names)
    assert len(expected) >= 5
    for objects in found:
        assert len(objects) == len(expected)
        for a, b in zip(objects, expected):
            assert a["class"] == b["class"]
            np.testing.assert_allclose([a["score"], *a["box"]], [b["score"], *b["box"]], atol=0.05)


def test_the_evaluation_takes_a_pair(scripts, model, tmp_path):
    names = ("net_predict_net.pb", "net.onnx")
    lines = []
    for name in names:
        line = ["--trained_model", model / name, "--dataset", model / "data"]
        lines.append([*line, "--json", tmp_path / f"{name}.json", "--eval_dir", tmp_path / name])
    for code, out, err in scripts([("eval_ssd.py", line) for line in lines]):
        assert code == 0 and "Average Precision Across All Classes" in out, err
    detections = [sorted((tmp_path / name).rglob("*cat*.txt"))[0].read_text().splitlines() for name in names]
    assert len(detections[0]) > 5 and abs(len(detections[0]) - len(detections[1])) <= 2


def test_the_live_script_writes_json(python, model):
    line = [model / "net_init_net.pb", model / "net_predict_net.pb", model / "labels.txt"]
    out = python(
        ROOT / "run_ssd_live_caffe2.py", *line, model / "data" / "JPEGImages", "--output", "-", "--quiet"
    )
    frames = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert len(frames) == 3 and all(any(isinstance(v, list) and v for v in f.values()) for f in frames)


# --- the original's files -----------------------------------------------------------------------------------

# As torch 0.4's exporter left them: blobs are numbers, the image is `0` and nothing fills it, weights unpacked.
ORIGINAL = """
import sys
import numpy as np
from caffe2.proto import caffe2_pb2
from caffe2.python import core

weights = np.load(sys.argv[1])
init, predict = caffe2_pb2.NetDef(name="torch-jit-export_init"), caffe2_pb2.NetDef(name="torch-jit-export")
def fill(name, value):
    init.op.extend([core.CreateOperator("GivenTensorFill", [], [name], shape=value.shape, values=value.reshape(-1))])
    init.external_output.append(name)
def op(kind, inputs, outputs, **arguments):
    predict.op.extend([core.CreateOperator(kind, inputs, outputs, **arguments)])
for name in weights:
    fill(name, weights[name])
predict.external_input.extend(["0", *weights])
op("AveragePool", ["0"], ["10"], global_pooling=1, order="NCHW")
for weight, bias, out, shape in (("1", "2", "20", (1, -1, 3)), ("3", "4", "30", (1, -1, 4))):
    op("Conv", ["10", weight, bias], [out], kernels=[1, 1], order="NCHW")
    op("Reshape", [out], [out + "r", out + "_old"], shape=shape)
op("Softmax", ["20r"], ["scores"], axis=2)
op("Add", ["30r", "5"], ["boxes"])
predict.external_output.extend(["scores", "boxes"])
open(sys.argv[2] + "/init_net.pb", "wb").write(init.SerializeToString())
open(sys.argv[2] + "/predict_net.pb", "wb").write(predict.SerializeToString())
"""

PRIORS = 6
OLD_CLASSES = ("BACKGROUND", "cat", "dog")


@pytest.fixture(scope="module")
def original(python, tmp_path_factory):
    """A folder with `init_net.pb` and `predict_net.pb`, and their weights."""
    folder = tmp_path_factory.mktemp("original")
    rng = np.random.default_rng(3)
    low = rng.uniform(0, 0.4, (1, PRIORS, 2))
    weights = {
        "1": rng.normal(0, 4, (PRIORS * 3, 3, 1, 1)),
        "2": rng.normal(0, 0.1, PRIORS * 3),
        "3": rng.normal(0, 0.02, (PRIORS * 4, 3, 1, 1)),
        "4": np.zeros(PRIORS * 4),
        "5": np.concatenate([low, low + 0.4], axis=2),
    }
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    np.savez(folder / "weights.npz", **weights)
    python("-c", ORIGINAL, folder / "weights.npz", folder)
    write_labels(folder / "labels.txt", OLD_CLASSES)
    return folder, weights


def test_what_caffe2_writes_unpacked_is_read(original):
    folder, weights = original
    init = read_net(folder / "init_net.pb")
    assert {op.output[0] for op in init.op} == set(weights)
    for op in init.op:
        (values,) = [arg.floats for arg in op.arg if arg.name == "values"]
        np.testing.assert_array_equal(np.array(values, np.float32), weights[op.output[0]].reshape(-1))
    pair = find_pair(folder / "init_net.pb")
    assert image_blob(pair, init, read_net(pair.predict)) == ("0", ())


def test_the_original_s_files_run(scripts, original, pictures, tmp_path):
    folder, weights = original
    image = pictures(1, seed=9)[0]
    cv2.imwrite(str(tmp_path / "photo.png"), image[..., ::-1])
    pixels = (cv2.resize(image, (300, 300)).astype(np.float64) - 127) / 128
    means = pixels.mean(axis=(0, 1))
    logits = (weights["1"][:, :, 0, 0] @ means + weights["2"]).reshape(PRIORS, 3)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    best = scores[:, 1:].max()
    assert best > 0.3

    line = ["mb1-ssd", folder / "predict_net.pb", folder / "labels.txt", tmp_path / "photo.png"]
    line += ["--output", tmp_path / "out.png", "--json", tmp_path / "out.json", "--threshold", best - 0.05]
    live = [folder / "init_net.pb", folder / "predict_net.pb", folder / "labels.txt", tmp_path / "photo.png"]
    live += ["--output", tmp_path / "live.jsonl", "--threshold", best - 0.05, "--quiet"]
    said = scripts([("run_ssd_example.py", line), ("run_ssd_live_caffe2.py", live)])
    assert [code for code, _, _ in said] == [0, 0], said
    first = json.loads((tmp_path / "out.json").read_text())[0]["objects"][0]
    prior, label = np.unravel_index(scores[:, 1:].argmax(), (PRIORS, 2))
    box = (weights["3"][:, :, 0, 0] @ means).reshape(PRIORS, 4)[prior] + weights["5"][0, prior]
    height, width = image.shape[:2]
    assert OLD_CLASSES[label + 1] in (tmp_path / "live.jsonl").read_text()
    assert first["class"] == OLD_CLASSES[label + 1] and abs(first["score"] - best) < 1e-4
    np.testing.assert_allclose(first["box"], box * [width, height, width, height], atol=0.02)


# --- what is wrong ------------------------------------------------------------------------------------------


def test_wrong_words_where_caffe2_is(scripts, model, original, tmp_path):
    """Class counts, sizes and exchanged files, some of which only a run can tell."""
    old = original[0]
    picture = model / "data" / "JPEGImages" / "0.png"
    write_labels(tmp_path / "two.txt", CLASSES[:2])
    pair = model / "net_init_net.pb", model / "net_predict_net.pb"
    old_pair = old / "init_net.pb", old / "predict_net.pb"
    labels = model / "labels.txt"
    cases = [
        ([*pair, tmp_path / "two.txt", picture], "leave them out, the file knows them"),
        ([pair[1], pair[0], labels, picture], "exchange the two"),
        ([old / "init_net.pb", pair[1], labels, picture], "do not belong together"),
        (
            [*old_pair, tmp_path / "two.txt", picture],
            "the net scores 3 classes (background included) but 2 names are given",
        ),
        ([*pair, labels, picture, "--resolution", "300"], "takes images of 160 x 224"),
        ([*pair, labels, picture, "--provider", "cuda"], "Caffe2 runs nets on the CPU here"),
        ([*pair, labels, picture, "--runtime", "opencv"], "run_ssd_live_demo.py has other runtimes"),
        ([*pair], "two files and their labels are needed"),
        ([tmp_path / "no_init_net.pb", pair[1], labels, picture], "no_init_net.pb: No such file"),
    ]
    said = scripts(
        [("run_ssd_live_caffe2.py", [*line, "--output", tmp_path / "out.png"]) for line, _ in cases]
    )
    for (_, message), (code, _, err) in zip(cases, said):
        assert code == 2 and message in err and err.count("\n") == 1, err


def test_without_caffe2_one_line_says_what_to_do(model, capsys):
    if importlib.util.find_spec("caffe2") is not None:
        pytest.skip("Caffe2 is here")
    from vision import cli

    spec = importlib.util.spec_from_file_location("live_caffe2", ROOT / "run_ssd_live_caffe2.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    words = [model / "net_init_net.pb", model / "net_predict_net.pb", model / "labels.txt"]
    assert cli.run(script.main, [*map(str, words), str(model / "data/JPEGImages"), "--output", "-"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "torch==1.10.2" in said and "onnxruntime" in said


def small_pair(folder, name="net", **card):
    """Two files that fit together, for what is found out before anything runs."""
    net = messages()["NetDef"]
    init, predict = net(name="a_init"), net(name="a")
    init.op.add(type="GivenTensorFill", output=["w"]).arg.add(name="values", floats=[1.0] * 100)
    predict.op.add(type="Add", input=["input_0", "w"], output=["scores"])
    predict.op.add(type="Mul", input=["input_0", "w"], output=["boxes"])
    predict.external_input.extend(["input_0", "w"])
    predict.external_output.extend(["scores", "boxes"])
    pair = pair_named(folder / name)
    pair.init.write_bytes(init.SerializeToString())
    pair.predict.write_bytes(predict.SerializeToString())
    return pair


def opened(pair):
    return image_blob(pair, read_net(pair.init), read_net(pair.predict))


def test_a_pair_is_found_by_either_name(tmp_path):
    pair = small_pair(tmp_path)
    for word in (pair.init, pair.predict, tmp_path / "net"):
        assert find_pair(word) == pair
    bare = Pair(tmp_path / "init_net.pb", tmp_path / "predict_net.pb")
    for old, new in zip(pair, bare):
        old.rename(new)
    assert find_pair(bare.predict) == bare and opened(bare) == ("input_0", ())


@pytest.mark.parametrize("lost", [0, 1])
def test_the_partner_is_missing(tmp_path, lost):
    pair = small_pair(tmp_path)
    pair[lost].unlink()
    with pytest.raises(UserError, match=f"the other one, {pair[lost].name}, is not beside it"):
        find_pair(pair[1 - lost])


def test_a_name_that_does_not_tell(tmp_path):
    (tmp_path / "frozen.pb").write_bytes(b"")
    with pytest.raises(UserError, match="Rename both"):
        find_pair(tmp_path / "frozen.pb")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "no net of Caffe2, or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no net of Caffe2, or damaged"),
        (b"\x0a\x03net", "it holds no operators"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, message):
    (tmp_path / "net.pb").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_net(tmp_path / "net.pb")
    with pytest.raises(UserError, match="No such file"):
        read_net(tmp_path / "other.pb")


def test_wherever_a_file_is_cut_it_is_noticed(tmp_path):
    pair = small_pair(tmp_path)
    for path in pair:
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(UserError):
                opened(pair)
        path.write_bytes(content)
    assert opened(pair) == ("input_0", ())


def test_a_cut_weight_file_of_a_real_net(model, tmp_path):
    for path in model.glob("net_*"):
        shutil.copy(path, tmp_path)
    pair = pair_named(tmp_path / "net")
    content = pair.init.read_bytes()
    for share in (0.01, 0.5, 0.99):
        pair.init.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UserError, match=r"cut short"):
            opened(pair)


def test_two_halves_of_two_conversions(model, tmp_path):
    first = Pair(*(Path(shutil.copy(path, tmp_path)) for path in pair_named(model / "net")))
    assert opened(first)[0] == "input_0"
    model_of_other = onnx.load(str(model / "net.onnx"))
    for tensor in model_of_other.graph.initializer:
        if tensor.name.endswith("bias"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, tensor.name))
    caffe2.write_nets(caffe2.convert(model_of_other, "net"), tmp_path / "other")
    mixed = Pair(first.init, pair_named(tmp_path / "other").predict)
    with pytest.raises(UserError, match="are of two conversions"):
        opened(mixed)


def test_the_card_stands_beside_the_predict_net(model):
    card = read_card(pair_named(model / "net").predict)
    assert isinstance(card, ModelCard) and card.classes == CLASSES and card.input.size == SIZE
    assert card.self_test is not None
