"""A model that is larger than any single device: its blocks are divided among several, and activations move along."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..budget.weights import room_for_weights, weight_bytes
from ..errors import ConfigError
from ..kernels.choice import Kernels
from ..models.blocks import block_stack
from .copies import DeviceCopies
from .devices import memory, named_device
from .placement import DevicePlacement


def divide(blocks: Sequence[int], outside: int, devices: int) -> list[int]:
    """The device number of every block: consecutive blocks share a device, and devices get about equally many bytes.

    blocks: bytes of each. outside: bytes of everything else in the model, which is on the first device.
    """
    total, before, numbers = outside + sum(blocks), outside, list[int]()
    for block in blocks:
        middle = before + block / 2
        numbers.append(min(int(middle * devices / total), devices - 1))
        before += block
    return numbers


class BalancedPlacement:
    """Divides the blocks of a transformer or text encoder among several devices; other models go to the first one.

    As with `device_map="balanced"` in diffusers, one device computes at a time. Weights are copies, which leave when
    the `with` block ends; results are the same as on one device of the same kind. For inference only.
    """

    def __init__(self, devices: Sequence[str | torch.device], *, keep: bool | None = False) -> None:
        """keep: as `DevicePlacement`. Raises ConfigError if there is no device."""
        if not devices:
            raise ConfigError("got no devices; expected one or more; name them, such as cuda:0 and cuda:1")
        self.devices = [named_device(device) for device in devices]
        self._keep = keep
        self._first = DevicePlacement(self.devices[0], keep=keep)
        self._kept: WeakKeyDictionary[nn.Module, _Divided] = WeakKeyDictionary()

    @property
    def device(self) -> torch.device:
        """Where a model takes its inputs and returns its results."""
        return self.devices[0]

    @property
    def kernels(self) -> Kernels | None:
        """As in `DevicePlacement`, of models that go to the first device as a whole; divided ones compute plainly."""
        return self._first.kernels

    def kernels_of(self, module: nn.Module) -> Kernels | None:
        """By which this model computes; None: plainly."""
        return None if self._divides(module) else self.kernels

    def _divides(self, module: nn.Module) -> bool:
        return len(self.devices) > 1 and block_stack(module) is not None

    def spare_memory(self, module: nn.Module) -> int | None:
        """As in `DevicePlacement`, for a model that goes to the first device as a whole."""
        spare = self._first.spare_memory(module)
        returning = sum(kept.nbytes[0] for kept in self._kept.values()) if self._keep is None else 0
        return None if spare is None else spare + returning

    def release_all(self) -> None:
        """Take every kept module off the devices."""
        self._first.release_all()
        for module in list(self._kept):
            self._kept.pop(module).drop()

    @contextmanager
    def __call__(self, module: nn.Module, *, memory_required: int = 0) -> Generator[torch.device]:
        block_list = block_stack(module)
        if block_list is None or not self._divides(module):
            self._make_room(module, [weight_bytes(module), *[0] * (len(self.devices) - 1)], memory_required)
            with self._first(module, memory_required=memory_required) as device:
                yield device
            return
        blocks = list(block_list.blocks)
        sizes = [weight_bytes(block) for block in blocks]
        outside = weight_bytes(module) - sum(sizes)
        numbers = divide(sizes, outside, len(self.devices))
        nbytes = [
            sum(size for size, number in zip(sizes, numbers, strict=True) if number == place)
            for place in range(len(self.devices))
        ]
        nbytes[0] += outside
        with ExitStack() as stack:
            if module not in self._kept:
                self._make_room(module, nbytes, memory_required)
                divided = _Divided(module, blocks, [self.devices[number] for number in numbers], self.device, nbytes)
                if self._keep is False:
                    stack.callback(divided.drop)
                else:
                    self._kept[module] = divided
            for block, number in zip(blocks, numbers, strict=True):
                for part in block_list.entries(block):
                    hook = _Follow(self.devices[number])
                    stack.callback(part.register_forward_pre_hook(hook, with_kwargs=True).remove)
            exit_hook = block_list.exit.register_forward_pre_hook(_Follow(self.device), with_kwargs=True)
            stack.callback(exit_hook.remove)
            yield self.device

    def _make_room(self, module: nn.Module, nbytes: Sequence[int], memory_required: int) -> None:
        """Let the other kept modules leave, where a device has no room for its part of this one beside them."""
        if self._keep is not None or not any(other is not module for other in self._kept):
            return
        for device, coming in zip(self.devices, nbytes, strict=True):
            now = None if device.type == "cpu" else memory(device)
            if now is not None and coming > room_for_weights(now.free, now.total, memory_required):
                for other in [other for other in self._kept if other is not module]:
                    self._kept.pop(other).drop()
                return


class _Divided:
    """Copies of a model whose blocks are on several devices. nbytes: on each."""

    def __init__(
        self,
        module: nn.Module,
        blocks: Sequence[nn.Module],
        places: Sequence[torch.device],
        rest: torch.device,
        nbytes: Sequence[int],
    ) -> None:
        """places: of the blocks. rest: of everything else."""
        self.nbytes = nbytes
        with ExitStack() as stack:
            stack.callback(DeviceCopies(module, rest, leave=blocks).drop)
            for block, place in zip(blocks, places, strict=True):
                stack.callback(DeviceCopies(block, place).drop)
            self.drop = stack.pop_all().close


class _Follow:
    """Moves the inputs of a module to its device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return _moved(inputs, self._device), _moved(named, self._device)


def _moved(value: Any, device: torch.device) -> Any:
    """The same value with its tensors on a device: a tensor, or tuples, lists, mappings and dataclasses of them."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        moved = [_moved(each, device) for each in cast("Sequence[Any]", value)]
        return moved if isinstance(value, list) else tuple(moved)
    if isinstance(value, dict):
        return {key: _moved(each, device) for key, each in cast("Mapping[Any, Any]", value).items()}
    if is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: _moved(getattr(value, field.name), device) for field in fields(value)}
        changed = any(each is not getattr(value, name) for name, each in changes.items())
        return replace(value, **changes) if changed else value
    return value
