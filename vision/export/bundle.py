"""A folder with everything that a device needs of an exported net, and the proof that it works there."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np

from vision.card import ModelCard, sidecar
from vision.data.labels import write_labels
from vision.detector import Detections
from vision.errors import UserError
from vision.export import example
from vision.export.files import write_text
from vision.runtimes import open_detector
from vision.spec import InputSpec, make_priors

PathLike = Union[str, Path]

MODEL, LABELS, PICTURE, EXPECTED, EXAMPLE = (
    "model.onnx",
    "labels.txt",
    "test.png",
    "expected.json",
    "detect.py",
)
DEEPSTREAM, PARSER, TRITON = "config_infer_primary.txt", "nvdsinfer_ssd.cpp", "config.pbtxt"

LOWEST_THRESHOLD = 0.01
"""Where nothing is found above the recommended threshold, the best that is found above this is expected."""

FEW = 20
"""Detections that are then written down."""


def write_bundle(folder: PathLike, model: PathLike, card: ModelCard, picture: np.ndarray) -> Path:
    """Make a deployment folder, whole or not at all. One that was made here before is replaced.

    Args:
        model: the exported file; a copy goes into the folder.
        picture: RGB uint8 (H, W, 3), what the device is to be tried with.

    Raises UserError when the folder holds something else, or the disk refuses.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --bundle names a folder")
    if folder.is_dir() and any(folder.iterdir()) and not sidecar(folder / MODEL).exists():
        raise UserError(f"{folder} holds other files; --bundle makes a folder of its own, name a new one")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        temporary.mkdir(parents=True)
        shutil.copyfile(str(model), str(temporary / MODEL))
        _fill(temporary, Path(model), card, picture)
        if folder.exists():
            shutil.rmtree(str(folder))
        temporary.replace(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(str(temporary))
    return folder


def _fill(folder: Path, model: Path, card: ModelCard, picture: np.ndarray) -> None:
    write_text(sidecar(folder / MODEL), card.to_json() + "\n")
    write_labels(folder / LABELS, card.classes)
    if card.form == "raw":
        np.save(str(folder / "priors.npy"), make_priors(card.priors, card.cells, card.input.size))
    cv2.imwrite(str(folder / PICTURE), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    write_text(folder / EXPECTED, json.dumps(expected(model, card, picture), indent=1) + "\n")
    shutil.copyfile(example.__file__, str(folder / EXAMPLE))
    deepstream = deepstream_config(card)
    if deepstream is not None:
        write_text(folder / DEEPSTREAM, deepstream)
        write_text(folder / PARSER, DEEPSTREAM_PARSER)
    write_text(folder / TRITON, triton_config(card))
    write_text(folder / "README.md", readme(card, deepstream is not None))


def expected(model: PathLike, card: ModelCard, picture: np.ndarray) -> Dict[str, Any]:
    """What the file gives for the picture, in onnxruntime."""
    detector = open_detector(model, "onnxruntime")
    threshold = card.threshold
    found: Detections = detector.detect(picture, threshold, card.iou_threshold)
    if not len(found):
        # The FEW best, with a threshold halfway to the next one, so that rounding changes nothing.
        found = detector.detect(picture, LOWEST_THRESHOLD, card.iou_threshold)
        threshold = LOWEST_THRESHOLD
        if len(found) > FEW:
            threshold = float(found.scores[FEW - 1] + found.scores[FEW]) / 2
            found = detector.detect(picture, threshold, card.iou_threshold)
    return {
        "picture": PICTURE,
        "threshold": threshold,
        "detections": [[name, round(score, 5), *np.round(box, 2).tolist()] for name, score, box in found],
    }


# --- other people's configurations --------------------------------------------------------------------------


def one_scale(spec: InputSpec) -> Optional[float]:
    """1 / std where it is the same for all channels, else None."""
    return 1.0 / spec.std[0] if len(set(spec.std)) == 1 else None


def deepstream_config(card: ModelCard) -> Optional[str]:
    """A configuration of DeepStream's nvinfer: y = net-scale-factor * (x - offsets). None for forms it cannot run."""
    scale = one_scale(card.input)
    if card.form != "detectnet" or scale is None:
        return None
    height, width = card.input.size
    offsets = ";".join(f"{value:g}" for value in card.input.mean)
    batch = 1 if card.dynamic_batch else card.batch_size
    return f"""# NVIDIA DeepStream, element nvinfer. First build the parser of the net's outputs:
#   g++ -std=c++17 -shared -fPIC -o libnvdsinfer_ssd.so {PARSER} -I /opt/nvidia/deepstream/deepstream/sources/includes
[property]
onnx-file={MODEL}
labelfile-path={LABELS}
batch-size={batch}
infer-dims=3;{height};{width}
# 0 is RGB
model-color-format=0
net-scale-factor={scale!r}
offsets={offsets}
maintain-aspect-ratio=0
scaling-filter=1
# 2 is float16
network-mode=2
network-type=0
num-detected-classes={len(card.classes)}
output-blob-names=scores;boxes
parse-bbox-func-name=NvDsInferParseSSD
custom-lib-path=libnvdsinfer_ssd.so
# 2 is NMS
cluster-mode=2

[class-attrs-all]
pre-cluster-threshold={card.threshold:g}
nms-iou-threshold={card.iou_threshold:g}
topk=200
"""


DEEPSTREAM_PARSER = """// For DeepStream's nvinfer: objects from the net's outputs,
// "scores" (P, C) and "boxes" (P, 4; corners as fractions).
#include <algorithm>
#include <cstring>
#include <vector>
#include "nvdsinfer_custom_impl.h"

extern "C" bool NvDsInferParseSSD(std::vector<NvDsInferLayerInfo> const &layers,
                                  NvDsInferNetworkInfo const &network,
                                  NvDsInferParseDetectionParams const &parameters,
                                  std::vector<NvDsInferParseObjectInfo> &objects)
{
    const NvDsInferLayerInfo *scores = nullptr, *boxes = nullptr;
    for (auto const &layer : layers) {
        if (!std::strcmp(layer.layerName, "scores")) scores = &layer;
        if (!std::strcmp(layer.layerName, "boxes")) boxes = &layer;
    }
    if (!scores || !boxes || scores->inferDims.numDims < 2) return false;

    const unsigned rank = scores->inferDims.numDims;
    const unsigned priors = scores->inferDims.d[rank - 2], classes = scores->inferDims.d[rank - 1];
    const float *score = static_cast<const float *>(scores->buffer);
    const float *box = static_cast<const float *>(boxes->buffer);
    const float width = network.width, height = network.height;
    for (unsigned p = 0; p < priors; ++p, score += classes, box += 4) {
        for (unsigned c = 1; c < classes; ++c) {  // 0 is the background
            if (c >= parameters.perClassPreclusterThreshold.size() ||
                score[c] <= parameters.perClassPreclusterThreshold[c]) continue;
            const float x1 = std::clamp(box[0], 0.f, 1.f) * width, y1 = std::clamp(box[1], 0.f, 1.f) * height;
            const float x2 = std::clamp(box[2], 0.f, 1.f) * width, y2 = std::clamp(box[3], 0.f, 1.f) * height;
            if (x2 <= x1 || y2 <= y1) continue;
            NvDsInferParseObjectInfo object{};
            object.classId = c;
            object.left = x1;
            object.top = y1;
            object.width = x2 - x1;
            object.height = y2 - y1;
            object.detectionConfidence = score[c];
            objects.push_back(object);
        }
    }
    return true;
}
CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(NvDsInferParseSSD);
"""


def triton_config(card: ModelCard) -> str:
    """A configuration of NVIDIA Triton's onnxruntime backend.

    Triton does not normalise images; what clients must do stands in `parameters`: (x - offsets) * scale.
    """
    height, width = card.input.size
    priors: Any = (
        -1
        if card.suppressed
        else sum(rows * columns * layer.per_cell for layer, (rows, columns) in zip(card.priors, card.cells))
    )
    image = [height, width, 3] if card.form == "uint8" else [3, height, width]
    outputs: List[Tuple[str, str, Sequence[int]]]
    if card.form == "nms":
        outputs = [
            ("boxes", "TYPE_FP32", [4]),
            ("scores", "TYPE_FP32", []),
            ("labels", "TYPE_INT64", []),
            ("images", "TYPE_INT64", []),
        ]
    else:
        second = "locations" if card.form == "raw" else "boxes"
        outputs = [
            ("scores", "TYPE_FP32", [priors, len(card.classes)]),
            (second, "TYPE_FP32", [priors, 4]),
        ]
    # With a batch size of its own, Triton leaves the first dimension out of `dims`. The detections of the form
    # "nms" have none, and a static batch is an ordinary dimension.
    batched = card.dynamic_batch and card.form != "nms"
    first = [] if batched else [-1 if card.dynamic_batch else card.batch_size]
    rows = [-1] if card.form == "nms" else first
    lines = [
        f'name: "{card.net}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {8 if batched else 0}",
        _triton_tensor(
            "input", "input_0", "TYPE_UINT8" if card.form == "uint8" else "TYPE_FP32", [*first, *image]
        ),
    ]
    lines += [_triton_tensor("output", name, kind, [*rows, *dims]) for name, kind, dims in outputs]
    if batched:
        lines.append("dynamic_batching { }")
    scale = [1.0 / value for value in card.input.std]
    for key, values in (("offsets", card.input.mean), ("scale", scale)):
        text = " ".join(repr(float(value)) for value in values)
        lines.append(f'parameters: {{ key: "{key}" value: {{ string_value: "{text}" }} }}')
    lines.append('parameters: { key: "color_format" value: { string_value: "RGB" } }')
    return "\n".join(lines) + "\n"


def _triton_tensor(kind: str, name: str, dtype: str, dims: Sequence[int]) -> str:
    sides = ", ".join(str(side) for side in dims)
    return f'{kind} [ {{ name: "{name}" data_type: {dtype} dims: [ {sides} ] }} ]'


# --- for people ---------------------------------------------------------------------------------------------


def readme(card: ModelCard, has_deepstream: bool) -> str:
    """What is in the folder, and the commands."""
    height, width = card.input.size
    mean = " ".join(f"{value:g}" for value in card.input.mean)
    std = " ".join(f"{value:g}" for value in card.input.std)
    takes = (
        f"RGB bytes, {width} x {height} pixels (width x height)"
        if card.form == "uint8"
        else f"RGB, {width} x {height} pixels (width x height), minus {mean}, divided by {std}, "
        "as (N, 3, height, width)"
    )
    gives = {
        "detectnet": "`scores` (N, P, C) after softmax and `boxes` (N, P, 4), corners as fractions of the image",
        "uint8": "`scores` (N, P, C) after softmax and `boxes` (N, P, 4), corners as fractions of the image",
        "raw": "`scores` (N, P, C) after softmax and `locations` (N, P, 4), to be decoded with `priors.npy`",
        "nms": "the detections: `boxes` (K, 4) corners as fractions, `scores`, `labels`, `images` (K,)",
    }[card.form]
    text = f"""# {card.net}: {", ".join(card.classes[1:])}

`{MODEL}` (ONNX, opset {card.opset}) takes {takes}; images are stretched, not letterboxed. It gives {gives}.
Class 0 is the background. All this also stands in `{MODEL}.json`.

## Try it here

    pip install numpy opencv-python-headless onnxruntime
    python {EXAMPLE}                 # {PICTURE}, compared with {EXPECTED}
    python {EXAMPLE} PICTURE

With the `vision` package the file is used like a checkpoint, in any runtime that is installed:

    python run_ssd_example.py {MODEL} PICTURE
    python eval_ssd.py --trained_model {MODEL} --dataset DATASET
"""
    if card.form == "detectnet" and not card.dynamic_batch and card.batch_size == 1:
        text += f"""
## NVIDIA's detectnet (jetson-inference)

    detectnet --model={MODEL} --labels={LABELS} --input-blob=input_0 --output-cvg=scores --output-bbox=boxes IN OUT
"""
        if card.target != "detectnet":
            text += "\nIt normalises and merges boxes in its own way; `--target detectnet` at export allows for it.\n"
    if has_deepstream:
        text += f"""
## DeepStream

    g++ -std=c++17 -shared -fPIC -o libnvdsinfer_ssd.so {PARSER} -I /opt/nvidia/deepstream/deepstream/sources/includes
    gst-launch-1.0 ... ! nvinfer config-file-path={DEEPSTREAM} ! ...
"""
    text += f"""
## Triton

    mkdir -p repository/{card.net}/1
    cp {MODEL} repository/{card.net}/1/model.onnx
    cp {TRITON} repository/{card.net}/
    tritonserver --model-repository=repository
"""
    return text
