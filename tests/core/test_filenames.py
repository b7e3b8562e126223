"""Names that Windows has no files for, paths that leave their folder on any system, and names that are one file."""

from __future__ import annotations

import ctypes
import ntpath
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest

from ltxkit.ltx_core import filenames, files
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.files import check_output

DEVICES = ["CON", "nul", "con.mp4", "Aux.tar.gz", "COM1", "lpt9.png", "com¹.mp4", "nul .txt", "CONOUT$", "prn"]
ORDINARY = [
    "connection",
    "con-0.mp4",
    "com",
    "com10",
    "nul_00001_.png",
    "a.con",
    "lpt.png",
    "clip",
    ".con",
    "auxiliary",
]


@pytest.mark.parametrize(("names", "is_one"), [(DEVICES, True), (ORDINARY, False)])
def test_devices_of_windows(names: list[str], is_one: bool) -> None:
    assert [name for name in names if filenames.is_device(name) is not is_one] == []


@pytest.mark.skipif(not hasattr(ntpath, "isreserved"), reason="Python 3.13 is the first that knows them")
def test_they_are_those_that_python_knows() -> None:
    for name in DEVICES + ORDINARY:
        assert filenames.is_device(name) is ntpath.isreserved(name), name  # pyright: ignore[reportAttributeAccessIssue]


REFUSED = {
    "con.mp4": "device",
    "out/nul/a.mp4": "device",
    "C:\\out\\Com1.png": "device",
    "a?.mp4": "the character '?'",
    "a*b": "the character '*'",
    "out/a:b.mp4": "the character ':'",  # a stream of the file a, which no folder shows
    "clip.mp4:more": "the character ':'",
    'a"b': "the character",
    "a<b>.png": "the character '<'",
    "a|b": "the character",
    "a\nb.mp4": "the character",
    "clip.": "dot or space at the end",
    "clip ": "dot or space at the end",
    "out./clip.mp4": "dot or space at the end",
    "...": "dot or space at the end",
}
TAKEN = [
    "clip.mp4",
    "out\\a.mp4",
    "../clip.mp4",
    "C:\\out\\clip.mp4",
    "C:clip.mp4",
    "\\\\server\\share\\a.png",
    "ä b.mp4",
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_windows_has_no_names_for_is_refused_there(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filenames.check_for_system(text)  # here the file system decides
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigError, match=r"; name another$") as caught:
        files.check_name(text, folder=True)
    assert REFUSED[text] in str(caught.value)


@pytest.mark.parametrize("text", TAKEN)
def test_ordinary_paths_of_windows_are_taken(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    filenames.check_for_system(text)


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_other_systems_have_names_for_all_of_them(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    for text in ("con.mp4", "a:b.mp4", "clip ", "x" * 250):
        check_output(tmp_path / text)


@pytest.mark.parametrize("enabled", [None, 0, 1], ids=["unknown", "off", "on"])
def test_long_paths_of_windows(enabled: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before the work, by the length of the longest name that is written on the way."""
    library = SimpleNamespace() if enabled is None else SimpleNamespace(RtlAreLongPathsEnabled=lambda: enabled)
    monkeypatch.setattr(ctypes, "WinDLL", lambda _: library, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    folder = f"{tmp_path}/{'y' * 100}"
    room = filenames.LONGEST_PATH - len(folder) - 1
    filenames.check_for_system(f"{folder}/{'z' * room}")
    assert room > 50
    for text in (f"{folder}/{'z' * (room + 1)}", f"{folder}/{'z' * (room - 20)}/a.mp4"):
        if enabled:
            filenames.check_for_system(text)
            continue
        with pytest.raises(
            ConfigError, match=r"characters while it is written; expected at most 259; .*LongPathsEnabled"
        ):
            check_output(text)
    filenames.check_for_system("\\\\?\\C:\\" + "x" * 300)  # which says itself that it is long


def test_a_drive_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("exists", "is_symlink"):
        monkeypatch.setattr(Path, name, lambda _: False)
    with pytest.raises(ConfigError, match="whose drive is not there; expected one; name another output"):
        check_output("clip.mp4")


def test_names_that_are_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    composed, decomposed = "caf\u00e9.mp4", "cafe\u0301.mp4"
    for system, by_case, by_accent in (("linux", False, False), ("win32", True, False), ("darwin", True, True)):
        monkeypatch.setattr(sys, "platform", system)
        key = filenames.same_file_key
        assert (key(Path("out/A.mp4")) == key(Path("OUT/a.mp4"))) is by_case
        assert (key(Path(composed)) == key(Path(decomposed))) is by_accent
        assert key(Path("a.mp4")) == key(Path("x/../a.mp4")) != key(Path("b.mp4"))


DRIVES = [
    "C:foo",
    "c:\\x",
    "C:/x",
    "C:",
    "\\\\server\\share",
    "//server/share",
    "\\/server",
    "\\\\?\\C:\\x",
    "\\\\.\\NUL",
]


@pytest.mark.parametrize("name", DRIVES)
def test_drives_and_other_machines(name: str) -> None:
    assert filenames.names_a_drive(name)
    assert not filenames.stays_inside(name)


@pytest.mark.parametrize("name", ["a", "a/b", "a\\b", "10:30", "seed: 5", "/a", "\\a", "a//b", "é.png"])
def test_names_without_one(name: str) -> None:
    assert not filenames.names_a_drive(name)
    assert filenames.stays_inside(name) is not (name[0] in "/\\" or bool(PureWindowsPath(name).drive))
