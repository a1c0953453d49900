"""The runner of engines, with a TensorRT and a GPU made of numpy: both of its interfaces, and every way it can fail.

What only a GPU can show is in benchmarks/tensorrt.py.
"""

import ctypes
import hashlib
import importlib.util
import json
import sys
import types
from enum import IntEnum

import numpy as np
import pytest

from vision.card import sidecar
from vision.detector import Detector
from vision.errors import UserError
from vision.runtimes import cuda_driver, open_detector
from vision.runtimes import tensorrt as runner


class Gpu:
    """Memory of the CPU under the names of the GPU's."""

    name, capability = "Orin", (8, 7)
    refuses = False

    def __init__(self, number=0):
        self.number, self.entered, self.room, self.records = number, 0, 1 << 30, 0

    def enter(self):
        self.entered += 1

    def allocate(self, size):
        if size > self.room:
            raise MemoryError("out of GPU memory (cuMemAlloc_v2)")
        memory = np.full(size, 255, np.uint8)
        return memory.ctypes.data, memory

    def pinned(self, shape, dtype):
        return np.zeros(shape, dtype), None

    def stream(self):
        return 7

    def upload(self, address, array, stream):
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array, address, stream):
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def wait(self, stream):
        assert stream == 7

    def record(self, stream, work):
        assert stream == 7
        if self.refuses:
            raise RuntimeError("cuStreamEndCapture: operation failed due to a previous error during capture")
        self.records += 1
        return types.SimpleNamespace(launch=lambda stream: work())


def floats(address, shape):
    count = int(np.prod(shape))
    return np.frombuffer((ctypes.c_float * count).from_address(address), np.float32).reshape(shape)


class TensorIOMode(IntEnum):
    NONE, INPUT, OUTPUT = 0, 1, 2


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


class Context:
    """Computes what the tiny net computes. `tensors` are (name, is input, shape)."""

    def __init__(self, engine):
        self.engine, self.shape, self.addresses = engine, None, {}

    def _outputs(self):
        return {name: (self.shape[0],) + tuple(shape[1:]) for name, _, shape in self.engine.tensors}

    def _set(self, shape):
        if shape[0] > self.engine.most or shape[1:] != self.engine.tensors[0][2][1:]:
            return False
        self.shape = shape
        return True

    def _run(self, addresses):
        if self.engine.broken:
            return False
        shapes = self._outputs()
        image = self.engine.tensors[0][0]
        scores, boxes = self.engine.truth(floats(addresses[image], self.shape))
        for name, value in (("scores", scores), ("boxes", boxes)):
            floats(addresses[name], shapes[name])[...] = value
        return True


class Named(Context):
    """The interface since 8.5."""

    def set_input_shape(self, name, shape):
        return self._set(shape)

    def get_tensor_shape(self, name):
        return self._outputs()[name]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == 7
        return self._run(self.addresses)


class Bound(Context):
    """The interface of 8.0 to 8.6."""

    def set_binding_shape(self, index, shape):
        assert index == 0
        return self._set(shape)

    def get_binding_shape(self, index):
        if self.shape is None:
            self.shape = tuple(self.engine.tensors[0][2])
        return self._outputs()[self.engine.tensors[index][0]]

    def execute_async_v2(self, addresses, stream):
        names = [name for name, _, _ in self.engine.tensors]
        return self._run(dict(zip(names, addresses)))


class Engine:
    def __init__(self, lib, tiny, batch, most, order, broken=False):
        shapes = {
            "input_0": (batch, 3, *tiny.size),
            "scores": (batch, len(tiny.priors), len(tiny.classes)),
            "boxes": (batch, len(tiny.priors), 4),
        }
        self.tensors = [(name, name == "input_0", shapes[name]) for name in order]
        self.lib, self.truth, self.most, self.broken = lib, tiny.truth, most, broken


class NamedEngine(Engine):
    num_io_tensors = 3

    def get_tensor_name(self, i):
        return self.tensors[i][0]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "input_0" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return types.SimpleNamespace(name="FLOAT")

    def get_tensor_shape(self, name):
        return next(shape for each, _, shape in self.tensors if each == name)

    def get_tensor_profile_shape(self, name, profile):
        return tuple((n, 3, 64, 96) for n in (1, 1, self.most))

    def create_execution_context(self):
        return Named(self) if self.most else None


class BoundEngine(Engine):
    num_bindings = 3

    def get_binding_name(self, i):
        return self.tensors[i][0]

    def get_binding_dtype(self, i):
        return "DataType.FLOAT"

    def binding_is_input(self, i):
        return self.tensors[i][1]

    def get_binding_shape(self, i):
        return self.tensors[i][2]

    def get_profile_shape(self, profile, name):
        return [(n, 3, 64, 96) for n in (1, 1, self.most)]

    def create_execution_context(self):
        return Bound(self)


PLAN = b"a plan of the fake"


def fake_library(tiny, kind=NamedEngine, batch=1, most=1, order=("input_0", "scores", "boxes"), broken=False):
    """A module with as much of TensorRT as the runner asks for."""
    lib = types.ModuleType("tensorrt")
    lib.__version__ = "8.9.1"
    lib.ILogger, lib.TensorIOMode = ILogger, TensorIOMode

    class Runtime:
        def __init__(self, log):
            self.log = log

        def deserialize_cuda_engine(self, content):
            if content != PLAN:
                self.log.log(ILogger.WARNING, "a warning is no reason")
                self.log.log(ILogger.ERROR, "Error Code 1: Serialization (magic tag does not match)")
                return None
            return kind(lib, tiny, batch, most, order, broken)

    lib.Runtime = Runtime
    return lib


@pytest.fixture
def place(monkeypatch, tmp_path, tiny):
    """(how the library is, facts beside the engine) -> path of an engine that can be opened."""

    def make(card=True, content=PLAN, facts=None, **how):
        lib = fake_library(tiny, **how)
        monkeypatch.setattr(runner, "library", lambda name="": lib)
        monkeypatch.setattr(runner, "Cuda", Gpu)
        path = tmp_path / "net-fp32.engine"
        path.write_bytes(content)
        if card:
            beside = json.loads(tiny.card(dynamic_batch=how.get("batch") == -1).to_json())
            beside["engine"] = {
                "onnx": "net.onnx",
                "library": "tensorrt",
                "tensorrt": "tensorrt 8.9.1",
                "device": "Orin (SM 8.7)",
                "precision": "fp32",
                "plan_sha256": hashlib.sha256(PLAN).hexdigest(),
                **(facts or {}),
            }
            sidecar(path).write_text(json.dumps(beside))
        return path

    return make


def photos(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (48 + i, 80, 3), dtype=np.uint8) for i in range(count)]


NEWER, ALL = ("10.3", "10.13", "11"), ("8.6", "10.3", "10.13", "11")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "stand_in, name, versions",
    [
        (NamedEngine, "ICudaEngine", ALL),
        (Named, "IExecutionContext", ALL),
        (BoundEngine, "ICudaEngine", ("8.6",)),
        (Bound, "IExecutionContext", ("8.6",)),
        (ILogger, "ILogger", ALL),
    ],
)
def test_the_stand_ins_can_nothing_that_the_real_ones_cannot(stand_in, name, versions, check_stand_in):
    for version in versions:
        check_stand_in(stand_in, name, version)


def test_what_tells_the_interfaces_apart(interface):
    assert "num_bindings" in interface("8.6")["classes"]["ICudaEngine"]
    for version in NEWER:
        assert "num_bindings" not in interface(version)["classes"]["ICudaEngine"]
    for version in ALL:
        modes = interface(version)["enums"]["TensorIOMode"]
        assert {name: int(value) for name, value in TensorIOMode.__members__.items()} == modes
        assert {"FLOAT", "HALF", "INT8", "INT32", "BOOL"} <= set(interface(version)["enums"]["DataType"])


# What stands in NVIDIA's package when the driver is too old for it: every factory gives nothing.
WITHOUT_DRIVER = """
from pathlib import Path
from vision.errors import UserError
from vision.runtimes.tensorrt import Engine, library, version_of
print(version_of(library()))
try:
    Engine(Path("a.engine"), b"plan", library("tensorrt"), None)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("version", ALL)
def test_the_real_package_without_a_driver(version, bindings):
    first, second = bindings(version, WITHOUT_DRIVER).splitlines()
    assert first.startswith(f"tensorrt {version}.")
    assert second.startswith(f"a.engine: {first} does not start here")


# --- it runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [NamedEngine, BoundEngine])
@pytest.mark.parametrize("batch, most", [(1, 1), (-1, 4)], ids=["static", "dynamic"])
@pytest.mark.parametrize("order", [("input_0", "scores", "boxes"), ("input_0", "boxes", "scores")])
def test_an_engine_detects_what_the_net_detects(kind, batch, most, order, place, tiny):
    path = place(kind=kind, batch=batch, most=most, order=order)
    detector = open_detector(path)
    assert detector.classes == tiny.classes and "tensorrt 8.9.1 on Orin" in detector.name
    truth = Detector(tiny.truth, tiny.input, tiny.classes)
    images = photos(9)  # more than the profile takes at once, and no multiple of it
    for a, b in zip(truth.detect(images, 0.2), detector.detect(images, 0.2)):
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
        np.testing.assert_array_equal(a.labels, b.labels)
    blob = truth.preprocess(images[:6])
    for a, b in zip(tiny.truth(blob), detector.run(blob)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert detector.batch_size == (4 if batch == -1 else 8)


def test_results_stay_when_the_next_image_comes(place, tiny):
    detector = open_detector(place())
    blobs = [detector.preprocess([image]) for image in photos(2)]
    first = detector.run(blobs[0])
    before = [output.copy() for output in first]
    detector.run(blobs[1])
    for a, b in zip(before, first):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "counts, refuses, records",
    [
        ((1,), False, 0),
        ((1, 1, 1), False, 1),
        ((2, 2, 1, 2, 2), False, 2),  # another shape between: what was recorded counts no more
        ((1, 3, 3, 1, 1, 1), False, 2),  # larger memory
        ((1, 1, 1), True, 0),
    ],
)
def test_work_of_one_shape_is_recorded_and_launched(counts, refuses, records, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(Gpu, "refuses", refuses)
    gpu, lib = Gpu(), fake_library(tiny, batch=-1, most=4)
    engine = runner.Engine(tmp_path, PLAN, lib, gpu)
    rng = np.random.default_rng(0)
    for count in counts:
        blob = rng.random((count, 3, *tiny.size), np.float32)
        for a, b in zip(tiny.truth(blob), engine.infer(blob)):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert gpu.records == records
    plain = runner.Engine(tmp_path, PLAN, lib, gpu, cuda_graphs=False)
    for _ in range(3):
        plain.infer(blob)
    assert gpu.records == records


def test_rtx_records_by_itself(tiny, tmp_path):
    class Configured(NamedEngine):
        def create_runtime_config(self):
            return types.SimpleNamespace(cuda_graph_strategy=0)

        def create_execution_context(self, config=None):
            self.config = config
            return Named(self)

    lib, gpu = fake_library(tiny, kind=Configured), Gpu()
    lib.CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE=1)
    engine = runner.Engine(tmp_path, PLAN, lib, gpu)
    assert engine.engine.config.cuda_graph_strategy == 1
    blob = np.zeros((1, 3, *tiny.size), np.float32)
    for _ in range(3):
        engine.infer(blob)
    assert gpu.records == 0
    assert runner.Engine(tmp_path, PLAN, lib, gpu, cuda_graphs=False).engine.config is None


def test_a_foreign_engine_needs_its_labels(place, tiny, tmp_path):
    path = place(card=False)
    with pytest.raises(UserError, match="give its labels"):
        open_detector(path)
    (tmp_path / "names.txt").write_text("\n".join(tiny.classes) + "\n")
    detector = open_detector(path, labels=tmp_path / "names.txt")
    assert detector.input.size == tiny.size


# --- it is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how, message",
    [
        ({"content": PLAN[:9]}, "is damaged: .* python -m vision.export.tensorrt net.onnx"),
        ({"content": b""}, "the file is empty"),
        (
            {"facts": {"tensorrt": "tensorrt 8.2.1"}},
            "was built by tensorrt 8.2.1, and this is tensorrt 8.9.1",
        ),
        (
            {"facts": {"device": "Xavier (SM 7.2)"}},
            r"was built for Xavier \(SM 7.2\), and this is Orin \(SM 8.7\)",
        ),
        ({"facts": {"device": "SM 8.9 12.0"}}, "was built for SM 8.9 12.0, and this is Orin"),
        (
            {"card": False, "content": b"rubbish"},
            r"refuses this engine \(Error Code 1: Serialization \(magic tag",
        ),
        ({"most": 0}, "not enough GPU memory to run it"),
        ({"broken": True}, "the engine did not run"),
    ],
    ids=["cut", "empty", "version", "gpu", "other numbers", "rubbish", "memory", "failing"],
)
def test_engines_that_cannot_be_run(how, message, place):
    with pytest.raises(UserError, match=message):
        open_detector(place(**how))


def test_an_engine_for_this_gpu_by_number(place):
    open_detector(place(facts={"device": "SM 8.7 8.9"}))


def test_a_wrong_net_is_found_by_its_self_test(place, tiny):
    path = place()
    type(tiny).truth, right = (lambda self, blob: tuple(right(self, 1 - blob))), type(tiny).truth
    try:
        with pytest.raises(UserError, match="self-test made at its export is off"):
            open_detector(path)
    finally:
        type(tiny).truth = right


def test_too_little_memory_for_an_image(place, monkeypatch):
    path = place()
    monkeypatch.setattr(
        Gpu, "allocate", lambda self, size: (_ for _ in ()).throw(MemoryError("out of GPU memory"))
    )
    with pytest.raises(UserError, match="not enough memory to run mb1-ssd at 96 x 64"):
        open_detector(path)


@pytest.mark.parametrize(
    "device, message", [("cpu", "NVIDIA GPUs only, not on 'cpu'"), ("cuda:x", "'x' is no number")]
)
def test_devices_that_are_none(device, message, place):
    with pytest.raises(UserError, match=message):
        open_detector(place(), device=device)


def test_an_engine_has_its_precision(place):
    with pytest.raises(UserError, match="is fp32; leave the precision out"):
        open_detector(place(), precision="fp16")


def test_damaged_facts_are_no_facts(tmp_path):
    path = tmp_path / "a.engine"
    assert runner.engine_facts(path) is None
    for text in ("", "[]", '{"engine": 3}', "\xff"):
        sidecar(path).write_bytes(text.encode("latin-1"))
        assert runner.engine_facts(path) is None


# --- stale engines ------------------------------------------------------------------------------------------


def test_a_stale_engine_is_built_again_where_its_net_is(place, tiny, tmp_path, monkeypatch, caplog):
    path = place(facts={"tensorrt": "tensorrt 8.2.1"})
    (tmp_path / "net.onnx").write_bytes(b"the net")
    asked = []

    def build(onnx, options, output, say):
        asked.append((onnx.name, options.precision, output))
        place()
        return types.SimpleNamespace(path=path)

    from vision.export import tensorrt as builder

    monkeypatch.setattr(builder, "build", build)
    assert open_detector(path).classes == tiny.classes
    assert asked == [("net.onnx", "fp32", path)]
    assert "was built by tensorrt 8.2.1, and this is tensorrt 8.9.1. It is built again" in caplog.text


# --- the library --------------------------------------------------------------------------------------------


def hide(monkeypatch, *names):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_the_system_s_package_is_found_from_a_virtual_environment(monkeypatch, tmp_path):
    if importlib.util.find_spec("tensorrt") or importlib.util.find_spec("tensorrt_rtx"):
        pytest.skip("TensorRT is installed here")
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text("__version__ = '8.5.2.2'\n")
    monkeypatch.setattr(runner, "SYSTEM_FOLDERS", (str(tmp_path),))
    before = list(sys.path)
    try:
        assert runner.version_of(runner.library()) == "tensorrt 8.5.2.2"
    finally:
        sys.modules.pop("tensorrt", None)
    assert sys.path == before


def test_without_tensorrt_it_is_said_what_to_install(monkeypatch, tmp_path):
    hide(monkeypatch, *runner.LIBRARIES)
    monkeypatch.setattr(runner, "SYSTEM_FOLDERS", (str(tmp_path),))
    with pytest.raises(
        UserError, match="TensorRT is not installed.*(pip install tensorrt|JetPack|NVIDIA GPUs)"
    ):
        runner.library()
    (tmp_path / "a.engine").write_bytes(PLAN)
    with pytest.raises(UserError, match="TensorRT is not installed"):
        open_detector(tmp_path / "a.engine")
    with pytest.raises(UserError, match="none of tensorrt, tensorrt_rtx"):
        runner.library("torch")


def test_a_file_of_that_name_is_not_taken_for_it(monkeypatch, tmp_path):
    (tmp_path / "tensorrt_rtx.py").write_text("'somebody has called his script so'\n")
    monkeypatch.syspath_prepend(tmp_path)
    hide(monkeypatch, "tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    with pytest.raises(UserError, match="tensorrt_rtx.py is called so and is not it"):
        runner.library("tensorrt_rtx")


def test_a_broken_installation_is_told_from_none(monkeypatch, tmp_path):
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('libnvinfer.so.10: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    hide(monkeypatch, "tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    monkeypatch.setattr(runner, "SYSTEM_FOLDERS", ())
    with pytest.raises(UserError, match="libnvinfer.so.10: cannot open"):
        runner.library()


# --- the driver ---------------------------------------------------------------------------------------------


class Driver:
    """As much of libcuda as finding a GPU takes."""

    cuGetErrorString = None

    def __init__(self, count=1, fails=None):
        self.count, self.fails = count, fails or {}

    def __getattr__(self, name):
        def call(*arguments):
            if name == "cuDeviceGetCount":
                arguments[0]._obj.value = self.count
            elif name == "cuDeviceGetName":
                arguments[0].value = b"Orin"
            elif name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 7}[arguments[1]]
            return self.fails.get(name, 0)

        return call


def test_a_gpu_says_what_it_is(monkeypatch):
    monkeypatch.setattr(cuda_driver, "_library", Driver)
    gpu = cuda_driver.Cuda()
    assert (gpu.name, gpu.capability) == ("Orin", (8, 7))
    lib = types.SimpleNamespace
    assert runner.device_of(gpu, lib(__name__="tensorrt")) == "Orin (SM 8.7)"
    assert runner.device_of(gpu, lib(__name__="tensorrt_rtx")) == "any RTX"
    assert runner.device_of(None, lib(__name__="tensorrt")) == "none"


@pytest.mark.parametrize(
    "driver, number, error, message",
    [
        (Driver(fails={"cuInit": 100}), 0, UserError, "no NVIDIA GPU here, or no driver"),
        (Driver(count=1), 1, UserError, "no GPU number 1 here; there are 1"),
        (Driver(fails={"cuDevicePrimaryCtxRetain": 2}), 0, MemoryError, "out of GPU memory"),
        (Driver(fails={"cuCtxSetCurrent": 700}), 0, RuntimeError, "cuCtxSetCurrent: code 700"),
    ],
)
def test_gpus_that_are_none(driver, number, error, message, monkeypatch):
    monkeypatch.setattr(cuda_driver, "_library", lambda: driver)
    with pytest.raises(error, match=message):
        cuda_driver.Cuda(number)


def test_a_gpu_in_a_bad_state_is_an_error_of_the_user(place, monkeypatch):
    path = place()

    def fail(number):
        raise RuntimeError("cuCtxSetCurrent: an illegal memory access was encountered")

    monkeypatch.setattr(runner, "Cuda", fail)
    with pytest.raises(UserError, match="the GPU cannot be used .*illegal memory access"):
        open_detector(path)


def test_no_driver_is_no_gpu(monkeypatch):
    monkeypatch.setattr(cuda_driver, "NAMES", ("libnothing_of_the_kind.so",))
    assert cuda_driver.find_gpu() is None and runner.devices() == []
    with pytest.raises(UserError, match="An engine runs nowhere else; run the .onnx file"):
        cuda_driver.Cuda()
