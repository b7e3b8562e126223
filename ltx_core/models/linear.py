"""Layers that compute in the dtype of their input, whatever their weights are stored as.

So that weights stay as the file has them, memory-mapped, where the processor is better off with another dtype (see
`convolution.compute_dtype`), and so that float32 weights train under autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Elements of a weight that are cast at a time: small enough for the allocator to use the same memory again and again
# (beyond 32 MB each cast would get fresh pages), large enough to multiply at full speed.
SLICE = 1 << 20


class Linear(nn.Linear):
    """With a bias, as every Linear of the transformer."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dtype != input.dtype and input.device.type == "cpu" and not torch.is_grad_enabled():
            return self._by_slices(input)
        return F.linear(input, self.weight.to(input.dtype), self.bias.to(input.dtype))

    def _by_slices(self, input: Tensor) -> Tensor:
        """The same, without ever holding the whole weight in another dtype."""
        rows = input.reshape(-1, self.in_features)
        output = rows.new_empty(rows.shape[0], self.out_features)
        size = max(1, SLICE // self.in_features)
        for weight, bias, part in zip(
            self.weight.split(size), self.bias.split(size), output.split(size, dim=1), strict=True
        ):
            torch.addmm(bias.to(input.dtype), rows, weight.to(input.dtype).T, out=part)
        return output.view(*input.shape[:-1], self.out_features)


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)
