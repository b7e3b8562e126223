"""The machine that a figure was taken on, and the memory that work takes there."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import sys
from collections.abc import Callable, Generator, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..placing.devices import graphics_card

REPORTED_PACKAGES = ("ltxkit", "torch", "diffusers", "transformers")


def describe_machine() -> dict[str, object]:
    """Processor, cores, threads, graphics card and versions, as JSON values."""
    versions = {"python": platform.python_version()}
    for package in REPORTED_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": graphics_card(),
        "versions": versions,
    }


def cores() -> int:
    """Of the CPU, as many as this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The name of the CPU, as its maker writes it where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processor_name(device: torch.device) -> str:
    """The name of what computes on a device."""
    if device.type == "cpu":
        return cpu_name()
    module: Any = torch.get_device_module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else f"{device.type}, {cpu_name()}"


def wait_for(device: torch.device) -> None:
    """Until everything that was submitted to a device is done."""
    if device.type != "cpu":
        module: Any = torch.get_device_module(device)
        module.synchronize()


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """The most bytes that torch's allocator holds during a call, beyond those before it.

    Scratch memory that a library keeps for itself is not among them. None on a device that does not count.
    """
    if device.type == "cpu":
        return _peak_of_cpu(run)
    module: Any = torch.get_device_module(device)
    if not hasattr(module, "reset_peak_memory_stats"):
        return None
    wait_for(device)
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    with torch.inference_mode():
        run()
    wait_for(device)
    return module.max_memory_allocated(device) - before


def _peak_of_cpu(run: Callable[[], object]) -> int:
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    recorder = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _without_native_lines(), torch.inference_mode(), recorder as recorded:
        run()
    now = peak = 0
    profiler: Any = recorded.profiler  # untyped in torch
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@contextlib.contextmanager
def _without_native_lines() -> Generator[None]:
    """Inside, nothing reaches stderr: torch's profiler writes lines of its own there, past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def peak_of_process() -> int | None:
    """The most main memory that this process has held so far, with the pages of mapped files; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_cached(paths: Iterable[Path]) -> bool:
    """Ask the system to drop its cached pages of these files, so that the next reading is a first one.

    Returns whether it can be asked: on Linux.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True
