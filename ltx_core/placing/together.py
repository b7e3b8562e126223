"""Several processes that make one clip together, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ..errors import ConfigError
from ..models.sharing import Sharing
from ..models.transformer import LTXTransformer


@dataclass(frozen=True)
class Together:
    """The processes of a run. device: of this one. is_first: whether it is the one that speaks and writes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def started_together() -> int:
    """How many processes `torchrun` has started; 1 without it.

    Raises:
        ConfigError: its environment variables are no numbers.
    """
    said = os.environ.get("WORLD_SIZE", "1")
    if not said.isdigit() or not int(said):
        raise ConfigError(f"got WORLD_SIZE={said!r}; expected a number of processes; unset it, or start with torchrun")
    return int(said)


@contextmanager
def together(device: torch.device | None = None) -> Generator[Together]:
    """The processes that `torchrun` has started: NCCL on CUDA, each process on its own card, gloo on CPUs.

    device: of all processes, such as the CPU; None: a card each where there is CUDA.

    Raises:
        ConfigError: more processes than cards.
    """
    rank, local = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    if device is None:
        if torch.cuda.is_available() and local >= torch.cuda.device_count():
            raise ConfigError(
                f"got process {local + 1} of this machine, which has {torch.cuda.device_count()} cards; expected one "
                "for each process; start fewer with torchrun --nproc-per-node"
            )
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Together(rank, dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


@contextmanager
def shared(transformer: LTXTransformer, processes: Sharing | None = None) -> Generator[None]:
    """Inside, each forward of the transformer is divided among the processes, which must all call it equally.

    processes: None for all there are.

    Raises:
        ConfigError: the model's heads of attention cannot be divided among them.
    """
    processes = processes or Sharing()
    processes.check(transformer.config.num_attention_heads)
    transformer.sharing = processes
    try:
        yield
    finally:
        transformer.sharing = None
