"""RMS norms by the form that was chosen for a CPU, and what follows them while their numbers are in its cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .active import Active, eagerly
from .choice import PLAIN_FORM

PIECE = 1 << 17  # numbers: what is computed in float32 at a time, few enough to stay in a core's cache


class Piece(NamedTuple):
    """Some rows (m, d) that are normed. start, stop: which they are.

    exact: their norms in float32, which may be written to. target: the place of the result; `exact` itself where that
    is float32.
    """

    start: int
    stop: int
    exact: Tensor
    target: Tensor

    def finish(self) -> None:
        """Put what `exact` has become into its place."""
        if self.exact is not self.target:
            self.target.copy_(self.exact)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, active: Active) -> Tensor:
    """x (..., d) / its root mean square over d, times weight (d,) or None -> (..., d) in the dtype of x."""
    weight = None if weight is None else weight.to(x.dtype)
    if in_pieces(x, active):
        return by_pieces(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def in_pieces(x: Tensor, active: Active) -> bool:
    """Whether the norm of x is to be computed a few rows at a time."""
    return x.device.type == "cpu" and eagerly() and active.kernels.norms.form(x.dtype) != PLAIN_FORM


def by_pieces(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The same in float32, a few rows at a time: what `F.rms_norm` does on CPUs, without its way through memory."""
    rows = x.reshape(-1, x.shape[-1])
    result = torch.empty_like(rows)
    scale = None if weight is None else weight.float()
    for piece in normed(rows, result, eps):
        if scale is not None:
            piece.exact.mul_(scale)
        piece.finish()
    return result.view(x.shape)


def normed(rows: Tensor, result: Tensor, eps: float) -> Iterator[Piece]:
    """rows (m, d) / their root mean squares, piece by piece. result (m, d), of the same dtype, may be `rows` itself."""
    width, is_exact = rows.shape[-1], rows.dtype == torch.float32
    size, start = max(1, PIECE // max(1, width)), 0
    for piece, target in zip(rows.split(size), result.split(size), strict=True):
        wide = piece if is_exact else piece.to(torch.float32)
        lengths = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        factor = lengths.square_().div_(width).add_(eps).rsqrt_()
        exact = target if is_exact else wide
        torch.mul(wide, factor, out=exact)
        yield Piece(start, start := start + len(piece), exact, target)
