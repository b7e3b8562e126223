"""ComfyUI's launch flags that say how weights are held, and those that LTXKit's nodes cannot follow.

docs/comfyui.md has the table of all flags. Most need nothing here, because core acts on them: devices, memory, caches,
deterministic algorithms.
"""

# Type checks run where ComfyUI's modules are not installed.
# pyright: reportMissingImports=false

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..ltx_core.weights.layouts import PartName

log = logging.getLogger("ltxkit")


class Storage(NamedTuple):
    """How weights are held. dtype: None: as stored. quantization: of plain Linears on loading; None: none. copy: in
    memory, and not mapped from the file."""

    dtype: torch.dtype | None = None
    quantization: str | None = None
    copy: bool = False


# Names of the options in ComfyUI's `args`, the first that is set decides. `--force-fp16` sets `fp16_unet`.
_DTYPES: Mapping[str, Mapping[str, torch.dtype]] = {
    "transformer": {"fp32_unet": torch.float32, "bf16_unet": torch.bfloat16, "fp16_unet": torch.float16},
    "vae": {"fp32_vae": torch.float32, "bf16_vae": torch.bfloat16, "fp16_vae": torch.float16},
    "text_encoder": {
        "fp32_text_enc": torch.float32,
        "bf16_text_enc": torch.bfloat16,
        "fp16_text_enc": torch.float16,
    },
}
_QUANTIZATIONS: Mapping[str, Mapping[str, str]] = {
    "transformer": {"fp8_e4m3fn_unet": "fp8"},
    "text_encoder": {"fp8_e4m3fn_text_enc": "fp8"},
}

_ATTENTION = "LTXKit's models compute attention with PyTorch"
_FLOAT8 = "LTXKit's fp8 is e4m3fn"
_WITHOUT_EFFECT: Mapping[str, str] = {
    "use_sage_attention": _ATTENTION,
    "use_flash_attention": _ATTENTION,
    "use_ck_attention": _ATTENTION,
    "use_split_cross_attention": _ATTENTION,
    "use_quad_cross_attention": _ATTENTION,
    "force_upcast_attention": _ATTENTION,
    "fp8_e5m2_unet": _FLOAT8,
    "fp8_e8m0fnu_unet": _FLOAT8,
    "fp8_e5m2_text_enc": _FLOAT8,
    "fp64_unet": "fp32 is LTXKit's most precise type",
    "force_channels_last": "video has five dimensions",
}


def storage_of(part: PartName) -> Storage:
    """What the flags say of a part's weights. The first call says in the log which flags have no effect here."""
    _say_without_effect()
    dtypes = {**_DTYPES.get(part, {}), "force_fp32": torch.float32}
    return Storage(_first_set(dtypes), _first_set(_QUANTIZATIONS.get(part, {})), is_set("disable_mmap"))


def streams_beside() -> bool:
    """Whether blocks may be copied while others compute (not `--disable-async-offload`)."""
    return not is_set("disable_async_offload")


def may_pin() -> bool:
    """Whether main memory may be pinned for blocks on their way to a device (not `--disable-pinned-memory`)."""
    return not is_set("disable_pinned_memory")


def is_set(option: str) -> bool:
    """Whether a flag was given; not every version of ComfyUI has every flag."""
    from comfy.cli_args import args

    return bool(getattr(args, option, False))


def _first_set(values: Mapping[str, Any]) -> Any:
    return next((value for option, value in values.items() if is_set(option)), None)


@functools.cache
def _say_without_effect() -> None:
    for option, reason in _WITHOUT_EFFECT.items():
        if is_set(option):
            log.warning("LTXKit: %s has no effect on LTXKit's nodes: %s.", _flag(option), reason)


def _flag(option: str) -> str:
    """As it is written on the command line: `--fp8_e5m2-unet` keeps one underscore."""
    return "--" + option.replace("_", "-").replace("fp8-", "fp8_")
