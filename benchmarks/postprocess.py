"""Postprocess of one image, 3000 priors x 21 classes at threshold 0.01: ours against a greedy loop in Python.

The loop does what the original does, in our words: for each class, threshold, sort, then pick the best box,
compare it with all that are left, drop those that overlap; one pick after the other on torch tensors, read with
`.item()`.

    python benchmarks/postprocess.py [--rounds 5]

Two kinds of output are measured, both at the priors of mb1-ssd: an untrained net's, where hundreds of boxes pass
in every class, and a trained net's, where few do and there is less to gain.
"""

import argparse
import time
from typing import Callable, Dict, List, Tuple

import numpy as np
import torch

from vision import boxes as box_math
from vision.ssd import build

PRIORS, CLASSES = 3000, 21
THRESHOLD, IOU_THRESHOLD, CANDIDATES = 0.01, 0.45, 200

Output = Tuple[np.ndarray, np.ndarray]


def untrained(rng: np.random.Generator) -> Output:
    """Random logits (standard deviation 2, like those of the reference's rule weights), random offsets."""
    return softmax(rng.normal(0, 2, (PRIORS, CLASSES))), decoded(rng.normal(0, 1, (PRIORS, 4)))


def trained(rng: np.random.Generator) -> Output:
    """Twelve objects, seen by the priors that overlap them; the rest see background, now and then in doubt."""
    logits = rng.normal(0, 1.3, (PRIORS, CLASSES))
    logits[:, 0] += 10
    boxes = decoded(rng.normal(0, 1, (PRIORS, 4)))
    low, side = rng.uniform(0, 0.6, (12, 2)), rng.uniform(0.1, 0.4, (12, 2))
    objects = np.concatenate([low, low + side], axis=1).astype(np.float32)
    overlaps = box_math.iou(box_math.centers_to_corners(priors()), objects)
    for object, near in zip(objects, (overlaps > 0.35).T):
        logits[near, rng.integers(1, CLASSES)] += rng.uniform(6, 14, near.sum())
        boxes[near] = object + rng.normal(0, 0.01, (near.sum(), 4))
    return softmax(logits), boxes


def decoded(locations: np.ndarray) -> np.ndarray:
    return box_math.decode(locations.astype(np.float32), priors(), (0.1, 0.2))


def priors() -> np.ndarray:
    return build("mb1-ssd", CLASSES).priors.numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32)


def greedy_loop(scores: torch.Tensor, boxes: torch.Tensor) -> List[List[float]]:
    """Rows x1, y1, x2, y2, score, label."""
    rows: List[List[float]] = []
    for label in range(1, CLASSES):
        mask = scores[:, label] > THRESHOLD
        candidates, values = boxes[mask], scores[mask, label]
        order = values.sort(descending=True)[1][:CANDIDATES]
        while len(order):
            best = order[0].item()
            rows.append(candidates[best].tolist() + [values[best].item(), label])
            order = order[1:]
            order = order[overlap(candidates[order], candidates[best]) <= IOU_THRESHOLD]
    return rows


def overlap(boxes: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    low, high = torch.max(boxes[:, :2], one[:2]), torch.min(boxes[:, 2:], one[2:])
    sides = torch.clamp(high - low, min=0)
    inter = sides[:, 0] * sides[:, 1]
    areas = torch.prod(torch.clamp(boxes[:, 2:] - boxes[:, :2], min=0), dim=1)
    own = torch.prod(torch.clamp(one[2:] - one[:2], min=0))
    return inter / (areas + own - inter)


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """The best of several rounds: what the code needs, without what else the machine does."""
    call()
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    kinds: Dict[str, Callable[[np.random.Generator], Output]] = {"untrained": untrained, "trained": trained}
    print(f"{'net':10}  {'kept':>5}  {'loop ms':>8}  {'ours ms':>8}  {'ratio':>6}")
    for kind, make in kinds.items():
        scores, boxes = make(np.random.default_rng(0))
        tensors = torch.from_numpy(scores), torch.from_numpy(boxes)

        def ours(scores: np.ndarray = scores, boxes: np.ndarray = boxes) -> object:
            return box_math.select(scores, boxes, THRESHOLD, IOU_THRESHOLD, candidate_size=CANDIDATES)

        def loop(tensors: Tuple[torch.Tensor, torch.Tensor] = tensors) -> object:
            return greedy_loop(*tensors)

        kept = compare(scores, boxes, greedy_loop(*tensors))
        slow, fast = milliseconds(loop, max(rounds // 2, 1)), milliseconds(ours, rounds * 4)
        print(f"{kind:10}  {kept:5d}  {slow:8.1f}  {fast:8.2f}  {slow / fast:5.0f}x")


def compare(scores: np.ndarray, boxes: np.ndarray, expected: List[List[float]]) -> int:
    """How many boxes are kept; both must keep the same, but for an IoU that equals the threshold to the last bit."""
    _, values, labels = box_math.select(scores, boxes, THRESHOLD, IOU_THRESHOLD, candidate_size=CANDIDATES)
    ours = set(zip(values.tolist(), labels.tolist()))
    theirs = {(row[4], row[5]) for row in expected}
    if len(ours ^ theirs) > 0.002 * len(theirs):
        raise SystemExit(f"the two disagree: {len(ours)} and {len(theirs)} boxes")
    return len(values)


if __name__ == "__main__":
    main()
