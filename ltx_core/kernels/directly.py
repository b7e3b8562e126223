"""What a module computes by that is called by itself, as `vae.decode(latent)`, and not while it is placed.

On a CPU that is what was chosen for this machine, where autograd is off: nobody should have to know of placements to
have its speed. Weights are packed only for convolutions, which gain most of their time by it, where main
memory has ample room; they are freed with their module, and packed anew when a weight changes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..main_memory import main_memory
from .active import PLAINLY, Active, kernels_for
from .choice import Kernels
from .here import kernels_here
from .room import PACKING_MARGIN

SHARE = 1 / 2  # of the room for packing that a weight may take: what the call itself takes is not known


class Directly:
    """A class attribute `active` of a module: by what it computes while nothing is there in its instance.

    packs: weights of this kind of module are worth packing for direct calls.
    """

    def __init__(self, *, packs: bool = False) -> None:
        self._packs = packs
        self._own: WeakKeyDictionary[nn.Module, _Own] = WeakKeyDictionary()

    def __get__(self, module: nn.Module | None, owner: type) -> Active:
        if module is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return PLAINLY
        parameter = next(module.parameters(), None)
        if parameter is None or parameter.device.type != "cpu":
            return PLAINLY
        kernels = kernels_for(module, _kernels())
        if kernels.is_plain:
            return PLAINLY
        if not self._packs:
            return Active(kernels)
        own = self._own.get(module)
        if own is None or own.kernels is not kernels:
            own = self._own[module] = _Own(kernels)
        return own


class _Own(Active):
    """Of one module: the last packed form of its weight. An older one is dropped: its weight has changed."""

    def packed(
        self, weight: Tensor, layout: Hashable, nbytes: int, pack: Callable[[], Tensor], *, after: int = 0
    ) -> Tensor | None:
        if (id(weight), layout) not in self._packed:
            self._packed.clear()
            self.packed_bytes = 0
            main = main_memory()
            self.room = 0 if main is None else int(SHARE * (main.free - PACKING_MARGIN * main.total))
        return super().packed(weight, layout, nbytes, pack, after=after)


@cache
def _kernels() -> Kernels:
    """The choice of this machine, made once per process."""
    return kernels_here()


DIRECTLY = Directly()
DIRECTLY_PACKED = Directly(packs=True)
