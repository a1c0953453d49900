"""Write a trained net as the two files of Caffe2, without Caffe2: `python convert_to_caffe2_models.py MODEL`."""

import dataclasses
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from vision import cli
from vision.cli import option
from vision.errors import UserError

with cli.needs():
    from vision.caffe2_net import pair_named
    from vision.card import ModelCard, write_sidecar
    from vision.runtimes import open_detector
    from vision.runtimes.exported import describe
    from vision.spec import parse_resolution

DESCRIPTION = "Write a trained net as ONNX and as the two files of Caffe2. Caffe2 itself is not needed."
USAGE = "convert_to_caffe2_models.py MODEL   or   convert_to_caffe2_models.py NET MODEL LABELS"
EPILOG = f"""{USAGE}

A MODEL is a checkpoint of train_ssd.py, the folder of a training run, weights (second form), or an .onnx file
of onnx_export.py, for which torch is not needed. Written are NAME.onnx, NAME_init_net.pb, NAME_predict_net.pb
and the same two as text (.pbtxt); the NAME is NET, else that of the net or of the .onnx file."""


@dataclass
class ConvertOptions:
    """Options of `convert_to_caffe2_models.py`. Raises UserError for values out of range."""

    arguments: List[str] = option([], "see below", metavar="MODEL", positional=True)
    output_dir: str = option("models", "folder to write into", metavar="DIR")
    resolution: str = option("", "input size, 300 or WIDTHxHEIGHT (default: as trained)")
    mb2_width_mult: float = option(1.0, "width multiplier of mb2-ssd-lite, for weights that do not know it")
    conv4_3_norm: str = option(
        "", "norm of vgg16-ssd, for weights that do not know it", choices=("batch", "l2")
    )

    def __post_init__(self) -> None:
        if len(self.arguments) not in (1, 3):
            raise UserError(f"{len(self.arguments)} words are given. Usage: {USAGE}")
        self.size()

    @property
    def model(self) -> Path:
        """The file or folder."""
        return Path(self.arguments[0] if len(self.arguments) == 1 else self.arguments[1])

    @property
    def net(self) -> Optional[str]:
        """The net's name, when it is given."""
        return self.arguments[0] if len(self.arguments) == 3 else None

    @property
    def labels(self) -> Optional[str]:
        """The label file, when it is given."""
        return self.arguments[2] if len(self.arguments) == 3 else None

    def size(self) -> Optional[Tuple[int, int]]:
        """(height, width) in pixels, None when it is not given."""
        return parse_resolution(self.resolution) if self.resolution else None

    def net_options(self) -> Dict[str, Any]:
        """Of the net, as far as they are given."""
        given: Dict[str, Any] = {"width_mult": self.mb2_width_mult} if self.mb2_width_mult != 1.0 else {}
        return {**given, "conv4_3_norm": self.conv4_3_norm} if self.conv4_3_norm else given


class Converted(NamedTuple):
    """What was read and converted; the ONNX file and the labels stand on the disk.

    Attributes:
        nets: of Caffe2, `vision.export.caffe2.Nets`.
        card: what the pair says of itself.
        prefix: of the files to write.
        written: so far.
    """

    nets: Any
    card: ModelCard
    prefix: Path
    written: List[Path]


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = cli.parse(ConvertOptions, argv, DESCRIPTION, EPILOG)
    if importlib.util.find_spec("onnx") is None:
        raise UserError(
            "converting needs the onnx package (and protobuf, which comes with it): pip install onnx"
        )
    from vision.export.caffe2 import write_nets

    is_onnx = options.model.suffix.lower() == ".onnx"
    converted = of_onnx(options) if is_onnx else of_checkpoint(options)
    files = write_nets(converted.nets, converted.prefix)
    pair = pair_named(converted.prefix)
    files.append(write_sidecar(converted.card, pair.predict))
    for path in [*converted.written, *files]:
        print(f"Wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
    print(try_in_caffe2(pair.predict))
    return 0


def of_onnx(options: ConvertOptions) -> Converted:
    """An ONNX file, which is copied into the folder; without torch."""
    import onnx

    from vision.export.caffe2 import convert
    from vision.export.files import publish_labels, write_bytes

    path = options.model
    said = describe(path, options.labels, options.net, options.size(), **options.net_options())
    prefix = Path(options.output_dir) / (options.net or path.stem)
    print(
        f"Model: {path} ({said.net}, {said.input.width} x {said.input.height}, {len(said.classes) - 1} classes)"
    )
    nets = convert(onnx.load(str(path)), prefix.name)
    batch = {"dynamic_batch": said.batch is None, "batch_size": said.batch or 1}
    card = said.card or ModelCard(said.net, said.classes, said.input, **batch)
    copy = prefix.with_name(f"{prefix.name}.onnx")
    written = []
    if not copy.exists() or copy.resolve() != path.resolve():
        write_bytes(copy, path.read_bytes())
        written = [copy, write_sidecar(card, copy)]
    written.append(publish_labels(said.classes, copy))
    return Converted(nets, of_caffe2(card), prefix, written)


def of_checkpoint(options: ConvertOptions) -> Converted:
    """A checkpoint: exported to ONNX, and that compared with torch where onnxruntime is installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            f"{options.model}: checkpoints need torch: pip install torch. An .onnx file needs none."
        )
    from vision.export.caffe2 import convert
    from vision.export.onnx import Plan, export
    from vision.export.publish import publish
    from vision.export.source import best_checkpoint, open_source

    path = best_checkpoint(options.model) if options.model.is_dir() else options.model
    source = open_source(path, options.net, options.labels, options.size(), **options.net_options())
    height, width = source.input.size
    print(f"Model: {path} ({source.net.spec.name}, {width} x {height}, {len(source.classes) - 1} classes)")
    prefix = Path(options.output_dir) / (options.net or source.net.spec.name)
    plan = Plan(dynamic_batch=True)
    exported = export(source.net, source.classes, source.input, plan, source.data, source.metrics)
    nets = convert(exported.model, prefix.name)
    verifies = importlib.util.find_spec("onnxruntime") is not None
    output = prefix.with_name(f"{prefix.name}.onnx")
    published = publish(exported, source, output, str(verifies).lower())
    print(published.verification or "The ONNX file was not compared with torch: onnxruntime is not installed")
    written = [published.model, published.card, published.labels]
    return Converted(nets, of_caffe2(exported.card), prefix, written)


def of_caffe2(card: ModelCard) -> ModelCard:
    """The card of the pair that was made of an ONNX file."""
    return dataclasses.replace(card, opset=0, target="caffe2")


def try_in_caffe2(predict: Path) -> str:
    """Run the pair where there is a Caffe2. Returns a line; raises UserError when it gives other numbers."""
    from vision.runtimes.caffe2 import pick_device

    try:
        pick_device("cpu")
    except UserError:
        return (
            "Not run: there is no Caffe2 here. Where there is, the pair is tested whenever it is opened: "
            f"python run_ssd_example.py {predict} IMAGE"
        )
    open_detector(predict, "caffe2")
    return "Caffe2 gives what the net gave"


if __name__ == "__main__":
    sys.exit(cli.run(main))
