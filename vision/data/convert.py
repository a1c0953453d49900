"""`python -m vision.data convert SRC DST --to voc|coco|yolo|csv|open_images`: a data set in another format."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set

from vision import cli
from vision.cli import option
from vision.data import Dataset, format_of, open_dataset, summary
from vision.data.labels import read_labels
from vision.data.sample import Finding
from vision.data.write import WRITERS, write_dataset
from vision.errors import UserError

DESCRIPTION = (
    "Write a data set in another format. The source is only read; the target is a new folder, which is there when all "
    "of it is written."
)


@dataclass
class ConvertOptions:
    """Options of `convert`."""

    source: str = option("", "the data set, of any known type", positional=True, metavar="SRC")
    target: str = option("", "a folder that is not there yet", positional=True, metavar="DST")
    to: str = option("", "format to write", choices=tuple(WRITERS))
    dataset_type: str = option("auto", "type of the source; auto looks at the folder")
    labels: str = option("", "label file: these classes only, in this order", metavar="FILE")
    copy: bool = option(False, "copy the images (the default)")
    link: bool = option(False, "link to the images instead of copying them")
    groups: str = option("ignore", "boxes round groups", choices=("ignore", "keep", "drop"))
    strict: bool = option(False, "any fault in the data ends the run instead of being mended")
    seed: int = option(0, "of the parts, where the source has none")

    def __post_init__(self) -> None:
        if not self.to:
            raise UserError(f"--to is missing: one of {', '.join(WRITERS)}")
        if self.copy and self.link:
            raise UserError("--copy and --link together; give one of them")


def read_parts(
    source: Path,
    dataset_type: str = "auto",
    labels: Optional[Sequence[str]] = None,
    groups: str = "ignore",
    strict: bool = False,
    seed: int = 0,
) -> Dict[str, Dataset]:
    """Part -> its samples, all parts under one numbering. A source in one heap is divided 80/20."""
    names = format_of(source, dataset_type).parts(source) or ["train", "test"]
    read = {}
    for name in names:
        read[name] = open_dataset(source, name, dataset_type, labels, strict=strict, seed=seed, groups=groups)
    return read


def report(datasets: Dict[str, Dataset]) -> str:
    """What was read, for people."""
    parts = list(datasets.values())
    lines = list(parts[0].recognised)
    told: Set[Finding] = set()
    for part in parts:
        part.recognised = ()
        lines.append(summary(part, told))
        told.update(part.findings)
    return "\n".join(lines)


def written(target: Path, to: str, datasets: Dict[str, Dataset], notes: Dict[str, int]) -> str:
    """What was written, for people."""
    lines: List[str] = [f"{count} {note}" for note, count in notes.items()]
    images = ", ".join(f"{len(dataset)} in {part}" for part, dataset in datasets.items())
    return "\n".join(lines + [f"Written: {target}, {to}, images: {images}"])


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command line."""
    options = cli.parse(ConvertOptions, argv, DESCRIPTION)
    source, target = Path(options.source), Path(options.target)
    labels = read_labels(options.labels) if options.labels else None
    datasets = read_parts(source, options.dataset_type, labels, options.groups, options.strict, options.seed)
    print(report(datasets))
    notes = write_dataset(target, options.to, datasets, [source], options.link)
    print(written(target, options.to, datasets, notes))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
