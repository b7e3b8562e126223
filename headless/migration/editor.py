"""A prompt as a graph of the editor (format version 0.4), each node right of those that it is linked to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...nodes.widgets import Input, declared_inputs
from ..runner import all_nodes
from ..stored_values import is_widget
from .graph import is_link
from .known import DECLARED

WIDTH, GAP, TITLE, ROW = 300, 60, 80, 26  # pixels of a node, between nodes, above its first row, and of a row
TEXT_ROWS = 5  # of a widget of several lines
SAID_BY_SEED = "fixed"  # what becomes of a seed after a run: nothing

Json = dict[str, Any]


def editor_graph(prompt: Mapping[str, Any]) -> Json:
    """The graph: widgets in the order that the nodes declare, links, and places without an overlap."""
    classes = {**DECLARED, **all_nodes()}
    columns = _columns(prompt)
    bottoms: dict[int, float] = {}
    nodes: list[Json] = []
    links: list[list[Any]] = []
    outputs: dict[str, list[Json]] = {}
    for order, node_id in enumerate(sorted(prompt, key=lambda key: (columns[key], int(key)))):
        node = prompt[node_id]
        known: Any = classes.get(node["class_type"])
        declared = declared_inputs(known) if known else {}
        values, rows = _widgets(declared, node["inputs"])
        slots = _slots(declared, node["inputs"])
        for slot in slots:
            source, output = node["inputs"][slot["name"]] if slot["link"] is not None else (None, 0)
            if source is not None:
                slot["link"] = len(links) + 1
                origin = outputs.setdefault(source, [])
                while len(origin) <= output:
                    origin.append({"name": "output", "type": "*", "links": []})
                origin[output]["links"].append(slot["link"])
                links.append(
                    [slot["link"], int(source), output, int(node_id), slots.index(slot), origin[output]["type"]]
                )
        own = outputs.setdefault(node_id, [])
        names = getattr(known, "RETURN_NAMES", None) or getattr(known, "RETURN_TYPES", ())
        for index, kind in enumerate(getattr(known, "RETURN_TYPES", ())):
            own.append({"name": names[index], "type": kind, "links": []})
        height = TITLE + ROW * (max(sum(slot["widget"] is None for slot in slots), len(own)) + rows)
        top = bottoms.get(columns[node_id], 0.0)
        bottoms[columns[node_id]] = top + height + GAP
        stored: Json = {
            "id": int(node_id),
            "type": node["class_type"],
            "pos": [columns[node_id] * (WIDTH + GAP), top],
            "size": [WIDTH, height - TITLE / 2],
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": [
                {key: value for key, value in slot.items() if value is not None or key == "link"} for slot in slots
            ],
            "outputs": own,
            "properties": {"Node name for S&R": node["class_type"]},
            "widgets_values": values,
        }
        if node["_meta"].get("title"):
            stored["title"] = node["_meta"]["title"]
        for key in ("cnr_id", "aux_id", "ver"):
            if key in node["_meta"]:
                stored["properties"][key] = node["_meta"][key]
        nodes.append(stored)
    last = max((int(node_id) for node_id in prompt), default=0)
    return {
        "last_node_id": last,
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _columns(prompt: Mapping[str, Any]) -> dict[str, int]:
    """How many links lie between a node and the beginnings of the graph, at most."""
    columns: dict[str, int] = {}
    waiting = list(prompt)
    while waiting:
        later = []
        for node_id in waiting:
            sources = [value[0] for value in prompt[node_id]["inputs"].values() if is_link(value)]
            sources = [source for source in sources if source in prompt]
            if all(source in columns for source in sources):
                columns[node_id] = max((columns[source] + 1 for source in sources), default=0)
            else:
                later.append(node_id)
        waiting = later
    return columns


def _widgets(declared: Mapping[str, Input], inputs: Mapping[str, Any]) -> tuple[list[Any] | Json, int]:
    """What a file stores of the widgets, and the rows that they take."""
    if not declared:
        said = {name: value for name, value in inputs.items() if not is_link(value)}
        return said, len(said)
    values: list[Any] = []
    rows = 0
    for name, spec in declared.items():
        if not is_widget(spec):
            continue
        value = inputs.get(name)
        values.append(_default(spec) if value is None or is_link(value) else value)
        rows += TEXT_ROWS if spec.options.get("multiline") else 1
        if spec.options.get("control_after_generate"):
            values.append(SAID_BY_SEED)
            rows += 1
        if any(spec.options.get(kind) for kind in ("image_upload", "video_upload")):
            values.append("image")
            rows += 10
    return values, rows


def _default(spec: Input) -> Any:
    if "default" in spec.options:
        return spec.options["default"]
    return spec.choices[0] if spec.choices else {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(spec.type, "")


def _slots(declared: Mapping[str, Input], inputs: Mapping[str, Any]) -> list[Json]:
    """Sockets, and the widgets that a link fills. `link` is None where nothing is connected, otherwise 0 until it is
    numbered."""
    slots: list[Json] = []
    for name, spec in declared.items():
        linked = is_link(inputs.get(name))
        if is_widget(spec) and not linked:
            continue
        widget = {"name": name} if is_widget(spec) else None
        slots.append({"name": name, "type": spec.type, "link": 0 if linked else None, "widget": widget})
    for name, value in inputs.items():
        if name not in declared and is_link(value):
            slots.append({"name": name, "type": "*", "link": 0, "widget": None})
    return slots
