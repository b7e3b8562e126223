"""CUDA graphs of compiled blocks: a block is launched as a whole, which pays where a card waits for the CPU.

torch's own graph trees record and replay (torch/_inductor/cudagraph_trees.py, option `triton.cudagraphs`). Each block
runs once as it is for a new set of sizes, is recorded the second time, and is replayed from the third time on. Weights
are read where they are, and a recording is made anew where they have moved; every other input is copied to where the
recording has it. All recordings share one pool of memory, which the process keeps.

What a block returns lies in this pool until the next step is marked, and is then overwritten. So a forward is one step,
one at a time, and nothing of it outlives it: what a forward returns is computed outside of the blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Hashable, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..kernels.cards import Capabilities
from ..models.branches import Branch, structure_of
from ..models.rope import RotaryTable
from ..progress import Notes

OPTIONS: dict[str, Any] = {"triton.cudagraphs": True}
"""Of torch's compiler. For a CPU it compiles as it does without."""
MOST_SIZES = 16  # a recording of every block for each of them stays in memory: beyond, blocks run as they are compiled

_one_at_a_time = threading.RLock()
_recorded: set[Hashable] = set()
"""What recordings depend on: sizes, and where the weights are. They stay for the process, as torch keeps them."""


class Records(Protocol):
    """What runs the blocks. records: whether by graphs."""

    records: bool


def no_graphs(device: torch.device) -> str | None:
    """Why a device has no CUDA graphs, as a clause; None: it has them."""
    kind = Capabilities.of(device).kind
    return None if kind == "cuda" else f"they are NVIDIA's, and this is {kind}"


@contextmanager
def in_steps(model: nn.Module, runs: Records, say: Notes) -> Generator[None]:
    """Inside, each forward of a transformer is a step of its own. say: hears when too many sizes are recorded."""
    model.__dict__["forward"] = _Steps(model, runs, say)
    try:
        yield
    finally:
        model.__dict__.pop("forward", None)


class _Steps:
    def __init__(self, model: nn.Module, runs: Records, say: Notes) -> None:
        self._model, self._runs, self._say = model, runs, say
        self._is_said = False

    def __call__(self, x: Tensor, sigma: Tensor, rotary: RotaryTable, branches: Sequence[Branch]) -> tuple[Tensor, ...]:
        with _one_at_a_time:
            self._runs.records = self._admits(_sizes(self._model, x, sigma, rotary, branches))
            if self._runs.records:
                torch.compiler.cudagraph_mark_step_begin()
            return type(self._model).forward(self._model, x, sigma, rotary, branches)

    def _admits(self, sizes: Hashable) -> bool:
        if sizes not in _recorded and len(_recorded) >= MOST_SIZES:
            if not self._is_said:
                self._is_said = True
                self._say(
                    f"Steps of {MOST_SIZES} sizes are recorded as CUDA graphs, as many as are kept; others run "
                    "compiled without them."
                )
            return False
        _recorded.add(sizes)
        return True


def _sizes(
    model: nn.Module, x: Tensor, sigma: Tensor, rotary: RotaryTable, branches: Sequence[Branch]
) -> tuple[Hashable, ...]:
    weights = tuple(parameter.data_ptr() for parameter in model.parameters(recurse=False))
    texts = tuple(tuple(tuple(context.shape) for context in branch.text.contexts) for branch in branches)
    weighted = None if rotary.weights is None else rotary.weights.shape
    return weights, x.shape, sigma.shape, weighted, structure_of(branches), texts
