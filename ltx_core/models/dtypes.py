"""The dtype in which a model computes, as opposed to the dtype in which its weights are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.choice import Operation

_NOTHING_CHOSEN = Operation()


def compute_dtype(weight: Tensor, chosen: Operation = _NOTHING_CHOSEN) -> torch.dtype:
    """The dtype in which to compute with `weight`: its own, or what was chosen for the device.

    chosen: for the operation that takes most of the time. Without it, float32 on CPUs without kernels for half
        precision.
    """
    return chosen.dtype_on(weight.dtype, weight.device.type)
