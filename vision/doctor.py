"""What is installed here, what works, and what to do about the rest: `python -m vision.doctor`.

Nothing but the standard library is imported in this process: every package is tried in one of its own, so one that
is missing, broken, or ends in a crash is a line of the report. Exported files need no torch, nor does the doctor.
"""

import importlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import vision
from vision import cli
from vision.cli import option
from vision.errors import NotInstalled, UserError

DESCRIPTION = "Say what is installed here, which runtimes work, and what to do about what is missing."

SECONDS = 120
"""For one package. The first import of a large one from a slow card takes long."""

PACKAGES = ("numpy", "cv2", "torch", "torchvision", "onnx", "pandas", "matplotlib")
"""Whose versions are shown; runtimes are tried as well."""

OTHER_NUMPY = re.compile("numpy.core|_ARRAY_API|numpy.dtype size changed|compiled using NumPy", re.IGNORECASE)
"""What a package says that was built for numpy 1 when it meets numpy 2, or the other way round."""

# L4T release -> JetPack, and the target for `onnx_export.py` (NVIDIA's release notes).
JETPACKS: Tuple[Tuple[Tuple[int, int], str, str], ...] = (
    ((32, 4), "4.4", "jp44"),
    ((32, 5), "4.5", "jp44"),
    ((32, 6), "4.6", "jp46"),
    ((32, 7), "4.6.1 or later 4.6", "jp46"),
    ((35, 1), "5.0.2", "jp5"),
    ((35, 2), "5.1", "jp5"),
    ((36, 2), "6.0", "jp6"),
    ((36, 4), "6.1 or 6.2", "jp6"),
    ((38, 0), "7.0 or 7.1", "jp7"),
    ((39, 0), "7.2", "jp7"),
)


@dataclass
class DoctorOptions:
    """Options of `python -m vision.doctor`."""

    json: str = option("", "also write the report here as JSON", metavar="FILE")
    attempt: str = option("", "try one package only and print JSON (the doctor calls itself with this)")


@dataclass
class Report:
    """What was found.

    Attributes:
        machine, opencv: facts by name.
        packages: version of each, "" where it is not installed, or why it cannot be imported.
        runtimes: for each a list of (device, "" or why it does not work); one device "" when it cannot be imported.
        advice: what to do.
    """

    machine: Dict[str, str] = field(default_factory=dict)
    opencv: Dict[str, str] = field(default_factory=dict)
    packages: Dict[str, str] = field(default_factory=dict)
    runtimes: Dict[str, List[Tuple[str, str]]] = field(default_factory=dict)
    advice: List[str] = field(default_factory=list)

    @property
    def working(self) -> List[str]:
        """Runtimes that work on at least one device."""
        return [name for name, tries in self.runtimes.items() if any(not why for _, why in tries)]

    def text(self) -> str:
        """For people."""
        lines = [f"vision {vision.__version__}"]
        lines += _table(self.machine)
        lines += ["", "Packages"] + _table({n: v or "not installed" for n, v in self.packages.items()})
        if self.opencv:
            lines += ["", "OpenCV"] + _table(self.opencv)
        lines += ["", "Runtimes (each runs a tiny net and compares)"]
        lines += _table({name: _tries(tries) for name, tries in self.runtimes.items()})
        if self.advice:
            lines += ["", "What to do"] + [f"  - {one}" for one in self.advice]
        return "\n".join(lines)


def _table(facts: Dict[str, str]) -> List[str]:
    width = max([len(name) for name in facts] + [0])
    return [f"  {name.ljust(width)}  {value}" for name, value in facts.items()]


def _tries(tries: Sequence[Tuple[str, str]]) -> str:
    return "; ".join(
        f"works on {device}" if not why else (f"{device}: {why}" if device else why) for device, why in tries
    )


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = cli.parse(DoctorOptions, argv, DESCRIPTION)
    if options.attempt:
        print(json.dumps(attempt(options.attempt)))
        return 0
    report = examine()
    print(report.text())
    if options.json:
        content = {name: value for name, value in vars(report).items()}
        try:
            Path(options.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{options.json}: cannot be written ({error.strerror or error})") from error
    # Something that runs exported files is all a device needs.
    return 0 if report.working else 1


def examine() -> Report:
    """Look at everything."""
    report = Report(machine=machine())
    for name in PACKAGES:
        report.packages[name], facts = _version(name)
        if name == "cv2":
            report.opencv = facts
    for name, package in _runtimes().items():
        found = _in_a_process(name)
        if not found.get("there", True):
            report.runtimes[name] = [("", "not installed")]
        else:
            report.runtimes[name] = [(d, why) for d, why in found.get("tries", [])] or [
                ("", found.get("error") or "no device here that it runs on")
            ]
            report.packages.setdefault(found.get("package", package), found.get("version", "?").split("-")[0])
    report.advice = advise(report)
    return report


# --- the machine --------------------------------------------------------------------------------------------


def machine() -> Dict[str, str]:
    """The computer itself."""
    facts = {
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} on {platform.machine()}",
        "CPU cores": f"{_usable_cores()} usable",
    }
    memory = _memory()
    if memory:
        facts["memory"] = f"{memory:.1f} GB"
    model = Path("/proc/device-tree/model")
    if model.is_file():
        facts["board"] = model.read_bytes().decode("ascii", "replace").strip("\0\n ")
    release = Path("/etc/nv_tegra_release")
    if release.is_file():
        facts["JetPack"] = jetpack(release.read_text(encoding="utf-8", errors="replace"))[0]
    gpu = _nvidia()
    if gpu:
        facts["GPU"] = gpu
    return facts


def jetpack(text: str) -> Tuple[str, str]:
    """/etc/nv_tegra_release -> ("JetPack 5.1 (L4T 35.4.1)", "jp5"); the target is "any" for unknown releases."""
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+)(\.\d+)?", text)
    if not match:
        return "unknown (/etc/nv_tegra_release is of an unknown form)", "any"
    major, minor = int(match.group(1)), int(match.group(2))
    known = [line for line in JETPACKS if line[0][0] == major and line[0] <= (major, minor)]
    l4t = f"L4T {major}.{minor}{match.group(3) or ''}"
    if not known:
        return f"unknown ({l4t})", "any"
    return f"{known[-1][1]} ({l4t})", known[-1][2]


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Windows and macOS
        return os.cpu_count() or 1


def _memory() -> float:
    """Physical memory in GB; 0 where it is not told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):
        return 0.0


def _nvidia() -> str:
    """Name, memory and driver of NVIDIA's GPUs, as nvidia-smi tells them; "" without it."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(line.strip() for line in done.stdout.splitlines()) if done.returncode == 0 else ""


# --- packages, each in a process of its own -----------------------------------------------------------------


def _runtimes() -> Dict[str, str]:
    """Name -> package, read without importing them. detectnet is an emulation, nothing to be installed."""
    found = _in_a_process("table")
    if found.get("error"):
        # numpy or OpenCV itself is missing: then nothing works, and the packages above say why.
        return {}
    return {name: package for name, package in found["table"].items() if name != "detectnet"}


def _version(package: str) -> Tuple[str, Dict[str, str]]:
    """(version, "" or why it cannot be imported; more facts about it)."""
    found = _in_a_process(f"package:{package}")
    if not found.get("there", True):
        return "", {}
    return found.get("version") or f"broken: {found.get('error')}", found.get("facts", {})


def _in_a_process(what: str) -> Dict[str, Any]:
    """`attempt(what)` in another Python; a crash or a hang there is an "error" here."""
    command = [sys.executable, "-m", "vision.doctor", "--attempt", what]
    folder = str(Path(vision.__file__).resolve().parents[1])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"did not answer within {SECONDS} s"}
    if done.returncode < 0:
        return {"error": f"crashed ({_signal(-done.returncode)})"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return {"error": f"ended with code {done.returncode}: {last[:200]}"}


def _signal(number: int) -> str:
    try:
        return {signal.SIGILL: "illegal instruction", signal.SIGSEGV: "segmentation fault"}.get(
            signal.Signals(number), signal.Signals(number).name
        )
    except ValueError:
        return f"signal {number}"


def attempt(what: str) -> Dict[str, Any]:
    """Try one thing in this process: "table", "package:NAME" or a runtime's name. Never raises."""
    try:
        if what == "table":
            table = importlib.import_module("vision.runtimes").RUNTIMES
            return {"table": {name: line.needs for name, line in table.items()}}
        if what.startswith("package:"):
            return _import(what.split(":")[1])
        return _try_runtime(what)
    except Exception as error:  # whatever a broken installation comes up with is the finding
        return {"error": _reason(error)}


def _import(name: str) -> Dict[str, Any]:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return {"there": False}
        raise
    found = {"version": str(getattr(module, "__version__", "?"))}
    if name == "cv2":
        return {**found, "facts": opencv_facts(module.getBuildInformation())}
    return found


def _try_runtime(name: str) -> Dict[str, Any]:
    runtimes = importlib.import_module("vision.runtimes")
    line = runtimes.RUNTIMES[name]
    package = _package_of(line)
    if not package.get("there", True):
        return package
    module = importlib.import_module(f"vision.runtimes.{line.module}")
    tries: List[Tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = importlib.import_module("vision.runtimes.specimen").write_specimen(
            Path(folder) / "specimen.onnx"
        )
        for device in module.devices():
            try:
                if ".onnx" in line.suffixes:
                    runtimes.open_detector(path, name, provider=device)
                else:  # it reads other files; that it computes on the device must do
                    module.pick_device(device)
                tries.append((device, ""))
            except Exception as error:  # see `attempt`
                tries.append((device, _reason(error)))
    return {**package, "tries": tries}


def _package_of(line: Any) -> Dict[str, Any]:
    """The package of a line of RUNTIMES. (TensorRT's has several names and places, which its module knows.)"""
    if line.module != "tensorrt":
        return _import(line.needs)
    module = importlib.import_module("vision.runtimes.tensorrt")
    try:
        library = module.library()
    except NotInstalled:
        return {"there": False}
    return {"package": library.__name__, "version": str(getattr(library, "__version__", "?"))}


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A UserError begins with the name of a file that is gone by now.
    return re.sub(r"^\S*specimen\.onnx: ", "", (lines or [type(error).__name__])[0])[:300]


def opencv_facts(build: str) -> Dict[str, str]:
    """The lines of cv2.getBuildInformation() that decide what a device can do."""
    facts = {}
    for name, pattern in (
        ("windows (GUI)", r"^\s*GUI:\s*(.*)$"),
        ("GStreamer", r"^\s*GStreamer:\s*(.*)$"),
        ("FFMPEG", r"^\s*FFMPEG:\s*(.*)$"),
        ("V4L cameras", r"^\s*v4l/v4l2:\s*(.*)$"),
        ("CUDA", r"^\s*NVIDIA CUDA:\s*(.*)$"),
    ):
        match = re.search(pattern, build, re.MULTILINE)
        text = match.group(1).strip() if match else ""
        facts[name] = (
            "no" if text in ("", "NONE", "NO") else (text if text.startswith("YES") else f"YES ({text})")
        )
    return facts


# --- advice -------------------------------------------------------------------------------------------------


def advise(report: Report) -> List[str]:
    """What to do about what is missing or broken."""
    advice: List[str] = []
    packages, board = report.packages, report.machine
    is_jetson = "JetPack" in board or "tegra" in board.get("system", "")
    for name in ("numpy", "cv2"):
        why = packages.get(name, "")
        if not why or why.startswith("broken"):
            advice.append(_for_base(name, why))
    if packages.get("torchvision", "").startswith("broken"):
        advice.append(
            "torchvision must be of the release that belongs to torch (pytorch.org/get-started): pip install "
            "--force-reinstall torchvision with the version named there"
        )
    if report.opencv:
        advice += _for_opencv(report.opencv, is_jetson)
    files = [name for name in report.runtimes if name not in ("pytorch", "detectnet")]
    if report.runtimes and not any(name in report.working for name in files):
        advice.append("nothing here runs exported files: pip install onnxruntime")
    elif "onnxruntime" in report.runtimes and "onnxruntime" not in report.working:
        advice.append(
            "exported files run here, but ONNX Runtime is faster than OpenCV: pip install onnxruntime"
        )
    for name, tries in report.runtimes.items():
        for device, why in tries:
            advice += _for_failure(name, device, why)
    has_cuda = any(device.startswith("cuda") for device, why in report.runtimes.get("pytorch", []) if not why)
    if "GPU" in board and "pytorch" in report.working and not has_cuda:
        advice.append(
            "there is a GPU, but this PyTorch cannot use it: install the build for your CUDA "
            "(pytorch.org/get-started)"
        )
    if not packages.get("torch"):
        advice.append(
            "to train or to run .pth files: pip install torch torchvision (exported files need neither)"
        )
    target = jetson_target()
    if is_jetson and target:
        advice.append(f"files for this board: onnx_export.py MODEL --target {target}")
    return list(dict.fromkeys(advice))


def jetson_target() -> str:
    """What `onnx_export.py --target` is to be given for this board; "" where it is no Jetson."""
    release = Path("/etc/nv_tegra_release")
    return jetpack(release.read_text(encoding="utf-8", errors="replace"))[1] if release.is_file() else ""


def _for_base(name: str, why: str) -> str:
    package = {"cv2": "opencv-python-headless"}.get(name, name)
    if not why:
        return f"{name} is missing: pip install {package}"
    if "libGL" in why or "libgthread" in why:
        return "OpenCV lacks libraries of a desktop: pip uninstall opencv-python; pip install opencv-python-headless"
    if "illegal instruction" in why:
        return f"{name} crashes on this CPU: export OPENBLAS_CORETYPE=ARMV8 (in ~/.bashrc), then try again"
    if OTHER_NUMPY.search(why):
        return f'{name} was built for another numpy: pip install "numpy<2", or a newer {package}'
    return f"{name} is {why}: pip install --force-reinstall {package}"


def _for_opencv(facts: Dict[str, str], is_jetson: bool) -> List[str]:
    advice = []
    if is_jetson and facts["GStreamer"] == "no":
        advice.append(
            "this OpenCV came from pip and has no GStreamer, which CSI cameras need: pip uninstall "
            "opencv-python-headless, then JetPack's own is found (apt install python3-opencv)"
        )
    if facts["windows (GUI)"] == "no":
        advice.append(
            "this OpenCV shows no windows, only writes files. For windows: pip uninstall opencv-python-headless; "
            "pip install opencv-python"
        )
    return advice


def _for_failure(runtime: str, device: str, why: str) -> List[str]:
    if not why or why == "not installed":
        return []
    if "illegal instruction" in why:
        return [f"{runtime} crashes on this CPU: export OPENBLAS_CORETYPE=ARMV8, or install an older version"]
    if "fell back to" in why:
        return [
            f"{runtime} was built for {device} but cannot use it: its CUDA and cuDNN must be those it was built for "
            "(onnxruntime.ai, CUDA Execution Provider), or take --use_cuda False"
        ]
    if OTHER_NUMPY.search(why):
        return [f'{runtime} was built for another numpy: pip install "numpy<2", or a newer {runtime}']
    return [f"{runtime}{' on ' + device if device else ''} does not work: {why}"]


if __name__ == "__main__":
    sys.exit(cli.run(main))
