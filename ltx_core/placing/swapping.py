"""Frozen blocks that are larger than the device, in training: each arrives before it computes, forward and backward.

`streaming` replaces the list of blocks, which a backward pass never iterates. Here every block that is away has hooks.
Blocks have to be recomputed in the backward pass (checkpointing): a block is then called again, last one first, its
hooks run again, and its neighbour in that direction is fetched meanwhile. What the graph of a recomputed block needs of
the copies it holds itself, until its gradients are there. The same weights compute in the same order: gradients are
equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from ..models.blocks import block_stack
from .devices import side_stream
from .streaming import DirectTransfers, SideStreamTransfers, StreamCopies, Transfers


class SwappedBlocks:
    """A model on `device` of which the first `resident` blocks stay there and the others come and go, until `drop`.

    Its weights are frozen: a gradient would have no place to stay.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, resident: int, *, transfers: Transfers | None = None
    ) -> None:
        """transfers: how blocks come and go; None: the best way for the device.

        Raises:
            UnsupportedError: the model is not a stack of blocks, or has weights to train.
        """
        stack = block_stack(model)
        if stack is None or any(p.requires_grad for p in model.parameters()):
            what = "no stack of blocks" if stack is None else "weights to train"
            raise UnsupportedError(
                f"got {type(model).__name__} with {what} to swap; expected a frozen transformer; leave "
                "resident_blocks out"
            )
        self.resident, self._device = resident, device
        if transfers is None:
            stream = side_stream(device)
            transfers = DirectTransfers(device) if stream is None else SideStreamTransfers(device, stream)
        self._transfers = transfers
        self._blocks = list(stack.blocks)
        self._there: set[int] = set()  # numbers of blocks that have been started and not dropped
        self._last = self._next = -1  # the block that was entered last, and the one that is expected after it
        self._active = True
        self._copies = StreamCopies(model, device, resident)
        self._handles: list[Any] = []
        for number, block in enumerate(self._blocks):
            if number < resident:
                continue
            for entry in stack.entries(block):
                self._handles.append(entry.register_forward_pre_hook(self._entering(number)))
            self._handles.append(block.register_forward_hook(self._left(number), always_call=True))

    def drop(self) -> None:
        """Put the originals back, and remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._keep(set())
        self._copies.drop()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Inside, somebody else brings the blocks: `streamed`."""
        self._keep(set())
        self._active = False
        try:
            yield
        finally:
            self._active = True

    def _entering(self, number: int) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            if not self._active:
                return
            following = self._following(number)
            self._keep({number, following})  # after an error of the last pass, others may be there
            self._start(number)
            self._transfers.finish(self._blocks[number])
            self._record(self._blocks[number])
            self._last = number

        return enter

    def _following(self, number: int) -> int:
        """The block after this one in the direction in which blocks are entered now."""
        if number == self._last and number in self._there:  # another entry of it
            return self._next
        backward = number < self._last or number == self._last == len(self._blocks) - 1
        self._next = number - 1 if backward else number + 1
        return self._next

    def _left(self, number: int) -> Callable[..., None]:
        def leave(*_: Any) -> None:
            if not self._active:
                return
            # The block is submitted to the device: copying the next one may keep the processor busy.
            if self.resident <= self._next < len(self._blocks):
                self._start(self._next)
            self._drop(number)

        return leave

    def _record(self, block: nn.Module) -> None:
        """A graph frees copies after `drop`, when the stream that they came by no longer waits for the computation."""
        if self._device.type in ("cuda", "xpu"):
            stream = torch.get_device_module(self._device).current_stream(self._device)
            for tensor in (*block.parameters(), *block.buffers()):
                tensor.record_stream(stream)

    def _start(self, number: int) -> None:
        self._transfers.start(self._blocks[number])
        self._there.add(number)

    def _drop(self, number: int) -> None:
        self._transfers.drop(self._blocks[number])
        self._there.discard(number)

    def _keep(self, numbers: set[int]) -> None:
        for number in sorted(self._there - numbers):
            self._drop(number)
