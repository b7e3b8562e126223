"""Eight-bit floating point weights: plain casts, scaled ones, and bf16 weights that are quantized while they load.

Three kinds of file circulate for LTX-Video:
* the official ones: block Linears cast to float8_e4m3fn, no scales (Lightricks/LTX-Video-Q8-Kernels
  scripts/convert_weights.py);
* ComfyUI's scaled form: a tensor `scaled_fp8`, and `scale_weight` (sometimes `scale_input`) beside every weight
  (Comfy-Org/ComfyUI comfy/ops.py);
* casts of everything, biases and norms included, to e4m3 or e5m2.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from .linear import Pack, QuantizedLinear, StoredTensor, linear_weights, replace_linear

FP8_DTYPES: Mapping[str, torch.dtype] = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}

# Present in ComfyUI's scaled files; its dtype says which of the two formats is meant, its value nothing.
SCALED_MARKER = "scaled_fp8"


class FP8Linear(QuantizedLinear):
    """packed: (out_features, in_features) float8.  scale_weight: float32 (1,) or (out_features,), None in a plain cast.

    scale_input (ComfyUI's calibration for a float8 product) has no part in a product that is computed in x's dtype.
    """

    scale_weight: Tensor | None

    def __init__(self, linear: nn.Linear, stored: torch.dtype, scales: int | None) -> None:
        super().__init__(linear)
        shape = (self.out_features, self.in_features)
        self.register_buffer("packed", torch.empty(shape, dtype=stored, device="meta"))
        scale_weight = None if scales is None else torch.empty(scales, dtype=torch.float32, device="meta")
        self.register_buffer("scale_weight", scale_weight)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        weight = self.packed.to(dtype)
        return weight if self.scale_weight is None else weight * self.scale_weight.to(dtype).unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """The scale is applied to the product: one rounding less than scaling the weight, and less work."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.scale_weight is None:
            return F.linear(x, self.packed.to(x.dtype), bias)
        y = F.linear(x, self.packed.to(x.dtype)) * self.scale_weight.to(x.dtype)
        return y if bias is None else y + bias


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> float8_e4m3fn of the same shape, and float32 scales (out,) that use each row's whole range."""
    weight = weight.float()
    largest = weight.abs().amax(dim=1)
    scale = (largest / torch.finfo(torch.float8_e4m3fn).max).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scale.unsqueeze(1)).to(torch.float8_e4m3fn), scale


class StoredFP8:
    """A file whose weights are float8 already, scaled or not."""

    name = "fp8"

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        return any(tensor.dtype in FP8_DTYPES for tensor in stored.values())

    def prepare(self, model: nn.Module, stored: Mapping[str, StoredTensor], compute_dtype: torch.dtype) -> Pack:
        """Raises CheckpointError: the file is marked as scaled and the scale of a weight is missing."""
        linears = linear_weights(model)
        packed = {key for key, tensor in stored.items() if tensor.dtype in FP8_DTYPES and key in linears}
        scales = {key: f"{key.removesuffix('weight')}scale_weight" for key in packed}
        missing = sorted(scale for scale in scales.values() if scale not in stored)
        if SCALED_MARKER in stored and missing:
            raise CheckpointError(
                f"got a scaled fp8 file without {missing[0]} (and {len(missing) - 1} more); expected a scale beside "
                "every float8 weight; download the file again"
            )
        for key in packed:
            scale = stored.get(scales[key])
            count = None if scale is None else prod(scale.shape)
            replace_linear(model, key, FP8Linear(linears[key], FP8_DTYPES[stored[key].dtype], count))

        def pack(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
            if key == SCALED_MARKER or key.endswith(".scale_input"):
                return {}
            if key in packed:
                return {f"{key.removesuffix('weight')}packed": tensor}
            if key.endswith(".scale_weight"):
                return {key: tensor.float().flatten()}
            return {key: tensor.to(compute_dtype) if tensor.dtype in FP8_DTYPES.values() else tensor}

        return pack


class QuantizeToFP8:
    """Plain weights that become row-scaled float8_e4m3fn while they load: half the memory of bf16."""

    name = "fp8"

    def __init__(self, only: str) -> None:
        """only: part of the path that a Linear must have, "transformer_blocks." or "block." say; the rest stays."""
        self._only = only

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:  # noqa: ARG002 - asked for, never found in a file
        return False

    def prepare(
        self,
        model: nn.Module,
        stored: Mapping[str, StoredTensor],  # noqa: ARG002
        compute_dtype: torch.dtype,  # noqa: ARG002
    ) -> Pack:
        linears = {key: linear for key, linear in linear_weights(model).items() if self._only in key}
        for key, linear in linears.items():
            replace_linear(model, key, FP8Linear(linear, torch.float8_e4m3fn, linear.out_features))

        def pack(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
            if key not in linears:
                return {key: tensor}
            packed, scale = quantize_rows(tensor)
            stem = key.removesuffix("weight")
            return {f"{stem}packed": packed, f"{stem}scale_weight": scale}

        return pack
