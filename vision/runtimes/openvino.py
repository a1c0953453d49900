"""ONNX files, and OpenVINO's own .xml, in OpenVINO."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np
import openvino

from vision.detector import Detector
from vision.errors import UserError
from vision.onnx_header import Tensor
from vision.runtimes.exported import Exported, Infer, describe, finish, first_line


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
    """An ONNX or OpenVINO file -> Detector, in full precision.

    Args:
        path, labels, net, size, told: see `vision.runtimes.exported.describe`.
        device, provider: "CPU", "GPU", "NPU", "AUTO" in any case; None is the CPU.
        batch_size: images at once; a file with a static batch is called several times.
        threads: of the CPU; None for one on each core.

    Raises UserError.
    """
    path = Path(path)
    is_onnx = path.suffix.lower() == ".onnx"
    # The reader of ONNX headers says better what is wrong with a file than OpenVINO does: it goes first.
    model = describe(path, labels, net, size, **told) if is_onnx else None
    core = openvino.Core()
    where = choose_device(provider or device, core.available_devices)
    # Left to itself OpenVINO computes in bfloat16 where the CPU can: boxes move by pixels.
    hints: Dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        if threads < 1:
            raise UserError(f"{threads} threads are too few")
        hints["INFERENCE_NUM_THREADS"] = threads
    runtime = f"OpenVINO {openvino.__version__.split('-')[0]}"
    try:
        graph = core.read_model(str(path))
        if model is None:
            model = describe(path, labels, net, size, graph=_tensors(graph), **told)
        compiled = core.compile_model(graph, where, hints)
    except UserError:
        raise
    except Exception as error:  # RuntimeError and kinds of its own, by version
        raise UserError(f"{path}: {runtime} cannot load it ({_reason(error)})") from error
    slack = 1.0 if where.startswith("CPU") else 20.0
    return finish(model, _infer(compiled, model), runtime, where, batch_size, slack=slack)


def devices() -> List[str]:
    """Names that `provider` takes here."""
    return list(openvino.Core().available_devices)


def choose_device(name: Optional[str], available: List[str]) -> str:
    """OpenVINO's name of a device. Raises UserError for one that is not there."""
    if name is None:
        return "CPU"
    wanted = name.upper()
    if wanted.startswith(("AUTO", "HETERO", "MULTI")):
        return wanted
    if not any(one == wanted or one.split(".")[0] == wanted for one in available):
        raise UserError(f"OpenVINO has no device {name!r} here; there are: {', '.join(available)}, AUTO")
    return wanted


def _tensors(graph: Any) -> Tuple[List[Tensor], List[Tensor]]:
    return [_tensor(port) for port in graph.inputs], [_tensor(port) for port in graph.outputs]


def _tensor(port: Any) -> Tensor:
    shape = tuple(side.get_length() if side.is_static else None for side in port.get_partial_shape())
    kind = {"f32": "float32", "u8": "uint8"}.get(port.get_element_type().get_type_name(), "")
    return Tensor(port.get_any_name(), kind, shape)


def _infer(compiled: Any, model: Exported) -> Infer:
    request = compiled.create_infer_request()
    ports = [compiled.output(name) for name in model.outputs]

    def infer(blob: np.ndarray) -> List[np.ndarray]:
        found = request.infer({model.input_name: blob})
        return [found[port] for port in ports]

    return infer


def _reason(error: BaseException) -> str:
    """OpenVINO's own words: it begins with places in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    spoken = [line for line in lines if not line.startswith(("Exception from", "Check '", "FrontEnd API"))]
    return (spoken or lines or [first_line(error)])[0][:200]
