"""Patches across the bridges: those of a native MODEL, CLIP or VAE that cannot go along are found and refused by name;
our LoRAs get the names and values that core expects, and quantized weights of ours are refused.

Only attributes of core's ModelPatcher are read here (comfy/model_patcher.py); nothing of core is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..ltx_core.errors import UnsupportedError
from ..ltx_core.quant.linear import QuantizedLinear

OURS = "ltxkit"  # key of our own callbacks


def refuse(what: str, names: list[str]) -> None:
    if names:
        raise UnsupportedError(
            f"got a {what} with {', '.join(names)}; expected one with patches of weights (LoRA) only, since LTXKit "
            f"computes with code of its own; connect the {what} from before the node that adds this"
        )


def refuse_patches(patcher: Any, what: str, default: tuple[str, ...] = ()) -> None:
    """Raises UnsupportedError, with their names, for patches that are not of weights.

    default: object patches that core itself sets.
    """
    refuse(what, list(_foreign_patches(patcher, default)))


def _foreign_patches(patcher: Any, default: tuple[str, ...]) -> Iterator[str]:
    options: Mapping[str, Any] = patcher.model_options
    for name, value in options.items():
        if name == "transformer_options":
            yield from (f"transformer_options[{key!r}]{_named(inner)}" for key, inner in value.items() if _any(inner))
        elif _any(value) and name != "disable_cfg1_optimization":
            yield f"{name}{_named(value)}"
    yield from (f"the patched object {name}" for name in patcher.object_patches if name not in default)
    for attribute, words in _KINDS_OF_PATCH.items():
        value = getattr(patcher, attribute, None)
        if attribute == "callbacks":
            value = _without_ours(value)
        if _any(value):
            yield f"{words}{_named(value)}"


_KINDS_OF_PATCH = {
    "weight_wrapper_patches": "wrapped weights",
    "wrappers": "wrappers",
    "callbacks": "callbacks",
    "injections": "injections",
    "additional_models": "additional models",
    "hook_patches": "hooks",
    "forced_hooks": "hooks",
}


def _without_ours(callbacks: Any) -> Any:
    return {
        event: {key: functions for key, functions in by_key.items() if key != OURS}
        for event, by_key in (callbacks or {}).items()
    }


def _any(value: Any) -> bool:
    """Whether there is something in nested containers."""
    if isinstance(value, Mapping):
        return any(_any(inner) for inner in value.values())
    if isinstance(value, list | tuple | set):
        return any(_any(inner) for inner in value)
    return value is not None and value is not False


def _named(value: Any) -> str:
    """What is in a patch, in brackets: the keys it was added under, or the names of its functions and classes."""
    names = sorted(set(_names(value)))
    return f" ({', '.join(names)})" if names else ""


def _names(value: Any, key: str | None = None) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _names(inner, name if isinstance(name, str) else key)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from _names(inner, key)
    elif _any(value):
        yield key or getattr(value, "__qualname__", type(value).__name__)


def refuse_quantized(module: nn.Module) -> None:
    kinds = sorted({type(part).__name__ for part in module.modules() if isinstance(part, QuantizedLinear)})
    if kinds:
        raise UnsupportedError(
            f"got quantized weights ({', '.join(kinds)}), which ComfyUI's layers cannot share; expected plain bf16, "
            "fp16 or fp32 weights; load the model as stored from a bf16 file, or load this file with ComfyUI's own "
            "loader"
        )
