"""A model that is larger than any of several devices: its blocks are divided among them, and what flows follows."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..budget.weights import weight_bytes
from ..errors import ConfigError
from ..models.blocks import block_stack
from .copies import DeviceCopies
from .placement import DevicePlacement


def divide(blocks: Sequence[int], outside: int, devices: int) -> list[int]:
    """For each block, given by its bytes, the number of its device: runs of blocks in order, about as many bytes each.

    outside: bytes of what is not in blocks; they are on the first device.
    """
    total, there, found = outside + sum(blocks), outside, list[int]()
    for block in blocks:
        middle = there + block / 2
        found.append(min(int(middle * devices / total), devices - 1))
        there += block
    return found


class BalancedPlacement:
    """The blocks of a transformer or text encoder over several devices; other models, as a whole, on the first one.

    As `device_map="balanced"` of diffusers: one device computes at a time. Weights are copies, which leave when the
    block ends; the same numbers come out as on one device of the same kind. For inference only.
    """

    def __init__(self, devices: Sequence[str | torch.device]) -> None:
        """Raises ConfigError: no device."""
        if not devices:
            raise ConfigError("got no devices; expected one or more; name them, such as cuda:0 and cuda:1")
        self.devices = [torch.device(device) for device in devices]
        self._first = DevicePlacement(self.devices[0])

    @property
    def device(self) -> torch.device:
        """Where a model is given its inputs, and gives its results."""
        return self.devices[0]

    def spare_memory(self, module: nn.Module) -> int | None:
        """As of `DevicePlacement`, for models that are on the first device as a whole."""
        return self._first.spare_memory(module)

    @contextmanager
    def __call__(self, module: nn.Module, *, memory_required: int = 0) -> Generator[torch.device]:
        found = block_stack(module)
        if found is None or len(self.devices) == 1:
            with self._first(module, memory_required=memory_required) as device:
                yield device
            return
        blocks = list(found.blocks)
        sizes = [weight_bytes(block) for block in blocks]
        numbers = divide(sizes, weight_bytes(module) - sum(sizes), len(self.devices))
        with ExitStack() as stack:
            stack.callback(DeviceCopies(module, self.device, leave=blocks).drop)
            for block, number in zip(blocks, numbers, strict=True):
                device = self.devices[number]
                stack.callback(DeviceCopies(block, device).drop)
                for part in found.entries(block):
                    stack.callback(part.register_forward_pre_hook(_Follow(device), with_kwargs=True).remove)
            home = found.exit.register_forward_pre_hook(_Follow(self.device), with_kwargs=True)
            stack.callback(home.remove)
            yield self.device


class _Follow:
    """Brings what a module is given to its device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, _module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return _moved(given, self._device), _moved(named, self._device)


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
