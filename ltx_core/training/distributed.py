"""One process or many: the same code. `torchrun` sets the environment; without it there is one process.

Source: torch.distributed, DistributedDataParallel and FSDP2 (`fully_shard`); nothing else is needed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError, TrainingError
from ..models.sharing import Sharing
from ..placing.devices import device_of_process
from .config import Optimization

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


Unit = tuple[nn.Module, Sequence[str]]
"""A module whose weights are gathered while it runs, and its methods other than `forward` that use them."""


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
    """This process: its number, the number of processes, and its device.

    together: so many processes, of consecutive numbers, divide each clip (sequence parallel). sharing: those of this
    process; None: each process has clips of its own.
    """

    rank: int
    size: int
    device: torch.device
    together: int = 1
    sharing: Sharing | None = None
    _wrapped: list[DistributedDataParallel] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def share(self, batch_size: int, accumulation: int) -> int:
        """Number of clips that one process computes at once.

        Raises:
            ConfigError: the batch does not divide evenly.
        """
        parts = self.size // self.together * accumulation
        if batch_size % parts:
            each = f", {self.together} for each clip," if self.together > 1 else ""
            raise ConfigError(
                f"got batch_size {batch_size} for {self.size} processes{each} with {accumulation} accumulated pieces; "
                f"expected a multiple of {parts}; use {-(-batch_size // parts) * parts}"
            )
        return batch_size // parts

    def pieces(self, step: int, batch_size: int, accumulation: int) -> Iterator[Piece]:
        """The pieces of the batch of `step` that this process computes, one after the other.

        Raises:
            ConfigError: the batch does not divide evenly.
        """
        share, first = self.share(batch_size, accumulation), step * batch_size
        for number in range(accumulation):
            start = (number * (self.size // self.together) + self.rank // self.together) * share
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
        # Every weight has a gradient in every step, as the objectives take care of; to look for others would cost a
        # walk through each step's graph. Without the view, gradients would be there twice: their own and the buckets'.
        wrapped = DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)
        self._wrapped.append(wrapped)
        return wrapped

    def unwrap(self) -> None:
        """Before the processes part: take from wrapped modules, which may outlive that, what averages their gradients.

        It holds the group in C++. If it were the last to do so, it would wait with the interpreter's lock for a thread
        of gloo that may be waiting for this lock.
        """
        for module in self._wrapped:
            del module.logger, module.reducer
        self._wrapped.clear()

    def shards(self, optimization: Optimization) -> bool:
        """Whether `spread` splits weights among the processes."""
        return self.size > 1 and optimization.sharding == "fsdp"

    def parts(self, optimization: Optimization) -> int:
        """How many processes hold a share of the weights and gradients each."""
        return self.size if self.shards(optimization) else 1

    def spread(
        self, module: nn.Module, optimization: Optimization, units: Iterable[Unit] = (), methods: Sequence[str] = ()
    ) -> nn.Module:
        """`module` in all processes: copied or sharded, as the config says. units, methods: as `shard`.

        Raises:
            ConfigError: an optimizer that cannot work on shards.
        """
        if optimization.sharding == "ddp":
            return self.wrap(module)
        if optimization.optimizer != "adamw" or optimization.weights != "fp32":
            name = optimization.optimizer if optimization.weights == "fp32" else "weights bf16"
            raise ConfigError(
                f"got optimizer {name} with sharding fsdp; expected adamw: {name} needs whole matrices; change one"
            )
        return self.shard(module, units, methods)

    def shard(self, module: nn.Module, units: Iterable[Unit], methods: Sequence[str] = ()) -> nn.Module:
        """`module` with weights, gradients and so the optimizer's numbers split over all processes (FSDP2).

        units: modules whose weights are gathered while they run, inner ones first, each with the names of its methods
        other than `forward` that use the weights. The rest of `module` is one more unit, whose own are `methods`.
        """
        if self.size == 1:
            return module
        mesh = init_device_mesh(self.device.type, (self.size,))
        _keep_frozen_scalars(module)
        for unit, own in [*units, (module, methods)]:
            fully_shard(unit, mesh=mesh)  # in place: it becomes an FSDPModule
            for method in own:
                register_fsdp_forward_method(unit, method)
        return module

    def values(self, value: Any) -> list[Any]:
        """What each process says, which can be pickled, in the order of their numbers."""
        if self.size == 1:
            return [value]
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, value)
        return said

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def check_divides(together: int, size: int) -> None:
    """Raises ConfigError: `size` processes cannot divide each clip among `together` of them."""
    if size % together:
        raise ConfigError(
            f"got optimization.sequence_parallel {together} in {size} process{'es' if size > 1 else ''}; expected a "
            f"divisor of their number; start {together} or a multiple of it, such as torchrun --nproc-per-node "
            f"{together}, or change it"
        )


@contextlib.contextmanager
def world(together: int = 1) -> Generator[World]:
    """The processes of this run, from torchrun's environment; NCCL on CUDA, gloo on the CPU.

    together: how many of them divide each clip.

    Raises:
        ConfigError: their number does not divide evenly. TrainingError: another process has ended.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    check_divides(together, size)
    device = device_of_process(int(os.environ.get("LOCAL_RANK", 0)))
    if size == 1:
        yield World(0, 1, device)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")  # objects travel by gloo
    here: World | None = None
    try:
        sharing = None
        if together > 1:
            # Every process must make every group. Their own ones: gradients travel at the same time.
            groups: list[Any] = [
                dist.new_group(list(range(first, first + together))) for first in range(0, size, together)
            ]
            sharing = Sharing(groups[rank // together], teams=False)
        here = World(rank, size, device, together, sharing)
        yield here
    except RuntimeError as error:
        if not any(text in str(error) for text in LOST):
            raise
        raise TrainingError(
            f"got no answer from another of the {size} processes of this run, which has ended; expected all of them to "
            "go on; read what it said, and resume from the last checkpoint"
        ) from error
    finally:
        if here is not None:
            here.unwrap()
        dist.destroy_process_group()


def synchronised(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Inside: the backward pass averages copied gradients over the processes only for the last piece of a batch."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return contextlib.nullcontext()  # FSDP2 averages those of each piece: kept until the last, they would be whole


@contextlib.contextmanager
def sharded_after(module: nn.Module) -> Generator[None]:
    """Around what is measured without a step: a sharded module keeps no weights gathered after it.

    Without gradients FSDP2 leaves those of the root gathered, so that the next step would compute with what they were.
    """
    try:
        yield
    finally:
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether every process must take part wherever the module's weights are used."""
    return isinstance(module, FSDPModule)


def gathered_bytes(module: nn.Module, units: Iterable[Unit], processes: int, *, backward: bool = True) -> int:
    """Bytes that a process holds at once, beyond its shards, of a module that `World.shard` splits in these units.

    At any moment there are the whole weights of the unit that computes and of those around it (the rest of the module
    is the outermost one), and the weights of one more unit as they arrive; in the backward pass the gradients of the
    former are whole, too.
    """
    own: list[tuple[frozenset[int], int, int]] = []  # of each unit: the modules in it, its weights, all with gradients
    seen: set[int] = set()
    for unit in (*(unit for unit, _ in units), module):
        mine = {id(p): p for p in unit.parameters() if id(p) not in seen}
        seen |= mine.keys()
        weights = sum(p.nbytes for p in mine.values())
        trained = sum(p.nbytes for p in mine.values() if p.requires_grad) if backward else 0
        own.append((frozenset(map(id, unit.modules())), weights, weights + trained - trained // processes))
    most = 0
    for parts, _, _ in own:
        around = sum(whole for outer, _, whole in own if parts <= outer)
        # In the forward pass, without gradients, those of the unit itself have arrived in another place.
        arriving = max((weights for outer, weights, _ in own if not (backward and parts <= outer)), default=0)
        most = max(most, around + arriving)
    return most


def _keep_frozen_scalars(module: nn.Module) -> None:
    """Make buffers of them, under the same keys: FSDP2 refuses parameters without a dimension."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.ndim == 0 and not parameter.requires_grad:
                delattr(part, name)
                part.register_buffer(name, parameter.detach())


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
