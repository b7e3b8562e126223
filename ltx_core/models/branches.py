"""The branches of one denoising step, and how much of their work is the same.

Branches that see the same text and have been perturbed alike so far hold the same numbers, so they travel as one
*lane*. A lane forks where its branches first differ: under spatio-temporal guidance (arXiv 2411.18664) the perturbed
branch leaves the positive one at its first skipped block. This is exact for any skip lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
    """What one block adds to every token if each text is a single token, over which the softmax is 1: (s, 1, d)."""

    vector: Tensor


BlockText = TextKeysValues | TextConstant
"""What one block reads from a text."""


class TextCache:
    """What each block reads from one text, computed when the block first runs.

    Only then are the weights of a streamed block on the device. The entries are valid as long as the weights do not
    change.
    """

    def __init__(self) -> None:
        self._of_block: dict[int, tuple[torch.dtype, BlockText]] = {}

    def of_block(self, number: int, dtype: torch.dtype, compute: Callable[[], BlockText]) -> BlockText:
        """The entry of block `number`, from `compute` if there is none yet for computations in `dtype`."""
        if number not in self._of_block or self._of_block[number][0] != dtype:
            self._of_block[number] = dtype, compute()
        return self._of_block[number][1]

    def __len__(self) -> int:
        return len(self._of_block)


@dataclass(frozen=True, eq=False)
class PreparedText:
    """The text of one branch, made by `LTXTransformer.prepare_text` and owned by the caller.

    contexts: caption-projected, no padding: one (rows, l, d) per run of neighbouring samples with texts of one length.
    cache: filled by the first forward with this text. Prepare the text anew after the weights or a LoRA change, and in
        every training step.
    """

    contexts: tuple[Tensor, ...]
    cache: TextCache = field(default_factory=TextCache)

    @property
    def samples(self) -> int:
        """Number of texts; 1 serves a batch of any size."""
        return sum(context.shape[0] for context in self.contexts)


@dataclass(frozen=True, eq=False)
class Branch:
    """One velocity to compute: with which text, and in which blocks (counted from 0) it is perturbed, and how.

    Branches with the same text share the text object. In a skipped block (Lightricks/LTX-Video attention.py):
    attention_values: self-attention returns its values V instead of their weighted means; attention_skip: it returns
    its input; transformer_block: the whole block is left out.
    """

    text: PreparedText
    skip_blocks: frozenset[int] = frozenset()
    mode: STGMode = "attention_values"


BranchStructure = tuple[tuple[int, frozenset[int], STGMode], ...]
"""All that a plan depends on: for each branch the number of its text, its skipped blocks, and its mode."""


def structure_of(branches: Sequence[Branch]) -> BranchStructure:
    """Texts are numbered in the order of their first branch."""
    texts: dict[int, int] = {}
    return tuple(
        (texts.setdefault(id(branch.text), len(texts)), branch.skip_blocks, branch.mode) for branch in branches
    )


@dataclass(frozen=True)
class BlockPlan:
    """What one block does with the lanes; lanes are numbered by their place in (g b n d).

    In self-attention lanes stand in the order plain, values, skipped; those that leave the block out, kept, come last
    after it. Each tuple names, for the lanes of one kind, the lane that each continues; one that is named twice forks.
    They fork once more where the block reads the text.

    plain: unperturbed. values, skipped: modes attention_values, attention_skip. kept: the block is left out.
    readers: for each lane after the text is read, its lane in self-attention. texts: the number of a branch whose text
    it sees.
    """

    plain: tuple[int, ...]
    values: tuple[int, ...]
    skipped: tuple[int, ...]
    kept: tuple[int, ...]
    readers: tuple[int, ...]
    texts: tuple[int, ...]

    @property
    def computed(self) -> tuple[int, ...]:
        """Lanes of self-attention."""
        return self.plain + self.values + self.skipped

    @property
    def perturbs(self) -> bool:
        return bool(self.values or self.skipped or self.kept)

    @property
    def valued(self) -> tuple[int, ...]:
        """Lanes whose values V the self-attention needs, each once."""
        return tuple(sorted({*self.plain, *self.values}))

    def fork(self, x: Tensor) -> Tensor:
        """Lanes before the block (g ...) -> one for each lane of self-attention."""
        return take(x, self.computed)

    def spread(self, x: Tensor) -> Tensor:
        """Lanes of self-attention (g ...) -> one for each that reads a text."""
        return x if len(self.readers) == len(self.computed) else take(x, self.readers)

    def set_aside(self, x: Tensor) -> Tensor | None:
        """Lanes before the block (g ...) -> those that leave it out, if any."""
        return take(x, self.kept) if self.kept else None

    def rejoin(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """Computed lanes, and those that were set aside -> lanes after the block."""
        return x if kept is None else torch.cat([x, kept.to(x.device)])  # the block may be on a device of its own


@dataclass(frozen=True)
class ForwardPlan:
    """num_lanes: before the first block. blocks: one plan each. lane_of: the last lane of every branch."""

    num_lanes: int
    blocks: tuple[BlockPlan, ...]
    lane_of: tuple[int, ...]


def plan_forward(structure: BranchStructure, num_blocks: int, *, apart: bool = False) -> ForwardPlan:
    """How the lanes of a forward fork. All branches have the same input: it is one lane until a text is read.

    apart: one lane per text from the start, so that the first block is none of a kind, which would be compiled alone.

    Raises:
        ConfigError: no branch, a mode that does not exist, or a skipped block that the model does not have.
    """
    if not structure:
        raise ConfigError("got no branches; expected at least one; pass Branch(text)")
    beyond = sorted({block for _, skip_blocks, _ in structure for block in skip_blocks if not 0 <= block < num_blocks})
    if beyond:
        raise ConfigError(
            f"got skip_blocks {beyond}; expected numbers from 0 to {num_blocks - 1}, the model has {num_blocks} "
            "blocks; change the list"
        )
    kinds = {None: 0, "attention_values": 1, "attention_skip": 2, "transformer_block": 3}
    unknown = sorted({mode for _, _, mode in structure} - kinds.keys())
    if unknown:
        raise ConfigError(
            f"got skip mode {unknown}; expected one of {[mode for mode in kinds if mode]}; pick one of them"
        )

    everything = range(len(structure))
    lanes = _by_text(structure, everything) if apart else [list(everything)]
    num_lanes = len(lanes)
    plans: list[BlockPlan] = []
    for block in range(num_blocks):
        kind_of = [kinds[mode if block in skip_blocks else None] for _, skip_blocks, mode in structure]
        forks = [
            (kind, lane, list(members))
            for lane, numbers in enumerate(lanes)
            for kind, members in groupby(sorted(numbers, key=kind_of.__getitem__), key=kind_of.__getitem__)
        ]
        forks.sort(key=lambda fork: fork[0])  # stable: lanes keep their places where they can, and nothing moves
        plain, values, skipped, kept = (tuple(lane for kind, lane, _ in forks if kind == k) for k in range(4))
        readers = [
            (lane, members)
            for lane, (kind, _, attending) in enumerate(forks)
            if kind < 3
            for members in _by_text(structure, attending)
        ]
        texts = tuple(members[0] for _, members in readers)
        plans.append(BlockPlan(plain, values, skipped, kept, tuple(lane for lane, _ in readers), texts))
        lanes = [members for _, members in readers] + [members for kind, _, members in forks if kind == 3]
    lane_of = {number: place for place, lane in enumerate(lanes) for number in lane}
    return ForwardPlan(num_lanes, tuple(plans), tuple(lane_of[number] for number in range(len(structure))))


def _by_text(structure: BranchStructure, numbers: Iterable[int]) -> list[list[int]]:
    """Branches that see the same text, in the order of the first of each."""
    found: dict[int, list[int]] = {}
    for number in numbers:
        found.setdefault(structure[number][0], []).append(number)
    return list(found.values())


def take(x: Tensor, lanes: Sequence[int]) -> Tensor:
    """Lanes of x (g ...) in the given order: a view where they are neighbours, otherwise a copy."""
    first = lanes[0]
    if list(lanes) == list(range(first, first + len(lanes))):
        return x[first : first + len(lanes)]
    return torch.stack([x[lane] for lane in lanes])


def join(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces (g_i ...) as one (g ...); no copy of a single piece."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
