"""LoRAs merged into the copies of a model's weights: they then cost nothing while it runs.

A weight is merged in float32 and rounded once to its stored dtype; from the file's own pages, which nothing writes to,
it is merged anew and undone exactly. On a device the copy is there anyway; on a CPU, which computes with the file's
pages, one is made. Streamed blocks are merged each time they arrive.

What is merged stays with copies that stay: the next run merges only what it has otherwise. A Linear that is called
outside such a run gets its own weight back first.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..budget.packing import room_for_packing
from ..kernels.active import PLAINLY, Active
from ..models.blocks import block_stack
from ..weights.adapters import Change, Factors, merge
from .copies import CopiedParameter
from .devices import memory
from .streaming import StreamedBlocks

Changes = list[tuple[Change, float]]  # each with its strength, in the order of the LoRAs

_UNFINISHED = (object(),)  # what a copy holds while it is written to


@dataclass(frozen=True, eq=False)
class Merge:
    """What one parameter of a Linear gets. changes: of it. key: the LoRAs that they are of, and their strengths."""

    module: nn.Module
    parameter: str
    changes: Changes
    key: tuple[Hashable, ...]

    @property
    def there(self) -> Tensor:
        return cast(Tensor, self.module._parameters[self.parameter])  # pyright: ignore[reportPrivateUsage]


def is_plain(module: nn.Module) -> bool:
    """Whether a module's weight are numbers that may be merged into: not packed, and not in training."""
    return (
        isinstance(module, nn.Linear)
        and module.weight.is_floating_point()
        and not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    )


def has_room(model: nn.Module, merges: Sequence[Merge]) -> bool:
    """Whether there is room for the copies that merging makes: on a CPU beside the file's pages, elsewhere none."""
    streamed = _streamed_blocks(model)
    away = {id(part) for block in streamed.away for part in block.modules()} if streamed is not None else set[int]()
    arrive = away if streamed is not None and streamed.copies else set[int]()
    needed: dict[torch.device, int] = {}
    for each in merges:
        if not isinstance(each.there, CopiedParameter) and id(each.module) not in arrive:
            device = each.there.device
            needed[device] = needed.get(device, 0) + each.there.nbytes
    return all(nbytes <= _room(model, device) for device, nbytes in needed.items())


def _room(model: nn.Module, device: torch.device) -> int:
    active = _active(model)
    if active is not PLAINLY:  # of a placement on a CPU, which knows what the work takes
        return active.room - active.packed_bytes
    here = memory(device) if device.type != "meta" else None
    return 0 if here is None else room_for_packing(here.free, here.total, 0)


@contextmanager
def merged_into(model: nn.Module, merges: Sequence[Merge]) -> Generator[None]:
    """Inside, the weights have these changes in them, and no others that were merged before."""
    stays = model.__dict__.get("copies") is not None  # which put the originals back when they go
    streamed = _streamed_blocks(model)
    away = {id(part) for block in streamed.away for part in block.modules()} if streamed is not None else set[int]()
    arriving: dict[nn.Module, list[Merge]] = {}
    now: list[Merge] = []
    for each in merges:
        if streamed is not None and id(each.module) in away and streamed.copies:
            arriving.setdefault(each.module, []).append(_on_device(each, streamed.device))
        else:
            now.append(each)
    wanted = {(id(each.module), each.parameter) for each in now}
    with ExitStack() as stack:
        _watch_left(model, on=False)
        stack.callback(_watch_left, model, on=True)
        _undo(model, keep=wanted)
        stack.callback(_undo_own, model, all_of_them=not stays or streamed is not None)
        for each in now:
            _merge(each)
        if streamed is not None and arriving:
            streamed.arrived = lambda block: _merge_all(block, arriving)
            stack.callback(setattr, streamed, "arrived", None)
        yield


def unmerged(model: nn.Module) -> None:
    """Put the model's own numbers back into whatever is merged, for those who read its weights."""
    _watch_left(model, on=False)
    _undo(model, keep=set())


# --- one parameter ----------------------------------------------------------------------------------------------------


def _merge(each: Merge) -> None:
    there = each.there
    if isinstance(there, CopiedParameter):
        if there.holds == each.key:
            return
        copied, base = there, there.original if there.holds else there
    else:
        with torch.inference_mode(mode=False):
            copied = CopiedParameter.of(there, torch.empty_like(there), moved=False)
        base = there
        _change_room(each.module, -there.nbytes)
    copied.holds = _UNFINISHED
    with torch.inference_mode():  # where tensors of both kinds may be written to
        merge(base, each.changes, copied)
    copied.holds = each.key
    _put(each.module, each.parameter, copied)


def _restore(module: nn.Module, name: str, there: CopiedParameter) -> None:
    """Put a module's own numbers back, bit for bit."""
    if there.moved:
        there.holds = _UNFINISHED
        with torch.inference_mode():
            there.copy_(there.original)
        there.holds = ()
        _put(module, name, there)
        return
    _put(module, name, there.original)
    _active(module).forget(there)
    _change_room(module, there.nbytes)


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    parameters = cast("dict[str, Tensor | None]", module._parameters)  # pyright: ignore[reportPrivateUsage]
    parameters[name] = tensor
    _active(module).forget(tensor)


def _active(module: nn.Module) -> Active:
    return cast(Active, getattr(module, "active", PLAINLY))


def _change_room(module: nn.Module, nbytes: int) -> None:
    """Packed weights have so many bytes more, or fewer, on a CPU."""
    active = _active(module)
    if active is not PLAINLY:
        active.room += nbytes


# --- a whole model ----------------------------------------------------------------------------------------------------


def _held(model: nn.Module) -> list[tuple[nn.Module, str, CopiedParameter]]:
    """Everything that something is merged into."""
    return [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, CopiedParameter) and parameter.holds
    ]


def _undo(model: nn.Module, keep: set[tuple[int, str]]) -> None:
    for module, name, parameter in _held(model):
        if (id(module), name) not in keep:
            _restore(module, name, parameter)


def _undo_own(model: nn.Module, *, all_of_them: bool) -> None:
    """Free the copies that merging made, unless they stay with copies of the whole model."""
    for module, name, parameter in _held(model):
        if all_of_them and not parameter.moved:
            _restore(module, name, parameter)


def _watch_left(model: nn.Module, *, on: bool) -> None:
    """From now on what is merged is undone when its module is called; or this ends."""
    for module in list(model.modules()):
        handle = module.__dict__.pop("undoing", None)
        if handle is not None:
            handle.remove()
    for module in {id(module): module for module, _, _ in (_held(model) if on else ())}.values():
        module.__dict__["undoing"] = module.register_forward_pre_hook(_own_weights_first)


def _own_weights_first(module: nn.Module, _: Any) -> None:
    for _module, name, parameter in _held(module):
        _restore(module, name, parameter)
    handle = module.__dict__.pop("undoing", None)
    if handle is not None:
        handle.remove()


# --- streamed blocks --------------------------------------------------------------------------------------------------


def _streamed_blocks(model: nn.Module) -> StreamedBlocks | None:
    stack = block_stack(model)
    return stack.blocks if stack is not None and isinstance(stack.blocks, StreamedBlocks) else None


def _on_device(each: Merge, device: torch.device) -> Merge:
    """The same with its factors on the device, where they are used in every step."""
    changes: Changes = []
    for change, strength in each.changes:
        parts = tuple(
            Factors(part.down.to(device), part.up.to(device), part.scale) if isinstance(part, Factors) else part
            for part in change.parts
        )
        changes.append((replace(change, parts=parts), strength))
    return replace(each, changes=changes)


def _merge_all(block: nn.Module, arriving: Mapping[nn.Module, Sequence[Merge]]) -> None:
    for module in block.modules():
        for each in arriving.get(module, ()):
            _merge(each)
