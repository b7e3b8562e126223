"""Files and folders appear under their names complete or not at all."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ltxkit.ltx_core import files
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.files import check_output, whole
from ltxkit.ltx_core.values import shown


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with whole(target) as part:
            assert part.suffix == ".txt"
            assert part.parent == target.parent
            part.write_text(text)
            assert not target.exists() or target.read_text() == "first"
        assert contents(tmp_path) == {"new/a.txt": text}


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with whole(tmp_path / "run", folder=True) as part:
            (part / f"{name}.txt").write_text(name)
        assert contents(tmp_path) == {f"run/{name}.txt": name}
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_takes_the_place_of_one_that_another_process_has_just_made(tmp_path: Path) -> None:
    with whole(tmp_path / "run", folder=True) as part:
        (part / "second.txt").write_text("second")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "first.txt").write_text("first")
    assert contents(tmp_path) == {"run/second.txt": "second"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, OSError])
def test_what_was_there_stays_when_the_block_fails(tmp_path: Path, error: type[BaseException], folder: bool) -> None:
    target = tmp_path / "target"
    with whole(target, folder=folder) as part:
        (part / "old" if folder else part).write_text("old")
    before = contents(tmp_path)

    def fail() -> None:
        with whole(target, folder=folder) as part:
            (part / "new" if folder else part).write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupted_exchange_of_folders_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with whole(tmp_path / "run", folder=True) as part:
        (part / "old").write_text("old")
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if self.suffix == "" and target == tmp_path / "run" and not (self / "old").exists():
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "run", folder=True) as part:
        (part / "new").write_text("new")
    assert contents(tmp_path) == {"run/old": "old"}


def test_the_message_names_the_target_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"cannot write .*file/a\.txt .*nothing is left of it"),
        whole(tmp_path / "file" / "a.txt"),
    ):
        pass
    target = tmp_path / "folder"

    def fill() -> None:
        with whole(target, folder=True) as part, whole(part / "inner.txt") as inner:
            inner.write_text("x")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="cannot write") as raised:
        fill()
    assert raised.value.errno == 28
    assert raised.value.strerror == f"cannot write {target} (No space left on device); nothing is left of it"


def test_an_output_of_a_long_path_is_named_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name stands at the end of the path."""

    def read_only(_: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = tmp_path / "a folder of many letters" / "another one of as many" / "the clip.mp4"
    with pytest.raises(ConfigError, match=re.escape(f"got the output {path}; expected a name that ends in .png")):
        check_output(path, [".png"])
    monkeypatch.setattr(files, "_try", read_only)
    with pytest.raises(ConfigError, match=re.escape(f"got the output {path}, which cannot be written (Read-only")):
        check_output(path)
    assert shown(str(path)).endswith(f"the clip.mp4' ({len(str(path)) + 2} characters)")


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut keeps a name and loses the content otherwise."""
    events: list[str] = []
    inodes: dict[int, str] = {}
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        events.append(inodes.get(os.fstat(descriptor).st_ino, "parent"))
        fsync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        events.append(f"replace {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    with whole(tmp_path / "run", folder=True) as part:
        (part / "inner").mkdir()
        (part / "inner" / "state").write_text("x")
        inodes |= {path.stat().st_ino: path.name for path in part.rglob("*")}
        inodes[part.stat().st_ino] = "folder"
    assert events == ["state", "inner", "folder", "replace run", *(["parent"] if sys.platform != "win32" else [])]
    assert (tmp_path / "run" / "inner" / "state").read_text() == "x"


@pytest.mark.parametrize(("number", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_sync_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: bool
) -> None:
    def refused(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)

    def write() -> None:
        with whole(tmp_path / "a.txt") as part:
            part.write_text("a")

    if fails:
        with pytest.raises(OSError, match=r"cannot write .*a\.txt \(Input/output error\)"):
            write()
        assert list(tmp_path.iterdir()) == []
    else:
        write()
        assert contents(tmp_path) == {"a.txt": "a"}


def _by_torch(path: Path) -> None:
    torch.save({"x": torch.zeros(100_000)}, path)


def _by_safetensors(path: Path) -> None:
    save_file({"x": torch.zeros(100_000)}, path)


def _by_pillow(path: Path) -> None:
    Image.effect_noise((400, 400), 50).save(path, "PNG")


def _by_python(path: Path) -> None:
    path.write_bytes(bytes(100_000))


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
@pytest.mark.parametrize("write", [_by_torch, _by_safetensors, _by_pillow, _by_python])
def test_whatever_writes_a_full_disk_is_said_with_the_name(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """A limit of the size of files stands in for the disk's end: every library meets it in its own way."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*result\.bin \(.*\); nothing is left of it"):  # noqa: SIM117
            with whole(tmp_path / "result.bin") as part:
                write(part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })',
    ],
    ids=["now", "safetensors 0.4.3"],
)
def test_what_rust_says_of_the_disk_is_understood(tmp_path: Path, text: str) -> None:
    def write() -> None:
        with whole(tmp_path / "a"):
            raise RuntimeError(text)

    with pytest.raises(OSError, match=r"cannot write .*a \(.*No space left on device\)") as caught:
        write()
    assert caught.value.errno == 28


def test_on_windows_a_file_in_use_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing renames over an open or mapped file there."""
    target = tmp_path / "model.safetensors"
    target.write_text("old")
    monkeypatch.setattr(files.sys, "platform", "win32")

    def refused(*_: object) -> Path:
        raise PermissionError(13, "Access is denied", str(target))

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(OSError, match=r"has it open, close that first"), whole(target) as part:
        part.write_text("new")
    assert contents(tmp_path) == {"model.safetensors": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
