"""The machine: its devices, their memory, and copies that run during the computation.

What a card computes by is asked in `kernels.cards`; the rest of the core names no accelerator.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, LTXKitError, UnsupportedError
from ..main_memory import Memory, main_memory
from ..values import shown


def best_device() -> torch.device:
    """CUDA (the name of ROCm in torch too), then Intel's XPU, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.xpu.is_available():
        return torch.device("xpu", torch.xpu.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def named_device(device: str | torch.device) -> torch.device:
    """A device by its name. Raises ConfigError for a name that torch does not know."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"got the device {shown(device)}; expected cuda, cuda:1, xpu, mps or cpu; leave it out for the best"
        ) from error


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device that a user names; None: the best there is.

    Raises:
        ConfigError: an unknown name, or a device that this machine does not have.
    """
    if device is None:
        return best_device()
    chosen = named_device(device)
    try:
        if chosen.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=chosen)
    # What torch raises depends on the kind of device: AssertionError without CUDA, NotImplementedError for others.
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise ConfigError(
            f"got the device {chosen}, which cannot be used here ({_first_line(error)}); expected one that this "
            f"machine has, such as {best_device()}; leave it out for the best there is"
        ) from error
    return chosen


def every_device() -> list[str] | None:
    """All graphics cards of the best kind, where there are several; None for the one best device."""
    kind = best_device().type
    count = torch.cuda.device_count() if kind == "cuda" else torch.xpu.device_count() if kind == "xpu" else 1
    return [f"{kind}:{number}" for number in range(count)] if count > 1 else None


def graphics_card() -> str | None:
    """The name of the first CUDA card; None: there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _first_line(error: BaseException) -> str:
    """torch lists every backend that it was built with: the first sentence says enough."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")


# Texts of torch's errors for memory that cannot be had (c10/core/CPUAllocator and impl/alloc_cpu.cpp, at::empty).
_NO_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory", "Storage size calculation overflowed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated, on a device or in main memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


@contextmanager
def clear_of_memory(what: str) -> Generator[None]:
    """Inside, an allocator's error becomes a sentence.

    Raises:
        UnsupportedError: there is not enough memory for `what`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, LTXKitError) or not is_out_of_memory(error):
            raise
        raise UnsupportedError(
            f"got too little memory for {what} ({_first_line(error)}); expected enough for its size and length; make "
            "the clip smaller or shorter: `ltxkit plan` names a size that fits"
        ) from error


def device_of_process(number: int) -> torch.device:
    """The GPU that process `number` of this machine works on, set as current for NCCL; the CPU without CUDA.

    Raises:
        ConfigError: there are fewer GPUs.
    """
    if best_device().type != "cuda":
        return torch.device("cpu")
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"got process {number + 1} of this machine, which has {torch.cuda.device_count()} graphics cards; expected "
            "one for each process; start fewer with torchrun --nproc-per-node"
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def memory(device: torch.device) -> Memory | None:
    """Memory of a device; None where the system does not report it."""
    if device.type in ("cuda", "xpu"):
        accelerator: Any = torch.get_device_module(device)
        if device.index is None:  # pyright: ignore[reportUnnecessaryComparison] - torch's stubs err: "cuda" has no index
            device = torch.device(device.type, accelerator.current_device())
        free, total = accelerator.mem_get_info(device)
        held = accelerator.memory_allocated(device)
        reserve = accelerator.memory_reserved(device) - held - pooled(device)
        allowed = int(total * _allowed_share(accelerator, device))
        return Memory(max(min(free + reserve, allowed - held), 0), allowed)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return Memory(total - torch.mps.current_allocated_memory(), total)
    return main_memory()


def pooled(device: torch.device) -> int:
    """Bytes that recorded CUDA graphs keep for themselves, though no tensor is in them: nothing else can have them."""
    if device.type != "cuda" or "torch._inductor.cudagraph_trees" not in sys.modules:
        return 0
    number = torch.cuda.current_device() if device.index is None else device.index  # pyright: ignore[reportUnnecessaryComparison] - as above
    segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()
    return sum(
        each["total_size"] - each["allocated_size"]
        for each in segments
        if each["device"] == number and tuple(each["segment_pool_id"]) != (0, 0)
    )


LARGE_BLOCK = 2**20
_M_MMAP_THRESHOLD = -3  # glibc, malloc.h
KEPT_PRIMITIVES = 128


def spare_main_memory() -> None:
    """Return main memory to the system as soon as tensors are freed. Only for processes of our own, before they work.

    By default glibc raises the size from which it does so to 32 MB, and keeps smaller blocks in a heap in which holes
    remain: measured, up to 40 % more than the tensors of a run that takes 1 GB, and still 35 % with a threshold of
    4 MB, in a decode of many tiles. The price is clearing pages: with bfloat16 products in hardware a decode takes 1.5
    times as long. Huge pages, which torch requests if this is set before its first allocation, win back half of that.
    oneDNN keeps 1024 kernels by default, up to 0.3 MB of code each; a clip needs about 40, and more per shape of tile.
    Settings in the environment take precedence; on another C library than glibc nothing happens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch, c10/core/impl/alloc_cpu.cpp
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_PRIMITIVES))
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)


def _allowed_share(accelerator: Any, device: torch.device) -> float:
    """The share that `set_per_process_memory_fraction` allows; older torch sets it and does not report it."""
    share = getattr(accelerator, "get_per_process_memory_fraction", None)
    return 1.0 if share is None else min(share(device), 1.0)


class SideStream:
    """A queue of copies that run during the computation.

    Memory that is allocated for copies belongs to this queue and must not be reused before `after_compute`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._accelerator: Any = torch.get_device_module(device)
        self._stream: Any = self._accelerator.Stream(device)

    def copying(self) -> AbstractContextManager[None]:
        """Inside, new copies go to this queue."""
        return self._accelerator.stream(self._stream)

    def mark(self) -> Any:
        """This point of the queue, for `compute_after`."""
        return self._stream.record_event()

    def compute_after(self, mark: Any) -> None:
        """Later computations wait until the queue has passed the mark."""
        self._accelerator.current_stream(self._device).wait_event(mark)

    def after_compute(self) -> None:
        """Later copies wait for all computations submitted so far."""
        self._stream.wait_stream(self._accelerator.current_stream(self._device))


def side_stream(device: torch.device) -> SideStream | None:
    """A side stream, on devices that have them."""
    return SideStream(device) if device.type in ("cuda", "xpu") else None


def arithmetic_of(device: torch.device) -> list[str]:
    """What the last bits of a result depend on beside the inputs: torch, the device, and how it is told to compute."""
    told = [torch.__version__, torch.get_float32_matmul_precision()]
    if device.type in ("cuda", "xpu"):
        accelerator: Any = torch.get_device_module(device)
        return [*told, device.type, accelerator.get_device_name(device)]
    processor = [platform.machine(), _processor(), torch.backends.cpu.get_cpu_capability()]
    return [*told, device.type, *processor, str(torch.get_num_threads())]


@cache
def _processor() -> str:
    """The model of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def describe_devices() -> list[str]:
    """Every device here in one sentence each, the one that is used first."""
    best = best_device()
    lines: list[str] = []
    if best.type in ("cuda", "xpu"):
        accelerator: Any = torch.get_device_module(best)
        for number in range(accelerator.device_count()):
            name = accelerator.get_device_name(number)
            lines.append(f"{best.type}:{number}: {name}{_room(torch.device(best.type, number))}")
    elif best.type != "cpu":
        lines.append(f"{best.type}{_room(best)}")
    return [*lines, f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads{_room(torch.device('cpu'))}"]


def _room(device: torch.device) -> str:
    here = memory(device)
    return "" if here is None else f", {here.free / 2**30:.1f} of {here.total / 2**30:.1f} GiB free"


def failing_device() -> str | None:
    """Why the device that is used does not compute; None if it does. A driver may be there and fail."""
    device = best_device()
    try:
        torch.ones(2, device=device).sum().item()
    except RuntimeError as error:
        return (
            f"got the device {device}, which does not compute ({error}); expected one that does; "
            "check its driver, or hide it (CUDA_VISIBLE_DEVICES=)"
        )
    return None
