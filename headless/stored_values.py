"""Values of widgets in a file of the editor: a list in the order of the widgets, or a dictionary.

The front end makes the widgets of a node from what its class declares, with some of its own between them: what becomes
of a seed after a run, a button for uploads. Their values are in the list too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..nodes.widgets import Input
from .dynamic import DYNAMIC, as_choice, brought

Json = dict[str, Any]

# Types that the front end has a widget for (1.58.1, scripts/widgets.ts), beside those of a prompt's constants.
_OTHER_WIDGETS = frozenset(
    (
        "BOUNDING_BOX",
        "BOUNDING_BOXES",
        "CHART",
        "COLOR",
        "COLORS",
        "COMPOSITOR",
        "CURVE",
        "GALLERIA",
        "IMAGECOMPARE",
        "IMAGEUPLOAD",
        "MARKDOWN",
        "PAINTER",
        "RANGE",
        "RESOLUTION_PREVIEW",
        "TEXTAREA",
        "VIDEO_EDIT",
    )
)
_UPLOADS = ("image_upload", "animated_image_upload", "video_upload")
_EMPTY = {"INT": 0, "FLOAT": 0, "STRING": "", "BOOLEAN": False}
EDITOR_NODES = frozenset({"PrimitiveNode", "SetNode", "GetNode"})  # of one widget, which no class declares


def entries(value: Any) -> list[Any]:
    """A list of a file; none where another value stands in its place."""
    return value if isinstance(value, list) else []


def is_widget(spec: Input) -> bool:
    """Whether an input is filled in on the node itself."""
    if spec.options.get("forceInput"):
        return False
    kind = spec.options.get("widgetType", spec.type)
    return not spec.is_socket or kind == DYNAMIC or kind in _OTHER_WIDGETS or kind in _EMPTY


def stored_values(declared: Mapping[str, Input], stored: Json) -> Json:
    """The value of each widget that goes into a prompt, by name; what the file does not say has its default."""
    values, by_name = stored.get("widgets_values"), stored.get("widgets_values_named")
    if str(stored.get("type")) in EDITOR_NODES:
        return {"value": values[0]} if isinstance(values, list) and values else {}
    if isinstance(values, dict):
        by_name = values
    found: Json = {}
    if isinstance(by_name, dict):
        for name, spec in _widgets(declared, found):
            if spec is not None:
                found[name] = by_name.get(name, default(spec))
        return found
    listed = _without_sockets(declared, entries(values))
    for position, (name, spec) in enumerate(_widgets(declared, found)):
        if spec is not None:
            found[name] = listed[position] if position < len(listed) else default(spec)
    return found


def widget_names(declared: Mapping[str, Input], values: Json) -> list[str]:
    """All widgets of a node in order, those of the front end with a name that no input has."""
    return [name for name, _ in _widgets(declared, values)]


def default(spec: Input) -> Any:
    """What a widget says at first."""
    if spec.options.get("default") is not None:
        return spec.options["default"]
    choices = as_choice(spec).choices if spec.type == DYNAMIC else spec.choices
    return choices[0] if choices else _EMPTY.get(spec.type)


def _widgets(declared: Mapping[str, Input], values: Json) -> Iterator[tuple[str, Input | None]]:
    """The widgets of a node; None for those of the front end. A choice brings more: the caller writes each value into
    `values` before it asks for the next."""
    uploads = any(spec.options.get(kind) for spec in declared.values() for kind in _UPLOADS)
    required = [item for item in declared.items() if item[1].required]
    optional = [item for item in declared.items() if not item[1].required]
    for name, spec in required:
        yield from _of_input(name, spec, values)
    if uploads:
        yield "upload button", None
    for name, spec in optional:
        yield from _of_input(name, spec, values)


def _of_input(name: str, spec: Input, values: Json) -> Iterator[tuple[str, Input | None]]:
    if not is_widget(spec):
        return
    yield name, spec
    if spec.type == DYNAMIC:
        for key, nested in brought(spec, values.get(name)).items():
            yield from _of_input(f"{name}.{key}", nested, values)
    if _has_control(name, spec):
        yield f"{name} control", None
        if spec.type == "COMBO":
            yield f"{name} filter", None


def _has_control(name: str, spec: Input) -> bool:
    """Whether the front end adds a widget that says how the value changes after a run."""
    if "control_after_generate" in spec.options:
        return bool(spec.options["control_after_generate"])
    return spec.type == "INT" and name in ("seed", "noise_seed")


def _without_sockets(declared: Mapping[str, Input], listed: list[Any]) -> list[Any]:
    """Front ends before 1.16 also stored a value for each input that had to be a socket."""
    kept: list[bool] = []
    for spec in declared.values():
        forced = bool(spec.options.get("forceInput"))
        if forced or is_widget(spec):
            kept += [not forced, *([True] if spec.options.get("control_after_generate") else [])]
    if False in kept and len(kept) == len(listed):
        return [value for value, keep in zip(listed, kept, strict=True) if keep]
    return listed
