"""A prompt of any nodes into one of ours, node by node, each after those that it is linked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...ltx_core.errors import ConfigError
from ...nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ..runner import all_nodes
from . import core_rules, other_rules, pack_rules
from .graph import CONVERTED, KEPT, LEFT_OUT, Blocked, Call, Line, NewGraph, Rule, is_link, plain
from .known import OF_CORE, pack_of
from .sampling import encoded, picture_link, schedule_link
from .values import (
    Clip,
    Guider,
    Latent,
    Levels,
    Link,
    Missing,
    Model,
    Noise,
    Other,
    Picture,
    Sampler,
    Sigmas,
    Text,
    Vae,
)

RULES: Mapping[str, Rule] = {**core_rules.RULES, **pack_rules.RULES, **other_rules.RULES}
CORE = "ComfyUI"
MOST_OUTPUTS = 256  # of a node of another pack, which does not say how many it has
BRIDGES = {"MODEL": "LTXKitConvertModelToNative", "VAE": "LTXKitConvertVAEToNative"}
_CORE_IDS = frozenset({"comfy-core", "comfyanonymous/ComfyUI", "Comfy-Org/ComfyUI"})


@dataclass(frozen=True)
class Migrated:
    """prompt: of our nodes, and those that stay. report: one line for each node of the old graph. places: the old node
    that each new one comes from. missing: packs that the new prompt still needs, with their node types."""

    prompt: dict[str, dict[str, Any]]
    report: tuple[Line, ...]
    places: Mapping[str, str]
    missing: Mapping[str, tuple[str, ...]]


class _Kept:
    """All outputs of a node that stays."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id

    def __getitem__(self, slot: int) -> Link:
        return Link(self.node_id, slot)

    def __len__(self) -> int:
        return MOST_OUTPUTS


def convert(prompt: Mapping[str, Any]) -> Migrated:
    """Our prompt for a prompt of native nodes, of ComfyUI-LTXVideo's and of other packs'.

    Raises:
        ConfigError: a circle, a node without a class, or nothing that saves or shows something remains; the message
            has the report.
    """
    new = NewGraph()
    made: dict[str, Any] = {}
    report: list[Line] = []
    shown: list[str] = []
    rate = _frame_rate(prompt)
    for node_id in _in_order(prompt):
        node = prompt[node_id]
        call = Call(node_id, node, _inputs(node, made), new)
        call.frame_rate = rate
        try:
            outputs, fate = _outputs(call)
        except Blocked as blocked:
            made[node_id] = Missing(_reason(call, blocked))
            report.append(_line(call, blocked.fate, blocked.reason))
            continue
        made[node_id] = outputs
        shown += call.outputs
        report.append(_line(call, fate, "; ".join(call.notes)))
    if not shown:
        lines = "\n".join(f"  {line}" for line in report)
        raise ConfigError(
            "got a graph of which nothing remains that saves or shows a result; expected one whose nodes can be "
            f"converted; see what became of each node, and follow the remedies\n{lines}"
        )
    new.only_needed(shown)
    _load_vaes_with_models(new)
    new.only_needed(shown)
    return Migrated(new.prompt, tuple(report), new.came_from, _missing(new))


def _in_order(prompt: Mapping[str, Any]) -> list[str]:
    """Nodes, each after its sources, otherwise in the order of the file. Raises ConfigError for a circle."""
    done: dict[str, None] = {}
    for first in prompt:
        stack, path = [first], set()
        while stack:
            node_id = stack[-1]
            sources = [source for source in _sources(prompt, node_id) if source not in done]
            if node_id in done or not sources:
                done[node_id] = None
                path.discard(stack.pop())
            elif node_id in path or any(source in path for source in sources):
                raise ConfigError(
                    f"got a circle of links through node {node_id}; expected a graph without one; remove one of its "
                    "links in ComfyUI"
                )
            else:
                path.add(node_id)
                stack += sources
    return list(done)


def _sources(prompt: Mapping[str, Any], node_id: str) -> list[str]:
    node = prompt[node_id]
    if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
        raise ConfigError(f"got node {node_id} without class_type; expected one in every node; export the graph again")
    inputs = node.get("inputs", {})
    if not isinstance(inputs, dict):
        raise ConfigError(f"got inputs of node {node_id} as {inputs!r}; expected {{name: value}}; export it again")
    return [value[0] for value in inputs.values() if is_link(value) and value[0] in prompt]


def _inputs(node: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a node's inputs: what its sources became, and constants."""
    found: dict[str, Any] = {}
    for name, value in node.get("inputs", {}).items():
        if not is_link(value):
            found[name] = value["__value__"] if isinstance(value, dict) and "__value__" in value else value
            continue
        source = made.get(value[0])
        if isinstance(source, Missing) or source is None:
            found[name] = source or Missing(f"its {name} is linked to node {value[0]}, which is not in the graph")
        elif 0 <= value[1] < len(source):
            found[name] = source[value[1]]
        else:
            found[name] = Missing(
                f"its {name} is linked to output {value[1]} of node {value[0]}, which has no such one"
            )
    return found


def _outputs(call: Call) -> tuple[Any, str]:
    if call.type in NODE_CLASS_MAPPINGS:
        return _kept(call), KEPT
    rule = RULES.get(call.type)
    if rule is not None:
        try:
            return rule(call), CONVERTED
        except ConfigError as error:
            raise Blocked(str(error)) from error
        except ArithmeticError as error:
            raise Blocked(f"its values are beyond what can be computed ({error}); correct them") from error
    return _kept(call), KEPT


def _kept(call: Call) -> Any:
    """The node itself, with links to what its sources became."""
    ours = call.type in NODE_CLASS_MAPPINGS
    inputs = {name: _as_input(call, name, call.get(name), ours=ours) for name in call.inputs}
    link = call.add(call.type, inputs)
    said = {name: call.meta[name] for name in ("cnr_id", "aux_id", "ver") if name in call.meta}
    call.new.prompt[link.node]["_meta"].update(said)
    known: Any = all_nodes().get(call.type)
    outputs = getattr(known, "RETURN_TYPES", None)
    if getattr(known, "OUTPUT_NODE", False) or call.meta.get("is_output"):
        call.outputs.append(link.node)
    return _Kept(link.node) if outputs is None else [Link(link.node, slot) for slot in range(len(outputs))]


def _as_input(call: Call, name: str, value: Any, *, ours: bool) -> Any:
    """A value as an input of a node that stays. Raises Blocked for what is no node of its own here."""
    if isinstance(value, Model | Vae | Clip):
        if ours:
            return value.link
        kind = {Model: "MODEL", Vae: "VAE", Clip: "CLIP"}[type(value)]
        bridge = BRIDGES.get(kind, "")
        if bridge in NODE_CLASS_MAPPINGS:
            call.note(f"{NODE_DISPLAY_NAME_MAPPINGS[bridge]} gives it ComfyUI's {kind}")
            return call.add(bridge, {kind.lower(): value.link}, title="")
        raise Blocked(
            f"its {name} takes a native {kind}, and LTXKit's is another; keep ComfyUI's own loader for "
            "it, and leave this node out of the migration"
        )
    if isinstance(value, Latent):
        if value.conditions:
            call.note(f"the pictures that its {name} had to show are left out: Sample takes them as conditions")
        return value.link
    if isinstance(value, Picture):
        return picture_link(call, value)
    if isinstance(value, Text):
        return encoded(call, value, replace(value, text=""))[0]
    if isinstance(value, Sigmas):
        return schedule_link(call, value, 1.0, fresh=False)
    if isinstance(value, Guider | Noise | Sampler | Levels | Other):
        kind = "LIST" if isinstance(value, Levels) else type(value).__name__.upper()
        raise Blocked(f"its {name} takes a {kind}, which is a part of Sample here; replace the node by Sample (LTXKit)")
    return plain(value) if isinstance(value, float) else value


def _reason(call: Call, blocked: Blocked) -> str:
    """What nodes behind one that is not converted say."""
    name = call.type if call.title in ("", call.type) else f"{call.title} ({call.type})"
    return blocked.reason if blocked.fate == LEFT_OUT else f"it needs {name} ({call.node_id}), which is not converted"


def _line(call: Call, fate: str, text: str) -> Line:
    pack = _pack(call.type, call.meta)
    return Line(call.node_id, call.title, call.type, fate, text, pack)


def _pack(class_type: str, meta: Mapping[str, Any]) -> str:
    pack = pack_of(class_type, meta)
    if class_type in NODE_CLASS_MAPPINGS:
        return ""
    return (
        CORE if pack in _CORE_IDS or class_type in OF_CORE or class_type in all_nodes() else pack or "an unknown pack"
    )


def _missing(new: NewGraph) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for node in new.prompt.values():
        pack = _pack(node["class_type"], node["_meta"])
        if pack and pack != CORE:
            found.setdefault(pack, {})[node["class_type"]] = None
    return {pack: tuple(types) for pack, types in found.items()}


def _frame_rate(prompt: Mapping[str, Any]) -> Any:
    """The rate that the graph's prompts say; ComfyUI's own default without one."""
    for node in prompt.values():
        if (
            isinstance(node, dict)
            and node.get("class_type") == "LTXVConditioning"
            and isinstance(node.get("inputs"), dict)
        ):
            rate = node["inputs"].get("frame_rate")
            if isinstance(rate, int | float) and not isinstance(rate, bool) and rate >= 1:
                return plain(rate)
    return 25


def _load_vaes_with_models(new: NewGraph) -> None:
    """A VAE of its own file is an input of the node that loads the model."""
    alone = [key for key, node in new.prompt.items() if node["inputs"].keys() == {"vae_name"}]
    whole = [key for key, node in new.prompt.items() if node["class_type"] == "LTXKitLoadModel" and key not in alone]
    for key in alone:
        if not whole:
            raise ConfigError(
                "got a VAE without a model; expected both: Load Model loads them together; add the node of the model"
            )
        new.prompt[whole[0]]["inputs"]["vae_name"] = new.prompt[key]["inputs"]["vae_name"]
        for node in new.prompt.values():
            for name, value in node["inputs"].items():
                if is_link(value) and value[0] == key:
                    node["inputs"][name] = [whole[0], 1]


def summary(report: Sequence[Line]) -> str:
    """How many nodes met each fate."""
    counts: dict[str, int] = {}
    for line in report:
        counts[line.fate] = counts.get(line.fate, 0) + 1
    return ", ".join(f"{count} {fate}" for fate, count in counts.items())
