"""Exported nets against torch, with ONNX Runtime as the judge: every net, both exporters, opsets, forms, sizes."""

import copy
import dataclasses
import json
import os
import re
import site
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vision import boxes as box_math
from vision.card import METADATA_KEY, ModelCard, test_image
from vision.errors import UserError
from vision.export import retarget as graphs
from vision.export.onnx import (
    INPUT,
    TARGETS,
    Plan,
    example,
    export,
    given_input,
    preprocessed,
    run_torch,
    traced,
    weights_sha256,
    write_metadata,
)
from vision.export.verify import painted
from vision.export.wrappers import Suppressed, wrap
from vision.runtimes import open_detector
from vision.spec import InputSpec, make_priors, net_names
from vision.ssd import build

onnxruntime = pytest.importorskip("onnxruntime")

CLASSES = ("BACKGROUND", "disc", "square", "star")
OPSETS = (9, 11, 13, 17, 23)
PLAIN_ONLY = set(graphs.PLAIN)


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model, blob):
    session = session_of(model)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {INPUT: blob})))


def trained_on(net):
    height, width = net.size
    return dataclasses.replace(net.spec.input, height=height, width=width)


def classes_of(net):
    return CLASSES[: net.num_classes]


# --- every net ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", net_names())
def test_every_net_at_every_opset(name, lively):
    """Through torch's older exporter: traced once, written for each opset."""
    net = lively(name)
    spec = trained_on(net)
    images = painted(2)
    expected = run_torch(net, spec, images[1:])
    blob = preprocessed(spec, images[1:])
    assert np.ptp(expected[0]) > 0.5, "scores that are all alike prove nothing"
    plan = Plan(exporter="torchscript")
    module = wrap(net, plan.form, spec, spec, False, 0.45, 200)
    graph = graphs.read_graph(traced(module, example(spec, plan), plan.outputs, plan))
    graphs.simplify(graph)
    for opset in OPSETS:
        model = graphs.written(graph, opset, frozenset(), plan.outputs)
        onnx.checker.check_model(model, full_check=True)
        found = run(model, blob)
        for output, truth in zip(plan.outputs, expected):
            assert found[output].dtype == np.float32
            np.testing.assert_allclose(found[output], truth, atol=1e-4, rtol=0, err_msg=f"{output}, {opset}")
        used = {node.op_type for node in model.graph.node}
        assert used <= PLAIN_ONLY
        assert not used & {"Shape", "Gather", "Constant", "Identity", "BatchNormalization"}
        assert ("HardSwish" in used) == (opset >= 14 and name.startswith("mb3"))
        for node in model.graph.node:
            if node.op_type == "HardSigmoid":
                assert [each.name for each in node.attribute] == ["alpha"] or opset < 14


def test_every_opset(lively):
    """Those between as well, on the net with the most kinds of operators."""
    net = lively("mb3-small-ssd-lite", size=(96, 128))
    spec = trained_on(net)
    blob, expected = preprocessed(spec, painted(1)), run_torch(net, spec, painted(1))
    plan = Plan(exporter="torchscript")
    module = wrap(net, plan.form, spec, spec, False, 0.45, 200)
    graph = graphs.read_graph(traced(module, example(spec, plan), plan.outputs, plan))
    graphs.simplify(graph)
    for opset in range(9, 24):
        model = graphs.written(graph, opset, frozenset(), plan.outputs)
        assert graphs.opset_of(model) == opset and model.ir_version == graphs.IR_VERSIONS[opset]
        onnx.checker.check_model(model, full_check=True)
        found = run(model, blob)
        for output, truth in zip(plan.outputs, expected):
            np.testing.assert_allclose(found[output], truth, atol=1e-4, rtol=0, err_msg=f"{output}, {opset}")


@pytest.mark.parametrize("name, options", [("mb3-small-ssd-lite", {}), ("vgg16-ssd", {"conv4_3_norm": "l2"})])
def test_both_exporters_draw_the_same_graph(name, options, lively):
    """The two that have the most to be rewritten: averages and HardSwish; rounding pools and the L2 norm."""
    pytest.importorskip("onnxscript")
    size = (96, 128) if name.startswith("mb3") else (268, 268)  # the smallest that VGG takes
    net = lively(name, size=size, **options)
    spec = trained_on(net)
    blob, expected = preprocessed(spec, painted(1)), run_torch(net, spec, painted(1))
    sequences = []
    for exporter in ("torchscript", "dynamo"):
        model = export(net, CLASSES, spec, Plan(exporter=exporter)).model
        found = run(model, blob)
        for output, truth in zip(("scores", "boxes"), expected):
            np.testing.assert_allclose(found[output], truth, atol=1e-4, rtol=0)
        sequences.append([node.op_type for node in model.graph.node])
    assert sequences[0] == sequences[1]


@pytest.mark.parametrize(
    "name, size", [("mb1-ssd", (224, 320)), ("mb2-ssd-lite", (384, 256)), ("mb3-large-ssd-lite", (160, 160))]
)
def test_other_sizes(name, size, lively):
    net = lively(name, size=size)
    spec = trained_on(net)
    exported = export(net, CLASSES, spec)
    found, expected = run(exported.model, preprocessed(spec, painted(1))), run_torch(net, spec, painted(1))
    for output, truth in zip(("scores", "boxes"), expected):
        np.testing.assert_allclose(found[output], truth, atol=1e-4, rtol=0)
    assert exported.card.input.size == size
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in exported.model.graph.output
    }
    assert shapes == {"scores": [1, len(net.priors), 4], "boxes": [1, len(net.priors), 4]}


def test_no_kernel_wider_than_the_map_it_is_on(lively):
    """OpenCV 4.7 to 4.12 gets 3 x 3 convolutions on 1 x 1 maps wrong: there must be none."""
    model = export(lively("mb1-ssd"), CLASSES, InputSpec()).model
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info}
    weights = {each.name: list(each.dims) for each in model.graph.initializer}
    on_one = [
        weights[node.input[1]][2:]
        for node in model.graph.node
        if node.op_type == "Conv" and shapes.get(node.input[0], [0])[2:] == [1, 1]
    ]
    assert on_one and all(kernel == [1, 1] for kernel in on_one)


# --- forms --------------------------------------------------------------------------------------------------


FORMS = {
    "detectnet": Plan(),
    "raw": Plan(form="raw"),
    "nms": Plan(form="nms", threshold=0.2),
    "uint8": Plan(form="uint8"),
    "target detectnet": Plan(target="detectnet"),
    "suppressed": Plan(target="detectnet", suppress=True),
    "averaged": Plan(oversample=2),
    "averaged for detectnet": Plan(target="detectnet", suppress=True, oversample=3),
    "suppressed bytes": Plan(form="uint8", suppress=True),
    "three at once": Plan(batch_size=3),
    "any batch": Plan(dynamic_batch=True),
    "any batch, nms": Plan(form="nms", dynamic_batch=True, threshold=0.2),
    "any batch, bytes": Plan(form="uint8", dynamic_batch=True),
    "any batch, raw": Plan(form="raw", dynamic_batch=True),
}


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_forms(form, exporter, small, small_input):
    plan = dataclasses.replace(FORMS[form], exporter=exporter)
    if exporter == "dynamo" and form not in ("any batch, nms", "any batch, bytes", "suppressed"):
        pytest.skip("slow, and the same graph once read; three forms stand for all")
    exported = export(small, CLASSES, small_input, plan)
    card = exported.card
    for count in {
        plan.batch_size,
        1 if plan.dynamic_batch else plan.batch_size,
        4 if plan.dynamic_batch else 1,
    }:
        if count != plan.batch_size and not plan.dynamic_batch:
            continue
        images = painted(count)
        blob = preprocessed(card.input, images, "bytes" if card.form == "uint8" else "planes")
        scores, boxes = run_torch(small, small_input, images, card.input)
        check_form(exported, run(exported.model, blob), scores, boxes)


def check_form(exported, found, scores, boxes):
    card = exported.card
    assert (
        list(found)
        == {
            "detectnet": ["scores", "boxes"],
            "uint8": ["scores", "boxes"],
            "raw": ["scores", "locations"],
            "nms": ["boxes", "scores", "labels", "images"],
        }[card.form]
    )
    if card.form == "nms":
        assert found["labels"].dtype == found["images"].dtype == np.int64
        total = 0
        for i in range(len(scores)):
            mine = found["images"] == i
            wanted_boxes, wanted, labels = box_math.select(
                scores[i], boxes[i], 0.2, 0.45, candidate_size=10**6
            )
            order = np.argsort(-found["scores"][mine], kind="stable")
            np.testing.assert_allclose(found["scores"][mine][order], wanted, atol=1e-5)
            np.testing.assert_array_equal(found["labels"][mine][order], labels)
            np.testing.assert_allclose(found["boxes"][mine][order], wanted_boxes, atol=1e-5)
            total += mine.sum()
        assert total == len(found["scores"]) > 3
        return
    if card.suppressed:
        check_suppressed(found, scores, boxes)
        return
    if card.form == "raw":
        priors = make_priors(card.priors, card.cells, card.input.size)
        found["boxes"] = box_math.decode(found["locations"], priors, card.variances)
    np.testing.assert_allclose(found["scores"], scores, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found["boxes"], boxes, atol=1e-4, rtol=0)


def check_suppressed(found, scores, boxes):
    """What is left are our own detections, one row each; nothing overlaps any more."""
    wanted_boxes, wanted, labels = box_math.select(scores[0], boxes[0], 0.05, 0.45)
    alive = found["scores"][0].max(axis=1) > 0.05
    mine, places = found["scores"][0][alive], found["boxes"][0][alive]
    assert ((mine > 0).sum(axis=1) == 1).all()
    order = np.argsort(-mine.max(axis=1), kind="stable")
    assert len(wanted) > 5
    np.testing.assert_allclose(mine.max(axis=1)[order], wanted, atol=1e-5)
    np.testing.assert_array_equal(mine.argmax(axis=1)[order], labels)
    np.testing.assert_allclose(places[order], wanted_boxes, atol=1e-5)


@pytest.mark.parametrize("name", ["mb2-ssd-lite", "vgg16-ssd"])
def test_detectnets_normalisation_is_undone(name):
    """Of pixels 0..255 normalised as detectNet does it, the file makes what training saw; also at the border."""
    net = build(name, 2, (268, 268))
    trained = trained_on(net)
    given = given_input(trained, Plan(target="detectnet"))
    assert given.mean == given.std == (127.5, 127.5, 127.5)
    seen = []
    module = wrap(net, "detectnet", trained, given, False, 0.45, 200)
    module.inner = Recorder(seen)
    module(torch.from_numpy(preprocessed(given, [test_image((268, 268))])))
    expected = preprocessed(trained, [test_image((268, 268))])
    np.testing.assert_allclose(seen[0].numpy(), expected, atol=3e-5 if name[0] == "v" else 1e-6, rtol=1e-6)


@pytest.mark.parametrize("name, factor", [("mb2-ssd-lite", 2), ("vgg16-ssd", 3)])
def test_an_averaging_file_shows_its_net_the_means_of_blocks(name, factor):
    net = build(name, 2, (268, 268))
    trained = trained_on(net)
    given = given_input(trained, Plan(target="detectnet", oversample=factor))
    assert given.size == (268 * factor, 268 * factor) and given.mean == (127.5,) * 3
    seen = []
    module = wrap(net, "detectnet", trained, given, False, 0.45, 200)
    module.inner = Recorder(seen)
    image = test_image(given.size)
    module(torch.from_numpy(preprocessed(given, [image])))
    means = image.reshape(268, factor, 268, factor, 3).astype(np.float64).mean(axis=(1, 3))
    expected = ((means - trained.mean) / trained.std).transpose(2, 0, 1)
    np.testing.assert_allclose(seen[0][0].numpy(), expected, atol=1e-4 if name[0] == "v" else 1e-6)


class Recorder(torch.nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, images):
        self.seen.append(images)
        return images, images


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 18, 23])
def test_unrolled_nms_at_every_opset(opset, small, small_input):
    plan = Plan(form="detectnet", suppress=True, opset=opset)
    exported = export(small, CLASSES, small_input, plan)
    scores, boxes = run_torch(small, small_input, painted(1))
    check_suppressed(run(exported.model, preprocessed(small_input, painted(1))), scores, boxes)
    used = {node.op_type for node in exported.model.graph.node}
    assert used <= PLAIN_ONLY | graphs.SELECTING and "TopK" in used


def test_unrolled_nms_against_ours_on_crowded_boxes(small):
    """Boxes with long chains of overlaps, boxes without area, absurd ones, equal ones."""
    module = Suppressed(torch.nn.Identity(), small, 0.45, candidates=60, steps=60)
    enough = Suppressed(torch.nn.Identity(), small, 0.45, candidates=60)
    rng = np.random.default_rng(5)
    agreed = 0
    for _ in range(20):
        low = rng.uniform(-0.1, 0.6, (3, 60, 2))
        boxes = np.concatenate([low, low + rng.uniform(-0.02, 0.5, (3, 60, 2))], axis=2).astype(np.float32)
        boxes[:, 5] = boxes[:, 2]
        boxes[:, 9] = [-40, -40, 60, 60]
        expected = box_math.suppress(boxes, 0.45)
        with torch.no_grad():
            exact = module.stays(torch.from_numpy(boxes))[:, :, 0].numpy() > 0.5
            usual = enough.stays(torch.from_numpy(boxes))[:, :, 0].numpy() > 0.5
        inside = np.ones(60, bool)
        inside[9] = False  # larger than three images: its IoU with others differs, and it hardly matters
        np.testing.assert_array_equal(exact[:, inside], expected[:, inside])
        agreed += (usual == expected)[:, inside].mean()
    assert agreed / 20 > 0.995


def test_half_precision_cannot_break_unrolled_nms(small):
    """detectNet builds float16 engines: no infinity, no NaN, and nearly the same boxes."""
    module = Suppressed(torch.nn.Identity(), small, 0.45, candidates=60)
    rng = np.random.default_rng(6)
    low = rng.uniform(-0.1, 0.7, (3, 60, 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 0.3, (3, 60, 2))], axis=2).astype(np.float32)
    boxes[:, 7] = [-9, -9, 9, 9]
    boxes[:, 8] = 0.5
    expected = box_math.suppress(boxes, 0.45)
    half = copy.deepcopy(module).half().stays(torch.from_numpy(boxes).half())[:, :, 0]
    assert torch.isfinite(half).all()
    assert ((half.float().numpy() > 0.5) == expected).mean() > 0.98


# --- plans --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target, opset",
    [("any", 11), ("jp44", 11), ("jp46", 13), ("jp5", 17), ("jp6", 17), ("jp7", 17), ("detectnet", 11)],
)
def test_targets(target, opset, small, small_input):
    exported = export(small, CLASSES, small_input, Plan(target=target))
    assert graphs.opset_of(exported.model) == exported.card.opset == opset
    assert exported.model.ir_version == graphs.IR_VERSIONS[opset]
    assert exported.card.target == target
    assert set(TARGETS) == {"any", "jp44", "jp46", "jp5", "jp6", "jp7", "detectnet"}


def test_ir_versions_are_those_of_the_opsets():
    assert graphs.IR_VERSIONS == {
        **{9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8},
        **{18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11},
    }


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"form": "boxes"}, "form 'boxes' is none of detectnet, raw, nms, uint8"),
        ({"target": "jp3"}, "target 'jp3' is none of any, jp44"),
        ({"exporter": "tvm"}, "exporter 'tvm' is none of auto, torchscript, dynamo"),
        ({"opset": 8}, "opset 8 is outside 9..23"),
        ({"opset": 24}, "opset 24 is outside 9..23"),
        ({"opset": 13, "target": "jp44"}, "opset 13 does not run on target jp44, whose newest is 11"),
        ({"form": "nms", "target": "jp5"}, "--nms does not run on target jp5"),
        ({"form": "uint8", "target": "jp46"}, "--uint8 does not run on target jp46"),
        ({"form": "raw", "target": "detectnet"}, "detectNet takes one image"),
        ({"dynamic_batch": True, "target": "detectnet"}, "detectNet takes one image"),
        ({"batch_size": 2, "target": "detectnet"}, "detectNet takes one image"),
        ({"suppress": True, "form": "raw"}, "--suppress works on one image"),
        ({"suppress": True, "dynamic_batch": True}, "--suppress works on one image"),
        ({"batch_size": 0}, "batch size 0 is below 1"),
        ({"batch_size": 2, "dynamic_batch": True}, "leave --batch_size out"),
        ({"oversample": 0}, "--oversample 0 is outside 1..4"),
        ({"oversample": 5}, "--oversample 5 is outside 1..4"),
        ({"oversample": 2, "form": "raw"}, "--oversample does not go with --raw"),
        ({"oversample": 2, "form": "uint8"}, "--oversample does not go with --uint8"),
        ({"candidates": 0}, "0 candidates"),
        ({"candidates": 4000}, "4000 candidates for NMS are outside 1..3840"),
        ({"threshold": 1.0}, "threshold 1.0 is outside"),
        ({"iou_threshold": 0.0}, "IoU threshold 0.0 is outside"),
        ({"form": "nms", "opset": 9}, "opset 10"),
    ],
)
def test_plans_that_make_no_sense(settings, message, small, small_input):
    with pytest.raises(UserError, match=re.escape(message)):
        export(small, CLASSES, small_input, Plan(**settings))


@pytest.mark.parametrize("classes", [CLASSES[:3], (*CLASSES, "more")])
def test_wrong_class_counts(classes, small, small_input):
    with pytest.raises(UserError, match=f"scores 4 classes .* but {len(classes)} names are given"):
        export(small, classes, small_input)


def test_when_no_exporter_works(monkeypatch, small, small_input):
    def broken(*_, **__):
        raise RuntimeError("no exporter today\nand a stack trace")

    monkeypatch.setattr(torch.onnx, "export", broken)
    with pytest.raises(UserError, match="torchscript: no exporter today; dynamo: no exporter today. Is onnx"):
        export(small, CLASSES, small_input)


def test_the_second_exporter_stands_in_for_the_first(monkeypatch):
    """Where torch no longer has the first. On a net of one layer: tracing a whole one takes seconds."""
    pytest.importorskip("onnxscript")
    own = torch.onnx.export

    def newer(*arguments, dynamo=True, **settings):
        if not dynamo:
            raise TypeError("export() has no argument dynamo=False")
        return own(*arguments, dynamo=True, **settings)

    monkeypatch.setattr(torch.onnx, "export", newer)
    model = traced(torch.nn.ReLU(), torch.zeros(1, 3, 4, 4), ("scores",), Plan())
    assert model.producer_name == "pytorch" and "Relu" in [node.op_type for node in model.graph.node]
    with pytest.raises(UserError, match=r"torchscript: export\(\) has no argument"):
        traced(torch.nn.ReLU(), torch.zeros(1, 3, 4, 4), ("scores",), Plan(exporter="torchscript"))


# --- what the file says -------------------------------------------------------------------------------------


def test_the_same_bytes_every_time(small, small_input):
    first, second = (
        export(small, CLASSES, small_input, Plan(target="detectnet", suppress=True)).model.SerializeToString(
            deterministic=True
        )
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_nothing_of_this_machine_is_inside(exporter, small, small_input):
    model = export(small, CLASSES, small_input, Plan(exporter=exporter)).model
    content = model.SerializeToString()
    here = [str(Path.cwd()), str(Path.home()), *site.getsitepackages(), str(Path(torch.__file__).parent)]
    for trace in [*here, os.environ.get("USER") or "no user", ".py", "Traceback", "site-packages"]:
        assert trace.encode() not in content, trace
    assert not model.graph.value_info and not model.functions and not model.doc_string
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not any(each.external_data for each in model.graph.initializer)
    numbered = Counter(int(node.name.rpartition("_")[2]) for node in model.graph.node)
    assert sorted(numbered) == list(range(len(model.graph.node)))


def test_metadata(small, small_input):
    exported = export(
        small, CLASSES, small_input, Plan(form="raw"), data={"name": "toys"}, metrics={"mAP": 0.5}
    )
    found = {each.key: each.value for each in exported.model.metadata_props}
    card = ModelCard.from_json(found[METADATA_KEY])
    assert card == ModelCard.from_json(exported.card.to_json())
    assert (card.net, card.classes, card.input) == ("mb2-ssd-lite", CLASSES, small_input)
    assert (card.data, card.metrics) == ({"name": "toys"}, {"mAP": 0.5})
    assert card.options["width_mult"] == 0.5 and card.variances == (0.1, 0.2)
    assert card.weights_sha256 == weights_sha256(small)
    np.testing.assert_array_equal(make_priors(card.priors, card.cells, card.input.size), small.priors.numpy())
    assert found["labels"].split("\n") == list(CLASSES)
    assert json.loads(found[METADATA_KEY])["classes"] == list(CLASSES)
    assert "128 x 96" in found["input"]


def test_the_self_test_is_what_torch_gave(small, small_input):
    for plan in (Plan(), Plan(form="uint8"), Plan(target="detectnet")):
        card = export(small, CLASSES, small_input, plan).card
        scores, boxes = run_torch(small, small_input, [test_image((96, 128))])
        assert len(card.self_test.probes) >= 8
        assert card.self_test.worst(scores[0], boxes[0]) <= 1e-4
        assert card.self_test.worst(scores[0] + 0.01, boxes[0]) > card.self_test.tolerance


@pytest.mark.parametrize(
    "plan", [Plan(form="nms", threshold=0.2), Plan(suppress=True)], ids=["nms", "suppress"]
)
def test_the_self_test_of_a_file_with_nms_inside(plan, small, small_input, tmp_path):
    """Its rows stand in no fixed order: the best of each class is probed."""
    exported = export(small, CLASSES, small_input, plan)
    assert {probe.output for probe in exported.card.self_test.probes} == {"scores", "boxes"}
    assert all(-len(CLASSES) < probe.prior < 0 for probe in exported.card.self_test.probes)
    path = tmp_path / "net.onnx"
    path.write_bytes(exported.model.SerializeToString())
    open_detector(path, "onnxruntime")  # passes it
    wrong = dataclasses.replace(
        exported.card,
        self_test=dataclasses.replace(
            exported.card.self_test,
            probes=tuple(p._replace(value=p.value + 0.01) for p in exported.card.self_test.probes),
        ),
    )
    write_metadata(exported.model, wrong)
    path.write_bytes(exported.model.SerializeToString())
    with pytest.raises(UserError, match="self-test .* is off by 0.01"):
        open_detector(path, "onnxruntime")


def test_the_hash_hangs_on_every_weight(small):
    other = build("mb2-ssd-lite", len(CLASSES), (96, 128), width_mult=0.5)
    other.load_state_dict(small.state_dict())
    assert weights_sha256(other) == weights_sha256(small)
    with torch.no_grad():
        other.regression_headers[-1].bias[-1] += 1
    assert weights_sha256(other) != weights_sha256(small)


def test_the_net_itself_stays_as_it_is(small, small_input):
    before = {key: value.clone() for key, value in small.state_dict().items()}
    export(small, CLASSES, small_input, Plan(target="detectnet", suppress=True))
    after = small.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
