"""LTX-Video in Python: a prompt becomes a video, on a graphics card or a CPU.

    import ltxkit

    ltx = ltxkit.load("ltxv-13b-0.9.8-dev.safetensors", "t5xxl_fp16.safetensors")
    ltx.generate("A lighthouse in a storm", seed=1).save("lighthouse.mp4")

`load("ltxkit-digits")` loads the small model that comes with the package. `Condition` shows a picture or a clip,
`Reference` is the video that an IC-LoRA follows, `LoRA` changes the model, `Recipe` the settings, and `presets()` has
those of every release. `plan` says how much memory a clip takes, `inspect` what a file is, and `convert` changes its
form. Errors are ValueErrors (a wrong setting) or RuntimeErrors (a wrong file), and say what to do.

The reference of all names is docs/api.md; docs/from-diffusers.md shows scripts for diffusers beside ours.
"""

from __future__ import annotations

# Nothing is imported here. pytest, ComfyUI and `import ltxkit` all execute this file, each under another module name:
# therefore names are imported on first access (PEP 562). Type checkers take any TYPE_CHECKING for typing's own.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .ltx_core.pipelines.clip import Clip as Clip
    from .ltx_core.pipelines.condition import Condition as Condition
    from .ltx_core.pipelines.condition import Reference as Reference
    from .ltx_core.pipelines.front import LoRA as LoRA
    from .ltx_core.pipelines.front import load as load
    from .ltx_core.pipelines.front import plan as plan
    from .ltx_core.pipelines.presets import Recipe as Recipe
    from .ltx_core.pipelines.presets import presets as presets
    from .ltx_core.weights.convert import convert as convert
    from .ltx_core.weights.report import inspect as inspect

    __version__: str

_PUBLIC = {
    "Clip": "pipelines.clip",
    "Condition": "pipelines.condition",
    "LoRA": "pipelines.front",
    "Recipe": "pipelines.presets",
    "Reference": "pipelines.condition",
    "convert": "weights.convert",
    "inspect": "weights.report",
    "load": "pipelines.front",
    "plan": "pipelines.front",
    "presets": "pipelines.presets",
}
_WEB = "./web"
_ON_DEMAND = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY")
_replaced_by: str | None = None  # the folder whose nodes ComfyUI has instead of ours

# fmt: off
__all__ = [
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "WEB_DIRECTORY",
    "Clip",
    "Condition",
    "LoRA",
    "Recipe",
    "Reference",
    "__version__",
    "convert",
    "inspect",
    "load",
    "plan",
    "presets",
]
# fmt: on


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> object:
    if name in _PUBLIC or name == "__version__":
        return _public(name)
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(_PUBLIC)}")
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


def _public(name: str) -> object:
    """A name of the library, which stays in the module from then on."""
    from importlib import import_module

    if name == "__version__":
        found: object = import_module(".ltx_core.pipelines.doctor", __name__).version()
    else:
        try:
            found = getattr(import_module(f".ltx_core.{_PUBLIC[name]}", __name__), name)
        except AttributeError as error:  # else `from ltxkit import load` would say that there is no such name
            raise ImportError(f"LTXKit's {name} could not be imported: {error}") from error
    globals()[name] = found
    return found


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
