"""Layers that compute in the dtype of their input, whatever dtype their weights are stored in.

Weights can then stay memory-mapped as the file stores them where the processor computes better in another dtype (see
`dtypes.compute_dtype`), and float32 weights train under autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Elements of a weight that are cast at a time: few enough that the allocator reuses the same memory (beyond 32 MB each
# cast would get fresh pages), enough to multiply at full speed.
SLICE = 1 << 20


class Linear(nn.Linear):
    """`nn.Linear` with a bias, like every Linear of the transformer."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dtype != input.dtype and input.device.type == "cpu" and not torch.is_grad_enabled():
            return self._by_slices(input)
        return F.linear(input, self.weight.to(input.dtype), self.bias.to(input.dtype))

    def _by_slices(self, input: Tensor) -> Tensor:
        """The same product, without the whole weight ever being in memory in another dtype."""
        rows = input.reshape(-1, self.in_features)
        output = rows.new_empty(rows.shape[0], self.out_features)
        size = max(1, SLICE // self.in_features)
        for weight, bias, part in zip(
            self.weight.split(size), self.bias.split(size), output.split(size, dim=1), strict=True
        ):
            torch.addmm(bias.to(input.dtype), rows, weight.to(input.dtype).T, out=part)
        return output.view(*input.shape[:-1], self.out_features)


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` with a weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)
