"""The detector against the original's keys, priors and numbers, and what it refuses."""

import dataclasses
import functools
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from vision import boxes as numpy_boxes
from vision.errors import UserError
from vision.nets.layers import BatchNorm, ScaledL2Norm
from vision.spec import Tap, net_spec
from vision.ssd import SSD, Deployed, build, initialise

NETS = {
    "mb1-ssd": {},
    "mb1-ssd-lite": {},
    "mb2-ssd-lite": {},
    "mb2-ssd-lite_w0.5": {"width_mult": 0.5},
    "mb2-ssd-lite_onnx": {"onnx_compatible": True},
    "mb3-large-ssd-lite": {},
    "mb3-small-ssd-lite": {},
    "sq-ssd-lite": {},
    "vgg16-ssd": {},
}


@pytest.fixture(scope="module")
def rule(reference):
    sys.path.insert(0, str(reference))
    try:
        import rule
    finally:
        sys.path.pop(0)
    return rule


@pytest.fixture(scope="module")
def manifest(reference):
    return json.loads((reference / "manifest.json").read_text())


@pytest.fixture(scope="module")
def run(reference, rule):
    """case -> (net with the rule's weights, the original's numbers, our outputs); each made once."""
    images = torch.from_numpy(rule.normal_input(0, (2, 3, 300, 300)))

    @functools.lru_cache(maxsize=None)
    def run(case):
        with torch.device("meta"):
            net = SSD(net_spec(case.split("_")[0], **NETS[case]), 21)
        shapes = {key: tuple(t.shape) for key, t in net.state_dict().items()}
        state = {key: torch.tensor(rule.weight(key, s, rule.GAIN[case])) for key, s in shapes.items()}
        net.load_state_dict(state, assign=True)
        net.eval()
        with torch.no_grad():
            logits, locations = net(images)
            scores, boxes = Deployed(net)(images)
            maps = net.source_maps(images)
        numbers = dict(np.load(reference / f"{case}.npz"))
        ours = {"logits": logits, "locations": locations, "confidences": scores, "boxes": boxes}
        return net, numbers, {key: t.numpy() for key, t in ours.items()}, maps

    return run


@pytest.mark.parametrize("case", NETS)
def test_keys_order_shapes_and_sums_are_the_originals(case, run, manifest):
    state, expected = run(case)[0].state_dict(), manifest[case]["state_dict"]
    assert list(state) == list(expected)
    for key, tensor in state.items():
        assert list(tensor.shape) == expected[key]["shape"], key
        assert str(tensor.dtype).endswith(expected[key]["dtype"]), key
        assert tensor.double().sum().item() == pytest.approx(expected[key]["sum"], rel=1e-9, abs=1e-9), key


@pytest.mark.parametrize("case", NETS)
def test_parameters_are_counted_as_published(case, run, manifest):
    assert sum(p.numel() for p in run(case)[0].parameters()) == manifest[case]["num_parameters"]


@pytest.mark.parametrize("case", NETS)
def test_priors_are_the_originals_bit_for_bit(case, run):
    net, numbers, _, _ = run(case)
    assert net.priors.dtype == torch.float32
    np.testing.assert_array_equal(net.priors.numpy(), numbers["priors"])


@pytest.mark.parametrize("case", NETS)
def test_outputs_are_the_originals(case, run):
    _, numbers, ours, _ = run(case)
    # reference/README.md: the tolerance of a correct float32 implementation. Without ReLU6 the values grow, and
    # the original's own float32 confidences are 2.8e-5 from its float64 ones (manifest.json), hence more there.
    unbounded = case == "mb2-ssd-lite_onnx"
    logits, confidences = (1e-3, 1e-4) if unbounded else (2e-4, 2e-5)
    tolerances = {"logits": logits, "locations": logits, "confidences": confidences, "boxes": 5e-4}
    for key, tolerance in tolerances.items():
        difference = np.abs(ours[key][:, numbers["index"]] - numbers[key]).max()
        assert difference <= tolerance, key
    np.testing.assert_allclose(ours["confidences"].sum(1), numbers["class_sum_f64"], atol=0.02)
    np.testing.assert_allclose(ours["boxes"].sum(1), numbers["box_sum_f64"], atol=0.2)
    assert (ours["confidences"].argmax(2) == numbers["argmax"]).mean() > 0.999


@pytest.mark.parametrize("case", NETS)
def test_source_maps_are_the_originals(case, run):
    _, numbers, _, maps = run(case)
    assert [list(m.shape) for m in maps] == numbers["tap_shape"].tolist()
    for i, m in enumerate(maps):
        m = m.double()
        assert m.mean().item() == pytest.approx(numbers["tap_mean"][i], abs=1e-4)
        assert m.std(unbiased=False).item() == pytest.approx(numbers["tap_std"][i], abs=1e-4, rel=1e-4)
        np.testing.assert_allclose(m.flatten()[:16].numpy(), numbers["tap_first"][i], atol=1e-3)


def test_deployed_decodes_as_numpy_does(run):
    net, _, ours, _ = run("mb1-ssd-lite")
    expected = numpy_boxes.decode(ours["locations"], net.priors.numpy(), net.spec.variances)
    np.testing.assert_allclose(ours["boxes"], expected, atol=1e-5)


def test_channels_last_gives_the_same(run):
    net, _, ours, _ = run("mb2-ssd-lite")
    images = torch.randn(2, 3, 300, 300, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(images)
        found = net(images.to(memory_format=torch.channels_last))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# --- priors and state ---------------------------------------------------------------------------------------


def test_priors_follow_the_net_but_not_into_its_state():
    net = build("mb3-small-ssd-lite", 2)
    assert not [key for key in net.state_dict() if "priors" in key]
    assert net.double().priors.dtype == torch.float64
    assert Deployed(net).double().half_size.dtype == torch.float64


def test_the_children_stand_in_published_order():
    assert [name for name, _ in build("mb1-ssd", 2).named_children()] == [
        "base_net",
        "extras",
        "classification_headers",
        "regression_headers",
        "source_layer_add_ons",
    ]


# --- input --------------------------------------------------------------------------------------------------


def test_a_size_at_which_a_map_vanishes_is_refused_with_the_smallest_that_works():
    with pytest.raises(
        UserError, match=r"256 x 256.*source map 6 of 6 would vanish.*smallest side.* (\d+)"
    ) as error:
        build("vgg16-ssd", 2, (256, 256))
    smallest = int(str(error.value).split()[-2])
    spec = net_spec("vgg16-ssd")
    with torch.device("meta"):
        assert SSD(spec, 2, (smallest, smallest)).cells[-1] == (1, 1)
        with pytest.raises(UserError, match="256|would vanish"):
            SSD(spec, 2, (smallest - 1, 640))


@pytest.mark.parametrize("size", [(0, 300), (300, -1), (300.0, 300), (300,), (300, 300, 3)])
def test_bad_sizes_are_refused(size):
    with pytest.raises(UserError, match="input size"):
        build("mb1-ssd", 2, size)


@pytest.mark.parametrize("count", [0, 1, -3, 2.0, True, "21"])
def test_bad_class_counts_are_refused(count):
    with pytest.raises(UserError, match="classes"):
        build("mb1-ssd", count)


def test_images_of_another_size_are_refused():
    net = build("mb3-small-ssd-lite", 2)
    with pytest.raises(ValueError, match=r"\(1, 3, 320, 320\).*300"):
        net(torch.zeros(1, 3, 320, 320))


def test_no_image_gives_no_rows():
    net = build("mb1-ssd", 2).eval()
    with torch.no_grad():
        scores, boxes = Deployed(net)(torch.zeros(0, 3, 300, 300))
    assert scores.shape == (0, 3000, 2)
    assert boxes.shape == (0, 3000, 4)


def test_unknown_names_get_a_hint():
    with pytest.raises(UserError, match="did you mean mb1-ssd"):
        build("mb1-sdd", 2)
    assert build("ssd-mobilenet", 2).spec.name == "mb1-ssd"


# --- taps ---------------------------------------------------------------------------------------------------


def test_a_tap_inside_a_residual_block_is_refused():
    """Its children would be run one after the other, and the skip lost."""
    spec = net_spec("mb2-ssd-lite")
    taps = (Tap("13.conv.2", 576), spec.taps[1])
    with pytest.raises(ValueError, match="opens '13'.*a skip would be lost"):
        SSD(dataclasses.replace(spec, taps=taps), 2)


def test_a_wrong_number_of_channels_is_refused():
    spec = net_spec("mb1-ssd")
    with pytest.raises(ValueError, match="source map 1 has 512 channels, not 500"):
        SSD(dataclasses.replace(spec, taps=(Tap("11", 500), spec.taps[1])), 2)


def test_a_tap_that_names_nothing_is_refused():
    spec = net_spec("mb1-ssd")
    with pytest.raises(AttributeError):
        SSD(dataclasses.replace(spec, taps=(Tap("44", 512), spec.taps[1])), 2)


# --- layers -------------------------------------------------------------------------------------------------


def test_batch_norm_uses_its_statistics_for_a_single_value():
    norm = BatchNorm(3).train()
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    found = norm(torch.full((1, 3, 1, 1), 5.0))
    torch.testing.assert_close(found, torch.full((1, 3, 1, 1), 2.0), atol=1e-4, rtol=0)
    assert norm.num_batches_tracked == 0
    assert (norm.running_mean == 1).all()


def test_batch_norm_is_torchs_otherwise():
    ours, theirs = BatchNorm(3).train(), nn.BatchNorm2d(3).train()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    images = torch.randn(1, 3, 2, 1)
    torch.testing.assert_close(ours(images), theirs(images))
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()):
        torch.testing.assert_close(a, b)


def test_scaled_l2_norm():
    norm = ScaledL2Norm(4)
    images = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(norm(images).norm(dim=1), torch.full((2, 3, 5), 20.0))
    assert not torch.isnan(norm(torch.zeros(1, 4, 1, 1))).any()


def test_scaled_l2_norm_of_large_half_precision_values():
    found = ScaledL2Norm(4)(torch.full((1, 4, 1, 1), 1000.0, dtype=torch.float16))  # the squares overflow
    torch.testing.assert_close(found.float(), torch.full((1, 4, 1, 1), 10.0))


def test_vgg_with_the_papers_norm_has_one_other_key():
    with torch.device("meta"):
        ours = SSD(net_spec("vgg16-ssd", conv4_3_norm="l2"), 2)
        published = SSD(net_spec("vgg16-ssd"), 2)
        ours(torch.empty(1, 3, 300, 300))
    assert set(ours.state_dict()) - set(published.state_dict()) == {"source_layer_add_ons.0.scale"}


# --- initial weights ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_net():
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(build("mb3-small-ssd-lite", 2).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_background_share_can_be_asked_for():
    net = build("mb1-ssd-lite", 5).eval()
    for header in net.classification_headers:
        nn.init.zeros_((header[-1] if isinstance(header, nn.Sequential) else header).weight)
    state = {key: t.clone() for key, t in net.state_dict().items()}
    initialise(net, background=0.9)
    net.load_state_dict(
        {key: t if key.endswith("weight") else net.state_dict()[key] for key, t in state.items()}
    )
    with torch.no_grad():
        scores, _ = Deployed(net)(torch.zeros(1, 3, 300, 300))
    torch.testing.assert_close(scores[..., 0], torch.full((1, 3000), 0.9))
    torch.testing.assert_close(scores[..., 1:], torch.full((1, 3000, 4), 0.025))


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_an_impossible_background_share_is_refused(share):
    with pytest.raises(ValueError, match="background share"):
        initialise(build("mb3-small-ssd-lite", 2), background=share)
