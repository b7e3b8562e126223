"""One process or many: the same code. `torchrun` sets the environment; without it there is one process.

Source: torch.distributed, DistributedDataParallel and FSDP2 (`fully_shard`); nothing else is needed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError, TrainingError
from ..placing.devices import device_of_process

try:
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
except ImportError:  # torch 2.5 has them in another place
    from torch.distributed._composable.fsdp import (  # pyright: ignore[reportPrivateImportUsage]
        FSDPModule,  # pyright: ignore[reportPrivateImportUsage]
        fully_shard,  # pyright: ignore[reportPrivateImportUsage]
        register_fsdp_forward_method,  # pyright: ignore[reportPrivateImportUsage]
    )

# What gloo, NCCL and the store between the processes say when one of them has gone.
LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "Socket closed")


@dataclass(frozen=True)
class Piece:
    """The part of a step's batch that one process computes at once.

    indices: numbers of its samples. rows: their places in the batch. last: whether the step's weights are updated next.
    """

    indices: range
    rows: slice
    last: bool


@dataclass(frozen=True)
class World:
    """This process: its number, the number of processes, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def share(self, batch_size: int, accumulation: int) -> int:
        """Number of clips that one process computes at once.

        Raises:
            ConfigError: the batch does not divide evenly.
        """
        parts = self.size * accumulation
        if batch_size % parts:
            raise ConfigError(
                f"got batch_size {batch_size} for {self.size} processes with {accumulation} accumulated pieces; "
                f"expected a "
                f"multiple of {parts}; use {-(-batch_size // parts) * parts}"
            )
        return batch_size // parts

    def pieces(self, step: int, batch_size: int, accumulation: int) -> Iterator[Piece]:
        """The pieces of the batch of `step` that this process computes, one after the other.

        Raises:
            ConfigError: the batch does not divide evenly.
        """
        share, first = self.share(batch_size, accumulation), step * batch_size
        for number in range(accumulation):
            start = (number * self.size + self.rank) * share
            yield Piece(
                range(first + start, first + start + share), slice(start, start + share), number == accumulation - 1
            )

    def portions(self, count: int, batch_size: int, accumulation: int) -> Iterator[range]:
        """0 to count in portions of a training step's size, for which the device has room."""
        at_once = self.share(batch_size, accumulation)
        return (range(start, min(start + at_once, count)) for start in range(0, count, at_once))

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        return bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` with gradients averaged over all processes."""
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, find_unused_parameters=True)

    def shard(self, module: nn.Module, units: Iterable[tuple[nn.Module, Sequence[str]]]) -> nn.Module:
        """`module` with weights, gradients and so the optimizer's numbers split over all processes (FSDP2).

        units: modules whose weights are gathered while they run, inner ones first, each with the names of its methods
        other than `forward` that use the weights. The rest of `module` is one more unit.
        """
        if self.size == 1:
            return module
        mesh = init_device_mesh(self.device.type, (self.size,))
        for unit, methods in units:
            fully_shard(unit, mesh=mesh)
            for method in methods:
                register_fsdp_forward_method(unit, method)
        fully_shard(module, mesh=mesh)  # in place: the module becomes an FSDPModule
        return module

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def world() -> Generator[World]:
    """The processes of this run, from torchrun's environment; NCCL on CUDA, gloo on the CPU."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = device_of_process(int(os.environ.get("LOCAL_RANK", 0)))
    if size == 1:
        yield World(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size, device)
    except RuntimeError as error:
        if not any(text in str(error) for text in LOST):
            raise
        raise TrainingError(
            f"got no answer from another of the {size} processes of this run, which has ended; expected all of them to "
            "go on; read what it said, and resume from the last checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


def synchronised(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Inside: the backward pass averages gradients over the processes only for the last piece of a batch."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    return contextlib.nullcontext()


@contextlib.contextmanager
def gathered(module: nn.Module) -> Generator[None]:
    """Inside, the parts of a sharded module that are not units themselves can be used directly."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, or the whole of an unsharded one."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(value: Any) -> Any:
    """A nested state with every sharded tensor gathered, on the CPU. All processes must call it."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item) for item in value)  # pyright: ignore[reportCallIssue]
    return value


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
