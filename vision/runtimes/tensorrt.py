"""Engines of TensorRT 8.0 to 11 and TensorRT-RTX, without torch.

What a version can do is asked of it (`hasattr`, members of enums), never told from its number: TensorRT-RTX counts
from 1 and can what TensorRT 11 can. An engine runs on the kind of GPU and with the version that built it; the JSON
beside it says which these were, and here a wrong one is built again or refused, never run.
"""

import hashlib
import importlib
import json
import logging
import platform
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from vision.card import sidecar
from vision.detector import Detector
from vision.errors import NotInstalled, UserError
from vision.onnx_header import Tensor
from vision.runtimes.cuda_driver import Cuda, find_gpu
from vision.runtimes.exported import describe, finish, first_line

log = logging.getLogger(__name__)

PathLike = Union[str, Path]

LIBRARIES = ("tensorrt", "tensorrt_rtx")
"""Packages, the first that is installed counts."""

SYSTEM_FOLDERS = ("/usr/lib/python{version}/dist-packages", "/usr/lib/python3/dist-packages")
"""Where Debian packages (JetPack's among them) lie, which virtual environments do not see."""

SLACK = 20.0
"""On the self-test of a float32 file: a GPU may round to TF32."""

NUMPY_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


# --- the library --------------------------------------------------------------------------------------------


def library(name: str = "") -> Any:
    """TensorRT's module, or TensorRT-RTX's; `name` one of LIBRARIES, or any of them.

    JetPack's own package is found from a virtual environment too. Raises NotInstalled that says what to install, and
    UserError where it is there and broken.
    """
    if name and name not in LIBRARIES:
        raise UserError(f"{name!r} is none of {', '.join(LIBRARIES)}")
    wanted = (name,) if name else LIBRARIES
    broken = ""
    for package in wanted:
        try:
            module = importlib.import_module(package)
            if hasattr(module, "Runtime"):
                return module
            broken = f"{getattr(module, '__file__', package)} is called so and is not it"
        except ModuleNotFoundError as error:
            if error.name != package:
                broken = f"{package}: {error}"
        except (ImportError, OSError) as error:  # a library that it needs is missing, or of another version
            broken = f"{package}: {first_line(error)}"
    if "tensorrt" in wanted:
        found = _from_system()
        if found is not None:
            return found
    if broken:
        raise UserError(f"TensorRT is not installed rightly ({broken}): {install_advice()}")
    raise NotInstalled(f"TensorRT is not installed: {install_advice()}")


def _from_system() -> Optional[Any]:
    version = "{}.{}".format(*sys.version_info[:2])
    for pattern in SYSTEM_FOLDERS:
        folder = pattern.format(version=version)
        if not (Path(folder) / "tensorrt" / "__init__.py").is_file():
            continue
        sys.path.append(folder)  # at the end, and only for a moment: nothing else is to come from there
        try:
            return importlib.import_module("tensorrt")
        except (ImportError, OSError) as error:
            log.debug("%s: %s", folder, error)
        finally:
            sys.path.remove(folder)
    return None


def install_advice() -> str:
    """What to install on this machine, in a line."""
    if Path("/etc/nv_tegra_release").is_file():
        return (
            "on a Jetson it belongs to JetPack: sudo apt install tensorrt python3-libnvinfer, and take the system's "
            "version of Python"
        )
    if sys.platform == "darwin" or platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"):
        return "it exists for NVIDIA GPUs on Linux and Windows only; the .onnx file runs in onnxruntime"
    return "pip install tensorrt, or for GeForce RTX and newer: pip install tensorrt-rtx-cu13"


def version_of(lib: Any) -> str:
    """Of the library, with its name."""
    return f"{lib.__name__} {getattr(lib, '__version__', '?')}"


def collecting_logger(lib: Any) -> Any:
    """A logger of the library that keeps warnings and errors in `.lines`."""

    class Logger(lib.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            lib.ILogger.__init__(self)
            self.lines: List[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (lib.ILogger.ERROR, lib.ILogger.INTERNAL_ERROR):
                self.lines.append(message)
            elif severity == lib.ILogger.WARNING:
                log.debug("TensorRT: %s", message)

    return Logger()


def created(lib: Any, kind: str, logger: Any) -> Any:
    """lib.Runtime or lib.Builder with this logger; None where there is no GPU, or its driver is too old."""
    try:
        return getattr(lib, kind)(logger)
    except TypeError:  # what the bindings make of a null pointer
        return None


# --- what stands beside an engine ---------------------------------------------------------------------------


def engine_facts(path: PathLike) -> Optional[Dict[str, Any]]:
    """The "engine" part of the JSON beside it; None where there is none."""
    place = sidecar(path)
    if not place.is_file():
        return None
    try:
        content = json.loads(place.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError):
        return None
    facts = content.get("engine") if isinstance(content, dict) else None
    return facts if isinstance(facts, dict) else None


def device_of(gpu: Optional[Cuda], lib: Any) -> str:
    """What an engine built here is bound to."""
    if lib.__name__ == "tensorrt_rtx":
        return "any RTX"  # it compiles the last step where it runs
    if gpu is None:
        return "none"
    return "{} (SM {}.{})".format(gpu.name, *gpu.capability)


def check_engine(path: Path, content: bytes, facts: Mapping[str, Any], lib: Any, gpu: Cuda) -> None:
    """Raise UserError for an engine that is damaged, or was built by another version or for another GPU."""
    again = f"Build it again here: python -m vision.export.tensorrt {facts.get('onnx', 'MODEL.onnx')}"
    if facts.get("plan_sha256") and hashlib.sha256(content).hexdigest() != facts["plan_sha256"]:
        raise UserError(f"{path} is damaged: it is not what was written when it was built. {again}")
    if facts.get("tensorrt") and facts["tensorrt"] != version_of(lib):
        raise UserError(f"{path} was built by {facts['tensorrt']}, and this is {version_of(lib)}. {again}")
    here, built_for = device_of(gpu, lib), str(facts.get("device", ""))
    number = "{}.{}".format(*gpu.capability)
    named = built_for.startswith("SM ") and number in built_for.split()  # chosen at the build, by number
    if built_for not in ("", here) and not named:
        raise UserError(f"{path} was built for {built_for}, and this is {gpu.name} (SM {number}). {again}")


# --- running ------------------------------------------------------------------------------------------------


def load(
    path: PathLike,
    labels: Optional[PathLike] = None,
    net: Optional[str] = None,
    size: Optional[Tuple[int, int]] = None,
    device: Optional[str] = None,
    batch_size: int = 8,
    provider: Optional[str] = None,
    precision: str = "",
    cuda_graphs: bool = True,
    **told: Any,
) -> Detector:
    """An engine, or an ONNX file that is built into one first (and the next time taken from the disk) -> Detector.

    Args:
        path, labels, net, size, told: see `vision.runtimes.exported.describe`.
        device, provider: "cuda", or with a number ("cuda:1").
        precision: of an ONNX file in float32, "fp16"; else the file's own. Engines have theirs.
        cuda_graphs: record the work of one shape and launch it at once, where TensorRT allows it.

    Raises UserError.
    """
    path = Path(path)
    number = _number(provider or device)
    facts = engine_facts(path) or {}
    if path.suffix.lower() == ".onnx":
        path = _built(path, precision, number, batch_size)
        facts = engine_facts(path) or {}
    elif precision and precision != facts.get("precision", precision):
        raise UserError(f"{path} is {facts['precision']}; leave the precision out")
    lib = library(str(facts.get("library", "")))
    gpu = _gpu(path, number)
    content = _read(path)
    try:
        check_engine(path, content, facts, lib, gpu)
    except UserError as error:
        onnx = path.parent / str(facts.get("onnx", ""))
        if not facts.get("onnx") or not onnx.is_file() or facts.get("precision") not in ("fp32", "fp16"):
            raise
        log.warning("%s", str(error).replace("Build it again here", "It is built again, as by"))
        path = _built(onnx, str(facts["precision"]), number, batch_size, path)
        content = _read(path)
    engine = Engine(path, content, lib, gpu, cuda_graphs)
    model = describe(path, labels, net, size, graph=engine.graph(), **told)
    engine.order(model.outputs)
    full = model.card is not None and model.card.precision == "fp32"
    most = min(batch_size, engine.most) if engine.most else batch_size
    slack = SLACK if full else 1.0
    hint = "Build the engine again, or take a higher precision."
    where = f"{gpu.name}"
    return finish(model, engine.infer, version_of(lib), where, most, slack=slack, hint=hint)


def devices() -> List[str]:
    """What `device` takes here."""
    return ["cuda"] if find_gpu() is not None else []


def _gpu(path: Path, number: int) -> Cuda:
    try:
        return Cuda(number)
    except (MemoryError, RuntimeError) as error:  # another program has it for itself, or broke it
        raise UserError(f"{path}: the GPU cannot be used ({first_line(error)})") from error


def _number(name: Optional[str]) -> int:
    kind, _, number = (name or "cuda").partition(":")
    if kind.lower() not in ("cuda", "gpu", "tensorrt"):
        raise UserError(f"TensorRT runs on NVIDIA GPUs only, not on {name!r}; leave the device out")
    if number and not number.isdigit():
        raise UserError(f"device {name!r}: {number!r} is no number; write cuda:0")
    return int(number or 0)


def _built(onnx: Path, precision: str, number: int, batch_size: int, output: Optional[Path] = None) -> Path:
    builder = importlib.import_module("vision.export.tensorrt")  # which imports this module
    options = builder.BuildOptions(precision=precision, max_batch=batch_size, gpu=number)
    return builder.build(onnx, options, output, log.warning).path


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    if not content:
        raise UserError(f"{path}: the file is empty; build the engine again")
    return content


class Slot:
    """One input or output: its memory on both sides, grown to the largest that was asked for.

    Attributes:
        address, host: on the GPU, on the CPU.
        room: numbers that fit.
        moved: how often the memory became other memory.
    """

    def __init__(self, name: str, dtype: Any, is_input: bool, shape: Sequence[int]) -> None:
        self.name, self.dtype, self.is_input, self.shape = name, dtype, is_input, tuple(shape)
        self.address, self.owner, self.room = 0, None, 0  # type: ignore[var-annotated]
        self.host: np.ndarray = np.zeros(0, dtype)
        self.host_owner: Any = None
        self.moved = 0

    def fit(self, gpu: Any, shape: Tuple[int, ...]) -> np.ndarray:
        """Memory for such a tensor; returns the CPU's side of it."""
        count = int(np.prod(shape, dtype=np.int64))
        if count > self.room:
            self.owner = self.host_owner = None  # give back before taking more
            self.address, self.owner = gpu.allocate(count * np.dtype(self.dtype).itemsize)
            self.host, self.host_owner = gpu.pinned((count,), self.dtype)
            self.room = count
            self.moved += 1
        return self.host[:count].reshape(shape)


class Engine:
    """A plan in memory, with the buffers and the stream it runs with. One thread at a time.

    Args:
        path: for messages.
        content: the plan.
        lib: of `library`.
        gpu: where it runs.
        cuda_graphs: launch the work for one shape with one call. A small net is dozens of kernels of some
            microseconds each, and launching them one by one may take longer than they do.

    Attributes:
        most: images at once that its profile allows; 0 when it does not say.

    Raises UserError when TensorRT refuses it.
    """

    def __init__(self, path: Path, content: bytes, lib: Any, gpu: Any, cuda_graphs: bool = True) -> None:
        self.path, self.lib, self.gpu = path, lib, gpu
        self.log = collecting_logger(lib)
        # Engines with operators from plugins need these; older versions do not load them by themselves.
        if hasattr(lib, "init_libnvinfer_plugins"):
            lib.init_libnvinfer_plugins(self.log, "")
        self.runtime = created(lib, "Runtime", self.log)
        if self.runtime is None:
            raise UserError(
                f"{path}: {version_of(lib)} does not start here ({self._said()}); is the driver new enough for it?"
            )
        self.engine: Any = None
        try:
            self.engine = self.runtime.deserialize_cuda_engine(content)
        except (RuntimeError, TypeError) as error:
            self.log.lines.append(str(error))
        if self.engine is None:
            raise UserError(
                f"{path}: {version_of(lib)} refuses this engine ({self._said()}). It is damaged, or of another GPU "
                "or version of TensorRT; build it again here: python -m vision.export.tensorrt MODEL.onnx"
            )
        self.recording = cuda_graphs
        self.context = self._context()
        if self.context is None:
            raise UserError(
                f"{path}: not enough GPU memory to run it ({self._said()}). Close other programs, or build it with a "
                "smaller --max_batch"
            )
        self.named = hasattr(self.engine, "num_io_tensors")
        self.slots = self._slots()
        self.input = next(slot for slot in self.slots if slot.is_input)
        self.results = [slot for slot in self.slots if not slot.is_input]
        self.most = self._most()
        self.stream = gpu.stream()
        self.shape: Tuple[int, ...] = ()
        self.last: Tuple[Any, ...] = ()
        self.recorded: Any = None

    def _said(self) -> str:
        lines = self.log.lines
        return first_line(Exception(lines[0])) if lines else "without a reason"

    def _context(self) -> Any:
        if not (self.recording and hasattr(self.engine, "create_runtime_config")):
            return self.engine.create_execution_context()
        config = self.engine.create_runtime_config()
        if hasattr(config, "cuda_graph_strategy"):
            # TensorRT-RTX compiles for a new shape while it runs; only it knows when there is something to record.
            config.cuda_graph_strategy = self.lib.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self.recording = False
        return self.engine.create_execution_context(config)

    def _slots(self) -> List[Slot]:
        engine, found = self.engine, []
        if self.named:
            for i in range(engine.num_io_tensors):
                name = engine.get_tensor_name(i)
                is_input = engine.get_tensor_mode(name) == self.lib.TensorIOMode.INPUT
                dtype = self._dtype(engine.get_tensor_dtype(name))
                found.append(Slot(name, dtype, is_input, engine.get_tensor_shape(name)))
        else:
            for i in range(engine.num_bindings):
                name = engine.get_binding_name(i)
                dtype = self._dtype(engine.get_binding_dtype(i))
                found.append(Slot(name, dtype, engine.binding_is_input(i), engine.get_binding_shape(i)))
        inputs = [slot.name for slot in found if slot.is_input]
        if len(inputs) != 1:
            raise UserError(
                f"{self.path}: the engine has {len(inputs)} inputs; a detector has one, the image"
            )
        return found

    @staticmethod
    def _dtype(kind: Any) -> Any:
        name = str(getattr(kind, "name", kind)).rpartition(".")[2]
        if name not in NUMPY_TYPES:
            raise UserError(f"an engine whose input or output is {name} cannot be used; float32 is needed")
        return np.dtype(NUMPY_TYPES[name])

    def _most(self) -> int:
        if -1 not in self.input.shape:
            return 0
        if self.named:
            profile = self.engine.get_tensor_profile_shape(self.input.name, 0)
        else:
            profile = self.engine.get_profile_shape(0, self.input.name)
        return int(tuple(profile[2])[0])

    def graph(self) -> Tuple[List[Tensor], List[Tensor]]:
        """Inputs and outputs, as an ONNX file would say them."""
        tensors = [
            Tensor(slot.name, str(slot.dtype), tuple(None if side < 0 else int(side) for side in slot.shape))
            for slot in self.slots
        ]
        pairs = list(zip(self.slots, tensors))
        return [t for s, t in pairs if s.is_input], [t for s, t in pairs if not s.is_input]

    def order(self, names: Sequence[str]) -> None:
        """Which outputs `infer` gives, in which order."""
        by_name = {slot.name: slot for slot in self.slots}
        self.results = [by_name[name] for name in names]

    def infer(self, blob: np.ndarray) -> List[np.ndarray]:
        """A blob of any number of images -> the outputs; more than the profile allows go in parts."""
        step = self.most or len(blob)
        parts = [self._once(blob[start : start + step]) for start in range(0, len(blob), step)]
        return parts[0] if len(parts) == 1 else [np.concatenate(outputs) for outputs in zip(*parts)]

    def _once(self, blob: np.ndarray) -> List[np.ndarray]:
        self.gpu.enter()  # the calling thread may be a new one
        self._shape(blob.shape)
        np.copyto(self.input.fit(self.gpu, blob.shape), blob, casting="same_kind")
        hosts = {
            slot.name: slot.fit(self.gpu, self._result_shape(slot))
            for slot in self.slots
            if not slot.is_input
        }
        self._run(blob.size, hosts)
        self.gpu.wait(self.stream)
        return [hosts[slot.name].copy() for slot in self.results]

    def _run(self, size: int, hosts: Dict[str, np.ndarray]) -> None:
        """Queue copies and net: recorded, where the same was queued before."""
        state = (self.shape, *(slot.moved for slot in self.slots))
        if state != self.last:
            # The first time in the ordinary way: TensorRT prepares itself for a shape when it first sees it.
            self.last, self.recorded = state, None
            self._queue(size, hosts)
            return
        if self.recorded is None and self.recording:
            try:
                self.recorded = self.gpu.record(self.stream, lambda: self._queue(size, hosts))
            except RuntimeError as error:
                log.debug("%s: without a CUDA graph (%s)", self.path, first_line(error))
                self.recording = False
        if self.recorded is None:
            self._queue(size, hosts)
        else:
            self.recorded.launch(self.stream)

    def _queue(self, size: int, hosts: Dict[str, np.ndarray]) -> None:
        self.gpu.upload(self.input.address, self.input.host[:size], self.stream)
        if not self._execute():
            raise RuntimeError(f"the engine did not run ({self._said()})")
        for slot in self.results:
            self.gpu.download(hosts[slot.name], slot.address, self.stream)

    def _shape(self, shape: Tuple[int, ...]) -> None:
        if shape == self.shape:
            return
        if self.named:
            right = self.context.set_input_shape(self.input.name, shape)
        elif -1 in self.input.shape:
            right = self.context.set_binding_shape(self.slots.index(self.input), shape)
        else:
            right = tuple(self.input.shape) == tuple(shape)
        if right is False:
            raise UserError(f"{self.path}: the engine takes {self.input.shape}, not {shape}")
        self.shape = shape

    def _result_shape(self, slot: Slot) -> Tuple[int, ...]:
        if self.named:
            shape = self.context.get_tensor_shape(slot.name)
        else:
            shape = self.context.get_binding_shape(self.slots.index(slot))
        if any(side < 0 for side in shape):
            raise UserError(f"{self.path}: the size of its output {slot.name} is not known before it runs")
        return tuple(int(side) for side in shape)

    def _execute(self) -> bool:
        if not self.named:
            return self.context.execute_async_v2([slot.address for slot in self.slots], self.stream)
        for slot in self.slots:
            self.context.set_tensor_address(slot.name, slot.address)
        return self.context.execute_async_v3(self.stream)
