"""Processes part in order: what holds their group goes before the group does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

# On one processor, and with such an interval, a thread of gloo that has to give back a tensor often waits for the
# interpreter until the main thread waits.
PARTING = """
import os, sys
import torch
from torch import nn
from ltxkit.ltx_core.training.distributed import world
sys.setswitchinterval(1000)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
def run():
    with world() as here:
        module = here.wrap(nn.Linear(1, 1))
        for _ in range(3):
            here.mean(torch.ones(1))
            here.barrier()
    assert not hasattr(module, "reducer")
for port in sys.argv[1:]:
    os.environ["MASTER_PORT"] = port
    run()
    print(port, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a new process imports torch for seconds")
def test_a_wrapped_module_may_outlive_its_group(
    forked: Callable[..., Any], ended: Callable[..., Any], free_port: Callable[[], int]
) -> None:
    """DDP's reducer, in C++, holds the group: if it is the last to do so, it waits with the interpreter's lock for a
    thread that waits for that lock."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    ports = [str(free_port()) for _ in range(10)]
    results = ended([forked(["-c", PARTING, *ports], shared | {"RANK": str(rank)}) for rank in range(2)])
    assert [(status, said) for status, said, _ in results] == [(0, "".join(f"{port}\n" for port in ports))] * 2, results
