"""The recipes in CONTRIBUTING.md, carried out from its text alone in a copy of the repository.

After a recipe's edits and commands, its addition works (`recipe_probes.py`), the tests that guard it pass, and only the
files that the recipe names have changed. Without any one of those files the tests fail: every file is needed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from carrier import Carrier
from recipes import FREEZE, WRITTEN_BY, Recipe, edited, recipe

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

NODES = tuple(
    f"tests/contract/test_nodes.py::test_{name}"
    for name in (
        "the_nodes_are_the_frozen_ones",
        "a_node_explains_itself",
        "a_node_is_as_plain_as_comfyui_wants_it",
        "tooltips_and_help_pages_explain_every_choice",
        "the_manager_finds_the_mapping_without_running_it",
    )
)
MANIFESTS = "tests/contract/test_manifests.py"
PROBES = "tests/contract/recipe_probes.py"
GUARDS = {
    "A model version": (
        f"{PROBES}::test_version",
        *NODES,
        "tests/contract/test_releases.py",
        f"{MANIFESTS}::test_the_data_knows_every_release",
        f"{MANIFESTS}::test_metadata_shapes_and_diffusers_configs_give_one_architecture[2b-0.9.9-dev]",
    ),
    "A schedule": (f"{PROBES}::test_schedule", *NODES),
    "A quantization": (
        f"{PROBES}::test_quantization",
        *NODES,
        "tests/contract/test_documents.py::test_help_names_every_quantization",
        "tests/contract/test_cli_reference.py::test_the_reference_is_what_the_parser_says",
    ),
    "A node": (
        f"{PROBES}::test_node",
        f"{PROBES}::test_node_is_listed",
        *NODES,
        "tests/contract/test_documents.py::test_every_node_is_listed_once",
    ),
}
LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "output", "runs", "*.png")


class Copy:
    """A copy of the repository under its import name, with a process that runs tests and scripts in it."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.root = folder / "ltxkit"
        shutil.copytree(repository, self.root, ignore=LEFT_OUT)
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        script = self.root / "tests/contract/carry_out.py"
        self._carrier = Carrier(self.root, folder / "log", environment, (), script)

    def run(self, *command: str) -> bool:
        """Whether the command succeeds; `said` holds its output."""
        return self._carrier.run(*command)

    @property
    def said(self) -> str:
        return self._carrier.said

    def passes(self, *tests: str) -> bool:
        return self.run("pytest", "-qx", "--tb=short", "--assert=plain", "-p", "no:cacheprovider", *tests)

    def files(self) -> dict[str, bytes]:
        paths = (path for path in self.root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in paths}

    def put(self, name: str, content: bytes | None) -> None:
        """Write this content to a file; None: remove the file."""
        if content is None:
            (self.root / name).unlink()
        else:
            (self.root / name).write_bytes(content)

    def close(self) -> None:
        self._carrier.close()


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Iterator[Copy]:
    made = Copy(repository, tmp_path)
    yield made
    made.close()


def contributing(repository: Path, title: str) -> Recipe:
    return recipe((repository / "CONTRIBUTING.md").read_text(encoding="utf-8"), title)


@pytest.mark.parametrize("title", GUARDS)
def test_a_recipe_names_the_files_of_its_blocks(repository: Path, title: str):
    steps = contributing(repository, title)
    assert list(steps.files) == list(
        dict.fromkeys([*(block.path for block in steps.edits), *(WRITTEN_BY[script] for script in steps.scripts)])
    )


@pytest.mark.parametrize("title", GUARDS)
def test_the_edits_of_a_recipe_fit_the_files(repository: Path, tmp_path: Path, title: str):
    for block in contributing(repository, title).edits:
        copied, source = tmp_path / block.path, repository / block.path
        copied.parent.mkdir(parents=True, exist_ok=True)
        if source.exists() and not copied.exists():
            shutil.copyfile(source, copied)
        block.apply(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("title", GUARDS)
def test_a_recipe_is_enough_and_all_of_it_is_needed(repository: Path, copy: Copy, title: str):
    steps, guards = contributing(repository, title), GUARDS[title]
    before = copy.files()
    assert not copy.passes(guards[0]), "what the recipe adds is there without it"
    for block in steps.edits:
        block.apply(copy.root)
    for script in steps.scripts:
        assert copy.run(script), copy.said
    assert copy.passes(*guards), copy.said
    after = copy.files()
    assert {name for name in after if after[name] != before.get(name)} == set(steps.files)
    for name in steps.files:
        # Python knows stale bytecode by the size and the second of its source, and this takes less than a second.
        assert len(after[name]) != len(before.get(name, b"")), name
        copy.put(name, before.get(name))
        assert not copy.passes(*guards), f"{name} is not needed, or nothing guards it"
        copy.put(name, after[name])
    assert copy.passes(*guards), copy.said


@pytest.mark.slow
def test_the_command_refuses_what_breaks_saved_workflows(copy: Copy):
    before = copy.files()
    page = copy.root / "nodes/steps.py"
    page.write_text(page.read_text().replace('"denoise_strength": decimal', '"strength": decimal'))
    assert not copy.run(FREEZE)
    assert 'LTXKitCreateSchedule: input 3 was ["denoise_strength", "FLOAT"' in copy.said
    assert copy.files()["tests/data/nodes.json"] == before["tests/data/nodes.json"]


@pytest.mark.parametrize(
    ("diff", "result"),
    [
        (" two\n+two and a half\n", "one\ntwo\ntwo and a half\nthree\n"),
        ("-one\n+1\n@@\n-three\n+3\n", "1\ntwo\n3\n"),
        ("+zero\n one\n", "zero\none\ntwo\nthree\n"),
    ],
)
def test_an_edit_goes_where_its_lines_are(diff: str, result: str):
    assert edited("one\ntwo\nthree\n", diff) == result


@pytest.mark.parametrize("diff", [" four\n+five\n", "+five\n", " same\n+five\n", " wo\n+five\n"])
def test_an_edit_without_one_place_is_refused(diff: str):
    with pytest.raises(AssertionError, match=r"expected once|nothing says where"):
        edited("one\ntwo\nsame\nsame\n", diff)
