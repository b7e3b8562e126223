"""Main memory is known on every system, through psutil; without it, it is unknown and nothing breaks."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from ltxkit.ltx_core.main_memory import Memory, swap_memory
from ltxkit.ltx_core.placing import devices
from ltxkit.ltx_core.placing.devices import memory

CPU = torch.device("cpu")


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_main_memory_is_known_everywhere(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(devices.sys, "platform", system)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3, total=8))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=5))
    assert memory(CPU) == Memory(3, 8)
    assert swap_memory() == 5


def test_unknown_where_psutil_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> object:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", nothing)
    monkeypatch.setattr(psutil, "swap_memory", nothing)
    assert memory(CPU) is None
    assert swap_memory() == 0
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert memory(CPU) is None
    assert swap_memory() == 0


def test_the_figures_are_the_system_s_own() -> None:
    here = memory(CPU)
    assert here is not None
    assert 0 < here.free <= here.total == psutil.virtual_memory().total
