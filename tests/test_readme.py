"""The commands in the README and in the guides are ones that the scripts understand."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from vision import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands():
    for page in PAGES:
        for block in re.findall(r"^```[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("python "):
                    yield page.name, line


SCRIPT_COMMANDS = [(page, line) for page, line in commands() if line.split()[1].endswith(".py")]


def test_there_are_commands():
    assert len(SCRIPT_COMMANDS) >= 8


@pytest.mark.parametrize("page, line", SCRIPT_COMMANDS)
def test_a_command_is_understood(page, line, monkeypatch):
    """The script's own parser takes every word; the work behind it is not begun."""
    words = shlex.split(line, comments=True)
    path = ROOT / words[1]
    assert path.is_file(), f"{page} names {words[1]}"
    parsed = []

    class Parsed(Exception):
        pass

    def only_parse(options, argv, description, epilog=""):
        parsed.append(vars(cli.parser_for(options, description, epilog).parse_args(argv)))
        raise Parsed

    monkeypatch.setattr(cli, "parse", only_parse)
    monkeypatch.setattr(cli, "parse_given", only_parse)
    if path.parent.name == "benchmarks":
        return
    module = importlib.import_module(path.stem)
    if hasattr(module, "parse"):
        monkeypatch.setattr(module, "parse", only_parse)
    with pytest.raises(Parsed):
        module.main(words[2:])
    assert parsed


def test_every_page_that_is_linked_is_there():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
