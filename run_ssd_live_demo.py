"""Find objects while one watches: `python run_ssd_live_demo.py MODEL [SOURCE]`."""

import sys
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence

from vision import cli
from vision.detector import Detector
from vision.errors import UserError
from vision.live import app
from vision.live.app import LiveOptions
from vision.runtimes import RUNTIMES, open_detector

DESCRIPTION = "Find objects in what a camera, a stream or a film shows."
USAGE = "run_ssd_live_demo.py MODEL [SOURCE ...]   or   run_ssd_live_demo.py NET MODEL LABELS [SOURCE ...]"
EPILOG = f"""{USAGE}

The second form is for models that know neither their net nor their classes.

{app.EPILOG}"""


class Job(NamedTuple):
    """What the positional arguments say."""

    model: str
    sources: List[str]
    net: Optional[str] = None
    labels: Optional[str] = None


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = cli.parse(LiveOptions, argv, DESCRIPTION, EPILOG)
    job = parse_job(options.arguments)

    def open_model() -> Detector:
        return open_detector(
            job.model,
            options.runtime,
            labels=job.labels,
            net=job.net,
            device=None if options.use_cuda else "cpu",
            provider=options.provider or None,
            threads=options.threads or None,
            batch_size=max(1, options.batch_size, len(job.sources)),
        )

    return app.run(open_model, job.sources, options)


def parse_job(arguments: Sequence[str]) -> Job:
    """Tell the two forms apart: the first argument is a model file, or the name of a net."""
    if not arguments:
        raise UserError(f"a model is needed. Usage: {USAGE}")
    first = Path(arguments[0])
    suffixes = {suffix for line in RUNTIMES.values() for suffix in line.suffixes}
    if first.is_file() or first.suffix.lower() in suffixes:
        return Job(arguments[0], list(arguments[1:]))
    if len(arguments) < 3:
        raise UserError(f"{first} is no model file; as the name of a net it needs more. Usage: {USAGE}")
    net, model, labels, *sources = arguments
    return Job(model, sources, net, labels)


if __name__ == "__main__":
    sys.exit(cli.run(main))
