"""The parts of a file of the editor, as it stores them: nodes, their inputs, links, definitions of subgraphs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..ltx_core.values import shown
from ..nodes.widgets import Input, declared_inputs
from .stored_values import Json, entries, is_widget, stored_values


class Link(NamedTuple):
    origin: str
    origin_slot: int
    target: str
    target_slot: int


@dataclass
class Slot:
    """An input of a node: the id of its link (None: nothing is connected), and whether a widget fills it then."""

    name: str
    type: str
    link: str | None
    is_widget: bool = False


@dataclass
class Node:
    """A node of a graph. values: what its widgets say, by name."""

    id: str
    type: str
    title: str
    mode: int
    inputs: list[Slot]
    outputs: list[str]
    values: Json
    stored: Json = field(repr=False)

    @property
    def properties(self) -> Json:
        found = self.stored.get("properties")
        return found if isinstance(found, dict) else {}

    def slot(self, name: str) -> Slot | None:
        return next((slot for slot in self.inputs if slot.name == name), None)


@dataclass(frozen=True)
class Named:
    """A node as `%Node.widget%` in a file's prefix finds it: by `alias`, its class if nobody changed that, or title."""

    id: str
    alias: str
    title: str
    values: Json


class Kinds:
    """What is known of the classes of nodes: their inputs, and the titles that they have by themselves."""

    def __init__(self, classes: Mapping[str, type], titles: Mapping[str, str]) -> None:
        self.classes, self._titles = classes, titles
        self._inputs: dict[str, dict[str, Input]] = {}

    def inputs(self, kind: str) -> dict[str, Input]:
        if kind not in self._inputs:
            self._inputs[kind] = declared_inputs(self.classes[kind]) if kind in self.classes else {}
        return self._inputs[kind]

    def title(self, kind: str) -> str:
        return self._titles.get(kind, kind)


def read_definitions(graph: Json) -> dict[str, Json]:
    """Subgraphs by id. Older files have those of a subgraph inside it."""
    found: dict[str, Json] = {}
    stack: list[Any] = [graph]
    while stack:
        inside = stack.pop().get("definitions")
        for each in entries(inside.get("subgraphs")) if isinstance(inside, dict) else []:
            if isinstance(each, dict) and str(each.get("id")) not in found:
                found[str(each.get("id"))] = each
                stack.append(each)
    return found


def read_node(stored: Json, kinds: Kinds, subgraph: str) -> Node:
    """A node. subgraph: the name of the subgraph that it stands for, if it does."""
    kind = stored["type"] if isinstance(stored.get("type"), str) else shown(stored.get("type"))
    declared = kinds.inputs(kind)
    title = stored.get("title")
    if not isinstance(title, str) or not title:
        title = subgraph or kinds.title(kind)
    outputs = [str(slot.get("type", "*")) for slot in entries(stored.get("outputs")) if isinstance(slot, dict)]
    mode = stored["mode"] if isinstance(stored.get("mode"), int) else 0
    values, inputs = stored_values(declared, stored), _slots(declared, stored)
    return Node(str(stored.get("id")), kind, title, mode, inputs, outputs, values, stored)


def read_links(graph: Json) -> dict[str, Link]:
    """Links by id: lists (version 0.4) or objects (version 1), in a list or by id."""
    table = graph.get("links")
    found: dict[str, Link] = {}
    for key, stored in table.items() if isinstance(table, dict) else ((None, each) for each in entries(table)):
        if isinstance(stored, dict):
            fields = [stored.get(name) for name in ("origin_id", "origin_slot", "target_id", "target_slot")]
            key = stored.get("id", key)
        elif isinstance(stored, list) and len(stored) >= 5:
            key, *fields = stored[:5]
        else:
            continue
        origin, origin_slot, target, target_slot = fields
        found[str(key)] = Link(str(origin), _whole(origin_slot), str(target), _whole(target_slot))
    return found


def _whole(value: Any) -> int:
    """The number of a slot; -1, which no node has, for anything else."""
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and re.fullmatch("-?[0-9]{1,18}", value) else -1


def _slots(declared: Mapping[str, Input], stored: Json) -> list[Slot]:
    """The inputs of a node in the front end's order: sockets and then widgets as they are declared, then what the file
    has beside them."""
    listed = [slot for slot in entries(stored.get("inputs")) if isinstance(slot, dict) and "name" in slot]
    by_name = {str(slot["name"]): slot for slot in listed}
    slots = [Slot(name, spec.type, None) for name, spec in declared.items() if not is_widget(spec)]
    slots += [Slot(name, spec.type, None, is_widget=True) for name, spec in declared.items() if is_widget(spec)]
    known = {slot.name for slot in slots}
    for name, slot in by_name.items():
        if name not in known:
            slots.append(Slot(name, "*", None, is_widget="widget" in slot))
    for slot in slots:
        if slot.name in by_name:
            found = by_name[slot.name]
            link = found.get("link")
            slot.link = None if link is None else str(link)
            slot.type = str(found["type"]) if isinstance(found.get("type"), str | int) else slot.type
    return slots
