"""Weights into nets: rows of classes by name, backbones, torchvision's models."""

import re
import urllib.error

import pytest
import torch
from torch.nn import functional as F

from vision.errors import UserError
from vision.nets import imagenet
from vision.spec import InputSpec
from vision.ssd import build
from vision.weights import count_classes, load_base_net, load_weights, nets_that_fit

NETS = ["mb1-ssd", "mb1-ssd-lite", "mb2-ssd-lite", "sq-ssd-lite"]  # a bare head, and each lite form
ABC = ("BACKGROUND", "a", "b", "c")


def small(name, num_classes, **options):
    return build(name, num_classes, (64, 64), **options)


def copied(module):
    return {key: t.clone() for key, t in module.state_dict().items()}


# --- whole detectors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_the_same_classes_load_whole(name):
    theirs, ours = small(name, 4), small(name, 4)
    report = load_weights(ours, theirs.state_dict(), "a.pth", ABC, ABC)
    assert report.fits
    assert not report.reused
    assert len(report.matched) == len(ours.state_dict())
    assert all(torch.equal(t, theirs.state_dict()[key]) for key, t in ours.state_dict().items())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "names, state_names, kept",
    [
        (("BACKGROUND", "b", "z"), ABC, {0: 0, 1: 2}),
        (("BACKGROUND", "z", "C", "a", "y"), ABC, {0: 0, 2: 3, 3: 1}),  # case does not count
        (("BACKGROUND", "c", "b", "a"), ABC, {0: 0, 1: 3, 2: 2, 3: 1}),  # the same count
        (("BACKGROUND", "z"), ABC, {0: 0}),
        (("BACKGROUND", "a", "b"), None, {0: 0}),  # nameless: only the background is sure
    ],
    ids=["fewer", "more", "another order", "none", "nameless"],
)
def test_rows_of_the_same_name_are_kept_for_every_anchor(name, names, state_names, kept):
    theirs, ours = small(name, 4), small(name, len(names))
    before, state = copied(ours), theirs.state_dict()
    report = load_weights(ours, state, "a.pth", names, state_names)
    assert report.reused == [names[i] for i in kept]
    assert report.fresh == [n for i, n in enumerate(names) if i not in kept]
    after = ours.state_dict()
    # The predicting layer: a head itself, or the last of a separable one.
    rows_are_classes = re.compile(r"classification_headers\.\d(\.[23])?\.(weight|bias)")
    of_classes = [key for key in after if rows_are_classes.fullmatch(key)]
    assert len(of_classes) == 12
    for key in set(after) - set(of_classes):
        assert torch.equal(after[key], state[key]), key
    # by the numbering itself: output row = anchor * C + class
    for key in of_classes:
        for anchor in range(6):
            for i in range(len(names)):
                row = after[key][anchor * len(names) + i]
                if i in kept:
                    assert torch.equal(row, state[key][anchor * 4 + kept[i]]), (key, anchor, i)
                else:
                    assert torch.equal(row, before[key][anchor * len(names) + i]), (key, anchor, i)


def test_the_rows_of_a_class_give_its_logits():
    """The same numbering, seen from outside: logits of a kept class come out as in the old net."""
    theirs, ours = small("mb1-ssd", 4).eval(), small("mb1-ssd", 3).eval()
    load_weights(ours, theirs.state_dict(), "a.pth", ("BACKGROUND", "c", "new"), ABC)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (a, boxes_a), (b, boxes_b) = theirs(images), ours(images)
    torch.testing.assert_close(b[..., 1], a[..., 3])
    torch.testing.assert_close(b[..., 0], a[..., 0])
    torch.testing.assert_close(boxes_a, boxes_b)


def test_the_report_is_for_people():
    report = load_weights(
        small("mb1-ssd", 3), small("mb1-ssd", 4).state_dict(), "a.pth", ("BACKGROUND", "b", "z"), ABC
    )
    text = str(report)
    assert "mb1-ssd from a.pth" in text
    assert "trained for 3 classes, this net has 2" in text
    assert "classes kept: BACKGROUND, b; fresh: z" in text


def test_nameless_heads_of_the_same_count_load_whole_and_it_is_said():
    report = load_weights(small("mb1-ssd", 4), small("mb1-ssd", 4).state_dict(), "a.pth", ABC)
    assert not report.fresh
    assert "3 classes have no names" in str(report)


def test_names_must_be_as_many_as_the_heads_have_rows():
    with pytest.raises(UserError, match="a.pth has 3 classes, but 1 names"):
        load_weights(small("mb1-ssd", 4), small("mb1-ssd", 4).state_dict(), "a.pth", ABC, ("BACKGROUND", "a"))
    with pytest.raises(UserError, match="the net has 3 classes, but 1 names"):
        load_weights(small("mb1-ssd", 4), small("mb1-ssd", 4).state_dict(), "a.pth", ("BACKGROUND", "a"), ABC)


def without(key):
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda state: state.clear(), "missing in the file"),
        (without("base_net.0.0.weight"), "1 missing in the file: base_net.0.0.weight"),
        (without("regression_headers.2.bias"), "1 missing in the file: regression_headers.2.bias"),
        (without("classification_headers.2.bias"), "missing in the file: classification_headers.2.bias"),
        (lambda state: state.update(surplus=torch.zeros(1)), "1 unknown to the net: surplus"),
        (
            lambda state: state.update({"extras.0.0.bias": torch.zeros(3)}),
            r"1 of another shape: extras.0.0.bias \[3\], net \[256\]",
        ),
        (lambda state: state["base_net.0.0.weight"].fill_(float("nan")), "base_net.0.0.weight holds NaN"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_net_stays(spoil, said):
    ours, state = small("mb1-ssd", 4), copied(small("mb1-ssd", 4))
    before = copied(ours)
    spoil(state)
    with pytest.raises(UserError, match=said):
        load_weights(ours, state, "a.pth", ABC, ABC)
    assert all(torch.equal(t, before[key]) for key, t in ours.state_dict().items())


def test_files_from_before_batches_were_counted_load():
    state = {
        k: t for k, t in small("mb1-ssd", 4).state_dict().items() if not k.endswith("num_batches_tracked")
    }
    assert load_weights(small("mb1-ssd", 4), state, "a.pth").fits


@pytest.mark.parametrize(
    "name, options, other, other_options, said",
    [
        ("mb1-ssd", {}, "mb2-ssd-lite", {}, "The file is of mb2-ssd-lite"),
        ("mb2-ssd-lite", {}, "mb2-ssd-lite", {"width_mult": 0.5}, "another width: about width_mult 0.50"),
        ("mb2-ssd-lite", {"width_mult": 0.5}, "mb2-ssd-lite", {}, "another width: about width_mult 1.00"),
    ],
)
def test_the_error_says_what_the_file_is(name, options, other, other_options, said):
    with pytest.raises(UserError, match=said):
        load_weights(small(name, 3, **options), small(other, 3, **other_options).state_dict(), "a.pth")


def test_classes_are_counted_from_the_heads():
    net = small("mb2-ssd-lite", 2)
    assert count_classes(net, small("mb2-ssd-lite", 7).state_dict()) == 7
    assert count_classes(net, small("mb1-ssd", 7).state_dict()) is None
    assert count_classes(net, {}) is None


def test_a_state_is_known_by_its_trunk():
    assert nets_that_fit(small("sq-ssd-lite", 5).state_dict()) == ["sq-ssd-lite"]
    assert nets_that_fit({}) == []


# --- backbones from files -----------------------------------------------------------------------------------


def saved(state, folder):
    torch.save(state, folder / "base.pth")
    return folder / "base.pth"


@pytest.mark.parametrize(
    "dress",
    [
        lambda state: state,
        lambda state: {**state, "fc.weight": torch.zeros(5, 3), "fc.bias": torch.zeros(5)},
        lambda state: {**{f"model.{k}": t for k, t in state.items()}, "fc.weight": torch.zeros(5, 3)},
        lambda state: {
            **{f"features.{k}": t for k, t in state.items()},
            "classifier.1.weight": torch.zeros(5, 3),
        },
        lambda state: {f"module.{k}": t for k, t in state.items()},
        lambda state: {"state_dict": state},
    ],
    ids=["bare", "fc", "model and fc", "features and classifier", "DataParallel", "wrapped"],
)
def test_a_backbone_loads_and_the_rest_stays(dress, tmp_path):
    theirs, ours = small("mb2-ssd-lite", 3), small("mb2-ssd-lite", 3)
    before = copied(ours)
    report = load_base_net(ours, saved(dress(theirs.base_net.state_dict()), tmp_path))
    assert report.fits
    for key, tensor in ours.state_dict().items():
        expected = theirs.state_dict() if key.startswith("base_net.") else before
        assert torch.equal(tensor, expected[key]), key


def test_the_backbone_of_a_whole_detector_is_taken(tmp_path):
    theirs, ours = small("mb1-ssd", 21), small("mb1-ssd-lite", 3)
    report = load_base_net(ours, saved(theirs.state_dict(), tmp_path))
    assert "whole detector" in str(report)
    assert torch.equal(ours.base_net[13][3].weight, theirs.base_net[13][3].weight)


def test_another_backbone_is_refused_and_the_net_stays(tmp_path):
    ours = small("mb1-ssd", 3)
    before = copied(ours)
    with pytest.raises(UserError, match="backbone of mb1-ssd.*\n.*missing"):
        load_base_net(ours, saved(small("mb2-ssd-lite", 3).base_net.state_dict(), tmp_path))
    assert all(torch.equal(t, before[key]) for key, t in ours.state_dict().items())


@pytest.mark.parametrize(
    "name, said",
    [
        ("mb3-large-ssd-lite", "no published trunk fits this MobileNetV3"),
        ("mb3-small-ssd-lite", "no published trunk fits this MobileNetV3"),
        ("mb1-ssd", "torchvision has no weights"),
    ],
)
def test_nets_without_a_counterpart_are_refused_with_the_reason(name, said):
    with pytest.raises(UserError, match=said):
        load_base_net(small(name, 2), "torchvision")


# --- torchvision --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    try:
        return imagenet.import_torchvision().models
    except UserError as error:
        pytest.skip(str(error))


def shaken(model):
    """Random weights and batch statistics, so that no two channels are alike; eval mode."""
    generator = torch.Generator().manual_seed(1)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_mean") or key.endswith("bias"):
            tensor.uniform_(-0.2, 0.2, generator=generator)
        elif tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim == 4:
            bound = (6 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)
    return model.eval()


def steps(chain, images, count):
    """Output of each of the first `count` children."""
    found = []
    with torch.no_grad():
        for child in list(chain)[:count]:
            images = child(images)
            found.append(images.clone())  # torchvision's activations work in place
    return found


def test_mobilenet_v2_has_torchvisions_features(models):
    theirs = shaken(models.mobilenet_v2(weights=None))
    ours = small("mb2-ssd-lite", 2).base_net.eval()
    state = imagenet.from_torchvision("mb2-ssd-lite", theirs.state_dict())
    ours.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 96, 96)
    for ours_, theirs_ in zip(steps(ours, images, 19), steps(theirs.features, images, 19)):
        torch.testing.assert_close(ours_, theirs_, atol=1e-5, rtol=1e-5)


def test_squeezenet_has_torchvisions_features(models):
    theirs = shaken(models.squeezenet1_1(weights=None))
    ours = small("sq-ssd-lite", 2).base_net.eval()
    ours.load_state_dict(imagenet.from_torchvision("sq-ssd-lite", theirs.state_dict()), strict=True)
    images = torch.randn(2, 3, 127, 127)  # 63, 31, 15, 7 cells: both ways of rounding agree
    for ours_, theirs_ in zip(steps(ours, images, 13), steps(theirs.features, images, 13)):
        torch.testing.assert_close(ours_, theirs_, atol=1e-5, rtol=1e-5)


def coded_classifier():
    """fc6 and fc7 whose weights are the numbers of their inputs, in no memory."""
    return {
        "classifier.0.weight": torch.arange(512.0 * 49).expand(4096, -1),
        "classifier.0.bias": torch.arange(4096.0),
        "classifier.3.weight": torch.arange(4096.0).expand(4096, -1),
        "classifier.3.bias": torch.arange(4096.0),
        "classifier.6.weight": torch.zeros(3, 4096),
    }


@pytest.fixture(scope="module")
def vgg_features(models):
    return shaken(models.vgg.make_layers(models.vgg.cfgs["D"], batch_norm=False))


@pytest.fixture(scope="module")
def vgg():
    return build("vgg16-ssd", 2)


def test_vgg_has_torchvisions_features(vgg_features, vgg):
    state = {f"features.{key}": t for key, t in vgg_features.state_dict().items()}
    ours = vgg.base_net
    ours.load_state_dict(imagenet.from_torchvision("vgg16-ssd", {**state, **coded_classifier()}), strict=True)
    images = torch.randn(1, 3, 64, 64)
    # Up to conv5_3 after its ReLU; then comes the pooling that SSD changes.
    a, b = steps(ours, images, 30), steps(vgg_features, images, 30)
    for conv in (22, 29):
        torch.testing.assert_close(a[conv], b[conv], atol=1e-5, rtol=1e-5)


def test_fc6_and_fc7_keep_every_fourth_channel_and_every_third_cell():
    state = imagenet.from_torchvision("vgg16-ssd", coded_classifier())
    assert {key: tuple(t.shape) for key, t in state.items()} == {
        "31.weight": (1024, 512, 3, 3),
        "31.bias": (1024,),
        "33.weight": (1024, 1024, 1, 1),
        "33.bias": (1024,),
    }
    # torchvision flattens (channel, row, column): the number of an input is 49 * channel + 7 * row + column
    for channel in (0, 1, 511):
        cells = [[49 * channel + 7 * row + column for column in (0, 3, 6)] for row in (0, 3, 6)]
        assert state["31.weight"][5, channel].tolist() == cells
    assert state["33.weight"][7, :, 0, 0].tolist() == list(range(0, 4096, 4))
    assert state["31.bias"].tolist() == state["33.bias"].tolist() == list(range(0, 4096, 4))
    by_output = {
        **coded_classifier(),
        "classifier.0.weight": torch.arange(4096.0)[:, None].expand(-1, 512 * 49),
    }
    found = imagenet.from_torchvision("vgg16-ssd", by_output)["31.weight"]
    assert found[:, 0, 0, 0].tolist() == list(range(0, 4096, 4))


def test_the_convolution_computes_what_fc6_did_where_it_is_kept():
    """On a map that is zero elsewhere, fc6 and its nine kept taps give the same number."""
    row = torch.randn(512 * 49)
    fc = {**coded_classifier(), "classifier.0.weight": row.expand(4096, -1)}
    kernel = imagenet.from_torchvision("vgg16-ssd", fc)["31.weight"][:1]
    cells = torch.zeros(1, 512, 7, 7)
    cells[:, :, ::3, ::3] = torch.randn(1, 512, 3, 3)
    expected = F.linear(cells.flatten(1), row[None])
    found = F.conv2d(cells[:, :, ::3, ::3], kernel)
    torch.testing.assert_close(found.flatten(), expected.flatten(), atol=1e-3, rtol=1e-4)
    # and a dilation of 3 sees the same cells on the 7 x 7 map itself
    torch.testing.assert_close(F.conv2d(cells, kernel, dilation=3), found, atol=1e-3, rtol=1e-4)


def test_vgg_without_a_classifier_is_refused(vgg_features):
    empty = {
        **coded_classifier(),
        "classifier.0.weight": torch.full((1, 1), float("nan")).expand(4096, 512 * 49),
    }
    with pytest.raises(UserError, match="IMAGENET1K_V1"):
        imagenet.from_torchvision("vgg16-ssd", empty)


@pytest.mark.parametrize("name, model", [("mb2-ssd-lite", "mobilenet_v2"), ("sq-ssd-lite", "squeezenet1_1")])
def test_a_file_of_torchvision_gives_its_features_of_the_same_photograph(name, model, models, tmp_path):
    theirs = shaken(getattr(models, model)(weights=None))
    ours = small(name, 2)
    report = load_base_net(ours, saved(theirs.state_dict(), tmp_path))
    assert "translated" in str(report)
    pixels = torch.rand(1, 3, 33, 33) * 255
    their_input = (pixels / 255 - torch.tensor(imagenet.MEAN).view(3, 1, 1)) / torch.tensor(
        imagenet.STD
    ).view(3, 1, 1)
    our_input = (pixels - 127) / 128
    a, b = steps(ours.base_net.eval(), our_input, 1)[0], steps(theirs.features, their_input, 1)[0]
    torch.testing.assert_close(a[..., 1:-1, 1:-1], b[..., 1:-1, 1:-1], atol=1e-4, rtol=1e-4)


def test_vggs_first_layer_takes_pixels_instead(vgg_features):
    spec = InputSpec(mean=(123.0, 117.0, 104.0), std=(1.0, 1.0, 1.0))
    state = imagenet.fold_normalisation(vgg_features.state_dict(), spec)
    pixels = torch.rand(1, 3, 9, 9) * 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (imagenet.MEAN, imagenet.STD))
    expected = vgg_features[0](((pixels / 255) - mean) / std)
    ours = pixels - torch.tensor(spec.mean).view(3, 1, 1)
    found = F.conv2d(ours, state["0.weight"], state["0.bias"], padding=1)
    torch.testing.assert_close(
        found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1].detach(), atol=1e-4, rtol=1e-4
    )


@pytest.fixture
def hub(tmp_path):
    """torch.hub's cache, empty and apart."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def test_a_cached_download_is_used(models, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("went to the network"))
    theirs = shaken(models.mobilenet_v2(weights=None))
    hub.mkdir(parents=True)
    torch.save(theirs.state_dict(), hub / models.MobileNet_V2_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1])
    ours = small("mb2-ssd-lite", 2)
    load_base_net(ours, "torchvision")
    torch.testing.assert_close(ours.base_net[18][0].weight, theirs.features[18][0].weight)


@pytest.mark.parametrize(
    "failure",
    [urllib.error.URLError("Name or service not known"), RuntimeError("invalid hash value")],
    ids=["offline", "hash"],
)
def test_a_failed_download_says_what_to_do(models, hub, monkeypatch, failure):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError, match="cannot get.*squeezenet1_1-.*pth.*fetch.*checkpoints"):
        load_base_net(small("sq-ssd-lite", 2), "torchvision")


def test_other_widths_have_no_torchvision_weights(models, hub, tmp_path):
    theirs = models.mobilenet_v2(weights=None)
    with pytest.raises(UserError, match="of another shape"):
        load_base_net(small("mb2-ssd-lite", 2, width_mult=0.5), saved(theirs.state_dict(), tmp_path))
