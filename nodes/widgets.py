"""Inputs of nodes: functions that declare one in a line, and a reader of declarations.

The tuples have ComfyUI's form of INPUT_TYPES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ltx_core.values import is_number, is_whole, shown

Declared = tuple[Any, dict[str, Any]]


# The node to connect to a socket of ours; the likeliest mistake is a native MODEL or VAE.
SOURCES = {
    "LTXKIT_MODEL": "Load Model (LTXKit)",
    "LTXKIT_VAE": "Load Model (LTXKit)",
    "LTXKIT_TEXT_ENCODER": "Load Text Encoder (LTXKit)",
    "LTXKIT_UPSCALER": "Load Latent Upscaler (LTXKit)",
    "LTXKIT_CONDITION": "Condition (LTXKit)",
    "LTXKIT_GUIDANCE": "Guidance (LTXKit)",
    "LTXKIT_LORA": "Train LoRA (LTXKit)",
    "LTXKIT_DATASET": "Dataset (LTXKit)",
}
# The node between a native output and a socket of ours.
BRIDGES = {
    "LTXKIT_MODEL": ("MODEL", "Model from ComfyUI (LTXKit)"),
    "LTXKIT_TEXT_ENCODER": ("CLIP", "Text Encoder from ComfyUI (LTXKit)"),
    "LTXKIT_VAE": ("VAE", "VAE from ComfyUI (LTXKit)"),
}


class SocketType(str):
    """The type of an input. In a message it names the node to connect: ComfyUI formats it into its own sentence about a
    link of the wrong type, which it puts on the input."""

    __slots__ = ()

    # A text hashes as one of the same letters; `__ne__` alone differs.
    def __ne__(self, other: object) -> bool:
        """ComfyUI asks `received != expected`. An output of any type may be linked: its value is checked when it
        arrives."""
        return other != "*" and str(self) != other

    def __format__(self, spec: str) -> str:
        remedy = f"; connect the node {SOURCES[self]!r}" if self in SOURCES else ""
        if self in BRIDGES:
            native, bridge = BRIDGES[self]
            remedy += f", or a {native} through {bridge!r}"
        return format(str(self) + remedy, spec)


class LeastDecimal(float):
    """The lower bound of a decimal. NaN is below it: ComfyUI asks `value < min`, which is false for an ordinary float,
    and would let NaN pass."""

    __slots__ = ()

    def __gt__(self, other: float) -> bool:
        return not other >= float(self)


class FileChoices(list[str]):
    """The choices of a widget for a file. What else `problem` accepts is a choice too, such as one shard of a set, or a
    name with the separators of Windows; ComfyUI asks with `in`."""

    def __init__(self, names: Iterable[str], problem: Callable[[object], str | None]) -> None:
        super().__init__(names)
        self.problem = problem

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or self.problem(name) is None


def link(socket: str, tooltip: str) -> Declared:
    """An input that only a link can fill."""
    return SocketType(socket), {"tooltip": tooltip}


def integer(default: int, low: int, high: int, tooltip: str) -> Declared:
    return "INT", {"default": default, "min": low, "max": high, "tooltip": tooltip}


def decimal(default: float, low: float, high: float, step: float, tooltip: str) -> Declared:
    return "FLOAT", {"default": default, "min": LeastDecimal(low), "max": high, "step": step, "tooltip": tooltip}


def text(default: str, tooltip: str, *, lines: bool = False) -> Declared:
    """lines: a field of several lines, in which ComfyUI replaces {a|b} by a or b."""
    options = {"multiline": True, "dynamicPrompts": True} if lines else {}
    return "STRING", {"default": default, **options, "tooltip": tooltip}


def switch(default: bool, tooltip: str) -> Declared:
    return "BOOLEAN", {"default": default, "tooltip": tooltip}


def choice(options: Iterable[str], tooltip: str) -> Declared:
    """The first option is the default."""
    return options if isinstance(options, FileChoices) else list(options), {"tooltip": tooltip}


def advanced(declared: Declared) -> Declared:
    """The same input, which front ends show only on request."""
    kind, options = declared
    return kind, {**options, "advanced": True}


def labelled(declared: Declared, label: str) -> Declared:
    """The same input, for which front ends show `label` instead of its name."""
    kind, options = declared
    return kind, {**options, "display_name": label}


def seed(tooltip: str) -> Declared:
    """A seed; ComfyUI adds a widget for its change after each run."""
    tooltip += " Only the lowest 32 bits count: seeds that differ by a multiple of 4294967296 are the same."
    return "INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True, "tooltip": tooltip}


def frame_rate(default: float, tooltip: str) -> Declared:
    return decimal(default, 1.0, 240.0, 0.01, tooltip)


# ------------------------------------------------------------------------------------------------ reading declarations


@dataclass(frozen=True)
class Input:
    """The declaration of one input; a list of choices has the type COMBO."""

    type: str
    required: bool
    choices: Sequence[Any] | None
    options: Mapping[str, Any]

    @property
    def is_socket(self) -> bool:
        """Whether only a link can fill it."""
        return self.type not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def declared_inputs(node_class: Any) -> dict[str, Input]:
    """The inputs that a node class declares, required ones first, by name."""
    return read_inputs(node_class.INPUT_TYPES())


def read_inputs(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Input]:
    """The inputs in a declaration, required ones first, by name."""
    inputs: dict[str, Input] = {}
    for group in ("required", "optional"):
        for name, spec in groups.get(group, {}).items():
            kind, options = spec[0], spec[1] if len(spec) > 1 else {}
            choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
            inputs[name] = Input("COMBO" if isinstance(kind, list) else kind, group == "required", choices, options)
    return inputs


def problem_with(name: str, value: Any, spec: Input) -> str | None:
    """Why an input cannot have this constant, as `name: got X; expected Y`; None: it can.

    By the rules of ComfyUI (execution.py, `validate_inputs`), and infinity is refused even where there is no bound.
    """
    if spec.type in ("INT", "FLOAT"):
        if spec.type == "INT" and not is_whole(value):
            return f"{name}: got {shown(value)}; expected a whole number"
        if spec.type == "FLOAT" and not is_number(value):
            return f"{name}: got {shown(value)}; expected a finite number"
        low, high = spec.options.get("min"), spec.options.get("max")
        if low is not None and value < low:
            return f"{name}: got {shown(value)}; expected at least {low}"
        if high is not None and value > high:
            return f"{name}: got {shown(value)}; expected at most {high}"
    if spec.type == "STRING" and not isinstance(value, str):
        return f"{name}: got {shown(value)}; expected text"
    if isinstance(spec.choices, FileChoices):
        problem = None if value in spec.choices else spec.choices.problem(value)
        return f"{name}: {problem}" if problem else None
    if spec.choices is not None and value not in list(spec.choices):
        choices = ", ".join(repr(choice) for choice in spec.choices) if len(spec.choices) <= 20 else ""
        return f"{name}: got {shown(value)}; expected one of {choices or f'{len(spec.choices)} choices'}"
    return None


def types_match(received: str, expected: str) -> bool:
    """Whether an output may be linked to an input; `*` and comma-separated types as in ComfyUI."""
    if "*" in (received, expected):
        return True
    return set(received.split(",")) <= set(expected.split(","))
