"""Command lines: flags declared once as dataclass fields, and errors turned into exit codes.

    @dataclass
    class Options:
        batch_size: int = option(16, "images in a step")

    options = parse(Options, argv, "what the script does")

Every field is a flag in both spellings, `--batch_size` and `--batch-size`. A bool is `--flag`, `--flag=True`
or `--flag False`. A list takes several values. Checks belong in the dataclass's `__post_init__`, where a
`UserError` becomes a line on stderr.
"""

import argparse
import contextlib
import dataclasses
import difflib
import io
import logging
import os
import sys
import typing
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NoReturn,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
)

from vision.errors import UserError

Options = TypeVar("Options")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def option(
    default: Any,
    help: str,
    *,
    flags: Sequence[str] = (),
    choices: Optional[Sequence[str]] = None,
    metavar: Optional[str] = None,
    const: Any = None,
    positional: bool = False,
    repeat: bool = False,
) -> Any:
    """A dataclass field that is also a command-line option.

    Args:
        default: also shown in the help; lists are copied.
        flags: further spellings ("--lr"), each again with underscores and dashes.
        choices: allowed values.
        const: the value of the flag when it is given without one (the flag's value becomes optional).
        positional: the option has no flag; a list-typed one takes all that are left.
        repeat: of a list: each flag takes one value, and may be given several times.
    """
    metadata = {
        "help": help,
        "flags": tuple(flags),
        "choices": choices,
        "metavar": metavar,
        "const": const,
        "positional": positional,
        "repeat": repeat,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse_bool(text: str) -> bool:
    """ "True", "1", "yes", "on" and their opposites, in any case."""
    word = text.strip().lower()
    if word in ("true", "t", "1", "yes", "y", "on"):
        return True
    if word in ("false", "f", "0", "no", "n", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def spellings(name: str) -> List[str]:
    """ "batch_size" or "--batch-size" -> ["--batch_size", "--batch-size"]."""
    bare = name.lstrip("-")
    both = ["--" + bare.replace("-", "_"), "--" + bare.replace("_", "-")]
    return both if both[0] != both[1] else both[:1]


def _plain_type(annotation: Any) -> Tuple[Any, bool]:
    """(type of one value, whether there are several) of a field's annotation."""
    arguments = [a for a in typing.get_args(annotation) if a is not type(None)]
    origin = typing.get_origin(annotation)
    if origin is typing.Union:
        return _plain_type(arguments[0])
    if origin in (list, tuple):
        return arguments[0], True
    return annotation, False


def _help(metadata: Mapping[str, Any], default: Any) -> str:
    shown = "" if default in (None, "", [], False) else f" (default: {default})"
    return (metadata["help"] + shown).replace("%", "%%")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in a line instead of listing all that could have been right."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER_ERROR, f"error: {message}; --help lists the options\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = super().parse_known_args(args, namespace)
        flags = [word.split("=")[0] for word in unknown if word.startswith("--") and len(word) > 2]
        if flags:
            near = difflib.get_close_matches(flags[0], list(self._option_string_actions), n=1)
            self.error(f"there is no {flags[0]}" + (f", did you mean {near[0]}?" if near else ""))
        return parsed, unknown


def _program(options: Type[Any]) -> Optional[str]:
    """What is typed to run these options as a module; None for a script, whose file name says it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return None
    package, _, last = spec.name.rpartition(".")
    if last != "__main__":
        return f"python -m {spec.name}"
    inside = options.__module__.startswith(f"{package}.")
    return f"python -m {package}" + (f" {options.__module__[len(package) + 1 :]}" if inside else "")


def parser_for(options: Type[Any], description: str, epilog: str = "") -> argparse.ArgumentParser:
    """An argparse parser whose flags are the fields of a dataclass made with `option`.

    Options that were not given are absent from the parsed namespace.
    """
    parser = _Parser(
        prog=_program(options),
        description=description,
        epilog=epilog,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if "help" not in field.metadata:
            continue
        meta = field.metadata
        kind, several = _plain_type(hints[field.name])
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory()  # type: ignore[misc,operator]
        arguments: Dict[str, Any] = {"help": _help(meta, default), "metavar": meta["metavar"]}
        if meta["choices"]:
            arguments["choices"] = list(meta["choices"])
        if kind is bool:
            arguments.update(type=parse_bool, nargs="?", const=True, metavar="BOOL")
        else:
            arguments["type"] = kind
            if several and meta["repeat"]:
                arguments["action"] = "append"
            elif several:
                arguments["nargs"] = "*" if meta["positional"] else "+"
            elif meta["const"] is not None:
                arguments.update(nargs="?", const=meta["const"])
        if meta["positional"]:
            parser.add_argument(field.name, **arguments)
        else:
            names = [spelling for flag in (field.name, *meta["flags"]) for spelling in spellings(flag)]
            parser.add_argument(*dict.fromkeys(names), dest=field.name, **arguments)
    return parser


def parse_given(
    options: Type[Any], argv: Optional[Sequence[str]], description: str, epilog: str = ""
) -> Dict[str, Any]:
    """Only what the command line said, by field name."""
    # Intermixed, so that flags may stand between the files of a list.
    return vars(parser_for(options, description, epilog).parse_intermixed_args(argv))


def parse(
    options: Type[Options], argv: Optional[Sequence[str]], description: str, epilog: str = ""
) -> Options:
    """An instance of the dataclass."""
    return options(**parse_given(options, argv, description, epilog))


@contextlib.contextmanager
def needs(extra: str = "") -> Iterator[None]:
    """Round the imports of a script: a package that is not installed is said in a line, with exit code 2.

    Args:
        extra: of this project, that brings it; none for what the base brings.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "vision":
            raise
        what = f"'.[{extra}]'" if extra else "."
        print(f"error: this needs {error.name}: pip install {what}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def run(
    main: Callable[[Optional[Sequence[str]]], Optional[int]], argv: Optional[Sequence[str]] = None
) -> int:
    """Run a script's `main(argv)` and return its exit code.

    A `UserError`, and what the system refuses (a full disk, a folder in place of a file), is printed without a
    traceback and gives 2; Ctrl-C gives 130. What the library says through `logging` goes to stdout as plain lines.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal has no letters for is no reason to end.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        return main(argv) or 0
    except UserError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`) has left; Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.strerror is None:  # not from the system
            raise
        sys.stdout.flush()
        named = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {named}{error.strerror}", file=sys.stderr)
        return EXIT_USER_ERROR
