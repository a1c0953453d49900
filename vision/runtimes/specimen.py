"""A tiny detector as an ONNX file, written byte by byte: what the doctor lets every runtime run.

A device has no onnx package. The graph holds what detectors are made of - a depthwise and two 1 x 1 convolutions,
pooling, softmax, decoded boxes - and carries a card with a self-test whose numbers come from numpy.
"""

from pathlib import Path
from typing import List, Sequence, Tuple, Union

import numpy as np

from vision.card import METADATA_KEY, ModelCard, make_self_test, test_image
from vision.spec import BACKGROUND, InputSpec

SIDE, PRIORS, FEATURES = 32, 6, 6
CLASSES = (BACKGROUND, "thing")
OPSET, IR_VERSION = 11, 6

FLOAT, INT64 = 1, 7  # TensorProto.DataType
ATTRIBUTE_INT, ATTRIBUTE_INTS = 2, 7  # AttributeProto.AttributeType


def write_specimen(path: Union[str, Path]) -> Path:
    """Write the ONNX file, card included."""
    scores, boxes = truth(InputSpec(SIDE, SIDE))
    card = ModelCard(
        net="specimen",
        classes=CLASSES,
        input=InputSpec(SIDE, SIDE),
        opset=OPSET,
        self_test=make_self_test(scores, boxes),
    )
    Path(path).write_bytes(_model(card.to_json()))
    return Path(path)


def weights() -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of the depthwise convolution (FEATURES, 1, 3, 3), of scores and of boxes (out, FEATURES, 1, 1); prior boxes."""
    depthwise = np.cos(np.arange(FEATURES * 9) * 1.7).reshape(FEATURES, 1, 3, 3)
    for_scores = np.sin(np.arange(PRIORS * 2 * FEATURES) * 2.3).reshape(-1, FEATURES, 1, 1) * 4
    for_boxes = np.cos(np.arange(PRIORS * 4 * FEATURES) * 0.9).reshape(-1, FEATURES, 1, 1) * 0.2
    priors = np.tile([0.1, 0.2, 0.6, 0.9], (1, PRIORS, 1))
    return tuple(a.astype(np.float32) for a in (depthwise, for_scores, for_boxes, priors))  # type: ignore[return-value]


def truth(spec: InputSpec) -> Tuple[np.ndarray, np.ndarray]:
    """In numpy, for the test image: scores (PRIORS, 2) and corner boxes (PRIORS, 4)."""
    depthwise, for_scores, for_boxes, priors = weights()
    pixels = (test_image(spec.size).astype(np.float64) - spec.mean) / spec.std
    padded = np.pad(pixels.transpose(2, 0, 1), ((0, 0), (1, 1), (1, 1)))
    features = []
    for k in range(FEATURES):
        plane = padded[k * 3 // FEATURES]  # two features of each channel, as group 3 has it
        result = np.zeros((SIDE, SIDE))
        for y in range(3):
            for x in range(3):
                result += depthwise[k, 0, y, x] * plane[y : y + SIDE, x : x + SIDE]
        features.append(np.maximum(result, 0).mean())
    vector = np.array(features)
    logits = (for_scores[:, :, 0, 0] @ vector).reshape(PRIORS, 2)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    boxes = priors[0] + (for_boxes[:, :, 0, 0] @ vector).reshape(PRIORS, 4)
    return (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32), boxes.astype(np.float32)


# --- protobuf; field numbers as in onnx.proto ---------------------------------------------------------------


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: Union[bytes, str]) -> bytes:
    body = value.encode("utf-8") if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _tensor(name: str, array: np.ndarray) -> bytes:
    kind = INT64 if array.dtype == np.int64 else FLOAT
    dims = b"".join(_number(1, side) for side in array.shape)
    raw = array.astype("<i8" if kind == INT64 else "<f4").tobytes()
    return dims + _number(2, kind) + _bytes(8, name) + _bytes(9, raw)


def _value(name: str, shape: Sequence[int]) -> bytes:
    dims = b"".join(_bytes(1, _number(1, side)) for side in shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, FLOAT) + _bytes(2, dims)))


def _node(op: str, inputs: Sequence[str], output: str, *attributes: bytes) -> bytes:
    body = (
        b"".join(_bytes(1, name) for name in inputs) + _bytes(2, output) + _bytes(3, output) + _bytes(4, op)
    )
    return body + b"".join(_bytes(5, attribute) for attribute in attributes)


def _int(name: str, value: int) -> bytes:
    return _bytes(1, name) + _number(3, value) + _number(20, ATTRIBUTE_INT)


def _ints(name: str, values: Sequence[int]) -> bytes:
    return _bytes(1, name) + b"".join(_number(8, v) for v in values) + _number(20, ATTRIBUTE_INTS)


def _model(card: str) -> bytes:
    depthwise, for_scores, for_boxes, priors = weights()
    nodes: List[bytes] = [
        _node("Conv", ["input_0", "depthwise"], "conv", _int("group", 3), _ints("kernel_shape", (3, 3)),
              _ints("pads", (1, 1, 1, 1))),
        _node("Relu", ["conv"], "relu"),
        _node("GlobalAveragePool", ["relu"], "pooled"),
        _node("Conv", ["pooled", "for_scores"], "score_map", _ints("kernel_shape", (1, 1))),
        _node("Reshape", ["score_map", "score_shape"], "logits"),
        _node("Softmax", ["logits"], "scores", _int("axis", 2)),
        _node("Conv", ["pooled", "for_boxes"], "box_map", _ints("kernel_shape", (1, 1))),
        _node("Reshape", ["box_map", "box_shape"], "offsets"),
        _node("Add", ["offsets", "priors"], "boxes"),
    ]  # fmt: skip
    tensors = {
        "depthwise": depthwise,
        "for_scores": for_scores,
        "for_boxes": for_boxes,
        "priors": priors,
        "score_shape": np.array([1, PRIORS, 2], np.int64),
        "box_shape": np.array([1, PRIORS, 4], np.int64),
    }
    graph = b"".join(_bytes(1, node) for node in nodes) + _bytes(2, "specimen")
    graph += b"".join(_bytes(5, _tensor(name, array)) for name, array in tensors.items())
    graph += _bytes(11, _value("input_0", (1, 3, SIDE, SIDE)))
    graph += _bytes(12, _value("scores", (1, PRIORS, 2))) + _bytes(12, _value("boxes", (1, PRIORS, 4)))
    metadata = _bytes(1, METADATA_KEY) + _bytes(2, card)
    return (
        _number(1, IR_VERSION)
        + _bytes(2, "vision")
        + _bytes(7, graph)
        + _bytes(8, _bytes(1, "") + _number(2, OPSET))
        + _bytes(14, metadata)
    )
