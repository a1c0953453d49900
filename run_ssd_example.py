"""Find objects on photographs: `python run_ssd_example.py MODEL IMAGE...`, pictures with boxes come out."""

import glob
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set

from vision import cli
from vision.cli import option
from vision.errors import UserError

with cli.needs():
    from numpy import ndarray

    from vision.data.images import SUFFIXES, read_image
    from vision.data.sheets import write_image
    from vision.detector import NMS_METHODS, Detections, Detector
    from vision.drawing import draw_boxes
    from vision.evaluation.inference import SCORE_THRESHOLD
    from vision.runtimes import RUNTIMES, ModelArguments, model_arguments, open_detector

DESCRIPTION = "Find objects on photographs."
USAGE = "run_ssd_example.py MODEL IMAGE...   or   run_ssd_example.py NET MODEL LABELS IMAGE..."
EPILOG = f"""{USAGE}

An IMAGE is a file, a folder or a pattern like "photos/*.jpg". The second form is for models that know
neither their net nor their classes."""

DEFAULT_OUTPUT = "run_ssd_example_output"

LOOKED_AT = 8
"""Where nothing is found: so many images are looked at again, for lower scores."""


@dataclass
class ExampleOptions:
    """Options of `run_ssd_example.py`. Raises UserError for values out of range."""

    arguments: List[str] = option([], "see below", metavar="MODEL IMAGE", positional=True)
    output: str = option(
        "",
        f"picture, or folder of pictures, to write (default: {DEFAULT_OUTPUT}.jpg or a folder)",
        metavar="PATH",
    )
    threshold: float = option(0.4, "show detections with a score above this")
    top_k: int = option(10, "show so many of each class; -1 for all")
    iou_threshold: float = option(0.45, "above which overlap non-maximum suppression drops a box")
    nms_method: str = option("hard", "non-maximum suppression", choices=NMS_METHODS)
    runtime: str = option("auto", "what runs the model", choices=("auto", *RUNTIMES))
    use_cuda: bool = option(True, "use a GPU when there is one")
    provider: str = option("", "how an exported file is run: cpu, cuda, tensorrt, ...", metavar="NAME")
    threads: int = option(0, "of the CPU; 0 leaves it to the runtime")
    batch_size: int = option(8, "images at once")
    json: str = option("", "also write the detections here as JSON", metavar="FILE")

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch_size {self.batch_size} is below 1")


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = cli.parse(ExampleOptions, argv, DESCRIPTION, EPILOG)
    job = parse_job(options.arguments)
    images = find_images(job.others)
    outputs = name_outputs(images, options.output)
    detector = open_detector(
        job.model,
        options.runtime,
        labels=job.labels,
        net=job.net,
        device=None if options.use_cuda else "cpu",
        provider=options.provider or None,
        threads=options.threads or None,
        batch_size=options.batch_size,
    )
    print(f"Model: {job.model} ({detector.name}, {len(detector.classes) - 1} classes)")
    results: Dict[Path, Detections] = {}
    for start in range(0, len(images), options.batch_size):
        batch = images[start : start + options.batch_size]
        results.update(detect_files(detector, batch, outputs, options))
    print_table(results, options.threshold)
    if options.json:
        write_json(Path(options.json), results)
    print_ending(results, outputs)
    if results and not any(map(len, results.values())):
        print(nearest(detector, list(results)[:LOOKED_AT]))
    return cli.EXIT_USER_ERROR if len(results) < len(images) else 0


def parse_job(arguments: Sequence[str]) -> ModelArguments:
    """Tell the two forms apart."""
    if len(arguments) < 2:
        raise UserError(f"a model and an image are needed. Usage: {USAGE}")
    return model_arguments(arguments, 1, USAGE)


def find_images(arguments: Sequence[str]) -> List[Path]:
    """Files, the images in folders and the matches of patterns, each once, in order. Raises UserError."""
    paths: List[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"{path}: no image in this folder; looked for {', '.join(SUFFIXES)}")
            paths += inside
        elif path.exists():
            paths.append(path)
        else:
            # Path.glob takes no absolute pattern.
            matches = sorted(Path(match) for match in glob.glob(argument, recursive=True))  # noqa: PTH207
            if not matches:
                raise UserError(f"{argument}: no such file, folder or pattern")
            paths += [match for match in matches if match.is_file()]
    return list(dict.fromkeys(paths))


def name_outputs(images: Sequence[Path], output: str) -> Dict[Path, Path]:
    """Where the picture of each image goes; no two to the same place, none onto an image. Raises UserError."""
    target = Path(output or (DEFAULT_OUTPUT + (".jpg" if len(images) == 1 else "")))
    if target.suffix.lower() in SUFFIXES and not target.is_dir():
        if len(images) > 1:
            raise UserError(
                f"--output {target}: {len(images)} images do not fit into one file; name a folder"
            )
        outputs = {images[0]: target}
    else:
        taken: Set[str] = set()
        outputs = {}
        for image in images:
            name, number = f"{image.stem}.jpg", 2
            while name.lower() in taken:
                name, number = f"{image.stem}_{number}.jpg", number + 1
            taken.add(name.lower())
            outputs[image] = target / name
    sources = {image.resolve() for image in images}
    for place in outputs.values():
        if place.resolve() in sources:
            raise UserError(f"--output {target}: would overwrite the image {place}")
    return outputs


def detect_files(
    detector: Detector, paths: Sequence[Path], outputs: Dict[Path, Path], options: ExampleOptions
) -> Dict[Path, Detections]:
    """Detect on one batch of files and write their pictures; a file that cannot be read is said and left out."""
    images: Dict[Path, ndarray] = {}
    for path in paths:
        try:
            images[path] = read_image(path, upright=True)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
    found = detector.detect(
        list(images.values()),
        threshold=options.threshold,
        iou_threshold=options.iou_threshold,
        top_k=options.top_k,
        nms_method=options.nms_method,
    )
    results = dict(zip(images, found))
    for path, detections in results.items():
        picture = draw_boxes(
            images[path], detections.boxes, detections.names, detections.scores, detections.labels
        )
        write_image(outputs[path], picture)
    return results


def print_table(results: Dict[Path, Detections], threshold: float) -> None:
    """Every detection in a line; boxes in pixels."""
    head = ["image", "class", "score", "x1", "y1", "x2", "y2"]
    rows = [head]
    for path, found in results.items():
        for name, score, box in found:
            rows.append([str(path), name, f"{score:.3f}"] + [f"{value:.0f}" for value in box])
        if not len(found):
            rows.append([str(path), f"(nothing above {threshold:g})", "", "", "", "", ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        words = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        print("  ".join(words).rstrip())


def nearest(detector: Detector, paths: Sequence[Path]) -> str:
    """Where nothing was found: what came nearest to it, on the first images."""
    found = detector.detect([read_image(path, upright=True) for path in paths], threshold=SCORE_THRESHOLD)
    scores = [(float(score), name, path) for path, each in zip(paths, found) for name, score, _ in each]
    if not scores:
        return (
            f"Nothing has a score of {SCORE_THRESHOLD:g} or more. Is it the right model, and was it trained?"
        )
    score, name, path = max(scores)
    return f"The highest score is {score:.2f} ({name}, {path}); a lower --threshold shows more"


def write_json(path: Path, results: Dict[Path, Detections]) -> None:
    """A list with one mapping for each image."""
    images: List[Dict[str, Any]] = []
    for source, found in results.items():
        objects = [{"class": n, "score": s, "box": [float(v) for v in box]} for n, s, box in found]
        images.append({"image": str(source), "size": list(found.size), "objects": objects})
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(images, indent=2, ensure_ascii=False) + "\n"
    # A byte of a file's name that is no UTF-8 becomes "\udcdf", which is JSON.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def print_ending(results: Dict[Path, Detections], outputs: Dict[Path, Path]) -> None:
    """How many objects, and where to look."""
    count = sum(len(found) for found in results.values())
    if len(results) == 1:
        print(f"Found {count} objects. The output image is {outputs[next(iter(results))]}")
    elif results:
        folder = outputs[next(iter(results))].parent
        print(f"Found {count} objects on {len(results)} images. The output images are in {folder}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
