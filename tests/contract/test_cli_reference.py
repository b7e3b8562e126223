"""`docs/cli.md` says what the commands say, and every example is a command line that the parser takes."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from ltxkit.cli import COMMANDS, parser


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    path = repository / "tests" / "contract" / "write_cli_reference.py"
    spec = importlib.util.spec_from_file_location("ltxkit_tests_cli_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_parser_says(script: ModuleType, repository: Path) -> None:
    written = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == script.page(), "run .venv/bin/python tests/contract/write_cli_reference.py"


def test_every_option_is_on_the_page(script: ModuleType) -> None:
    (subs,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for command in COMMANDS:
        text = script.section(command, subs.choices[command.name])
        shown = (action for action in subs.choices[command.name]._actions if action.help is not argparse.SUPPRESS)
        names = {name for action in shown for name in action.option_strings}
        assert {name for name in names - {"-h", "--help"} if name not in text} == set()


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_examples_are_valid(name: str) -> None:
    (command,) = (command for command in COMMANDS if command.name == name)
    assert command.examples, "every command shows how it is used"
    for example in command.examples:
        words = shlex.split(example.partition(" > ")[0].partition(" >> ")[0].partition(" | ")[0])
        assert words[0] == name
        options = parser().parse_args(words)
        assert options.run is command.run


def test_help_shows_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            parser().parse_args([command.name, "--help"])
        shown = capsys.readouterr().out
        assert "examples:" in shown
        for example in command.examples:
            assert f"  ltxkit {example}\n" in shown


def test_examples_of_the_training_page_hold_here(repository: Path) -> None:
    """Options that documents use exist: `ltxkit generate` in README and docs."""
    import re

    for path in (repository / "README.md", *sorted((repository / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines():
                if line.startswith("ltxkit generate "):
                    parser().parse_args(shlex.split(line)[1:])
