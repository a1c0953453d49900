"""The network alone in Caffe2, onnxruntime, OpenCV and torch: the same net, in one process, where Caffe2 is.

    python benchmarks/caffe2.py --python PYTHON39 [--nets mb1-ssd mb2-ssd-lite] [--threads 1] [--rounds 10]

PYTHON39 is a Python with torch 1.10.2 (docs/caffe2.md says how to make one, tests/runtimes/test_caffe2.py makes one
in .envs/). Each net is made and written here, with today's torch; there its files are opened by the same code that
every script uses, and torch 1.10.2 runs it as traced here, norms folded, channels last. One image of the net's size
goes in. The contenders take turns, round after round, and of each the best and the middle round are told. Before
anything is timed all must give the same scores and boxes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # instead of this folder, where the name caffe2 means this file

CLASSES = ("BACKGROUND", *(f"class{i}" for i in range(1, 21)))
TOLERANCE = 1e-3


# --- today's Python -----------------------------------------------------------------------------------------


def write(name: str, folder: Path) -> None:
    """A net with random weights: traced, its ONNX file, its pair."""
    import torch

    from vision.caffe2_net import pair_named
    from vision.card import write_sidecar
    from vision.export.caffe2 import convert, write_nets
    from vision.export.onnx import Plan, export
    from vision.runtimes.pytorch import TorchRun
    from vision.spec import InputSpec
    from vision.ssd import build

    torch.manual_seed(0)
    net = build(name, len(CLASSES)).eval()
    # Old releases run what is traced today, though they cannot run the code that builds the net.
    fast = TorchRun(net, torch.device("cpu")).net
    image = torch.zeros(1, 3, *net.size).contiguous(memory_format=torch.channels_last)
    torch.jit.save(torch.jit.trace(fast, image), str(folder / f"{name}.pt"))
    spec = InputSpec(*net.size, net.spec.input.mean, net.spec.input.std)
    exported = export(net, CLASSES, spec, Plan())
    (folder / f"{name}.onnx").write_bytes(exported.model.SerializeToString())
    write_nets(convert(exported.model, name), folder / name)
    write_sidecar(exported.card, pair_named(folder / name).predict)


# --- where Caffe2 is ----------------------------------------------------------------------------------------


def by_torch(path: Path, threads: int) -> Callable[[np.ndarray], Any]:
    import torch

    torch.set_num_threads(threads)
    net = torch.jit.load(str(path))

    def run(blob: np.ndarray) -> List[np.ndarray]:
        with torch.no_grad():
            images = torch.from_numpy(blob).contiguous(memory_format=torch.channels_last)
            return [output.numpy() for output in net(images)]

    return run


def measure(name: str, folder: Path, threads: int, rounds: int) -> Dict[str, List[float]]:
    """Contender -> seconds of every round."""
    from vision.card import test_image
    from vision.runtimes import open_detector

    detectors = {
        "caffe2": open_detector(folder / name, "caffe2", threads=threads),
        "onnxruntime": open_detector(folder / f"{name}.onnx", "onnxruntime", provider="cpu", threads=threads),
        "opencv": open_detector(folder / f"{name}.onnx", "opencv", provider="cpu", threads=threads),
    }
    runs: Dict[str, Any] = {key: detector.run for key, detector in detectors.items()}
    runs["torch"] = by_torch(folder / f"{name}.pt", threads)
    first = detectors["caffe2"]
    blob = first.preprocess([test_image(first.input.size)])
    expected = runs["onnxruntime"](blob)
    for key, run in runs.items():
        for a, b in zip(run(blob), expected):
            worst = float(np.abs(a - b).max())
            if not worst <= TOLERANCE:
                raise SystemExit(f"{name}: {key} is off by {worst:.2g}")
    seconds: Dict[str, List[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            start = time.perf_counter()
            run(blob)
            seconds[key].append(time.perf_counter() - start)
    return seconds


def versions() -> Dict[str, str]:
    import cv2
    import onnxruntime
    import torch

    found: List[Tuple[str, Any]] = [("torch", torch), ("onnxruntime", onnxruntime), ("OpenCV", cv2)]
    return {name: module.__version__ for name, module in found}


# --- both ---------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default="", metavar="PYTHON39", help="that has Caffe2")
    parser.add_argument("--nets", nargs="+", default=["mb1-ssd", "mb2-ssd-lite"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        folder = Path(arguments.measure)
        found = {n: measure(n, folder, arguments.threads, arguments.rounds) for n in arguments.nets}
        (folder / "found.json").write_text(json.dumps({"versions": versions(), "seconds": found}))
        return
    made = sorted((ROOT / ".envs").glob("caffe2-*/bin/python"))
    python = arguments.python or (str(made[-1]) if made else "")
    if not python:
        parser.error("--python is needed: no environment with Caffe2 is in .envs/")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.nets:
            write(name, Path(folder))
        words = [
            "--threads",
            str(arguments.threads),
            "--rounds",
            str(arguments.rounds),
            "--nets",
            *arguments.nets,
        ]
        subprocess.run([python, __file__, "--measure", folder, *words], check=True)
        found = json.loads((Path(folder) / "found.json").read_text())
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")
    show(found, arguments.threads, arguments.rounds)


def show(found: Dict[str, Any], threads: int, rounds: int) -> None:
    """A table for each net."""
    print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    for name, seconds in found["seconds"].items():
        print(
            f"\n{name}, {threads} threads, {rounds} rounds: best and middle ms, times as fast as Caffe2 (best)"
        )
        base = min(seconds["caffe2"])
        for key, values in seconds.items():
            best, middle = min(values), float(np.median(values))
            print(f"  {key:12} {best * 1e3:8.1f} {middle * 1e3:8.1f} {base / best:8.2f}")


if __name__ == "__main__":
    main()
