"""Weights on their way from the disk before anybody reads them."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .devices import memory

_SHARE = 0.5  # of free main memory, which the weights that work now need too
_AT_ONCE = 32 * 2**20  # bytes that one call asks for, so that a stop is soon heard


class ReadAhead:
    """Asks the system for the pages of mapped weights, in a thread, until the `with` block ends.

    It is advice: nothing waits for it and nothing depends on it. Tensors that are in memory already cost nothing. Where
    they would take more than half of free main memory, or the system knows no such advice, nothing happens.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._stopped = threading.Event()
        tensors = {id(each): each for module in modules for each in (*module.parameters(), *module.buffers())}
        self._tensors = [each.detach() for each in tensors.values() if each.device.type == "cpu" and each.nbytes]
        self._advise = _madvise() if self._tensors and _has_room(sum(each.nbytes for each in self._tensors)) else None
        self._thread = threading.Thread(target=self._run, name="ltxkit read ahead", daemon=True)
        if self._advise is not None:
            self._thread.start()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()

    def _run(self) -> None:
        for tensor in self._tensors:
            start, stop = _pages(tensor)
            for address in range(start, stop, _AT_ONCE):
                if self._stopped.is_set() or self._advise is None:
                    return
                self._advise(address, min(_AT_ONCE, stop - address), mmap.MADV_WILLNEED)


def _pages(tensor: Tensor) -> tuple[int, int]:
    """The addresses of the pages that a tensor lies in."""
    start = tensor.data_ptr()
    return start - start % mmap.PAGESIZE, start + tensor.nbytes


def _has_room(needed: int) -> bool:
    there = memory(torch.device("cpu"))
    return there is not None and needed <= _SHARE * there.free


def _madvise() -> Any:
    """The C library's `madvise`, where there is one."""
    if sys.platform == "win32" or not hasattr(mmap, "MADV_WILLNEED"):
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
