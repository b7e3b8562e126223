"""Write `tests/data/nodes.json`: the ids, inputs, outputs and choices of every node, on which saved workflows rely.

    .venv/bin/python tests/contract/freeze_nodes.py

Run it after adding a node, or an optional input or a choice at the end. Any other change would break saved workflows:
the command then names the differences and writes nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ltxkit.headless.host import PlainHost
from ltxkit.nodes import NODE_CLASS_MAPPINGS
from ltxkit.nodes.host import use_host
from ltxkit.nodes.widgets import declared_inputs

FROZEN = Path(__file__).parents[1] / "data" / "nodes.json"
FILE_LISTS = (
    "model_name",
    "vae_name",
    "text_encoder_name",
    "upscaler_name",
    "example",
)  # the choices depend on the machine
SHOWN = ("tooltip", "advanced", "display_name")  # where and how a front end shows it, which no graph relies on

Node = Mapping[str, Any]


def nodes_now() -> dict[str, Node]:
    """Every node in the form of `nodes.json`, on a machine without models."""
    with tempfile.TemporaryDirectory() as empty, use_host(PlainHost(Path(empty), Path(empty), Path(empty))):
        return {name: describe(node_class) for name, node_class in NODE_CLASS_MAPPINGS.items()}


def describe(node_class: Any) -> Node:
    """The parts of an input that must not change."""
    inputs = []
    for name, spec in declared_inputs(node_class).items():
        options = {key: value for key, value in spec.options.items() if key not in SHOWN}
        if spec.choices is not None and name not in FILE_LISTS:
            options["choices"] = list(spec.choices)
        inputs.append([name, spec.type, "required" if spec.required else "optional", options])
    outputs = [list(pair) for pair in zip(node_class.RETURN_NAMES, node_class.RETURN_TYPES, strict=True)]
    return {"category": node_class.CATEGORY, "inputs": inputs, "outputs": outputs}


def breaks(frozen: Mapping[str, Node], now: Mapping[str, Node]) -> Iterator[str]:
    """The changes that would break a saved workflow, one per line."""
    for name, before in frozen.items():
        if name not in now:
            yield f"{name}: removed"
            continue
        after = now[name]
        if after["category"] != before["category"]:
            yield f"{name}: its category was {before['category']} and is {after['category']}"
        if not _begins(after["outputs"], before["outputs"]):
            yield f"{name}: its outputs were {before['outputs']} and are {after['outputs']}"
        for place, old in enumerate(before["inputs"]):
            new = after["inputs"][place] if place < len(after["inputs"]) else None
            if new is None or not _extends(new, old):
                yield f"{name}: input {place} was {json.dumps(old)} and is {json.dumps(new)}"
        for added in after["inputs"][len(before["inputs"]) :]:
            if added[2] != "optional":
                yield f"{name}: the new input {added[0]} is required, and saved workflows do not have it"


def _extends(new: list[Any], old: list[Any]) -> bool:
    """Whether an input is unchanged, except perhaps for choices added at the end."""
    (*kind, options), (*old_kind, old_options) = new, old
    choices, old_choices = options.get("choices", []), old_options.get("choices", [])
    rest, old_rest = ({k: v for k, v in each.items() if k != "choices"} for each in (options, old_options))
    return kind == old_kind and rest == old_rest and _begins(choices, old_choices)


def _begins(new: list[Any], old: list[Any]) -> bool:
    return new[: len(old)] == old


def formatted(nodes: Mapping[str, Node]) -> str:
    """JSON with one input per line."""

    def node(name: str, described: Node) -> str:
        inputs = ",\n".join(f"   {json.dumps(each)}" for each in described["inputs"])
        outputs = json.dumps(described["outputs"])
        return (
            f' "{name}": {{\n  "category": {json.dumps(described["category"])},\n'
            f'  "inputs": [\n{inputs}\n  ],\n  "outputs": {outputs}\n }}'
        )

    return "{\n" + ",\n".join(node(name, described) for name, described in nodes.items()) + "\n}\n"


def main() -> None:
    now = nodes_now()
    broken = list(breaks(json.loads(FROZEN.read_text(encoding="utf-8")), now))
    if broken:
        sys.exit("\n".join(("Nothing is written, because saved workflows would break:", *broken)))
    FROZEN.write_text(formatted(now), encoding="utf-8")


if __name__ == "__main__":
    main()
