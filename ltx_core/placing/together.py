"""Several processes that make one clip together, each on a device of its own."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ..errors import ConfigError, UnsupportedError
from ..models.sharing import LONGEST_WAIT, Sharing
from ..models.transformer import LTXTransformer
from ..values import check_kind, shown
from .devices import chosen_device, device_of_process, named_device

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

_ARRIVING = timedelta(minutes=10)
_VARIABLES = ("RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Started:
    """This process among those that `torchrun` has started. local: its number on this machine."""

    rank: int = 0
    size: int = 1
    local: int = 0


def started_together(environment: Mapping[str, str] = os.environ) -> Started:
    """What `torchrun` says of this process; the only one where it says nothing.

    Raises:
        ConfigError: variables of the environment that are no numbers, or some of them without the others.
    """
    if environment.get("WORLD_SIZE", "1").strip() == "1":
        return Started()
    missing = [name for name in _VARIABLES if name not in environment]
    if missing:
        raise ConfigError(
            f"got WORLD_SIZE={shown(environment['WORLD_SIZE'])} in the environment without {', '.join(missing)}; "
            "expected all that torchrun sets; start with torchrun, or unset WORLD_SIZE"
        )
    size, rank = _number(environment, "WORLD_SIZE"), _number(environment, "RANK")
    if not rank < size:
        raise ConfigError(f"got RANK={rank} of WORLD_SIZE={size}; expected a lower number; start with torchrun")
    return Started(rank, size, _number(environment, "LOCAL_RANK" if "LOCAL_RANK" in environment else "RANK"))


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name].strip()
    if not text.isdecimal():
        raise ConfigError(f"got {name}={shown(text)} in the environment; expected a number; start with torchrun")
    return int(text)


def meeting_point() -> Store:
    """A connection to the store of the processes, which `torchrun` or else the first of them keeps. It is to be used
    by one thread.

    Raises:
        UnsupportedError: there is none.
    """
    from torch.distributed.rendezvous import rendezvous  # not in every build of torch

    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=_ARRIVING)))
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsupportedError(
            f"got no connection to the other processes at {place} ({reason}); expected the store that torchrun or the "
            "first process keeps there; start all of them, with torchrun"
        ) from error
    return store


@contextmanager
def joined(started: Started, device: torch.device) -> Generator[ProcessGroup | None]:
    """Inside, the processes are torch.distributed's default group, which is given: NCCL on CUDA, gloo on CPUs.

    It is left without waiting for the others if the block raises.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=meeting_point(), rank=started.rank, world_size=started.size, timeout=LONGEST_WAIT
    )
    yield dist.group.WORLD
    dist.destroy_process_group()


def sharing_of(group: ProcessGroup | None) -> Sharing | None:
    """The processes of a group; None for no group.

    Raises:
        ConfigError: something else, or a group that this process does not belong to.
    """
    if group is None:
        return None
    check_kind("group", group, dist.ProcessGroup)
    return Sharing(group)


def device_here(asked: str | torch.device | None, local: int | None) -> torch.device:
    """The device of this process of several.

    asked: a device or a kind of device; None: the best there is. local: the number of the process on this machine, and
    so of its card, unless `asked` names one; None: torch's current card.

    Raises:
        ConfigError: no such device, or more processes than cards. UnsupportedError: one whose processes cannot exchange
            tensors here.
    """
    device = chosen_device(asked)
    if device.type not in ("cuda", "cpu"):
        raise UnsupportedError(
            f"got {device} for several processes; expected cuda or cpu, on which they exchange tensors; start one "
            "process, or compute on the CPU (device cpu)"
        )
    index: int | None = None if asked is None else named_device(asked).index  # torch's stubs err
    names_one = index is not None
    return device_of_process(local) if device.type == "cuda" and local is not None and not names_one else device


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of this process on its machine; None where the environment does not say it."""
    return _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else None


@contextmanager
def shared(transformer: LTXTransformer, processes: Sharing | None) -> Generator[None]:
    """Inside, each forward of the transformer is divided among the processes, which must all call it equally.

    processes: None: not divided.

    Raises:
        ConfigError: more processes than the model has heads of attention.
    """
    if processes is None:
        yield
        return
    processes.check(transformer.config.num_attention_heads)
    transformer.sharing = processes
    try:
        yield
    finally:
        transformer.sharing = None


def check_alike(processes: Sharing, **said: Any) -> None:
    """Refuse values that are not the same in all processes; each can be pickled.

    Raises:
        ConfigError: the first such value, by its name. UnsupportedError: a process has ended.
    """
    first, *others = processes.values(said)
    for name in said:
        for rank, other in enumerate(others, 1):
            if other[name] != first[name]:
                raise ConfigError(
                    f"got {name} {shown(first[name])} in process 0 and {shown(other[name])} in process {rank}; "
                    "expected the same in all processes of the group, which make one clip together; make equal calls"
                )
