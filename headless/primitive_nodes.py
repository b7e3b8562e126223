"""Stand-ins for ComfyUI's nodes that hold a value, and for the one that shows a value as text (core 0.33:
comfy_extras/nodes_primitive.py, nodes_preview_any.py)."""

from __future__ import annotations

import json
import sys
from typing import Any

from .folders import say


class PrimitiveInt:
    CATEGORY = "utils/primitive"
    RETURN_TYPES: tuple[str, ...] = ("INT",)
    FUNCTION = "hold"
    VALUE: tuple[str, dict[str, Any]] = (
        "INT",
        {"default": 0, "min": -sys.maxsize, "max": sys.maxsize, "control_after_generate": "fixed"},
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": cls.VALUE}}

    def hold(self, value: Any) -> tuple[Any]:
        return (value,)


class PrimitiveFloat(PrimitiveInt):
    RETURN_TYPES = ("FLOAT",)
    VALUE = ("FLOAT", {"default": 0.0, "min": -sys.maxsize, "max": sys.maxsize, "step": 0.1})


class PrimitiveString(PrimitiveInt):
    RETURN_TYPES = ("STRING",)
    VALUE = ("STRING", {"default": "", "multiline": False})


class PrimitiveStringMultiline(PrimitiveInt):
    RETURN_TYPES = ("STRING",)
    VALUE = ("STRING", {"default": "", "multiline": True})


class PrimitiveBoolean(PrimitiveInt):
    RETURN_TYPES = ("BOOLEAN",)
    VALUE = ("BOOLEAN", {"default": False})


class PreviewAny:
    CATEGORY = "utils"
    RETURN_TYPES = ("STRING",)
    FUNCTION = "show"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"source": ("*", {})}}

    def show(self, source: Any) -> dict[str, Any]:
        """Says the value: there is no other place to show it."""
        if isinstance(source, str | int | float):
            text = str(source)
        else:
            try:
                text = json.dumps(source, indent=4, ensure_ascii=False)
            except (TypeError, ValueError):
                text = str(source)
        say(text)
        return {"ui": {"text": (text,)}, "result": (text,)}


PRIMITIVE_NODES: dict[str, type] = {
    "PreviewAny": PreviewAny,
    "PrimitiveBoolean": PrimitiveBoolean,
    "PrimitiveFloat": PrimitiveFloat,
    "PrimitiveInt": PrimitiveInt,
    "PrimitiveString": PrimitiveString,
    "PrimitiveStringMultiline": PrimitiveStringMultiline,
}

PRIMITIVE_TITLES = {
    "PreviewAny": "Preview as Text",
    "PrimitiveBoolean": "Boolean",
    "PrimitiveFloat": "Float",
    "PrimitiveInt": "Int",
    "PrimitiveString": "Text",
    "PrimitiveStringMultiline": "Text (Multiline)",
}
