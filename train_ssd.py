"""Train a detector: `python train_ssd.py --data DIR`."""

import signal
import sys
from typing import Optional, Sequence

from vision import cli

with cli.needs("train"):
    from vision.config import TrainConfig
    from vision.engine import find_resumed, fit

DESCRIPTION = "Train an SSD on photographs with boxes. A run needs nothing but --data DIR."


def main(argv: Optional[Sequence[str]] = None) -> int:
    given = cli.parse_given(TrainConfig, argv, DESCRIPTION)
    config, resumed = find_resumed(given)
    outcome = fit(config, resumed)
    if outcome.stopped_by is not None:
        return 128 + signal.Signals(outcome.stopped_by)
    print(f"Done: {config.folder / 'best.pth'}, curves in {config.folder / 'curves.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
