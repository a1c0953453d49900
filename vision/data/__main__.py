"""`python -m vision.data convert | split | check`: data sets changed, divided and looked through."""

import importlib
import sys
from typing import Dict, Optional, Sequence, Tuple

from vision import cli
from vision.data.labels import suggest
from vision.errors import UserError

COMMANDS: Dict[str, Tuple[str, str]] = {
    "convert": ("vision.data.convert", "write a data set in another format"),
    "split": ("vision.data.split", "divide a data set into training and test parts"),
    "check": ("vision.data.check", "name everything that is wrong in a data set"),
}
"""Command -> the module whose `main(argv)` it is, and what it does."""


def usage() -> str:
    """What there is, one line for each command."""
    lines = ["usage: python -m vision.data COMMAND ..., with --help for the options of a command", ""]
    return "\n".join(lines + [f"  {name:8} {what}" for name, (_, what) in COMMANDS.items()])


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Hand the rest of the command line to the module of its first word."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else cli.EXIT_USER_ERROR
    name = words[0]
    if name not in COMMANDS:
        known = list(COMMANDS)
        raise UserError(f"{name!r} is not a command{suggest(name, known)}; there are: {', '.join(known)}")
    return importlib.import_module(COMMANDS[name][0]).main(words[1:])


if __name__ == "__main__":
    sys.exit(cli.run(main))
