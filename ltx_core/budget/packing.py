"""The memory of weights that are packed for a CPU's kernels, beside those in the file."""

from __future__ import annotations

from torch import nn

from ..kernels.active import kernels_for
from ..kernels.choice import Kernels
from ..kernels.convolution import packed_weight_bytes
from ..kernels.room import PACKING_MARGIN
from ..models.convolution import Conv2d, Conv3d
from ..models.linear import Linear
from .weights import FRAGMENTATION


def room_for_packing(free: int, total: int, required: int) -> int:
    """Bytes for packed weights in main memory, when the work needs `required`; 0 where there is none."""
    return max(0, spare_for_packing(free, total, required))


def spare_for_packing(free: int, total: int, required: int) -> int:
    """As `room_for_packing`, but below 0 where not even the work fits."""
    return free - int((1 + FRAGMENTATION) * required) - int(PACKING_MARGIN * total)


def packed_bytes(model: nn.Module, kernels: Kernels, room: int) -> int:
    """Bytes that the packed weights of a model take while it works in main memory: at most `room`.

    Weights that are used once per prompt are packed only for more prompts than a clip has, and not counted.
    """
    chosen = kernels_for(model, kernels)
    wanted = 0
    for part in model.modules():
        if isinstance(part, Linear) and not part.pack_after:
            dtype = chosen.products.dtype(part.weight.dtype)
            wanted += part.weight.numel() * dtype.itemsize if chosen.products.packs(dtype) else 0
        elif isinstance(part, Conv2d | Conv3d):
            dtype = chosen.convolutions.dtype(part.weight.dtype)
            wanted += packed_weight_bytes(part.weight, dtype) if chosen.convolutions.packs(dtype) else 0
    return min(wanted, room)
