"""Rules for the code as a whole: short parameter lists, and a single place that constructs a pass."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

MOST_PARAMETERS = 8

# Functions with more, each with its reason. A node's `run` takes one parameter per widget, as ComfyUI requires.
LONGER = {
    "ltx_core/pipelines/front.py:plan": "the front door: the files of `load` and the size of `generate`",
    "ltx_core/pipelines/library.py:load": "the front door: files and options by name, as diffusers' from_pretrained",
    "ltx_core/pipelines/library.py:generate": "the front door: a clip's values by name, as diffusers' pipelines",
}


@pytest.fixture(scope="module")
def sources(repository: Path) -> dict[str, ast.Module]:
    folders = ("ltx_core", "nodes", "headless", "commands")
    paths = [*repository.glob("*.py"), *(path for folder in folders for path in (repository / folder).rglob("*.py"))]
    return {path.relative_to(repository).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def count(function: ast.FunctionDef) -> int:
    """The parameters that a caller passes."""
    listed = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([argument for argument in listed if argument.arg not in ("self", "cls")])


def test_no_function_has_more_parameters_than_a_reader_can_hold(sources: dict[str, ast.Module]):
    longer = {
        f"{path}:{function.name}"
        for path, tree in sources.items()
        for function in functions(tree)
        if count(function) > MOST_PARAMETERS and not (path.startswith("nodes/") and function.name == "run")
    }
    assert longer == set(LONGER)
    assert len(LONGER) <= 3


def test_no_bag_of_options_takes_their_place(sources: dict[str, ast.Module]):
    """`**options` would hide a function's parameters; the functions for which ComfyUI requires it are listed."""
    bags = {
        f"{path}:{function.name}"
        for path, tree in sources.items()
        for function in functions(tree)
        if function.args.kwarg is not None and function.name not in ("IS_CHANGED", "VALIDATE_INPUTS")
    }
    assert bags == {
        "commands/captioner.py:redirect_request",  # urllib's own, which is refused
        "commands/training.py:_read_config",  # values of a config by their dotted names
        "ltx_core/pipelines/bar.py:shown_while",  # any call, on its way to the function, which names its parameters
        "ltx_core/pipelines/hints.py:checked",  # likewise
        "ltx_core/pipelines/library.py:_check_alike",  # what all processes of a group must be called with, by its name
        "ltx_core/placing/together.py:check_alike",  # likewise
        "ltx_core/pipelines/library.py:__call__",  # which is refused, whatever it has
        "ltx_core/pipelines/library.py:generate",  # the fields of Recipe, as typed in Knobs; others are refused
        "ltx_core/pipelines/presets.py:but",  # likewise
        "ltx_core/weights/shape_config.py:_known",  # config fields by their names
        "nodes/host.py:core_node",  # the inputs of any of ComfyUI's nodes
        "nodes/old_graphs.py:execute",  # as in sockets.py
        "nodes/patcher.py:partially_load",  # what ComfyUI's ModelPatcher passes and ours ignores
        "nodes/patcher.py:partially_unload",
        "nodes/sockets.py:execute",  # any node's inputs, on their way to its `run`
        "nodes/checks.py:with_checks",  # the widgets of a node, which its `run` names
    }


def test_a_pass_is_made_in_one_place(sources: dict[str, ast.Module]):
    """Library, nodes, trainer and plan call `Pass.of` on settings; its `cls(...)` is the only construction."""
    made = [
        path
        for path, tree in sources.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Pass"
    ]
    assert made == []
    users = {
        path
        for path, tree in sources.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "of" and ast.unparse(node.value) == "Pass"
    }
    assert {
        "ltx_core/pipelines/library.py",
        "ltx_core/pipelines/dry_run.py",
        "nodes/passes.py",
    } <= users
    assert users <= {
        "ltx_core/pipelines/library.py",
        "ltx_core/pipelines/dry_run.py",
        "ltx_core/pipelines/preflight.py",
        "ltx_core/training/forecast.py",
        "ltx_core/training/generate.py",
        "nodes/passes.py",
    }


OF_THE_SYSTEM = {"OSError", "FFmpegError", "VideoOpenFailure"}


def test_what_the_system_says_is_told_without_its_numbers(sources: dict[str, ast.Module]):
    """`str` of an OSError begins with "[Errno 28]" and ends with a path that the sentence has named already."""
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in sources.items()
        for handler in ast.walk(tree)
        if isinstance(handler, ast.ExceptHandler) and handler.type is not None and handler.name is not None
        if OF_THE_SYSTEM & {getattr(each, "attr", getattr(each, "id", "")) for each in ast.walk(handler.type)}
        for statement in handler.body
        for node in ast.walk(statement)
        if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name) and node.value.id == handler.name
    ]
    assert wrong == []
