"""Flags from a dataclass, and errors as exit codes."""

import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

import pytest

from vision import cli
from vision.errors import UserError

ROOT = Path(__file__).parents[1]


@dataclass
class Options:
    files: List[str] = cli.option([], "what to read", positional=True)
    batch_size: int = cli.option(16, "images in a step")
    lr: float = cli.option(0.01, "rate, 5 % of something", flags=("--learning-rate",))
    base_net_lr: Optional[float] = cli.option(None, "rate of the backbone")
    freeze_net: bool = cli.option(False, "heads only")
    use_cuda: bool = cli.option(True, "use a GPU")
    datasets: List[str] = cli.option(["data"], "folders", flags=("--data",))
    resume: str = cli.option("", "go on", const="last")
    kind: str = cli.option("a", "which", choices=("a", "b"))


def parse(line):
    return cli.parse(Options, line.split(), "a test")


@pytest.mark.parametrize(
    "line, name, value",
    [
        ("", "batch_size", 16),
        ("--batch_size 4", "batch_size", 4),
        ("--batch-size 4", "batch_size", 4),
        ("--batch-size=4", "batch_size", 4),
        ("--learning-rate 0.5", "lr", 0.5),
        ("--learning_rate 0.5", "lr", 0.5),
        ("--lr .5", "lr", 0.5),
        ("", "base_net_lr", None),
        ("--base_net_lr 0.001", "base_net_lr", 0.001),
        ("", "freeze_net", False),
        ("--freeze_net", "freeze_net", True),
        ("--freeze-net", "freeze_net", True),
        ("--freeze_net=True", "freeze_net", True),
        ("--use_cuda False", "use_cuda", False),
        ("--use-cuda 0", "use_cuda", False),
        ("--use_cuda", "use_cuda", True),
        ("", "datasets", ["data"]),
        ("--datasets a b", "datasets", ["a", "b"]),
        ("--data a", "datasets", ["a"]),
        ("", "resume", ""),
        ("--resume", "resume", "last"),
        ("--resume x.pth", "resume", "x.pth"),
        ("--kind b", "kind", "b"),
        ("one two", "files", ["one", "two"]),
        ("one --lr 1 two", "files", ["one", "two"]),
        ("--lr 1 one two", "files", ["one", "two"]),
        ("", "files", []),
    ],
)
def test_values(line, name, value):
    assert getattr(parse(line), name) == value


@pytest.mark.parametrize(
    "line", ["--batch_size many", "--use_cuda perhaps", "--kind c", "--no_such_flag", "--batch 3"]
)
def test_what_makes_no_sense_ends_with_2(line, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(line)
    assert ended.value.code == 2
    assert line.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, said",
    [
        ("--no_such_flag", "error: there is no --no_such_flag; --help lists the options\n"),
        (
            "--batch_sise 3",
            "error: there is no --batch_sise, did you mean --batch_size?; --help lists the options\n",
        ),
        (
            "one --leraning-rate=3 two",
            "error: there is no --leraning-rate, did you mean --learning-rate?; --help",
        ),
        ("--kind c", "error: argument --kind: invalid choice"),
    ],
)
def test_a_misspelt_flag_is_a_line(line, said, capsys):
    with pytest.raises(SystemExit):
        parse(line)
    told = capsys.readouterr().err
    assert told.startswith(said) and told.count("\n") == 1


def test_files_that_look_like_flags():
    assert parse("one -- -x").files == ["one", "-x"]


@pytest.mark.parametrize("command", ["vision.data check", "vision.data split", "vision.doctor"])
def test_the_usage_of_a_module_is_what_is_typed(command):
    line = [sys.executable, "-m", *command.split(), "--help"]
    output = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.startswith(f"usage: python -m {command} ")


def test_only_what_was_given():
    assert cli.parse_given(Options, ["--lr", "1"], "") == {"lr": 1.0}


def test_lists_are_not_shared():
    parse("").datasets.append("x")
    assert parse("").datasets == ["data"]


def test_help_shows_every_flag_and_default(capsys):
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for part in ("--batch-size", "--batch_size", "(default: 16)", "5 % of something", "--learning-rate"):
        assert part in text


def fail(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    "error, code, said",
    [
        (UserError("a.xml: object 3: no"), 2, "error: a.xml: object 3: no\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device\n"),
        (IsADirectoryError(21, "Is a directory", "out"), 2, "error: out: Is a directory\n"),
    ],
)
def test_errors_become_exit_codes(error, code, said, capsys):
    assert cli.run(fail(error), []) == code
    assert capsys.readouterr().err == said


def test_a_defect_of_ours_keeps_its_traceback():
    for error in (ZeroDivisionError(), OSError("ours")):
        with pytest.raises(type(error)):
            cli.run(fail(error), [])


def test_a_terminal_without_the_letters(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from vision import cli\n"
        "def main(argv):\n"
        "    import logging\n"
        "    print('\\u30ab')\n"
        "    logging.info('\\u30ab \\udcff')\n"
        "cli.run(main)\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\\u30ab\n\\u30ab \\udcff\n", "")


def test_the_code_of_main_is_the_scripts():
    assert cli.run(lambda argv: 3, []) == 3
    assert cli.run(lambda argv: None, []) == 0


def test_a_missing_package_is_a_line(capsys):
    with pytest.raises(SystemExit) as ended, cli.needs("export"):
        importlib.import_module("no_such_package")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: this needs no_such_package: pip install '.[export]'\n"
    with pytest.raises(SystemExit), cli.needs():
        importlib.import_module("no_such_package")
    assert capsys.readouterr().err == "error: this needs no_such_package: pip install .\n"
    with pytest.raises(ModuleNotFoundError), cli.needs("export"):  # a fault of ours
        importlib.import_module("vision.no_such_module")
