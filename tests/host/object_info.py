"""Describes node classes as a ComfyUI server does: for the front end, and for a comparison with a server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ltxkit.nodes import NODE_DISPLAY_NAME_MAPPINGS

# ComfyUI's NODE_DISPLAY_NAME_MAPPINGS for these nodes; other nodes are shown under their ids.
CORE_DISPLAY_NAMES = {
    "ConditioningCombine": "Conditioning (Combine)",
    "CreateVideo": "Create Video",
    "GetVideoComponents": "Get Video Components",
    "ImageScale": "Upscale Image",
    "LoadImage": "Load Image",
    "LoadVideo": "Load Video",
    "PreviewImage": "Preview Image",
    "SaveImage": "Save Image",
    "SaveVideo": "Save Video",
    "SetLatentNoiseMask": "Set Latent Noise Mask",
}


def object_info(classes: Mapping[str, type]) -> dict[str, Any]:
    """The answer of a ComfyUI server to `GET /object_info` for these classes (server.py `node_info`)."""
    titles = {**CORE_DISPLAY_NAMES, **NODE_DISPLAY_NAME_MAPPINGS}
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
