"""The dtype in which a model computes, as opposed to the dtype in which its weights are stored."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which to compute with `weight`: its own, but float32 on CPUs without kernels for half precision.

    On these, PyTorch's own half-precision loops are some hundred times slower than a cast of each weight when it is
    used.
    """
    if weight.device.type != "cpu" or weight.dtype not in (torch.bfloat16, torch.float16):
        return weight.dtype
    name = "_is_mkldnn_bf16_supported" if weight.dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    supported = torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, name)()
    return weight.dtype if supported else torch.float32
