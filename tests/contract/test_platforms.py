"""Nobody's machine has every system: each place that asks which one this is has a test that stands in for another.

`ASKS` names them. The rest of this file is those tests that belong to no room alone.
"""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import mmap
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ltxkit.commands.places import config_file
from ltxkit.commands.training import stopping_on_signals
from ltxkit.ltx_core import files, threads
from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.measuring import machine
from ltxkit.ltx_core.placing import devices, readahead
from ltxkit.ltx_core.weights import assign, mapping
from ltxkit.nodes import train

HERE = "tests/contract/test_platforms.py"
NAMES = "tests/core/test_filenames.py"

# file:function -> how many times it asks, and the tests that stand in for the other systems
ASKS: dict[str, tuple[int, str]] = {
    "commands/places.py:config_file": (2, f"{HERE}::test_the_config_file_lies_where_the_system_keeps_such_files"),
    "commands/training.py:stopping_on_signals": (3, f"{HERE}::test_windows_break_key_stops_a_training"),
    "ltx_core/cache.py:_usual_folder": (2, "tests/kernels/test_here.py::test_the_folder_is_the_systems_usual_place"),
    "ltx_core/filenames.py:check_for_system": (1, f"{NAMES}::test_what_windows_has_no_names_for_is_refused_there"),
    "ltx_core/filenames.py:_has_long_paths": (1, f"{NAMES}::test_long_paths_of_windows"),
    "ltx_core/filenames.py:folded": (2, f"{NAMES}::test_names_that_are_one_file"),
    "ltx_core/files.py:sync": (2, f"{HERE}::test_windows_syncs_files_it_may_write_and_no_folders"),
    "ltx_core/files.py:_sync_folder": (1, f"{HERE}::test_windows_syncs_files_it_may_write_and_no_folders"),
    "ltx_core/files.py:_failed": (1, "tests/core/test_files.py::test_on_windows_a_file_in_use_is_said"),
    "ltx_core/locks.py:Lock.release": (
        2,
        "tests/core/test_locks.py::test_on_windows_a_lock_is_given_back_before_its_file_goes",
    ),
    "ltx_core/measuring/machine.py:cores": (1, f"{HERE}::test_cores_where_a_process_cannot_be_tied_to_some"),
    "ltx_core/measuring/machine.py:peak_of_process": (2, f"{HERE}::test_the_peak_of_a_process_in_each_systems_unit"),
    "ltx_core/measuring/machine.py:forget_cached": (1, f"{HERE}::test_cached_pages_stay_where_nobody_can_be_asked"),
    "ltx_core/placing/devices.py:spare_main_memory": (2, f"{HERE}::test_the_c_librarys_memory_is_set_on_linux_alone"),
    "ltx_core/placing/readahead.py:_madvise": (3, f"{HERE}::test_nothing_is_read_ahead_where_it_cannot_be_asked_for"),
    "ltx_core/threads.py:scheduling_kept": (1, f"{HERE}::test_scheduling_is_left_alone_where_it_is_not_told"),
    "ltx_core/weights/assign.py:_return_freed_memory": (2, f"{HERE}::test_the_c_librarys_memory_is_set_on_linux_alone"),
    "ltx_core/weights/mapping.py:": (2, f"{HERE}::test_mapping_without_the_flag_of_linux"),
    "ltx_core/weights/mapping.py:MappedFile._opened": (1, f"{HERE}::test_files_are_opened_as_bytes_on_windows"),
    "ltx_core/weights/mapping.py:_start": (1, f"{HERE}::test_a_file_that_is_written_to_is_seen_without_pread"),
    "ltx_core/weights/mapping.py:_map_privately": (
        1,
        "tests/weights/test_mapping.py::test_on_windows_files_are_mapped_to_be_read_alone",
    ),
    "nodes/train.py:start": (2, f"{HERE}::test_a_training_that_a_node_started_ends_alone_on_windows"),
    "nodes/train.py:_stop": (1, f"{HERE}::test_a_training_that_a_node_started_ends_alone_on_windows"),
}

_SYSTEM_MODULES = ("os", "mmap", "signal", "subprocess", "ctypes", "resource", "time", "select", "socket")


def asks(tree: ast.Module) -> Iterator[str]:
    """The function around each question of which system this is; empty: outside of functions."""

    def walk(node: ast.AST, around: tuple[str, ...]) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Attribute) and ast.unparse(child) in ("sys.platform", "os.name"):
                yield ".".join(around)
            called = ast.unparse(child.func) if isinstance(child, ast.Call) else ""
            of = ast.unparse(child.args[0]).partition(".")[0] if called in ("hasattr", "getattr") else ""
            if called == "platform.system" or of in _SYSTEM_MODULES:
                yield ".".join(around)
            named = isinstance(child, (ast.FunctionDef, ast.ClassDef))
            yield from walk(child, (*around, child.name) if named else around)

    return walk(tree, ())


def test_every_question_has_a_test_that_stands_in(repository: Path) -> None:
    found: Counter[str] = Counter()
    for name in ("commands", "headless", "nodes", "ltx_core"):
        for path in (repository / name).rglob("*.py"):
            place = path.relative_to(repository).as_posix()
            found.update(f"{place}:{function}" for function in asks(ast.parse(path.read_text(encoding="utf-8"))))
    del found["ltx_core/pipelines/doctor.py:examine"]  # which only tells it
    assert dict(found) == {place: count for place, (count, _) in ASKS.items()}, "name its test in ASKS"


@pytest.mark.parametrize("test", sorted({test for _, test in ASKS.values()}))
def test_the_tests_that_are_named_stand_in_for_another_system(repository: Path, test: str) -> None:
    path, _, name = test.partition("::")
    tree = ast.parse((repository / path).read_text(encoding="utf-8"))
    (function,) = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == name]
    assert re.search(r"monkeypatch\.(setattr\(.*platform|delattr\(|setattr\(.*raising=False)", ast.unparse(function))


def test_questions_are_found() -> None:
    code = (
        "import os\nclass A:\n    def f(self):\n        return sys.platform == 'x' or hasattr(os, 'pread')\nb = os.name"
    )
    assert list(asks(ast.parse(code))) == ["A.f", "A.f", ""]


# ------------------------------------------------------------------------------------------------ folders and files


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("linux", {}, ".config"),
        ("linux", {"XDG_CONFIG_HOME": "/own"}, "/own"),
        ("darwin", {"APPDATA": "/no"}, "Library/Application Support"),
        ("win32", {"APPDATA": "/roaming", "XDG_CONFIG_HOME": "/no"}, "/roaming"),
        ("win32", {}, "AppData/Roaming"),
    ],
)
def test_the_config_file_lies_where_the_system_keeps_such_files(
    system: str, variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", system)
    assert config_file(variables) == tmp_path / expected / "ltxkit/config.ini"


def test_windows_syncs_files_it_may_write_and_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a")
    opened: list[tuple[str, int]] = []
    monkeypatch.setattr(files, "_flush", lambda path, flags: opened.append((path.name, flags)))
    monkeypatch.setattr(sys, "platform", "linux")
    files.sync(tmp_path)
    assert opened == [("a", os.O_RDONLY), (tmp_path.name, os.O_RDONLY)]
    opened.clear()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "O_BINARY", 0x8000, raising=False)
    files.sync(tmp_path)
    assert opened == [("a", os.O_RDWR | 0x8000)]


def test_files_are_opened_as_bytes_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a descriptor reads the two bytes of a line's end as one."""
    (tmp_path / "a").write_bytes(bytes(64))
    modes: list[int] = []
    original = os.open
    monkeypatch.setattr(os, "O_BINARY", 0x8000, raising=False)
    monkeypatch.setattr(os, "open", lambda path, flags: modes.append(flags) or original(path, os.O_RDONLY))
    assert mapping.MappedFile(tmp_path / "a").tensor(0, torch.uint8, (64,)).sum() == 0
    assert modes == [os.O_RDONLY | 0x8000]


def test_a_file_that_is_written_to_is_seen_without_pread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its start alone: size and time are the same as before."""
    path = tmp_path / "a"
    path.write_bytes(b"1" * 8192)
    expected = mapping._start(descriptor := os.open(path, os.O_RDONLY))
    monkeypatch.delattr(os, "pread", raising=False)
    assert mapping._start(descriptor) == mapping._start(descriptor) == expected == b"1" * mapping.HEADER_BYTES
    os.close(descriptor)
    mapped, before = mapping.MappedFile(path), path.stat()
    mapped.tensor(0, torch.uint8, (8,))
    mapped.check_unchanged()
    with path.open("r+b") as file:
        file.write(b"2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CheckpointError, match="overwritten after it was opened"):
        mapped.check_unchanged()


@pytest.mark.parametrize(("system", "flag"), [("linux", 0x4000), ("darwin", 0), ("win32", 0)])
def test_mapping_without_the_flag_of_linux(system: str, flag: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python names it from 3.12 on."""
    monkeypatch.delattr(mmap, "MAP_NORESERVE", raising=False)
    monkeypatch.setattr(sys, "platform", system)
    chosen = _again(mapping)._NO_RESERVE
    assert chosen == flag


def _again(module: ModuleType) -> ModuleType:
    """A second copy of a module, beside the one that everything has."""
    assert module.__spec__ is not None
    copy = importlib.util.module_from_spec(module.__spec__)
    assert module.__spec__.loader is not None
    module.__spec__.loader.exec_module(copy)
    return copy


# ------------------------------------------------------------------------------------------------ memory and threads


def test_cores_where_a_process_cannot_be_tied_to_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


@pytest.mark.parametrize(("system", "expected"), [("linux", 7 * 1024), ("darwin", 7), ("win32", None)])
def test_the_peak_of_a_process_in_each_systems_unit(
    system: str, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=7))
    monkeypatch.setitem(sys.modules, "resource", resource)  # which Windows does not have
    monkeypatch.setattr(sys, "platform", system)
    assert machine.peak_of_process() == expected


def test_cached_pages_stay_where_nobody_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a")
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert machine.forget_cached([tmp_path]) is False


@pytest.mark.parametrize(("system", "calls"), [("linux", ["mallopt", "malloc_trim"]), ("darwin", []), ("win32", [])])
def test_the_c_librarys_memory_is_set_on_linux_alone(
    system: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    class Library:
        def __getattr__(self, name: str) -> object:
            return lambda *_: called.append(name)

    def opened(name: object) -> Library:
        assert sys.platform == "linux", "Windows has no CDLL(None)"
        return Library()

    for name in ("MALLOC_MMAP_THRESHOLD_", "THP_MEM_ALLOC_ENABLE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", opened)
    devices.spare_main_memory()
    assign._return_freed_memory()
    assert called == calls


def test_nothing_is_read_ahead_where_it_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(madvise=SimpleNamespace(argtypes=None))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(mmap, "MADV_WILLNEED", 3, raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert readahead._madvise() is library.madvise
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert readahead._madvise() is None
    monkeypatch.delattr(mmap, "MADV_WILLNEED")
    assert readahead._madvise() is None
    monkeypatch.setattr(mmap, "MADV_WILLNEED", 3, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    assert readahead._madvise() is None


def test_scheduling_is_left_alone_where_it_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getscheduler", raising=False)
    monkeypatch.setattr(threads, "_policies", lambda: pytest.fail("asked for the policies of threads"))
    with threads.scheduling_kept():
        pass


# ------------------------------------------------------------------------------------------------------------ signals


def test_windows_break_key_stops_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere another signal stands in for SIGBREAK."""
    number = signal.SIGBREAK if sys.platform == "win32" else signal.SIGUSR1
    before = signal.getsignal(number)
    monkeypatch.setattr(signal, "SIGBREAK", number, raising=False)
    with stopping_on_signals() as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked()
    assert signal.getsignal(number) == before


def test_a_training_that_a_node_started_ends_alone_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of its own, so that its Ctrl-Break does not reach ComfyUI."""
    started: list[int] = []
    sessions: list[bool] = []
    sent: list[int] = []
    process = SimpleNamespace(poll=lambda: None, send_signal=sent.append, wait=lambda _: 0)

    def popen(*_: object, creationflags: int, start_new_session: bool, **__: object) -> SimpleNamespace:
        started.append(creationflags)
        sessions.append(start_new_session)
        return process

    def cancelled(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(train, "POLL", 0.0)
    for flag, number in ((512, 1), (0, signal.SIGINT)):
        if flag:
            monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", flag, raising=False)
            monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", number, raising=False)
        else:
            monkeypatch.delattr(subprocess, "CREATE_NEW_PROCESS_GROUP")
            monkeypatch.delattr(signal, "CTRL_BREAK_EVENT")
        with pytest.raises(KeyboardInterrupt):
            train.train(tmp_path / "run", {}, [], 1, cancelled, print)
    assert started == [512, 0]
    assert sent == [1, signal.SIGINT]
    assert sessions == [False, False]
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    monkeypatch.setattr(subprocess, "DETACHED_PROCESS", 8, raising=False)
    train.start(tmp_path / "run", {}, [], alone=True)  # in the background
    assert (started[-1], sessions[-1]) == (520, True)
