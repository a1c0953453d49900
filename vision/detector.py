"""From a photograph to Detections: one preprocess and one postprocess, whatever runs the net. Numpy and OpenCV."""

from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, Sequence, Tuple, Union

import cv2
import numpy as np

from vision import boxes as box_math
from vision.errors import UserError
from vision.spec import InputSpec

Run = Callable[[np.ndarray], Tuple[np.ndarray, np.ndarray]]
"""blob, see LAYOUTS -> scores (N, P, C) after softmax, boxes (N, P, 4) corners as fractions."""

LAYOUTS = ("planes", "bytes")
"""Of a blob. planes: float32 (N, 3, H, W), normalised. bytes: uint8 (N, H, W, 3), for a net that normalises."""

NMS_METHODS = ("hard", "soft")

BROKEN = "In half precision: try full precision. Otherwise the weights are damaged."


@dataclass(frozen=True)
class Detections:
    """What was found in one image.

    Attributes:
        boxes: float32 (K, 4), corners x1, y1, x2, y2 in pixels of the image, inside it.
        scores: float32 (K,), 0..1, falling.
        labels: int64 (K,), 1..C-1.
        classes: class names, BACKGROUND first.
        size: (height, width) of the image in pixels.

    Raises ValueError at birth when shapes, types or values do not fit together; K = 0 is a good result.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: Tuple[str, ...]
    size: Tuple[int, int]

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,) or self.labels.shape != (count,):
            raise ValueError(
                f"boxes {self.boxes.shape}, scores {self.scores.shape} and labels {self.labels.shape} do not match"
            )
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise ValueError("detections hold NaN or infinite numbers")
        if count and not (1 <= self.labels.min() and self.labels.max() < len(self.classes)):
            raise ValueError(
                f"labels {self.labels.min()}..{self.labels.max()} for {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Tuple[str, float, np.ndarray]]:
        """(class name, score, box in pixels) of each detection, best first."""
        for box, score, label in zip(self.boxes, self.scores, self.labels):
            yield self.classes[label], float(score), box

    @property
    def names(self) -> List[str]:
        """Class name of each detection."""
        return [self.classes[label] for label in self.labels]


class Detector:
    """A net, ready to look at photographs.

    Attributes:
        run: calls the net in whatever runtime holds it, see `Run`; takes any N up to `batch_size`.
        input: the image the net takes.
        classes: names, BACKGROUND first.
        name: what is running, for people and messages ("mb1-ssd, onnxruntime").
        batch_size: images given to `run` at once.
        layout: one of LAYOUTS, as `run` wants it.
    """

    def __init__(
        self,
        run: Run,
        input: InputSpec,
        classes: Sequence[str],
        name: str = "detector",
        batch_size: int = 8,
        layout: str = "planes",
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} is smaller than 1")
        self.run = run
        self.input = input
        self.classes = tuple(classes)
        self.name = name
        self.batch_size = batch_size
        self.layout = layout

    def detect(
        self,
        images: Union[np.ndarray, Sequence[np.ndarray]],
        threshold: float = 0.4,
        iou_threshold: float = 0.45,
        top_k: int = -1,
        candidate_size: int = 200,
        nms_method: str = "hard",
        sigma: float = 0.5,
        max_detections: int = -1,
    ) -> Any:
        """Find objects.

        Args:
            images: one image or a sequence of them; RGB uint8 (H, W, 3), or what `as_rgb` makes of others.
                Sizes may differ.
            The others: see `postprocess`.

        Returns: Detections for one image, a list of them for a sequence.

        Raises UserError for an image or a setting that makes no sense.
        """
        # A stack of images is a sequence; anything else that is an array is one image.
        single = not (
            isinstance(images, (list, tuple)) or (isinstance(images, np.ndarray) and images.ndim == 4)
        )
        queue: Sequence[Any] = [images] if single else images  # type: ignore[list-item,assignment]
        found: List[Detections] = []
        for start in range(0, len(queue), self.batch_size):
            batch = [as_rgb(image) for image in queue[start : start + self.batch_size]]
            scores, corners = self.run(self.preprocess(batch))
            sizes = [image.shape[:2] for image in batch]
            found += self.postprocess(
                scores,
                corners,
                sizes,
                threshold,
                iou_threshold,
                top_k=top_k,
                candidate_size=candidate_size,
                nms_method=nms_method,
                sigma=sigma,
                max_detections=max_detections,
            )
        return found[0] if single else found

    def preprocess(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """RGB uint8 images (H, W, 3) of any sizes -> blob of this detector's layout.

        The aspect ratio is not kept: nets are trained on images stretched to their input, as in the original.
        """
        height, width = self.input.size
        # On uint8, as in training: OpenCV rounds it in fixed point, floats would come out otherwise.
        small = [cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR) for image in images]
        if self.layout == "bytes":
            return np.stack(small)
        mean, std = np.array(self.input.mean, np.float32), np.array(self.input.std, np.float32)
        blob = np.empty((len(images), 3, height, width), np.float32)
        for planes, image in zip(blob, small):
            for plane, channel, m, s in zip(planes, cv2.split(image), mean, std):
                np.subtract(channel, m, out=plane, dtype=np.float32)
                plane /= s
        return blob

    def postprocess(
        self,
        scores: np.ndarray,
        boxes: np.ndarray,
        sizes: Sequence[Tuple[int, int]],
        threshold: float = 0.4,
        iou_threshold: float = 0.45,
        top_k: int = -1,
        candidate_size: int = 200,
        nms_method: str = "hard",
        sigma: float = 0.5,
        max_detections: int = -1,
    ) -> List[Detections]:
        """What `run` gave -> Detections in pixels.

        Args:
            scores, boxes: (N, P, C) after softmax and (N, P, 4) corners as fractions.
            sizes: (height, width) of each image in pixels.
            threshold: a score must be above it.
            iou_threshold: hard NMS drops a box whose IoU with a better one of its class is above it.
            top_k: keep at most so many of each class; -1 for all.
            candidate_size: hard NMS looks at so many of each class.
            nms_method, sigma: "hard", or "soft" with its width (see `vision.boxes.soft_nms`).
            max_detections: keep at most so many of each image; -1 for all.

        Boxes are clipped to the image after NMS; one that then has no area (it lay outside) is dropped.

        Raises UserError when the net's output has another number of classes or holds NaN, and for a setting
        out of range.
        """
        _check_settings(threshold, iou_threshold, nms_method, sigma)
        scores, boxes = np.asarray(scores, np.float32), np.asarray(boxes, np.float32)
        self._check_output(scores, boxes, len(sizes))
        boxes = self._finite_boxes(scores, boxes, threshold)
        found = []
        for image_scores, image_boxes, size in zip(scores, boxes, sizes):
            corners, kept, labels = box_math.select(
                image_scores,
                image_boxes,
                threshold,
                iou_threshold,
                top_k=top_k,
                candidate_size=candidate_size,
                method=nms_method,
                sigma=sigma,
            )
            height, width = (int(side) for side in size)
            corners = box_math.clip(
                corners * np.array([width, height, width, height], np.float32), (height, width)
            )
            inside = np.flatnonzero(box_math.area(corners) > 0)
            if max_detections >= 0:
                inside = inside[:max_detections]
            found.append(
                Detections(corners[inside], kept[inside], labels[inside], self.classes, (height, width))
            )
        return found

    def _check_output(self, scores: np.ndarray, boxes: np.ndarray, images: int) -> None:
        if scores.ndim != 3 or boxes.shape != scores.shape[:2] + (4,) or len(scores) != images:
            raise UserError(
                f"{self.name}: for {images} images the net gave scores {scores.shape} and boxes {boxes.shape}; "
                "expected (images, priors, classes) and (images, priors, 4). Is this an SSD with decoded boxes?"
            )
        if scores.shape[2] != len(self.classes):
            raise UserError(
                f"{self.name}: the net scores {scores.shape[2]} classes (background included) but "
                f"{len(self.classes)} names are given: {', '.join(self.classes)}. "
                "Use the label file that was written when this net was trained."
            )
        if not np.isfinite(scores).all():
            raise UserError(f"{self.name}: the scores hold NaN or infinite numbers. {BROKEN}")

    def _finite_boxes(self, scores: np.ndarray, boxes: np.ndarray, threshold: float) -> np.ndarray:
        """Boxes where the infinite ones of priors that nobody will see are empty boxes instead."""
        finite = np.isfinite(boxes)
        if finite.all():
            return boxes
        broken = ~finite.all(axis=-1)
        if (scores[broken][:, 1:] > threshold).any():
            raise UserError(f"{self.name}: the boxes hold NaN or infinite numbers. {BROKEN}")
        return np.where(broken[..., None], np.float32(0), boxes)


def _check_settings(threshold: float, iou_threshold: float, nms_method: str, sigma: float) -> None:
    if not 0 <= threshold < 1:
        raise UserError(f"score threshold {threshold} is outside [0, 1)")
    if not 0 < iou_threshold <= 1:
        raise UserError(f"IoU threshold of NMS {iou_threshold} is outside (0, 1]")
    if nms_method not in NMS_METHODS:
        raise UserError(f"NMS method {nms_method!r} is none of {', '.join(NMS_METHODS)}")
    if not sigma > 0:
        raise UserError(f"sigma of soft NMS {sigma} is not above 0")


def as_rgb(image: Any) -> np.ndarray:
    """Any common image array -> RGB uint8 (H, W, 3).

    The rule, by shape: (H, W) and (H, W, 1) are grey and become three equal channels; of (H, W, 4) the fourth is
    alpha and is dropped. By type: uint8 stays; uint16 fills its range and is divided by 257; floats are 0..1
    and are multiplied by 255. Channels stand as R, G, B: an image from `cv2.imread` is B, G, R and must be
    turned round by the caller, for nothing in it tells.

    Raises UserError for anything else, for an image without pixels, and for floats that are NaN or not 0..1.
    """
    if not isinstance(image, np.ndarray):
        hint = " (could the file not be read?)" if image is None else ""
        raise UserError(f"an image is a numpy array, not {type(image).__name__}{hint}")
    if not image.size:
        raise UserError(f"an image of shape {image.shape} has no pixels")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise UserError(f"an image of shape {image.shape} is none of (H, W), (H, W, 1), (H, W, 3), (H, W, 4)")
    image = _as_uint8(image[..., :3])
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image)


def _as_uint8(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype.kind == "f":
        low, high = float(image.min()), float(image.max())
        # NaN fails both comparisons
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"an image of {image.dtype} holds {low:g}..{high:g}, not 0..1; if it is 0..255, pass it "
                "as numpy.uint8"
            )
        return np.rint(image * np.float32(255)).astype(np.uint8)
    raise UserError(f"an image of {image.dtype} is none of uint8, uint16 and float; pass it as numpy.uint8")
