"""Plain weights that are quantized while they load: less memory, for a little accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .bitsandbytes import INT8_LEVELS, NF4_BLOCK, NF4_LEVELS, FourBitLinear
from .fp8 import Float8Linear, quantize_rows
from .linear import Pack, QuantizedLinear, ScaledLinear, StoredTensor, linear_weights, replace_linear

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class QuantizeOnLoad:
    """The weights of Linears become `linear`'s buffers.

    linear: an empty quantized Linear for a plain one. quantize: weight (out, in) -> buffers by name.
    only: part of the path that a Linear must have; the others stay as they are.
    """

    name: str
    linear: Callable[[nn.Linear], QuantizedLinear]
    quantize: Callable[[Tensor], Mapping[str, Tensor]]
    only: str

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:  # noqa: ARG002 - asked for, never found in a file
        return False

    def prepare(
        self,
        model: nn.Module,
        stored: Mapping[str, StoredTensor],  # noqa: ARG002
        compute_dtype: torch.dtype,  # noqa: ARG002
    ) -> Pack:
        linears = {key: linear for key, linear in linear_weights(model).items() if self.only in key}
        for key, linear in linears.items():
            replace_linear(model, key, self.linear(linear))

        def pack(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
            if key not in linears:
                return {key: tensor}
            return {f"{key.removesuffix('weight')}{name}": part for name, part in self.quantize(tensor).items()}

        return pack


def quantize_fp8(weight: Tensor) -> dict[str, Tensor]:
    """(out, in) -> float8_e4m3fn of the same shape, and float32 scales (out,) that use each row's whole range."""
    packed, scale = quantize_rows(weight)
    return {"packed": packed, "scale_weight": scale.flatten()}


def quantize_int8(weight: Tensor) -> dict[str, Tensor]:
    """(out, in) -> int8 of the same shape, and float32 scales (out,), as bitsandbytes' `int8_vectorwise_quant`."""
    weight = weight.float()
    scale = (weight.abs().amax(dim=1) / INT8_LEVELS).clamp(min=_TINY)
    return {"packed": (weight / scale.unsqueeze(1)).round().to(torch.int8), "scale_weight": scale}


def quantize_nf4(weight: Tensor) -> dict[str, Tensor]:
    """(out, in) -> indices of the nearest NF4 levels, two per byte, and the largest magnitude of each 64 weights."""
    flat = weight.float().flatten()
    levels = torch.tensor(NF4_LEVELS, device=flat.device)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % NF4_BLOCK)).view(-1, NF4_BLOCK)
    absmax = padded.abs().amax(dim=1)
    scaled = (padded / absmax.clamp(min=_TINY).unsqueeze(1)).flatten()[: flat.numel() + flat.numel() % 2]
    indices = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8)
    return {"packed": (indices[0::2] << 4) | indices[1::2], "absmax": absmax, "quant_map": levels}


# name -> (empty Linear, quantization of its weight)
_KINDS: Mapping[str, tuple[Callable[[nn.Linear], QuantizedLinear], Callable[[Tensor], Mapping[str, Tensor]]]] = {
    "fp8": (lambda linear: Float8Linear(linear, torch.float8_e4m3fn, linear.out_features), quantize_fp8),
    "int8": (lambda linear: ScaledLinear(linear, torch.int8, linear.out_features), quantize_int8),
    "nf4": (lambda linear: FourBitLinear(linear, -(-linear.weight.numel() // NF4_BLOCK)), quantize_nf4),
}
QUANTIZATION_NAMES = tuple(_KINDS)


def quantization_by_name(name: str, only: str) -> QuantizeOnLoad:
    """ "fp8" (e4m3, scaled by row), "int8" or "nf4" (bitsandbytes' formats), for Linears whose path has `only` in it.

    Raises ConfigError: there is no such quantization.
    """
    if name not in _KINDS:
        raise ConfigError(f"got quantization {name!r}; expected one of {', '.join(QUANTIZATION_NAMES)}")
    return QuantizeOnLoad(name, *_KINDS[name], only)
