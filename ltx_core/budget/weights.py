"""How many bytes of weights a model has, and how many of its blocks a device has room for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..models.blocks import block_stack

MARGIN = 1 / 8  # of the device's memory: for work of unknown size, and for fragmentation
# Of the work: memory that torch's allocator holds in pieces too small to use. On an H200 limited to 6 and 8 GiB it was
# 0.63 and 0.47 GiB in addition to 1.5 GiB of work (13B as Q4_0, benchmarks/plan_gpu.py).
FRAGMENTATION = 1 / 2
STREAM_BUFFERS = 2  # streamed blocks on the device at once: one computes, the next one arrives


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers; a tensor that several modules share counts once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


@dataclass(frozen=True)
class Weights:
    """Bytes of a model: outside its blocks, and of each block; no blocks if it can only be placed as a whole."""

    outside: int
    blocks: tuple[int, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> Weights:
        """The weights of a module, which may be on meta."""
        stack = block_stack(module)
        total = weight_bytes(module)
        if stack is None:
            return cls(total)
        blocks = tuple(weight_bytes(block) for block in stack.blocks)
        return cls(total - sum(blocks), blocks)

    @property
    def total(self) -> int:
        return self.outside + sum(self.blocks)

    def on_device(self, resident: int | None) -> int:
        """Bytes on the device at once. resident: how many of the blocks stay there; None: all."""
        if resident is None or resident >= len(self.blocks):
            return self.total
        buffers = min(STREAM_BUFFERS, len(self.blocks) - resident)
        return self.outside + sum(self.blocks[:resident]) + buffers * max(self.blocks[resident:])


def resident_blocks(weights: Weights, free: int) -> int | None:
    """How many blocks can stay on a device that has `free` bytes for weights; the others have to be streamed.

    None: everything fits, or there are no blocks. 0 even where streaming will run out of memory too.
    """
    if not weights.blocks or weights.total <= free:
        return None
    fitting = (free - weights.outside) // max(weights.blocks) - STREAM_BUFFERS
    return max(0, min(len(weights.blocks) - 1, fitting))


def room_for_weights(free: int, total: int, required: int) -> int:
    """Bytes for weights on a device with `free` of `total` bytes, when the work needs `required`."""
    return free - max(int((1 + FRAGMENTATION) * required), int(MARGIN * total))


def room_for_work(free: int, total: int, weights: int) -> int:
    """Bytes for work next to `weights` bytes, on a device with `free` of `total`; fragmentation may leave less."""
    return free - weights - int(MARGIN * total)
