"""Engines: `python -m vision.export.tensorrt MODEL.onnx`, on the device that will run them. No torch.

One builder for TensorRT 8.0 to 11 and TensorRT-RTX. It asks the library what it has and looks at no version number:

    strongly typed networks (10, 11, RTX)   the precision is in the graph: FP16, or QDQ with an FP16 body
    else (8)                                the float32 graph and the flag FP16, with the tail pinned to float32;
                                            QDQ in a float32 body and the flags INT8 and FP16

An engine stands beside a JSON that says what it was made of and for. As long as that is what is asked for now, the
engine is taken from the disk; else it is built again, with one line that says why.
"""

import hashlib
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import vision
from vision import cli
from vision.card import ModelCard, read_card, sidecar
from vision.cli import option
from vision.errors import UserError
from vision.export.files import replaced, write_bytes, write_text
from vision.export.tail import Step, tail
from vision.onnx_header import Tensor, read_header
from vision.runtimes.cuda_driver import Cuda, find_gpu
from vision.runtimes.tensorrt import (
    LIBRARIES,
    collecting_logger,
    created,
    device_of,
    engine_facts,
    library,
    version_of,
)

log = logging.getLogger(__name__)

PathLike = Union[str, Path]
Say = Callable[[str], None]

DESCRIPTION = "Build a TensorRT engine of an exported net, for the GPU of this machine."

PRECISIONS = ("fp32", "fp16", "int8", "fp8", "auto")

FP8_CAPABILITY = (8, 9)
"""The first GPUs that compute in FP8 (Ada, Hopper)."""

FULL_MEMORY = ("memory", "alloc")

COMPUTING = {"CONVOLUTION": "Conv", "SHUFFLE": "Reshape", "CONCATENATION": "Concat", "IDENTITY": "Identity"}
"""TensorRT's kinds of layers in ONNX's words, those that the rule of the tail knows; all others compute."""


@dataclass
class PrecisionOptions:
    """How exact an exported net computes, and on which images that is judged. Shared by the scripts that export."""

    precision: str = option(
        "", "fp32, fp16, int8, fp8, or auto: INT8 as far as the accuracy allows", choices=PRECISIONS
    )
    calib: str = option("", "folder of images, or a data set, for INT8 and FP8", metavar="DIR")
    accuracy: float = option(0.99, "share of the float32 mAP that must be left; 0 takes everything")
    keep: List[str] = option([], "convolutions that stay in higher precision", metavar="NAME")

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise UserError(f"--accuracy {self.accuracy} is outside 0..1; it is a share, 0.99 for 99 %")


@dataclass
class BuildOptions(PrecisionOptions):
    """Options of `python -m vision.export.tensorrt`. Raises UserError for values out of range."""

    model: List[str] = option([], "file of onnx_export.py", metavar="MODEL.onnx", positional=True)
    output: str = option("", "engine to write (default: beside the model)", metavar="FILE")
    verify: str = option(
        "", "data set whose test split accuracy is measured on (default: --calib)", metavar="DIR"
    )
    opt_batch: int = option(1, "images at once that it is tuned for, of a file with a dynamic batch")
    max_batch: int = option(8, "images at once that it must take")
    workspace: int = option(0, "MiB of GPU memory for the search and the run (0: TensorRT decides)")
    tf32: bool = option(False, "let float32 convolutions round to TF32")
    timing_cache: str = option(
        "", "file that remembers what was timed (default: beside the engine)", metavar="FILE"
    )
    compute_capability: List[str] = option(
        [], "GPUs to build for, 8.9 12.0 ... (TensorRT-RTX; default: the one here, else any)", metavar="SM"
    )
    library: str = option("", "tensorrt or tensorrt_rtx (default: the first that is installed)")
    gpu: int = option(0, "number of the GPU")
    rebuild: bool = option(False, "build also where an engine is there that fits")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.opt_batch <= self.max_batch:
            raise UserError(f"--opt_batch {self.opt_batch} is outside 1..{self.max_batch} (--max_batch)")
        if self.workspace < 0:
            raise UserError(f"--workspace {self.workspace} is below 0")
        if self.library and self.library not in LIBRARIES:
            raise UserError(f"--library {self.library} is none of {', '.join(LIBRARIES)}")
        for name in self.compute_capability:
            major, dot, minor = name.partition(".")
            if not (major.isdigit() and dot and minor.isdigit()):
                raise UserError(f"--compute_capability {name!r} is none; write 8.9")


class Built(NamedTuple):
    """An engine on the disk: where, what is known of it, whether it was there already, seconds of building."""

    path: Path
    facts: Dict[str, Any]
    cached: bool
    seconds: float


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = cli.parse(BuildOptions, argv, DESCRIPTION)
    if len(options.model) != 1:
        raise UserError("name one .onnx file of onnx_export.py")
    built = build(options.model[0], options, options.output or None, print)
    print(report(built))  # noqa: T201
    return 0


def report(built: Built) -> str:
    """What to tell people."""
    facts = built.facts
    how = "from the disk" if built.cached else f"built in {built.seconds:.0f} s"
    size = built.path.stat().st_size / 1e6
    what = f"{facts['precision']}, {facts['tensorrt']}, for {facts['device']}"
    return f"Engine {built.path} ({size:.1f} MB; {what}), {how}"


# --- what is wanted -----------------------------------------------------------------------------------------


def build(
    model: PathLike,
    options: Optional[BuildOptions] = None,
    output: Optional[PathLike] = None,
    say: Say = log.info,
) -> Built:
    """An engine of an ONNX file, from the disk where one is there that fits.

    Args:
        model: an ONNX file in float32, or one whose precision is in the graph already.
        output: where the engine goes; beside the model otherwise.
        say: is told in lines what goes on.

    Raises UserError when TensorRT or what the precision needs is not installed, when the graph cannot be built, the
    memory does not suffice, or too little accuracy is left. Then nothing is left behind.
    """
    options = options or BuildOptions()
    model = Path(model)
    header = read_header(model)
    card = read_card(model)
    lib = library(options.library)
    gpu = find_gpu(options.gpu)
    has = Abilities(lib)
    own = card.precision if card is not None else "fp32"
    precision = options.precision or own
    if own != "fp32" and precision != own:
        raise UserError(
            f"{model} is {own.upper()} already; build the float32 file of the same net with {precision}"
        )
    if gpu is None and not has.builds_anywhere:
        raise UserError(
            f"{version_of(lib)} builds on the GPU that will run the engine, and there is none here. Copy {model.name} "
            "to that machine and build there (TensorRT-RTX also builds without one: pip install tensorrt-rtx-cu13)"
        )
    _check_fp8(precision, options, gpu, has, lib)
    path = Path(output) if output else model.with_name(f"{model.stem}-{precision}.engine")
    if path.suffix.lower() not in (".engine", ".plan", ".trt"):
        raise UserError(f"--output {path} does not end with .engine, by which runtimes know it")
    wanted = _wanted(model, header.inputs[0], options, lib, gpu, precision)
    reason = _stale(path, wanted, options.rebuild)
    if not reason:
        return Built(path, engine_facts(path) or {}, True, 0.0)
    say(f"{path.name}: {reason}")
    graph = graph_for(model, card, precision, options, has, say)
    started = time.perf_counter()
    job = _Job(lib, has, graph, options, path, say)
    plan = job.run(header.inputs[0])
    seconds = time.perf_counter() - started
    facts = {
        **wanted,
        **graph.facts,
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "vision": vision.__version__,
    }
    _write(path, plan, graph.card, facts)
    return Built(path, facts, False, seconds)


def _check_fp8(
    precision: str, options: BuildOptions, gpu: Optional[Cuda], has: "Abilities", lib: Any
) -> None:
    if precision != "fp8":
        return
    if not has.strong:
        raise UserError(
            f"{version_of(lib)} knows no FP8 convolutions; TensorRT 10 does. Take --precision int8"
        )
    targets = [tuple(map(int, name.split("."))) for name in options.compute_capability]
    if not targets and gpu is not None:
        targets = [gpu.capability]
    old = [target for target in targets if target < FP8_CAPABILITY]
    if old:
        raise UserError(
            "FP8 needs a GPU of compute capability {}.{} (Ada, Hopper) or newer; this is {}.{}. Take --precision "
            "int8".format(*FP8_CAPABILITY, *old[0])
        )


def _wanted(
    model: Path, image: Tensor, options: BuildOptions, lib: Any, gpu: Optional[Cuda], precision: str
) -> Dict[str, Any]:
    """Everything an engine hangs on: the key of the cache."""
    device = device_of(gpu, lib)
    if options.compute_capability:
        device = "SM " + " ".join(options.compute_capability)
    return {
        "onnx": model.name,
        "onnx_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "library": lib.__name__,
        "tensorrt": version_of(lib),
        "device": device,
        "precision": precision,
        "keep": sorted(options.keep),
        "calib": options.calib and Path(options.calib).name,
        "profile": [list(shape) for shape in profile_of(image, options) or ()],
        "tf32": options.tf32,
        "workspace": options.workspace,
    }


_WHY = {
    "onnx_sha256": "the ONNX file has changed",
    "tensorrt": "it was built by {}, and this is {}",
    "library": "it was built by {}, and this is {}",
    "device": "it was built for {}, and this is {}",
    "precision": "its precision is {}, and {} is asked for",
    "profile": "its batch sizes were {}, and {} are asked for",
}


def _stale(path: Path, wanted: Dict[str, Any], rebuild: bool) -> str:
    """Why an engine must be built, in a line; "" where the one on the disk is right."""
    if not path.is_file():
        return "building"
    if rebuild:
        return "building again, as asked for"
    facts = engine_facts(path)
    if facts is None:
        return "building again: nothing beside it says what it is"
    for name, value in wanted.items():
        if name != "onnx" and facts.get(name) != value:
            why = _WHY.get(name, f"its {name} was {{}}, and {{}} is asked for").format(facts.get(name), value)
            return f"building again: {why}"
    if hashlib.sha256(path.read_bytes()).hexdigest() != facts.get("plan_sha256"):
        return "building again: it is damaged"
    return ""


def profile_of(image: Tensor, options: BuildOptions) -> Optional[Tuple[Tuple[int, ...], ...]]:
    """Smallest, tuned and largest shape of the input; None where the graph's is fixed."""
    if None not in image.shape:
        return None
    if None in image.shape[1:]:
        raise UserError(f"the input {image.name} has sides that are not fixed; only the batch may vary")
    rest = tuple(int(side or 0) for side in image.shape[1:])
    return tuple((batch, *rest) for batch in (1, options.opt_batch, options.max_batch))


# --- the library's abilities --------------------------------------------------------------------------------


class Abilities:
    """What a TensorRT can do, asked of it.

    Attributes:
        strong: networks whose types are those of the graph.
        flags: there are precision flags, for networks that are not.
        builds_anywhere: without a GPU.
    """

    def __init__(self, lib: Any) -> None:
        creation = getattr(lib, "NetworkDefinitionCreationFlag", None)
        self.flags = hasattr(lib.BuilderFlag, "FP16")
        # Where there are no precision flags, every network is strongly typed.
        self.strong = hasattr(creation, "STRONGLY_TYPED") or not self.flags
        self.builds_anywhere = hasattr(lib, "ComputeCapability") or hasattr(
            lib.IBuilderConfig, "set_compute_capability"
        )


class Graph(NamedTuple):
    """What goes into the parser: bytes, flags to be set with them, the card, and more facts for the JSON."""

    content: bytes
    flags: Tuple[str, ...]
    card: Optional[ModelCard]
    facts: Dict[str, Any]


def graph_for(
    model: Path,
    card: Optional[ModelCard],
    precision: str,
    options: BuildOptions,
    has: Abilities,
    say: Say = log.info,
) -> Graph:
    """The graph and flags by which this TensorRT computes in this precision; measured, where there are images."""
    content = model.read_bytes()
    own = card.precision if card is not None else "fp32"
    if precision == "fp32":
        return Graph(content, (), card, {})
    if own != "fp32":  # made and measured at the export
        return Graph(content, () if has.strong else _weak_flags(own), card, {})
    if precision == "fp16" and not has.strong and not (options.calib or options.verify):
        # The flag alone does it, and a board needs neither the onnx package nor ONNX Runtime for it.
        return Graph(content, ("FP16",), card and _as_fp16(card), {})
    if card is None:
        raise UserError(
            f"{model} says nothing of itself; {precision} needs a file of onnx_export.py, which knows how images are "
            "prepared"
        )
    try:
        import onnx

        from vision.export import accuracy
    except ImportError as error:
        raise UserError(
            f"{precision} changes the graph, which needs {error.name}: pip install onnx onnxruntime"
        ) from error
    material = accuracy.open_material(options.calib, options.verify)
    body = "float16" if has.strong else "float32"
    result = accuracy.reduce(
        onnx.load(str(model)), card, precision, material, options.accuracy, options.keep, body, say
    )
    say(str(result))
    facts: Dict[str, Any] = {
        "mean_ap": result.mean_ap,
        "mean_ap_fp32": result.full,
        "kept": list(result.kept),
    }
    if result.card.precision == "fp16" and not has.strong:
        return Graph(content, ("FP16",), _as_fp16(result.card), facts)
    graph = result.model.SerializeToString(deterministic=True)
    return Graph(graph, () if has.strong else _weak_flags(result.card.precision), result.card, facts)


def _weak_flags(precision: str) -> Tuple[str, ...]:
    return {"fp16": ("FP16",), "int8": ("INT8", "FP16"), "fp8": ("FP8", "FP16")}.get(precision, ())


def _as_fp16(card: ModelCard) -> ModelCard:
    import dataclasses

    test = card.self_test and dataclasses.replace(
        card.self_test, tolerance=max(card.self_test.tolerance, 0.03)
    )
    return dataclasses.replace(card, precision="fp16", self_test=test)


# --- building -----------------------------------------------------------------------------------------------


class _Job:
    """One build."""

    def __init__(
        self, lib: Any, has: Abilities, graph: Graph, options: BuildOptions, path: Path, say: Say
    ) -> None:
        self.lib, self.has, self.graph, self.options, self.path, self.say = (
            lib,
            has,
            graph,
            options,
            path,
            say,
        )
        self.log = collecting_logger(lib)

    def run(self, image: Tensor) -> bytes:
        """The plan. Raises UserError."""
        try:
            return self._run(image)
        except MemoryError as error:
            raise self._failed(str(error) or "out of memory") from error
        except RuntimeError as error:  # what the bindings raise for the library's exceptions
            raise self._failed(str(error)) from error

    def _run(self, image: Tensor) -> bytes:
        if hasattr(self.lib, "init_libnvinfer_plugins"):
            self.lib.init_libnvinfer_plugins(self.log, "")
        builder = created(self.lib, "Builder", self.log)
        if builder is None:
            raise self._failed("it does not start here; is the driver new enough for it?")
        network = builder.create_network(self._creation_flags())
        if network is None:
            raise self._failed("no network")
        parser = self.lib.OnnxParser(network, self.log)
        if not parser.parse(self.graph.content):
            raise UserError(self._refused(parser))
        config = builder.create_builder_config()
        self._configure(builder, network, config, image)
        cache = self._timing_cache(config)
        plan = self._serialized(builder, network, config)
        if plan is None:
            raise self._failed("no engine came out")
        if cache is not None:
            self._save_cache(config)
        return bytes(plan)

    def _creation_flags(self) -> int:
        """Bits have changed their meaning between versions; only members are asked."""
        creation: Any = getattr(self.lib, "NetworkDefinitionCreationFlag", None)
        flags = 0
        if hasattr(creation, "EXPLICIT_BATCH"):
            flags |= 1 << int(creation.EXPLICIT_BATCH)
        if self.has.strong and hasattr(creation, "STRONGLY_TYPED"):
            flags |= 1 << int(creation.STRONGLY_TYPED)
        return flags

    def _configure(self, builder: Any, network: Any, config: Any, image: Tensor) -> None:
        lib, options = self.lib, self.options
        for name in self.graph.flags:
            if not hasattr(lib.BuilderFlag, name):
                raise UserError(f"{version_of(lib)} knows no {name}; take another --precision")
            config.set_flag(getattr(lib.BuilderFlag, name))
        if "FP16" in self.graph.flags:
            self._pin_tail(network, config)
        if not options.tf32 and hasattr(lib.BuilderFlag, "TF32"):
            config.clear_flag(lib.BuilderFlag.TF32)
        if options.workspace:
            if hasattr(config, "set_memory_pool_limit"):
                config.set_memory_pool_limit(lib.MemoryPoolType.WORKSPACE, options.workspace << 20)
            else:
                config.max_workspace_size = options.workspace << 20
        elif not hasattr(config, "set_memory_pool_limit"):
            config.max_workspace_size = 512 << 20  # the default of TensorRT 8.0 to 8.3 is nothing at all
        shapes = profile_of(image, options)
        if shapes is not None:
            profile = builder.create_optimization_profile()
            profile.set_shape(image.name, *shapes)
            config.add_optimization_profile(profile)
        if options.compute_capability:
            self._choose_devices(config)
        if hasattr(lib, "IProgressMonitor") and hasattr(config, "progress_monitor") and sys.stderr.isatty():
            config.progress_monitor = progress_monitor(lib)
        elif not self.has.builds_anywhere:
            self.say("TensorRT times its kernels now, which takes minutes")

    def _choose_devices(self, config: Any) -> None:
        if not hasattr(config, "set_compute_capability"):
            raise UserError(
                f"{version_of(self.lib)} builds for the GPU of this machine only; leave --compute_capability out"
            )
        config.num_compute_capabilities = len(self.options.compute_capability)
        for i, name in enumerate(self.options.compute_capability):
            member = "SM" + name.replace(".", "")
            if not hasattr(self.lib.ComputeCapability, member):
                members = [m for m in dir(self.lib.ComputeCapability) if m.startswith("SM")]
                known = [f"{m[2:-1]}.{m[-1]}" for m in sorted(members, key=lambda m: int(m[2:]))]
                raise UserError(
                    f"{version_of(self.lib)} does not build for SM {name}, only {', '.join(known)}"
                )
            config.set_compute_capability(getattr(self.lib.ComputeCapability, member), i)

    def _pin_tail(self, network: Any, config: Any) -> None:
        """Softmax and decoding in float32, where flags and not the graph say the precision."""
        steps, layers = network_steps(network)
        names = tail(steps)
        if not names:
            return
        for flag in ("OBEY_PRECISION_CONSTRAINTS", "STRICT_TYPES"):
            if hasattr(self.lib.BuilderFlag, flag):
                config.set_flag(getattr(self.lib.BuilderFlag, flag))
                break
        for name in names:
            layer = layers[name]
            floats = [
                i for i in range(layer.num_outputs) if layer.get_output(i).dtype == self.lib.DataType.FLOAT
            ]
            if not floats or str(layer.type).rpartition(".")[2] in ("CONSTANT", "SHAPE"):
                continue
            layer.precision = self.lib.DataType.FLOAT
            for i in floats:
                layer.set_output_type(i, self.lib.DataType.FLOAT)

    def _cache_file(self) -> Path:
        return (
            Path(self.options.timing_cache) if self.options.timing_cache else self.path.with_suffix(".timing")
        )

    def _timing_cache(self, config: Any) -> Any:
        """What earlier builds have timed; of another GPU or version it is not taken. RTX times nothing itself."""
        if not hasattr(config, "create_timing_cache") or self.has.builds_anywhere:
            return None
        place = self._cache_file()
        content = place.read_bytes() if place.is_file() else b""
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(cache, False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        return cache

    def _save_cache(self, config: Any) -> None:
        try:
            write_bytes(self._cache_file(), bytes(config.get_timing_cache().serialize()))
        except (UserError, AttributeError) as error:
            log.warning("the timing cache is not kept: %s", error)

    @staticmethod
    def _serialized(builder: Any, network: Any, config: Any) -> Any:
        if hasattr(builder, "build_serialized_network"):
            return builder.build_serialized_network(network, config)
        engine = builder.build_engine(network, config)
        return None if engine is None else engine.serialize()

    def _refused(self, parser: Any) -> str:
        said = []
        for i in range(parser.num_errors):
            error = parser.get_error(i)
            operator = _told(error, "node_operator") or ""
            node = _told(error, "node_name") or _told(error, "node")
            said.append(f"node {node}{f' ({operator})' if operator else ''}: {_told(error, 'desc')}")
        text = "; ".join(said[:3]) or "; ".join(self.log.lines[:3]) or "no reason given"
        return (
            f"{self.path}: {version_of(self.lib)} cannot read the graph: {text}. Export it again with onnx_export.py "
            "and the --target of this machine"
        )

    def _failed(self, why: str) -> UserError:
        lines = self.log.lines
        text = " ".join([lines[0] if lines else "", why]).strip()[:400]
        everything = " ".join([*lines, why]).lower()
        if any(word in everything for word in FULL_MEMORY):
            return UserError(
                f"{self.path}: not enough GPU memory to build it ({text}). Close other programs, give --workspace 256 "
                "or --max_batch 1, add swap on a board of 4 GB, or build from a smaller --resolution"
            )
        return UserError(f"{self.path}: {version_of(self.lib)} cannot build it ({text})")


def _told(error: Any, name: str) -> Any:
    value = getattr(error, name, None)
    return value() if callable(value) else value


def network_steps(network: Any) -> Tuple[List[Step], Dict[str, Any]]:
    """A network inside TensorRT for the rules of `vision.export.tail`; and its layers by those names."""
    steps, layers = [], {}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        kind = str(getattr(layer.type, "name", layer.type)).rpartition(".")[2]
        name = f"{i}:{layer.name}"
        tensors = [layer.get_input(k) for k in range(layer.num_inputs)]
        outputs = [layer.get_output(k).name for k in range(layer.num_outputs)]
        inputs = [tensor.name for tensor in tensors if tensor is not None]
        steps.append(Step(name, COMPUTING.get(kind, kind), inputs, outputs))
        layers[name] = layer
    return steps, layers


def progress_monitor(lib: Any) -> Any:
    """A line on the terminal that says how far the build is; Ctrl-C stops it."""

    class Monitor(lib.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            lib.IProgressMonitor.__init__(self)
            self.totals: Dict[str, int] = {}
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: Optional[str], num_steps: int) -> None:
            self.totals[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                total = max(self.totals.get(phase_name, 1), 1)
                sys.stderr.write(f"\r{phase_name[:50]:50} {100 * (step + 1) // total:3} %")
                sys.stderr.flush()
            except KeyboardInterrupt:
                self.stopped = True
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            sys.stderr.write("\r" + " " * 60 + "\r")

    return Monitor()


def _write(path: Path, plan: bytes, card: Optional[ModelCard], facts: Dict[str, Any]) -> None:
    """The plan and the JSON beside it: the card, with a part about the engine."""
    content: Dict[str, Any] = json.loads(card.to_json()) if card is not None else {}
    content["engine"] = facts
    with replaced(path) as temporary:
        temporary.write_bytes(plan)
        sidecar(path).unlink() if sidecar(path).exists() else None
    write_text(sidecar(path), json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run(main))
