"""Placement in a plain process, which owns its device. Under ComfyUI the server's memory management does this
(`nodes/host.py`)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..budget.keeping import leaving
from ..budget.packing import packed_bytes, spare_for_packing
from ..budget.unpacked import room_for_unpacked, unpackable, unpacked_blocks, unpacked_dtype
from ..budget.weights import Weights, resident_blocks, room_for_weights, room_for_work, weight_bytes
from ..host import Host, Record, nowhere
from ..kernels.active import Active
from ..kernels.cards import CardKernels, card_kernels
from ..kernels.choice import PLAIN, Kernels
from ..kernels.here import asked_kernels, kernels_here
from ..models.blocks import block_stack
from ..progress import Notes, Progress, log_note, silent
from ..values import check_whole
from .compiling import check_streaming, compiled, compiles, is_to_be_compiled, is_to_be_recorded, no_compiler
from .computing import active_for, active_on, using
from .copies import DeviceCopies
from .devices import Memory, best_device, is_out_of_memory, memory, named_device, pooled
from .streaming import StreamCopies, streamed
from .unpacking import bytes_unpacked, keep_unpacked, kept_unpacked, leave_unpacked


class DevicePlacement:
    """Puts one module at a time on a device, as copies.

    A transformer or text encoder that does not fit is streamed, with as many blocks resident as fit.
    """

    def __init__(
        self,
        device: str | torch.device | None = None,
        *,
        keep: bool | None = False,
        resident_blocks: int | None = None,
        kernels: Kernels | None = None,
        compile: bool = False,
        say: Notes = log_note,
    ) -> None:
        """device: None: the best available.

        keep: False: copies leave when the `with` block ends. None: they stay until `release`, or until another module
            needs the room; how many blocks of a module are resident, and how much room work has, is the same as with
            False. True: nothing leaves before `release`, and what does not fit beside it is streamed.
        resident_blocks: how many blocks of a transformer or text encoder stay on the device; the others are streamed.
            None: as many as fit.
        kernels: what is asked for. None: what `kernels_here` chooses for a CPU, and `card_kernels` for another device,
            when a model first works here.
        compile: the blocks of transformers are compiled, even of one that does not ask for it, see `compiling`.
        say: hears why they are not.

        Raises ConfigError for a device that torch does not know, or a number below 0.
        """
        self.device = named_device(device) if device is not None else best_device()
        if resident_blocks is not None:
            check_whole("resident_blocks", resident_blocks, 0, advice="leave it out for as many as fit")
        self._keep = keep
        self._resident_blocks = resident_blocks
        self._kernels = kernels
        self._compile = compile
        self._say = say
        self._kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()

    @contextmanager
    def __call__(
        self, module: nn.Module, *, memory_required: int = 0, resident_blocks: int | None = None
    ) -> Generator[torch.device]:
        """resident_blocks: as in `__init__`, for this module alone."""
        resident = self._resident(module, memory_required, resident_blocks)
        if self._compiles(module):
            check_streaming(module, resident)
        kept = self._kept.get(module)
        if kept is not None and not kept.serves(resident):
            self.release(module)
            kept = None
        self._make_room(module, resident if kept is None else kept.resident, memory_required)
        unpacked = self._unpacked(module, resident, memory_required, is_there=kept is not None)
        if self._keep is False:
            active = self._active(module, memory_required)
            placed = self._placed(module, resident)
            with using(module, active, resident), placed, kept_unpacked(module, *unpacked), self._compiled(module):
                yield self.device
            return
        if kept is None:
            kept = self._kept[module] = self._copied(module, resident, memory_required)
        try:
            placed = self._placed(module, kept.resident)
            with using(module, kept.active, kept.resident), placed, self._compiled(module):
                keep_unpacked(module, *unpacked)
                yield self.device
        except BaseException as error:
            if is_out_of_memory(error):  # what is kept must not stand in the way of a second try
                self.release_all()
            raise

    @property
    def kernels(self) -> Kernels | None:
        """By which models compute here; None where they are not on a CPU."""
        if self._kernels is None and self.device.type == "cpu":
            self._kernels = kernels_here()
        return self._kernels if self.device.type == "cpu" else None

    @property
    def card(self) -> CardKernels | None:
        """By which models compute here; None on a CPU. Raises ConfigError: what is asked for is not there."""
        if self.device.type == "cpu":
            return None
        asked = asked_kernels() if self._kernels is None else self._kernels
        return card_kernels(self.device, None if asked is None else asked.card)

    def kernels_of(self, module: nn.Module) -> Kernels | None:  # noqa: ARG002 - as `BalancedPlacement` has it
        """By which this model computes here; None: plainly."""
        return self.kernels

    def release(self, module: nn.Module) -> None:
        """Take a kept module off the device."""
        kept = self._kept.pop(module, None)
        if kept is not None:
            leave_unpacked(module)
            kept.copies.drop()

    def release_all(self) -> None:
        """Take every kept module off the device."""
        for module in list(self._kept):
            self.release(module)

    def spare_memory(self, module: nn.Module) -> int | None:
        """Bytes that work with `module` may take besides its weights; None: main memory, which the system manages.

        At least 1: without any room, work is cut as small as possible.
        """
        available = self._available(module)
        if available is None:
            return None
        return max(room_for_work(available.free, available.total, weight_bytes(module)), 1)

    def _available(self, module: nn.Module) -> Memory | None:
        """The memory for `module` and its work: what is free, what the module has already, and what others would make
        free. None: the system manages it."""
        now = None if self.device.type == "cpu" else memory(self.device)
        if now is None:
            return None
        mine = self._kept.get(module)
        returning = self._held_bytes() if self._keep is None else 0 if mine is None else _nbytes(module, mine)
        if is_to_be_recorded(module) and compiles(module):  # whose work is in there
            returning += pooled(self.device)
        return Memory(now.free + returning, now.total)

    def _held_bytes(self) -> int:
        return sum(_nbytes(module, kept) for module, kept in self._kept.items())

    def _resident(self, module: nn.Module, memory_required: int, asked: int | None) -> int | None:
        """How many blocks stay on the device; None: the whole module."""
        asked = self._resident_blocks if asked is None else asked
        if asked is not None:
            stack = block_stack(module)
            return asked if stack and asked < len(stack.blocks) else None
        available = self._available(module)
        if available is None:
            return None
        return resident_blocks(Weights.of(module), room_for_weights(available.free, available.total, memory_required))

    def _make_room(self, module: nn.Module, resident: int | None, memory_required: int) -> None:
        """Let kept modules leave where this one, or its work, does not fit beside them."""
        others = {other: kept.nbytes for other, kept in self._kept.items() if other is not module}
        now = memory(self.device) if others and self._keep is None else None
        if now is None:
            return
        if self.device.type == "cpu":  # where only packed weights take room of their own
            self._make_room_for_packing(module, now, memory_required)
            return
        mine = self._kept.get(module)
        coming = Weights.of(module).on_device(resident) - (0 if mine is None else mine.nbytes)
        free = now.free + bytes_unpacked(module)  # of which there will be as many as fit
        lacking = coming - room_for_weights(free, now.total, memory_required)
        for other in list(others) if lacking > 0 else []:
            lacking -= bytes_unpacked(other)
            leave_unpacked(other)
        for other in leaving(others, lacking):
            self.release(other)

    def _make_room_for_packing(self, module: nn.Module, now: Memory, memory_required: int) -> None:
        """Let the packed weights of kept modules go where those of this one, or its work, do not fit beside them."""
        others = {each: kept.packed_bytes for each, kept in self._kept.items() if each is not module}
        mine = self._kept.get(module)
        # What was refused for want of room stays as it is: nobody leaves for it.
        room = now.total if mine is None or mine.active is None else mine.active.room
        wanted = packed_bytes(module, self.kernels or PLAIN, room) - (0 if mine is None else mine.packed_bytes)
        lacking = max(0, wanted) - spare_for_packing(now.free, now.total, memory_required)
        for other in leaving({each: size for each, size in others.items() if size}, lacking):
            self.release(other)

    def _unpacked(
        self, module: nn.Module, resident: int | None, memory_required: int, *, is_there: bool
    ) -> tuple[int, torch.dtype]:
        """How many blocks of quantized weights stay unpacked, in memory that nothing else has, and their dtype.

        is_there: whether the weights are on the device already."""
        now = None if self.device.type == "cpu" or resident is not None else memory(self.device)
        if now is None or not any(unpackable(module)):
            return 0, torch.float32
        free, card = now.free + bytes_unpacked(module), self.card
        dtype = unpacked_dtype(module, PLAIN if card is None else card.kernels)
        if is_there:
            return unpacked_blocks(module, dtype, room_for_weights(free, now.total, memory_required)), dtype
        return unpacked_blocks(module, dtype, room_for_unpacked(free, now.total, memory_required, module)), dtype

    def _active(self, module: nn.Module, memory_required: int) -> Active | None:
        """What a module computes by."""
        kernels, card = self.kernels, self.card
        if card is not None:
            compiles = self._compiles(module) and no_compiler(self.device) is None
            return active_on(replace(card, compiles=compiles), module)
        return None if kernels is None else active_for(module, kernels, memory_required)

    def _compiled(self, module: nn.Module) -> AbstractContextManager[None]:
        if not self._compiles(module):
            return nullcontext()
        return compiled(module, self.device, self._say, cuda_graphs=is_to_be_recorded(module))

    def _compiles(self, module: nn.Module) -> bool:
        return self._compile or is_to_be_compiled(module)

    def _copied(self, module: nn.Module, resident: int | None, memory_required: int) -> _Kept:
        """What of a module stays; again without all others, should the device have less room than planned."""
        try:
            return self._copied_once(module, resident, memory_required)
        except (MemoryError, RuntimeError) as error:
            if not self._kept or not is_out_of_memory(error):
                raise
        self.release_all()
        return self._copied_once(module, resident, memory_required)

    def _copied_once(self, module: nn.Module, resident: int | None, memory_required: int) -> _Kept:
        weights, active = Weights.of(module), self._active(module, memory_required)
        if resident is None:
            return _Kept(DeviceCopies(module, self.device), None, weights.total, active)
        nbytes = weights.outside + sum(weights.blocks[:resident])
        return _Kept(StreamCopies(module, self.device, resident), resident, nbytes, active)

    def _placed(self, module: nn.Module, resident: int | None) -> AbstractContextManager[None]:
        """Usable inside. Where copies stay, there is nothing left to copy."""
        return _whole(module, self.device) if resident is None else streamed(module, self.device, resident)


def _nbytes(module: nn.Module, kept: _Kept) -> int:
    """Bytes of a kept module on the device."""
    return kept.nbytes + bytes_unpacked(module)


@dataclass(frozen=True, eq=False)
class _Kept:
    """Copies that stay. resident: how many blocks of a streamed module they have; None: all of a module. nbytes: on the
    device. active: what it computes by, with its packed weights on a CPU."""

    copies: DeviceCopies | StreamCopies
    resident: int | None
    nbytes: int
    active: Active | None

    @property
    def packed_bytes(self) -> int:
        return 0 if self.active is None else self.active.packed_bytes

    def serves(self, resident: int | None) -> bool:
        """Whether a plan for so many blocks can have these: more room than planned is no reason to copy again."""
        if self.resident is None or resident is None:
            return self.resident == resident
        return self.resident <= resident


@contextmanager
def _whole(module: nn.Module, device: torch.device) -> Generator[None]:
    copies = DeviceCopies(module, device)
    try:
        yield
    finally:
        copies.drop()


class SpareMemory(Protocol):
    """A placement that knows how much memory work may take."""

    def __call__(self, module: nn.Module, *, memory_required: int = 0) -> AbstractContextManager[torch.device]: ...

    def spare_memory(self, module: nn.Module) -> int | None: ...


def host_on(
    placement: SpareMemory, progress: Progress = silent, say: Notes = log_note, record: Record = nowhere
) -> Host:
    """A plain process as the host of a run."""
    card = placement.card if isinstance(placement, DevicePlacement) else None
    return Host(placement, placement.spare_memory, progress, say, record, bfloat16=card is None or card.bfloat16)
