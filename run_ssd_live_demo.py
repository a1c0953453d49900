"""Find objects while one watches: `python run_ssd_live_demo.py MODEL [SOURCE]`."""

from typing import Optional, Sequence

from vision import cli
from vision.errors import UserError

with cli.needs():
    from vision.detector import Detector
    from vision.live import app
    from vision.live.app import LiveOptions
    from vision.runtimes import ModelArguments, model_arguments, open_detector

DESCRIPTION = "Find objects in what a camera, a stream or a film shows."
USAGE = "run_ssd_live_demo.py MODEL [SOURCE ...]   or   run_ssd_live_demo.py NET MODEL LABELS [SOURCE ...]"
EPILOG = f"""{USAGE}

The second form is for models that know neither their net nor their classes.

{app.EPILOG}"""


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
            batch_size=max(1, options.batch_size, len(job.others)),
        )

    return app.run(open_model, job.others, options)


def parse_job(arguments: Sequence[str]) -> ModelArguments:
    """Tell the two forms apart; no source is the camera."""
    if not arguments:
        raise UserError(f"a model is needed. Usage: {USAGE}")
    return model_arguments(arguments, 0, USAGE)


if __name__ == "__main__":
    app.leave(cli.run(main))
