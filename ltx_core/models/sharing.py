"""One clip on several devices: each process has a share of the tokens, and in attention a share of the heads.

Ulysses (arXiv 2309.14509): everything outside self-attention is done token by token, so each process keeps its run of
tokens from the first layer to the last. For self-attention, queries, keys and values are exchanged so that each process
has all tokens of some heads, and the means are exchanged back. Tokens need not divide evenly; heads must.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Sharing:
    """The processes that divide a forward. group: None for all there are.

    Every process must call the model with equal inputs; each gets the whole velocity back.
    """

    group: ProcessGroup | None = None

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    def check(self, heads: int) -> None:
        """Raises ConfigError: the heads of a model cannot be divided among the processes."""
        if heads % self.size:
            fitting = ", ".join(str(count) for count in range(2, heads + 1) if heads % count == 0)
            raise ConfigError(
                f"got {self.size} processes for a model with {heads} heads of attention; expected {fitting}; start as "
                "many"
            )

    def of(self, tokens: int) -> TokenShare:
        return TokenShare(self, tokens)


@dataclass(frozen=True)
class TokenShare:
    """How the tokens of one forward are divided. tokens: of all processes."""

    processes: Sharing
    tokens: int

    @cached_property
    def counts(self) -> list[int]:
        """How many tokens each process has; neighbours differ by one at most."""
        size = self.processes.size
        ends = [self.tokens * (rank + 1) // size for rank in range(size)]
        return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def own(self, x: Tensor, dim: int) -> Tensor:
        """This process's tokens of a tensor that has all of them in dimension `dim`."""
        rank = self.processes.rank
        return x.narrow(dim, sum(self.counts[:rank]), self.counts[rank])

    def to_heads(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Each (rows, own tokens, inner) of all heads -> (rows, tokens, inner / size) of this process's heads."""
        size, rank, rows = self.processes.size, self.processes.rank, parts[0].shape[0]
        width = parts[0].shape[-1] // size
        # (size, parts, rows, own tokens, width): what goes to one process is in one piece
        sent = torch.stack([part.unflatten(-1, (size, width)) for part in parts]).movedim(-2, 0).contiguous()
        per_token = len(parts) * rows * width
        lengths = [count * per_token for count in self.counts]
        received = sent.new_empty(sum(lengths))
        group = self.processes.group
        dist.all_to_all_single(received, sent.flatten(), lengths, [lengths[rank]] * size, group=group)
        pieces = zip(received.split(lengths), self.counts, strict=True)
        return list(torch.cat([piece.view(len(parts), rows, count, width) for piece, count in pieces], dim=2).unbind(0))

    def to_tokens(self, x: Tensor) -> Tensor:
        """(rows, tokens, inner / size) of this process's heads -> (rows, own tokens, inner) of all heads."""
        rows, _, width = x.shape
        size, own = self.processes.size, self.counts[self.processes.rank]
        sent = torch.cat([piece.flatten() for piece in x.split(self.counts, dim=1)])
        received = x.new_empty(size * rows * own * width)
        lengths = [rows * count * width for count in self.counts]
        group = self.processes.group
        dist.all_to_all_single(received, sent, [rows * own * width] * size, lengths, group=group)
        return received.view(size, rows, own, width).movedim(0, -2).flatten(-2)

    def gathered(self, x: Tensor, dim: int) -> Tensor:
        """Own tokens along a dimension -> all of them, on every process."""
        own = x.movedim(dim, 0).contiguous()
        most = max(self.counts)  # all_gather wants one size
        padded = torch.cat([own, own.new_zeros(most - own.shape[0], *own.shape[1:])])
        received = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(received, padded, group=self.processes.group)
        return torch.cat([piece[:count] for piece, count in zip(received, self.counts, strict=True)]).movedim(0, dim)
