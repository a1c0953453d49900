"""What NVIDIA's detectNet (jetson-inference) makes of an exported file, in numpy: `eval_ssd.py --runtime detectnet`.

Written from its documented behaviour, to be compared with ours; it shares no code with `vision.boxes`. detectNet
differs from training in four ways:

1. every image is squashed by picking the nearest pixel, without interpolation;
2. pixels become x / 127.5 - 1, whatever the net was trained with;
3. every prior has one class, its best;
4. boxes of a class that overlap are merged into their union, in the order of the priors; there is no NMS.
"""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from vision.detector import Detections, Detector
from vision.errors import UserError
from vision.onnx_header import read_header
from vision.runtimes import onnxruntime as onnx_runtime
from vision.spec import InputSpec

CLUSTERING = 0.75
"""detectNet's --clustering: which share of the larger of two boxes the other must cover for them to be merged."""

INPUT, SCORES, BOXES = "input_0", "scores", "boxes"


def load(
    path: Union[str, Path],
    labels: Optional[Union[str, Path]] = None,
    net: Optional[str] = None,
    size: Optional[Tuple[int, int]] = None,
    device: Optional[str] = None,
    batch_size: int = 8,
    provider: Optional[str] = None,
    threads: Optional[int] = None,
    clustering: float = CLUSTERING,
    **told: Any,
) -> Detector:
    """An ONNX file -> DetectNet, the net itself in ONNX Runtime.

    Args:
        clustering: see CLUSTERING.
        The others: see `vision.runtimes.onnxruntime.load`.

    Raises UserError, also for a file that detectNet would not load.
    """
    check_contract(path)
    inner = onnx_runtime.load(
        path, labels, net, size, device, batch_size, provider=provider, threads=threads, **told
    )
    return DetectNet(inner, clustering)


def devices() -> List[str]:
    """Of ONNX Runtime, which runs the net."""
    return onnx_runtime.devices()


def check_contract(path: Union[str, Path]) -> None:
    """Raise UserError for a file that detectNet cannot use, saying what it wants."""
    header = read_header(path)
    image = header.inputs[0]
    wrong = []
    if image.name != INPUT or image.dtype != "float32":
        wrong.append(f"its input is {image.name!r} ({image.dtype}), not {INPUT!r} (float32)")
    if len(image.shape) != 4 or image.shape[1] != 3 or None in image.shape[1:]:
        wrong.append("its input is not (1, 3, height, width)")
    elif image.shape[0] != 1:
        wrong.append("its batch is not a fixed 1")
    names = [tensor.name for tensor in header.outputs]
    for name in (SCORES, BOXES):
        if name not in names:
            wrong.append(f"it has no output {name!r}, only {', '.join(names)}")
    if wrong:
        raise UserError(
            f"{path}: NVIDIA's detectNet cannot use this file: {'; '.join(wrong)}. Export it with --target detectnet."
        )


class DetectNet(Detector):
    """A Detector that looks at photographs as detectNet does.

    Args:
        inner: runs the net; its preprocess and postprocess are not used.
        clustering: see CLUSTERING.
    """

    def __init__(self, inner: Detector, clustering: float = CLUSTERING) -> None:
        if not 0 <= clustering <= 1:
            raise UserError(f"clustering {clustering} is outside [0, 1]")
        norm = InputSpec(inner.input.height, inner.input.width, (127.5,) * 3, (127.5,) * 3)  # type: ignore[arg-type]
        super().__init__(
            inner.run, norm, inner.classes, f"{inner.name}, as detectNet sees it", inner.batch_size
        )
        self.clustering = clustering

    def preprocess(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """RGB uint8 images (H, W, 3) -> float32 (N, 3, height, width)."""
        return np.stack([squash(image, self.input.size) for image in images])

    def postprocess(
        self,
        scores: np.ndarray,
        boxes: np.ndarray,
        sizes: Sequence[Tuple[int, int]],
        threshold: float = 0.5,
        iou_threshold: float = 0.45,
        top_k: int = -1,
        candidate_size: int = 200,
        nms_method: str = "hard",
        sigma: float = 0.5,
        max_detections: int = -1,
    ) -> List[Detections]:
        """As of a Detector, but only `threshold` and `max_detections` count: detectNet knows no other setting."""
        scores, boxes = np.asarray(scores, np.float32), np.asarray(boxes, np.float32)
        self._check_output(scores, boxes, len(sizes))
        boxes = self._finite_boxes(scores, boxes, threshold)
        results = []
        for image_scores, image_boxes, (height, width) in zip(scores, boxes, sizes):
            size = int(height), int(width)
            found, values, labels = detect(image_scores, image_boxes, size, threshold, self.clustering)
            # detectNet gives large boxes first, Detections promise falling scores.
            order = np.argsort(-values, kind="stable")
            if max_detections >= 0:
                order = order[:max_detections]
            results.append(Detections(found[order], values[order], labels[order], self.classes, size))
        return results


def squash(image: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """RGB uint8 (H, W, 3) -> float32 (3, height, width): the nearest pixel towards the origin, x * 2 / 255 - 1."""
    rows, columns = (_nearest(have, want) for have, want in zip(image.shape[:2], size))
    planes = image[rows][:, columns].transpose(2, 0, 1).astype(np.float32)
    return planes * np.float32(2.0 / 255.0) + np.float32(-1.0)


def _nearest(have: int, want: int) -> np.ndarray:
    """Source pixel of each target pixel; in single precision and cut off, as the GPU does it."""
    scale = np.float32(have) / np.float32(want)
    return np.minimum((np.arange(want, dtype=np.float32) * scale).astype(np.int64), have - 1)


def detect(
    scores: np.ndarray,
    boxes: np.ndarray,
    size: Tuple[int, int],
    threshold: float,
    clustering: float = CLUSTERING,
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """detectNet's whole postprocess of one image.

    Args:
        scores, boxes: (P, C) after softmax; (P, 4) corners as fractions.
        size: (height, width) of the image in pixels.
        threshold: a score must reach it.
        clustering: see CLUSTERING.

    Returns: boxes float32 (K, 4) corners in pixels, scores (K,), labels int64 (K,), the largest box first.
    """
    height, width = size
    best = scores[:, 1:].argmax(axis=1)
    values = scores[np.arange(len(scores)), best + 1]
    alive = np.flatnonzero(values >= np.float32(threshold))
    pixels = boxes[alive] * np.array([width, height, width, height], np.float32)
    merged, kept, labels = cluster(pixels, values[alive], best[alive].astype(np.int64) + 1, clustering)
    areas = (merged[:, 2] - merged[:, 0]) * (merged[:, 3] - merged[:, 1])
    order = np.argsort(-areas, kind="stable")
    last = np.array([width - 1, height - 1, width - 1, height - 1], np.float32)
    return np.clip(merged[order], 0, last), kept[order], labels[order]


def cluster(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, clustering: float = CLUSTERING
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge boxes as detectNet does, one after the other.

    A box joins the first of those before it that has its class and with which it shares more than `clustering` of
    the larger area: that one grows to the union of both, with the higher score. Else it stays, as one more.
    (Two that have grown into each other are never merged.)

    Args:
        boxes, scores, labels: (K, 4) corners, (K,) and (K,), in the order of the priors.

    Returns: the same three of what is left, in the same order.
    """
    rows = len(boxes)
    left, scores_left = np.empty((rows, 4), np.float32), np.empty(rows, np.float32)
    labels_left: List[int] = []
    members: Dict[int, List[int]] = {}  # class -> rows of `left`
    for box, score, label in zip(boxes.astype(np.float32), scores, labels.tolist()):
        own = members.setdefault(label, [])
        if own:
            others = left[own]
            sides = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])
            inter = np.where((sides >= 0).all(axis=1), sides[:, 0] * sides[:, 1], np.float32(0))
            areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
            larger = np.maximum(areas, (box[2] - box[0]) * (box[3] - box[1]))
            with np.errstate(divide="ignore", invalid="ignore"):
                # A box without area merges with nothing: 0 / 0 is NaN and compares false, as in C.
                hits = np.flatnonzero(inter / larger > np.float32(clustering))
            if len(hits):
                row = own[hits[0]]
                left[row, :2] = np.minimum(left[row, :2], box[:2])
                left[row, 2:] = np.maximum(left[row, 2:], box[2:])
                scores_left[row] = max(scores_left[row], score)
                continue
        row = len(labels_left)
        own.append(row)
        left[row], scores_left[row] = box, score
        labels_left.append(label)
    count = len(labels_left)
    return left[:count], scores_left[:count], np.array(labels_left, np.int64)
