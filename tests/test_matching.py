"""Matching against the numbers of the original; deliberate differences are stated where they are tested."""

import numpy as np
import pytest
import torch

from vision import boxes as B
from vision.data.sample import IGNORED
from vision.matching import assign, centers_to_corners, corners_to_centers, encode, iou, match

VARIANCES = (0.1, 0.2)
TIES = {"tiny": 10, "twenty": 4}
"""Labels that differ because several priors have the same IoU with an object: ours takes the nearest."""

PRIORS_OF = {"vgg_three": "priors_vgg16", "sq_three": "priors_sq"}


@pytest.fixture(scope="module")
def cases(reference):
    numbers, boxes = np.load(reference / "matching.npz"), np.load(reference / "boxes.npz")
    return {
        str(name): {
            "priors": torch.tensor(boxes[PRIORS_OF.get(str(name), "priors_mb")]),
            "boxes": torch.tensor(numbers[f"{name}/gt_boxes"]).float().reshape(1, -1, 4),
            "labels": torch.tensor(numbers[f"{name}/gt_labels"]).long().reshape(1, -1),
            **{key: numbers[f"{name}/{key}"] for key in ("target_index", "index", "locations")},
            "expected": numbers[f"{name}/labels"],
        }
        for name in numbers["cases"]
    }


def test_no_objects_give_background():
    priors = torch.rand(9, 4)
    for objects in (0, 3):  # none at all, and padding only
        labels, locations = match(
            torch.zeros(2, objects, 4), torch.zeros(2, objects).long(), priors, VARIANCES
        )
        assert labels.shape == (2, 9) and locations.shape == (2, 9, 4)
        assert not labels.any() and not locations.any()


def test_labels_and_locations_are_the_originals(cases):
    for name, case in cases.items():
        labels, locations = match(case["boxes"], case["labels"], case["priors"], VARIANCES)
        _, target = assign(case["boxes"], case["labels"], case["priors"])
        labels, target = labels[0].numpy(), target[0].numpy()
        if name == "degenerate":
            # The original forces a zero-width box onto prior 0 and gets -inf there; ours never matches it.
            assert set(np.flatnonzero(labels != case["expected"])) == {0}
            assert labels[0] == 0 and torch.isfinite(locations).all()
            continue
        differing = np.flatnonzero(labels != case["expected"])
        assert len(differing) == TIES.get(name, 0), name
        if len(differing):
            check_ties(case, labels, target)
            continue
        assert np.array_equal(target, case["target_index"]), name
        positive = labels[case["index"]] > 0
        ours = locations[0].numpy()[case["index"]]
        assert np.abs(ours - case["locations"])[positive].max() <= 1e-5, name
        assert not ours[~positive].any()


def check_ties(case, labels, target):
    """What an object took beside its matches has the highest IoU there is, as in the original, and lies nearest."""
    priors, objects = case["priors"].numpy().astype(float), case["boxes"][0].numpy().astype(float)
    overlaps = B.iou(B.centers_to_corners(priors), objects)
    checked = 0
    for one, center in enumerate(B.corners_to_centers(objects)[:, :2]):
        sides = ((labels, target), (case["expected"], case["target_index"]))
        ours, theirs = (np.flatnonzero((l > 0) & (t == one) & (overlaps[:, one] < 0.5)) for l, t in sides)
        if not len(theirs):
            continue
        distance = np.linalg.norm(priors[:, :2] - center, axis=1)
        for taken in (ours, theirs):
            assert len(taken) and np.allclose(overlaps[taken, one], overlaps[:, one].max(), rtol=1e-4)
        assert np.ptp(distance[ours]) < 1e-6 and (distance[ours] <= distance[theirs].min() + 1e-6).all()
        checked += 1
    assert checked >= 2


def test_a_small_object_takes_the_priors_of_the_nearest_cell_that_hold_it():
    """All 25 cells hold it, with the same IoU; the original took the first, two cells away in both directions."""
    grid = torch.arange(5) * 0.05 + 0.4
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    shapes = torch.tensor([[0.4, 0.4], [0.8, 0.2], [0.5, 0.5]])  # two of one area, and a larger one
    centers = torch.stack([x.flatten(), y.flatten()], dim=1)
    priors = torch.cat([centers.repeat_interleave(3, dim=0), shapes.repeat(25, 1)], dim=1)
    small = torch.tensor([[[0.49, 0.54, 0.51, 0.56]]])  # centre 0.50, 0.55: column 2, row 3
    labels, _ = match(small, torch.tensor([[1]]), priors, VARIANCES)
    first = 3 * (3 * 5 + 2)
    assert labels.nonzero().tolist() == [[0, first], [0, first + 1]]


def test_a_batch_is_its_images(cases):
    """Padding and neighbours in the batch change nothing."""
    chosen = [case for name, case in cases.items() if name not in PRIORS_OF]
    longest = max(case["labels"].shape[1] for case in chosen)
    boxes, labels = torch.zeros(len(chosen), longest, 4), torch.zeros(len(chosen), longest).long()
    for i, case in enumerate(chosen):
        count = case["labels"].shape[1]
        boxes[i, :count], labels[i, :count] = case["boxes"][0], case["labels"][0]
    together = match(boxes, labels, chosen[0]["priors"], VARIANCES)
    for i, case in enumerate(chosen):
        alone = match(case["boxes"], case["labels"], case["priors"], VARIANCES)
        assert torch.equal(together[0][i], alone[0][0])
        assert torch.equal(together[1][i], alone[1][0])


def test_every_object_has_a_prior():
    """The forced best prior: also objects that no prior overlaps by half are learnt."""
    priors = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]])
    tiny = torch.tensor([[[0.70, 0.70, 0.72, 0.72]]])
    labels, _ = match(tiny, torch.tensor([[7]]), priors, VARIANCES)
    assert labels.tolist() == [[0, 7]]


def test_torch_and_numpy_agree():
    rng = np.random.default_rng(2)
    corners = B.centers_to_corners(np.concatenate([rng.random((40, 2)), rng.random((40, 2)) + 0.01], 1))
    priors = np.concatenate([rng.random((40, 2)), rng.random((40, 2)) + 0.01], 1)
    a, p = torch.tensor(corners), torch.tensor(priors)
    assert np.allclose(corners_to_centers(a).numpy(), B.corners_to_centers(corners))
    assert np.allclose(centers_to_corners(p).numpy(), B.centers_to_corners(priors))
    assert np.allclose(iou(a, a[:7]).numpy(), B.iou(corners, corners[:7]))
    assert np.allclose(encode(a, p, VARIANCES).numpy(), B.encode(corners, priors, VARIANCES))


def test_priors_inside_a_group_are_neither_object_nor_background():
    priors = torch.tensor(
        [[0.2, 0.2, 0.2, 0.2], [0.45, 0.2, 0.2, 0.2], [0.6, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]]
    )
    group = [0.0, 0.0, 0.5, 0.5]  # holds all, three quarters, and none of the priors
    cat = [0.15, 0.15, 0.25, 0.25]  # its best prior is the first
    boxes = torch.tensor([[group, [0.0] * 4], [group, cat], [cat, [0.0] * 4]])
    labels = torch.tensor([[IGNORED, 0], [IGNORED, 2], [2, 0]])
    matched, locations = match(boxes, labels, priors, VARIANCES)
    assert matched.tolist() == [[IGNORED, IGNORED, 0, 0], [2, IGNORED, 0, 0], [2, 0, 0, 0]]
    assert torch.isfinite(locations).all() and not locations[0].any()


def test_half_of_a_prior_in_a_group_is_enough():
    group = torch.tensor([[[0.0, 0.0, 0.5, 1.0]]])
    for left, expected in ((0.24, IGNORED), (0.299, IGNORED), (0.301, 0), (0.41, 0)):
        priors = torch.tensor([[left + 0.2, 0.5, 0.4, 0.4]])  # of 0.4 the group holds 0.5 - left
        assert assign(group, torch.tensor([[IGNORED]]), priors)[0].tolist() == [[expected]]
