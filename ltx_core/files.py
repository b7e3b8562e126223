"""Files and folders that appear under their final name complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError
from .values import shown

TEMPORARY = ".ltxkit-"  # prefix of every temporary name
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")  # that Pillow writes
VIDEOS = (".mp4",)


def check_output(path: Path | str, suffixes: Sequence[str] = (), *, folder: bool = False) -> None:
    """Refuse a file, or a folder, that could not be written: before the work whose result it would be.

    suffixes: of which the name must have one; empty: it may have any. Missing parent folders are made later.

    Raises:
        ConfigError: the name is empty or no name, has another suffix, or is taken by something else; or the folder
            that it would be in cannot be written.
    """
    text = os.fspath(path)
    check_name(text, folder=folder)
    path = Path(text)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(f"got the output {shown(text)}; expected a name that ends in {_either(suffixes)}; change it")
    try:
        if folder and path.exists() and not path.is_dir():
            raise ConfigError(f"got the output {path}, which is a file; expected a folder; name another")
        if not folder and path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "no ordinary file"
            raise ConfigError(f"got the output {path}, which is {what}; expected a file; name another")
        start = path if folder else path.parent
        there = next(parent for parent in (start, *start.absolute().parents) if parent.exists() or parent.is_symlink())
        if not there.is_dir():
            raise ConfigError(f"got the output {path}, but {there} is not a folder; expected one; name another output")
        probe = there / f"{TEMPORARY}{secrets.token_hex(4)}"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"got the output {shown(text)}, which cannot be written ({error.strerror or error}); expected a folder "
            "with the right to write; name another output"
        ) from error


def check_name(text: str, *, folder: bool) -> None:
    """Refuse what no file, or no folder, can be called. Raises ConfigError."""
    try:
        os.fsencode(text)
        fits = "\0" not in text
    except UnicodeEncodeError:
        fits = False
    if not text.strip() or not fits:
        raise ConfigError(f"got the output {shown(text)}; expected the name of a file or folder; name one")
    separators = tuple(separator for separator in (os.sep, os.altsep) if separator)
    if not folder and (text.endswith(separators) or Path(text).name in ("", ".", "..")):
        raise ConfigError(f"got the output {shown(text)}, which names a folder; expected a file; add its name")


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


@contextmanager
def whole(path: Path, *, folder: bool = False) -> Generator[Path, None, None]:
    """A temporary name next to `path` to write to. It becomes `path` when the block ends without an exception.

    A file or folder that is already at `path` stays until the new one is complete, and is then replaced. Missing parent
    folders are created. The temporary name has the suffix of `path`, from which some libraries choose the format.

    folder: the block writes a folder, which exists, empty, when the block starts.

    Raises:
        OSError: `path` cannot be written, or the disk is full; the message names `path`. After this and any other
            exception, KeyboardInterrupt included, nothing that the block wrote remains.
    """
    part, old = (path.parent / f"{TEMPORARY}{secrets.token_hex(4)}{path.suffix}" for _ in range(2))
    try:
        (part if folder else path.parent).mkdir(parents=True, exist_ok=True)
        try:
            yield part
            if folder and path.is_dir():  # `replace` puts a folder only in the place of an empty one
                path.replace(old)
            part.replace(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.replace(path)
            raise
        finally:
            for leftover in (part, old):
                _remove(leftover)
    except OSError as error:
        # For a file in a folder that is itself written whole, `error` names a temporary path: its cause says enough.
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OSError(error.errno, f"cannot write {path} ({reason}); nothing is left of it") from reason


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
