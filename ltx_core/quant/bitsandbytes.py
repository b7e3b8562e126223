"""bitsandbytes' formats, int8 (LLM.int8, arXiv 2208.07339) and 4-bit (QLoRA, arXiv 2305.14314), in plain torch.

What diffusers and transformers save (bitsandbytes nn/modules.py, functional.py `QuantState`):
* int8: `weight` int8 (out, in), `SCB` float32 (out,), the largest magnitude of each row; sometimes `weight_format`;
* 4-bit: `weight` uint8 (out * in / 2, 1), two indices per byte, the first in the high half; `weight.quant_map` float32
  (16,); `weight.absmax`, the largest magnitude of each run of 64 weights: float32, or uint8 indices into
  `weight.nested_quant_map` (256,), scaled by `weight.nested_absmax`, plus an offset;
  `weight.quant_state.bitsandbytes__nf4` (or `__fp4`), JSON as bytes.

Reading needs no package: these weights run wherever torch does.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, UnsupportedError
from ..kernels import fused
from ..kernels.active import PLAINLY
from ..kernels.fused import NF4_LEVELS
from ..values import is_number, shown
from .ggml_blocks import at_a_time
from .linear import OnLoad, Pack, QuantizedLinear, ScaledLinear, StoredTensor, linear_weights, replace_linear, said_by

INT8_LEVELS = 127
NF4_BLOCK = 64
_TINY = torch.finfo(torch.float32).tiny

_STATE = ".quant_state.bitsandbytes__"
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


class FourBitLinear(QuantizedLinear):
    """Four-bit indices into a table of 16 levels, with a scale per block of weights.

    packed: uint8 (out_features * in_features / 2,).  absmax: (blocks,) float32, or uint8 where it is nested.
    block_size: weights per entry of absmax.  nested_block_size, offset: the same for the scales of a nested absmax.
    """

    active = PLAINLY
    _is_nf4: bool | None = None
    absmax: Tensor
    quant_map: Tensor
    nested_absmax: Tensor | None
    nested_quant_map: Tensor | None

    def __init__(self, linear: nn.Linear, blocks: int, nested_blocks: int | None = None) -> None:
        super().__init__(linear)
        absmax = torch.float32 if nested_blocks is None else torch.uint8
        self.block_size = NF4_BLOCK
        self.nested_block_size = 0
        self.offset = 0.0
        self.register_buffer("packed", torch.empty((linear.weight.numel() + 1) // 2, dtype=torch.uint8, device="meta"))
        self.register_buffer("absmax", torch.empty(blocks, dtype=absmax, device="meta"))
        self.register_buffer("quant_map", torch.empty(16, device="meta"))
        nested = nested_blocks is not None
        self.register_buffer("nested_absmax", torch.empty(nested_blocks, device="meta") if nested else None)
        self.register_buffer("nested_quant_map", torch.empty(256, device="meta") if nested else None)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        if torch.compiler.is_compiling():
            return self._by_place(dtype)
        card = self.active.card
        if card is not None and card.unpacks_nf4(dtype, self.block_size) and self._has_levels_of_nf4():
            shape = (self.out_features, self.in_features)
            return fused.unpacked_nf4(self.packed, self._block_scales(), self.block_size, shape, dtype)
        # A byte is a pair of levels: one look-up for two weights.
        high, low = self.quant_map.repeat_interleave(16), self.quant_map.repeat(16)
        pairs = torch.stack((high, low), dim=-1)
        count = self.out_features * self.in_features
        scale = self._block_scales()
        if count % self.block_size:  # the last block is shorter
            weights = pairs[self.packed.int()].flatten()[:count] * scale.repeat_interleave(self.block_size)[:count]
            return weights.to(dtype).view(self.out_features, self.in_features)
        result = torch.empty(count, dtype=dtype, device=self.packed.device)
        step = max(at_a_time(on_cpu=result.device.type == "cpu") // self.block_size, 1)  # blocks
        for packed, scales, into in zip(
            self.packed.split(step * self.block_size // 2),
            scale.split(step),
            result.split(step * self.block_size),
            strict=True,
        ):
            into.copy_(pairs[packed.int()].view(-1, self.block_size).mul_(scales.unsqueeze(1)).flatten())
        return result.view(self.out_features, self.in_features)

    def unpacking_bytes(self, *, on_cpu: bool) -> int:
        """Indices of pairs and float32 weights: those of one part, or twice those of the whole weight where the last
        block is shorter.
        """
        count = self.out_features * self.in_features
        return 12 * count if count % self.block_size else 6 * min(count, at_a_time(on_cpu=on_cpu))

    def _by_place(self, dtype: torch.dtype) -> Tensor:
        """The same as one expression of a weight's place, of which a compiler makes one kernel."""
        count, device = self.out_features * self.in_features, self.packed.device
        shifts = torch.arange(4, -1, -4, dtype=torch.int32, device=device)
        codes = ((self.packed.int().unsqueeze(1) >> shifts) & 15).flatten()[:count]
        block = torch.arange(count, device=device) // self.block_size
        scale = self.absmax[block]
        if self.nested_absmax is not None and self.nested_quant_map is not None:
            outer = self.nested_absmax[block // self.nested_block_size]
            scale = self.nested_quant_map[scale.int()] * outer + self.offset
        return (self.quant_map[codes] * scale).to(dtype).view(self.out_features, self.in_features)

    def _has_levels_of_nf4(self) -> bool:
        """Whether the file's levels are those of which bitsandbytes' kernels have a table of their own; the device is
        asked once."""
        if self._is_nf4 is None:
            self._is_nf4 = self.quant_map.tolist() == torch.tensor(NF4_LEVELS).tolist()
        return self._is_nf4

    def _block_scales(self) -> Tensor:
        if self.nested_absmax is None or self.nested_quant_map is None:
            return self.absmax
        outer = self.nested_absmax.repeat_interleave(self.nested_block_size)[: self.absmax.numel()]
        return self.nested_quant_map[self.absmax.int()] * outer + self.offset

    def read_state(self, key: str, stored: Tensor) -> None:
        """Take over block sizes and offset from the JSON.

        Raises:
            CheckpointError: the JSON is damaged, or belongs to a weight of another shape.
        """
        state = said_by(bytes(stored.flatten().view(torch.uint8).tolist()), f"the quant_state of {key}")
        shape = [self.out_features, self.in_features]
        if state.get("shape") != shape:
            raise CheckpointError(
                f"got 4-bit weights of shape {shown(state.get('shape'))} for {key}; expected {shape}; the file belongs "
                "to another model"
            )
        self.block_size = _block_size(key, state, "blocksize", NF4_BLOCK, prod(shape), self.absmax)
        if self.nested_absmax is not None:
            count = self.absmax.numel()
            self.nested_block_size = _block_size(key, state, "nested_blocksize", 0, count, self.nested_absmax)
        offset = state.get("nested_offset", 0.0)
        if not is_number(offset):
            raise CheckpointError(
                f"got 4-bit weights {key} with nested_offset {shown(offset)}; expected a finite number; download the "
                "file again"
            )
        self.offset = float(offset)


def _block_size(key: str, state: Mapping[str, Any], name: str, otherwise: int, count: int, scales: Tensor) -> int:
    """How many of `count` values share one of these scales.

    Raises:
        CheckpointError: it is no number of values, or the file has more or fewer scales.
    """
    size = state.get(name, otherwise)
    whole = isinstance(size, int) and not isinstance(size, bool) and 0 < size <= 2**31 and size % 2 == 0
    if not whole or -(-count // size) != scales.numel():
        raise CheckpointError(
            f"got 4-bit weights {key} with {scales.numel()} scales and {name} {shown(size)}; expected one scale for "
            f"each block of {count} values; download the file again"
        )
    return size


def quantize_int8(weight: Tensor) -> dict[str, Tensor]:
    """(out, in) -> int8 of the same shape, and float32 scales (out,), as bitsandbytes' `int8_vectorwise_quant`."""
    weight = weight.float()
    scale = (weight.abs().amax(dim=1) / INT8_LEVELS).clamp(min=_TINY)
    return {"packed": (weight / scale.unsqueeze(1)).round().to(torch.int8), "scale_weight": scale}


def quantize_nf4(weight: Tensor) -> dict[str, Tensor]:
    """(out, in) -> indices of the nearest NF4 levels, two per byte, and the largest magnitude of each 64 weights."""
    flat = weight.float().flatten()
    levels = torch.tensor(NF4_LEVELS, device=flat.device)
    padded = F.pad(flat, (0, -flat.numel() % NF4_BLOCK)).view(-1, NF4_BLOCK)
    absmax = padded.abs().amax(dim=1)
    scaled = (padded / absmax.clamp(min=_TINY).unsqueeze(1)).flatten()[: flat.numel() + flat.numel() % 2]
    indices = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8)
    return {"packed": (indices[0::2] << 4) | indices[1::2], "absmax": absmax, "quant_map": levels}


class BitsAndBytes:
    """Files in which diffusers or transformers saved quantized weights."""

    name = "bitsandbytes"
    on_load: Mapping[str, OnLoad] = MappingProxyType(
        {
            "int8": OnLoad(lambda linear: ScaledLinear(linear, torch.int8, linear.out_features), quantize_int8),
            "nf4": OnLoad(lambda linear: FourBitLinear(linear, -(-linear.weight.numel() // NF4_BLOCK)), quantize_nf4),
        }
    )

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        """int8 weights with `SCB`, or bytes with `absmax`."""
        return any(
            (tensor.dtype == "I8" and f"{key.removesuffix('weight')}SCB" in stored)
            or (tensor.dtype == "U8" and f"{key}.absmax" in stored)
            for key, tensor in stored.items()
        )

    def prepare(self, model: nn.Module, stored: Mapping[str, StoredTensor], compute_dtype: torch.dtype) -> Pack:  # noqa: ARG002
        """Replace the Linears whose weight is int8 or bytes.

        Raises:
            CheckpointError: the scales of a weight are missing.
        """
        four_bit: dict[str, FourBitLinear] = {}
        int8: set[str] = set()
        for key, linear in linear_weights(model).items():
            kind = stored[key].dtype if key in stored else ""
            if kind == "I8":
                _need(stored, key, f"{key.removesuffix('weight')}SCB")
                replace_linear(model, key, ScaledLinear(linear, torch.int8, linear.out_features))
                int8.add(key)
            elif kind == "U8":
                _need(stored, key, f"{key}.absmax")
                if not any(f"{key}{_STATE}{kind}" in stored for kind in ("nf4", "fp4")):
                    _need(stored, key, f"{key}{_STATE}nf4")
                nested = stored.get(f"{key}.nested_absmax")
                blocks = prod(stored[f"{key}.absmax"].shape)
                four_bit[key] = FourBitLinear(linear, blocks, None if nested is None else prod(nested.shape))
                replace_linear(model, key, four_bit[key])

        def pack(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
            stem, _, role = key.rpartition(".")
            if key in int8:
                return {f"{stem}.packed": tensor}
            if role == "SCB":
                return {f"{stem}.scale_weight": tensor.float() / INT8_LEVELS}
            if tensor.is_meta and (role == "weight_format" or _STATE in key):
                return {}  # only the header is read
            if role == "weight_format":
                return _row_major(key, tensor)
            if key in four_bit:
                return {f"{stem}.packed": tensor.flatten()}
            if _STATE in key:
                weight = key.partition(_STATE)[0]
                if weight not in four_bit:
                    return {key: tensor}  # of no such weight: it is reported with all that does not belong
                four_bit[weight].read_state(weight, tensor)
                return {}
            if stem in four_bit and role in _PARTS:
                return {f"{stem.removesuffix('weight')}{role}": tensor.flatten()}
            return {key: tensor}

        return pack


def _need(stored: Mapping[str, StoredTensor], key: str, scale: str) -> None:
    if scale not in stored:
        raise CheckpointError(f"got bitsandbytes weights {key} without {scale}; expected both; download the file again")


def _row_major(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
    if tensor.numel() != 1 or tensor.item() != 0:
        values = shown(tensor.flatten()[:8].tolist())
        raise UnsupportedError(f"got {key} = {values}; expected 0 (rows); save the model again on this system")
    return {}
