"""Layers that compute in the dtype of their input, whatever their weights are stored as.

So that weights stay as the file has them, memory-mapped, where the processor is better off with another dtype (see
`convolution.compute_dtype`), and so that float32 weights train under autocast.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)  # pyright: ignore[reportUnnecessaryComparison]
        return F.linear(input, self.weight.to(input.dtype), bias)


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)
