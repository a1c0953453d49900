"""Tiny ONNX detectors of every form, made by hand: what runs them is tested, not what exports them."""

import numpy as np
import pytest

from vision.card import METADATA_KEY, ModelCard, make_self_test, test_image, write_sidecar
from vision.detector import Detector
from vision.spec import InputSpec, PriorLayer, make_priors

CLASSES = ("BACKGROUND", "cat", "dog")
SIZE = (64, 96)
LAYERS = (PriorLayer(None, 60, 100, (2,)), PriorLayer(None, 120, 200, (2,)))
CELLS = ((3, 4), (1, 1))
PRIORS = make_priors(LAYERS, CELLS, SIZE)
VARIANCES = (0.1, 0.2)


class Tiny:
    """A "net" in which every prior's scores and box hang on the image's three mean values."""

    classes, size, priors = CLASSES, SIZE, PRIORS
    input = InputSpec(*SIZE)

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        count = len(PRIORS)
        self.for_scores = rng.normal(0, 6, (3, count * len(CLASSES))).astype(np.float32)
        self.for_locations = rng.normal(0, 1, (3, count * 4)).astype(np.float32)

    def truth(self, blob):
        """In numpy: blob (N, 3, H, W) -> scores (N, P, C), boxes (N, P, 4)."""
        means = blob.mean(axis=(2, 3), dtype=np.float64)
        logits = (means @ self.for_scores).reshape(len(blob), -1, len(CLASSES))
        scores = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        locations = (means @ self.for_locations).reshape(len(blob), -1, 4)
        center = locations[..., :2] * 0.1 * PRIORS[:, 2:] + PRIORS[:, :2]
        half = np.exp(locations[..., 2:] * 0.2) * PRIORS[:, 2:] / 2
        return scores.astype(np.float32), np.concatenate([center - half, center + half], 2).astype(np.float32)

    def card(self, form="detectnet", **more):
        """What an exporter would write."""
        scores, boxes = self.truth(Detector(None, self.input, CLASSES).preprocess([test_image(SIZE)]))
        values = {
            "net": "mb1-ssd",
            "classes": CLASSES,
            "input": InputSpec(*SIZE, (0.0,) * 3, (1.0,) * 3) if form == "uint8" else self.input,
            "form": form,
            "priors": LAYERS,
            "cells": CELLS,
            "opset": 13,
            "self_test": None if form == "nms" else make_self_test(scores[0], boxes[0]),
        }
        return ModelCard(**{**values, **more})

    def save(
        self, path, form="detectnet", batch=1, card=None, beside=False, names=None, softmax=True, size=SIZE
    ):
        """Write it as ONNX; `card` into it, or `beside` it. Returns the path."""
        onnx = pytest.importorskip("onnx")
        from onnx import TensorProto, helper, numpy_helper

        weights, nodes = {}, []

        def constant(name, value):
            weights[name] = numpy_helper.from_array(np.asarray(value), name)
            return name

        def node(kind, inputs, output, **attributes):
            nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
            return output

        height, width = size
        n = batch if batch else "batch"
        if form == "uint8":
            image = helper.make_tensor_value_info("input_0", TensorProto.UINT8, [n, height, width, 3])
            x = node("Cast", ["input_0"], "as_float", to=TensorProto.FLOAT)
            x = node("Transpose", [x], "planes", perm=[0, 3, 1, 2])
            x = node("Sub", [x, constant("mean", np.float32(127))], "shifted")
            x = node("Div", [x, constant("std", np.float32(128))], "normalised")
        else:
            image = helper.make_tensor_value_info("input_0", TensorProto.FLOAT, [n, 3, height, width])
            x = "input_0"
        x = node("GlobalAveragePool", [x], "pooled")
        x = node("Reshape", [x, constant("flat", np.array([-1, 3]))], "means")
        count, classes = len(PRIORS), len(CLASSES)
        logits = node("MatMul", [x, constant("for_scores", self.for_scores)], "flat_logits")
        logits = node("Reshape", [logits, constant("as_scores", np.array([-1, count, classes]))], "logits")
        inside = form == "nms"
        scores = (
            node("Softmax", [logits], "all_scores" if inside else "scores", axis=2) if softmax else logits
        )
        locations = node("MatMul", [x, constant("for_locations", self.for_locations)], "flat_locations")
        locations = node("Reshape", [locations, constant("as_boxes", np.array([-1, count, 4]))], "locations")
        if form != "raw":
            center = node("Slice", [locations, *self._span(constant, 0, 2)], "raw_center")
            sides = node("Slice", [locations, *self._span(constant, 2, 4)], "raw_sides")
            center = node(
                "Mul", [center, constant("c_scale", PRIORS[None, :, 2:] * np.float32(0.1))], "scaled"
            )
            center = node("Add", [center, constant("p_center", PRIORS[None, :, :2])], "center")
            sides = node("Mul", [sides, constant("s_scale", np.float32(0.2))], "scaled_sides")
            sides = node("Exp", [sides], "grown")
            half = node("Mul", [sides, constant("p_half", PRIORS[None, :, 2:] / 2)], "half")
            low, high = node("Sub", [center, half], "low"), node("Add", [center, half], "high")
            locations = node("Concat", [low, high], "all_boxes" if inside else "boxes", axis=2)
        outputs = [(scores, [n, count, classes]), (locations, [n, count, 4])]
        if form == "nms":
            outputs = self._nms(node, constant, scores, locations)
        infos = [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name in ("labels", "images") else TensorProto.FLOAT, shape
            )
            for name, shape in outputs
        ]
        if names:
            for info, name in zip(infos, names):
                if info.name == name:
                    continue
                nodes.append(helper.make_node("Identity", [info.name], [name]))
                info.name = name
        graph = helper.make_graph(nodes, "tiny", [image], infos, list(weights.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
        if card is not None and not beside:
            helper.set_model_props(model, {METADATA_KEY: card.to_json()})
        path.write_bytes(model.SerializeToString())
        if card is not None and beside:
            write_sidecar(card, path)
        onnx.checker.check_model(model)
        return path

    @staticmethod
    def _span(constant, start, end):
        return [
            constant(f"{start}_{name}", np.array([v]))
            for name, v in (("from", start), ("to", end), ("axis", 2))
        ]

    @staticmethod
    def _nms(node, constant, scores, boxes):
        """Threshold 0.3, IoU 0.45; the labels are counted from 1, for class 0 is left out."""
        foreground = node("Slice", [scores, constant("one", np.array([1])), constant("end", np.array([99])),
                                    constant("axis2", np.array([2]))], "foreground")  # fmt: skip
        by_class = node("Transpose", [foreground], "by_class", perm=[0, 2, 1])
        chosen = node(
            "NonMaxSuppression",
            [boxes, by_class, constant("all", np.array([200])), constant("iou", np.float32([0.45])),
             constant("threshold", np.float32([0.3]))],
            "chosen",
        )  # fmt: skip
        images = node("Gather", [chosen, constant("i0", np.array(0))], "images", axis=1)
        label = node("Gather", [chosen, constant("i1", np.array(1))], "label_0", axis=1)
        node("Add", [label, constant("plus", np.array(1))], "labels")
        pairs = node("Gather", [chosen, constant("i02", np.array([0, 2]))], "pairs", axis=1)
        node("GatherND", [boxes, pairs], "boxes")
        node("GatherND", ["by_class", "chosen"], "scores")
        return [("boxes", ["k", 4]), ("scores", ["k"]), ("labels", ["k"]), (images, ["k"])]


@pytest.fixture
def tiny():
    return Tiny()


@pytest.fixture(scope="session")
def same_detections():
    """(a, b, threshold) -> whether both hold the same, but for rounding.

    Two boxes may overlap by just the limit of NMS; then rounding decides, which is let pass for 2 in a hundred.
    """

    def missing(found, among, threshold):
        """How many detections have no counterpart of the same class with nearly the same box and score."""
        count = 0
        for box, score, label in zip(found.boxes, found.scores, found.labels):
            near = (
                (among.labels == label)
                & (np.abs(among.boxes - box).max(axis=1, initial=0) < 0.2)
                & (np.abs(among.scores - score) < 1e-3)
            )
            # Those on the threshold itself may be on either side of it.
            count += not near.any() and score > threshold + 1e-3
        return count

    def same(a, b, threshold):
        most = 0.02 * len(a)
        return a.size == b.size and missing(a, b, threshold) <= most and missing(b, a, threshold) <= most

    return same


# --- real nets ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pictures():
    """(count, seed) -> RGB images, smooth and with edges: noise alone looks the same everywhere to a net."""

    def make(count, seed):
        rng = np.random.default_rng(seed)
        images = []
        for _ in range(count):
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            image = np.repeat(np.repeat(coarse, 40, axis=0), 40, axis=1)
            images.append(np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8))
        return images

    return make


@pytest.fixture(scope="session")
def lively(pictures):
    """(name, size, classes) -> a net with random weights that has something to say.

    Its norms know the data, and its outputs have spread, so that detections are many, of all classes and not on
    the edge of anything.
    """
    import torch

    from vision.ssd import build, output_layer

    def make(name, size, classes):
        torch.manual_seed(0)
        net = build(name, classes, size)
        spec = InputSpec(*size, net.spec.input.mean, net.spec.input.std)
        # The test image too, or the net would not be itself on it, and amplify every rounding.
        known = [*pictures(2, seed=1), test_image(size)]
        blob = torch.from_numpy(Detector(None, spec, CLASSES).preprocess(known))
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

    return make
