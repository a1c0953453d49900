"""Find objects while one watches, in Caffe2: `python run_ssd_live_caffe2.py INIT_NET PREDICT_NET LABELS [SOURCE]`."""

from dataclasses import dataclass
from typing import List, Optional, Sequence

from vision import cli
from vision.cli import option
from vision.errors import UserError

with cli.needs():
    from vision.detector import Detector
    from vision.live import app
    from vision.live.app import LiveOptions
    from vision.runtimes import open_detector
    from vision.spec import parse_resolution

DESCRIPTION = "Find objects in what a camera, a stream or a film shows, with a net in Caffe2."
USAGE = "run_ssd_live_caffe2.py INIT_NET PREDICT_NET LABELS [SOURCE ...]"
EPILOG = f"""{USAGE}

INIT_NET and PREDICT_NET are the two .pb files of convert_to_caffe2_models.py, or older ones of the original.

{app.EPILOG}"""


@dataclass
class Caffe2Options(LiveOptions):
    """Options of `run_ssd_live_caffe2.py`: those of the live demo, with the original's thresholds."""

    arguments: List[str] = option([], "see below", metavar="INIT_NET PREDICT_NET LABELS", positional=True)
    threshold: float = option(0.55, "show detections with a score above this")
    iou_threshold: float = option(0.5, "above which overlap non-maximum suppression drops a box")
    resolution: str = option("", "input size, 300 or WIDTHxHEIGHT, for files that do not know it")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.runtime not in ("auto", "caffe2"):
            raise UserError(f"--runtime {self.runtime}: run_ssd_live_demo.py has other runtimes than Caffe2")
        if self.resolution:
            parse_resolution(self.resolution)


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = cli.parse(Caffe2Options, argv, DESCRIPTION, EPILOG)
    if len(options.arguments) < 3:
        raise UserError(f"two files and their labels are needed. Usage: {USAGE}")
    init_net, predict_net, labels, *sources = options.arguments

    def open_model() -> Detector:
        return open_detector(
            predict_net,
            "caffe2",
            labels=labels,
            size=parse_resolution(options.resolution) if options.resolution else None,
            provider=options.provider or None,
            threads=options.threads or None,
            batch_size=max(1, options.batch_size, len(sources)),
            init_net=init_net,
        )

    return app.run(open_model, sources, options)


if __name__ == "__main__":
    app.leave(cli.run(main))
