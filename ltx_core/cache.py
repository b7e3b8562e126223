"""The user's cache folder: for what can be computed again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "LTXKIT_CACHE"
_OFF = ("off", "0", "no", "false", "none")


def cache_folder() -> Path | None:
    """Where this user's caches are; nothing is made there yet. None: there shall be none.

    The variable LTXKIT_CACHE names another folder, or says `off`.
    """
    said = os.environ.get(VARIABLE, "").strip()
    if said.lower() in _OFF:
        return None
    if said:
        return in_home(said)
    try:
        return _usual_folder() / "ltxkit"
    except RuntimeError:  # this user has no home
        return None


def home_folder() -> Path:
    """The user's home; the root of the disk for a user without one, as in many containers."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.sep)


def in_home(path: Path | str) -> Path:
    """A path with the home in the place of a leading ~; as it is, where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _usual_folder() -> Path:
    """As the systems' own guides say: XDG Base Directory, Apple's File System Programming Guide, Known Folders."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData/Local") / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches"
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return xdg if xdg.is_absolute() else Path.home() / ".cache"  # the specification ignores relative ones
