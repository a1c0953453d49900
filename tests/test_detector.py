"""The detector: odd images, preprocess and postprocess against the reference."""

import importlib.util

import numpy as np
import pytest

from vision.detector import Detections, Detector, as_rgb
from vision.errors import UserError
from vision.spec import InputSpec

CLASSES = ("BACKGROUND", "cat", "dog")
MB = InputSpec()
VGG = InputSpec(300, 300, (123.0, 117.0, 104.0), (1.0, 1.0, 1.0))
GREY = np.full((6, 8, 3), 100, np.uint8)


def fixed(scores, boxes):
    """A run that gives the same for every image."""

    def run(blob):
        count = len(blob)
        return (
            np.tile(np.array(scores, np.float32)[None], (count, 1, 1)),
            np.tile(np.array(boxes, np.float32)[None], (count, 1, 1)),
        )

    return run


def detector(scores, boxes, classes=CLASSES, **options):
    return Detector(fixed(scores, boxes), InputSpec(32, 48), classes, "stub", **options)


NOTHING = detector([[1, 0, 0]], [[0, 0, 1, 1]])


# --- Detections ---------------------------------------------------------------------------------------------


def test_no_detections_are_a_good_result():
    found = Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), CLASSES, (6, 8)
    )
    assert len(found) == 0 and list(found) == [] and found.names == []


@pytest.mark.parametrize(
    "boxes, scores, labels, message",
    [
        (np.zeros((2, 4)), np.zeros(1), np.ones(1, int), "do not match"),
        (np.zeros((1, 4)), np.array([np.nan]), np.ones(1, int), "NaN"),
        (np.full((1, 4), np.inf), np.ones(1), np.ones(1, int), "NaN"),
        (np.zeros((1, 4)), np.ones(1), np.array([3]), "labels 3..3 for 3 classes"),
        (np.zeros((1, 4)), np.ones(1), np.array([0]), "labels 0..0"),
    ],
)
def test_detections_are_checked_at_birth(boxes, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        Detections(boxes, scores, labels, CLASSES, (6, 8))


# --- images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image, pixel",
    [
        (np.full((2, 3), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3, 1), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3, 3), (1, 2, 3), np.uint8), [1, 2, 3]),
        (np.full((2, 3, 4), (1, 2, 3, 0), np.uint8), [1, 2, 3]),
        (np.full((2, 3), 65535, np.uint16), [255, 255, 255]),
        (np.full((2, 3), 257 * 5 + 128, np.uint16), [5, 5, 5]),
        (np.full((2, 3), 257 * 5 + 129, np.uint16), [6, 6, 6]),
        (np.full((2, 3), 0.5), [128, 128, 128]),
        (np.full((2, 3, 4), 1.0, np.float32), [255, 255, 255]),
        (np.full((4, 6, 3), 9, np.uint8)[::2, ::-2], [9, 9, 9]),
    ],
)
def test_images_of_other_forms(image, pixel):
    rgb = as_rgb(image)
    assert rgb.dtype == np.uint8 and rgb.shape == (2, 3, 3) and rgb.flags["C_CONTIGUOUS"]
    assert rgb[1, 2].tolist() == pixel


@pytest.mark.parametrize(
    "image, message",
    [
        (None, "not NoneType .could the file not be read"),
        ("photo.jpg", "not str"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 0), np.uint8), "no pixels"),
        (np.zeros(0, np.uint8), "no pixels"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros((3, 300, 300), np.uint8), r"shape \(3, 300, 300\)"),
        (np.full((2, 2), np.nan), "holds nan"),
        (np.full((2, 2), np.inf), "0..1"),
        (np.full((2, 2), 200.0), "holds 200..200, not 0..1"),
        (np.full((2, 2), -0.1), "not 0..1"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.zeros((2, 2), bool), "bool"),
    ],
)
def test_refused_images(image, message):
    with pytest.raises(UserError, match=message):
        NOTHING.detect(image)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (20000, 10, 3), (10, 20000, 3)])
def test_extreme_shapes(shape):
    found = detector([[0, 1, 0]], [[0, 0, 1, 1]]).detect(np.zeros(shape, np.uint8))
    assert found.size == shape[:2]
    assert found.boxes.tolist() == [[0, 0, shape[1], shape[0]]]


@pytest.fixture(scope="session")
def rule(reference):
    """The rules by which the reference's images and weights are made."""
    spec = importlib.util.spec_from_file_location("reference_rule", reference / "rule.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- preprocess ---------------------------------------------------------------------------------------------


def test_preprocess_of_no_images():
    assert NOTHING.preprocess([]).shape == (0, 3, 32, 48)


@pytest.mark.parametrize("net, spec", [("mb1", MB), ("vgg16", VGG)])
@pytest.mark.parametrize("name", ["pattern_375x500", "noise_240x320", "noise_600x411"])
def test_preprocess_equals_the_reference(reference, rule, name, net, spec):
    image = {
        "pattern_375x500": lambda: rule.pattern_image(375, 500),
        "noise_240x320": lambda: rule.noise_image(5, 240, 320),
        "noise_600x411": lambda: rule.noise_image(6, 600, 411),
    }[name]()
    with np.load(reference / "preprocess.npz") as expected:
        assert np.array_equal(image[:2, :4], expected[f"{name}/first_pixels"])
        blob = Detector(fixed([[1, 0, 0]], [[0, 0, 1, 1]]), spec, CLASSES).preprocess([image])
        assert blob.dtype == np.float32 and blob.shape == (1, 3, 300, 300)
        assert np.array_equal(blob[0, :, ::7, ::7], expected[f"{name}/{net}"])
        statistics = np.stack([blob[0].mean((1, 2), np.float64), blob[0].std((1, 2), np.float64)], axis=1)
        np.testing.assert_allclose(statistics, expected[f"{name}/{net}_mean_std"], atol=1e-4)


def test_preprocess_rounds_like_the_plain_formula():
    spec = InputSpec(8, 8, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    plain = (image.astype(np.float32) - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    blob = Detector(fixed([[1, 0, 0]], [[0, 0, 1, 1]]), spec, CLASSES).preprocess([image])
    assert np.array_equal(blob[0], plain.transpose(2, 0, 1))


# --- postprocess --------------------------------------------------------------------------------------------


def test_nothing_found():
    found = NOTHING.detect(GREY)
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.size == (6, 8)
    assert NOTHING.detect([]) == []


def test_boxes_are_pixels_inside_the_image_by_falling_score():
    found = detector(
        [[0.1, 0.0, 0.9], [0.05, 0.95, 0.0], [0.3, 0.7, 0.0]],
        [[-0.5, -0.5, 0.5, 0.5], [0.5, 0.5, 1.5, 1.5], [1.1, 0.0, 1.2, 1.0]],  # the last lies outside
    ).detect(GREY)
    assert found.names == ["cat", "dog"]
    assert found.scores.tolist() == pytest.approx([0.95, 0.9])
    assert found.boxes.tolist() == [[4, 3, 8, 6], [0, 0, 4, 3]]
    assert found.boxes.dtype == found.scores.dtype == np.float32 and found.labels.dtype == np.int64


def test_each_image_has_its_own_size_whatever_the_batch():
    images = [np.zeros((10 + i, 20 + i, 3), np.uint8) for i in range(5)]
    for batch_size in (1, 2, 5, 8):
        found = detector([[0, 1, 0]], [[0, 0, 1, 1]], batch_size=batch_size).detect(images)
        assert [one.boxes[0].tolist() for one in found] == [[0, 0, 20 + i, 10 + i] for i in range(5)]


def test_a_stack_of_images_is_a_sequence():
    assert len(NOTHING.detect(np.zeros((3, 4, 5, 3), np.uint8))) == 3


def test_top_k_is_of_each_class_and_max_detections_of_the_image():
    scores = [[0, 0.9, 0.5], [0, 0.8, 0.6], [0, 0.7, 0.7]]
    boxes = [[0, 0, 0.2, 0.2], [0.4, 0.4, 0.6, 0.6], [0.8, 0.8, 1, 1]]
    one = detector(scores, boxes)
    assert one.detect(GREY, top_k=2).names == ["cat", "cat", "dog", "dog"]
    assert one.detect(GREY, max_detections=3).scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert len(one.detect(GREY, max_detections=0)) == 0
    assert len(one.detect(GREY, threshold=0.65)) == 4


def test_soft_nms_keeps_what_hard_drops():
    scores, boxes = [[0.1, 0.9, 0], [0.2, 0.8, 0]], [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.4]]
    assert len(detector(scores, boxes).detect(GREY, 0.1)) == 1
    soft = detector(scores, boxes).detect(GREY, 0.1, nms_method="soft")
    assert soft.scores.tolist() == pytest.approx([0.9, 0.8 * np.exp(-(0.8**2) / 0.5)])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"threshold": 1}, "score threshold 1"),
        ({"threshold": float("nan")}, "score threshold nan"),
        ({"iou_threshold": 0}, "IoU threshold of NMS 0"),
        ({"nms_method": "none"}, "'none' is none of hard, soft"),
        ({"sigma": 0}, "sigma"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        NOTHING.detect(GREY, **settings)


@pytest.mark.parametrize(
    "scores, boxes, message",
    [
        ([[1, 0]], [[0, 0, 1, 1]], "scores 2 classes .* but 3 names"),
        ([[1, np.nan, 0]], [[0, 0, 1, 1]], "NaN or infinite"),
        ([[0, 1, 0]], [[0, 0, np.inf, 1]], "NaN or infinite"),
        ([[1, 0, 0], [1, 0, 0]], [[0, 0, 1, 1]], "expected"),
    ],
)
def test_broken_nets_are_named(scores, boxes, message):
    with pytest.raises(UserError, match="stub: .*" + message):
        detector(scores, boxes).detect(GREY)


def test_an_infinite_box_that_nobody_sees_does_no_harm():
    found = detector([[1, 0, 0], [0, 1, 0]], [[0, 0, np.inf, 1], [0, 0, 1, 1]]).detect(GREY)
    assert found.boxes.tolist() == [[0, 0, 8, 6]]
