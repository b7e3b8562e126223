"""The branches of one denoising step, and how much of them is the same work.

Branches that see the same text and have been perturbed alike so far hold the same numbers, so they travel as one *lane*.
A lane forks where its branches first differ (spatio-temporal guidance, arXiv 2411.18664: the perturbed branch leaves the
positive one at its first skipped block). This is exact, whatever the lists are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError

SkipMode = Literal["attention_values", "attention_skip", "transformer_block"]

_ORDER: tuple[SkipMode | None, ...] = (None, "attention_values", "attention_skip", "transformer_block")


@dataclass(frozen=True, eq=False)
class TextAttention:
    """What one block's cross-attention takes from a text.

    constant: (s, 1, d), what it adds to every token, where each context is one token long (the softmax is 1); then there
        are no `keys_values`.
    keys_values: one pair (rows, heads, l, head_dim) per run of neighbouring samples with texts of one length.
    """

    constant: Tensor | None
    keys_values: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, eq=False)
class PreparedText:
    """The text of one branch, made by `LTXTransformer.prepare_text` and owned by the caller.

    contexts: caption-projected, without padding: one (rows, l, d) per run of neighbouring samples with texts of one length.
    samples: number of texts; 1 serves a batch of any size.
    attention: what block i's cross-attention needs, added when block i first runs. It holds as long as the weights do:
        prepare the text anew after a LoRA or the weights change, and in every training step.
    """

    contexts: tuple[Tensor, ...]
    attention: dict[int, TextAttention] = field(default_factory=dict[int, TextAttention])

    @property
    def samples(self) -> int:
        return sum(context.shape[0] for context in self.contexts)


@dataclass(frozen=True, eq=False)
class Branch:
    """One velocity to compute: with which text, and perturbed in which blocks (counted from 0) and how."""

    text: PreparedText
    skip_blocks: frozenset[int] = frozenset()
    mode: SkipMode = "attention_values"


@dataclass(frozen=True)
class BlockPlan:
    """What one block does with the lanes; lanes are numbered by their place in (g b n d).

    The lanes that come out stand in this order: plain, values, skipped, kept. Each tuple names, for the lanes of one kind,
    the lane before the block that each continues; a lane named twice forks.

    plain: nothing is skipped. values: attention output replaced by V. skipped: replaced by the attention's input.
    kept: the whole block is left out. texts: the branch whose text a lane sees, for plain, values and skipped lanes.
    """

    plain: tuple[int, ...]
    values: tuple[int, ...]
    skipped: tuple[int, ...]
    kept: tuple[int, ...]
    texts: tuple[int, ...]

    @property
    def computed(self) -> tuple[int, ...]:
        return self.plain + self.values + self.skipped


def plan(branches: Sequence[Branch], num_blocks: int) -> tuple[tuple[BlockPlan, ...], tuple[int, ...], tuple[int, ...]]:
    """One plan per block; the texts (branch numbers) of the first lanes; and the last lane of every branch.

    Raises:
        ConfigError: no branch, or a block is to be skipped that the model does not have.
    """
    if not branches:
        raise ConfigError("got no branches; expected at least one; pass Branch(text)")
    beyond = sorted({block for branch in branches for block in branch.skip_blocks if not 0 <= block < num_blocks})
    if beyond:
        raise ConfigError(
            f"got skip_blocks {beyond}; expected 0 to {num_blocks - 1}, the model has {num_blocks} blocks; change the list"
        )

    by_text: dict[int, list[int]] = {}
    for number, branch in enumerate(branches):
        by_text.setdefault(id(branch.text), []).append(number)
    lanes = list(by_text.values())
    starts = tuple(lane[0] for lane in lanes)
    plans: list[BlockPlan] = []
    for block in range(num_blocks):

        def action(number: int, block: int = block) -> int:
            branch = branches[number]
            return _ORDER.index(branch.mode if block in branch.skip_blocks else None)

        forked = [
            (kind, lane, list(members))
            for lane, numbers in enumerate(lanes)
            for kind, members in groupby(sorted(numbers, key=action), key=action)
        ]
        forked.sort(key=lambda fork: fork[0])  # stable: lanes keep their places where they can
        sources = [tuple(lane for kind, lane, _ in forked if kind == wanted) for wanted in range(len(_ORDER))]
        lanes = [members for _, _, members in forked]
        plans.append(BlockPlan(*sources, texts=tuple(lane[0] for lane in lanes[: len(lanes) - len(sources[-1])])))
    last = {number: place for place, lane in enumerate(lanes) for number in lane}
    return tuple(plans), starts, tuple(last[number] for number in range(len(branches)))


def take(x: Tensor, lanes: Sequence[int]) -> Tensor:
    """Lanes of x (g ...) in the given order: a view where they are neighbours, otherwise a copy."""
    first = lanes[0]
    if list(lanes) == list(range(first, first + len(lanes))):
        return x[first : first + len(lanes)]
    return torch.stack([x[lane] for lane in lanes])
