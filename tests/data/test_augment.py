"""Augmentation: the window drawn on boxes, the pixels under it, the colours, and where its randomness comes from."""

import json
import multiprocessing
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

import vision.data.augment as augment
from vision.boxes import area, iou
from vision.data import open_dataset
from vision.data.augment import (
    Augmentation,
    Colour,
    Resized,
    Window,
    draw_colour,
    draw_crop,
    draw_window,
    random_stream,
    recolour,
    reduction,
    warp,
)
from vision.data.images import read_image
from vision.data.sample import IGNORED, Sample
from vision.errors import UserError

PERCENTS = (5, 25, 50, 75, 95)
NO_BOXES = np.zeros((0, 4))


def make_sample(path, boxes=(), size=None, difficult=None, group=None):
    count = len(boxes)
    return Sample(
        id=Path(path).stem,
        path=Path(path),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.arange(1, count + 1, dtype=np.int64),
        difficult=np.zeros(count, bool) if difficult is None else np.array(difficult),
        group=np.zeros(count, bool) if group is None else np.array(group),
        size=size,
    )


def photograph(path, boxes=(), size=(240, 320), ground=(30, 60, 90)):
    """A plain photograph with a bright rectangle in every box; lossless."""
    image = np.full((*size, 3), ground, np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = (250, 200, 10)
    path.write_bytes(cv2.imencode(path.suffix, image[..., ::-1])[1].tobytes())
    return image


@pytest.fixture
def plain(monkeypatch):
    """Geometry without changes of colour."""
    monkeypatch.setattr(augment, "draw_colour", lambda rng: Colour())


# --- the window ---------------------------------------------------------------------------------------------


def windows(count, size, boxes):
    for number in range(count):
        yield draw_window(random_stream(3, 0, number), size, boxes)


def test_without_boxes_any_window_will_do():
    seen = [window for window, kept in windows(300, (100, 150), NO_BOXES) if kept.shape == (0,)]
    assert len(seen) == 300
    smaller = sum(area(np.array([w.x1, w.y1, w.x2, w.y2])) < 0.99 * 15000 for w in seen)
    larger = sum(area(np.array([w.x1, w.y1, w.x2, w.y2])) > 1.01 * 15000 for w in seen)
    assert smaller > 50 and larger > 50 and sum(w.mirror for w in seen) > 100


def test_geometry_follows_the_original_where_it_was_right(reference, monkeypatch):
    """With crops that never fail, as the original's, ours have its distribution."""
    monkeypatch.setattr(augment, "MIN_IOUS", (None, 0.0, 0.0, 0.0, 0.0, 0.0))
    wanted = json.loads((reference / "augment_stats.json").read_text())["geometry"]
    height, width = wanted["image"]
    boxes = np.array(wanted["boxes"])
    count = 4000
    kept = np.zeros((count, 3), bool)
    fractions = np.full((count, 3, 4), np.nan)
    areas, ratios = np.zeros(count), np.zeros(count)
    for number, (window, keep) in enumerate(windows(count, (height, width), boxes)):
        kept[number] = keep
        fractions[number, keep] = window.fractions(boxes[keep])
        areas[number] = window.size[0] * window.size[1] / height / width
        ratios[number] = window.size[1] / window.size[0]

    shares = np.bincount(kept.sum(axis=1), minlength=4) / count
    np.testing.assert_allclose(shares, wanted["share_with_k_boxes_kept"], atol=0.03)
    np.testing.assert_allclose(kept.mean(axis=0), wanted["share_each_box_kept"], atol=0.03)

    def close(values, name, scale):
        figures = wanted[name] if isinstance(name, str) else name
        found = np.percentile(values, PERCENTS)
        np.testing.assert_allclose(found, [figures[str(p)] for p in PERCENTS], rtol=0.08, atol=0.03 * scale)

    close(areas, "output_area_over_input_area_percentiles", 1)
    close(ratios, "output_width_over_height_percentiles", 1)
    for box in range(3):
        seen = fractions[kept[:, box], box]
        close(seen[:, 2] - seen[:, 0], wanted["box_width_percentiles"][box], 1)
        close(seen[:, 3] - seen[:, 1], wanted["box_height_percentiles"][box], 1)
        close((seen[:, 2] + seen[:, 0]) / 2, wanted["box_center_x_percentiles"][box], 1)


@pytest.mark.parametrize("min_iou", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_the_least_iou_is_kept(monkeypatch, min_iou):
    """One of the boxes that stay has at least this IoU with the crop; in the original the test never failed."""
    monkeypatch.setattr(augment, "MIN_IOUS", (min_iou,))
    rng = np.random.default_rng(1)
    whole = Window(0, 0, 200, 150)
    best = []
    for number in range(60):
        low = rng.uniform((0, 0), (60, 50), (4, 2))
        boxes = np.concatenate([low, np.minimum(low + rng.uniform(60, 150, (4, 2)), (200, 150))], axis=1)
        crop, kept = draw_crop(random_stream(0, 0, number), whole, boxes)
        corners = np.array([[crop.x1, crop.y1, crop.x2, crop.y2]])
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((corners[:, :2] < centers) & (centers < corners[:, 2:])).all(axis=1)
        np.testing.assert_array_equal(kept, inside)
        best.append(iou(corners, boxes[kept]).max())
        assert corners.min() >= 0 and crop.x2 <= 200 and crop.y2 <= 150
        ratio = (crop.y2 - crop.y1) / (crop.x2 - crop.x1)
        assert 0.5 <= ratio <= 2
    assert min(best) >= min_iou - 1e-9
    assert min(best) < min_iou + 0.25  # and it is not stricter than it says


def test_all_ways_to_crop_are_drawn(monkeypatch):
    """A box of the whole image admits every crop of its area, so the ways show in the IoU."""
    box = np.array([[0.0, 0, 100, 100]])
    overlaps = []
    for number in range(700):
        crop, _ = draw_crop(random_stream(5, 0, number), Window(0, 0, 100, 100), box)
        overlaps.append(crop.size[0] * crop.size[1] / 1e4)
    overlaps = np.array(overlaps)
    # Not cropping and 0.9 leave at least 0.9; 0.9's crops are rare in 50 tries, so most draw again.
    assert 0.1 < (overlaps == 1).mean() < 0.3
    assert 0.03 < (overlaps < 0.3).mean() < 0.15 and (overlaps > 0.7).mean() > 0.25


def test_the_ways_to_crop_are_the_papers():
    assert augment.MIN_IOUS == (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)


def test_crops_reach_every_border():
    crops = [draw_crop(random_stream(2, 0, n), Window(0, 0, 100, 100), NO_BOXES)[0] for n in range(800)]
    assert min(c.x1 for c in crops if c.x2 < 100) < 1 and max(c.x2 for c in crops if c.x1 > 0) > 99
    left = np.array([c.x1 / (100 - c.size[1]) for c in crops if c.size[1] < 100])
    assert abs(left.mean() - 0.5) < 0.04 and abs(np.mean(left < 0.25) - 0.25) < 0.06


def test_fractions_are_clipped_and_mirrored():
    boxes = np.array([[10.0, 20, 30, 40], [-5, 0, 500, 500]])
    np.testing.assert_allclose(Window(0, 0, 100, 200).fractions(boxes), [[0.1, 0.1, 0.3, 0.2], [0, 0, 1, 1]])
    np.testing.assert_allclose(
        Window(0, 0, 100, 200, mirror=True).fractions(boxes), [[0.7, 0.1, 0.9, 0.2], [0, 0, 1, 1]], atol=1e-6
    )
    assert Window(0, 0, 9, 9).fractions(NO_BOXES).shape == (0, 4)
    assert Window(0, 0, 9, 9).fractions(boxes).dtype == np.float32


# --- the pixels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_boxes_stay_on_their_objects(tmp_path, plain, suffix):
    """The rectangle in the pixels is where the box says, whatever was drawn, to a pixel or so."""
    box = (90, 70, 210, 190)
    path = tmp_path / f"one{suffix}"
    photograph(path, [box])
    make = Augmentation((300, 260), fill=(0, 0, 0), seed=4)
    sample = make_sample(path, [box], (240, 320))
    mirrored = set()
    for index in range(80):
        image, boxes, labels, _ = make(sample, 0, index)
        assert image.shape == (300, 260, 3) and labels.tolist() == [1]
        bright = image[..., 0] > 140
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        np.testing.assert_allclose(boxes[0] * (260, 300, 260, 300), found, atol=1.6)
        x1, y1, x2, y2 = found
        inner = bright[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
        assert inner.size == 0 or inner.mean() > 0.99
        mirrored.add(draw_window(random_stream(4, 0, index), (240, 320), np.array([box], float))[0].mirror)
    assert mirrored == {True, False}


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    "window, size",
    [
        ((0, 0, 64, 48), (48, 64)),
        ((8, 4, 40, 36), (64, 64)),
        ((-32, -16, 96, 80), (96, 128)),
        ((-40, -10, 30, 90), (50, 70)),
    ],
)
def test_warp_samples_where_the_window_says(window, size, mirror):
    """Against a plain evaluation of the map on a linear ramp, which interpolation keeps exactly."""
    photo = (48, 64)
    y, x = np.mgrid[0:48, 0:64]
    ramp = np.stack([x * 4, y * 5, x + y], axis=2).astype(np.uint8)
    window = Window(*window, mirror=mirror)
    part, (row, column) = warp(ramp, window, 1, photo, size)
    source_x = window.x1 + (np.arange(size[1]) + 0.5) * (window.x2 - window.x1) / size[1]
    source_y = window.y1 + (np.arange(size[0]) + 0.5) * (window.y2 - window.y1) / size[0]
    if mirror:
        source_x = source_x[::-1]
    covered_x, covered_y = (source_x >= 0) & (source_x < 64), (source_y >= 0) & (source_y < 48)
    assert part.shape[:2] == (covered_y.sum(), covered_x.sum())
    assert (row, column) == (np.argmax(covered_y), np.argmax(covered_x))
    wanted_x = np.clip(source_x[covered_x] - 0.5, 0, 63) * 4
    wanted_y = np.clip(source_y[covered_y] - 0.5, 0, 47) * 5
    np.testing.assert_allclose(part[..., 0], np.broadcast_to(wanted_x, part.shape[:2]), atol=1)
    np.testing.assert_allclose(part[..., 1], np.broadcast_to(wanted_y[:, None], part.shape[:2]), atol=1)


@pytest.mark.parametrize("window", [(-90, -90, -10, -10), (70, 0, 90, 20), (-1e-9, -30, 64, -1e-9)])
def test_a_window_beside_the_photograph_is_empty(window):
    part, _ = warp(np.zeros((48, 64, 3), np.uint8), Window(*window), 1, (48, 64), (30, 30))
    assert part.size == 0


def test_the_whole_photograph_is_resized_as_for_prediction():
    """Without expansion and crop the warp is OpenCV's linear resize, to a rounding."""
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    part, corner = warp(image, Window(0, 0, 160, 120), 1, (120, 160), (96, 100))
    assert corner == (0, 0)
    wanted = cv2.resize(image, (100, 96)).astype(int)
    # OpenCV 4 warps on a grid of 1/32 pixel, and neighbours here differ by up to 255.
    np.testing.assert_allclose(part, wanted, atol=12)
    assert np.abs(part - wanted).mean() < 1


@pytest.mark.parametrize(
    "sides, reduce",
    [
        ((100, 100), 1),
        ((599, 900), 1),
        ((600, 600), 2),
        ((600, 3000), 2),
        ((1300, 1200), 4),
        ((9600, 9600), 32),
    ],
)
def test_reduction(sides, reduce):
    assert reduction(Window(0, 0, sides[1], sides[0]), (300, 300)) == reduce


@pytest.mark.parametrize("turned", [False, True])
def test_one_axis_that_shrinks_much_more_is_averaged(turned):
    """Lines one pixel wide become grey; picking pixels would leave lines."""
    lines = np.zeros((60, 600, 3), np.uint8)
    lines[:, ::2] = 200
    window, photo = Window(0, 0, 600, 60), (60, 600)
    if turned:
        lines, window, photo = np.ascontiguousarray(lines.swapaxes(0, 1)), Window(0, 0, 60, 600), (600, 60)
    part, _ = warp(lines, window, 1, photo, (50, 50))
    np.testing.assert_allclose(part, 100, atol=5)


def test_a_reduced_decode_gives_the_same_picture(photographs, plain, monkeypatch):
    """Reduced while decoding, or decoded whole and then reduced by means: the same, to a few levels."""
    dataset = open_dataset(photographs / "bccd", "test")
    make = Augmentation((150, 150), seed=1)
    reduced = [make(sample, 0, index)[0] for index, sample in enumerate(dataset.samples[:12])]
    factors = [
        reduction(draw_window(random_stream(1, 0, i), s.size, s.boxes.astype(float))[0], (150, 150))
        for i, s in enumerate(dataset.samples[:12])
    ]
    assert max(factors) > 1

    def slowly(path, reduce, size):
        return augment.shrink(read_image(path, 1, size), reduce, reduce)

    monkeypatch.setattr(augment, "read_image", slowly)
    for index, sample in enumerate(dataset.samples[:12]):
        whole = make(sample, 0, index)[0].astype(int)
        assert np.abs(whole - reduced[index]).mean() < 1.5


def test_what_lies_outside_is_the_mean_and_is_not_coloured(tmp_path):
    path = tmp_path / "one.png"
    photograph(path, size=(40, 40), ground=(200, 30, 60))
    make = Augmentation((64, 64), fill=(123, 117, 104), seed=0)
    outside = 0
    for index in range(40):
        image, _, _, gain = make(make_sample(path, size=(40, 40)), 0, index)
        plain = (np.abs(image * gain - (123, 117, 104)) <= 0.5 * gain + 0.01).all(axis=2)
        # Two colours and no fringe between them: the fill, and the ground however it was coloured.
        assert len(np.unique(image[~plain], axis=0)) <= 1
        outside += plain.any()
    assert outside > 5


OPENCV = tuple(int(part) for part in cv2.__version__.split(".")[:2])
ONE_PIXEL = pytest.param(
    (1, 1), marks=pytest.mark.skipif(OPENCV < (4, 6), reason="OpenCV fails on one pixel")
)


@pytest.mark.parametrize("size", [ONE_PIXEL, (1, 40), (40, 1), (3, 2000), (2000, 3)])
def test_photographs_of_odd_sizes(tmp_path, size):
    path = tmp_path / "one.png"
    photograph(path, size=size)
    for index in range(30):
        for boxes in ([], [(0, 0, size[1], size[0])]):
            image, moved, _, _ = Augmentation((32, 48))(make_sample(path, boxes, size), 0, index)
            assert image.shape == (32, 48, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
            assert (moved[:, 2:] > moved[:, :2]).all()


# --- colour -------------------------------------------------------------------------------------------------


def noise():
    raw = np.random.PCG64(8).random_raw(32 * 32 * 3) & np.uint64(255)
    return raw.astype(np.uint8).reshape(32, 32, 3)


def test_colours_follow_the_original(reference):
    """Its distribution of mean and spread, with contrast as the gain that the net's input applies."""
    wanted = json.loads((reference / "augment_stats.json").read_text())["photometric"]
    image = noise()
    colours = [draw_colour(random_stream(1, 0, n)) for n in range(3000)]
    seen = [recolour(image, colour) * colour.contrast for colour in colours]
    for name, measure in (("mean", np.mean), ("std", np.std)):
        found = np.percentile([measure(one) for one in seen], PERCENTS)
        figures = [wanted[f"{name}_percentiles"][str(p)] for p in PERCENTS]
        np.testing.assert_allclose(found, figures, rtol=0.09)
    # Only brightness and saturation are clipped to 0..255, and so only the minimum cannot fall below 0.
    low, high = [one.min() for one in seen], [one.max() for one in seen]
    assert np.percentile(low, 75) == pytest.approx(wanted["min_percentiles"]["75"], abs=1)
    for percent in (5, 25, 50):
        assert np.percentile(high, percent) == pytest.approx(wanted["max_percentiles"][str(percent)], abs=9)
    assert max(high) > 350


def test_no_change_changes_nothing():
    np.testing.assert_array_equal(recolour(noise(), Colour()), noise())


@pytest.mark.parametrize(
    "colour, value",
    [
        (Colour(brightness=20), (120, 60, 220)),
        (Colour(brightness=-60), (40, 0, 140)),
        (Colour(brightness=80), (180, 120, 255)),
        (Colour(contrast=1.5), (100, 40, 200)),
        (Colour(channels=(2, 0, 1)), (200, 100, 40)),
        (Colour(brightness=10, channels=(1, 2, 0)), (50, 210, 110)),
    ],
)
def test_changes_of_colour_on_one_pixel(colour, value):
    pixel = np.array([[[100, 40, 200]]], np.uint8)
    np.testing.assert_array_equal(recolour(pixel, colour), [[value]])


@pytest.mark.parametrize(
    "colour", [Colour(saturation=1.4), Colour(saturation=0.6), Colour(hue=15), Colour(hue=-15)]
)
def test_saturation_and_hue_against_exact_arithmetic(colour):
    """Our 8-bit HSV against HSV in floating point, on colours that saturation does not push over the edge."""
    image = np.random.default_rng(0).integers(90, 200, (24, 24, 3), np.uint8)
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)  # H in degrees, S 0..1, V 0..255
    hsv[..., 0] = (hsv[..., 0] + colour.hue) % 360
    hsv[..., 1] *= colour.saturation
    exact = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    assert np.abs(recolour(image, colour) - exact).max() <= 4
    assert np.abs(recolour(image, colour) - exact).mean() < 1
    assert np.abs(image - exact).mean() > 3


@pytest.mark.parametrize("share", range(5))
def test_each_part_of_a_colour_is_drawn_half_of_the_time(share):
    drawn = [draw_colour(random_stream(2, 0, n)) for n in range(1500)]
    part = [
        lambda c: c.brightness != 0,
        lambda c: c.contrast != 1,
        lambda c: c.saturation != 1,
        lambda c: c.hue != 0,
        lambda c: c.channels != (0, 1, 2),
    ][share]
    wanted = 5 / 12 if share == 4 else 0.5  # the identity is one of six orders
    assert abs(np.mean([part(colour) for colour in drawn]) - wanted) < 0.045
    assert max(abs(c.brightness) for c in drawn) <= 32 and max(abs(c.hue) for c in drawn) <= 18
    assert all(0.5 <= c.contrast <= 1.5 and 0.5 <= c.saturation <= 1.5 for c in drawn)


# --- from sample to example ---------------------------------------------------------------------------------


def test_the_same_seed_epoch_and_index_give_the_same_bytes(photographs):
    dataset = open_dataset(photographs / "cards", "test")
    make = Augmentation((96, 96), seed=9)
    first = make(dataset.samples[0], 3, 5)
    np.random.default_rng(0).random(100)
    for other in (make, pickle.loads(pickle.dumps(make))):
        again = other(dataset.samples[0], 3, 5)
        assert [part.tobytes() for part in again] == [part.tobytes() for part in first]
    for epoch, index, seed in ((4, 5, 9), (3, 6, 9), (3, 5, 10)):
        other = Augmentation((96, 96), seed=seed)(dataset.samples[0], epoch, index)
        assert other[0].tobytes() != first[0].tobytes()


def test_streams_do_not_meet():
    seen = {random_stream(s, e, i).random() for s in range(4) for e in range(8) for i in range(50)}
    assert len(seen) == 4 * 8 * 50


def test_it_travels_to_a_spawned_process(tmp_path):
    path = tmp_path / "one.png"
    photograph(path, [(10, 10, 60, 60)])
    sample = make_sample(path, [(10, 10, 60, 60)], (240, 320))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for make in (Augmentation((64, 64)), Resized((64, 64))):
            far = pool.apply(make, (sample, 1, 2))
            assert [part.tobytes() for part in far] == [part.tobytes() for part in make(sample, 1, 2)]


def test_difficult_objects_are_not_learned_and_groups_are_ignored(tmp_path):
    path = tmp_path / "one.png"
    photograph(path)
    boxes = [(10, 10, 60, 60), (100, 100, 200, 200)]
    some = make_sample(path, boxes, (240, 320), [True, False])
    none = make_sample(path, boxes, (240, 320), [True, False], [False, True])
    assert Resized((50, 50))(some)[2].tolist() == [2]
    assert all(2 in Augmentation((50, 50))(some, 0, index)[2] for index in range(20))
    _, kept, labels, _ = Resized((50, 50))(none)
    np.testing.assert_allclose(kept, [[100 / 320, 100 / 240, 200 / 320, 200 / 240]], rtol=1e-6)
    assert labels.tolist() == [IGNORED] and kept.dtype == np.float32 and labels.dtype == np.int64
    seen = set()
    for index in range(40):
        image, kept, labels, _ = Augmentation((50, 50))(none, 0, index)
        assert set(labels.tolist()) <= {IGNORED} and kept.shape == (len(labels), 4)
        assert kept.dtype == np.float32 and labels.dtype == np.int64
        seen.add(len(labels))
    assert seen == {0, 1}  # a crop may leave the group out


def test_at_least_one_object_stays(photographs):
    dataset = open_dataset(photographs / "cards", "test")
    make = Augmentation((64, 64))
    for index, sample in enumerate(dataset.samples[:30]):
        _, boxes, labels, _ = make(sample, 0, index)
        assert len(labels) == len(boxes) >= 1 and boxes.min() >= 0 and boxes.max() <= 1


def test_resized_is_the_plain_resize(photographs):
    sample = open_dataset(photographs / "bccd", "test").samples[0]
    image, boxes, labels, _ = Resized((300, 200))(sample)
    np.testing.assert_array_equal(image, cv2.resize(read_image(sample.path), (200, 300)))
    np.testing.assert_allclose(boxes, sample.boxes / (640, 480, 640, 480), atol=1e-6)
    assert labels.tolist() == sample.labels.tolist()


@pytest.mark.parametrize("make", [Augmentation((32, 32)), Resized((32, 32))])
def test_a_lost_image_is_named(tmp_path, make):
    with pytest.raises(UserError, match=r"gone\.jpg"):
        make(make_sample(tmp_path / "gone.jpg", size=(10, 10)), 0, 0)


def test_an_image_that_changed_its_size_is_named(tmp_path):
    path = tmp_path / "one.png"
    photograph(path, size=(100, 100))
    with pytest.raises(UserError, match=r"one\.png: no longer the 640 x 480 pixels"):
        for index in range(10):
            Augmentation((32, 32))(make_sample(path, size=(480, 640)), 0, index)


def test_a_sample_of_unknown_size_is_looked_up(tmp_path):
    path = tmp_path / "one.png"
    photograph(path, [(10, 10, 60, 60)])
    known, unknown = (make_sample(path, [(10, 10, 60, 60)], size) for size in ((240, 320), None))
    for index in range(5):
        a, b = (Augmentation((64, 64))(sample, 0, index)[0] for sample in (known, unknown))
        assert a.tobytes() == b.tobytes()
