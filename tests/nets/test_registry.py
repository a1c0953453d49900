"""What every registered net must keep, whatever its backbone. A new one is taken in by being registered."""

import pytest
import torch

from vision.errors import UserError
from vision.spec import PriorLayer, net_names, net_options, net_spec
from vision.ssd import SSD, build

SIZES = [(300, 300), (320, 320), (512, 512), (384, 640)]  # height, width
CLASS_COUNTS = [2, 4, 21, 91]


def small_size(name):
    """A quick input: few pixels, and more maps of one cell than at 300 x 300."""
    return (300, 300) if name == "vgg16-ssd" else (64, 64)


def on_meta(name, num_classes, size, **options):
    """A net without numbers: shapes are computed, nothing else."""
    with torch.device("meta"):
        return SSD(net_spec(name, **options), num_classes, size)


def test_the_registry_holds_the_seven_nets():
    assert set(net_names()) >= {
        "mb1-ssd",
        "mb1-ssd-lite",
        "mb2-ssd-lite",
        "mb3-large-ssd-lite",
        "mb3-small-ssd-lite",
        "sq-ssd-lite",
        "vgg16-ssd",
    }


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[1]}x{size[0]}")
@pytest.mark.parametrize("name", net_names())
def test_outputs_and_priors_agree_at_every_size(name, size):
    net = on_meta(name, 4, size)
    with torch.device("meta"):
        logits, locations = net(torch.empty(2, 3, *size))
    assert logits.shape == (2, len(net.priors), 4)
    assert locations.shape == (2, len(net.priors), 4)


@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
@pytest.mark.parametrize("name", net_names())
def test_every_class_count_builds(name, num_classes):
    net = on_meta(name, num_classes, None)
    with torch.device("meta"):
        logits, _ = net(torch.empty(1, 3, *net.size))
    assert logits.shape[2] == num_classes


@pytest.mark.parametrize("name", net_names())
def test_the_spec_tells_the_channels_and_cells_of_the_real_maps(name):
    net = on_meta(name, 2, (384, 640))
    with torch.device("meta"):
        maps = net.source_maps(torch.empty(1, 3, 384, 640))
    assert tuple(m.shape[1] for m in maps) == net.spec.source_channels
    assert tuple(tuple(m.shape[2:]) for m in maps) == net.cells


@pytest.mark.parametrize("name", net_names())
def test_no_activation_works_in_place(name):
    """A source map tapped before one would come out activated."""
    net = on_meta(name, 2, None)
    assert not [path for path, module in net.named_modules() if getattr(module, "inplace", False)]


@pytest.mark.parametrize("name", net_names())
def test_one_image_trains(name):
    """The last maps are 1 x 1: one value for each channel, which plain BatchNorm refuses."""
    net = build(name, 3, small_size(name)).train()
    assert net.cells[-1] == (1, 1)
    logits, locations = net(torch.randn(1, 3, *net.size))
    (logits.square().mean() + locations.square().mean()).backward()
    assert torch.isfinite(logits).all()
    without = [key for key, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without


@pytest.mark.parametrize("name", net_names())
def test_a_fresh_net_starts_with_scores_of_a_sane_size(name):
    torch.manual_seed(0)
    net = build(name, 3, small_size(name)).train()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (net.spec.input.mean, net.spec.input.std))
    blotches = torch.nn.functional.interpolate(torch.rand(4, 3, 12, 12), net.size, mode="bilinear")
    with torch.no_grad():
        logits, _ = net((blotches * 255 - mean) / std)
    rows = [r * c * layer.per_cell for (r, c), layer in zip(net.cells, net.spec.priors)]
    for number, part in enumerate(logits.split(rows, dim=1)):
        assert 2e-4 < part.std() < 5, f"source map {number}"


@pytest.mark.parametrize("name", net_names())
def test_options_are_refused_by_name(name):
    with pytest.raises(UserError, match="no option 'colour'"):
        build(name, 2, colour=True)


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("mb2-ssd-lite", {"width_mult": 0}, "outside"),
        ("mb2-ssd-lite", {"width_mult": float("nan")}, "outside"),
        ("mb2-ssd-lite", {"width_mult": "wide"}, "give a number"),
        ("mb2-ssd-lite", {"width_mult": True}, "give a number"),
        ("mb2-ssd-lite", {"onnx_compatible": "yes"}, "give True or False"),
        ("vgg16-ssd", {"conv4_3_norm": "L3"}, "batch or l2"),
        ("vgg16-ssd", {"conv4_3_norm": None}, "batch or l2"),
    ],
)
def test_bad_option_values_are_refused(name, options, said):
    with pytest.raises(UserError, match=said):
        net_spec(name, **options)


def test_options_and_their_defaults():
    assert net_options("mb1-ssd") == {}
    assert net_options("mb2-ssd-lite") == {"width_mult": 1.0, "onnx_compatible": False}
    assert net_options("vgg16-ssd") == {"conv4_3_norm": "batch"}


@pytest.mark.parametrize("width", [0.1, 0.25, 0.35, 0.5, 0.7, 0.75, 1.0, 1.3, 1.4, 2.0])
def test_every_width_of_mobilenet_v2_builds(width):
    """0.35 and everything above 1 crashed in the original."""
    net = on_meta("mb2-ssd-lite", 3, None, width_mult=width)
    with torch.device("meta"):
        logits, _ = net(torch.empty(1, 3, 300, 300))
    assert logits.shape == (1, 3000, 3)


def test_a_spec_with_a_map_too_many_is_refused():
    spec = net_spec("mb1-ssd")
    with pytest.raises(ValueError, match="6 source maps but 7 prior layers"):
        type(spec)(**{**vars(spec), "priors": (*spec.priors, PriorLayer(None, 1, 2, ()))})
