"""ComfyUI's format since autumn 2025, which LTXKit recognises and does not read.

Every quantized weight has a `weight_scale`, and a `comfy_quant` tensor with JSON that names the format; in files with
the header entry `_quantization_metadata` the latter is missing. Format names: Comfy-Org/ComfyUI comfy/quant_ops.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from .foreign import has_scales_of_rows
from .linear import StoredTensor

_ENDINGS = (".comfy_quant", ".weight_scale", ".weight_scale_2")


class ComfyQuant:
    """Claims what ComfyUI's current loaders quantize. float8 with `scale_weight` is the older form, see `fp8`."""

    name = "comfy_quant"
    instead = "use the bf16 file, or a file in one of these"

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        return any(key.endswith(_ENDINGS) for key in stored) and not has_scales_of_rows(stored)

    def describe(self, stored: Mapping[str, StoredTensor]) -> str:
        """The format of the weights in words, as far as their types and scales show it."""
        formats = {name for key in stored if key.endswith(_ENDINGS) and (name := _format(stored, key)) is not None}
        return f"{' and '.join(sorted(formats)) or 'an unknown format'} (ComfyUI's comfy_quant)"


def _format(stored: Mapping[str, StoredTensor], key: str) -> str | None:
    """Of the weight that has this side tensor; None where its types show no format."""
    stem = key.rpartition(".")[0]
    weight, scale = stored.get(f"{stem}.weight"), stored.get(f"{stem}.weight_scale")
    if f"{stem}.weight_scale_2" in stored:
        return "nvfp4"
    if weight is None or scale is None:
        return None
    if weight.dtype.startswith("F8"):
        in_groups = scale.dtype in ("U8", "F8_E8M0")
        return "mxfp8" if in_groups else {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}.get(weight.dtype)
    return "int8_tensorwise" if weight.dtype == "I8" else None
