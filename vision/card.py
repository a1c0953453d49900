"""What an exported file says of itself: written into it (ONNX metadata) and beside it (JSON), read by every runtime.

No later command asks for labels, size or normalisation again. Floor 1: no torch, no onnx package.
"""

import json
import logging
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

import numpy as np

from vision.errors import UserError
from vision.onnx_header import read_header
from vision.spec import BACKGROUND, FeatureSize, InputSpec, PriorLayer

log = logging.getLogger(__name__)

PathLike = Union[str, Path]

FORMAT = "vision model"
VERSION = 1

METADATA_KEY = "vision.card"
"""Under which the JSON stands in an ONNX file's metadata_props."""

FORMS = ("detectnet", "raw", "nms", "uint8")
"""What goes in and comes out of the file; N images, P priors, C classes, K detections of all images.

detectnet: `input_0` float32 (N, 3, H, W) -> `scores` (N, P, C) after softmax, `boxes` (N, P, 4) corners as fractions.
raw:       the same input -> `scores` as above, `locations` (N, P, 4), to be decoded with `ModelCard.priors`.
nms:       the same input -> `boxes` (K, 4) corners as fractions, `scores` (K,), `labels` int64 (K,) in 1..C-1,
           `images` int64 (K,) in 0..N-1, after threshold and NMS with the card's thresholds.
uint8:     `input_0` uint8 (N, H, W, 3) RGB -> as detectnet; the normalisation is in the graph.
"""


# --- self-test ----------------------------------------------------------------------------------------------


TOLERANCE = 3e-3


class Probe(NamedTuple):
    """One number of a net's output for the test image: scores (P, C) or decoded corner boxes (P, 4).

    Where rows stand in no fixed order (`suppressed`, the form "nms"), `prior` is -c, which is the row with the best
    score of class c: no NMS ever drops it.
    """

    output: str  # "scores" or "boxes"
    prior: int
    column: int
    value: float


@dataclass(frozen=True)
class SelfTest:
    """What the net must give for `test_image`, whatever runs it.

    Attributes:
        probes: numbers, of the output that a `vision.detector.Run` gives: scores after softmax, boxes
            decoded to corners as fractions, also where the file itself holds neither.
        tolerance: the largest difference (see `worst`) that full precision may show. Rounding makes 1e-5, and up
            to 1e-3 in nets that are badly conditioned; the bugs of OpenCV that this is for make 1e-2 and more.
    """

    probes: Tuple[Probe, ...]
    tolerance: float = TOLERANCE

    def worst(self, scores: np.ndarray, boxes: np.ndarray) -> float:
        """The largest difference; `scores` (P, C) and `boxes` (P, 4) of the test image.

        Absolute for values up to 1, relative above: a box far outside the image is no less right for being off by
        more. Infinite when a number is NaN or the arrays are too small.
        """
        outputs = {"scores": scores, "boxes": boxes}
        worst = 0.0
        for probe in self.probes:
            array, row = outputs[probe.output], probe.prior
            if max(row, 0) >= array.shape[0] or probe.column >= array.shape[1] or -row >= scores.shape[1]:
                return float("inf")
            if row < 0:
                row = int(scores[:, -row].argmax())
            difference = abs(float(array[row, probe.column]) - probe.value) / max(1.0, abs(probe.value))
            if not difference <= worst:  # also when it is NaN
                worst = difference if difference == difference else float("inf")
        return worst


def make_self_test(scores: np.ndarray, boxes: np.ndarray, tolerance: float = TOLERANCE) -> SelfTest:
    """Probes of what a trusted runtime gave for `test_image`: scores (P, C) and corner boxes (P, 4).

    Taken where bugs show: spread over the whole prior range (every source map), on the last map (whose 1 x 1
    convolutions OpenCV 4.8 to 4.12 gets wrong), and at the priors with the best scores.
    """
    count = len(scores)
    spread = np.linspace(0, count - 1, min(8, count)).astype(int)
    best = np.argsort(-scores[:, 1:].max(axis=1), kind="stable")[:4]
    last = np.arange(max(count - 4, 0), count)
    probes: List[Probe] = []
    for prior in dict.fromkeys(int(p) for p in [*spread, *best, *last]):
        # The background also falls when another class rises; the best of the others is what people see.
        for column in (0, 1 + int(scores[prior, 1:].argmax())):
            probes.append(Probe("scores", prior, column, float(scores[prior, column])))
        probes += [Probe("boxes", prior, column, float(boxes[prior, column])) for column in (0, 3)]
    return SelfTest(tuple(probes), tolerance)


def make_best_test(
    scores: np.ndarray, boxes: np.ndarray, threshold: float = 0.0, tolerance: float = TOLERANCE
) -> SelfTest:
    """Probes for a file with NMS inside, of what the net gave before NMS: scores (P, C), corner boxes (P, 4).

    The best of each class, as far as rounding cannot make another one the best.

    Args:
        threshold: scores that are not above it do not come out; a class without any is expected to have 0.
    """
    probes: List[Probe] = []
    margin = 2 * tolerance
    for label in range(1, scores.shape[1]):
        best = np.argsort(-scores[:, label], kind="stable")[:2]
        values = scores[best, label]
        if abs(float(values[0]) - threshold) <= margin and threshold > 0:
            continue
        seen = values[0] > threshold
        probes.append(Probe("scores", -label, label, float(values[0]) if seen else 0.0))
        if seen and (len(best) == 1 or values[0] - values[1] > margin):
            probes += [Probe("boxes", -label, column, float(boxes[best[0], column])) for column in range(4)]
    return SelfTest(tuple(probes), tolerance)


def test_image(size: Tuple[int, int]) -> np.ndarray:
    """A picture of `size` (height, width) for self-tests: RGB uint8 (H, W, 3).

    Gradients, a coarse and a fine pattern, in whole-number arithmetic: the same bytes on every machine.
    """
    y, x = np.arange(size[0], dtype=np.int64)[:, None], np.arange(size[1], dtype=np.int64)[None, :]
    red = x * 255 // max(size[1] - 1, 1) + 0 * y
    green = (y * 255 // max(size[0] - 1, 1) + 64 * ((x // 40 + y // 40) % 2)) % 256
    blue = (x * y // 16 + 7 * x + 3 * y) % 256
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


test_image.__test__ = False  # type: ignore[attr-defined]  # pytest takes the name for a test of its own


# --- the card -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelCard:
    """Everything a device must know of an exported file.

    Attributes:
        net, options: registered name, and the options of its factory.
        classes: names, BACKGROUND first.
        input: what *the file's input* expects: size, and the mean and std to be applied outside. With the
            normalisation folded into the graph these differ from training's: 127.5 and 127.5 for NVIDIA's
            detectNet, 0 and 1 for bytes.
        variances: of the encoding of boxes.
        form: one of FORMS.
        dynamic_batch: any N, else 1 or what `batch_size` says.
        batch_size: N of a file with a static batch.
        folded: whether the graph was changed to take another normalisation than training's.
        suppressed: whether the scores of priors that NMS would drop are 0 already.
        priors, cells: prior layers, and (rows, columns) of each source map; `vision.spec.make_priors` makes the
            priors of them. Only the "raw" form needs them.
        threshold, iou_threshold: recommended for detection; those that are built in for "nms" and `suppressed`.
        opset: of the ONNX file, 0 for other kinds.
        target: what it was exported for ("any", "jp46", "detectnet").
        precision: of the graph: fp32, fp16, int8 or fp8.
        weights_sha256: of the trained weights.
        data: what the net was trained on ("name", "sha256", ...).
        metrics: for people ("mean_ap").
        self_test: None when there is none.

    Raises UserError at birth when the values cannot be right.
    """

    net: str
    classes: Tuple[str, ...]
    input: InputSpec
    options: Dict[str, Any] = field(default_factory=dict)
    variances: Tuple[float, float] = (0.1, 0.2)
    form: str = "detectnet"
    dynamic_batch: bool = False
    batch_size: int = 1
    folded: bool = False
    suppressed: bool = False
    priors: Tuple[PriorLayer, ...] = ()
    cells: Tuple[FeatureSize, ...] = ()
    threshold: float = 0.4
    iou_threshold: float = 0.45
    opset: int = 0
    target: str = "any"
    precision: str = "fp32"
    weights_sha256: str = ""
    data: Dict[str, Any] = field(default_factory=dict)
    metrics: Dict[str, Any] = field(default_factory=dict)
    self_test: Optional[SelfTest] = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UserError(f"form {self.form!r} of an exported file is none of {', '.join(FORMS)}")
        if len(self.classes) < 2 or self.classes[0] != BACKGROUND:
            raise UserError(
                f"an exported file names the classes {', '.join(map(str, self.classes[:5]))!r}; {BACKGROUND} and "
                "at least one more are needed"
            )
        if not all(isinstance(side, int) and side > 0 for side in self.input.size):
            raise UserError(f"an exported file names an input of {self.input.size} pixels (height, width)")
        if 0 in self.input.std:
            raise UserError("an exported file names a standard deviation of 0")
        if self.form == "raw" and not self.priors:
            raise UserError('an exported file of form "raw" does not name its priors')
        if len(self.priors) != len(self.cells):
            raise UserError(
                f"an exported file names {len(self.priors)} prior layers but {len(self.cells)} maps"
            )

    def to_json(self) -> str:
        """As one JSON object, the same bytes for the same card."""
        content = asdict(self)
        if self.self_test is not None:
            content["self_test"] = {
                "tolerance": self.self_test.tolerance,
                "probes": [list(probe) for probe in self.self_test.probes],
            }
        return json.dumps({"format": FORMAT, "version": VERSION, **content}, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, source: PathLike = "model card") -> "ModelCard":
        """The inverse of `to_json`. Raises UserError that names `source`."""
        try:
            content = json.loads(text)
        except ValueError as error:
            raise UserError(f"{source}: not JSON ({error}); export the model again") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f'{source}: JSON, but no model card (it lacks "format": "{FORMAT}")')
        if content.get("version") != VERSION:
            raise UserError(
                f"{source}: a model card of version {content.get('version')}, this program reads {VERSION}; "
                "update it, or export the model again"
            )
        try:
            return _from_content(cls, content)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
        except KeyError as error:
            raise UserError(f"{source}: the model card lacks {error}; export the model again") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{source}: the model card is damaged ({error}); export the model again"
            ) from error


def _from_content(cls: Any, content: Mapping[str, Any]) -> ModelCard:
    known = {each.name: each for each in fields(cls)}
    values = {name: value for name, value in content.items() if name in known}
    for name in ("net", "classes", "input"):
        if name not in values:
            raise KeyError(name)
    size = values["input"]
    values["input"] = InputSpec(
        size["height"], size["width"], _triple(size["mean"], "mean"), _triple(size["std"], "std")
    )
    values["classes"] = tuple(str(name) for name in values["classes"])
    values["variances"] = tuple(float(v) for v in values.get("variances", (0.1, 0.2)))
    values["priors"] = tuple(
        PriorLayer(p["stride"], p["min_size"], p["max_size"], tuple(p["ratios"]))
        for p in values.get("priors", ())
    )
    values["cells"] = tuple((int(rows), int(columns)) for rows, columns in values.get("cells", ()))
    if values.get("self_test") is not None:
        test = values["self_test"]
        probes = tuple(Probe(str(o), int(p), int(c), float(v)) for o, p, c, v in test["probes"])
        if any(probe.output not in ("scores", "boxes") or probe.column < 0 for probe in probes):
            raise ValueError("a probe of the self-test")
        values["self_test"] = SelfTest(probes, float(test["tolerance"]))
    return cls(**values)


def _triple(values: Any, name: str) -> Tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


# --- files --------------------------------------------------------------------------------------------------


def sidecar(path: PathLike) -> Path:
    """Where the JSON of a file stands: "best.onnx" -> "best.onnx.json"."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def write_sidecar(card: ModelCard, path: PathLike) -> Path:
    """Write the JSON beside the exported file `path`. Raises UserError when that is not possible."""
    place = sidecar(path)
    try:
        place.write_bytes((card.to_json() + "\n").encode("utf-8"))
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror or error})") from error
    return place


def read_card(path: PathLike) -> Optional[ModelCard]:
    """The card of an exported file: of the JSON beside it, or of an ONNX file's metadata; None without either.

    Raises UserError for a missing, truncated or foreign file, a damaged card, and a JSON that contradicts what
    the ONNX file says itself (left over from an older export).
    """
    path = Path(path)
    inside = _card_inside(path) if path.suffix.lower() == ".onnx" else None
    beside = _card_beside(sidecar(path))
    if inside is None or beside is None:
        return inside or beside
    for name in ("net", "classes", "input", "form", "variances", "weights_sha256"):
        if getattr(inside, name) != getattr(beside, name):
            raise UserError(
                f"{sidecar(path)} is of another export than {path}: their {name} differ. Delete it; what the ONNX "
                "file says itself is enough."
            )
    return beside


def _card_inside(path: Path) -> Optional[ModelCard]:
    text = read_header(path).metadata.get(METADATA_KEY)
    return None if text is None else ModelCard.from_json(text, f"{path} (metadata)")


def _card_beside(path: Path) -> Optional[ModelCard]:
    if not path.is_file():
        return None
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; export the model again") from error
    return ModelCard.from_json(text, path)
