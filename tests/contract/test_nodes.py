"""Saved workflows are an API: ids, inputs (names, order, types, defaults, ranges) and outputs never change.

`tests/data/nodes.json` records them; `freeze_nodes.py` writes it. `tests/data/first_graphs.json` holds the graphs, in
API format, that were shipped at commit dd5858f.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from freeze_nodes import FILE_LISTS, FROZEN, breaks, formatted, nodes_now

from ltxkit.headless.host import PlainHost
from ltxkit.headless.prompt import check
from ltxkit.headless.runner import all_nodes
from ltxkit.ltx_core.releases import RELEASES
from ltxkit.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ltxkit.nodes.host import use_host
from ltxkit.nodes.widgets import Input, declared_inputs

FIRST_GRAPHS: dict[str, Any] = json.loads((FROZEN.parent / "first_graphs.json").read_text(encoding="utf-8"))
FOLDERS = {  # where the files named in the graphs are looked up
    "model_name": "models/checkpoints",
    "text_encoder_name": "models/text_encoders",
    "upscaler_name": "models/latent_upscale_models",
    "lora_name": "models/loras",
    "image": "input",
    "file": "input",
}
NODES = sorted(NODE_CLASS_MAPPINGS)


@pytest.fixture(autouse=True)
def no_models(tmp_path: Path):
    with use_host(PlainHost(tmp_path, tmp_path, tmp_path)):
        yield


@pytest.fixture
def frozen() -> dict[str, Any]:
    return json.loads(FROZEN.read_text(encoding="utf-8"))


def test_the_nodes_are_the_frozen_ones(frozen: dict[str, Any]):
    if formatted(nodes_now()) != FROZEN.read_text(encoding="utf-8"):
        broken = "\n".join(breaks(frozen, nodes_now()))
        added = "a node, an input or a choice was added; freeze it: .venv/bin/python tests/contract/freeze_nodes.py"
        pytest.fail(f"saved workflows would break:\n{broken}" if broken else added)


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value at a path through the JSON."""

    def apply(nodes: dict[str, Any]) -> None:
        *parents, last = path
        place: Any = nodes
        for step in parents:
            place = place[step]
        place[last] = to

    return apply


SEED, SAMPLER = 4, 5  # positions of inputs of Sample
BREAKING: dict[str, Callable[[dict[str, Any]], None]] = {
    "a node removed": lambda nodes: nodes.pop("LTXKitSampleVideo"),
    "a node in another category": change("LTXKitSampleVideo", "category", to="sampling"),
    "an input removed": lambda nodes: nodes["LTXKitSampleVideo"]["inputs"].pop(),
    "inputs in another order": lambda nodes: nodes["LTXKitSampleVideo"]["inputs"].reverse(),
    "an input renamed": change("LTXKitSampleVideo", "inputs", SEED, 0, to="noise_seed"),
    "an input of another type": change("LTXKitSampleVideo", "inputs", SEED, 1, to="FLOAT"),
    "an optional input that is required": change("LTXKitSampleVideo", "inputs", -1, 2, to="required"),
    "another default": change("LTXKitSampleVideo", "inputs", SEED, 3, "default", to=1),
    "another range": change("LTXKitSampleVideo", "inputs", SEED, 3, "max", to=10),
    "a choice removed": lambda nodes: nodes["LTXKitSampleVideo"]["inputs"][SAMPLER][3]["choices"].pop(),
    "a choice in front": lambda nodes: nodes["LTXKitSampleVideo"]["inputs"][SAMPLER][3]["choices"].insert(0, "auto"),
    "an input in the middle": lambda nodes: nodes["LTXKitSampleVideo"]["inputs"].insert(
        3, ["n", "INT", "optional", {}]
    ),
    "a new input that is required": lambda nodes: nodes["LTXKitSampleVideo"]["inputs"].append(
        ["n", "INT", "required", {}]
    ),
    "an output renamed": change("LTXKitSampleVideo", "outputs", 0, 0, to="video"),
    "an output in front": lambda nodes: nodes["LTXKitSampleVideo"]["outputs"].insert(0, ["video", "VIDEO"]),
}


@pytest.mark.parametrize("what", BREAKING)
def test_what_breaks_saved_workflows_is_never_frozen(frozen: dict[str, Any], what: str):
    changed = copy.deepcopy(frozen)
    BREAKING[what](changed)
    (line,) = {line.partition(":")[0] for line in breaks(frozen, changed)}
    assert line == "LTXKitSampleVideo"


def test_what_is_added_at_the_end_may_be_frozen(frozen: dict[str, Any]):
    changed = copy.deepcopy(frozen)
    sample = changed["LTXKitSampleVideo"]
    sample["inputs"][SAMPLER][3]["choices"].append("new")
    sample["inputs"].append(["new", "INT", "optional", {"default": 0}])
    sample["outputs"].append(["new", "INT"])
    changed["LTXKitNew"] = sample
    assert list(breaks(frozen, changed)) == []


@pytest.mark.parametrize("name", FIRST_GRAPHS)
def test_graphs_of_the_first_nodes_still_run(name: str, tmp_path: Path):
    """By all checks before a run, which cover every input, choice, range and link."""
    prompt: dict[str, Any] = FIRST_GRAPHS[name]
    for node in prompt.values():
        for label, folder in FOLDERS.items():
            value = node["inputs"].get(label)
            if isinstance(value, str) and value != "ltxkit-digits":
                (tmp_path / folder).mkdir(parents=True, exist_ok=True)
                (tmp_path / folder / value).touch()
    with use_host(PlainHost(tmp_path / "models", tmp_path / "input", tmp_path / "output")):
        check(prompt, all_nodes())


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


def mentions(text: str, choice: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(choice)}(?![\w-])", text) is not None


def page_words(repository: Path, name: str, label: str) -> str:
    """What a help page says about an input and its choices: the input's row, or the row to which it refers, and the
    bold names of the page's bullets."""
    page = (repository / f"web/docs/{name}.md").read_text()
    (row,) = re.findall(rf"^\| `{label}` \|(.*)\|$", page, re.MULTILINE)
    pointer = re.match(r" As (?:`(\w+)` )?in ([A-Z][\w ]*)\.", row)
    if pointer is not None:
        other, title = pointer.groups()
        names = {title.removesuffix(" (LTXKit)"): each for each, title in NODE_DISPLAY_NAME_MAPPINGS.items()}
        return page_words(repository, names[title], other or label)
    bold = [
        name
        for line in re.findall(r"^ *- (\*\*.*?):", page, re.MULTILINE)
        for name in re.findall(r"\*\*(.+?)\*\*", line)
    ]
    return "; ".join((row, *bold))


def explained(node_class: Any) -> dict[str, Input]:
    """Inputs whose choices need an explanation. Names of files and of releases explain themselves."""
    return {
        label: spec
        for label, spec in declared_inputs(node_class).items()
        if spec.choices is not None and label not in (*FILE_LISTS, "lora_name")
    }


@pytest.mark.parametrize("name", NODES)
def test_tooltips_and_help_pages_explain_every_choice(repository: Path, name: str):
    for label, spec in explained(NODE_CLASS_MAPPINGS[name]).items():
        choices = [choice for choice in spec.choices or () if choice not in RELEASES]
        assert choices
        texts = {"tooltip": spec.options["tooltip"], "help page": page_words(repository, name, label)}
        for place, text in texts.items():
            silent = [choice for choice in choices if not mentions(text, choice)]
            assert not silent, f"{name}: the {place} of {label} does not say what {', '.join(silent)} does"


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_as_plain_as_comfyui_wants_it(name: str):
    node_class: Any = NODE_CLASS_MAPPINGS[name]
    assert not getattr(node_class, "INPUT_IS_LIST", False)
    run = inspect.signature(node_class.run).parameters
    declared = declared_inputs(node_class)
    assert list(run)[1:] == [*declared, *node_class.INPUT_TYPES().get("hidden", {})]
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
