"""Which versions of OpenCV may run which files."""

import logging

import pytest

from vision.errors import UserError
from vision.runtimes.exported import describe
from vision.runtimes.opencv import check_version, choose_target, devices


@pytest.mark.parametrize(
    "version, has_card, message",
    [
        ("4.1.1", True, "OpenCV 4.1.1 lacks layers"),
        ("4.5.3", True, "OpenCV 4.5.3 lacks layers"),
        ("4.5.4", True, None),  # the self-test decides
        ("4.5.4", False, "carries no self-test"),
        ("4.6.0", False, "carries no self-test"),
        ("4.7.0", True, "computes depthwise convolutions wrongly .opencv issue 23151."),
        ("4.7.0-dev", False, "computes depthwise convolutions wrongly"),
        ("4.8.0", True, None),
        ("4.12.0", True, None),
        ("5.0.0", True, None),
        ("5.1.0-pre", False, None),
    ],
)
def test_versions(tiny, tmp_path, version, has_card, message):
    pytest.importorskip("onnx")
    path = tiny.save(tmp_path / "tiny.onnx", card=tiny.card())
    model = describe(path)
    if not has_card:
        model = type(model)(**{**vars(model), "card": None})
    if message is None:
        check_version(version, model)
    else:
        with pytest.raises(UserError, match=f"tiny.onnx.*{message}.*Use ONNX Runtime"):
            check_version(version, model)


def test_what_cannot_be_tested_is_warned_of(tiny, tmp_path, caplog):
    pytest.importorskip("onnx")
    model = describe(tiny.save(tmp_path / "tiny.onnx", card=tiny.card(self_test=None)))
    with caplog.at_level(logging.WARNING):
        check_version("4.10.0", model)
    assert "compare with another runtime" in caplog.text


def test_targets():
    assert "cpu" in devices() and choose_target("CPU") == "cpu" and choose_target("cpu:0") == "cpu"
    assert choose_target(None) in devices()
    with pytest.raises(UserError, match="first device only, not on 'cuda:1'"):
        choose_target("cuda:1")
    with pytest.raises(UserError, match="no target 'tpu'; known: cpu, cuda, cuda_fp16, opencl"):
        choose_target("tpu")
    if "cuda" not in devices():
        with pytest.raises(UserError, match="was built without cuda; there are: cpu"):
            choose_target("cuda")
