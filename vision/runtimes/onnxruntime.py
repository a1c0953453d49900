"""ONNX files in ONNX Runtime."""

import logging
from pathlib import Path
from typing import Any, List, Optional, Tuple, Union

import numpy as np
import onnxruntime

from vision.detector import Detector
from vision.errors import UserError
from vision.onnx_header import read_header
from vision.runtimes.exported import Exported, Infer, describe, finish, first_line

log = logging.getLogger(__name__)

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Short names. Any other that the installed ONNX Runtime knows may be given in full."""

OF_ITS_OWN = ("cuda", "rocm", "cpu")
"""What is taken when nobody says: the first that is there. (TensorRT would build an engine for minutes first.)"""

SLACK = 20.0
"""On the self-test's tolerance where the provider may round to TF32 or half precision."""


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
        device: "cpu" or "cuda"; the same as `provider`.
        batch_size: images at once; a file with a static batch is called several times.
        provider: a name of PROVIDERS, or in full, or with a number ("cuda:1"); None takes a GPU where there is one,
            else the CPU.
        threads: of the CPU; None for one on each core.

    Raises UserError.
    """
    model = describe(path, labels, net, size, **told)
    name, number = split_number(provider or device)
    wanted = choose_provider(name, onnxruntime.get_available_providers())
    rounded = model.card is not None and model.card.precision in ("int8", "fp8")
    session = open_session(model.path, wanted, threads, number, as_written=rounded)
    used = session.get_providers()[0]
    if used != wanted:
        if provider or device:
            raise UserError(
                f"{model.path}: ONNX Runtime cannot use {wanted} here and fell back to {used}. Is the driver "
                "there, and of the version that this onnxruntime was built for?"
            )
        log.warning("%s: ONNX Runtime cannot use %s here, %s runs it", model.path, wanted, used)
    return finish(
        model,
        _infer(session, model),
        f"onnxruntime {onnxruntime.__version__}",
        used.replace("ExecutionProvider", ""),
        batch_size,
        slack=1.0 if used == PROVIDERS["cpu"] else SLACK,
    )


def devices() -> List[str]:
    """Names that `provider` takes here, as ONNX Runtime was built; drivers may still be missing."""
    available = onnxruntime.get_available_providers()
    return [short for short, full in PROVIDERS.items() if full in available]


def split_number(name: Optional[str]) -> Tuple[Optional[str], int]:
    """ "cuda:1" -> ("cuda", 1); without a number, 0. Raises UserError for a number that is none."""
    if name is None or ":" not in name:
        return name, 0
    kind, number = name.split(":", 1)
    if not number.isdigit():
        raise UserError(f"device {name!r}: {number!r} is no number; write {kind}:0")
    return kind, int(number)


def choose_provider(name: Optional[str], available: List[str]) -> str:
    """ONNX Runtime's name of a provider. Raises UserError for one that is not there."""
    if name is None:
        for short in OF_ITS_OWN:
            if PROVIDERS[short] in available:
                return PROVIDERS[short]
        return available[0]
    full = PROVIDERS.get(name.lower(), name)
    if full not in available:
        names = {whole: short for short, whole in PROVIDERS.items()}
        there = ", ".join(names.get(one, one) for one in available)
        more = " (for a GPU of NVIDIA: pip install onnxruntime-gpu)" if "CUDA" in full else ""
        raise UserError(f"ONNX Runtime has no provider {name!r} here{more}; there are: {there}")
    return full


def open_session(
    path: Path, provider: str, threads: Optional[int] = None, number: int = 0, as_written: bool = False
) -> Any:
    """An InferenceSession, on the `number`th device of the provider.

    Args:
        as_written: the CPU does not optimise the graph. That rewrites eight-bit ones so that they round elsewhere,
            and are slower too.

    Raises UserError for a file that this ONNX Runtime cannot load.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    # Its threads wait for the next layer by spinning. After the last layer that would only slow down what we do
    # with the results, and heat the device between two images.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if as_written and provider == PROVIDERS["cpu"]:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads is not None:
        if threads < 1:
            raise UserError(f"{threads} threads are too few")
        options.intra_op_num_threads = threads
    # The number is only said when it is not the default: not every provider knows the option.
    first: Any = (provider, {"device_id": number}) if number else provider
    providers = [first] if provider == PROVIDERS["cpu"] else [first, PROVIDERS["cpu"]]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the kinds differ by version and lie in a private module
        header = read_header(path)
        raise UserError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it ({first_line(error)}). The file has "
            f"opset {header.opset} and IR version {header.ir_version}; if that is too new, export it again with "
            "--opset 11, or update onnxruntime."
        ) from error


def _infer(session: Any, model: Exported) -> Infer:
    def infer(blob: np.ndarray) -> List[np.ndarray]:
        return session.run(list(model.outputs), {model.input_name: blob})

    return infer
