"""Convolutions that take the fast kernel on CPUs as well."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which to convolve with `weight`: its own, but float32 on CPUs that lack kernels for half precision.

    There PyTorch's own half-precision loops are some hundred times slower than casting each weight when it is used.
    """
    if weight.device.type != "cpu" or weight.dtype not in (torch.bfloat16, torch.float16):
        return weight.dtype
    name = "_is_mkldnn_bf16_supported" if weight.dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    supported = torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, name)()
    return weight.dtype if supported else torch.float32


@cache
def _has_onednn_kernels() -> bool:
    """Whether oneDNN has its own 3D kernels here; elsewhere than on x86 it may run a reference loop."""
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
            # F.conv3d chooses between oneDNN and a plain loop by size, and for one short clip takes the loop, up
            # to ten times slower (PyTorch, aten/src/ATen/native/Convolution.cpp, use_mkldnn).
            return torch.mkldnn_convolution(input, weight, bias, padding, self.stride, self.dilation, self.groups)
        return F.conv3d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, in the dtype of its input (b, c, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.conv2d(input, self.weight.to(input.dtype), bias, self.stride, self.padding)
