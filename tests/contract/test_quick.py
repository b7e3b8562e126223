"""`make quick` keeps its promise: enough tests to trust, and all of them fast."""

from __future__ import annotations

from pathlib import Path

import pytest

LEAST = 1200  # cases


def test_quick_is_most_of_the_suite(collected: list[pytest.Item], repository: Path) -> None:
    """Cases that run on any machine and are not marked slow."""
    files = set((repository / "tests").rglob("test_*.py"))
    if files - {item.path for item in collected}:
        pytest.skip("counts where all files are collected: make quick, make test")
    elsewhere = ("slow", "comfy", "comfy_next", "browser", "gpu")
    cases = [item for item in collected if not any(item.get_closest_marker(name) for name in elsewhere)]
    assert len(cases) >= LEAST


def test_what_needs_a_machine_of_its_own_is_slow(collected: list[pytest.Item]) -> None:
    """ComfyUI servers and browsers take seconds to start."""
    names = ("comfy", "comfy_next", "browser")
    marked = [item for item in collected if any(item.get_closest_marker(name) for name in names)]
    assert [item.nodeid for item in marked if not item.get_closest_marker("slow")] == []
