"""The new graph while it is made, and the report of what became of each old node."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...ltx_core.values import shown
from .values import Link, Missing

CONVERTED, KEPT, LEFT_OUT, REFUSED = "converted", "kept", "left out", "refused"


@dataclass(frozen=True)
class Line:
    """What became of one node of the old graph. fate: one of the four words above. text: how, and the remedy."""

    node_id: str
    title: str
    type: str
    fate: str
    text: str
    pack: str = ""

    def __str__(self) -> str:
        name = self.type if self.title in ("", self.type) else f"{self.title} ({self.type})"
        origin = f", of {self.pack}" if self.pack and self.fate in (KEPT, REFUSED) else ""
        return f"{self.node_id} {name}{origin}: {self.fate}" + (f"; {self.text}" if self.text else "")


class Blocked(Exception):  # noqa: N818 - not an error of the user: a rule ends here, and the node's line says why
    """A node that cannot be converted. fate: REFUSED for the node itself, LEFT_OUT for one behind such a node."""

    def __init__(self, reason: str, fate: str = REFUSED) -> None:
        super().__init__(reason)
        self.reason, self.fate = reason, fate


class NewGraph:
    """Nodes of the prompt that is made. The same node asked for twice is made once."""

    def __init__(self) -> None:
        self.prompt: dict[str, dict[str, Any]] = {}
        self.came_from: dict[str, str] = {}  # new id -> old id, for its place
        self._made: dict[str, str] = {}

    def add(self, class_type: str, inputs: Mapping[str, Any], *, title: str = "", old: str = "") -> str:
        """The id of a node; a link of the new graph may stand in its inputs."""
        said = {name: list(value) if isinstance(value, Link) else value for name, value in inputs.items()}
        said = {name: value for name, value in said.items() if value is not None}
        key = repr((class_type, sorted(said.items(), key=lambda item: item[0])))
        if key in self._made:
            return self._made[key]
        node_id = self._made[key] = str(len(self.prompt) + 1)
        meta = {"title": title} if title else {}
        self.prompt[node_id] = {"class_type": class_type, "inputs": said, "_meta": meta}
        self.came_from[node_id] = old
        return node_id

    def only_needed(self, outputs: list[str]) -> None:
        """Remove the nodes that none of `outputs` needs."""
        needed: set[str] = set()
        stack = list(outputs)
        while stack:
            node_id = stack.pop()
            if node_id not in needed:
                needed.add(node_id)
                values = self.prompt[node_id]["inputs"].values()
                stack += [value[0] for value in values if is_link(value) and value[0] in self.prompt]
        self.prompt = {node_id: node for node_id, node in self.prompt.items() if node_id in needed}


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


class Call:
    """One node of the old graph, while its rule runs."""

    def __init__(self, node_id: str, node: Mapping[str, Any], inputs: Mapping[str, Any], new: NewGraph) -> None:
        self.node_id, self.inputs, self.new = node_id, inputs, new
        self.type: str = node["class_type"]
        meta = node.get("_meta")
        self.meta: Mapping[str, Any] = meta if isinstance(meta, dict) else {}
        self.notes: list[str] = []
        self.outputs: list[str] = []  # nodes made here that save or show something
        self.frame_rate: Any = 25.0

    @property
    def title(self) -> str:
        title = self.meta.get("title")
        return title if isinstance(title, str) else ""

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an input. Raises Blocked if the node before it could not be converted."""
        value = self.inputs.get(name, default)
        if isinstance(value, Missing):
            raise Blocked(value.reason, LEFT_OUT)
        return value

    def needed(self, name: str, kind: type | tuple[type, ...], what: str) -> Any:
        """The value of an input that must be of a kind. Raises Blocked otherwise."""
        value = self.get(name)
        if isinstance(value, kind):
            return value
        got = "nothing" if value is None else "a link to a node that stays" if isinstance(value, Link) else repr(value)
        raise Blocked(f"its {name} is {got}; expected {what}; connect it, or convert the nodes before it first")

    def number(self, name: str, default: float = 0.0) -> float:
        """An input that must be a plain number here. Raises Blocked for a link or a text."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise Blocked(f"its {name} comes from another node; expected a number; write it into the widget")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise Blocked(f"its {name} is {shown(value)}; expected a number; correct it")
        return number

    def whole(self, name: str, default: int = 0, *, most: int = 2**31 - 1) -> int:
        """An input that must be a whole number here; a fraction is cut off, as ComfyUI does."""
        number = int(self.number(name, default))
        if abs(number) > most:
            raise Blocked(f"its {name} is {number:g}; expected at most {most}; correct it")
        return number

    def text(self, name: str, default: str = "") -> str:
        value = self.get(name, default)
        if not isinstance(value, str | int | float):
            raise Blocked(f"its {name} comes from another node; expected a text; write it into the widget")
        return str(value)

    def switch(self, name: str, default: bool = False) -> bool:
        return str(self.get(name, default)).lower() in ("true", "1", "enable", "yes")

    def add(self, class_type: str, inputs: Mapping[str, Any], *, title: str | None = None) -> Link:
        """Make a node, and the link of its first output."""
        for name, value in inputs.items():
            if value is not None and not isinstance(value, str | int | float | list | dict | Link):
                raise Blocked(
                    f"its {name} comes from a node that gives a {type(value).__name__.upper()}; expected a value or an "
                    "output that fits; connect another one"
                )
        shown = self.title if title is None else title
        return Link(self.new.add(class_type, inputs, title="" if shown == self.type else shown, old=self.node_id))

    def show(self, class_type: str, inputs: Mapping[str, Any]) -> Link:
        """Make a node that saves or shows something."""
        link = self.add(class_type, inputs)
        self.outputs.append(link.node)
        return link


Rule = Callable[[Call], tuple[Any, ...]]


def plain(value: Any) -> Any:
    """A number as a person writes it: 24.000000000000004 is 24."""
    if isinstance(value, float):
        value = round(value, 6)
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value
