"""One clip in several processes: each has a share of the tokens, and in self-attention a share of the heads.

Ulysses (arXiv 2309.14509): everything outside self-attention is done token by token, so each process keeps its run of
tokens from the first block to the last. For self-attention, queries, keys and values are exchanged so that each process
has all tokens of some heads, and the means are exchanged back. Neither tokens nor heads need divide evenly.

With gradients, each process has those of its own tokens and heads. `gathered` multiplies its gradient by the number of
processes, so that the mean over the processes, as data parallel training takes it, is that of the whole forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Value = TypeVar("_Value")

LONGEST_WAIT = timedelta(days=7)  # of a process for the others, of which the first may be writing a long clip


def parts_of(total: int, size: int) -> list[int]:
    """`total` in `size` runs, whose lengths differ by one at most."""
    ends = [total * (rank + 1) // size for rank in range(size)]
    return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass(frozen=True)
class Sharing:
    """The processes that divide each forward of a transformer. group: of torch.distributed; None: its default one.
    teams: whether branches may be divided too; with FSDP, every process must call every block.

    Every process calls the model with equal inputs, and each gets the whole velocity back.
    """

    group: ProcessGroup | None = None
    teams: bool = field(default=True, kw_only=True)
    _parts: dict[range, Sharing] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def rank(self) -> int:
        """The number of this process in the group."""
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    def check(self, heads: int) -> None:
        """Raises ConfigError: more processes than a model has heads of attention, or none of the group's."""
        if self.rank < 0:
            raise ConfigError(
                "got a group of processes without this one; expected one of its members; call it there alone"
            )
        check_heads(self.size, heads)

    def of(self, tokens: int, heads: int) -> TokenShare | None:
        """How so many tokens and heads are divided; None: not at all, with fewer tokens than processes, or only one."""
        return TokenShare(self, tokens, heads) if 1 < self.size <= tokens else None

    def part(self, ranks: range) -> Sharing:
        """The processes of these numbers alone; each of them calls this, and the others need not."""
        if ranks not in self._parts:
            members = list(ranks)
            if self.group is not None:
                members = [dist.get_global_rank(self.group, rank) for rank in ranks]
            group: Any = dist.new_group(members, timeout=LONGEST_WAIT, use_local_synchronization=True)
            self._parts[ranks] = Sharing(group)
        return self._parts[ranks]

    def exchange(self, sent: Tensor, to: Sequence[int], coming: Sequence[int]) -> Tensor:
        """Send to every process a run of `sent` (n), and get one from each, one after the other.

        to, coming: the lengths of these runs. All kinds of numbers go as bytes: not every back end knows bfloat16.

        Raises:
            UnsupportedError: another process has ended, or does not answer.
        """
        received = sent.new_empty(sum(coming))
        width = sent.element_size()
        lengths = [[width * count for count in counts] for counts in (coming, to)]
        try:
            dist.all_to_all_single(received.view(torch.uint8), sent.view(torch.uint8), *lengths, group=self.group)
        except RuntimeError as error:
            raise _no_answer(error) from error
        return received

    def gather(self, x: Tensor) -> list[Tensor]:
        """A tensor of the same shape from every process. Raises UnsupportedError as `exchange`."""
        received = [torch.empty_like(x) for _ in range(self.size)]
        try:
            dist.all_gather(received, x, group=self.group)
        except RuntimeError as error:
            raise _no_answer(error) from error
        return received

    def values(self, value: _Value) -> list[_Value]:
        """What each process says, which can be pickled. Raises UnsupportedError as `exchange`."""
        received = [value] * self.size
        try:
            dist.all_gather_object(received, value, group=self.group)
        except RuntimeError as error:
            raise _no_answer(error) from error
        return received


@dataclass(frozen=True)
class Counted(Sharing):
    """Processes that are not there: what the one with the largest share allocates can be counted. Nothing is sent."""

    count: int = 1

    @property
    def rank(self) -> int:
        return self.count - 1

    @property
    def size(self) -> int:
        return self.count

    def exchange(self, sent: Tensor, to: Sequence[int], coming: Sequence[int]) -> Tensor:  # noqa: ARG002
        return sent.new_empty(sum(coming))

    def gather(self, x: Tensor) -> list[Tensor]:
        return [torch.empty_like(x) for _ in range(self.count)]

    def values(self, value: _Value) -> list[_Value]:
        return [value] * self.count


@dataclass(frozen=True)
class TokenShare:
    """How one forward is divided. tokens, heads: of all processes together."""

    processes: Sharing
    tokens: int
    heads: int

    @property
    def token_counts(self) -> list[int]:
        """How many tokens each process has."""
        return parts_of(self.tokens, self.processes.size)

    @property
    def own_heads(self) -> int:
        """How many heads this process has in self-attention."""
        return parts_of(self.heads, self.processes.size)[self.processes.rank]

    def own(self, x: Tensor, dim: int) -> Tensor:
        """This process's tokens of a tensor that has all of them in dimension `dim`."""
        rank, counts = self.processes.rank, self.token_counts
        return x.narrow(dim, sum(counts[:rank]), counts[rank])

    def to_heads(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Each (rows, own tokens, heads * head_dim) -> (rows, tokens, own heads * head_dim)"""
        return list(_ToHeads.apply(self, *parts)) if torch.is_grad_enabled() else self._to_heads(parts)

    def _to_heads(self, parts: Sequence[Tensor]) -> list[Tensor]:
        rank, counts, widths = self.processes.rank, self.token_counts, self._widths(parts[0].shape[-1])
        number, rows = len(parts), parts[0].shape[0]
        lengths = [number * rows * counts[rank] * width for width in widths]
        coming = [number * rows * count * widths[rank] for count in counts]
        received = self.processes.exchange(_sorted_by_heads(parts, widths, lengths), lengths, coming)
        pieces = zip(received.split(coming), counts, strict=True)
        together = [piece.view(number, rows, count, widths[rank]) for piece, count in pieces]
        return list(torch.cat(together, dim=2).unbind(0))

    def to_tokens(self, x: Tensor) -> Tensor:
        """(rows, tokens, own heads * head_dim) -> (rows, own tokens, heads * head_dim)"""
        return _ToTokens.apply(self, x) if torch.is_grad_enabled() else self._to_tokens(x)

    def _to_tokens(self, x: Tensor) -> Tensor:
        rank, counts, rows = self.processes.rank, self.token_counts, x.shape[0]
        widths = self._widths(x.shape[-1] // self.own_heads * self.heads)
        sent = torch.cat([piece.flatten() for piece in x.split(counts, dim=1)])
        coming = [rows * counts[rank] * width for width in widths]
        received = self.processes.exchange(sent, [rows * count * widths[rank] for count in counts], coming)
        pieces = zip(received.split(coming), widths, strict=True)
        return torch.cat([piece.view(rows, counts[rank], width) for piece, width in pieces], dim=-1)

    def gathered(self, x: Tensor, dim: int) -> Tensor:
        """Own tokens along a dimension -> all of them, in every process, each of which computes the same with them."""
        return _Gathered.apply(self, x, dim) if torch.is_grad_enabled() else self._gathered(x, dim)

    def _gathered(self, x: Tensor, dim: int) -> Tensor:
        own, counts = x.movedim(dim, 0), self.token_counts
        padded = own.new_zeros(max(counts), *own.shape[1:])  # all_gather wants one size
        padded[: own.shape[0]] = own
        received = zip(self.processes.gather(padded), counts, strict=True)
        return torch.cat([piece[:count] for piece, count in received]).movedim(0, dim)

    def _widths(self, inner: int) -> list[int]:
        """How many of the channels of all heads each process has."""
        return [inner // self.heads * count for count in parts_of(self.heads, self.processes.size)]


def _sorted_by_heads(parts: Sequence[Tensor], widths: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """What is sent to each process: its channels of every part, in one run. Made here, where no view of it is left."""
    number, (rows, count, _) = len(parts), parts[0].shape
    sent = parts[0].new_empty(sum(lengths))
    columns = zip(*(part.split(list(widths), dim=-1) for part in parts), strict=True)
    for piece, width, runs in zip(sent.split(list(lengths)), widths, columns, strict=True):
        for target, run in zip(piece.view(number, rows, count, width), runs, strict=True):
            target.copy_(run)
    return sent


def check_heads(processes: int, heads: int) -> None:
    """Raises ConfigError: more processes than a model has heads of attention."""
    if processes > heads:
        raise ConfigError(
            f"got {processes} processes for a model with {heads} heads of attention, of which each process takes "
            f"one at least; expected at most {heads}; start fewer, such as torchrun --nproc-per-node {heads}"
        )


class _ToHeads(torch.autograd.Function):
    """`to_heads` moves numbers and changes none: its gradient takes the way back."""

    @staticmethod
    def forward(ctx: Any, share: TokenShare, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.share, ctx.dtypes = share, [part.dtype for part in parts]
        return tuple(share._to_heads(parts))  # pyright: ignore[reportPrivateUsage]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        together = torch.stack(gradients)  # one exchange for all
        own = ctx.share._to_tokens(together.flatten(0, 1)).unflatten(0, together.shape[:2])
        return None, *(part.to(dtype) for part, dtype in zip(own, ctx.dtypes, strict=True))


class _ToTokens(torch.autograd.Function):
    """As `_ToHeads`, in the other direction."""

    @staticmethod
    def forward(ctx: Any, share: TokenShare, x: Tensor) -> Tensor:
        ctx.share = share
        return share._to_tokens(x)  # pyright: ignore[reportPrivateUsage]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, ctx.share._to_heads([gradient])[0]


class _Gathered(torch.autograd.Function):
    """The gradient of own tokens, times the number of processes, see above."""

    @staticmethod
    def forward(ctx: Any, share: TokenShare, x: Tensor, dim: int) -> Tensor:
        ctx.share, ctx.dim = share, dim
        return share._gathered(x, dim)  # pyright: ignore[reportPrivateUsage]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, ctx.share.own(gradient, ctx.dim) * ctx.share.processes.size, None


def _no_answer(error: RuntimeError) -> UnsupportedError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UnsupportedError(
        f"got no answer from another process of this run ({reason}); expected all of them to go on until the end; look "
        "for what the one that has ended says"
    )
