"""A choice of kernels at work: what modules compute by, and the weights that were packed for it.

A module that can compute by several forms has a class attribute `active`: `PLAINLY`, or one of `directly`. While a
model is placed on a device (`placing.computing`), each of its modules has the model's own `Active` there instead.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from .cards import CardKernels
from .choice import IN_FLOAT32, PLAIN, Kernels


class Active:
    """kernels: the choice for a CPU. room: bytes that packed weights may take; what does not fit stays as it is.
    card: the choice for the card that the model is on; None on a CPU.

    Packed weights are copies, freed with this object.
    """

    def __init__(self, kernels: Kernels, room: int = 0, card: CardKernels | None = None) -> None:
        self.kernels = kernels
        self.card = card
        self.room = room
        self.packed_bytes = 0
        # The originals are held, so that no other tensor gets their id.
        self._packed: dict[tuple[int, Hashable], tuple[Tensor, Tensor, int]] = {}
        self._refused: set[tuple[int, Hashable]] = set()
        self._uses: dict[tuple[int, Hashable], int] = {}

    def widen(self) -> None:
        """Compute in float32 from now on: numbers have left float16."""
        self.kernels = IN_FLOAT32

    def packed(
        self, weight: Tensor, layout: Hashable, nbytes: int, pack: Callable[[], Tensor], *, after: int = 0
    ) -> Tensor | None:
        """A weight in a kernel's layout, packed when it is first used; None where there is no room for it.

        layout: everything that the packed form depends on beside the weight: dtype, padding, sizes of the input.
        nbytes: of the packed form. after: uses that go by before it is packed, and get None.
        """
        key = id(weight), layout
        if key in self._packed:
            return self._packed[key][1]
        if key in self._refused:
            return None
        if after and self._uses.setdefault(key, 0) < after:
            self._uses[key] += 1
            return None
        if self.packed_bytes + nbytes > self.room:
            self._refused.add(key)  # for good: what is packed must not depend on the order of calls
            return None
        packed = pack()
        self.packed_bytes += nbytes
        self._packed[key] = weight, packed, nbytes
        return packed

    def forget(self, weight: Tensor) -> None:
        """Free what a weight was packed to: it was written to, or another one has taken its place."""
        for key in [key for key in self._packed if key[0] == id(weight)]:
            self.packed_bytes -= self._packed.pop(key)[2]
        self._refused = {key for key in self._refused if key[0] != id(weight)}
        self._uses = {key: uses for key, uses in self._uses.items() if key[0] != id(weight)}


def eagerly() -> bool:
    """Whether operations run as they are called, and nothing reads their inputs again: without autograd, and not under
    torch.compile, which makes better loops of the plain forms, and does not know oneDNN's own operators."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def keep_dtype(model: nn.Module) -> None:
    """The user has asked for the dtype of this model's weights: it computes in it, whatever was measured."""
    for part in model.modules():  # a half of a VAE is placed by itself
        part.__dict__["keeps_dtype"] = True


def kernels_for(model: nn.Module, kernels: Kernels) -> Kernels:
    """What of a choice holds for a model, see `keep_dtype`."""
    return kernels.in_stored_dtype() if model.__dict__.get("keeps_dtype", False) else kernels


PLAINLY = Active(PLAIN)
"""Plain torch in the dtype of the weights."""
