"""The MultiBox loss against the numbers of the original."""

import numpy as np
import pytest
import torch

from vision.loss import MultiBoxLoss, mine_hard_negatives


@pytest.fixture(scope="module")
def numbers(reference):
    return np.load(reference / "loss.npz")


def case_of(numbers, name):
    keys = [key for key in numbers.files if key.startswith(name + "/")]
    return {key.split("/")[1]: numbers[key] for key in keys}


def losses(case, **options):
    logits = torch.tensor(case["confidence"], requires_grad=True)
    locations = torch.tensor(case["predicted_locations"], requires_grad=True)
    labels, targets = torch.tensor(case["labels"]).long(), torch.tensor(case["gt_locations"])
    criterion = MultiBoxLoss(float(case["neg_pos_ratio"]), **options)
    localisation, classification = criterion(logits, locations, labels, targets)
    (localisation + classification).backward()
    return localisation.detach(), classification.detach(), logits.grad, locations.grad


def test_a_batch_without_objects_is_finite_and_teaches(numbers):
    # The original divides 0 by 0 here. Ours mines three negatives an image and divides by 1.
    case = case_of(numbers, "no_objects_at_all")
    assert np.isnan(case["regression_loss"]) and np.isnan(case["classification_loss"])
    localisation, classification, grad_logits, grad_locations = losses(case)
    assert localisation == 0 and not grad_locations.any()
    hardest = np.sort(case["background_loss"], axis=1)[:, -3:]
    assert float(classification) == pytest.approx(hardest.sum(), rel=1e-5)
    assert (grad_logits.abs().sum(2) > 0).sum(1).tolist() == [3] * len(hardest)


@pytest.mark.parametrize(
    "name", ["small", "image_without_objects", "too_few_negatives", "ratio_1", "voc_like"]
)
def test_losses_masks_and_gradients_are_the_originals(numbers, name):
    case = case_of(numbers, name)
    # min_negatives=0: the original mines nothing in an image without objects
    localisation, classification, grad_logits, grad_locations = losses(case, min_negatives=0)
    assert float(localisation) == pytest.approx(float(case["regression_loss"]), rel=1e-5)
    assert float(classification) == pytest.approx(float(case["classification_loss"]), rel=1e-5)
    assert np.abs(grad_logits.numpy() - case["grad_confidence"]).max() <= 1e-6
    assert np.abs(grad_locations.numpy() - case["grad_locations"]).max() <= 1e-6
    mask = mine_hard_negatives(
        torch.tensor(case["background_loss"]),
        torch.tensor(case["labels"]).long(),
        float(case["neg_pos_ratio"]),
        at_least=0,
    )
    assert np.array_equal(mask.numpy(), case["mask"])


def test_min_negatives_changes_only_images_with_few_objects(numbers):
    case = case_of(numbers, "image_without_objects")
    background_loss = torch.tensor(case["background_loss"])
    labels = torch.tensor(case["labels"]).long()
    before = mine_hard_negatives(background_loss, labels, 3.0, at_least=0)
    after = mine_hard_negatives(background_loss, labels, 3.0, at_least=3)
    empty = (labels > 0).sum(1) == 0
    assert empty.tolist().count(True) == 1
    assert torch.equal(before[~empty], after[~empty])
    assert before[empty].sum() == 0 and after[empty].sum() == 3


def test_half_precision_inputs_are_summed_in_float32():
    logits = torch.zeros(1, 5, 3, dtype=torch.bfloat16)
    labels = torch.tensor([[0, 1, 2, 0, 0]])
    locations = torch.zeros(1, 5, 4, dtype=torch.bfloat16)
    for part in MultiBoxLoss()(logits, locations, labels, torch.ones(1, 5, 4)):
        assert part.dtype == torch.float32 and torch.isfinite(part)


def test_what_is_ignored_is_neither_mined_nor_learned():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 40, 3, generator=generator)
    logits[:, :30, 0] = -9.0  # the hardest negatives, were they any
    logits.requires_grad_()
    labels = torch.zeros(2, 40).long()
    labels[:, :30] = -1
    labels[0, 35] = 2
    mask = mine_hard_negatives(-logits.detach()[..., 0], labels, 3.0, 3)
    assert not mask[:, :30].any() and mask.sum(dim=1).tolist() == [4, 3]
    localisation, classification = MultiBoxLoss()(
        logits, torch.zeros(2, 40, 4), labels, torch.zeros(2, 40, 4)
    )
    classification.backward()
    assert torch.isfinite(classification) and not logits.grad[:, :30].any() and logits.grad[:, 30:].any()


def test_an_image_that_is_all_ignored_teaches_nothing():
    logits = torch.randn(1, 8, 3, requires_grad=True)
    loss = sum(MultiBoxLoss()(logits, torch.zeros(1, 8, 4), torch.full((1, 8), -1), torch.zeros(1, 8, 4)))
    loss.backward()
    assert float(loss.detach()) == 0 and not logits.grad.any()
