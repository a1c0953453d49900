"""What verification lets pass, what it stops, and that nothing is left of what it stopped."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from vision.card import ModelCard, read_card
from vision.data.labels import read_labels
from vision.data.shapes import write_shapes
from vision.errors import UserError
from vision.export.files import replaced
from vision.export.onnx import Plan, export
from vision.export.publish import publish, publish_labels
from vision.export.source import Source
from vision.export.verify import Verification, painted, verify

pytest.importorskip("onnxruntime")

CLASSES = ("BACKGROUND", "disc", "square", "star")


@pytest.fixture
def source(small, small_input, tmp_path):
    return Source(tmp_path / "net.pth", small, CLASSES, small_input)


def exported_from(source, **settings):
    return export(source.net, source.classes, source.input, Plan(**settings))


def spoil(model, factor=1.05):
    """Change the weights of every convolution, as a bug of an exporter would."""
    named = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    for each in model.graph.initializer:
        if each.name in named:
            each.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(each) * np.float32(factor), each.name)
            )


@pytest.mark.parametrize(
    "settings", [{}, {"target": "detectnet", "suppress": True}, {"form": "nms", "threshold": 0.2}]
)
def test_a_good_export_is_published(settings, source, tmp_path):
    exported = exported_from(source, **settings)
    published = publish(exported, source, tmp_path / "out" / "net.onnx")
    assert published.verification.images == 3
    assert published.verification.scores < 1e-5 and published.verification.boxes < 1e-5
    assert (published.verification.decided > 0) == bool(settings)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "labels.txt",
        "net.onnx",
        "net.onnx.json",
    ]
    card = read_card(published.model)
    assert card == ModelCard.from_json(exported.card.to_json()) and card.classes == CLASSES
    assert read_labels(published.labels) == CLASSES
    assert "within" in str(published.verification)


def test_more_objects_than_come_out(source, tmp_path):
    """A net that knows nothing finds hundreds of boxes of each class; NMS in the graph gives the best of them."""
    exported = exported_from(source, form="nms", threshold=0.05, candidates=5)
    found = publish(exported, source, tmp_path / "net.onnx").verification
    assert found.flipped == 0 and found.decided > 15


def test_without_verification(source, tmp_path):
    published = publish(exported_from(source), source, tmp_path / "net.onnx", "false")
    assert published.verification is None and published.model.exists()


@pytest.mark.parametrize("settings", [{}, {"form": "raw"}, {"form": "uint8"}, {"dynamic_batch": True}])
def test_other_numbers_are_refused_and_nothing_is_left(settings, source, tmp_path):
    exported = exported_from(source, **settings)
    spoil(exported.model)
    output = tmp_path / "out" / "net.onnx"
    with pytest.raises(
        UserError, match=r"exported (scores|boxes) differ from torch by 0\.\d+; 0.0001 is allowed"
    ):
        publish(exported, source, output)
    assert list(output.parent.iterdir()) == []


def test_an_older_file_stays_when_the_new_one_is_refused(source, tmp_path):
    output = tmp_path / "net.onnx"
    output.write_bytes(b"the older one")
    exported = exported_from(source)
    spoil(exported.model)
    with pytest.raises(UserError):
        publish(exported, source, output)
    assert output.read_bytes() == b"the older one"
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_nms_that_decides_otherwise_is_refused(source, tmp_path):
    exported = exported_from(source, suppress=True, iou_threshold=0.2)
    exported = dataclasses.replace(exported, card=dataclasses.replace(exported.card, iou_threshold=0.6))
    path = tmp_path / "net.onnx"
    path.write_bytes(exported.model.SerializeToString())
    with pytest.raises(UserError, match=r"NMS in the graph decides \d+ of \d+ boxes otherwise than ours"):
        verify(exported, path, source.net, source.input)


def change_opset(model):
    model.opset_import[0].version = 13


def change_ir(model):
    model.ir_version = 10


def change_shape(model):
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def cut_a_node(model):
    del model.graph.node[3]


@pytest.mark.parametrize(
    "change, message",
    [
        (change_opset, "opset 13 and IR 6, not opset 11"),
        (change_ir, "opset 11 and IR 10, not opset 11"),
        (change_shape, "not valid ONNX|is declared"),
        (cut_a_node, "not valid ONNX"),
    ],
)
def test_graphs_that_are_not_what_they_say(change, message, source, tmp_path):
    exported = exported_from(source)
    change(exported.model)
    with pytest.raises(UserError, match=message):
        publish(exported, source, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime(source, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    exported = exported_from(source)
    with pytest.raises(UserError, match="pip install onnxruntime, or give --verify false"):
        publish(exported, source, tmp_path / "net.onnx")
    publish(exported, source, tmp_path / "net.onnx", "false")


# --- on a data set ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 30, 0)


def test_map_on_a_data_set(source, shapes, tmp_path):
    source.classes = ("BACKGROUND", "disc", "square", "star")
    published = publish(exported_from(source), source, tmp_path / "net.onnx", str(shapes))
    torch_map, file_map = published.verification.mean_ap
    assert torch_map == pytest.approx(file_map, abs=1e-3)
    assert f"mAP {torch_map:.4f} in torch" in str(published.verification)
    assert published.picture.shape[2] == 3


def test_another_map_is_refused(source, shapes, tmp_path, monkeypatch):
    import vision.export.verify as module

    values = iter([0.5, 0.502])
    monkeypatch.setattr(module, "mean_ap", lambda *_: next(values))
    with pytest.raises(UserError, match=r"mAP 0.5020 on .*, but 0.5000 in torch; at most 0.001 is allowed"):
        publish(exported_from(source), source, tmp_path / "net.onnx", str(shapes))
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_that_is_not_there(source, tmp_path):
    with pytest.raises(UserError):
        publish(exported_from(source), source, tmp_path / "net.onnx", str(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_on_real_photographs(source, photographs, tmp_path):
    from vision.data import open_dataset
    from vision.export.verify import photographs as pick

    images = pick(open_dataset([photographs / "bccd"], "test"), 3)
    assert len(images) == 3 and images[0].shape == (480, 640, 3)
    exported = exported_from(source)
    path = tmp_path / "net.onnx"
    path.write_bytes(exported.model.SerializeToString())
    found = verify(exported, path, source.net, source.input, images)
    assert found.images == 3 and max(found.scores, found.boxes) < 1e-4


# --- files --------------------------------------------------------------------------------------------------


def test_painted_pictures_are_the_same_every_time():
    first, second = painted(4), painted(4)
    assert len({picture.shape for picture in first}) == 3
    assert all((a == b).all() for a, b in zip(first, second))
    assert painted(0) == []


def test_labels_are_exactly_one_line_a_class(tmp_path):
    place = publish_labels(CLASSES, tmp_path / "net.onnx")
    assert place.name == "labels.txt"
    assert place.read_bytes() == b"BACKGROUND\ndisc\nsquare\nstar\n"
    assert publish_labels(CLASSES, tmp_path / "net.onnx") == place


@pytest.mark.parametrize(
    "there", [b"disc\nsquare\nstar\n", b"BACKGROUND\r\ndisc\r\nsquare\r\nstar\r\n", b"my notes"]
)
def test_another_label_file_is_not_overwritten(there, tmp_path):
    (tmp_path / "labels.txt").write_bytes(there)
    place = publish_labels(CLASSES, tmp_path / "net.onnx")
    assert place.name == "net-labels.txt" and place.read_bytes().startswith(b"BACKGROUND\ndisc\n")
    assert (tmp_path / "labels.txt").read_bytes() == there


@pytest.mark.parametrize("name", ["void", "Void", "n12345678 tench"])
def test_names_that_detectnet_misreads(name, source, tmp_path, caplog):
    source.classes = ("BACKGROUND", "disc", "square", name)
    publish(exported_from(source), source, tmp_path / "net.onnx", "false")
    assert "NVIDIA's detectNet" in caplog.text


def test_a_failed_write_leaves_nothing(tmp_path):
    target = tmp_path / "folder" / "file.txt"
    with pytest.raises(KeyError), replaced(target) as temporary:
        temporary.write_text("half")
        raise KeyError("something else went wrong")
    assert list(target.parent.iterdir()) == []
    with pytest.raises(UserError, match="cannot write"), replaced(target):
        raise OSError(28, "No space left on device")
    with pytest.raises(UserError, match="cannot write"), replaced(tmp_path / "folder"):
        pass
    assert list(target.parent.iterdir()) == []


def test_the_report_in_words():
    assert str(Verification(2, 1.5e-6, 2e-7)) == (
        "verified on 2 images: scores within 1.5e-06, boxes within 2.0e-07 of torch"
    )
    text = str(Verification(1, flipped=1, decided=10, mean_ap=(0.5, 0.4999)))
    assert "agrees on 9 of 10 boxes" in text and "mAP 0.5000 in torch, 0.4999 from the file" in text


def test_weights_stay_inside(source, tmp_path):
    exported = exported_from(source)
    path = tmp_path / "net.onnx"
    onnx.save(
        exported.model, str(path), save_as_external_data=True, size_threshold=0, convert_attribute=False
    )
    with pytest.raises(UserError, match=r"keeps \d+ weights elsewhere"):
        verify(exported, path, source.net, source.input)
    assert torch.is_tensor(source.net.priors)
