"""Describes node classes as a ComfyUI server does: for the front end, and for a comparison with a server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ltxkit.headless.core_nodes import CORE_TITLES
from ltxkit.headless.dynamic import DYNAMIC
from ltxkit.nodes import NODE_DISPLAY_NAME_MAPPINGS


def object_info(classes: Mapping[str, type]) -> dict[str, Any]:
    """The answer of a ComfyUI server to `GET /object_info` for these classes (server.py `node_info`)."""
    titles = {**CORE_TITLES, **NODE_DISPLAY_NAME_MAPPINGS}
    return {name: _node_info(name, node_class, titles.get(name, name)) for name, node_class in classes.items()}


def _node_info(name: str, node_class: Any, title: str) -> dict[str, Any]:
    inputs = node_class.INPUT_TYPES()
    info = {
        "input": inputs,
        "input_order": {group: list(specs) for group, specs in inputs.items()},
        "output": node_class.RETURN_TYPES,
        "output_is_list": getattr(node_class, "OUTPUT_IS_LIST", [False] * len(node_class.RETURN_TYPES)),
        "output_name": getattr(node_class, "RETURN_NAMES", node_class.RETURN_TYPES),
        "name": name,
        "display_name": title,
        "description": getattr(node_class, "DESCRIPTION", ""),
        "python_module": getattr(node_class, "RELATIVE_PYTHON_MODULE", "nodes"),
        "category": getattr(node_class, "CATEGORY", "sd"),
        "output_node": bool(getattr(node_class, "OUTPUT_NODE", False)),
    }
    if hasattr(node_class, "OUTPUT_TOOLTIPS"):
        info["output_tooltips"] = node_class.OUTPUT_TOOLTIPS
    return json.loads(json.dumps(info))


def for_older_front_ends(described: dict[str, Any]) -> dict[str, Any]:
    """The same without choices that bring inputs, which front ends learned in 2026: as plain choices, without what they
    bring. Nor has Create Video a bit depth there."""
    older: dict[str, Any] = json.loads(json.dumps(described))
    for info in older.values():
        for group in ("required", "optional"):
            for name, spec in info["input"].get(group, {}).items():
                if spec[0] == DYNAMIC:
                    choices = [option["key"] for option in spec[1]["options"]]
                    info["input"][group][name] = ["COMBO", {"options": choices, "default": choices[0]}]
    del older["CreateVideo"]["input"]["optional"]["bit_depth"]
    older["CreateVideo"]["input_order"]["optional"].remove("bit_depth")
    return older


# ------------------------------------------------------------------------------------------------ comparing

FILES = ("image", "file", "latent")  # inputs whose choices are files


def lacking(ours: dict[str, Any], theirs: dict[str, Any], files: tuple[str, ...] = FILES) -> list[str]:
    """What a core's node takes or gives and its stand-in does not: graphs for that core would not run."""
    found = [] if ours["output_node"] == theirs["output_node"] else ["output_node"]
    if ours["output"][: len(theirs["output"])] != theirs["output"]:
        found.append(f"outputs {theirs['output']}; here {ours['output']}")
    names = [name for group in ("required", "optional") for name in theirs["input"].get(group, {})]
    found += [f"{name} is required here" for name in ours["input"].get("required", {}) if name not in names]
    return found + list(_lacking_inputs(ours["input"], theirs["input"], files))


def _lacking_inputs(ours: dict[str, Any], theirs: dict[str, Any], files: tuple[str, ...]) -> Iterator[str]:
    here = {**ours.get("required", {}), **ours.get("optional", {})}
    for name, spec in {**theirs.get("required", {}), **theirs.get("optional", {})}.items():
        if name not in here:
            yield f"no input {name}"
        elif name not in files:
            yield from (f"{name}: {text}" for text in _lacking_values(here[name], spec, files))


def _lacking_values(ours: Any, theirs: Any, files: tuple[str, ...]) -> Iterator[str]:
    (kind, options), (other, wanted) = ((spec[0], spec[1] if len(spec) > 1 else {}) for spec in (ours, theirs))
    if kind == DYNAMIC and other == DYNAMIC:
        here = {option["key"]: option["inputs"] for option in options["options"]}
        for option in wanted["options"]:
            if option["key"] not in here:
                yield f"no choice {option['key']}"
            else:
                yield from _lacking_inputs(here[option["key"]], option["inputs"], files)
        return
    choices, offered = _choices(kind, options), _choices(other, wanted)
    if offered is not None:
        if choices is None or not set(offered) <= set(choices):
            yield f"choices {offered}; here {choices}"
        return
    if kind != other:
        yield f"{other}; here {kind}"
    for end, sign in (("min", 1), ("max", -1)):
        if sign * options.get(end, -sign * float("inf")) > sign * wanted.get(end, -sign * float("inf")):
            yield f"{end} {wanted.get(end)}; here {options[end]}"
    for option in ("default", "multiline", "step"):
        if wanted.get(option) is not None and options.get(option) not in (None, wanted[option]):
            yield f"{option} {wanted[option]}; here {options.get(option)}"


def _choices(kind: Any, options: dict[str, Any]) -> list[Any] | None:
    if isinstance(kind, list):
        return kind
    if kind == DYNAMIC:
        return [option["key"] for option in options["options"]]
    return options.get("options") if kind == "COMBO" else None
