"""The branches of one denoising step, and how much of them is the same work.

Branches that see the same text and have been perturbed alike so far hold the same numbers, so they travel as one
*lane*. A lane forks where its branches first differ: with spatio-temporal guidance (arXiv 2411.18664) the perturbed
branch leaves the positive one at its first skipped block. This is exact, whatever the skip lists are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from ..config import STGMode
from ..errors import ConfigError


@dataclass(frozen=True, eq=False)
class TextKeysValues:
    """Keys and values of a text in one block: one pair (rows, heads, l, head_dim) for each tensor of `contexts`."""

    pairs: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, eq=False)
class TextConstant:
    """What one block adds to every token where each text is one token long, so that the softmax is 1: (s, 1, d)."""

    vector: Tensor


@dataclass(frozen=True, eq=False)
class PreparedText:
    """The text of one branch, made by `LTXTransformer.prepare_text` and owned by the caller.

    contexts: caption-projected, no padding: one (rows, l, d) per run of neighbouring samples with texts of one length.
    attention: what block i reads from the text; added when block i first runs, so that streamed blocks need to be there
        once only. It holds as long as the weights do: prepare the text anew after the weights or a LoRA change, and in
        every training step.
    """

    contexts: tuple[Tensor, ...]
    attention: dict[int, TextKeysValues | TextConstant] = field(
        default_factory=dict[int, TextKeysValues | TextConstant]
    )

    @property
    def samples(self) -> int:
        """Number of texts; 1 serves a batch of any size."""
        return sum(context.shape[0] for context in self.contexts)


@dataclass(frozen=True, eq=False)
class Branch:
    """One velocity to compute: with which text, and perturbed in which blocks (counted from 0) and how.

    Branches with the same text share the text object. Modes, of a skipped block (Lightricks/LTX-Video attention.py):
    attention_values: self-attention gives its values V in place of their weighted means; attention_skip: it gives its
    input; transformer_block: the block is left out.
    """

    text: PreparedText
    skip_blocks: frozenset[int] = frozenset()
    mode: STGMode = "attention_values"


@dataclass(frozen=True)
class BlockPlan:
    """What one block does with the lanes; lanes are numbered by their place in (g b n d).

    The lanes that come out stand in the order plain, values, skipped, kept. Each tuple names, for the lanes of one
    kind, the lane that each continues; a lane that is named twice forks.

    plain: nothing is perturbed. values, skipped: modes attention_values, attention_skip. kept: the block is left out.
    texts: for plain, values and skipped lanes, the number of a branch whose text the lane sees.
    """

    plain: tuple[int, ...]
    values: tuple[int, ...]
    skipped: tuple[int, ...]
    kept: tuple[int, ...]
    texts: tuple[int, ...]

    @property
    def computed(self) -> tuple[int, ...]:
        return self.plain + self.values + self.skipped


@dataclass(frozen=True)
class ForwardPlan:
    """num_lanes: before the first block. blocks: one plan each. lane_of: the last lane of every branch."""

    num_lanes: int
    blocks: tuple[BlockPlan, ...]
    lane_of: tuple[int, ...]


def plan_forward(branches: Sequence[Branch], num_blocks: int) -> ForwardPlan:
    """How the lanes of a forward fork.

    Raises:
        ConfigError: no branch, a mode that does not exist, or a skipped block that the model does not have.
    """
    if not branches:
        raise ConfigError("got no branches; expected at least one; pass Branch(text)")
    beyond = sorted({block for branch in branches for block in branch.skip_blocks if not 0 <= block < num_blocks})
    if beyond:
        raise ConfigError(
            f"got skip_blocks {beyond}; expected numbers from 0 to {num_blocks - 1}, the model has {num_blocks} "
            "blocks; change the list"
        )
    kinds = {None: 0, "attention_values": 1, "attention_skip": 2, "transformer_block": 3}
    unknown = sorted({branch.mode for branch in branches} - kinds.keys())
    if unknown:
        raise ConfigError(
            f"got skip mode {unknown}; expected one of {[mode for mode in kinds if mode]}; pick one of them"
        )

    by_text: dict[int, list[int]] = {}
    for number, branch in enumerate(branches):
        by_text.setdefault(id(branch.text), []).append(number)
    lanes = list(by_text.values())
    num_lanes = len(lanes)
    plans: list[BlockPlan] = []
    for block in range(num_blocks):
        kind_of = [kinds[branch.mode if block in branch.skip_blocks else None] for branch in branches]
        forks = [
            (kind, lane, list(members))
            for lane, numbers in enumerate(lanes)
            for kind, members in groupby(sorted(numbers, key=kind_of.__getitem__), key=kind_of.__getitem__)
        ]
        forks.sort(key=lambda fork: fork[0])  # stable: lanes keep their places where they can, so nothing is moved
        plain, values, skipped, kept = (tuple(lane for kind, lane, _ in forks if kind == k) for k in range(4))
        texts = tuple(members[0] for kind, _, members in forks if kind < 3)
        plans.append(BlockPlan(plain, values, skipped, kept, texts))
        lanes = [members for _, _, members in forks]
    lane_of = {number: place for place, lane in enumerate(lanes) for number in lane}
    return ForwardPlan(num_lanes, tuple(plans), tuple(lane_of[number] for number in range(len(branches))))


def take(x: Tensor, lanes: Sequence[int]) -> Tensor:
    """Lanes of x (g ...) in the given order: a view where they are neighbours, otherwise a copy."""
    first = lanes[0]
    if list(lanes) == list(range(first, first + len(lanes))):
        return x[first : first + len(lanes)]
    return torch.stack([x[lane] for lane in lanes])


def join(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces (g_i ...) as one (g ...); no copy of a single piece."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
