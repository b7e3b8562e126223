"""Rotary positions: the forms of their table, and the rotation of pairs of neighbouring channels by each.

complex: a unit complex number for each pair, the form of CPUs and of autograd. planes: cosines and sines apart, for
cards: real arithmetic reads and writes 8 tensors of (tokens, width) in half precision where the complex one takes 12.
matrices: one of 2 x 2 for each pair, which comfy-kitchen reads.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Form = Literal["complex", "planes", "matrices"]
PIECE = 1 << 17  # numbers that a CPU rotates at a time in half precision: their float32 copy stays in a core's cache


def rotation_table(angles: Tensor, form: Form) -> Tensor:
    """Angles (b, n, width / 2) in radians, float32 -> the table in a form.

    complex: (b, n, width / 2) complex64. planes: (2, b, n, width / 2) float32. matrices: (b, n, 1, width / 2, 2, 2)
    float32.
    """
    if form == "complex":
        return torch.complex(angles.cos(), angles.sin())
    if form == "planes":
        table = angles.new_empty(2, *angles.shape)
        torch.cos(angles, out=table[0])
        torch.sin(angles, out=table[1])
        return table
    table = angles.new_empty(*angles.shape, 2, 2)
    torch.cos(angles, out=table[..., 0, 0])
    torch.sin(angles, out=table[..., 1, 0])
    table[..., 1, 1] = table[..., 0, 0]
    torch.neg(table[..., 1, 0], out=table[..., 0, 1])
    return table.unsqueeze(-4)


def form_of(table: Tensor) -> Form:
    if table.is_complex():
        return "complex"
    return "planes" if table.ndim == 4 else "matrices"


def table_size(table: Tensor) -> tuple[int, int]:
    """(samples, tokens) of a table of any form."""
    shape = table.shape[1:] if form_of(table) == "planes" else table.shape
    return shape[0], shape[1]


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """x (..., b, n, width), pairs of neighbouring channels rotated in float32 -> the same shape and dtype.

    Outside autograd, a table of real numbers rounds the first of both products to the dtype of x.
    """
    form = form_of(table)
    if form == "complex":
        return _complex(x, table)
    cosines, sines = table.unbind(0) if form == "planes" else (table[:, :, 0, :, 0, 0], table[:, :, 0, :, 1, 0])
    if torch.is_grad_enabled():
        return _complex(x, torch.complex(cosines, sines))
    pairs = x.unflatten(-1, (-1, 2))
    result = torch.empty_like(pairs, memory_format=torch.contiguous_format)
    torch.mul(pairs, cosines.unsqueeze(-1), out=result)
    result[..., 0].addcmul_(pairs[..., 1], sines, value=-1)
    result[..., 1].addcmul_(pairs[..., 0], sines)
    return result.flatten(-2)


def turn_(x: Tensor, rotation: Tensor) -> Tensor:
    """x (n, width) float32 by a table (n, width / 2) of complex numbers, in the memory of x. Without autograd."""
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(rotation)
    return x


def _complex(x: Tensor, table: Tensor) -> Tensor:
    if x.dtype == torch.float32 or torch.is_grad_enabled():
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)
    if x.device.type == "cpu":
        return _by_pieces(x, table)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs.mul_(table)).flatten(-2).to(x.dtype)


def _by_pieces(x: Tensor, table: Tensor) -> Tensor:
    """The same bits, some tokens at a time: float32 copies of all would go through memory twice."""
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    size = max(1, PIECE // max(1, x.shape[:-2].numel() * x.shape[-1]))
    parts = zip(x.split(size, dim=-2), result.split(size, dim=-2), table.split(size, dim=-2), strict=True)
    for part, turned, rotation in parts:
        pairs = torch.view_as_complex(part.to(torch.float32, copy=True).unflatten(-1, (-1, 2)))
        turned.copy_(torch.view_as_real(pairs.mul_(rotation)).flatten(-2))
    return result
