"""Files mapped into memory: a tensor is a view that costs nothing until something reads it."""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

# Without it the kernel refuses to map a file that is larger than memory and swap together, because the mapping is
# private and could, as far as it knows, be written to as a whole. Python names the flag from 3.12 on only.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

HEADER_BYTES = 4096  # of a file's start that are compared: a new file of the same size and time rarely has the same


class MappedFile:
    """One file, mapped privately at the first read: what is written to a tensor never reaches the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        self._descriptor = -1
        with path.open("rb") as file:
            self._state = _state(file.fileno())

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Elements that start at this byte of the file."""
        mapped = self._opened()
        count = prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        # A tensor may start at any byte, not only at a multiple of the item size; safetensors reads it in place, too.
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset).reshape(shape)

    def check_unchanged(self) -> None:
        """Make sure that the mapped file is as it was. Another file under its name does not matter.

        Raises:
            CheckpointError: the mapped file was written to.
        """
        if self._descriptor >= 0 and self._state != _state(self._descriptor):
            raise CheckpointError(
                f"got {self.path}, which was overwritten after it was opened; expected it to stay as it was while its "
                "model is in use; load it again"
            )

    def _opened(self) -> mmap.mmap:
        if self._map is None:
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                # Tensors keep the mapping; the descriptor is for `check_unchanged` only.
                weakref.finalize(self, os.close, self._descriptor)
                self.check_unchanged()
                self._map = _map_privately(self._descriptor)
            except OSError as error:
                raise CheckpointError(
                    f"got {self.path}, which cannot be mapped into memory ({error}); expected a readable file; "
                    "check that it is still there"
                ) from error
        else:
            self.check_unchanged()
        return self._map


def _state(descriptor: int) -> tuple[int, int, bytes]:
    """Size, time of the last change, and the file's start, where a file can be read at an offset (not on Windows)."""
    status = os.fstat(descriptor)
    header = os.pread(descriptor, HEADER_BYTES, 0) if hasattr(os, "pread") else b""
    return status.st_size, status.st_mtime_ns, header


def _map_privately(descriptor: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    return mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def watch(model: nn.Module, files: tuple[MappedFile, ...]) -> None:
    """From now on every forward of `model` first checks that the files that it is mapped from are as they were."""

    def check(*_: Any) -> None:
        for file in files:
            file.check_unchanged()

    model.register_forward_pre_hook(check)
