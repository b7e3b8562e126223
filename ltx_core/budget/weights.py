"""How many bytes of weights a model has, and how many of its blocks a device has room for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..models.blocks import block_stack

MARGIN = 1 / 8  # of the device's memory: for the work, where nobody says what it needs, and for fragmentation
# Of the work: what torch's allocator holds in pieces that fit nothing. On an H200 capped like cards of 6 and 8 GiB it
# was 0.63 and 0.47 GiB beside 1.5 GiB of work (13B as Q4_0, benchmarks/plan_gpu.py).
FRAGMENTATION = 1 / 2
STREAM_BUFFERS = 2  # streamed blocks that are there at once: one computes, one comes


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers; a tensor that several modules share counts once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


@dataclass(frozen=True)
class Weights:
    """Bytes of a model: outside its blocks, and of each block; no blocks for what can only be placed as a whole."""

    outside: int
    blocks: tuple[int, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> Weights:
        """Of a module, on meta too."""
        found = block_stack(module)
        total = weight_bytes(module)
        if found is None:
            return cls(total)
        blocks = tuple(weight_bytes(block) for block in found.blocks)
        return cls(total - sum(blocks), blocks)

    @property
    def total(self) -> int:
        return self.outside + sum(self.blocks)

    def on_device(self, resident: int | None) -> int:
        """Bytes on the device at once; resident: how many of the blocks stay there, None: everything does."""
        if resident is None or resident >= len(self.blocks):
            return self.total
        buffers = min(STREAM_BUFFERS, len(self.blocks) - resident)
        return self.outside + sum(self.blocks[:resident]) + buffers * max(self.blocks[resident:])


def resident_blocks(weights: Weights, free: int) -> int | None:
    """How many blocks can stay on a device that has `free` bytes for weights.

    None: everything fits, or there are no blocks. Otherwise the other blocks are to be streamed, even if that fails.
    """
    if not weights.blocks or weights.total <= free:
        return None
    fitting = (free - weights.outside) // max(weights.blocks) - STREAM_BUFFERS
    return max(0, min(len(weights.blocks) - 1, fitting))


def room_for_weights(free: int, total: int, required: int) -> int:
    """Bytes for weights on a device with `free` of `total` bytes, when the work needs `required`."""
    return free - max(int((1 + FRAGMENTATION) * required), int(MARGIN * total))


def room_for_work(free: int, total: int, weights: int) -> int:
    """Bytes for the work beside `weights` bytes on a device with `free` of `total`; at most that, for fragmentation."""
    return free - weights - int(MARGIN * total)
