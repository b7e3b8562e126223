"""`make quick` keeps its promise: enough tests to trust, and all of them fast."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

LEAST = 1200  # cases
WORKER = "PYTEST_XDIST_WORKER"


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


@pytest.mark.slow
def test_a_worker_takes_whole_files(repository: Path, tmp_path: Path) -> None:
    """By the options of the Makefile: under a later pytest, grouping by marks once did nothing, and every server and
    browser was started twice."""
    options = re.search(r"^PYTEST := \$\(BIN\)/pytest (.+)$", (repository / "Makefile").read_text(), re.MULTILINE)
    assert options is not None
    for name in ("test_a.py", "test_b.py"):
        lines = ["import os", "from pathlib import Path", "from time import sleep"]
        for number in range(6):
            write = (
                f"    with Path(__file__).with_suffix('.log').open('a') as log: log.write(os.environ['{WORKER}'] + ' ')"
            )
            lines += [f"def test_{number}():", "    sleep(0.02)", write]
        (tmp_path / name).write_text("\n".join(lines))
    (tmp_path / "pytest.ini").write_text("[pytest]")
    numbers = options[1].replace("--numprocesses logical", "--numprocesses 2").split()
    subprocess.run([sys.executable, "-m", "pytest", *numbers], cwd=tmp_path, check=True, capture_output=True)
    for name in ("test_a.log", "test_b.log"):
        assert len((tmp_path / name).read_text().split()) == 6
        assert len(set((tmp_path / name).read_text().split())) == 1
