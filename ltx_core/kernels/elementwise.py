"""The operations of a transformer's block beside products and attention: one name each, plain torch and fused forms.

Which form is an `Active`'s. With autograd it is always the plain one, out of place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import fused
from .active import Active, eagerly
from .norms import in_pieces, normed, rms_norm
from .rotation import form_of, rotated, turn_

MOST_RUNS = 8  # of tokens of one level, each with kernels of its own; beyond, a row is gathered for each token


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Which row of a table (u, d) each token has.

    index: (b n); None: row i belongs to sample i, or a single row to all samples.
    runs: neighbours with one row, the same in all samples, as (start, stop, row): a table of rows is then enough, and
        none of (tokens, width) is made.
    """

    index: Tensor | None = None
    runs: tuple[tuple[int, int, int], ...] | None = None

    @classmethod
    def of(cls, index: Tensor) -> TokenRows:
        """index: (b n), on any device."""
        if not bool((index == index[:1]).all()):
            return cls(index)
        rows, lengths = torch.unique_consecutive(index[0], return_counts=True)
        if rows.numel() > MOST_RUNS:
            return cls(index)
        stops = lengths.cumsum(0).tolist()
        return cls(index, tuple(zip([0, *stops[:-1]], stops, rows.tolist(), strict=True)))

    @property
    def in_runs(self) -> bool:
        """Whether to go by runs: a compiler gathers rows within its kernels, and autograd wants new memory."""
        return not torch.compiler.is_compiling() and self.runs is not None and not torch.is_grad_enabled()

    def spread(self, rows: Tensor) -> Tensor:
        """(u d) -> a form that broadcasts against tokens: (u 1 d), or (b n d) where the tokens of a sample differ."""
        if self.index is None:
            return rows.unsqueeze(1)
        return rows.index_select(0, self.index.flatten()).unflatten(0, self.index.shape)

    def stretches(self, x: Tensor, result: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Rows (m d) of x and of result, both (..., b n d), that have one row of a table (count, d), and which row.

        For tokens in runs, or without an index. result: one piece of memory.
        """
        if self.index is None and count == 1:
            yield x.flatten(0, -2), result.view(-1, x.shape[-1]), 0
            return
        for lane, lane_result in zip(*(each.reshape(-1, *x.shape[-3:]) for each in (x, result)), strict=True):
            for number, (sample, target) in enumerate(zip(lane, lane_result, strict=True)):
                for start, stop, row in self.runs or ((0, len(sample), number),):
                    yield sample[start:stop], target[start:stop], row


def norm_modulation(x: Tensor, eps: float, shift: Tensor, scale: Tensor, rows: TokenRows, active: Active) -> Tensor:
    """x (..., b n d), shift and scale (u d) -> x / its root mean square * (1 + scale) + shift"""
    card = active.card
    if card is not None and not torch.is_grad_enabled() and rows.index is None and card.fuses(x.dtype, x.shape[-1]):
        return fused.norm_modulation(x, rows.spread(shift), rows.spread(scale), eps)
    fits = torch.promote_types(x.dtype, shift.dtype) == x.dtype and (rows.index is None or rows.in_runs)
    if fits and in_pieces(x, active):
        return _modulated_in_pieces(x, eps, shift.float(), 1 + scale.float(), rows)
    return modulation(rms_norm(x, None, eps, active), shift, scale, rows)


def _modulated_in_pieces(x: Tensor, eps: float, shift: Tensor, factor: Tensor, rows: TokenRows) -> Tensor:
    """The same, rounded once. factor: 1 + scale."""
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    for source, target, row in rows.stretches(x, result, len(shift)):
        for piece in normed(source, target, eps):
            torch.addcmul(shift[row], piece.exact, factor[row], out=piece.exact)
            piece.finish()
    return result


def modulation(x: Tensor, shift: Tensor, scale: Tensor, rows: TokenRows) -> Tensor:
    """x (..., b n d), shift and scale (u d) -> x * (1 + scale) + shift; the memory of x may be used."""
    if not rows.in_runs or torch.promote_types(x.dtype, shift.dtype) != x.dtype:
        return torch.addcmul(rows.spread(shift), x, rows.spread(1 + scale))
    factor = 1 + scale
    for start, stop, row in rows.runs or ():
        part = x[..., start:stop, :]
        torch.addcmul(shift[row], part, factor[row], out=part)
    return x


def gated_sum(x: Tensor, gate: Tensor, y: Tensor, rows: TokenRows) -> Tensor:
    """x, y (..., b n d), gate (u d) -> x + gate * y; on a CPU in the memory of y, unless autograd may need it."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), gate.dtype)
    in_place = y.device.type == "cpu" and eagerly() and y.dtype == dtype and y.shape == x.shape and y.is_contiguous()
    if not rows.in_runs:
        return torch.addcmul(x, rows.spread(gate), y, out=y if in_place else None)
    result = y if in_place else torch.empty_like(y, dtype=dtype)
    for start, stop, row in rows.runs or ():
        tokens = (..., slice(start, stop), slice(None))
        torch.addcmul(x[tokens], gate[row], y[tokens], out=result[tokens])
    return result


def added(x: Tensor, y: Tensor) -> Tensor:
    """x + y, in the memory of x unless autograd may need x again."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


def norm_rotation(
    query: Tensor, key: Tensor, weights: tuple[Tensor, Tensor], eps: float, table: Tensor, active: Active
) -> tuple[Tensor, Tensor]:
    """Norm over the whole width and rotation of query and key (g b n d); without autograd their memory may be used.

    weights: of both norms, (d) each. table: see `rotation`.
    """
    card, dtype, width = active.card, query.dtype, query.shape[-1]
    fuses = card is not None and card.fuses(dtype, width) and form_of(table) == "matrices"
    if in_pieces(query, active) and form_of(table) == "complex":
        return _turned_in_pieces(query, weights[0], eps, table), _turned_in_pieces(key, weights[1], eps, table)
    if not fuses or torch.is_grad_enabled():
        turned_query = rotated(rms_norm(query, weights[0], eps, active), table)
        del query  # before the norm of the keys, which is the block's peak where it is composed
        return turned_query, rotated(rms_norm(key, weights[1], eps, active), table)
    of_query, of_key = (weight.detach().to(dtype) for weight in weights)
    # One table for all samples serves all lanes in one call; tables of their own, the samples of one lane.
    query, key = query.contiguous(), key.contiguous()
    runs = [(query.flatten(0, 1), key.flatten(0, 1))] if table.shape[0] == 1 else zip(query, key, strict=True)
    for of_run in runs:
        fused.norm_rotation_(*of_run, (of_query, of_key), table, eps)
    return query, key


def _turned_in_pieces(x: Tensor, weight: Tensor, eps: float, table: Tensor) -> Tensor:
    """Norm and rotation of x (g b n d), in its memory, rounded once."""
    x, scale = x.contiguous(), weight.detach().to(x.dtype).float()
    for lane in x:
        for number, sample in enumerate(lane):
            rotation = table[number % len(table)]  # one for all, or one each
            for piece in normed(sample, sample, eps):
                turn_(piece.exact.mul_(scale), rotation[piece.start : piece.stop])
                piece.finish()
    return x
