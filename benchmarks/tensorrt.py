"""Engines in FP32, FP16, INT8 and FP8 on the GPU of this machine: are they right, and how fast are they?

    python benchmarks/tensorrt.py MODEL.onnx --data DATASET [--precisions fp32 fp16 int8 fp8] [--json FILE]

MODEL.onnx is a float32 file of onnx_export.py, best with --dynamic_batch. For each precision the engine is built, then

parity     raw scores and boxes against ONNX Runtime on the CPU (float32), on 8 photographs
mAP        of the test split, through the whole pipeline, beside that of ONNX Runtime
network    milliseconds of a call with the blob in the CPU's memory: both copies and the network
whole      milliseconds from decoded photographs to detections: resizing, network, NMS
ungraphed  as network, without CUDA graphs

for 1 and for 8 images at once. Medians after a warm-up; the first line names GPU, TensorRT and driver. torch is not
needed. A precision that this GPU or this TensorRT cannot do is a line that says so, not the end.

As of this commit no GPU has run this script; its building half runs without one, with TensorRT-RTX (--build_only).
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

# Python looks for modules beside the script first, where `tensorrt` would be this file.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402

from vision.data import Dataset, open_dataset  # noqa: E402
from vision.data.images import read_image  # noqa: E402
from vision.detector import Detector  # noqa: E402
from vision.errors import UserError  # noqa: E402
from vision.evaluation.inference import mean_ap  # noqa: E402
from vision.export.tensorrt import BuildOptions, build, report  # noqa: E402
from vision.runtimes import open_detector  # noqa: E402
from vision.runtimes.cuda_driver import find_gpu  # noqa: E402
from vision.runtimes.tensorrt import library, version_of  # noqa: E402

PRECISIONS = ("fp32", "fp16", "int8", "fp8")
PHOTOGRAPHS, BATCHES = 8, (1, 8)


def median(work: Callable[[], Any], seconds: float) -> float:
    """Milliseconds of a call, after a tenth of the time as a warm-up."""
    end = time.perf_counter() + seconds / 10
    while time.perf_counter() < end:
        work()
    times: List[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def parity(detector: Detector, exact: Detector, images: Sequence[np.ndarray]) -> Dict[str, float]:
    """Largest and mean difference of raw scores and of boxes, in fractions of the image."""
    blob = exact.preprocess(images)
    found: Dict[str, float] = {}
    for _ in range(2):
        raw = detector.run(blob)  # the second time from a CUDA graph
    for name, a, b in zip(("scores", "boxes"), raw, exact.run(blob)):
        found[f"{name} max"] = float(np.abs(a - b).max())
        found[f"{name} mean"] = float(np.abs(a - b).mean())
    return found


def speed(
    detector: Detector, ungraphed: Detector, images: Sequence[np.ndarray], seconds: float
) -> Dict[str, float]:
    """Milliseconds a call, by what is timed and how many images it holds."""
    found = {}
    for batch in BATCHES:
        if batch > detector.batch_size:
            continue
        part = list(images[:batch])
        blob = detector.preprocess(part)
        found[f"network {batch}"] = median(lambda blob=blob: detector.run(blob), seconds)
        found[f"ungraphed {batch}"] = median(lambda blob=blob: ungraphed.run(blob), seconds)
        found[f"whole {batch}"] = median(lambda part=part: detector.detect(part), seconds)
    return found


def measure(
    precision: str, arguments: argparse.Namespace, exact: Optional[Detector], data: Dataset, full: float
) -> Dict[str, Any]:
    """Everything about one precision."""
    calib = arguments.data if precision in ("int8", "fp8") else ""
    options = BuildOptions(precision=precision, calib=calib, accuracy=0.0, max_batch=max(BATCHES))
    built = build(arguments.model, options, say=print)
    print(report(built))
    line: Dict[str, Any] = {"build seconds": built.seconds, "megabytes": built.path.stat().st_size / 1e6}
    if exact is None:
        return line
    detector = open_detector(built.path, batch_size=max(BATCHES))
    images = [read_image(sample.path) for sample in data.samples[:PHOTOGRAPHS]]
    line.update(parity(detector, exact, images))
    line.update({"mAP": mean_ap(detector, data), "mAP onnxruntime fp32": full})
    ungraphed = open_detector(built.path, batch_size=max(BATCHES), cuda_graphs=False)
    line.update(speed(detector, ungraphed, images, arguments.seconds))
    return line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each timing")
    parser.add_argument("--build_only", action="store_true", help="for machines without a GPU")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    gpu = find_gpu()
    if gpu is None and not arguments.build_only:
        raise SystemExit("there is no NVIDIA GPU here; --build_only builds with TensorRT-RTX all the same")
    where = f"{gpu.name}, SM {gpu.capability[0]}.{gpu.capability[1]}" if gpu else "no GPU"
    print(f"{where}; {version_of(library())}; {platform.machine()}, Python {platform.python_version()}")
    data = open_dataset([arguments.data], "test")
    exact = None if arguments.build_only else open_detector(arguments.model, "onnxruntime", device="cpu")
    full = mean_ap(exact, data) if exact is not None else 0.0
    found: Dict[str, Dict[str, Any]] = {}
    for precision in arguments.precisions:
        try:
            found[precision] = measure(precision, arguments, exact, data, full)
        except UserError as error:
            found[precision] = {"refused": str(error)}
        print(precision, json.dumps(found[precision]))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"where": where, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
