"""Files mapped into memory: a tensor is a view that costs nothing until something reads it."""

from __future__ import annotations

import mmap
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import CheckpointError, reason_of

# Without it the kernel refuses to map a file that is larger than memory and swap together, because the mapping is
# private and could, as far as it knows, be written to as a whole. Python names the flag from 3.12 on only.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

_READING = threading.Lock()  # of a file's start where reading moves the descriptor's place

HEADER_BYTES = 4096  # of a file's start that are compared: a new file of the same size and time rarely has the same


class MappedFile:
    """One file, mapped privately at the first read: what is written to a tensor never reaches the file.

    On Windows it is mapped to be read alone: the page file would be charged with the whole of a private mapping, and
    refuse it (error 1455).
    """

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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nobody writes to weights
            return self._view(mapped, offset, dtype, count).reshape(shape)

    @staticmethod
    def _view(mapped: mmap.mmap, offset: int, dtype: torch.dtype, count: int) -> Tensor:
        # A tensor may start at any byte, not only at a multiple of the item size; safetensors reads it in place, too.
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset)

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
                    f"got {self.path}, which cannot be mapped into memory ({reason_of(error)}); expected a readable "
                    "file; check that it is still there"
                ) from error
        else:
            self.check_unchanged()
        return self._map


def _state(descriptor: int) -> tuple[int, int, bytes]:
    """Size, time of the last change, and the file's start."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, _start(descriptor)


def _start(descriptor: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, HEADER_BYTES, 0)
    with _READING:  # on Windows
        os.lseek(descriptor, 0, os.SEEK_SET)
        return os.read(descriptor, HEADER_BYTES)


def _map_privately(descriptor: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    return mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def watch(model: nn.Module, files: Sequence[MappedFile]) -> list[RemovableHandle]:
    """From now on every way into `model` first checks that the files that it is mapped from are as they were: its own
    forward, and that of each of its children, through which text is prepared, frames are encoded and latents decoded.

    A file that is cut off while a pass reads it ends the process (SIGBUS): no check can come between.
    """

    def check(*_: Any) -> None:
        for file in files:
            file.check_unchanged()

    return [module.register_forward_pre_hook(check) for module in (model, *model.children())] if files else []
