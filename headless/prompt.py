"""ComfyUI's API-format prompts: changing inputs, finding all of their problems.

A prompt is `{id: {"class_type": name, "inputs": {name: constant or [id, output]}, "_meta": {"title": text}}}`. It is
checked by ComfyUI's rules (Comfy-Org/ComfyUI, execution.py `validate_inputs`), with two differences: every problem is
reported, and a constant on an input that only a link can fill counts as a problem.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ltx_core.errors import ConfigError
from ..ltx_core.values import shown
from ..nodes.widgets import Input, problem_with, types_match
from .dynamic import live_inputs

Prompt = dict[str, Any]  # of nodes, once it is validated
Classes = Mapping[str, type]

# ------------------------------------------------------------------------------------------------ changing


def set_inputs(prompt: Prompt, assignments: Sequence[str], classes: Classes) -> Prompt:
    """A copy of `prompt` with some inputs replaced.

    Args:
        assignments: each `TITLE.input=value`, or with the id for the title. The value of a text input is used verbatim,
            any other is read as JSON if it is valid JSON (25, 0.5, true, "quoted").

    Raises:
        ConfigError: a node or input that does not exist, or a title of several nodes; all problems in one message.
    """
    changed: Prompt = {node_id: _copied(node) for node_id, node in prompt.items()}
    problems: list[str] = []
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        title, dot, name = target.rpartition(".")
        if not equals or not dot:
            problems.append(f"got {shown(assignment)}; expected TITLE.input=value")
            continue
        matches = _titled(changed, title)
        for position in (match.start() for match in re.finditer(r"\.", target)):  # Save video.format.codec
            if not matches:
                title, name = target[:position], target[position + 1 :]
                matches = _titled(changed, title)
        if not matches:
            title, _, name = target.rpartition(".")
        if len(matches) != 1:
            titles = ", ".join(sorted({repr(node_title(changed, node_id)) for node_id in changed}))
            several = f"the nodes {', '.join(matches)}; use one of these ids"
            problems.append(
                f"{shown(assignment)}: {title!r} names {several if matches else f'no node; there are {titles}'}"
            )
            continue
        node = changed[matches[0]]
        node_class = _class_of(node, classes)
        declared = {} if node_class is None else live_inputs(node_class, node["inputs"])
        if name not in declared and name not in node["inputs"]:
            problems.append(f"{shown(assignment)}: {title!r} has no input {name!r}; it has {', '.join(declared)}")
            continue
        node["inputs"][name] = text if name in declared and declared[name].type == "STRING" else _json_or_text(text)
    if problems:
        raise ConfigError("\n".join(problems))
    return changed


def _titled(prompt: Prompt, title: str) -> list[str]:
    return [key for key, node in prompt.items() if _is_node(node) and title in (key, node_title(prompt, key))]


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, a number of more figures than Python reads, thousands of brackets
        return text


def _copied(node: Any) -> Any:
    """A node whose inputs can be changed. What is no node stays as it is, for `check` to name."""
    return {**node, "inputs": dict(node.get("inputs", {}))} if _is_node(node) else node


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs", {}), dict)


def _class_of(node: Any, classes: Classes) -> type | None:
    """The class of a node; None: it names none that exists."""
    name = node.get("class_type") if isinstance(node, dict) else None
    return classes.get(name) if isinstance(name, str) else None


# ------------------------------------------------------------------------------------------------ checking


@dataclass(frozen=True)
class Problem:
    """Something wrong with one node, or (node_id "") with the whole prompt."""

    node_id: str
    text: str


class PromptError(ConfigError):
    """A prompt that cannot run, with all of its problems."""

    def __init__(self, prompt: Prompt, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the prompt:"]
        for node_id in dict.fromkeys(problem.node_id for problem in problems):
            if node_id:
                lines.append(f"  {node_label(prompt, node_id)}")
            lines += [f"    - {problem.text}" for problem in problems if problem.node_id == node_id]
        super().__init__("\n".join(lines))


def check(prompt: Prompt, classes: Classes) -> None:
    """Check a prompt by ComfyUI's rules, without running anything; constants are converted in place, as in ComfyUI.

    Every node must have a known class. Inputs are checked only of nodes that an output node needs.

    Raises:
        PromptError: with all problems at once.
    """
    problems: list[Problem] = []
    for node_id, node in prompt.items():
        name = node.get("class_type") if isinstance(node, dict) else None
        if not isinstance(node, dict):
            text = f"got {shown(node)} in place of a node; expected {{class_type, inputs}}; remove the entry"
            problems.append(Problem(node_id, text))
        elif _class_of(node, classes) is None:
            missing = f"the node class {shown(name)} does not exist here{_pack(node)}"
            text = missing if name else "class_type is missing"
            problems.append(Problem(node_id, text))
        elif not _is_node(node):
            problems.append(Problem(node_id, f"inputs is {shown(node['inputs'])}; expected {{name: value}}"))
    broken = {problem.node_id for problem in problems}
    outputs = output_nodes(prompt, classes, broken)
    if not outputs and not broken:
        problems.append(Problem("", "no node saves or shows anything; add one, such as SaveVideo"))
    for node_id in needed_nodes(prompt, outputs, problems):
        if node_id not in broken:
            problems += [Problem(node_id, text) for text in _input_problems(prompt, node_id, classes)]
    if problems:
        raise PromptError(prompt, problems)


def _pack(node: dict[str, Any]) -> str:
    """Whose node it is, as newer front ends note it."""
    meta = node.get("_meta")
    names = [meta.get(key) for key in ("cnr_id", "aux_id")] if isinstance(meta, dict) else []
    name = next((name for name in names if isinstance(name, str) and name), None)
    if name == "comfy-core":
        return ": it is one of ComfyUI's own that has no stand-in; run the graph in ComfyUI, or leave the node out"
    return f": it belongs to the pack {name}; run the graph in ComfyUI, or leave the node out" if name else ""


def output_nodes(prompt: Prompt, classes: Classes, broken: set[str]) -> list[str]:
    return [
        node_id
        for node_id, node in prompt.items()
        if node_id not in broken and getattr(classes[node["class_type"]], "OUTPUT_NODE", False)
    ]


def needed_nodes(prompt: Prompt, outputs: Sequence[str], problems: list[Problem] | None = None) -> list[str]:
    """Nodes that the outputs need, each after its own sources. A cycle becomes a problem."""
    done: dict[str, None] = {}
    path: list[str] = []

    for output in outputs:
        stack: list[tuple[str, Iterator[str]]] = [(output, _sources(prompt, output))] if output not in done else []
        path[:] = [output]
        while stack:
            node_id, sources = stack[-1]
            source = next((candidate for candidate in sources if candidate not in done), None)
            if source is None:
                stack.pop()
                path.pop()
                done[node_id] = None
            elif source in path:
                if problems is not None:
                    loop = [*path[path.index(source) :], source]
                    problems.append(Problem("", "cycle: " + " -> ".join(node_label(prompt, member) for member in loop)))
            else:
                stack.append((source, _sources(prompt, source)))
                path.append(source)
    return list(done)


def _sources(prompt: Prompt, node_id: str) -> Iterator[str]:
    """Nodes that a node is linked to, as far as the links can be read."""
    inputs = prompt[node_id].get("inputs", {}) if isinstance(prompt[node_id], dict) else {}
    values = inputs.values() if isinstance(inputs, dict) else ()
    return iter([value[0] for value in values if is_link(value) and value[0] in prompt])


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def _input_problems(prompt: Prompt, node_id: str, classes: Classes) -> Iterator[str]:
    node = prompt[node_id]
    node_class: Any = classes[node["class_type"]]
    inputs = node.setdefault("inputs", {})
    validate = getattr(node_class, "VALIDATE_INPUTS", None)
    checked_by_node = set(inspect.getfullargspec(validate).args) if validate else set()
    received: dict[str, str] = {}
    declared = live_inputs(node_class, inputs)
    clean = True
    for name, spec in declared.items():
        if name not in inputs:
            text = f"{name}: required, but missing" if spec.required else None
        elif isinstance(inputs[name], list):
            text, received_type = _link_problem(prompt, name, inputs[name], spec, classes)
            if received_type is not None:
                received[name] = received_type
                if "input_types" in checked_by_node:
                    text = None
        else:
            text = _constant_problem(inputs, name, spec, ranges=name not in checked_by_node)
        if text:
            clean = False
            yield text
    if clean and hasattr(node_class, "problem"):
        constants = {name: value for name, value in inputs.items() if not is_link(value)}
        text = node_class.problem(constants)
        if text:
            clean = False
            yield text
    if validate and clean:
        known = {name: value for name, value in inputs.items() if name in checked_by_node and not is_link(value)}
        # As in ComfyUI, what is connected is there, and has no value yet.
        sockets = (name for name, spec in declared.items() if spec.is_socket and name in checked_by_node)
        known |= {name: None for name in sockets if name in inputs}
        if "input_types" in checked_by_node:
            known["input_types"] = received
        verdict = validate(**known) if known else True
        if verdict is not True:
            yield str(verdict)


def _link_problem(prompt: Prompt, name: str, link: Any, spec: Input, classes: Classes) -> tuple[str | None, str | None]:
    """The problem of a link, and the type that arrives through it (None if that is unknown)."""
    if not is_link(link):
        return f"{name}: got {shown(link)}; expected a link [node id, output number]", None
    source, slot = link
    if source not in prompt:
        return f"{name}: linked to node {source!r}, which is not in the prompt", None
    source_class: Any = _class_of(prompt[source], classes)
    if source_class is None:
        return None, None  # reported at the source
    outputs = source_class.RETURN_TYPES
    if not 0 <= slot < len(outputs):
        return f"{name}: linked to output {slot} of {node_label(prompt, source)}, which has {len(outputs)}", None
    if not types_match(outputs[slot], spec.type):
        return f"{name}: got {outputs[slot]} from {node_label(prompt, source)}; expected {spec.type}", outputs[slot]
    return None, outputs[slot]


_CONVERT: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


def _constant_problem(inputs: dict[str, Any], name: str, spec: Input, *, ranges: bool) -> str | None:
    value = inputs[name]
    if isinstance(value, dict) and "__value__" in value:  # a list that is not a link
        value = inputs[name] = value["__value__"]
    if spec.type in _CONVERT:
        try:
            value = inputs[name] = _CONVERT[spec.type](value)
        except (TypeError, ValueError, OverflowError):
            return f"{name}: got {shown(value)}; expected {spec.type}"
    elif spec.is_socket:
        return f"{name}: got the constant {shown(value)}; expected a link to a node that outputs {spec.type}"
    elif spec.type == "COMBO" and not isinstance(value, str | int | float):
        return f"{name}: got {shown(value)}; expected one of its choices"
    # A number is checked here even where the class checks it: all problems of a prompt are reported at once.
    return problem_with(name, value, spec) if ranges or spec.type in ("INT", "FLOAT") else None


def node_title(prompt: Prompt, node_id: str) -> str:
    """The title that the user sees on a node, otherwise its class."""
    node = prompt[node_id] if isinstance(prompt[node_id], dict) else {}
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return title if title and isinstance(title, str) else _class_name(prompt, node_id)


def node_label(prompt: Prompt, node_id: str) -> str:
    """A node's name in messages: title, class, id."""
    title, name = node_title(prompt, node_id), _class_name(prompt, node_id)
    return f'"{title}" ({node_id})' if name == title else f'"{title}" ({name}, {node_id})'


def _class_name(prompt: Prompt, node_id: str) -> str:
    node = prompt[node_id]
    name = node.get("class_type") if isinstance(node, dict) else None
    return name if name and isinstance(name, str) else "?"
