"""What files may be called. Windows takes less than other systems, and graphs, tables and indices travel between them.

Rules of Windows: Microsoft, "Naming Files, Paths, and Namespaces" and "Maximum Path Length Limitation".
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

from .errors import ConfigError
from .values import shown, shown_path

LONGEST_NAME = 255  # bytes, of most file systems
LONGEST_PATH = 259  # characters, of Windows unless its user has asked for long paths
_TEMPORARY_NAME = 40  # characters: of the longest name that is written beside a file while it is made

_DEVICES = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$"}) | {
    f"{port}{number}" for port in ("com", "lpt") for number in "123456789¹²³"
}
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


def is_device(name: str) -> bool:
    """Whether Windows takes a name for a device, whatever its suffix: CON, nul.mp4, "COM1 .txt"."""
    return name.partition(".")[0].rstrip(" ").casefold() in _DEVICES


def check_for_system(text: str) -> None:
    """Refuse what this system has no files for: on Windows devices, some characters, dots and spaces at the end, and
    paths that are too long; elsewhere nothing that the file system does not refuse itself.

    text: a path; every part of it is looked at.

    Raises:
        ConfigError: it is such a name.
    """
    if sys.platform != "win32":
        return
    path = PureWindowsPath(text)
    for part in path.parts[1:] if path.anchor else path.parts:
        problem = _problem_on_windows(part)
        if problem:
            raise ConfigError(f"got the name {shown_path(text)}; expected one without {problem}; name another")
    folder, name = os.path.split(os.path.abspath(text))  # noqa: PTH100 - for names that cannot exist, too
    length = len(folder) + 1 + max(len(name), _TEMPORARY_NAME)
    if length > LONGEST_PATH and not text.startswith("\\\\?\\") and not _has_long_paths():
        raise ConfigError(
            f"got the name {shown_path(text)}, whose whole path takes {length} characters while it is written; "
            f"expected at most {LONGEST_PATH}; name a folder with a shorter path, or switch on LongPathsEnabled in "
            "Windows"
        )


def _problem_on_windows(part: str) -> str:
    """What no file there can have in its name; empty: it is a name."""
    if part == "..":
        return ""
    forbidden = _FORBIDDEN.search(part)
    if forbidden:
        return f"the character {shown(forbidden[0])}, which Windows has in no name"
    if part.endswith((".", " ")):
        return "a dot or space at the end of a part, which Windows leaves out"
    return f"{part.partition('.')[0].strip()}, which Windows keeps for a device" if is_device(part) else ""


def _has_long_paths() -> bool:
    """Whether this Windows and this Python are set up for them."""
    library = getattr(ctypes, "WinDLL", None)
    try:
        return library is not None and bool(library("ntdll").RtlAreLongPathsEnabled() & 1)
    except (AttributeError, OSError):  # before Windows 10, 1607
        return False


def folded(name: str) -> str:
    """The same text for all spellings of a name that this system's file systems take for one: on Windows and macOS
    case does not count, on macOS neither how accents are encoded."""
    if sys.platform == "darwin":
        name = unicodedata.normalize("NFC", name)
    return name.casefold() if sys.platform in ("win32", "darwin") else name


def same_file_key(path: Path) -> str:
    """The same text for paths under which this system has one file, whether it exists or not."""
    return folded(os.path.abspath(path))  # noqa: PTH100 - links count as what they are called


def names_a_drive(name: str) -> bool:
    """Whether a path begins, for Windows, at a drive or at another machine: C:x, C:\\x, \\\\server\\share."""
    return bool(re.match(r"[A-Za-z]:|[/\\]{2}", name))


def stays_inside(name: str) -> bool:
    """Whether a path from a file leads to a place below its folder, on any system. Links are followed: the cache of the
    Hugging Face hub consists of them."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    outside = posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts)
    try:
        fits = all(len(part.encode()) <= LONGEST_NAME for part in posix.parts)
    except UnicodeEncodeError:  # half of a surrogate pair
        fits = False
    return bool(posix.parts) and not outside and fits and "\0" not in name
