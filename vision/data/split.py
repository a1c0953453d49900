"""`python -m vision.data split DIR --ratios 0.8 0.2`: training and test parts that are alike.

Images are drawn by iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of
Multi-Label Data", algorithm 1): the class with the fewest images left goes first, and each of its images goes to the
part that lacks most of them. So a rare class is in every part, in the ratio of the parts, although images hold several
classes at once. Images without objects are a class of their own here.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np

from vision import cli
from vision.cli import option
from vision.data import Dataset, format_of, summary
from vision.data.convert import read_parts, written
from vision.data.labels import read_labels
from vision.data.sample import Sample
from vision.data.write import WRITERS, write_dataset
from vision.errors import UserError

DESCRIPTION = (
    "Divide a data set anew: all its images are put together and drawn by class. The source is only read; the parts "
    "are written to a new folder, in the format of the source."
)

PART_NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}


def stratified(holds: np.ndarray, ratios: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """The part of each image, by iterative stratification.

    Args:
        holds: bool (N, C), whether image n holds class c.
        ratios: (P,) positive, with the sum 1.
        rng: settles ties.

    Returns: int64 (N,), 0..P-1.
    """
    shares = np.asarray(ratios, np.float64)
    part = np.full(len(holds), -1, np.int64)
    room = shares * len(holds)  # (P,) images that each part still wants
    wanted = shares[:, None] * holds.sum(axis=0)  # (P, C) images of each class that it still wants

    def put(image: int, scores: np.ndarray) -> None:
        best = np.flatnonzero(scores >= scores.max() - 1e-9)
        best = best[room[best] >= room[best].max() - 1e-9]
        chosen = int(best[0] if len(best) == 1 else rng.choice(best))
        part[image] = chosen
        room[chosen] -= 1
        wanted[chosen] -= holds[image]

    while True:
        left = holds[part < 0].sum(axis=0)
        if not left.any():
            break
        rarest = np.flatnonzero(left == left[left > 0].min())
        label = int(rarest[0] if len(rarest) == 1 else rng.choice(rarest))
        for image in rng.permutation(np.flatnonzero(holds[:, label] & (part < 0))):
            put(int(image), wanted[:, label])
    for image in rng.permutation(np.flatnonzero(part < 0)):
        put(int(image), room)
    return part


def divide(dataset: Dataset, ratios: Dict[str, float], seed: int = 0) -> Dict[str, Dataset]:
    """Part -> its samples, in the order of the data set; together they are all of it.

    Args:
        ratios: part -> its share; the sum counts as the whole.
        seed: the same seed and samples give the same parts.

    Raises UserError where there are fewer images than parts, or a part would be empty.
    """
    if len(dataset) < len(ratios):
        raise UserError(f"{len(dataset)} images cannot be divided into {len(ratios)} parts")
    holds = np.zeros((len(dataset), len(dataset.classes)), bool)
    for row, sample in zip(holds, dataset.samples):
        row[sample.labels] = True
        row[0] = not len(sample.labels)
    total = sum(ratios.values())
    shares = [share / total for share in ratios.values()]
    part = stratified(holds, shares, np.random.default_rng(seed))
    divided = {}
    for number, name in enumerate(ratios):
        samples = [dataset.samples[i] for i in np.flatnonzero(part == number)]
        if not samples:
            raise UserError(
                f"no image is left for {name}: {len(dataset)} images are too few for these ratios"
            )
        divided[name] = replace(dataset, name=name, samples=samples, findings=[], recognised=())
    return divided


def pooled(datasets: Dict[str, Dataset]) -> Dataset:
    """All parts as one data set; ids that occur in several get the part's name in front. A file counts once.

    Its findings are those of all parts, each once, but for how they were drawn: they are no more.
    """
    owners: Dict[str, int] = {}
    for dataset in datasets.values():
        for sample in dataset.samples:
            owners[sample.id] = owners.get(sample.id, 0) + 1
    samples: Dict[Path, Sample] = {}
    for part, dataset in datasets.items():
        for sample in dataset.samples:
            clash = owners[sample.id] > 1
            samples.setdefault(
                sample.path.resolve(), replace(sample, id=f"{part}/{sample.id}") if clash else sample
            )
    first = next(iter(datasets.values()))
    findings = dict.fromkeys(finding for dataset in datasets.values() for finding in dataset.findings)
    left = [finding for finding in findings if finding.code != "random-split"]
    return replace(first, samples=list(samples.values()), findings=left)


@dataclass
class SplitOptions:
    """Options of `split`."""

    source: str = option("", "the data set, of any known type", positional=True, metavar="DIR")
    output: str = option("", "a folder that is not there yet (default: DIR-split)", metavar="DST")
    ratios: List[float] = option([0.8, 0.2], "of train and test, or of train, val and test")
    names: List[str] = option([], "of the parts (default: train test, or train val test)")
    to: str = option("", "format to write (default: that of the source)", choices=tuple(WRITERS))
    dataset_type: str = option("auto", "type of the source; auto looks at the folder")
    labels: str = option("", "label file: these classes only, in this order", metavar="FILE")
    copy: bool = option(False, "copy the images (the default)")
    link: bool = option(False, "link to the images instead of copying them")
    groups: str = option("ignore", "boxes round groups", choices=("ignore", "keep", "drop"))
    strict: bool = option(False, "any fault in the data ends the run instead of being mended")
    seed: int = option(0, "of the draw")

    def __post_init__(self) -> None:
        if self.copy and self.link:
            raise UserError("--copy and --link together; give one of them")
        if not all(0 < ratio < 1e6 for ratio in self.ratios):
            raise UserError(f"--ratios {' '.join(map(str, self.ratios))}: each must be above 0")
        self.names = self.names or list(PART_NAMES.get(len(self.ratios), ()))
        if len(self.names) != len(self.ratios) or len(set(self.names)) != len(self.names):
            count = len(self.ratios)
            raise UserError(f"--ratios has {count} numbers; give {count} different names with --names")
        if any(not name.replace("_", "").replace("-", "").isalnum() for name in self.names):
            raise UserError(f"--names {' '.join(self.names)}: letters, digits, - and _ only")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} is below 0")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command line."""
    options = cli.parse(SplitOptions, argv, DESCRIPTION)
    source = Path(options.source)
    target = Path(options.output) if options.output else source.with_name(source.resolve().name + "-split")
    to = options.to or format_of(source, options.dataset_type).name
    labels = read_labels(options.labels) if options.labels else None
    read = read_parts(source, options.dataset_type, labels, options.groups, options.strict, options.seed)
    whole = replace(pooled(read), name=source.resolve().name)
    print(summary(whole))
    parts = divide(whole, dict(zip(options.names, options.ratios)), options.seed)
    print(table(parts))
    notes = write_dataset(target, to, parts, [source], options.link)
    print(written(target, to, parts, notes))
    return 0


def table(parts: Dict[str, Dataset]) -> str:
    """Images that hold each class, part by part."""
    classes = next(iter(parts.values())).classes
    width = max(len(name) for name in ("without objects", *classes))
    lines = [f"{'images with':{width}}" + "".join(f"{part:>10}" for part in parts)]
    for label, name in enumerate(classes):
        counts = [
            sum(
                bool((sample.labels == label).any() if label else not len(sample.labels))
                for sample in part.samples
            )
            for part in parts.values()
        ]
        lines.append(f"{name if label else 'without objects':{width}}" + "".join(f"{n:>10}" for n in counts))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(cli.run(main))
