"""Find objects on pictures, with numpy, OpenCV and onnxruntime and nothing else.

python detect.py            the test picture, compared with what it must give
python detect.py PICTURE    any picture
"""

import json
import sys
from pathlib import Path

try:
    import cv2
    import numpy as np
    import onnxruntime
except ImportError as error:
    sys.exit(f"{error}: pip install numpy opencv-python-headless onnxruntime")

FOLDER = Path(__file__).resolve().parent


def preprocess(image, card):
    """BGR uint8 (H, W, 3), as cv2.imread gives it -> what the net takes."""
    given = card["input"]
    small = cv2.resize(image, (given["width"], given["height"]), interpolation=cv2.INTER_LINEAR)
    small = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
    if card["form"] == "uint8":  # the net normalises
        blob = small[None]
    else:
        pixels = (small.astype(np.float32) - np.float32(given["mean"])) / np.float32(given["std"])
        blob = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
    return blob if card["dynamic_batch"] else np.repeat(blob, card["batch_size"], axis=0)


def decode(locations, card):
    """Locations (P, 4) -> corner boxes (P, 4) as fractions (the form "raw" only)."""
    priors = np.load(str(FOLDER / "priors.npy"))  # (P, 4) centres
    of_centers, of_sizes = card["variances"]
    center = locations[:, :2] * of_centers * priors[:, 2:] + priors[:, :2]
    half = np.exp(locations[:, 2:] * of_sizes) * priors[:, 2:] / 2
    return np.concatenate([center - half, center + half], axis=1)


def nms(boxes, scores, iou_threshold, candidates=200):
    """Rows of corner boxes (K, 4) that stay, best first."""
    order = np.argsort(-scores, kind="stable")[:candidates]
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        order = order[shared <= iou_threshold * (areas[best] + areas[order] - shared)]
    return kept


def detect(session, image, card, threshold):
    """BGR image -> [(class, score, x1, y1, x2, y2)] in pixels, best first."""
    names = [output.name for output in session.get_outputs()]
    values = dict(zip(names, session.run(names, {session.get_inputs()[0].name: preprocess(image, card)})))
    if card["form"] == "nms":  # done already, for all images of the batch
        rows = values["images"] == 0
        selected = zip(values["labels"][rows], values["scores"][rows], values["boxes"][rows])
        found = [(label, score, box) for label, score, box in selected if score > threshold]
    else:
        scores = values["scores"][0]
        boxes = decode(values["locations"][0], card) if card["form"] == "raw" else values["boxes"][0]
        found = []
        for label in range(1, scores.shape[1]):  # 0 is the background
            rows = np.flatnonzero(scores[:, label] > threshold)
            kept = rows[nms(boxes[rows], scores[rows, label], card["iou_threshold"])]
            found += [(label, scores[row, label], boxes[row]) for row in kept]
    height, width = image.shape[:2]
    size = np.array([width, height, width, height], np.float32)
    results = []
    for label, score, box in sorted(found, key=lambda one: -one[1]):
        x1, y1, x2, y2 = np.clip(box * size, 0, size).tolist()
        if x2 > x1 and y2 > y1:
            results.append((card["classes"][label], float(score), x1, y1, x2, y2))
    return results


def same(found, expected):
    """Whether two lists of detections agree: scores within 0.01, corners within 1 pixel."""
    if len(found) != len(expected):
        return False
    left = [list(one) for one in expected]
    for name, *numbers in found:
        allowed = [0.01, 1.0, 1.0, 1.0, 1.0]
        close = [
            one
            for one in left
            if one[0] == name and all(abs(a - b) <= c for a, b, c in zip(numbers, one[1:], allowed))
        ]
        if not close:
            return False
        left.remove(close[0])
    return True


def main(arguments):
    card = json.loads((FOLDER / "model.onnx.json").read_text(encoding="utf-8"))
    expected = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
    picture = arguments[0] if arguments else str(FOLDER / expected["picture"])
    image = cv2.imread(picture)
    if image is None:
        sys.exit("{}: not a picture that OpenCV reads".format(picture))  # noqa: UP032
    session = onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), providers=["CPUExecutionProvider"])
    found = detect(session, image, card, card["threshold"] if arguments else expected["threshold"])
    for name, *numbers in found:
        sys.stdout.write("{:20s} {:.3f}   {:7.1f} {:7.1f} {:7.1f} {:7.1f}\n".format(name, *numbers))
    if arguments:
        return 0
    agrees = same(found, expected["detections"])
    sys.stdout.write("as expected\n" if agrees else "NOT as expected, see expected.json\n")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
