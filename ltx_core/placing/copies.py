"""Other tensors temporarily in the place of a module's own. Nothing is ever copied back."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError


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
                        if copied[id(tensor)] is not tensor:
                            self._originals.append((tensors, name, tensor, copied[id(tensor)]))
                            tensors[name] = copied[id(tensor)]
        except BaseException:  # out of memory half-way, or Ctrl-C: leave nothing behind
            self.drop()
            raise

    def drop(self) -> None:
        """Put the originals back; the copies are freed. What another one has put in the place of a copy stays."""
        for tensors, name, tensor, copied in self._originals:
            if tensors.get(name) is copied:
                tensors[name] = tensor
        self._originals.clear()


def _tensors(part: nn.Module) -> tuple[dict[str, Tensor | None], ...]:
    """A module's own parameters and buffers, as the dictionaries that hold them."""
    return cast("dict[str, Tensor | None]", part._parameters), part._buffers  # pyright: ignore[reportPrivateUsage]


def _copied(tensor: Tensor, copy: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad():
        result = copy(tensor)
    is_new_parameter = result is not tensor and isinstance(tensor, nn.Parameter)
    return nn.Parameter(result, requires_grad=False) if is_new_parameter else result


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
