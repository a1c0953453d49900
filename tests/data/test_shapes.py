import hashlib

import numpy as np
import pytest

from vision.data import open_dataset
from vision.data.images import read_image
from vision.data.shapes import CLASSES, Shape, _box, _mask, _visible, main, paint_picture, write_shapes
from vision.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), images=60, seed=1)


def digest(root):
    names = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def test_it_is_a_voc_tree_without_a_fault(root):
    train = open_dataset(root, "train", strict=True)
    test = open_dataset(root, "test", strict=True)
    assert train.findings == test.findings == []
    assert (len(train), len(test)) == (48, 12)
    assert train.classes == test.classes == ("BACKGROUND", *CLASSES)


def test_it_holds_what_a_training_must_cope_with(root):
    samples = open_dataset(root, "train").samples
    assert any(len(sample.labels) == 0 for sample in samples)
    assert set(np.concatenate([sample.labels for sample in samples])) == set(range(1, len(CLASSES) + 1))
    sides = np.concatenate([(s.boxes[:, 2:] - s.boxes[:, :2]) / min(s.size) for s in samples]).max(axis=1)
    assert sides.min() < 0.25 and sides.max() > 0.5
    assert len({sample.size for sample in samples}) > 10


def test_some_objects_are_mostly_covered():
    flags = []
    for seed in range(60):
        flags += paint_picture(np.random.default_rng(seed), (240, 320), 5).difficult
    assert 0.002 < np.mean(flags) < 0.15


def test_boxes_fit_the_paint():
    """Where a lone object was painted the picture differs from the cloth; that is the box."""
    for seed in range(12):
        picture = paint_picture(np.random.default_rng(seed), (240, 320), 1)
        (box,) = picture.boxes
        x1, y1, x2, y2 = box
        image = picture.image.astype(int)
        colourful = image.max(axis=2) - image.min(axis=2)
        ring = np.ones(image.shape[:2], bool)
        ring[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
        assert colourful[ring].mean() < 0.75 * colourful[y1:y2, x1:x2].mean()
        for line in (image[y1 : y1 + 3, x1:x2], image[y2 - 3 : y2, x1:x2], image[y1:y2, x1 : x1 + 3]):
            assert (line.max(axis=2) - line.min(axis=2)).max() > 60  # the object touches this side


def test_the_image_depends_on_seed_and_number_alone(root, tmp_path):
    again = digest(write_shapes(tmp_path / "again", images=60, seed=1))
    assert again == digest(root)
    fewer = digest(write_shapes(tmp_path / "fewer", images=5, seed=1))
    assert fewer["JPEGImages/shapes_00002.jpg"] == again["JPEGImages/shapes_00002.jpg"]
    other = digest(write_shapes(tmp_path / "other", images=5, seed=2))
    assert other["JPEGImages/shapes_00002.jpg"] != again["JPEGImages/shapes_00002.jpg"]


def test_pictures_are_as_large_as_their_annotations_say(root):
    for sample in open_dataset(root, "test").samples:
        assert read_image(sample.path).shape[:2] == sample.size


def test_visible_shares():
    left, all_of_it = np.zeros((4, 8), np.float32), np.ones((4, 8), np.float32)
    left[:, :2] = 1
    assert _visible([]) == []
    assert _visible([all_of_it]) == [1.0]
    assert _visible([all_of_it, left]) == [0.75, 1.0]
    assert _visible([left, all_of_it]) == [0.0, 1.0]


def test_a_shape_outside_has_no_box():
    assert _box(_mask(Shape("disc", (-50.0, 5.0), (10.0, 10.0), 0.0), (20, 20))) is None
    box = _box(_mask(Shape("square", (10.0, 10.0), (10 / 1.8, 5 / 0.9), 0.0), (20, 20)))
    np.testing.assert_allclose(box, (5, 5, 15, 15), atol=1)  # OpenCV's smooth edges are a little fat


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 5"):
        write_shapes(tmp_path, images=4)


def test_the_command(tmp_path, capsys):
    assert main([str(tmp_path / "set"), "--images", "6", "--seed", "3"]) == 0
    assert "6 images" in capsys.readouterr().out
    assert len(open_dataset(tmp_path / "set", "train")) == 5
    assert main([str(tmp_path / "set"), "--images", "1"]) == 2
    assert "at least 5" in capsys.readouterr().err
