"""Parses the recipes in CONTRIBUTING.md into edits: files, blocks, commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FREEZE = "tests/contract/freeze_nodes.py"
WRITTEN_BY = {FREEZE: "tests/data/nodes.json", "tests/contract/write_cli_reference.py": "docs/cli.md"}


@dataclass(frozen=True)
class Block:
    """A fenced block. kind: its language. path: the file to which it belongs, "" for a command or an example."""

    kind: str
    path: str
    text: str

    @property
    def script(self) -> str:
        """The script that a command runs."""
        (script,) = re.findall(r"^\.venv/bin/python (\S+)$", self.text, re.MULTILINE)
        return script

    def apply(self, root: Path) -> None:
        """Edit or write the file."""
        target = root / self.path
        if self.kind == "diff":
            target.write_text(edited(target.read_text(encoding="utf-8"), self.text), encoding="utf-8")
        else:
            assert not target.exists(), f"{self.path} is there already, and the recipe calls it new"
            target.write_text(self.text, encoding="utf-8")


@dataclass(frozen=True)
class Recipe:
    """files: the files that the recipe says it touches."""

    files: tuple[str, ...]
    blocks: tuple[Block, ...]

    @property
    def edits(self) -> list[Block]:
        return [block for block in self.blocks if block.path]

    @property
    def scripts(self) -> list[str]:
        return [block.script for block in self.blocks if block.kind == "sh"]


def recipe(text: str, title: str) -> Recipe:
    """The recipe under a third-level heading."""
    section = text.partition(f"\n### {title}\n")[2]
    section = re.split(r"^#{2,3} (?=\S)", _outside_blocks(section), maxsplit=1, flags=re.MULTILINE)[0]
    listed = re.search(r"^Files: (.*?)\.\n\n", section, re.MULTILINE | re.DOTALL)
    assert listed is not None, f"the recipe of {title} does not say which files it touches"
    return Recipe(tuple(re.findall(r"`([^`]+)`", listed[1])), tuple(_blocks(section)))


def _outside_blocks(text: str) -> str:
    """The text, with `#` lines inside fenced blocks disguised so that they do not read as headings."""
    return re.sub(r"^```.*?^```$", lambda block: block[0].replace("\n#", "\n\0#"), text, flags=re.MULTILINE | re.DOTALL)


def _blocks(section: str) -> Iterator[Block]:
    for kind, path, text in re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        yield Block(kind, path, text.replace("\0", ""))


def edited(text: str, diff: str) -> str:
    """`text` after every hunk of a diff; the lines that a hunk keeps or removes must occur exactly once."""
    for hunk in re.split(r"^@@\n", diff, flags=re.MULTILINE):
        lines = [(line[:1], line[1:]) for line in hunk.splitlines(keepends=True)]
        assert all(mark in (" ", "-", "+") for mark, _ in lines), hunk
        before = "".join(line for mark, line in lines if mark != "+")
        after = "".join(line for mark, line in lines if mark != "-")
        assert before, f"nothing says where this goes:\n{hunk}"
        places = [match.start() for match in re.finditer(rf"^(?={re.escape(before)})", text, re.MULTILINE)]
        assert len(places) == 1, f"expected once in the file:\n{before}"
        text = text[: places[0]] + after + text[places[0] + len(before) :]
    return text
