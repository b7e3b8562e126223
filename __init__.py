"""LTXKit: LTX-Video for ComfyUI and for Python.

Nothing is imported here. pytest, ComfyUI and `import ltxkit` all execute this file, each under another module name:
therefore the node classes are imported on first access (PEP 562).
"""

from __future__ import annotations

_WEB = "./web"
_ON_DEMAND = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY")
_replaced_by: str | None = None  # the folder whose nodes ComfyUI has instead of ours

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]


def __getattr__(name: str) -> object:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _is_second_copy():
        if name == "WEB_DIRECTORY":
            raise AttributeError(f"{name}: {_replaced_by} has it")
        return {}
    if name == "WEB_DIRECTORY":
        return _WEB
    try:
        from . import nodes

        return getattr(nodes, name)
    except AttributeError as error:
        # ComfyUI takes an AttributeError here for "this pack has no nodes", and drops the traceback.
        raise ImportError(f"LTXKit's nodes could not be imported: {error}") from error


def _is_second_copy() -> bool:
    """Whether ComfyUI has nodes of our names already, from a git clone beside the Manager's copy, for instance.

    ComfyUI would mix the two: nodes of the copy that it loads last, and routes and front-end code of both. The first
    stays, and the log says once where both are.
    """
    global _replaced_by
    if _replaced_by is None:
        _replaced_by = _registered_before()
        if _replaced_by is not None:
            import logging

            logging.getLogger("ltxkit").warning(
                "LTXKit: ComfyUI has nodes of these names already, from %s. They stay, and the copy in %s is not used; "
                "remove one of the two and restart ComfyUI.",
                _replaced_by,
                __path__[0],
            )
    return _replaced_by is not None


def _registered_before() -> str | None:
    """Where a registered class with a name of ours comes from, if not from this module; None: there is none."""
    import sys

    registered = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", None)
    if not isinstance(registered, dict):
        return None
    for name, node in list(registered.items()):
        module: str = getattr(node, "__module__", "")
        if str(name).startswith("LTXKit") and not module.startswith(f"{__name__}."):
            pack = sys.modules.get(module.split(".")[0]) or sys.modules.get(module)
            file = getattr(pack, "__file__", None) or getattr(node, "RELATIVE_PYTHON_MODULE", None) or module
            return file.removesuffix("__init__.py").rstrip("/\\")
    return None
