"""Other tensors temporarily in the place of a module's own. Nothing is ever copied back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Hashable
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError


class CopiedParameter(nn.Parameter):
    """A copy of a parameter, in its place for a while. Nothing but merging writes to it (`merging`).

    original: what it is a copy of.  holds: what is merged into it; empty: nothing, it equals the original.  moved:
    whether it was made to be on a device, and not for the sake of what is merged into it.
    """

    original: Tensor
    holds: tuple[Hashable, ...]
    moved: bool

    @classmethod
    def of(cls, original: Tensor, data: Tensor, *, moved: bool) -> CopiedParameter:
        copied = cls(data, requires_grad=False)
        copied.original, copied.holds, copied.moved = original, (), moved
        return copied


class Copies:
    """Copies of the weights of a module, in the place of the originals until `drop`: all of them or none.

    The originals, which are mostly memory-mapped and cost nothing to keep, stay where they are. Modules, parameters and
    hooks keep their places, and a LoRA or a quantized layer never notices. The module is not kept alive.
    """

    def __init__(
        self, module: nn.Module, copy: Callable[[Tensor], Tensor], *, leave: Collection[nn.Module] = ()
    ) -> None:
        """copy: returns the tensor to use, which may be the original. leave: parts that keep their originals."""
        self._originals: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = []
        self._module = weakref.ref(module)
        self._around: Copies | None = module.__dict__.get("copies")  # which also puts back what was not copied here
        left = {id(part) for block in leave for part in block.modules()}
        copied: dict[int, Tensor] = {}  # a tensor that several modules share stays shared
        try:
            for part in module.modules():
                if id(part) in left:
                    continue
                for tensors in _tensors(part):
                    for name, tensor in tensors.items():
                        if tensor is None:
                            continue
                        if id(tensor) not in copied:
                            copied[id(tensor)] = _copied(tensor, copy)
                        if copied[id(tensor)] is not tensor or self._around is None:
                            self._originals.append((tensors, name, tensor, copied[id(tensor)]))
                        tensors[name] = copied[id(tensor)]
            module.__dict__["copies"] = self
        except BaseException:  # out of memory half-way, or Ctrl-C: leave nothing behind
            self.drop()
            raise

    def drop(self) -> None:
        """Put the originals back; the copies are freed, and what was merged into them or in their place goes too. What
        another one has put in the place of a copy stays."""
        for tensors, name, tensor, copied in self._originals:
            there = tensors.get(name)
            if there is copied or (isinstance(there, CopiedParameter) and there.original is copied):
                tensors[name] = tensor
        self._originals.clear()
        module = self._module()
        if module is not None and module.__dict__.get("copies") is self:
            module.__dict__["copies"] = self._around
        self._around = None


def _tensors(part: nn.Module) -> tuple[dict[str, Tensor | None], ...]:
    """A module's own parameters and buffers, as the dictionaries that hold them."""
    return cast("dict[str, Tensor | None]", part._parameters), part._buffers  # pyright: ignore[reportPrivateUsage]


def _copied(tensor: Tensor, copy: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad():
        result = copy(tensor)
    is_new_parameter = result is not tensor and isinstance(tensor, nn.Parameter)
    return CopiedParameter.of(tensor, result, moved=True) if is_new_parameter else result


class DeviceCopies(Copies):
    """The weights of a module on a device; a tensor that is already there is used as it is."""

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        *,
        leave: Collection[nn.Module] = (),
        non_blocking: bool = False,
    ) -> None:
        """Raises UnsupportedError if the device does not support the dtype of a stored weight."""

        def copy(tensor: Tensor) -> Tensor:
            try:
                return tensor.to(device, non_blocking=non_blocking)
            except TypeError as error:  # MPS has no float8 and no float64
                raise UnsupportedError(
                    f"got weights of type {tensor.dtype} for {device}, which does not support it ({error}); "
                    "expected a type that it supports; use a bf16, int8, nf4 or GGUF file, or quantize a bf16 file to "
                    "int8 or nf4"
                ) from error

        super().__init__(module, copy, leave=leave)
