"""Locks die with their process; leftovers of a killed process go, and nothing that somebody holds."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ltxkit.ltx_core import files, locks
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.files import remove_leftovers, whole
from ltxkit.ltx_core.locks import LOCK, TEMPORARY, Claims, Lock, claimed, locked_folder

HOLDS = """
import sys, time
from pathlib import Path
from ltxkit.ltx_core.files import whole
from ltxkit.ltx_core.locks import Claims, locked_folder
folder = Path(sys.argv[1])
with Claims() as claims, locked_folder(folder / "run", "training"), whole(folder / "a.txt") as part:
    claims.take(folder / "b.mp4")
    part.write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow  # starts a process
def test_what_a_killed_process_held_is_free_and_what_it_left_is_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        before = names(tmp_path)
        remove_leftovers(tmp_path)
        assert names(tmp_path) == before
        with Claims() as claims:
            assert not claims.take(tmp_path / "b.mp4")
            assert claims.take(tmp_path / "c.mp4")
        with (
            pytest.raises(ConfigError, match="another training is running"),
            locked_folder(tmp_path / "run", "training"),
        ):
            pass
    finally:
        process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        process.wait()
    assert any(name.startswith(TEMPORARY) for name in names(tmp_path))
    with whole(tmp_path / "d.txt") as part:
        part.write_text("whole")
    assert names(tmp_path) == ["d.txt", "run"]
    with locked_folder(tmp_path / "run", "training"):
        pass
    assert names(tmp_path / "run") == []


WRITES = """
import os, sys
from pathlib import Path
from ltxkit.ltx_core.files import whole
with whole(Path(sys.argv[1]) / sys.argv[2]) as part:
    part.write_text("whole")
print(os.getpid())
"""


@pytest.mark.slow  # starts processes
def test_containers_repeat_the_numbers_of_processes(tmp_path: Path) -> None:
    """The lock tells whether a process is still there, its number does not: in a namespace of its own each is the
    first."""
    own = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c"]
    if shutil.which("unshare") is None or subprocess.run([*own, "pass"], capture_output=True).returncode:
        pytest.skip("this user may not make namespaces of processes")

    def write(name: str) -> str:
        return subprocess.run([*own, WRITES, str(tmp_path), name], check=True, capture_output=True, text=True).stdout

    process = subprocess.Popen([*own, HOLDS, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        before = names(tmp_path)
        assert write("c.txt") == "1\n"
        assert names(tmp_path) == sorted([*before, "c.txt"])
    finally:
        process.kill()
        process.wait()
    assert process.stdout.read() == b""  # the one inside has ended, too
    assert write("d.txt") == "1\n"
    assert names(tmp_path) == ["c.txt", "d.txt", "run"]


def test_a_lock_that_is_a_link_is_not_opened(tmp_path: Path) -> None:
    """In a folder of everybody, somebody may have put it there: what it leads to would be cut off."""
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / f"{LOCK}00c0ffee").symlink_to("theirs")
    remove_leftovers(tmp_path)
    assert (tmp_path / "theirs").read_text() == "precious"


def test_locks_of_names_go_when_the_process_ends_at_once(tmp_path: Path) -> None:
    with Claims() as claims, locked_folder(tmp_path / "run", "training"):
        claims.take(tmp_path / "a.mp4")
        files.remove_temporaries()
        assert names(tmp_path) == ["run"]
        assert names(tmp_path / "run") == []


def test_leftovers_go_and_files_of_others_stay(tmp_path: Path) -> None:
    download = f"{TEMPORARY}deadbeef.safetensors.0123456789abcdef.part"  # a fetch goes on from it
    for name in (f"{TEMPORARY}00c0ffee.mp4", f"{LOCK}00c0ffee", f"{LOCK}{'0' * 16}", download, ".ltxkit", "a.mp4"):
        (tmp_path / name).write_text("x")
    (tmp_path / f"{TEMPORARY}0badf00d" / "inner").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([".ltxkit", download, "a.mp4"])


def test_an_exchange_that_a_kill_cut_in_two_is_undone(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}00c0ffee.old.final").mkdir()
    (tmp_path / f"{TEMPORARY}00c0ffee.old.final" / "weights").write_text("old")
    (tmp_path / f"{TEMPORARY}0badf00d.old.other").mkdir()
    (tmp_path / "other").mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["final", "other"]
    assert (tmp_path / "final" / "weights").read_text() == "old"


def test_two_writers_in_one_process_leave_each_other_alone(tmp_path: Path) -> None:
    with whole(tmp_path / "a.txt") as one:
        one.write_text("a")
        with whole(tmp_path / "b.txt") as other:
            other.write_text("b")
        assert one.exists()
    assert names(tmp_path) == ["a.txt", "b.txt"]


def test_a_claim_makes_folders_and_takes_them_back(tmp_path: Path) -> None:
    with Claims() as claims:
        assert claims.take(tmp_path / "new" / "deep" / "a.mp4")
        assert (tmp_path / "new" / "deep").is_dir()
    assert names(tmp_path) == []
    with Claims() as claims:
        claims.take(tmp_path / "new" / "a.mp4")
        (tmp_path / "new" / "a.mp4").write_text("clip")
    assert names(tmp_path / "new") == ["a.mp4"]


@pytest.mark.parametrize(("system", "taken"), [("linux", False), ("darwin", True), ("win32", True)])
def test_names_that_differ_in_case_are_one_where_the_file_system_says_so(
    monkeypatch: pytest.MonkeyPatch, system: str, taken: bool
) -> None:
    monkeypatch.setattr(locks.sys, "platform", system)
    assert (locks._key("Clip.mp4") == locks._key("clip.MP4")) is taken


def test_more_names_than_files_that_may_be_open_are_taken_without_claims(tmp_path: Path) -> None:
    with Claims() as claims:
        assert all(claims.take(tmp_path / f"{number}.mp4") for number in range(150))
        assert len(names(tmp_path)) == 100
    assert names(tmp_path) == []


def test_without_locks_nothing_is_taken_for_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    def refused(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    (tmp_path / f"{TEMPORARY}00c0ffee.mp4").write_text("of somebody")
    with whole(tmp_path / "a.txt") as part:
        part.write_text("a")
    assert names(tmp_path) == [f"{TEMPORARY}00c0ffee.mp4", "a.txt"]


def test_on_windows_a_lock_is_given_back_before_its_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open file has a name there until it is closed."""
    monkeypatch.setattr(locks.sys, "platform", "win32")
    lock = Lock(tmp_path / "lock")
    assert lock.take()
    held = lock._lock
    assert held is not None
    seen: list[bool] = []
    unlink = Path.unlink

    def watched(self: Path, missing_ok: bool = False) -> None:
        seen.append(held.is_locked)
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    lock.release()
    assert seen == [False]
    assert names(tmp_path) == []


def test_everything_unfinished_goes_when_the_process_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot write"), whole(tmp_path / "run", folder=True) as part:  # noqa: PT012
        (part / "half").write_text("half")
        files.remove_temporaries()
        assert names(tmp_path) == []
        time.sleep(0)


def test_a_name_that_another_command_is_writing_is_refused(tmp_path: Path) -> None:
    with claimed(tmp_path / "new" / "a.json"):
        with (
            pytest.raises(ConfigError, match=r"a\.json, which another command is writing"),
            claimed(tmp_path / "new" / "a.json"),
        ):
            pytest.fail("two have claimed one name")
        with claimed(tmp_path / "new" / "b.json"):
            pass
    with claimed(tmp_path / "new" / "a.json"):
        pass
    assert list(tmp_path.iterdir()) == []
