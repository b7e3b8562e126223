"""Saved workflows are an API: ids, inputs (names, order, types, defaults, ranges), outputs never change.

`tests/data/nodes.json` says what they are. New nodes and, at the end of a node, new inputs and outputs may be added
there; nothing in it may be changed or moved once released.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ltxkit.headless.host import PlainHost
from ltxkit.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ltxkit.nodes.host import use_host
from ltxkit.nodes.widgets import declared_inputs

FILE_LISTS = ("model_name", "vae_name", "text_encoder_name", "upscaler_name")  # choices depend on the machine
NODES = sorted(NODE_CLASS_MAPPINGS)


@pytest.fixture(autouse=True)
def no_models(tmp_path: Path):
    with use_host(PlainHost(tmp_path, tmp_path, tmp_path)):
        yield


def describe(node_class: Any) -> dict[str, Any]:
    """What must not change."""
    inputs = []
    for name, spec in declared_inputs(node_class).items():
        options = {key: value for key, value in spec.options.items() if key != "tooltip"}
        if spec.choices is not None and name not in FILE_LISTS:
            options["choices"] = list(spec.choices)
        inputs.append([name, spec.type, "required" if spec.required else "optional", options])
    outputs = [list(pair) for pair in zip(node_class.RETURN_NAMES, node_class.RETURN_TYPES, strict=True)]
    return {"category": node_class.CATEGORY, "inputs": inputs, "outputs": outputs}


def test_the_nodes_are_the_frozen_ones(repository: Path):
    frozen = json.loads((repository / "tests/data/nodes.json").read_text())
    assert {name: describe(NODE_CLASS_MAPPINGS[name]) for name in NODE_CLASS_MAPPINGS} == frozen


@pytest.mark.parametrize("name", NODES)
def test_a_node_explains_itself(repository: Path, name: str):
    node_class: Any = NODE_CLASS_MAPPINGS[name]
    assert re.fullmatch(r"LTXKit[A-Z][A-Za-z]+", name)
    assert NODE_DISPLAY_NAME_MAPPINGS[name].endswith(" (LTXKit)")
    assert node_class.CATEGORY.startswith("LTXKit/")
    assert len(node_class.DESCRIPTION) > 40
    assert node_class.SEARCH_ALIASES
    assert len(node_class.OUTPUT_TOOLTIPS) == len(node_class.RETURN_TYPES) == len(node_class.RETURN_NAMES)
    assert all(node_class.OUTPUT_TOOLTIPS)
    assert all(spec.options.get("tooltip") for spec in declared_inputs(node_class).values())
    page = (repository / f"web/docs/{name}.md").read_text()
    for label in (*declared_inputs(node_class), *node_class.RETURN_NAMES):
        assert f"`{label}`" in page, f"the help page of {name} does not explain {label}"


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_as_plain_as_comfyui_wants_it(name: str):
    node_class: Any = NODE_CLASS_MAPPINGS[name]
    assert not getattr(node_class, "INPUT_IS_LIST", False)
    run = inspect.signature(getattr(node_class, node_class.FUNCTION)).parameters
    declared = declared_inputs(node_class)
    assert list(run)[1:] == list(declared)
    for input_name, spec in declared.items():
        assert (run[input_name].default is inspect.Parameter.empty) == spec.required
    if hasattr(node_class, "VALIDATE_INPUTS"):
        assert inspect.getfullargspec(node_class.VALIDATE_INPUTS).varkw is None  # it would switch off every range check


def test_the_manager_finds_the_mapping_without_running_it(repository: Path):
    source = (repository / "nodes/__init__.py").read_text()
    assert "\nNODE_CLASS_MAPPINGS = {\n" in source
    literal = source.split("NODE_CLASS_MAPPINGS = {", 1)[1].split("}", 1)[0]
    assert re.findall(r'"(\w+)":', literal) == list(NODE_CLASS_MAPPINGS)
    assert set(NODE_DISPLAY_NAME_MAPPINGS) == set(NODE_CLASS_MAPPINGS)
