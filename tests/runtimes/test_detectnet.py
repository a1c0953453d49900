"""The emulation of NVIDIA's detectNet, against tables worked out by hand from its documented behaviour."""

import numpy as np
import pytest

from vision.errors import UserError
from vision.runtimes import open_detector
from vision.runtimes.detectnet import DetectNet, cluster, detect, squash

pytest.importorskip("onnxruntime")


# --- the image ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "have, want, picked",
    [
        (4, 2, [0, 2]),
        (2, 4, [0, 0, 1, 1]),
        (3, 2, [0, 1]),  # 1.5 is cut off, not rounded
        (5, 3, [0, 1, 3]),  # 0, 1.67, 3.33
        (1, 3, [0, 0, 0]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_the_nearest_pixel_towards_the_origin(have, want, picked):
    ramp = np.arange(have, dtype=np.uint8) * 50
    image = np.repeat(ramp[None, :, None], 3, axis=2).repeat(2, axis=0)
    planes = squash(image, (2, want))
    assert planes.shape == (3, 2, want) and planes.dtype == np.float32
    assert np.allclose((planes[0, 1] + 1) * 127.5, ramp[picked], atol=1e-4)
    assert np.allclose(squash(image.transpose(1, 0, 2), (want, 2)), planes.transpose(0, 2, 1))


def test_the_normalisation():
    image = np.array([[[0, 255, 51]]], np.uint8)
    assert squash(image, (1, 1)).ravel() == pytest.approx([-1.0, 1.0, -0.6], abs=1e-6)


# --- merging ------------------------------------------------------------------------------------------------

WHOLE = [0, 0, 10, 10]


@pytest.mark.parametrize(
    "boxes, scores, labels, left",
    [
        ([], [], [], []),
        ([WHOLE], [0.6], [1], [(WHOLE, 0.6, 1)]),
        # 80 of 100: merged into the union, with the higher score, in the place of the first.
        ([WHOLE, [2, 0, 12, 10]], [0.6, 0.9], [1, 1], [([0, 0, 12, 10], 0.9, 1)]),
        ([WHOLE, [2, 0, 12, 10]], [0.9, 0.6], [1, 1], [([0, 0, 12, 10], 0.9, 1)]),
        # 75 of 100 is not more than 0.75.
        ([WHOLE, [2.5, 0, 12.5, 10]], [0.6, 0.9], [1, 1], [(WHOLE, 0.6, 1), ([2.5, 0, 12.5, 10], 0.9, 1)]),
        # Another class is left alone.
        ([WHOLE, WHOLE], [0.6, 0.9], [1, 2], [(WHOLE, 0.6, 1), (WHOLE, 0.9, 2)]),
        # The share is of the larger area: a small box inside a large one stays.
        ([WHOLE, [1, 1, 9, 9]], [0.6, 0.9], [1, 1], [(WHOLE, 0.6, 1), ([1, 1, 9, 9], 0.9, 1)]),
        ([WHOLE, [0, 0, 9, 9]], [0.6, 0.9], [1, 1], [(WHOLE, 0.9, 1)]),
        # A merged box has grown, and is compared as it is now: 100 of 120 with the third, which alone
        # shares 60 of 100 with the first.
        (
            [WHOLE, [2, 0, 12, 10], [4, 0, 14, 10]],
            [0.5, 0.6, 0.7],
            [1, 1, 1],
            [([0, 0, 12, 10], 0.6, 1), ([4, 0, 14, 10], 0.7, 1)],  # 80 of 120 = 0.67
        ),
        (
            [WHOLE, [1, 0, 11, 10], [2, 0, 12, 10]],
            [0.5, 0.6, 0.7],
            [1, 1, 1],
            [([0, 0, 12, 10], 0.7, 1)],  # 90 of 110 = 0.82
        ),
        # The first that fits is joined, not the best; two that end up equal are not merged with each other.
        (
            [WHOLE, [0, 0, 10, 14], [0, 0, 10, 12]],
            [0.5, 0.6, 0.7],
            [1, 1, 1],
            [([0, 0, 10, 12], 0.7, 1), ([0, 0, 10, 14], 0.6, 1)],
        ),
        # Without area there is nothing to share.
        ([[3, 3, 3, 3], [3, 3, 3, 3]], [0.5, 0.6], [1, 1], [([3, 3, 3, 3], 0.5, 1), ([3, 3, 3, 3], 0.6, 1)]),
    ],
)
def test_merging(boxes, scores, labels, left):
    found = cluster(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )
    assert found[0].tolist() == [list(box) for box, _, _ in left]
    assert found[1] == pytest.approx([score for _, score, _ in left])
    assert found[2].tolist() == [label for _, _, label in left]


def test_another_clustering():
    two = np.array([WHOLE, [5, 0, 15, 10]], np.float32)
    assert len(cluster(two, np.float32([1, 1]), np.array([1, 1]), clustering=0.4)[0]) == 1


# --- the whole ----------------------------------------------------------------------------------------------


def test_postprocess_by_hand():
    scores = np.float32(
        [
            [0.1, 0.5, 0.4],  # exactly the threshold passes
            [0.9, 0.06, 0.04],  # background does not count, whatever it has
            [0.0, 0.2, 0.8],
            [0.3, 0.1, 0.6],  # merges with the one before
            [0.49, 0.49, 0.02],
        ]
    )
    boxes = np.float32(
        [[0.1, 0.1, 0.2, 0.2], [0, 0, 1, 1], [-0.5, 0, 0.5, 1.5], [-0.4, 0, 0.5, 1.5], [0, 0, 1, 1]]
    )
    found, values, labels = detect(scores, boxes, (100, 200), 0.5)
    assert found == pytest.approx(
        np.float32([[0, 0, 100, 99], [20, 10, 40, 20]])
    )  # the larger first; clipped
    assert values.tolist() == pytest.approx([0.8, 0.5]) and labels.tolist() == [2, 1]


def test_nothing_passes():
    found, values, labels = detect(np.float32([[0.9, 0.1]]), np.float32([[0, 0, 1, 1]]), (10, 10), 0.5)
    assert found.shape == (0, 4) and len(values) == len(labels) == 0


def test_slow_and_plain_gives_the_same():
    """The rule once more, in plain Python, on many boxes."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 40, (300, 2))
    boxes = np.concatenate([low, low + rng.uniform(30, 60, (300, 2))], axis=1).astype(np.float32)
    scores, labels = rng.random(300).astype(np.float32), rng.integers(1, 4, 300)

    def area(b):
        return (b[2] - b[0]) * (b[3] - b[1])

    left = []
    for box, score, label in zip(boxes, scores, labels):
        for other in left:
            sides = [min(box[i + 2], other[0][i + 2]) - max(box[i], other[0][i]) for i in (0, 1)]
            inter = sides[0] * sides[1] if min(sides) >= 0 else 0
            if other[2] == label and inter / max(area(box), area(other[0])) > 0.75:
                other[0] = [*np.minimum(box[:2], other[0][:2]), *np.maximum(box[2:], other[0][2:])]
                other[1] = max(score, other[1])
                break
        else:
            left.append([box, score, label])
    found = cluster(boxes, scores, labels)
    assert 10 < len(left) < 200
    assert np.array_equal(found[0], np.float32([box for box, _, _ in left]))
    assert np.array_equal(found[1], np.float32([score for _, score, _ in left]))
    assert found[2].tolist() == [label for _, _, label in left]


# --- as a runtime -------------------------------------------------------------------------------------------


def test_a_file_through_detectnet(tiny, tmp_path):
    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card())
    detector = open_detector(path, "detectnet", batch_size=2)
    images = [np.full((20, 30, 3), value, np.uint8) for value in (0, 90, 255)]
    blob = detector.preprocess(images)
    assert blob.shape == (3, 3, *tiny.size) and np.allclose(blob[1], 90 / 127.5 - 1, atol=1e-6)
    found = detector.detect(images, threshold=0.3)
    scores, boxes = tiny.truth(blob)
    for i, one in enumerate(found):
        truth = detect(scores[i], boxes[i], (20, 30), 0.3)
        assert one.size == (20, 30) and len(one) == len(truth[0])
        assert np.allclose(np.sort(truth[1])[::-1], one.scores, atol=1e-5)
        assert (np.diff(one.scores) <= 0).all()
    assert len(detector.detect(images[1], threshold=0.3, max_detections=1)) == 1
    assert "as detectNet sees it" in detector.name


@pytest.mark.parametrize(
    "how, message",
    [
        ({"batch": None}, "batch is not a fixed 1"),
        ({"batch": 2}, "batch is not a fixed 1"),
        ({"form": "raw"}, "no output 'boxes', only scores, locations"),
        ({"form": "uint8"}, r"its input is 'input_0' \(uint8\)"),
        ({"names": ("confidences", "boxes")}, "no output 'scores'"),
        ({"size": ("h", "w")}, r"not \(1, 3, height, width\)"),
    ],
)
def test_files_that_detectnet_cannot_use(tiny, tmp_path, how, message):
    path = tiny.save(tmp_path / "tiny.onnx", **how)
    with pytest.raises(UserError, match=f"detectNet cannot use this file: .*{message}.*--target detectnet"):
        open_detector(path, "detectnet")


def test_wrong_clustering(tiny, tmp_path):
    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card())
    with pytest.raises(UserError, match=r"clustering 75 is outside \[0, 1\]"):
        open_detector(path, "detectnet", clustering=75)


def test_wrong_class_count():
    from vision.spec import InputSpec

    class Inner:
        input, classes, name, batch_size = InputSpec(8, 8), ("BACKGROUND", "a"), "stub", 1

        @staticmethod
        def run(blob):
            return np.zeros((1, 2, 5), np.float32), np.zeros((1, 2, 4), np.float32)

    with pytest.raises(UserError, match="scores 5 classes .* but 2 names"):
        DetectNet(Inner()).detect(np.zeros((4, 4, 3), np.uint8))
