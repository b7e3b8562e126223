"""GGUF weights: packed blocks stay packed, and mapped from the file, until a Linear is called."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from . import ggml_fused
from .ggml_blocks import BLOCK_TYPES, BlockType, dequantize, scratch_bytes
from .linear import OnLoad, Pack, QuantizedLinear, StoredTensor, linear_weights, replace_linear

# ggml types that are torch dtypes: tensors of these are loaded like any other.
_PLAIN = frozenset({"F32", "F16", "BF16"})


class GGMLLinear(QuantizedLinear):
    """packed: (out_features * in_features / weights_per_block * bytes_per_block,) uint8, in storage order."""

    def __init__(self, linear: nn.Linear, block_type: BlockType) -> None:
        super().__init__(linear)
        self.block_type = block_type
        count = linear.weight.numel() // block_type.weights_per_block * block_type.bytes_per_block
        self.register_buffer("packed", torch.empty(count, dtype=torch.uint8, device="meta"))

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        if torch.compiler.is_compiling():
            return ggml_fused.dequantized(self.packed, self.block_type, (self.out_features, self.in_features), dtype)
        return dequantize(self.packed, self.block_type, (self.out_features, self.in_features), dtype)

    def unpacking_bytes(self, *, on_cpu: bool) -> int:
        return scratch_bytes(self.block_type, self.out_features * self.in_features, on_cpu=on_cpu)


class GGUF:
    """Tensors in ggml's blocks.

    Source: ggml-org/ggml docs/gguf.md; tensor naming of LTX-Video files: city96/ComfyUI-GGUF tools/convert.py.
    """

    name = "gguf"
    on_load: Mapping[str, OnLoad] = MappingProxyType({})

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        return any(tensor.dtype in BLOCK_TYPES and tensor.dtype not in _PLAIN for tensor in stored.values())

    def prepare(self, model: nn.Module, stored: Mapping[str, StoredTensor], compute_dtype: torch.dtype) -> Pack:
        """Linears whose weight is in blocks become GGMLLinears; other tensors in blocks are unpacked once."""
        packed_types = {key: BLOCK_TYPES[info.dtype] for key, info in stored.items() if info.dtype not in _PLAIN}
        linears = linear_weights(model)
        for key in packed_types.keys() & linears.keys():
            replace_linear(model, key, GGMLLinear(linears[key], packed_types[key]))

        def pack(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
            if key not in packed_types:
                return {key: tensor}
            if key in linears:
                return {f"{key.removesuffix('weight')}packed": tensor.flatten()}
            shape = stored[key].shape
            return {key: dequantize(tensor, packed_types[key], shape, compute_dtype if shape[1:] else torch.float32)}

        return pack
