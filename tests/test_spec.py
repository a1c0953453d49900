"""Priors from a spec, input sizes, and the registry."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vision.nets  # noqa: F401  (fills the registry)
from vision.errors import UserError
from vision.spec import (
    PriorLayer,
    canonical_name,
    layer_priors,
    make_priors,
    net_names,
    net_options,
    net_spec,
    parse_resolution,
)

CELLS_AT_300 = {"mb": (19, 10, 5, 3, 2, 1), "sq": (17, 10, 5, 3, 2, 1), "vgg16": (38, 19, 10, 5, 3, 1)}


def test_a_map_without_cells_has_no_priors():
    assert layer_priors(PriorLayer(16, 60, 105, (2, 3)), (0, 0), (300, 300)).shape == (0, 4)


@pytest.mark.parametrize("net, numbers", [("mb1-ssd", "mb"), ("sq-ssd-lite", "sq"), ("vgg16-ssd", "vgg16")])
def test_priors_at_300_are_the_originals_to_the_bit(net, numbers, reference):
    expected = np.load(reference / "boxes.npz")[f"priors_{numbers}"]
    ours = make_priors(net_spec(net).priors, [(n, n) for n in CELLS_AT_300[numbers]], (300, 300))
    assert ours.dtype == expected.dtype and np.array_equal(ours, expected)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(32, 1200), st.integers(32, 1200))
def test_priors_of_any_size_are_centred_on_their_cells(rows, columns, height, width):
    layer = PriorLayer(None, 60, 105, (2, 3))
    priors = layer_priors(layer, (rows, columns), (height, width)).reshape(rows, columns, layer.per_cell, 4)
    assert np.allclose(priors[..., 0] * columns % 1, 0.5)
    assert np.allclose(priors[..., 1] * rows % 1, 0.5)
    # Square in pixels stays square at any aspect ratio of the input.
    assert np.allclose(priors[:, :, :2, 2] * width, priors[:, :, :2, 3] * height)


def test_prior_sides_grow_with_the_image():
    layer = PriorLayer(16, 60, 105, (2,))
    small = layer_priors(layer, (19, 19), (300, 300))
    large = layer_priors(layer, (38, 38), (600, 600))
    assert np.allclose(large[0, 2:], small[0, 2:])  # the same fraction of the image
    assert np.allclose(large[0, :2], small[0, :2] / 2)  # cells as far apart in pixels


@pytest.mark.parametrize(
    "text, size",
    [
        ("300", (300, 300)),
        ("640x384", (384, 640)),
        ("640X384", (384, 640)),
        (" 64 x 32 ", (32, 64)),
        (512, (512, 512)),
    ],
)
def test_resolutions(text, size):
    assert parse_resolution(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "300x", "-300", "300.5", "31", "300x31", "5000", "1e3", "300x300x300"]
)
def test_what_is_no_resolution(text):
    with pytest.raises(UserError, match="resolution"):
        parse_resolution(text)


def test_the_registry_holds_the_seven_nets():
    assert net_names() == [
        "mb1-ssd",
        "mb1-ssd-lite",
        "mb2-ssd-lite",
        "mb3-large-ssd-lite",
        "mb3-small-ssd-lite",
        "sq-ssd-lite",
        "vgg16-ssd",
    ]
    assert canonical_name("ssd-mobilenet") == "mb1-ssd"


def test_near_misses_are_named():
    with pytest.raises(UserError, match="did you mean mb2-ssd-lite"):
        canonical_name("mb2-ssdlite")
    with pytest.raises(UserError, match="mb1-ssd has no option 'width'"):
        net_spec("mb1-ssd", width=2)
    assert net_options("mb2-ssd-lite")["width_mult"] == 1.0
