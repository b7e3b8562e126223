"""LTXKit: LTX-Video for ComfyUI and for Python.

Nothing is imported here. pytest, ComfyUI and `import ltxkit` all execute this file, each under another module name:
therefore the node classes are imported on first access (PEP 562).
"""

from __future__ import annotations

WEB_DIRECTORY = "./web"

_ON_DEMAND = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS")

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]


def __getattr__(name: str) -> object:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import nodes

        return getattr(nodes, name)
    except AttributeError as error:
        # ComfyUI takes an AttributeError here for "this pack has no nodes", and drops the traceback.
        raise ImportError(f"LTXKit's nodes could not be imported: {error}") from error
