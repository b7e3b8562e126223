"""Inputs that a choice brings with it: newer cores' `COMFY_DYNAMICCOMBO_V3`.

Such an input is a list of options, each with inputs of its own. A prompt has them side by side under dotted names
(`format`, `format.codec`, `format.codec.encoding`); the node receives one dictionary, `{"format": "mp4", "codec":
{"codec": "av1"}}` (comfy_api/latest/_io.py `DynamicCombo`, `build_nested_inputs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..nodes.widgets import Input, declared_inputs, read_inputs

DYNAMIC = "COMFY_DYNAMICCOMBO_V3"


def as_choice(spec: Input) -> Input:
    """A dynamic choice as the plain one that its own value is of."""
    return replace(spec, type="COMBO", choices=[option["key"] for option in spec.options["options"]])


def brought(spec: Input, key: Any) -> dict[str, Input]:
    """The inputs of a dynamic choice's option, by their names inside it."""
    for option in spec.options["options"]:
        if option["key"] == key:
            return read_inputs(option["inputs"])
    return {}


def live_inputs(node_class: Any, given: Mapping[str, Any]) -> dict[str, Input]:
    """The inputs that a node class declares, and those that the choices in `given` bring, by dotted name.

    As in the core, a choice inside another may be missing: older graphs have none.
    """
    live: dict[str, Input] = {}

    def add(name: str, spec: Input, *, inside: bool) -> None:
        if spec.type != DYNAMIC:
            live[name] = spec
            return
        live[name] = replace(as_choice(spec), required=spec.required and not inside)
        for key, nested in brought(spec, given.get(name)).items():
            add(f"{name}.{key}", nested, inside=True)

    for name, spec in declared_inputs(node_class).items():
        add(name, spec, inside=False)
    return live


def as_received(node_class: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted name in the form in which the node receives them."""
    received = {name: value for name, value in values.items() if "." not in name}

    def gathered(name: str, spec: Input) -> Any:
        if spec.type != DYNAMIC:
            return values[name]
        inside = brought(spec, values[name]).items()
        own = {name.rpartition(".")[2]: values[name]}
        return own | {key: gathered(f"{name}.{key}", each) for key, each in inside if f"{name}.{key}" in values}

    for name, spec in declared_inputs(node_class).items():
        if spec.type == DYNAMIC and name in values:
            received[name] = gathered(name, spec)
    return received
