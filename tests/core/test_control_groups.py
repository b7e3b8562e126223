"""A container's limit counts as main memory: whoever takes more is ended by the system, whatever the machine has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from ltxkit.ltx_core import control_groups
from ltxkit.ltx_core.control_groups import Limit, memory_limits
from ltxkit.ltx_core.errors import UnsupportedError
from ltxkit.ltx_core.main_memory import Memory, check_main_memory, main_memory, swap_memory

GB = 2**30
NO_LIMIT = 9223372036854771712  # of version 1
FIRST = {"memory.limit_in_bytes": 3 * GB, "memory.usage_in_bytes": 2 * GB, "memory.memsw.limit_in_bytes": 4 * GB}
SECOND = {"memory.max": 3 * GB, "memory.current": 2 * GB, "memory.swap.max": GB}
STAT = f"anon 1\nfile {GB}\ninactive_file {GB // 2}\nactive_file {GB // 4}\n"
STAT_1 = "cache 1\ninactive_file 1\nactive_file 1\n" + STAT.replace("inactive", "total_inactive").replace(
    "\nactive", "\ntotal_active"
)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the groups lie; `own` beside it says which are this process's."""
    monkeypatch.setattr(control_groups, "MOUNTED", tmp_path / "mounted")
    monkeypatch.setattr(control_groups, "OWN", tmp_path / "own")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=6 * GB, total=8 * GB))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=2 * GB))
    return tmp_path / "mounted"


def write(folder: Path, values: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n", encoding="ascii")


@pytest.mark.parametrize("place", ["", "system.slice/ltxkit.service"])
def test_a_group_of_version_2(place: str, groups: Path) -> None:
    write(groups / place, SECOND | {"memory.stat": STAT})
    (groups.parent / "own").write_text(f"0::/{place}\n")
    assert memory_limits() == [Limit(GB + GB // 2 + GB // 4, 3 * GB, GB)]  # cached files are given back
    assert main_memory() == Memory(GB + GB // 2 + GB // 4, 3 * GB)
    assert swap_memory() == GB


@pytest.mark.parametrize("place", ["", "docker/0123456789"])
def test_a_group_of_version_1(place: str, groups: Path) -> None:
    write(groups / "memory" / place, FIRST | {"memory.stat": STAT_1})
    (groups.parent / "own").write_text(f"5:cpu,cpuacct:/\n4:memory:/{place}\n1:name=systemd:/x\n0::/x\n")
    assert memory_limits() == [Limit(GB + GB // 2 + GB // 4, 3 * GB, GB)]


def test_a_container_sees_its_own_group_as_the_root(groups: Path) -> None:
    """The name is that of the machine, and leads nowhere inside."""
    write(groups / "memory", FIRST)
    (groups.parent / "own").write_text("4:memory:/docker/0123456789\n")
    assert memory_limits() == [Limit(GB, 3 * GB, GB)]


def test_the_narrowest_of_several_groups_counts(groups: Path) -> None:
    write(groups / "outer", SECOND)
    write(groups / "outer" / "inner", {"memory.max": 5 * GB, "memory.current": 4 * GB + GB // 2})
    (groups.parent / "own").write_text("0::/outer/inner\n")
    assert main_memory() == Memory(GB // 2, 3 * GB)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("0::/", {"memory.max": "max", "memory.current": GB, "memory.swap.max": 0}),
        ("4:memory:/", dict.fromkeys(FIRST, NO_LIMIT) | {"memory.usage_in_bytes": GB}),
        ("0::/", {"memory.max": "many", "memory.current": "\xb2"}),
        ("0::/", {}),
        ("nothing", SECOND),
        ("", SECOND),
    ],
)
def test_without_a_limit_the_machines_memory_counts(name: str, values: Mapping[str, object], groups: Path) -> None:
    for folder in (groups, groups / "memory"):
        folder.mkdir(parents=True, exist_ok=True)
        for file, value in values.items():
            (folder / file).write_text(f"{value}\n", encoding="utf-8")
    (groups.parent / "own").write_text(f"{name}\n")
    assert main_memory() == Memory(6 * GB, 8 * GB)
    assert swap_memory() == 2 * GB


def test_a_system_without_groups(groups: Path) -> None:
    assert memory_limits() == []
    (groups.parent / "own").write_bytes(b"\xff\xfe")
    assert memory_limits() == []


def test_more_than_the_group_may_have_is_refused(groups: Path) -> None:
    write(groups, SECOND | {"memory.swap.max": 0})
    (groups.parent / "own").write_text("0::/\n")
    check_main_memory(GB, "a clip")
    with pytest.raises(
        UnsupportedError, match=r"a clip, which takes 1\.6 GB of main memory; expected at most the 1\.1"
    ):
        check_main_memory(GB + GB // 2, "a clip")
