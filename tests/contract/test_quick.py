"""`make quick` keeps its promise: enough tests to trust, and all of them fast."""

from __future__ import annotations

import re
import runpy
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


def workers(repository: Path, folder: Path, *names: str) -> list[set[str]]:
    """The workers that take each of these files of six tests, by the options of the Makefile."""
    options = re.search(r"^PYTEST := \$\(BIN\)/pytest (.+)$", (repository / "Makefile").read_text(), re.MULTILINE)
    assert options is not None
    for name in names:
        lines = ["import os", "from pathlib import Path", "from time import sleep"]
        for number in range(6):
            write = (
                f"    with Path(__file__).with_suffix('.log').open('a') as log: log.write(os.environ['{WORKER}'] + ' ')"
            )
            lines += [f"def test_{number}():", "    sleep(0.02)", write]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines))
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    numbers = options[1].replace("--numprocesses logical", "--numprocesses 2").split()
    subprocess.run([sys.executable, "-m", "pytest", *numbers], cwd=folder, check=True, capture_output=True)
    took = [(folder / name).with_suffix(".log").read_text().split() for name in names]
    assert [len(each) for each in took] == [6] * len(names)
    return [set(each) for each in took]


@pytest.mark.slow
def test_a_worker_takes_whole_files(repository: Path, tmp_path: Path) -> None:
    """By the options of the Makefile: under a later pytest, grouping by marks once did nothing, and every server and
    browser was started twice."""
    assert [len(each) for each in workers(repository, tmp_path, "test_a.py", "test_b.py")] == [1, 1]


@pytest.mark.slow
def test_files_that_share_servers_go_to_one_worker(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        f"import runpy\nunits = runpy.run_path({str(repository / 'tests/work_units.py')!r})\n"
        "def pytest_xdist_make_scheduler(config, log):\n    return units['WorkUnits'](config, log)\n"
    )
    servers = ("tests/host/test_comfyui.py", "tests/host/test_sound.py")
    first, other, second = workers(repository, tmp_path, servers[0], "tests/host/test_frontend.py", servers[1])
    assert len(first) == len(other) == 1
    assert first == second != other


def test_units_of_work_name_files(repository: Path) -> None:
    units = runpy.run_path(str(repository / "tests/work_units.py"))
    named = {*units["TOGETHER"], *units["SECONDS"]} - {*units["TOGETHER"].values()}
    assert [name for name in sorted(named) if not (repository / name).is_file()] == []
    with_servers = {
        f"tests/host/{path.name}"
        for path in (repository / "tests/host").glob("test_*.py")
        if re.search(r"\bserver(_next|_newest)?: Server\b|\bCORES = \(\"server\"", path.read_text(encoding="utf-8"))
    }
    assert {name for name, unit in units["TOGETHER"].items() if unit == units["SERVERS"]} == with_servers
