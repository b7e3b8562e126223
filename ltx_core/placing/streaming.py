"""Models that are larger than the device: each block arrives while its predecessor computes.

The model iterates over an `nn.ModuleList` of blocks in its forward; streaming replaces that list by one whose iteration
fetches a block, yields it and drops it. The same modules compute with copies of the same weights, and results are equal
to the last bit. For inference only: a backward pass would miss the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..budget.weights import weight_bytes
from ..errors import UnsupportedError
from ..models.blocks import BlockStack, block_stack
from .copies import Copies, DeviceCopies
from .devices import SideStream, memory, side_stream

PINNED_SHARE = 0.5  # of free main memory; pinned memory cannot be swapped out


class Transfers(Protocol):
    """How the weights of blocks reach the device and leave it.

    Starting a block again, and dropping one that is not there, has no effect.
    """

    def start(self, block: nn.Module) -> None:
        """Begin to fetch a block, during the computation if the device can."""
        ...

    def finish(self, block: nn.Module) -> None:
        """Later computations have the started block complete."""
        ...

    def drop(self, block: nn.Module) -> None:
        """Free the block's copies as soon as its submitted computations are done."""
        ...


class StreamedBlocks(nn.ModuleList):
    """Blocks of which the first `resident` stay on the device, together with at most two others at a time.

    copies: whether a block's weights are copied when it is fetched, and not used where they are.  arrived: called with
    each block that is away when it is there, before it computes.
    """

    def __init__(
        self, blocks: Iterable[nn.Module], resident: int, transfers: Transfers, device: torch.device | None = None
    ) -> None:
        """device: None: where the weights are."""
        super().__init__(blocks)
        self._resident = resident
        self._transfers = transfers
        self.device = torch.device("cpu") if device is None else device
        self.copies: bool = getattr(transfers, "copies", True)
        self.arrived: Callable[[nn.Module], None] | None = None

    @property
    def away(self) -> list[nn.Module]:
        """The blocks that come and go."""
        return list(super().__iter__())[self._resident :]

    def __iter__(self) -> Iterator[nn.Module]:
        blocks = list(super().__iter__())
        for number, block in enumerate(blocks):
            is_away = number >= self._resident
            if is_away:
                self._transfers.start(block)  # has an effect on the first one only; the others are on their way
                self._transfers.finish(block)
                if self.arrived is not None:
                    self.arrived(block)
            yield block
            # Only now, with this block submitted to the device: copying may keep the processor busy.
            following = max(number + 1, self._resident)
            if following < len(blocks):
                self._transfers.start(blocks[following])
            if is_away:
                self._transfers.drop(block)


class DirectTransfers:
    """Copies a block when it is needed; for devices without side streams."""

    def __init__(self, device: torch.device) -> None:
        self.copies = device.type != "cpu"  # where the weights are already
        self._device = device
        self._copies: dict[nn.Module, Copies] = {}

    def start(self, block: nn.Module) -> None:
        """Nothing yet: a second block in memory would gain no time."""

    def finish(self, block: nn.Module) -> None:
        if block not in self._copies:
            self._copies[block] = DeviceCopies(block, self._device)

    def drop(self, block: nn.Module) -> None:
        if block in self._copies:
            self._copies.pop(block).drop()


class SideStreamTransfers:
    """Copies the next block while the current one computes."""

    def __init__(self, device: torch.device, stream: SideStream) -> None:
        self._device = device
        self._stream = stream
        self._copies: dict[nn.Module, tuple[Copies, Any]] = {}

    def start(self, block: nn.Module) -> None:
        if block not in self._copies:
            with self._stream.copying():
                copies = DeviceCopies(block, self._device, non_blocking=True)
            try:
                self._copies[block] = copies, self._stream.mark()
            except BaseException:  # an error of the device: nobody else would drop them
                copies.drop()
                raise

    def finish(self, block: nn.Module) -> None:
        self._stream.compute_after(self._copies[block][1])

    def drop(self, block: nn.Module) -> None:
        if block in self._copies:
            self._stream.after_compute()  # the next copies reuse the memory
            self._copies.pop(block)[0].drop()


class StreamCopies:
    """What of a streamed model is copied once: the resident part on the device, and the other blocks in pinned memory,
    if main memory allows it, from which a device reads at full speed."""

    def __init__(self, model: nn.Module, device: torch.device, resident: int, *, pin: bool = True) -> None:
        """Raises UnsupportedError: the model is not a stack of blocks."""
        away = list(_stack(model).blocks)[resident:]
        self.resident = resident
        self._held = ExitStack()
        try:
            if pin and side_stream(device) is not None and _may_pin(away):
                for block in away:
                    self._held.callback(Copies(block, Tensor.pin_memory).drop)
            self._held.callback(DeviceCopies(model, device, leave=away).drop)
        except BaseException:
            self._held.close()
            raise

    def drop(self) -> None:
        """Put the originals back."""
        self._held.close()


@contextmanager
def streamed(
    model: nn.Module,
    device: torch.device,
    resident: int,
    *,
    transfers: Transfers | None = None,
    pin: bool = True,
) -> Generator[None]:
    """Inside, `model` runs on `device` with its first `resident` blocks there and the others streamed.

    transfers: how blocks come and go; None: the best way for the device.
    pin: as `StreamCopies`. Where these are in their place already, nothing is copied again.

    Raises:
        UnsupportedError: the model is not a stack of blocks.
    """
    model_stack = _stack(model)
    original = model_stack.blocks
    away = list(original)[resident:]
    with ExitStack() as stack:
        if transfers is None:
            stream = side_stream(device)
            transfers = DirectTransfers(device) if stream is None else SideStreamTransfers(device, stream)
        stack.callback(StreamCopies(model, device, resident, pin=pin).drop)
        for block in away:  # after an interrupt two of them may still be on the device
            stack.callback(transfers.drop, block)
        model_stack.replace(StreamedBlocks(original, resident, transfers, device))
        stack.callback(model_stack.replace, original)
        yield


def _stack(model: nn.Module) -> BlockStack:
    stack = block_stack(model)
    if stack is None:
        raise UnsupportedError(
            f"got {type(model).__name__} to stream; expected a transformer or a text encoder; place it as a whole"
        )
    return stack


def _may_pin(blocks: Iterable[nn.Module]) -> bool:
    available = memory(torch.device("cpu"))
    return available is not None and sum(map(weight_bytes, blocks)) <= PINNED_SHARE * available.free
