"""The engine builder: what it asks of each TensorRT (made by hand, 8.0 to 11), and real engines of TensorRT-RTX.

TensorRT-RTX builds without a GPU. Its environment is made here, once, and kept in `.envs/` (git ignores it); where it
is not to be had, those tests are skipped and say so. Running an engine takes a GPU and is tested nowhere here.
"""

import hashlib
import json
import subprocess
import sys
import types
from enum import IntEnum
from pathlib import Path

import cv2
import onnx
import pytest

from vision.card import sidecar
from vision.errors import UserError
from vision.export import tensorrt as builder
from vision.export.onnx import Plan, export
from vision.export.verify import painted

pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.timeout(900)  # whoever comes first makes an environment

ROOT = Path(__file__).parents[2]
CLASSES = ("BACKGROUND", "disc", "square", "star")
PLAN = b"a plan of the fake"


# --- a TensorRT made by hand --------------------------------------------------------------------------------


def members(name, *names):
    return IntEnum(name, {each: i for i, each in enumerate(names)})


class Fake:
    """A library of one generation, and a record of what was asked of it.

    Args:
        generation: "8.2" (no strong typing, bindings), "8.6", "10", "11" or "rtx".
        says: what the builder logs; then no plan comes out.
        errors: of the parser.
    """

    def __init__(self, generation="8.6", says="", errors=(), raises=None):
        self.asked = asked = types.SimpleNamespace(
            flags=set(), cleared=set(), pinned=set(), network=None, shapes=None
        )
        lib = self.lib = types.ModuleType("tensorrt_rtx" if generation == "rtx" else "tensorrt")
        lib.__version__ = generation
        strong = generation in ("11", "rtx")

        class ILogger:
            INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

        class Config:
            def set_flag(self, flag):
                asked.flags.add(flag.name)

            def clear_flag(self, flag):
                asked.cleared.add(flag.name)

            def add_optimization_profile(self, profile):
                asked.shapes = profile.shapes

            def create_timing_cache(self, content):
                asked.cache = content
                return "cache"

            def set_timing_cache(self, cache, ignore):
                return True

            def get_timing_cache(self):
                return types.SimpleNamespace(serialize=lambda: b"timings")

        if generation not in ("8.2", "8.6"):
            Config.progress_monitor = None
        if generation != "8.2":
            Config.set_memory_pool_limit = lambda self, pool, size: setattr(asked, "workspace", size)
        if generation == "rtx":
            Config.set_compute_capability = lambda self, which, i: asked.flags.add(which.name)
            lib.ComputeCapability = members("ComputeCapability", "NONE", "SM75", "SM89", "SM120")

        class Layer:
            num_inputs = num_outputs = 1

            def __init__(self, name, kind, source, target):
                self.name, self.type = name, types.SimpleNamespace(name=kind)
                self.tensors = [
                    types.SimpleNamespace(name=n, dtype=lib.DataType.FLOAT) for n in (source, target)
                ]

            def get_input(self, i):
                return self.tensors[0]

            def get_output(self, i):
                return self.tensors[1]

            def __setattr__(self, name, value):
                if name == "precision":
                    asked.pinned.add(self.name)
                super().__setattr__(name, value)

        if not strong:
            Layer.set_output_type = lambda self, i, kind: asked.pinned.add(f"{self.name} out")

        class Network:
            def __init__(self):
                self.layers = [
                    Layer("conv", "CONVOLUTION", "input_0", "a"),
                    Layer("flat", "SHUFFLE", "a", "b"),
                    Layer("soft", "SOFTMAX", "b", "c"),
                ]
                self.num_layers = len(self.layers)

            def get_layer(self, i):
                return self.layers[i]

        class Parser:
            num_errors = len(errors)

            def __init__(self, network, log):
                pass

            def parse(self, content):
                asked.content = content
                return not errors

            def get_error(self, i):
                return errors[i]

        class Builder:
            def __init__(self, log):
                self.log = log

            def create_network(self, flags):
                asked.network = flags
                return Network()

            def create_builder_config(self):
                return Config()

            def create_optimization_profile(self):
                return Profile()

            def build_serialized_network(self, network, config):
                if raises:
                    raise raises
                if says:
                    self.log.log(ILogger.ERROR, says)
                    return None
                asked.builds = getattr(asked, "builds", 0) + 1
                return PLAN

        class Profile:
            shapes = ()

            def set_shape(self, name, smallest, usual, largest):
                self.shapes = smallest, usual, largest

        lib.ILogger, lib.OnnxParser, lib.Builder, lib.IBuilderConfig = ILogger, Parser, Builder, Config
        lib.INetworkDefinition, lib.ILayer, lib.IOptimizationProfile = Network, Layer, Profile
        lib.DataType = members("DataType", "FLOAT", "HALF")
        lib.MemoryPoolType = members("MemoryPoolType", "WORKSPACE")
        common = ("TF32", "GPU_FALLBACK")
        obey = ("OBEY_PRECISION_CONSTRAINTS", "FP8")
        weak = {"8.2": ("STRICT_TYPES",), "8.6": (*obey, "STRICT_TYPES"), "10": obey}
        lib.BuilderFlag = members(
            "BuilderFlag", *common, *(() if strong else ("FP16", "INT8", *weak[generation]))
        )
        # Bits change their meaning: 0 is EXPLICIT_BATCH in old ones and STRONGLY_TYPED in new ones.
        creation = {
            "10": ("EXPLICIT_BATCH", "STRONGLY_TYPED"),
            "11": ("STRONGLY_TYPED",),
            "rtx": ("STRONGLY_TYPED",),
        }
        lib.NetworkDefinitionCreationFlag = members(
            "Creation", *creation.get(generation, ("EXPLICIT_BATCH",))
        )


STAND_INS = [("8.6", "8.6"), ("10", "10.3"), ("10", "10.13"), ("11", "11")]


@pytest.mark.parametrize("generation, version", STAND_INS)
def test_the_stand_ins_can_nothing_that_the_real_ones_cannot(generation, version, check_stand_in, interface):
    lib = Fake(generation).lib
    for name in ("ILogger", "OnnxParser", "Builder", "IBuilderConfig", "INetworkDefinition", "ILayer"):
        check_stand_in(getattr(lib, name), name, version)
    check_stand_in(
        type("Profile", (), {"set_shape": lib.IOptimizationProfile.set_shape}),
        "IOptimizationProfile",
        version,
    )
    real = interface(version)["enums"]
    for name in ("BuilderFlag", "DataType", "MemoryPoolType"):
        assert set(getattr(lib, name).__members__) <= set(real[name]), name
    # What the builder asks about must be answered as the real one answers.
    for flag in ("FP16", "INT8", "FP8", "OBEY_PRECISION_CONSTRAINTS", "STRICT_TYPES", "TF32"):
        assert hasattr(lib.BuilderFlag, flag) == (flag in real["BuilderFlag"]), flag
    creation = real["NetworkDefinitionCreationFlag"]
    for flag in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
        assert getattr(lib.NetworkDefinitionCreationFlag, flag, None) == creation.get(flag), flag
    assert hasattr(lib, "ComputeCapability") == ("ComputeCapability" in real)


WITHOUT_DRIVER = """
import sys
from pathlib import Path
from vision.errors import UserError
from vision.export import tensorrt as builder
from vision.onnx_header import Tensor
lib, graph = builder.library("tensorrt"), builder.Graph(b"", (), None, {})
job = builder._Job(lib, builder.Abilities(lib), graph, builder.BuildOptions(), Path("a.engine"), print)
try:
    job.run(Tensor("input_0", "float32", (1, 3, 300, 300)))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("version", ["8.6", "10.3", "10.13", "11"])
def test_the_real_package_without_a_driver(version, bindings):
    said = bindings(version, WITHOUT_DRIVER)
    assert f"a.engine: tensorrt {version}." in said and "cannot build it (it does not start here" in said


class Orin:
    name, capability = "Orin", (8, 7)


@pytest.fixture
def machine(monkeypatch):
    """(Fake, GPU) -> what was asked of that library; it is the one that is installed."""

    def make(gpu=Orin, **how):
        fake = Fake(**how)
        monkeypatch.setattr(builder, "library", lambda name="": fake.lib)
        monkeypatch.setattr(builder, "find_gpu", lambda number=0: gpu and gpu())
        return fake.asked

    return make


@pytest.fixture(scope="module")
def exported(small, small_input):
    return export(small, CLASSES, small_input, Plan(dynamic_batch=True))


@pytest.fixture
def model(exported, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(exported.model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of pictures to calibrate with."""
    folder = tmp_path_factory.mktemp("images")
    for i, picture in enumerate(painted(3)):
        cv2.imwrite(str(folder / f"{i}.png"), picture[..., ::-1])
    return folder


def options(**more):
    return builder.BuildOptions(**more)


def rounding(content):
    return {n.op_type for n in onnx.load_from_string(content).graph.node} & {"QuantizeLinear", "Cast"}


@pytest.mark.parametrize(
    "generation, precision, network, flags, changed",
    [
        ("8.2", "fp32", 1, set(), set()),
        ("8.2", "fp16", 1, {"FP16", "STRICT_TYPES"}, set()),
        ("8.2", "int8", 1, {"FP16", "INT8", "STRICT_TYPES"}, {"QuantizeLinear"}),
        ("8.6", "fp16", 1, {"FP16", "OBEY_PRECISION_CONSTRAINTS"}, set()),
        ("8.6", "int8", 1, {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"}, {"QuantizeLinear"}),
        ("10", "fp32", 3, set(), set()),
        ("10", "fp16", 3, set(), {"Cast"}),
        ("10", "int8", 3, set(), {"QuantizeLinear", "Cast"}),
        ("11", "fp16", 1, set(), {"Cast"}),
        ("rtx", "int8", 1, set(), {"QuantizeLinear", "Cast"}),
    ],
)
def test_precision_is_in_the_graph_or_in_flags(
    generation, precision, network, flags, changed, machine, model, images
):
    asked = machine(generation=generation)
    calib = str(images) if precision == "int8" else ""
    built = builder.build(model, options(precision=precision, calib=calib))
    assert (asked.network, asked.flags, rounding(asked.content)) == (network, flags, changed)
    assert asked.cleared == {"TF32"}
    assert asked.pinned == ({"soft", "soft out"} if "FP16" in flags else set())
    assert asked.shapes == ((1, 3, 96, 128), (1, 3, 96, 128), (8, 3, 96, 128))
    assert built.path.name == f"net-{precision}.engine" and built.path.read_bytes() == PLAN


def test_what_stands_beside_an_engine(machine, model):
    machine()
    built = builder.build(model, options(precision="fp16", max_batch=4))
    content = json.loads(sidecar(built.path).read_text())
    assert content["classes"] == list(CLASSES) and content["precision"] == "fp16"
    facts = content["engine"]
    assert facts == built.facts
    assert (
        facts["onnx"] == "net.onnx" and facts["onnx_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    )
    assert (facts["tensorrt"], facts["device"]) == ("tensorrt 8.6", "Orin (SM 8.7)")
    assert facts["profile"] == [[1, 3, 96, 128], [1, 3, 96, 128], [4, 3, 96, 128]]
    assert facts["plan_sha256"] == hashlib.sha256(PLAN).hexdigest()
    names = sorted(path.name for path in model.parent.iterdir())
    assert names == ["net-fp16.engine", "net-fp16.engine.json", "net-fp16.timing", "net.onnx"]


def test_the_workspace_under_both_names(machine, model):
    asked = machine(generation="8.6")
    builder.build(model, options(workspace=256))
    assert asked.workspace == 256 << 20
    machine(generation="8.2")  # has max_workspace_size only, which needs no setter here
    builder.build(model, options(workspace=256))


# --- the cache ----------------------------------------------------------------------------------------------


def touch_model(model, machine):
    model.write_bytes(model.read_bytes() + b"\x72\x00")  # one more, empty, line of metadata
    return {}


def other_version(model, machine):
    machine(generation="10")
    return {}


def other_gpu(model, machine):
    machine(gpu=type("Xavier", (), {"name": "Xavier", "capability": (7, 2)}))
    return {}


def cut(model, machine):
    engine = model.with_name("net-fp32.engine")
    engine.write_bytes(engine.read_bytes()[:-1])
    return {}


def no_facts(model, machine):
    sidecar(model.with_name("net-fp32.engine")).unlink()
    return {}


@pytest.mark.parametrize(
    "change, reason",
    [
        (touch_model, "the ONNX file has changed"),
        (other_version, "it was built by tensorrt 8.6, and this is tensorrt 10"),
        (other_gpu, r"it was built for Orin \(SM 8.7\), and this is Xavier \(SM 7.2\)"),
        (cut, "it is damaged"),
        (no_facts, "nothing beside it says what it is"),
        (lambda model, machine: {"max_batch": 2}, "its batch sizes were"),
        (lambda model, machine: {"rebuild": True}, "as asked for"),
    ],
)
def test_a_stale_engine_is_built_again_with_one_line(change, reason, machine, model):
    machine()
    builder.build(model)
    assert builder.build(model).cached, "the same once more is on the disk"
    said = []
    built = builder.build(model, options(**change(model, machine)), say=said.append)
    assert not built.cached
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(said[0])
    assert builder.build(model, options(**({"max_batch": 2} if "batch" in reason else {}))).cached


def test_a_timing_cache_is_used_the_next_time(machine, model):
    asked = machine()
    builder.build(model)
    assert asked.cache == b""
    builder.build(model, options(rebuild=True))
    assert asked.cache == b"timings"


# --- what cannot be built -----------------------------------------------------------------------------------


def parser_error(**facts):
    return types.SimpleNamespace(**{name: (lambda value=value: value) for name, value in facts.items()})


@pytest.mark.parametrize(
    "how, asked, message",
    [
        ({"errors": [parser_error(node=3, node_name="Foo_3", node_operator="Foo", desc="no importer registered")]}, {},
         r"cannot read the graph: node Foo_3 \(Foo\): no importer registered"),
        ({"errors": [parser_error(node=3, desc="no importer")]}, {}, "node 3: no importer"),
        ({"says": "Could not find any implementation for node x"}, {}, "cannot build it .Could not find any"),
        ({"says": "Cuda Runtime (out of memory)"}, {}, "not enough GPU memory to build it .*--workspace 256"),
        ({"raises": MemoryError()}, {}, "not enough GPU memory to build it"),
        ({"raises": RuntimeError("std::bad_alloc")}, {}, "not enough GPU memory to build it"),
        ({"gpu": None}, {}, "builds on the GPU that will run the engine, and there is none here"),
        ({"generation": "8.6"}, {"precision": "fp8"}, "knows no FP8 convolutions"),
        ({"generation": "10"}, {"precision": "fp8"}, "needs a GPU of compute capability 8.9 .* this is 8.7"),
        ({"generation": "10"}, {"precision": "int8"}, "needs images to find its scales with: --calib"),
        ({"generation": "10"}, {"compute_capability": ["8.9"]}, "for the GPU of this machine only"),
        ({"generation": "rtx"}, {"compute_capability": ["9.9"]}, "does not build for SM 9.9, only 7.5, 8.9, 12.0"),
        ({}, {"precision": "fp16", "keep": ["Conv_0"], "calib": "/nowhere"}, "no such folder"),
    ],
)  # fmt: skip
def test_builds_that_fail_leave_nothing_behind(how, asked, message, machine, model):
    machine(**how)
    with pytest.raises(UserError, match=message):
        builder.build(model, options(**asked))
    assert [path.name for path in model.parent.iterdir()] == ["net.onnx"]


def test_calibration_on_an_empty_folder(machine, model, tmp_path):
    machine(generation="10")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="empty: holds no image"):
        builder.build(model, options(precision="int8", calib=str(tmp_path / "empty")))
    assert sorted(path.name for path in model.parent.iterdir()) == ["empty", "net.onnx"]


def test_an_old_engine_survives_a_failed_build(machine, model):
    machine()
    built = builder.build(model)
    machine(says="Cuda Runtime (out of memory)")
    with pytest.raises(UserError, match="memory"):
        builder.build(model, options(rebuild=True))
    assert built.path.read_bytes() == PLAN and sidecar(built.path).exists()


def test_a_disk_that_refuses(machine, model, tmp_path):
    machine()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        builder.build(model, output=tmp_path / "file" / "net.engine")
    with pytest.raises(UserError, match="does not end with .engine"):
        builder.build(model, output=tmp_path / "net.bin")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"opt_batch": 9}, "--opt_batch 9 is outside 1..8"),
        ({"workspace": -1}, "--workspace -1"),
        ({"library": "torch"}, "--library torch"),
        ({"compute_capability": ["89"]}, "'89' is none; write 8.9"),
        ({"accuracy": 99.0}, "it is a share"),
    ],
)
def test_options_out_of_range(given, message):
    with pytest.raises(UserError, match=message):
        options(**given)


# --- the real library, where it can be had ------------------------------------------------------------------

PINS = ["tensorrt-rtx-cu13==1.7.1.116", "numpy", "opencv-python-headless", "onnx", "onnxruntime"]


@pytest.fixture(scope="session")
def rtx(environments):
    """Runs Python in an environment with TensorRT-RTX and no torch."""
    python = environments.venv("rtx", sys.executable, PINS)
    done = subprocess.run(
        [str(python), "-c", "import tensorrt_rtx"], capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        pytest.skip(f"TensorRT-RTX does not start here: {done.stderr.strip().splitlines()[-1]}")
    return environments.runner(python)


COMMAND = ("-m", "vision.export.tensorrt")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8"])
def test_real_engines(precision, rtx, model, images):
    calib = ("--calib", images) if precision in ("int8", "fp8") else ()
    said = rtx(*COMMAND, model, "--precision", precision, *calib)
    path = model.with_name(f"net-{precision}.engine")
    assert "building" in said and f"Engine {path}" in said and path.stat().st_size > 100_000
    assert json.loads(sidecar(path).read_text())["engine"]["device"] == "any RTX"
    assert "from the disk" in rtx(*COMMAND, model, "--precision", precision, *calib)
    # What runs it finds no GPU, and says so.
    code = f"from vision.runtimes import open_detector; open_detector({str(path)!r})"
    find = "from vision.runtimes.cuda_driver import find_gpu; print(find_gpu() or 'nothing')"
    if "nothing" not in rtx("-c", find):
        pytest.skip("there is a GPU here; benchmarks/tensorrt.py is the test for it")
    assert "there is no NVIDIA GPU here" in rtx("-c", code, code=1)


def test_the_doctor_sees_it(rtx):
    said = rtx("-m", "vision.doctor")
    assert "tensorrt_rtx  1.7.1" in said and "tensorrt     not installed" not in said


CENSUS = """
import json, sys
import onnx, tensorrt_rtx as trt
from pathlib import Path
from vision.card import read_card
from vision.export import tensorrt as builder

path = Path(sys.argv[1])
options = builder.BuildOptions(precision=sys.argv[2], calib=sys.argv[3])
graph = builder.graph_for(path, read_card(path), sys.argv[2], options, builder.Abilities(trt))
log = trt.Logger(trt.Logger.ERROR)
network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
assert parser.parse(graph.content)
found = {}
for i in range(network.num_layers):
    layer = network.get_layer(i)
    kind = layer.type.name
    types = [layer.get_input(k).dtype.name for k in range(layer.num_inputs) if layer.get_input(k) is not None]
    found.setdefault(kind, set()).update(types + ["-> " + layer.get_output(0).dtype.name])
print(json.dumps({kind: sorted(types) for kind, types in found.items()}))
for i in range(network.num_inputs):
    assert network.get_input(i).dtype == trt.float32
for i in range(network.num_outputs):
    assert network.get_output(i).dtype == trt.float32
"""


@pytest.mark.parametrize(
    "precision, convolutions, quantised",
    [("fp16", "HALF", None), ("int8", "HALF", "-> INT8"), ("fp8", "HALF", "-> FP8"), ("fp32", "FLOAT", None)],
)
def test_types_of_the_layers_in_the_real_library(precision, convolutions, quantised, rtx, model, images):
    said = rtx("-c", CENSUS, model, precision, images if precision in ("int8", "fp8") else "")
    found = json.loads(said.strip().splitlines()[-1])
    assert found["CONVOLUTION"] == [f"-> {convolutions}", convolutions]
    assert found["SOFTMAX"] == ["-> FLOAT", "FLOAT"]
    if quantised:
        assert quantised in found["QUANTIZE"]
    else:
        assert "QUANTIZE" not in found


def test_real_refusals(rtx, model, tmp_path):
    said = rtx(*COMMAND, model, "--precision", "fp8", "--compute_capability", "8.6", code=2)
    assert "FP8 needs a GPU of compute capability 8.9" in said
    wanted = onnx.load(str(model))
    wanted.graph.node[0].op_type = "Wavelet"
    (tmp_path / "odd.onnx").write_bytes(wanted.SerializeToString())
    said = rtx(*COMMAND, tmp_path / "odd.onnx", code=2)
    assert "error:" in said and "cannot read the graph" in said and "Wavelet" in said
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:5000])
    assert "damaged or cut short" in rtx(*COMMAND, tmp_path / "cut.onnx", code=2)
    assert not list(tmp_path.glob("*.engine*")) and not list(tmp_path.glob(".*"))
