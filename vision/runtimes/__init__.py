"""What runs a net. One module for each runtime, imported only when it is asked for.

Such a module has `load(path, labels, net, size, device, **options) -> Detector` and `devices() -> names`, which
its device or provider takes.
"""

import importlib
import importlib.util
import inspect
import logging
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from vision.caffe2_net import find_pair, is_pair
from vision.detector import Detector
from vision.errors import UserError

log = logging.getLogger(__name__)


class Runtime(NamedTuple):
    """One line of the table.

    Attributes:
        module: below `vision.runtimes`.
        suffixes: of the files it reads.
        needs: the package it imports.
        install: how to get that.
    """

    module: str
    suffixes: Tuple[str, ...]
    needs: str
    install: str


RUNTIMES: Dict[str, Runtime] = {
    "pytorch": Runtime("pytorch", (".pth", ".pt"), "torch", "pip install torch"),
    "onnxruntime": Runtime("onnxruntime", (".onnx",), "onnxruntime", "pip install onnxruntime"),
    "openvino": Runtime("openvino", (".onnx", ".xml"), "openvino", "pip install openvino"),
    "opencv": Runtime("opencv", (".onnx",), "cv2", "pip install opencv-python-headless"),
    # Builds an engine of an ONNX file, and keeps it beside it. Never the first choice for one: that takes minutes.
    "tensorrt": Runtime(
        "tensorrt", (".engine", ".plan", ".trt", ".onnx"), "tensorrt", "python -m vision.doctor"
    ),
    # Not a runtime to use: what NVIDIA's detectNet would see.
    "detectnet": Runtime("detectnet", (".onnx",), "onnxruntime", "pip install onnxruntime"),
    "caffe2": Runtime(
        "caffe2",
        (".pb",),
        "caffe2",
        'pip install torch==1.10.2 future six "protobuf<3.21" "numpy<2" with Python 3.8 or 3.9 (newer torch has no '
        "Caffe2), or run the .onnx file of the same net with onnxruntime",
    ),
}
"""Where several read a suffix, the first one that is installed is taken."""


def open_detector(
    path: Union[str, Path],
    runtime: str = "auto",
    labels: Optional[Union[str, Path]] = None,
    net: Optional[str] = None,
    size: Optional[Tuple[int, int]] = None,
    device: Optional[str] = None,
    provider: Optional[str] = None,
    threads: Optional[int] = None,
    **options: Any,
) -> Detector:
    """Open a net that was trained or exported.

    Args:
        path: the file; of Caffe2's two either one, or what both names begin with.
        runtime: a name of RUNTIMES, or "auto": the first that reads files of this suffix and is installed.
        labels: a label file, for a file that does not know its classes.
        net: the net's name, for a file that does not know it.
        size: (height, width), for a file that does not know it.
        device: "cpu", "cuda", ...; None is the best there is.
        provider: of several ways in which a runtime computes ("cuda", "tensorrt" of ONNX Runtime), where it has them.
        threads: of the CPU; None leaves it to the runtime.
        options: of the runtime's `load` ("batch_size").

    Raises UserError when the file is missing, no runtime reads it or the runtime is not installed.
    """
    path = find_pair(path).predict if is_pair(path) else Path(path)
    if path.is_dir():
        best = path / "best.pth"
        raise UserError(f"{path}: is a folder, not a model{f'; name {best}' if best.is_file() else ''}")
    name = choose_runtime(path, runtime)
    chosen = RUNTIMES[name]
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        module = importlib.import_module(f"vision.runtimes.{chosen.module}")
        if not hasattr(module, "library"):  # which finds its package itself, under several names
            importlib.import_module(chosen.needs)
    except ImportError as error:
        raise UserError(f"{path}: cannot import {chosen.needs} ({error}); try: {chosen.install}") from error
    for key, value in (("provider", provider), ("threads", threads)):
        if value is not None:
            options[key] = value
    _check_options(chosen.module, module.load, options)
    detector = module.load(path, labels=labels, net=net, size=size, device=device, **options)
    if runtime == "auto":
        log.info("%s: runtime %s (%s)", path, name, detector.name)
    return detector


def _check_options(runtime: str, load: Callable[..., Detector], options: Dict[str, Any]) -> None:
    known = inspect.signature(load).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known):
        return  # the runtime itself passes them on, to what knows them
    names = [parameter.name for parameter in known]
    for option in options:
        if option not in names:
            raise UserError(f"runtime {runtime} has no option {option!r}")


class ModelArguments(NamedTuple):
    """What the positional arguments of a script that runs a model say.

    Attributes:
        others: images, sources.
        net, labels: of a model that knows neither.
    """

    model: str
    others: List[str]
    net: Optional[str] = None
    labels: Optional[str] = None


def model_arguments(arguments: Sequence[str], others: int, usage: str) -> ModelArguments:
    """Tell MODEL OTHER... from NET MODEL LABELS OTHER..., the older form, by what stands first.

    Args:
        arguments: at least one.
        others: how many there must be at least.
        usage: for the message.

    Raises UserError where the first is no model and too few follow for the older form.
    """
    first = Path(arguments[0])
    suffixes = {suffix for line in RUNTIMES.values() for suffix in line.suffixes}
    # "mb1-ssd" may be the name of a net, and what the two files of one in Caffe2 begin with.
    model_follows = any(Path(word).suffix.lower() in suffixes for word in arguments[1:2])
    if first.is_file() or first.suffix.lower() in suffixes or (is_pair(first) and not model_follows):
        return ModelArguments(arguments[0], list(arguments[1:]))
    if len(arguments) < 3 + others:
        raise UserError(f"{first} is no model file; as the name of a net it needs more. Usage: {usage}")
    net, model, labels, *rest = arguments
    return ModelArguments(model, rest, net, labels)


def choose_runtime(path: Path, runtime: str = "auto") -> str:
    """The name in RUNTIMES of what is to run this file. Raises UserError when there is none."""
    if runtime != "auto":
        if runtime not in RUNTIMES:
            raise UserError(f"unknown runtime {runtime!r}; known: auto, {', '.join(RUNTIMES)}")
        return runtime
    readers, installed = readers_of(path)
    # With none installed the first is tried, and its message says how to get it.
    return (installed or readers)[0]


def readers_of(path: Path) -> Tuple[List[str], List[str]]:
    """Names in RUNTIMES of all that read such files, and of those that are installed. Raises UserError for none."""
    readers = [name for name, line in RUNTIMES.items() if path.suffix.lower() in line.suffixes]
    if not readers:
        raise UserError(f"{path}: nothing here runs a {path.suffix or 'nameless'} file. Known: {_known()}")
    return readers, [name for name in readers if _is_installed(RUNTIMES[name].needs)]


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _known() -> str:
    lines: List[str] = [f"{' '.join(line.suffixes)} ({name})" for name, line in RUNTIMES.items()]
    return ", ".join(lines)
