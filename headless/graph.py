"""Graphs in the editor's own format, turned into prompts as ComfyUI's front end turns them.

A file has one graph and the definitions of its subgraphs. A subgraph runs once for each node that stands for it: every
such place is a `Level`, and a node in it has the id `host:node`, at any depth. A prompt has neither wires nor places:
the source of every input is looked up through reroutes, bypassed nodes and the borders of subgraphs until it is a node
that runs, or a value.

The rules are those of the front end 1.58.1 (Comfy-Org/ComfyUI_frontend, `graphToPrompt`, `ExecutableNodeDTO`,
`SubgraphNode`), of which every graph that it ships is a test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..ltx_core.errors import ConfigError
from .stored_graph import Json, Kinds, Link, Named, Node, Slot, read_definitions, read_links, read_node
from .stored_values import entries, widget_names
from .texts import one_of_each

RUNS, MUTED, BYPASSED = 0, 2, 4  # other modes ("on event", "on trigger") are left from LiteGraph, and run
INPUT_SIDE, OUTPUT_SIDE = "-10", "-20"  # ids of the two borders of a subgraph
NOTES = frozenset({"Note", "MarkdownNote"})
GROUP_NODE = re.compile(r"workflow[>/]")


class Source(NamedTuple):
    """Where an input's value comes from: an output of a node that runs, or a value itself."""

    node: str
    output: int
    value: Any = None
    is_value: bool = False


@dataclass(frozen=True)
class Converted:
    """A prompt, all nodes of its graph, and the titles of those that are muted or bypassed."""

    prompt: Json
    named: tuple[Named, ...]
    left_out: tuple[str, ...]


def is_graph(data: Any) -> bool:
    """Whether this is a file of the editor."""
    return isinstance(data, dict) and isinstance(data.get("nodes"), list)


def convert(graph: Json, kinds: Kinds) -> Converted:
    """The prompt of a graph.

    Raises:
        ConfigError: a link that leads nowhere, a subgraph inside itself or without its definition, nodes of no known
            class that something needs; all of one kind in one message, each with the title of its node.
    """
    root = Level(graph, _File(kinds, read_definitions(graph)))
    prompt: Json = {}
    named: list[Named] = []
    left_out: list[str] = []
    problems: list[str] = []
    for level, node in root.everything():
        alias = node.properties.get("Node name for S&R", node.type)
        named.append(Named(level.id(node), alias, node.title, dict(node.values)))
        if node.mode in (MUTED, BYPASSED):
            left_out.append(node.title)
        elif not level.is_virtual(node):
            try:
                entry = level.entry(node)
            except ConfigError as error:
                problems.append(str(error))
                continue
            if entry is not None:
                prompt[level.id(node)] = entry
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    for entry in prompt.values():  # what comes from a node that is left out
        for name, value in list(entry["inputs"].items()):
            if isinstance(value, list) and value[0] not in prompt:
                del entry["inputs"][name]
    return Converted(prompt, tuple(named), tuple(left_out))


MOST_NODES = 100_000


@dataclass
class _File:
    """What all levels of a file share. nodes: how many they have so far."""

    kinds: Kinds
    definitions: Mapping[str, Json]
    nodes: int = 0

    def count(self, more: int) -> None:
        """Raises ConfigError: subgraphs in subgraphs can be a short file and have more nodes than fit into memory."""
        self.nodes += more
        if self.nodes > MOST_NODES:
            raise ConfigError(
                f"got a graph of more than {MOST_NODES} nodes; expected fewer; use fewer subgraphs in subgraphs"
            )


# ------------------------------------------------------------------------------------------------ one level


class Level:
    """A graph in its place: the file's own, or the definition of a subgraph in the place of the node `host`."""

    def __init__(
        self,
        graph: Json,
        file: _File,
        outer: tuple[Level, Node] | None = None,
        chain: tuple[str, ...] = (),
    ) -> None:
        self.graph, self.kinds, self.definitions = graph, file.kinds, file.definitions
        self.outer, self.chain = outer, chain
        self.path: str = "" if outer is None else f"{outer[0].id(outer[1])}:"
        self.links = read_links(graph)
        listed = [stored for stored in entries(graph.get("nodes")) if isinstance(stored, dict)]
        file.count(len(listed))
        self.nodes = {str(stored.get("id")): self._node(stored) for stored in listed}
        self.inner = {
            node.id: Level(self.definitions[node.type], file, (self, node), (*chain, node.type))
            for node in self.nodes.values()
            if node.type in self.definitions and self._may_contain(node)
        }
        for node_id, level in self.inner.items():
            level.promote(self.nodes[node_id])
        self._apply_primitives()

    def _may_contain(self, node: Node) -> bool:
        if node.type in self.chain:
            raise ConfigError(
                f"got the subgraph {self.label(node)}, which contains itself; expected a subgraph of other nodes; "
                "unpack it in ComfyUI"
            )
        return node.mode not in (MUTED, BYPASSED)

    def id(self, node: Node) -> str:
        return f"{self.path}{node.id}"

    def label(self, node: Node) -> str:
        kind = "" if node.type in self.definitions or node.type == node.title else f"{node.type}, "
        return f'"{node.title}" ({kind}{self.id(node)})'

    def everything(self) -> Iterator[tuple[Level, Node]]:
        for node in self.nodes.values():
            yield self, node
            if node.id in self.inner:
                yield from self.inner[node.id].everything()

    def is_virtual(self, node: Node) -> bool:
        """Whether a node exists in the editor alone."""
        return node.type in _VIRTUAL or node.type in NOTES or node.type in self.definitions

    def _node(self, stored: Json) -> Node:
        definition = self.definitions.get(str(stored.get("type")))
        name = "" if definition is None else str(definition.get("name") or "Subgraph")
        return read_node(stored, self.kinds, name)

    # -------------------------------------------------------------------------------- the widgets of a subgraph

    def promote(self, host: Node) -> None:
        """Give the node that stands for this level the values of its widgets, and this level what only they say."""
        stored = host.stored.get("widgets_values")
        said = entries(stored)
        inside = {name: place for name in self._input_names() if (place := self._promoted(name)) is not None}
        host.values = {name: node.values.get(widget) for name, (_, node, widget) in inside.items()}
        # Some front ends also stored what becomes of a seed after a run.
        position, with_controls = 0, len(said) > len(inside) and not host.properties.get("proxyWidgets")
        for name in inside:
            if position < len(said) and said[position] is not None:
                host.values[name] = said[position]
            position += 1
            level, node, widget = inside[name]
            if with_controls and widget_names(level.kinds.inputs(node.type), node.values).count(f"{widget} control"):
                position += 1
        for slot in host.inputs:
            slot.is_widget = slot.name in inside
        self._read_proxies(host, said, inside)

    def _read_proxies(self, host: Node, said: list[Any], inside: Mapping[str, tuple[Level, Node, str]]) -> None:
        """`proxyWidgets` of front ends before 1.58: widgets inside that the host shows without an input for them."""
        proxies = host.properties.get("proxyWidgets")
        for index, proxy in enumerate(entries(proxies)):
            if not isinstance(proxy, list) or len(proxy) < 2 or index >= len(said) or said[index] is None:
                continue
            node_id, widget = str(proxy[0]), str(proxy[1])
            direct = [name for name in inside if self._first_target(name) == (node_id, widget)]
            node = self.nodes.get(node_id)
            if node_id == "-1" and widget in host.values:
                host.values[widget] = said[index]
            elif direct:
                host.values[direct[0]] = said[index]
            elif node is not None:
                widget = widget if widget in node.values else re.sub(r"^(\s*\d+\s*:\s*)+", "", widget)
                slot = node.slot(widget)
                if widget in node.values and (slot is None or slot.link is None):
                    node.values[widget] = said[index]
                    self._apply_primitives()

    def _input_slots(self) -> list[Json]:
        return [slot for slot in entries(self.graph.get("inputs")) if isinstance(slot, dict)]

    def _input_names(self) -> list[str]:
        return [str(slot.get("name")) for slot in self._input_slots()]

    def _from_outside(self, name: str) -> Iterator[tuple[Node, Slot]]:
        """The inputs inside that an input of the subgraph leads to."""
        index = self._input_names().index(name)
        ids = [str(each) for each in entries(self._input_slots()[index].get("linkIds"))]
        ids += [key for key, link in self.links.items() if link.origin == INPUT_SIDE and link.origin_slot == index]
        for key in dict.fromkeys(ids):
            for node in self.nodes.values():
                yield from ((node, slot) for slot in node.inputs if slot.link == key)

    def _promoted(self, name: str) -> tuple[Level, Node, str] | None:
        """The widget that an input of the subgraph fills, of the first node that has one."""
        for node, slot in self._from_outside(name):
            if slot.is_widget:
                return self, node, slot.name
        return None

    def _first_target(self, name: str) -> tuple[str, str] | None:
        place = self._promoted(name)
        return None if place is None else (place[1].id, place[2])

    def _apply_primitives(self) -> None:
        """A primitive writes its value into the widgets that it is linked to; no link remains in the prompt."""
        for link in self.links.values():
            primitive, target = self.nodes.get(link.origin), self.nodes.get(link.target)
            if primitive is None or primitive.type != "PrimitiveNode" or target is None:
                continue
            if "value" not in primitive.values:
                continue
            for slot in target.inputs:
                if self.links.get(slot.link or "") is link and slot.name in target.values:
                    target.values[slot.name] = primitive.values["value"]

    # -------------------------------------------------------------------------------- entries of the prompt

    def entry(self, node: Node) -> Json | None:
        """A node of the prompt. None: one of an unknown class that nothing is connected to, such as another pack's
        panel.

        Raises:
            ConfigError: a link that leads nowhere.
        """
        inputs: Json = {}
        declared = self.kinds.inputs(node.type)
        for name, value in node.values.items():
            if isinstance(value, str) and name in declared and declared[name].options.get("dynamicPrompts"):
                value = one_of_each(value)
            inputs[name] = {"__value__": value} if isinstance(value, list) else value
        for index, slot in enumerate(node.inputs):
            source = self.input_source(node, index, ())
            if source is not None and source.is_value:
                inputs[slot.name] = {"__value__": source.value} if isinstance(source.value, list) else source.value
            elif source is not None:
                inputs[slot.name] = [source.node, source.output]
        if node.type not in self.kinds.classes:
            if GROUP_NODE.match(node.type):
                raise ConfigError(
                    f"got {self.label(node)}, a group node; expected a subgraph; open the file in ComfyUI, which "
                    "makes one of it, and save it again"
                )
            used = any(link.origin == node.id for link in self.links.values())
            if not used and not any(slot.link for slot in node.inputs):
                return None
        meta = {"title": node.title}
        for key in ("cnr_id", "aux_id", "ver"):
            if isinstance(node.properties.get(key), str):
                meta[key] = node.properties[key]
        return {"inputs": inputs, "class_type": node.type, "_meta": meta}

    # -------------------------------------------------------------------------------- where a value comes from

    def input_source(self, node: Node, index: int, seen: tuple[str, ...], wanted: str | None = None) -> Source | None:
        """What an input receives. None: nothing is connected, or nothing that runs. wanted: the type at the far end."""
        slot = node.inputs[index]
        key = f"{self.id(node)}[{index}]"
        if key in seen:
            raise ConfigError(
                f"{self.label(node)}: {slot.name} is linked to itself in a circle; remove one of the links"
            )
        seen = (*seen, key)
        if slot.link is None:
            return None
        link = self.links.get(slot.link)
        if link is None:
            raise ConfigError(
                f"{self.label(node)}: {slot.name} has the link {slot.link}, which the file does not list; connect it "
                "again in ComfyUI"
            )
        if link.origin == INPUT_SIDE and self.outer is not None:
            return self._source_outside(node, slot, link, seen)
        origin = self.nodes.get(link.origin)
        if origin is None:
            raise ConfigError(
                f"{self.label(node)}: {slot.name} is linked to node {self.path}{link.origin}, which the file does not "
                "have; connect it again in ComfyUI"
            )
        return self.output_source(origin, link.origin_slot, wanted or slot.type, seen)

    def _source_outside(self, node: Node, slot: Slot, link: Link, seen: tuple[str, ...]) -> Source | None:
        assert self.outer is not None  # the caller has asked
        level, host = self.outer
        names = self._input_names()
        if not 0 <= link.origin_slot < len(names):
            raise ConfigError(
                f"{self.label(node)}: {slot.name} is linked to input {link.origin_slot} of its subgraph, which has "
                f"{len(names)}; connect it again in ComfyUI"
            )
        name = names[link.origin_slot]
        for index, outer_slot in enumerate(host.inputs):
            if outer_slot.name == name and outer_slot.link is not None:
                return level.input_source(host, index, seen)
        return Source("", -1, host.values[name], is_value=True) if name in host.values else None

    def output_source(self, node: Node, slot: int, wanted: str, seen: tuple[str, ...]) -> Source | None:
        """What comes out of an output, for an input of the type `wanted`."""
        if node.mode == MUTED:
            return None
        if node.mode == BYPASSED:
            index = _passed_on(node, slot, wanted)
            return None if index is None else self.input_source(node, index, seen)
        if node.id in self.inner:
            return self.inner[node.id].result(slot, wanted, seen)
        if node.type in _VIRTUAL:
            return _VIRTUAL[node.type](self, node, slot, wanted, seen)
        return Source(self.id(node), slot)

    def result(self, slot: int, wanted: str, seen: tuple[str, ...]) -> Source | None:
        """What comes out of an output of this subgraph."""
        ends = [link for link in self.links.values() if link.target == OUTPUT_SIDE and link.target_slot == slot]
        if not ends:
            return None
        if ends[0].origin == INPUT_SIDE:
            assert self.outer is not None  # only a subgraph has borders
            border = Node(OUTPUT_SIDE, "", self.outer[1].title, RUNS, [], [], {}, {})
            return self._source_outside(border, Slot(f"output {slot}", wanted, None), ends[0], seen)
        origin = self.nodes.get(ends[0].origin)
        if origin is None:
            assert self.outer is not None
            level, host = self.outer
            raise ConfigError(
                f"{level.label(host)}: its output {slot} is linked to node {self.path}{ends[0].origin}, which the file "
                "does not have; connect it again in ComfyUI"
            )
        return self.output_source(origin, ends[0].origin_slot, wanted, seen)


# ------------------------------------------------------------------------------------------------ nodes of the editor

Passes = Callable[[Level, Node, int, str, tuple[str, ...]], Source | None]


def _reroute(level: Level, node: Node, slot: int, wanted: str, seen: tuple[str, ...]) -> Source | None:
    return level.input_source(node, slot, seen, wanted) if slot < len(node.inputs) else None


def _nothing(*_: Any) -> None:
    """A primitive has written its value already."""


def _get(level: Level, node: Node, slot: int, wanted: str, seen: tuple[str, ...]) -> Source | None:
    """Get, of ComfyUI-KJNodes: a wireless link to the Set of the same name, in this graph or one around it."""
    name = node.values.get("value")
    place: Level | None = level
    while place is not None:
        for other in place.nodes.values():
            if other.type == "SetNode" and other.values.get("value") == name and other.inputs:
                return place.output_source(other, slot, wanted, seen)
        place = place.outer[0] if place.outer else None
    raise ConfigError(f"{level.label(node)}: gets {name!r}, which no Set node of the graph sets; connect it directly")


_VIRTUAL: dict[str, Passes] = {
    "Reroute": _reroute,
    "PrimitiveNode": _nothing,
    "SetNode": _reroute,
    "GetNode": _get,
}


def _passed_on(node: Node, slot: int, wanted: str) -> int | None:
    """The input that a bypassed node passes on in the place of an output: the one beside it if it fits, otherwise the
    first of the very type, otherwise the first that fits."""
    if not node.inputs:
        return None
    if wanted in ("*", ""):
        return slot if slot < len(node.inputs) else 0
    out = node.outputs[slot] if slot < len(node.outputs) else wanted

    def fits(index: int) -> bool:
        return _joins(node.inputs[index].type, out) and _joins(node.inputs[index].type, wanted)

    if slot < len(node.inputs) and fits(slot):
        return slot
    exact = [index for index, each in enumerate(node.inputs) if each.type == wanted]
    return next(iter(exact), next((index for index in range(len(node.inputs)) if fits(index)), None))


def _joins(one: str, other: str) -> bool:
    """LiteGraph's isValidConnection."""
    if one in ("", "*", "0") or other in ("", "*", "0"):
        return True
    return bool(set(one.lower().split(",")) & set(other.lower().split(",")))
