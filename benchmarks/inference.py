"""From a decoded photograph to detections: the original's loop, ours in torch and without it, and torchvision's.

    python benchmarks/inference.py [--nets mb2-ssd-lite mb1-ssd] [--threads 2] [--rounds 5] [--json FILE]

A painted picture of 640 x 480 pixels goes through every contender, one image at a time. The contenders take turns,
round after round, and for each stage the best counts: what the code needs, without what else the machine does.

eager        as the original: float preprocessing, the net in eager mode as it was trained, NMS in a Python loop
torch        ours: bytes preprocessed by OpenCV, norms folded, channels last, NMS of all classes at once
onnxruntime, opencv, openvino   the exported file, with the same pre- and postprocessing as torch
torchvision  ssdlite320_mobilenet_v3_large, at its own 320 x 320; and that net in onnxruntime with our stages

All weights are random. The scores are spread so that about one prior in a hundred passes the threshold, as in a
trained net: postprocessing has work to do. Before anything is timed, all contenders must find the same objects.
"""

import argparse
import importlib.util
import json
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch

from vision.detector import Detections, Detector
from vision.errors import UserError
from vision.export.onnx import Plan, export
from vision.runtimes import RUNTIMES, open_detector
from vision.runtimes.pytorch import TorchRun
from vision.spec import InputSpec
from vision.ssd import SSD, Deployed, build, output_layer

CLASSES = ("BACKGROUND", *(f"class{i}" for i in range(1, 21)))
PASSING = 0.01
"""Share of the priors with a score above the threshold in some class."""

IOU_THRESHOLD, CANDIDATES = 0.45, 200

Stages = Tuple[float, float, float]
"""Seconds before, in and after the network."""


class Contender(NamedTuple):
    """One way to find objects: image -> what it found, and the seconds of each stage."""

    name: str
    look: Callable[[np.ndarray], Tuple[Detections, Stages]]


# --- nets and picture ---------------------------------------------------------------------------------------


def picture(height: int = 480, width: int = 640) -> np.ndarray:
    """RGB uint8: patches and noise."""
    rng = np.random.default_rng(0)
    patches = np.repeat(np.repeat(rng.integers(0, 256, (6, 8, 3)), 80, axis=0), 80, axis=1)
    return np.clip(patches + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def lively(name: str, size: Optional[Tuple[int, int]], threshold: float) -> SSD:
    """A random net whose norms know the picture, and of whose priors the share PASSING scores above the threshold."""
    torch.manual_seed(0)
    net = build(name, len(CLASSES), size)
    blob = torch.from_numpy(
        Detector(nothing, input_of(net), CLASSES).preprocess([picture(), picture()[::-1]])
    )
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the statistics of just these pictures
                module.reset_running_stats()
        net.train()(blob)
        net.eval()
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.clamp_(min=1e-2)
        maps = net.source_maps(blob)
        for headers, spread in ((net.classification_headers, 2.0), (net.regression_headers, 0.5)):
            for header, source in zip(headers, maps):
                output_layer(header).weight *= spread / header(source).std().clamp(min=1e-6)
        logits = net(blob)[0].reshape(-1, len(CLASSES))
        low, high = 0.0, 30.0
        for _ in range(30):  # by halves, to the lead of the background at which the share fits
            lead = (low + high) / 2
            shifted = logits.clone()
            shifted[:, 0] += lead
            share = (shifted.softmax(1)[:, 1:].amax(1) > threshold).float().mean()
            low, high = (lead, high) if share > PASSING else (low, lead)
        for header in net.classification_headers:
            output_layer(header).bias[:: len(CLASSES)] += high
    return net


def input_of(net: SSD) -> InputSpec:
    """The image that the net takes."""
    return InputSpec(*net.size, net.spec.input.mean, net.spec.input.std)


def nothing(blob: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """A run that is never called."""
    raise NotImplementedError


# --- contenders ---------------------------------------------------------------------------------------------


def of_detector(name: str, detector: Detector, threshold: float) -> Contender:
    """Any of our detectors, its three stages timed apart."""

    def look(image: np.ndarray) -> Tuple[Detections, Stages]:
        start = time.perf_counter()
        blob = detector.preprocess([image])
        ready = time.perf_counter()
        scores, boxes = detector.run(blob)
        done = time.perf_counter()
        found = detector.postprocess(scores, boxes, [image.shape[:2]], threshold, IOU_THRESHOLD)[0]
        return found, (ready - start, done - ready, time.perf_counter() - done)

    return Contender(name, look)


def eager(net: SSD, threshold: float) -> Contender:
    """The shape of the original's predictor, in our words: one image, float arithmetic, one loop for each class."""
    deployed = Deployed(net).eval()
    height, width = net.size
    mean = np.array(net.spec.input.mean, np.float32)
    std = np.array(net.spec.input.std, np.float32)

    def look(image: np.ndarray) -> Tuple[Detections, Stages]:
        start = time.perf_counter()
        # The same order of rounding as ours (the original resized uint8 too), so that both can be compared.
        small = cv2.resize(image, (width, height)).astype(np.float32)
        small -= mean
        small = small / std
        batch = torch.from_numpy(small).permute(2, 0, 1).unsqueeze(0)
        ready = time.perf_counter()
        with torch.no_grad():
            scores, boxes = deployed(batch)
        done = time.perf_counter()
        rows: List[torch.Tensor] = []
        labels: List[int] = []
        for label in range(1, scores.shape[2]):
            mask = scores[0, :, label] > threshold
            if not mask.any():
                continue
            kept = hard_nms(torch.cat([boxes[0, mask], scores[0, mask, label].unsqueeze(1)], dim=1))
            rows.append(kept)
            labels += [label] * len(kept)
        found = as_detections(rows, labels, image.shape[:2])
        return found, (ready - start, done - ready, time.perf_counter() - done)

    return Contender("eager", look)


def hard_nms(rows: torch.Tensor) -> torch.Tensor:
    """Rows x1, y1, x2, y2, score; the best is taken and what overlaps it dropped, one after the other."""
    order = rows[:, 4].argsort(descending=True)[:CANDIDATES]
    picked = []
    while len(order):
        best = order[0]
        picked.append(best.item())
        order = order[1:]
        low = torch.max(rows[order, :2], rows[best, :2])
        high = torch.min(rows[order, 2:4], rows[best, 2:4])
        sides = torch.clamp(high - low, min=0)
        inter = sides[:, 0] * sides[:, 1]
        areas = (rows[order, 2] - rows[order, 0]) * (rows[order, 3] - rows[order, 1])
        own = (rows[best, 2] - rows[best, 0]) * (rows[best, 3] - rows[best, 1])
        order = order[inter / (areas + own - inter) <= IOU_THRESHOLD]
    return rows[picked]


def as_detections(rows: Sequence[torch.Tensor], labels: Sequence[int], size: Tuple[int, ...]) -> Detections:
    height, width = size
    table = torch.cat(list(rows)) if rows else torch.zeros(0, 5)
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    corners = torch.minimum((table[:, :4] * scale).clamp(min=0), scale)
    inside = ((corners[:, 2:] - corners[:, :2]) > 0).all(dim=1)
    order = [i for i in table[:, 4].argsort(descending=True, stable=True).tolist() if inside[i]]
    return Detections(
        corners[order].numpy(),
        table[order, 4].numpy(),
        np.array([labels[i] for i in order], np.int64),
        CLASSES,
        (height, width),
    )


def contenders(net: SSD, folder: Path, threads: int, threshold: float) -> List[Contender]:
    """All that run here, of one net."""
    trained = input_of(net)
    path = folder / f"{net.spec.name}.onnx"
    path.write_bytes(export(net, CLASSES, trained, Plan()).model.SerializeToString())
    fast = Detector(TorchRun(net, torch.device("cpu")), trained, CLASSES)
    found = [eager(net, threshold), of_detector("torch", fast, threshold)]
    for name, line in RUNTIMES.items():
        if name in ("pytorch", "detectnet") or ".onnx" not in line.suffixes:
            continue
        if importlib.util.find_spec(line.needs) is None:
            print(f"{name} is not installed and left out")
            continue
        try:
            detector = open_detector(path, name, provider="cpu", threads=threads)
        except UserError as error:
            print(f"{name} is left out: {error}")
            continue
        found.append(of_detector(name, detector, threshold))
    return found


# --- torchvision --------------------------------------------------------------------------------------------


def torchvision_contenders(folder: Path, threads: int, threshold: float) -> List[Contender]:
    """ssdlite320_mobilenet_v3_large by torchvision, and its net in onnxruntime between our stages."""
    from vision.nets.imagenet import import_torchvision

    try:
        import_torchvision()
    except UserError as error:
        print(f"torchvision is left out: {error}")
        return []
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=len(CLASSES)
    ).eval()
    model.score_thresh, model.nms_thresh, model.topk_candidates = threshold, IOU_THRESHOLD, CANDIDATES
    half = InputSpec(320, 320, (127.5,) * 3, (127.5,) * 3)
    images = torch.from_numpy(Detector(nothing, half, CLASSES).preprocess([picture()]))
    spread_torchvision(model, images, threshold)
    inside = TorchvisionNet(model, images)
    found = []
    try:
        torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        found.append(whole_torchvision(model, threshold))
    except (NotImplementedError, RuntimeError):
        print(
            "torchvision's NMS does not fit this torch and cannot be called: its net is timed between our stages"
        )
        found.append(
            of_detector("torchvision, our stages", Detector(torch_run(inside), half, CLASSES), threshold)
        )
    if importlib.util.find_spec("onnxruntime") is not None:
        found.append(
            of_detector("torchvision, onnxruntime", in_onnxruntime(inside, half, folder, threads), threshold)
        )
    return found


class TorchvisionNet(torch.nn.Module):
    """torchvision's SSD without what stands round the net: normalised images -> scores and corner boxes."""

    def __init__(self, model: Any, images: torch.Tensor) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        with torch.no_grad():
            features = list(self.backbone(images).values())
        from torchvision.models.detection.image_list import ImageList

        anchors = model.anchor_generator(ImageList(images, [tuple(images.shape[2:])]), features)[0]
        low, high = anchors[:, :2] / images.shape[2], anchors[:, 2:] / images.shape[2]
        self.register_buffer("center", (low + high) / 2)
        self.register_buffer("side", high - low)
        self.weights = model.box_coder.weights

    def forward(self, images: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        outputs = self.head(list(self.backbone(images).values()))
        moved, wx = outputs["bbox_regression"], self.weights
        center = moved[:, :, :2] / wx[0] * self.side + self.center
        half = torch.exp(moved[:, :, 2:] / wx[2]) * self.side / 2
        return outputs["cls_logits"].softmax(dim=2), torch.cat([center - half, center + half], dim=2)


def spread_torchvision(model: Any, images: torch.Tensor, threshold: float) -> None:
    """As `lively`, for a net that is not ours: the statistics of its norms, and the lead of the background."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
        model.backbone.train()
        features = list(model.backbone(torch.cat([images, images.flip(2)])).values())
        model.backbone.eval()
        model.head.eval()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.clamp_(min=1e-2)
        features = list(model.backbone(images).values())
        layers = [list(part.modules())[-1] for part in model.head.classification_head.module_list]
        for layer, part, source in zip(layers, model.head.classification_head.module_list, features):
            layer.weight *= 2.0 / part(source).std().clamp(min=1e-6)
        logits = model.head(features)["cls_logits"].reshape(-1, len(CLASSES))
        best = logits[:, 1:].amax(1) - logits[:, 0]
        lead = torch.quantile(best, 1 - PASSING) - np.log(threshold / (1 - threshold))
        for layer in layers:
            layer.bias[:: len(CLASSES)] += lead


def whole_torchvision(model: Any, threshold: float) -> Contender:
    """As its users call it; its stages are not apart."""

    def look(image: np.ndarray) -> Tuple[Detections, Stages]:
        start = time.perf_counter()
        tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        ready = time.perf_counter()
        with torch.inference_mode():
            found = model([tensor])[0]
        done = time.perf_counter()
        boxes = found["boxes"].numpy()
        order = np.argsort(-found["scores"].numpy(), kind="stable")
        detections = Detections(
            boxes[order],
            found["scores"].numpy()[order],
            found["labels"].numpy()[order],
            CLASSES,
            image.shape[:2],
        )
        return detections, (ready - start, done - ready, time.perf_counter() - done)

    return Contender("torchvision", look)


def torch_run(net: torch.nn.Module) -> Callable[[np.ndarray], Tuple[np.ndarray, np.ndarray]]:
    def run(blob: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            scores, boxes = net(torch.from_numpy(blob))
        return scores.numpy(), boxes.numpy()

    return run


def in_onnxruntime(net: torch.nn.Module, spec: InputSpec, folder: Path, threads: int) -> Detector:
    """A net that is not ours, exported by torch as it is."""
    path = folder / "torchvision.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on its deprecation
        torch.onnx.export(
            net.eval(),
            (torch.zeros(1, 3, *spec.size),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["input_0"],
            output_names=["scores", "boxes"],
        )
    labels = folder / "labels.txt"
    labels.write_text("\n".join(CLASSES))
    return open_detector(
        path, "onnxruntime", labels, provider="cpu", threads=threads, mean=spec.mean, std=spec.std
    )


# --- timing -------------------------------------------------------------------------------------------------


def check_agreement(found: Dict[str, Detections]) -> int:
    """How many objects the first found; SystemExit when another finds others.

    A score on the threshold, or an overlap on the limit of NMS, falls to either side by rounding: one in twenty may.
    """
    (first, expected), *others = found.items()
    for name, one in others:
        same = 0
        for box, score, label in zip(one.boxes, one.scores, one.labels):
            near = (np.abs(expected.boxes - box).max(axis=1) < 1) & (np.abs(expected.scores - score) < 1e-3)
            same += (near & (expected.labels == label)).any()
        if same < 0.95 * max(len(one), len(expected)):
            raise SystemExit(
                f"{name} finds {len(one)} objects, {first} {len(expected)}, {same} the same: not timed"
            )
    return len(expected)


def measure(rows: Sequence[Contender], image: np.ndarray, rounds: int, repeats: int) -> Dict[str, Stages]:
    """For each contender the best of every stage."""
    best: Dict[str, List[float]] = {row.name: [float("inf")] * 3 for row in rows}
    for _ in range(rounds):
        for row in rows:
            row.look(image)  # warm again: the others have used the caches
            for _ in range(repeats):
                for i, seconds in enumerate(row.look(image)[1]):
                    best[row.name][i] = min(best[row.name][i], seconds)
    return {name: (stages[0], stages[1], stages[2]) for name, stages in best.items()}


def table(times: Dict[str, Stages], against: Optional[float]) -> List[str]:
    """Lines of Markdown."""
    lines = [
        "| | before ms | net ms | after ms | together | outside the net | x eager |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (before, net, after) in times.items():
        whole = before + net + after
        ratio = f"{against / whole:.1f}" if against else ""
        lines.append(
            f"| {name} | {before * 1e3:.2f} | {net * 1e3:.2f} | {after * 1e3:.2f} | {whole * 1e3:.2f} "
            f"| {100 * (before + after) / net:.0f} % | {ratio} |"
        )
    return lines


def processor() -> str:
    """What the CPU calls itself."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=["mb2-ssd-lite", "mb1-ssd"])
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10, help="in each round")
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--json", help="also write the seconds here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    image = picture()
    print(f"{processor()}, {options.threads} threads, torch {torch.__version__}, image 640 x 480")
    results: Dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        groups: List[Tuple[str, List[Contender]]] = []
        for name in options.nets:
            net = lively(name, tuple(options.size) if options.size else None, options.threshold)
            groups.append(
                (
                    f"{name}, {net.size[1]} x {net.size[0]}",
                    contenders(net, Path(folder), options.threads, options.threshold),
                )
            )
        others = torchvision_contenders(Path(folder), options.threads, options.threshold)
        if others:
            groups.append(("ssdlite320_mobilenet_v3_large of torchvision, 320 x 320", others))
        for title, rows in groups:
            found = {row.name: row.look(image)[0] for row in rows}
            whole = any(row.name == "torchvision" for row in rows)  # it resizes floats: nearly the same only
            count = len(found["torchvision"]) if whole else check_agreement(found)
            times = measure(rows, image, options.rounds, options.repeats)
            against = sum(times["eager"]) if "eager" in times else None
            print(f"\n{title}; {count} objects\n")
            print("\n".join(table(times, against)))
            results[title] = times
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
