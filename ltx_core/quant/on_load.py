"""Plain weights that are quantized while they load: less memory, for a little accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .linear import OnLoad, Pack, StoredTensor, linear_weights, replace_linear


@dataclass(frozen=True)
class QuantizeOnLoad:
    """The weights of Linears become the buffers of quantized ones.

    only: part of the path that a Linear must have; the others stay as they are.
    """

    name: str
    kind: OnLoad
    only: str

    def prepare(
        self,
        model: nn.Module,
        stored: Mapping[str, StoredTensor],  # noqa: ARG002
        compute_dtype: torch.dtype,  # noqa: ARG002
    ) -> Pack:
        linears = {key: linear for key, linear in linear_weights(model).items() if self.only in key}
        for key, linear in linears.items():
            replace_linear(model, key, self.kind.linear(linear))

        def pack(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
            if key not in linears:
                return {key: tensor}
            buffers = self.kind.quantize(tensor)
            return {f"{key.removesuffix('weight')}{name}": buffer for name, buffer in buffers.items()}

        return pack
