"""Files, commands, options, nodes and names that the documents mention exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import ltxkit
from ltxkit.cli import COMMANDS, main, parser
from ltxkit.ltx_core.quant.registry import QUANTIZATION_NAMES

PAGES = (
    "benchmarks",
    "comfyui",
    "features",
    "from-diffusers",
    "inputs",
    "memory",
    "migration",
    "nodes",
    "run",
    "serve",
    "training",
    "training-tour",
    "from-xdiffusion",
)


def section(text: str, title: str) -> str:
    """The text under a second-level heading."""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_node_is_listed_once(repository: Path) -> None:
    page = (repository / "docs/nodes.md").read_text(encoding="utf-8")
    tables = {title: rows_of(section(page, title)) for title in ("Making a clip", "Bridges", "Old graphs")}
    names = [name.removesuffix(" (LTXKit)") for name in ltxkit.NODE_DISPLAY_NAME_MAPPINGS.values()]
    assert sorted(name for rows in tables.values() for name in rows) == sorted(names)
    for rows in tables.values():
        assert rows == sorted(rows, key=names.index), "the order is that of the dicts"


def rows_of(text: str) -> list[str]:
    """The first cells of a table, without its head."""
    return re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE)[1:]


def test_readme_names_commands_that_exist(repository: Path) -> None:
    named = set(re.findall(r"ltxkit ([a-z]+(?:-[a-z]+)*)\b", (repository / "README.md").read_text()))
    commands = {command.name for command in COMMANDS}
    assert named & commands, "the pattern finds nothing any more"
    assert named <= commands


def test_help_names_every_quantization(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert [name for name in QUANTIZATION_NAMES if name not in words] == []


DOCUMENTS = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", *(f"docs/{page}.md" for page in PAGES)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_in_documents_exist(repository: Path, document: str) -> None:
    text = (repository / document).read_text()
    new = re.findall(r"^```(?!diff)\w+ (\S+)$", text, re.MULTILINE)  # files that a recipe creates
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    folders = {path.name for path in repository.iterdir() if path.is_dir()}
    quoted = {path for path in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if path.split("/")[0] in folders} - {*new}
    base = (repository / document).parent
    assert [link for link in links if not (base / link).exists()] == []
    assert [path for path in quoted if not (repository / path).exists()] == []


def test_the_table_of_moved_names_points_to_names_that_exist(repository: Path) -> None:
    table = (repository / "CHANGELOG.md").read_text().partition("### Moved\n")[2]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    now = {
        path
        for row in rows
        for path in re.findall(r"`((?:nodes|headless|commands|ltx_core)[\w.]*)`", row.split("|")[2])
    }
    assert len(now) > 30
    for path in sorted(now):
        try:
            importlib.import_module(f"ltxkit.{path}")
        except ModuleNotFoundError:
            module, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(f"ltxkit.{module}"), name), path


PAGES_OF_TRAINING = ("training", "training-tour", "from-xdiffusion")


def test_commands_of_the_training_pages_are_valid(repository: Path) -> None:
    """The options exist and the presets accept the values; nothing is run."""
    import shlex

    from ltxkit.ltx_core.training.config import load_config

    pages = [(repository / f"docs/{page}.md").read_text() for page in PAGES_OF_TRAINING]
    text = "\n".join(pages).replace("\\\n", " ")
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [line.partition("ltxkit ")[2].removesuffix(" ...") for line in lines if "ltxkit " in line]
    assert {command.split()[0] for command in commands} == {
        "train-vae", "train", "plan", "sample", "extend", "reconstruct", "generate", "data", "split", "caption",
    }  # fmt: skip
    for command in commands:
        options = parser().parse_args(shlex.split(command))
        if command.startswith(("train", "data")):
            load_config(options.config, options.overrides)
    for row in re.findall(r"^\|[^|]*\| `(--set [^`]*)` \|", text, re.MULTILINE):
        sets = parser().parse_args(["train-vae", "--config", "moving-mnist-vae", *shlex.split(row)]).overrides
        load_config("moving-mnist-vae", sets)


def test_the_tested_versions_are_those_of_the_host_tests(repository: Path) -> None:
    table = section((repository / "docs/comfyui.md").read_text(), "Tested versions")
    rows = re.findall(r"^\| (\d[\d.]+) \| (\S+) \|", table, re.MULTILINE)
    sources = "".join(path.read_text() for path in sorted((repository / "tests/host").glob("*.py")))
    assert [core for core, _ in rows] == re.findall(r'"""ComfyUI ([\d.]+)\."""', sources)
    project = (repository / "pyproject.toml").read_text()
    pinned = re.findall(r"comfyui-frontend-package==([\d.]+)", project) + re.findall(
        r'front_end\("([\d.]+)"\)', sources
    )
    assert {front_end for _, front_end in rows} - {"none"} == set(pinned)
