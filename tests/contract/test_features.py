"""docs/features.md: 46 rows, each with the command, node or call that does it, or with a reason; and these exist."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import ltxkit
from ltxkit.cli import COMMANDS, parser
from ltxkit.ltx_core.pipelines.clip import Clip
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.nodes.templates import TEMPLATES

ROWS = 46
STATES = ("yes", "partly", "no")


@pytest.fixture(scope="module")
def rows(repository: Path) -> dict[str, str]:
    """The third cell of every row, by its number."""
    page = (repository / "docs/features.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE))


@pytest.fixture(scope="module")
def code(rows: dict[str, str]) -> list[str]:
    """What stands in backticks."""
    return [text for cell in rows.values() for text in re.findall(r"`([^`]+)`", cell)]


def test_every_row_is_there_with_what_does_it_or_why_not(rows: dict[str, str], repository: Path) -> None:
    assert list(rows) == [str(number) for number in range(1, ROWS + 1)]
    for number, cell in rows.items():
        state = re.match(r"\*\*(\w+)\*\*", cell)
        assert state is not None, number
        assert state[1] in STATES, number
        if state[1] == "yes":
            assert re.search(r"`|automatic|bundled", cell), f"row {number} does not say what does it"
        else:
            assert len(cell[state.end() :].split()) >= 12, f"row {number} gives no reason"
    assert f"[All {ROWS} features](docs/features.md)" in (repository / "README.md").read_text(encoding="utf-8")


def test_commands_exist_and_take_these_options(code: list[str]) -> None:
    commands = [text.removeprefix("ltxkit ") for text in code if text.startswith("ltxkit ")]
    assert {command.name for command in COMMANDS} >= {command.split()[0] for command in commands} - {"--version"}
    assert len(commands) > 15
    for command in commands:
        if command.endswith(("--help", "--version")):
            with pytest.raises(SystemExit) as end:
                parser().parse_args(shlex.split(command))
            assert end.value.code == 0, command
        elif " " in command:  # not a name alone
            parser().parse_args(shlex.split(command))


def test_options_exist(code: list[str]) -> None:
    """Those of `generate`: with their values, or their names alone."""
    with_values = [text for text in code if text.startswith("-") and " " in text]
    assert len(with_values) > 15
    for given in with_values:
        prompt = [] if given.startswith("--long") else ["a fox"]
        parser().parse_args(["generate", *prompt, *shlex.split(given)])
    (generate,) = (command for command in COMMANDS if command.name == "generate")
    known = argparse.ArgumentParser()
    generate.arguments(known)
    names = {name for action in known._actions for name in action.option_strings}
    assert {text for text in code if text.startswith("-") and " " not in text} - names == set()


def test_nodes_exist(rows: dict[str, str]) -> None:
    named = {name for cell in rows.values() for name in re.findall(r"(?<!\*)\*([A-Z0-9][^*]+)\*(?!\*)", cell)}
    nodes = {name.removesuffix(" (LTXKit)") for name in ltxkit.NODE_DISPLAY_NAME_MAPPINGS.values()}
    assert len(named & nodes) > 12
    assert {name for name in named - nodes if not any(full.startswith(name) for full in TEMPLATES.values())} == set()


def test_names_and_keywords_of_the_library_exist(code: list[str]) -> None:
    calls = [text for text in code if not text.startswith(("-", "ltxkit "))]
    assert {name for text in calls for name in re.findall(r"\bltxkit\.(\w+)", text)} <= set(ltxkit.__all__)
    for text in calls:
        for owner, name in re.findall(r"\b(ltx|clip)\.(\w+)(?:\(| = )", text):
            assert hasattr({"ltx": Components, "clip": Clip}[owner], name) or name in {
                field.name for field in fields(Components)
            }, text
    taken = {field.name for field in fields(ltxkit.Recipe)}
    for function in (ltxkit.load, Components.generate, Clip.save, ltxkit.Condition, ltxkit.LoRA, ltxkit.Reference):
        taken |= set(inspect.signature(function).parameters)
    keywords = {name for text in calls for name in re.findall(r"\b([a-z_]+)=", text)}
    assert len(keywords) > 10
    assert keywords - taken == set()
