"""Convolutions in the dtype of their input, with the fast kernel on CPUs as well."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dtypes import compute_dtype


@cache
def _has_onednn_kernels() -> bool:
    """Whether oneDNN has 3D kernels of its own here; on processors other than x86 it may run a reference loop."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, in the dtype of its input (b, c, f, h, w); fastest with channels-last memory."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.to(input.dtype)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        t, h, w = padding = tuple(int(side) for side in self.padding)
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, (w, w, h, h, t, t), mode=self.padding_mode), (0, 0, 0)
        # Autocast hands over bfloat16 even where oneDNN refuses it.
        in_onednn = input.dtype != torch.float64 and compute_dtype(input) == input.dtype
        if input.device.type == "cpu" and in_onednn and _has_onednn_kernels():
            # F.conv3d chooses between oneDNN and a plain loop by size. For one short clip it takes the loop, which is
            # up to ten times slower (PyTorch, aten/src/ATen/native/Convolution.cpp, use_mkldnn).
            return torch.mkldnn_convolution(input, weight, bias, padding, self.stride, self.dilation, self.groups)
        return F.conv3d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, in the dtype of its input (b, c, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.conv2d(input, self.weight.to(input.dtype), bias, self.stride, self.padding)
