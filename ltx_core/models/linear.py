"""Layers that compute in the dtype of their input, whatever dtype their weights are stored in.

Weights can then stay memory-mapped as the file stores them where the processor computes better in another dtype (see
`dtypes.compute_dtype`), and float32 weights train under autocast.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..kernels.directly import DIRECTLY
from ..kernels.norms import rms_norm
from ..kernels.products import SLICE, product, tanh_gelu

__all__ = ["SLICE", "Linear", "RMSNorm"]


class Linear(nn.Linear):
    """`nn.Linear`, by the form that was chosen for this machine.

    pack_after: uses of the weight before it is packed where packed weights were chosen; 0 for those of every step.
    """

    active = DIRECTLY
    pack_after: int = 0

    def forward(self, input: Tensor) -> Tensor:
        return product(input, self.weight, self.bias, self.active, pack_after=self.pack_after)

    def with_gelu(self, input: Tensor) -> Tensor:
        """The product, and then GELU by tanh, in one kernel where that was chosen and nothing comes between the two."""
        if self._forward_hooks or self._forward_pre_hooks:  # such as a LoRA, which adds to the product
            return tanh_gelu(self(input))
        return product(input, self.weight, self.bias, self.active, gelu=True, pack_after=self.pack_after)


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last axis, in the dtype of its input; its weight is None if not `elementwise_affine`."""

    active = DIRECTLY

    def forward(self, x: Tensor) -> Tensor:
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return rms_norm(x, cast("Tensor | None", self.weight), eps, self.active)
