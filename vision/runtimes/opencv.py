"""ONNX files in OpenCV's own DNN module: nothing else to install, slower than ONNX Runtime."""

import logging
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import cv2
import numpy as np

from vision.detector import Detector
from vision.errors import UserError
from vision.runtimes.exported import Exported, Infer, describe, finish, first_line

log = logging.getLogger(__name__)

TARGETS: Dict[str, Tuple[str, str]] = {
    "cpu": ("DNN_BACKEND_OPENCV", "DNN_TARGET_CPU"),
    "cuda": ("DNN_BACKEND_CUDA", "DNN_TARGET_CUDA"),
    "cuda_fp16": ("DNN_BACKEND_CUDA", "DNN_TARGET_CUDA_FP16"),
    "opencl": ("DNN_BACKEND_OPENCV", "DNN_TARGET_OPENCL"),
}
"""Short names -> OpenCV's names of backend and target."""

ELSE = "Use ONNX Runtime (pip install onnxruntime), or another OpenCV (4.8 or newer)."


def load(
    path: Union[str, Path],
    labels: Optional[Union[str, Path]] = None,
    net: Optional[str] = None,
    size: Optional[Tuple[int, int]] = None,
    device: Optional[str] = None,
    batch_size: int = 8,
    provider: Optional[str] = None,
    threads: Optional[int] = None,
    **told: Any,
) -> Detector:
    """An ONNX file -> Detector.

    Args:
        path, labels, net, size, told: see `vision.runtimes.exported.describe`.
        device, provider: a name of TARGETS; None takes CUDA where OpenCV was built for it, else the CPU.
        batch_size: images read ahead; the net sees one at a time.
        threads: of all of OpenCV in this process; None leaves them.

    Raises UserError, also for a version of OpenCV that is known to compute wrong results.
    """
    model = describe(path, labels, net, size, **told)
    check_version(cv2.__version__, model)
    target = choose_target(provider or device)
    if threads is not None:
        if threads < 1:
            raise UserError(f"{threads} threads are too few")
        cv2.setNumThreads(threads)
    runtime = f"OpenCV {cv2.__version__}"
    try:
        # From memory: OpenCV cannot open every file name on every system.
        graph = cv2.dnn.readNetFromONNX(np.frombuffer(model.path.read_bytes(), np.uint8))
        if target != "cpu":  # the default, which OpenCV 5 does not like to be told
            backend, kind = TARGETS[target]
            graph.setPreferableBackend(getattr(cv2.dnn, backend))
            graph.setPreferableTarget(getattr(cv2.dnn, kind))
    except (cv2.error, OSError) as error:
        raise UserError(f"{model.path}: {runtime} cannot load it ({_reason(error)}). {ELSE}") from error
    slack = 1.0 if target == "cpu" else 20.0
    return finish(
        model,
        _infer(graph, model),
        runtime,
        target.upper(),
        batch_size,
        batch=model.batch or 1,
        slack=slack,
        hint=ELSE,
    )


def check_version(version: str, model: Exported) -> None:
    """Refuse what is known to go wrong without a word.

    Raises UserError for OpenCV 4.7 (its depthwise and Winograd convolutions are wrong by 2e-2, opencv #23151),
    for 4.5.3 and older (no Exp layer), and for files without a self-test on versions that compute some nets
    wrongly: on those the self-test decides.
    """
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
    if numbers[:2] == (4, 7):
        raise UserError(
            f"{model.path}: OpenCV {version} computes depthwise convolutions wrongly (opencv issue 23151), so every "
            f"box would be off. {ELSE}"
        )
    if numbers < (4, 5, 4):
        raise UserError(f"{model.path}: OpenCV {version} lacks layers that this net needs. {ELSE}")
    if model.form == "nms":
        raise UserError(
            f"{model.path} has NMS inside, which OpenCV cannot run. Export it without --nms, or use ONNX Runtime."
        )
    tested = model.card is not None and model.card.self_test is not None
    if numbers[0] == 4 and not tested:
        # 3 x 3 convolutions on a 1 x 1 map: 4e-2 to 8e-1, silently, up to 4.12.
        message = f"{model.path} carries no self-test, and OpenCV {version} computes some nets wrongly without a word"
        if numbers < (4, 8):
            raise UserError(f"{message}. {ELSE}")
        log.warning("%s; compare with another runtime before you trust it", message)


def devices() -> List[str]:
    """Names that `provider` takes here."""
    return [target for target in TARGETS if _is_there(target)]


def choose_target(name: Optional[str]) -> str:
    """A name of TARGETS. Raises UserError for one that is not there."""
    if name is None:
        return "cuda" if _is_there("cuda") else "cpu"
    known, _, number = name.lower().partition(":")
    if number not in ("", "0"):
        raise UserError(
            f"OpenCV runs nets on the first device only, not on {name!r}; set CUDA_VISIBLE_DEVICES"
        )
    if known not in TARGETS:
        raise UserError(f"OpenCV has no target {name!r}; known: {', '.join(TARGETS)}")
    if not _is_there(known):
        there = ", ".join(devices())
        raise UserError(f"this OpenCV ({cv2.__version__}) was built without {name}; there are: {there}")
    return known


def _is_there(target: str) -> bool:
    backend, kind = TARGETS[target]
    try:
        return getattr(cv2.dnn, kind) in cv2.dnn.getAvailableTargets(getattr(cv2.dnn, backend))
    except (AttributeError, cv2.error):
        return target == "cpu"


def _infer(graph: Any, model: Exported) -> Infer:
    def infer(blob: np.ndarray) -> List[np.ndarray]:
        graph.setInput(blob, model.input_name)
        # Copies: OpenCV gives views of buffers that its next call overwrites.
        return [np.array(output) for output in graph.forward(list(model.outputs))]

    return infer


def _reason(error: BaseException) -> str:
    """OpenCV's message without its source file and line; what is wrong stands in the line behind the first."""
    lines = [line.strip().lstrip("> ") for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"^OpenCV\([^)]*\)\s*\S*?:\d+:\s*", "", " ".join(lines[:2]))
    return text[:300] or first_line(error)
