"""One table for all runtimes: equal ones agree, a wrong one is found out."""

import csv
import json

import cv2
import pytest

pytest.importorskip("onnxruntime")
export = pytest.importorskip("vision.export.onnx")
torch = pytest.importorskip("torch")

from vision import cli, parity  # noqa: E402
from vision.checkpoint import Checkpoint, save  # noqa: E402
from vision.runtimes import open_detector  # noqa: E402
from vision.spec import InputSpec  # noqa: E402

CLASSES = ("BACKGROUND", "cat", "dog", "bird")
SIZE = (160, 224)


@pytest.fixture(scope="module")
def place(tmp_path_factory, lively, pictures):
    """A checkpoint, an export of it, one of another net, and photographs annotated with what the first finds."""
    folder = tmp_path_factory.mktemp("parity")
    net = lively("mb2-ssd-lite", SIZE, len(CLASSES))
    spec = InputSpec(*SIZE, net.spec.input.mean, net.spec.input.std)
    save(
        Checkpoint("mb2-ssd-lite", {}, CLASSES, *SIZE, spec.mean, spec.std, net.state_dict()),
        folder / "net.pth",
    )
    exported = export.export(net, CLASSES, spec)
    (folder / "net.onnx").write_bytes(exported.model.SerializeToString())
    with torch.no_grad():
        net.state_dict()["classification_headers.0.3.weight"].mul_(-1)
    exported = export.export(net, CLASSES, spec)
    (folder / "other.onnx").write_bytes(exported.model.SerializeToString())
    (folder / "broken.onnx").write_bytes(b"broken")

    detector, data = open_detector(folder / "net.pth"), folder / "data"
    (data / "test").mkdir(parents=True)
    with (data / "test.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        for number, image in enumerate(pictures(3, seed=3)):
            cv2.imwrite(str(data / "test" / f"{number}.png"), image[..., ::-1])
            found = detector.detect(image, 0.5)
            for name, box in zip(found.names, found.boxes.tolist()):
                rows.writerow([f"{number}.png", image.shape[1], image.shape[0], name, *box])
    return folder


def call(place, *words):
    return cli.run(parity.main, [*map(str, words), "--dataset", str(place / "data")])


def test_all_runtimes_agree(place, capsys):
    code = call(place, place / "net.pth", place / "net.onnx", "--json", place / "table.json")
    said = capsys.readouterr()
    rows = json.loads((place / "table.json").read_text())
    assert code == 0, said
    assert [row["runtime"] for row in rows][:2] == ["pytorch", "onnxruntime"]
    assert {"opencv", "detectnet"} <= {row["runtime"] for row in rows}
    assert rows[0]["mean_ap"] > 0.9 and rows[0]["difference"] is None
    for row in rows[1:]:
        assert (row["difference"] is not None and abs(row["difference"]) < 0.5) or not row["judged"], row
    assert (
        "net.pth   pytorch      mAP " in said.out and "(not exported for detectNet: not judged)" in said.out
    )


def test_a_wrong_file_is_found_out(place, caplog):
    words = place / "net.pth", place / "other.onnx", "--runtime", "pytorch", "onnxruntime"
    assert call(place, *words) == 1
    assert "other.onnx in onnxruntime loses " in caplog.text
    assert call(place, *words, "--tolerance", 100) == 0


@pytest.mark.parametrize(
    "words, code, message",
    [
        ([], 2, "name a model"),
        (["nowhere.onnx"], 2, "nowhere.onnx: no such file"),
        (["data/test.csv"], 2, "nothing here runs a .csv file"),
        (["net.pth", "--tolerance", "-1"], 2, "--tolerance -1.0 is below 0"),
        (["net.pth", "--batch_size", "0"], 2, "--batch_size 0 is below 1"),
        (["net.pth", "--runtime", "onnxruntime"], 2, "net.pth is read by pytorch, not by onnxruntime"),
        (["broken.onnx"], 1, "broken.onnx in onnxruntime cannot be measured: "),
        (["net.pth", "broken.onnx"], 0, ""),
        (["net.pth", "broken.onnx", "--runtime", "pytorch", "opencv"], 1, "in opencv cannot be measured"),
    ],
)
def test_what_cannot_be_compared(words, code, message, place, monkeypatch, capsys, caplog):
    monkeypatch.chdir(place)
    assert call(place, *words) == code
    assert message in capsys.readouterr().err + caplog.text
