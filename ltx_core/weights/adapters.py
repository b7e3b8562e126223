"""What an adapter makes of a weight: low-rank factors, products of Hadamard and Kronecker, rotations, whole tensors.

Each part gives its change as a whole matrix (`dense`), or of a product without that matrix (called with x). Shapes are
(out, in) as in a Linear. Sources of the math: LoRA arXiv 2106.09685, DoRA 2402.09353, LoHa (FedPara) 2108.06098, LoKr
2309.14859, GLoRA 2306.07967, OFT 2306.07280, BOFT 2311.06243, in the forms of KohakuBlueleaf/LyCORIS and
Comfy-Org/ComfyUI comfy/weight_adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Part(Protocol):
    """A summand dW of the change of a weight that does not depend on the weight."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def work_elements(self) -> int:
        """How many float32 numbers a call needs in addition to its result, at most."""
        ...

    def dense(self) -> Tensor:
        """dW (out, in) float32."""
        ...

    def to(self, like: Tensor) -> Part:
        """The same part, ready for inputs on the device and in the dtype of `like`."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> x dW^T (..., out)"""
        ...


@dataclass(frozen=True, eq=False)
class Factors:
    """dW = scale * up @ down.  down (rank, in), up (out, rank)."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    @property
    def work_elements(self) -> int:
        return 0

    def dense(self) -> Tensor:
        return self.scale * self.up.float() @ self.down.float()

    def to(self, like: Tensor) -> Factors:
        return Factors(self.down.to(like), (self.scale * self.up.float()).to(like))

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.up)


@dataclass(frozen=True, eq=False)
class Difference:
    """dW as it is."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.tensor.shape
        return rows, columns

    @property
    def work_elements(self) -> int:
        return 0

    def dense(self) -> Tensor:
        return self.tensor.float()

    def to(self, like: Tensor) -> Difference:
        return Difference(self.tensor.to(like))

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.tensor)


@dataclass(frozen=True, eq=False)
class Hadamard:
    """LoHa: dW = scale * first * second, elementwise. Made anew in each call, since it is as large as W."""

    first: Factors
    second: Factors
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.first.shape

    @property
    def work_elements(self) -> int:
        rows, columns = self.shape
        return 3 * rows * columns

    def dense(self) -> Tensor:
        return self.first.dense().mul_(self.second.dense()).mul_(self.scale)

    def to(self, like: Tensor) -> Hadamard:
        device = torch.empty(0, device=like.device)  # float32: products of products lose too much in 16 bits
        return Hadamard(self.first.to(device), self.second.to(device), self.scale)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dense().to(x.dtype))


@dataclass(frozen=True, eq=False)
class Kronecker:
    """LoKr: dW = scale * kron(outer, inner).  outer (a, p); inner (b, q), whole or as factors; dW (a b, p q)."""

    outer: Tensor
    inner: Difference | Factors
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        (a, p), (b, q) = self.outer.shape, self.inner.shape
        return a * b, p * q

    @property
    def work_elements(self) -> int:
        return 0

    def dense(self) -> Tensor:
        return torch.kron(self.scale * self.outer.float(), self.inner.dense())

    def to(self, like: Tensor) -> Kronecker:
        return Kronecker((self.scale * self.outer.float()).to(like), self.inner.to(like), 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        """kron(outer, inner) applied to a vector is inner applied to its rows (p, q), then outer to the columns."""
        rows = self.inner(x.unflatten(-1, (self.outer.shape[1], -1)))
        return (self.outer @ rows).flatten(-2)


@dataclass(frozen=True, eq=False)
class Orthogonal:
    """OFT and BOFT: W becomes rescale * R W, with an R that is orthogonal in blocks of rows.

    blocks: (stages, number, size, size) as stored.  limit: the norm of blocks - blocks^T, at most; 0: none.
    butterfly: whether stage i gathers its rows as BOFT does; without it the blocks are OFT's, which LyCORIS applies
    transposed.  rescale: (out,) or None.
    """

    blocks: Tensor
    limit: float
    butterfly: bool
    rescale: Tensor | None

    def to(self, like: Tensor) -> Rotation:
        """The rotation, ready for products on the device and in the dtype of `like`."""
        skew = self.blocks.float() - self.blocks.float().transpose(-1, -2)
        if self.limit > 0:
            skew = skew * (self.limit / (skew.norm() + 1e-8)).clamp(max=1)
        identity = torch.eye(skew.shape[-1])
        rotations = torch.linalg.solve(identity - skew, identity + skew)  # Cayley; the two factors commute
        if not self.butterfly:
            rotations = rotations.transpose(-1, -2)
        _, number, size, _ = skew.shape
        orders = [
            torch.arange(number * size).view(-1, 2, 2**stage * (size // 2)).transpose(1, 2).reshape(-1).to(like.device)
            for stage in range(len(rotations) if self.butterfly else 0)
        ]
        rescale = None if self.rescale is None else self.rescale.to(like)
        return Rotation(rotations.to(like), orders, rescale)


@dataclass(frozen=True, eq=False)
class Rotation:
    """Stages of `Orthogonal`: blocks (stages, number, size, size), and for BOFT the order of rows in each stage."""

    blocks: Tensor
    orders: Sequence[Tensor]
    rescale: Tensor | None

    def __call__(self, product: Tensor) -> Tensor:
        """x W^T (..., out) -> x (rescale R W)^T"""
        for stage, blocks in enumerate(self.blocks):
            rows = product[..., self.orders[stage]] if self.orders else product
            rows = torch.einsum("nij,...nj->...ni", blocks, rows.unflatten(-1, blocks.shape[:2])).flatten(-2)
            product = rows[..., self.orders[stage].argsort()] if self.orders else rows
        return product if self.rescale is None else product * self.rescale


@dataclass(frozen=True, eq=False)
class Change:
    """What one LoRA makes of one tensor W of a model, at strength 1; fields that are empty change nothing.

    replacement: taken in the place of W, at every strength but 0.  parts: added.  on_input: GLoRA's A (in, in), which
    adds W @ A.  rotation: of the rows of W.  magnitude: lengths that the rows (out, 1) or the columns (1, in) of the
    sum get (DoRA).
    """

    replacement: Tensor | None = None
    parts: tuple[Part, ...] = ()
    on_input: Factors | None = None
    rotation: Orthogonal | None = None
    magnitude: Tensor | None = None

    @property
    def changes_weight(self) -> bool:
        """Whether it does more than replace."""
        return bool(self.parts) or not (self.on_input is self.rotation is self.magnitude is None)

    @property
    def is_low_rank(self) -> bool:
        """Whether what it adds is sums of products of two factors."""
        own = self.on_input is self.rotation is self.magnitude is None
        return own and all(isinstance(part, Factors) for part in self.parts)

    def changed(self, weight: Tensor) -> Tensor:
        """What W becomes at strength 1.  weight: W or what replaces it, float32, of any shape; on any device."""
        result = weight.clone()
        for part in self.parts:
            result += part.to(weight).dense().reshape(weight.shape)
        if self.on_input is not None:
            result += weight @ self.on_input.to(weight).dense()
        if self.rotation is not None:
            result += self.rotation.to(weight)(weight.T).T - weight
        if self.magnitude is not None:
            result *= self.relative_lengths(result)
        return result

    def relative_lengths(self, changed: Tensor) -> Tensor:
        """What rows or columns of the changed weight are multiplied by, (out, 1) or (1, in).

        The stored length over that of the changed weight, as peft and LyCORIS have it.
        """
        magnitude = self.magnitude
        if magnitude is None:
            return changed.new_ones(())
        axis = 1 if magnitude.shape[1] == 1 else 0
        tiny = torch.finfo(torch.float32).tiny
        return magnitude.to(changed) / changed.norm(dim=axis, keepdim=True).clamp(min=tiny)


# Elements of a weight that are merged at a time: their float32 form stays in a processor's cache.
MERGED_AT_ONCE, MERGED_AT_ONCE_ON_CPU = 1 << 24, 1 << 18


def merge(weight: Tensor, changes: list[tuple[Change, float]], into: Tensor) -> None:
    """Write `merged` to `into`, in its dtype and on its device: every number is rounded once.

    weight: on any device; it may be `into`.
    """
    factors = low_rank(changes) if weight.ndim == 2 else None
    if factors is None:
        into.copy_(merged(weight.to(into.device), changes))
        return
    exact = torch.promote_types(weight.dtype, torch.float32)
    downs = [factor.down.to(into.device, exact) for factor, _ in factors]
    ups = [factor.up.to(into.device) for factor, _ in factors]
    step = max(1, (MERGED_AT_ONCE_ON_CPU if into.device.type == "cpu" else MERGED_AT_ONCE) // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        piece = weight[rows].to(into.device, exact, copy=True)
        for down, up, (factor, strength) in zip(downs, ups, factors, strict=True):
            piece.addmm_(up[rows].to(exact), down, alpha=strength * factor.scale)
        into[rows].copy_(piece)


def merging_bytes(elements: int, changes: list[tuple[Change, float]]) -> int:
    """Bytes that `merge` takes for a moment, at most, to merge into a weight of so many elements."""
    return 4 * min(elements, MERGED_AT_ONCE) if low_rank(changes) is not None else 6 * 4 * elements


def low_rank(changes: list[tuple[Change, float]]) -> list[tuple[Factors, float]] | None:
    """The factors of changes that are sums of products of two, with their strengths; None if there is anything else."""
    if any(change.replacement is not None or not change.is_low_rank for change, strength in changes if strength):
        return None
    return factors_of(changes)


def factors_of(changes: list[tuple[Change, float]]) -> list[tuple[Factors, float]]:
    """The factors of those changes that add nothing but products of two, with their strengths."""
    return [
        (part, strength)
        for change, strength in changes
        if strength and change.is_low_rank
        for part in change.parts
        if isinstance(part, Factors)
    ]


def merged(weight: Tensor, changes: list[tuple[Change, float]]) -> Tensor:
    """A weight with LoRAs in it: (change, strength) each; float32 or float64, in the shape of `weight`.

    The last replacement stands for the weight; to it every LoRA adds strength times its change of it.
    """
    base = replaced(weight.to(torch.promote_types(weight.dtype, torch.float32)), changes)
    return base + sum(
        (strength * (change.changed(base) - base) for change, strength in changes if strength),
        start=torch.zeros_like(base),
    )


def replaced(weight: Tensor, changes: list[tuple[Change, float]]) -> Tensor:
    """The last replacement among the changes that act at all, on the device of the weight, or the weight."""
    for change, strength in reversed(changes):
        if change.replacement is not None and strength:
            return change.replacement.to(weight).reshape(weight.shape)
    return weight
