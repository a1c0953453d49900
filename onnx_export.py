"""Write a trained net as ONNX: `python onnx_export.py MODEL`, a file that says everything of itself."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from vision import cli
from vision.cli import option
from vision.errors import UserError

with cli.needs("export"):
    from vision.data import open_dataset
    from vision.data.images import read_image
    from vision.detector import Detector
    from vision.evaluation.inference import mean_ap
    from vision.export import accuracy, qat, tensorrt
    from vision.export.bundle import write_bundle
    from vision.export.onnx import EXPORTERS, TARGETS, Exported, Plan, export
    from vision.export.publish import NO, YES, publish
    from vision.export.source import Source, best_checkpoint, open_source
    from vision.export.tensorrt import PrecisionOptions
    from vision.runtimes.pytorch import TorchRun, pick_device
    from vision.spec import parse_resolution

DESCRIPTION = "Write a trained net as one ONNX file that carries its labels, size and normalisation."
EPILOG = """A MODEL is a checkpoint of train_ssd.py, bare weights (with --net and --labels, where they cannot be
found out), or the folder of a training run, of which the best checkpoint is taken."""

GIVES = {
    "detectnet": "gives scores and boxes",
    "raw": "gives scores and locations",
    "nms": "gives detections",
    "uint8": "takes bytes",
}

DEFAULT_NAME = "ssd-mobilenet"
"""What NVIDIA's tools call mb1-ssd; their command lines expect the file under this name."""


@dataclass
class ExportOptions(PrecisionOptions):
    """Options of `onnx_export.py`. Raises UserError for values out of range."""

    model: List[str] = option([], "checkpoint, or folder of a training run", metavar="MODEL", positional=True)
    input: str = option("", "the same, as a flag", metavar="FILE")
    model_dir: str = option("", "folder of a training run", flags=("--model-dir",), metavar="DIR")
    output: str = option("", "file to write (default: beside the model)", metavar="FILE")
    net: str = option("", "name of the net, for weights that do not know it")
    labels: str = option("", "label file, for weights that do not know their classes", metavar="FILE")
    width: int = option(0, "of the input in pixels (default: as trained)")
    height: int = option(0, "of the input in pixels (default: as trained)")
    resolution: str = option("", "the same as one value, 300 or WIDTHxHEIGHT")
    mb2_width_mult: float = option(1.0, "width multiplier of mb2-ssd-lite, for weights that do not know it")
    conv4_3_norm: str = option(
        "", "norm of vgg16-ssd, for weights that do not know it", choices=("batch", "l2")
    )

    target: str = option("any", "where the file will run", choices=tuple(TARGETS))
    opset: int = option(0, "9..23 (default: by --target; 11 for any)")
    batch_size: int = option(1, "images in a call")
    dynamic_batch: bool = option(False, "any number of images in a call")
    raw: bool = option(False, "scores and locations come out, decoded by the runtime (for old OpenCV)")
    nms: bool = option(False, "detections come out, after NMS in the graph (for onnxruntime)")
    uint8: bool = option(False, "RGB bytes go in, the normalisation is in the graph")
    suppress: Optional[bool] = option(
        None, "zero the scores that NMS drops, in plain operators (default: for --target detectnet)"
    )
    oversample: int = option(
        0, "the file takes images of so many times the size and averages (default: 2 for --target detectnet)"
    )
    candidates: int = option(
        200, "boxes of each class that NMS in the graph looks at, and with --nms gives, at most"
    )
    threshold: float = option(0.4, "score recommended for detection; built in with --nms")
    iou_threshold: float = option(0.45, "of NMS; built in with --nms and --suppress")
    exporter: str = option("auto", "which of torch's exporters", choices=EXPORTERS)

    verify: str = option(
        "true",
        "compare with torch in onnxruntime; a data set folder: its mAP too",
        const="true",
        metavar="DIR",
    )
    engine: bool = option(False, "also build a TensorRT engine for this machine's GPU (see docs/jetson.md)")
    qat: int = option(0, "first fine-tune for so many epochs with INT8 rounding, on the data set of --calib")
    bundle: str = option("", "also write a deployment folder here", metavar="DIR")
    picture: str = option(
        "", "test picture of the bundle (default: of the data of --verify, else painted)", metavar="FILE"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [*self.model, *(value for value in (self.input,) if value)]
        if len(given) > 1:
            raise UserError(f"one model at a time, not {', '.join(given)}")
        if not given and not self.model_dir:
            raise UserError("name a checkpoint, or the folder of a training run with --model_dir")
        chosen = [name for name in ("raw", "nms", "uint8") if getattr(self, name)]
        if len(chosen) > 1:
            raise UserError(f"--{chosen[0]} and --{chosen[1]} exclude each other")
        if self.qat and not self.calib:
            raise UserError("--qat trains on annotated images: name their data set with --calib")
        for name in ("width", "height", "opset", "oversample", "qat"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)} is below 0")
        self.size()
        self.plan()

    def plan(self) -> Plan:
        """How the net is to be exported."""
        form = next((name for name in ("raw", "nms", "uint8") if getattr(self, name)), "detectnet")
        suppress = self.target == "detectnet" if self.suppress is None else self.suppress
        oversample = self.oversample or (2 if self.target == "detectnet" else 1)
        return Plan(
            form=form,
            target=self.target,
            opset=self.opset,
            batch_size=self.batch_size,
            dynamic_batch=self.dynamic_batch,
            suppress=suppress,
            candidates=self.candidates,
            threshold=self.threshold,
            iou_threshold=self.iou_threshold,
            exporter=self.exporter,
            oversample=oversample,
        )

    def size(self) -> Optional[Tuple[int, int]]:
        """(height, width) in pixels, None when it is not given."""
        if self.resolution:
            return parse_resolution(self.resolution)
        if not (self.width or self.height):
            return None
        return parse_resolution(f"{self.width or self.height}x{self.height or self.width}")

    def checkpoint(self) -> Path:
        """The file to export."""
        named = next(iter([*self.model, self.input]), "")
        if not named:
            return best_checkpoint(self.model_dir)
        path = self._found(named)
        return best_checkpoint(path) if path.is_dir() else path

    def label_file(self) -> Optional[Path]:
        """The label file that was named, or None."""
        return self._found(self.labels) if self.labels else None

    def _found(self, name: str) -> Path:
        """Where a relative path leads: from here, else from the folder of the run."""
        inside = Path(self.model_dir) / name
        return inside if self.model_dir and not Path(name).exists() and inside.exists() else Path(name)

    def output_file(self, source: Source) -> Path:
        """Where the ONNX file goes."""
        if not self.output:
            if self.model:
                return source.path.with_suffix(".onnx")
            name = self.net or (DEFAULT_NAME if source.net.spec.name == "mb1-ssd" else source.net.spec.name)
            return Path(self.model_dir) / f"{name}.onnx"
        path = Path(self.output)
        if path.suffix.lower() != ".onnx":
            raise UserError(
                f"--output {self.output} does not end with .onnx, by which every runtime knows it"
            )
        bare = len(path.parts) == 1
        return Path(self.model_dir) / path if bare and self.model_dir else path

    def source(self) -> Source:
        """The net to export."""
        options: Dict[str, Any] = {"conv4_3_norm": self.conv4_3_norm or None}
        options["width_mult"] = self.mb2_width_mult if self.mb2_width_mult != 1.0 else None
        return open_source(self.checkpoint(), self.net or None, self.label_file(), self.size(), **options)


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = cli.parse(ExportOptions, argv, DESCRIPTION, EPILOG)
    source = options.source()
    if options.qat:
        fine_tune(source, options)
    output = options.output_file(source)
    height, width = source.input.size
    print(
        f"Model: {source.path} ({source.net.spec.name}, {width} x {height}, {len(source.classes) - 1} classes)"
    )
    exported = export(source.net, source.classes, source.input, options.plan(), source.data, source.metrics)
    published = publish(exported, source, output, options.verify)
    if published.verification is not None:
        print(published.verification)
    print(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB, {describe(exported)})")
    print(f"Wrote {published.labels}")
    reduce_precision(exported, output, options)
    if options.bundle:
        picture = read_image(options.picture) if options.picture else published.picture
        print(f"Wrote {write_bundle(options.bundle, output, exported.card, picture)}/")
    if exported.card.form == "detectnet" and not exported.card.dynamic_batch:
        print_detectnet(exported, output, published.labels)
    return 0


def fine_tune(source: Source, options: ExportOptions) -> None:
    """Put a net that was trained on with rounding in the place of the source's; say what that one could."""
    data = qat.matching_dataset(open_dataset([options.calib], "train"), source.classes)
    tuned = qat.fine_tune(source.net, source.input, data, options.qat, say=print)
    before = Detector(TorchRun(source.net, pick_device()), source.input, source.classes)
    value = mean_ap(before, open_dataset([options.calib], "test"))
    print(f"float32 before the fine-tuning: mAP {value:.4f}")
    source.net = tuned


def reduce_precision(exported: Exported, output: Path, options: ExportOptions) -> None:
    """The same net in the precision that was asked for: an engine with --engine, else a second ONNX file."""
    data = "" if options.verify.strip().lower() in (*YES, *NO) else options.verify
    if options.engine:
        asked = {name: getattr(options, name) for name in ("precision", "calib", "accuracy", "keep")}
        built = tensorrt.build(output, tensorrt.BuildOptions(verify=data, **asked), say=print)
        print(tensorrt.report(built))
    elif options.precision not in ("", "fp32"):
        material = accuracy.open_material(options.calib, data)
        reduction = accuracy.reduce(
            exported.model,
            exported.card,
            options.precision,
            material,
            options.accuracy,
            options.keep,
            say=print,
        )
        print(reduction)
        print(f"Wrote {accuracy.write_reduced(output, reduction)}")


def describe(exported: Exported) -> str:
    """What kind of file it is, in a line."""
    card = exported.card
    batch = "any batch" if card.dynamic_batch else f"batch {card.batch_size}"
    words = [f"opset {card.opset}", GIVES[card.form], batch]
    words += [f"takes {card.input.width} x {card.input.height}"]
    words += ["normalisation of detectNet"] if card.folded else []
    words += ["NMS unrolled"] if card.suppressed else []
    return ", ".join(words)


def print_detectnet(exported: Exported, output: Path, labels: Path) -> None:
    """The command line for NVIDIA's detectnet, to paste."""
    print("\nFor NVIDIA's detectnet:")
    print(
        f"  detectnet --model={output} --labels={labels} --input-blob=input_0 --output-cvg=scores "
        "--output-bbox=boxes IMAGE OUTPUT"
    )
    if exported.card.target != "detectnet":
        print(
            "  (detectnet normalises and merges boxes in its own way; --target detectnet makes it give the same)"
        )


if __name__ == "__main__":
    sys.exit(cli.run(main))
