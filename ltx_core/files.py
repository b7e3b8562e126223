"""Files and folders that appear under their final name complete or not at all. YAML that comes from strangers.

Everything unfinished has a lock that dies with its process (`locks`): leftovers of a process that was killed are
removed by the next one that writes into the folder, whatever its number.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import ConfigError, LTXKitError
from .filenames import LONGEST_NAME, check_for_system
from .locks import LOCK, TEMPORARY, Lock, remove_held
from .values import shown, shown_path

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")  # that Pillow writes
VIDEOS = (".mp4",)

_LEFTOVER = re.compile(re.escape(TEMPORARY) + r"(?P<token>[0-9a-f]{8})(\.old\.(?P<target>.+)|\.[^.]*)?")
_LOCK_FILE = re.compile(re.escape(LOCK) + r"(?P<token>[0-9a-f]{8}|[0-9a-f]{16}|folder)")
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EROFS})  # of file systems without
_live: dict[str, tuple[Path, ...]] = {}  # temporaries of this process by their token


def parse_yaml(text: str) -> Any:
    """A value of YAML 1.1 by PyYAML's safe loader, without aliases, of which a few lines make a value of any size.

    Raises:
        ConfigError: it has an alias.
        ValueError: it is no YAML; the message is one line.
        ImportError: PyYAML is not installed.
    """
    import yaml

    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                raise ConfigError(
                    f"got the alias *{token.value} in line {token.start_mark.line + 1} of a YAML text; "
                    "expected values without aliases; write the value out"
                )
        return yaml.safe_load(text)
    except ConfigError:
        raise
    # Besides its own errors PyYAML says of a tag and its value whatever Python does: !!bool x, !!int '', 2024-13-45.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())) from error
    except RecursionError as error:
        raise ValueError("values nested too deep") from error


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
        raise ConfigError(
            f"got the output {shown_path(text)}; expected a name that ends in {_either(suffixes)}; change it"
        )
    try:
        if folder and path.exists() and not path.is_dir():
            raise ConfigError(f"got the output {path}, which is a file; expected a folder; name another")
        if not folder and path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "no ordinary file"
            raise ConfigError(f"got the output {path}, which is {what}; expected a file; name another")
        start = path if folder else path.parent
        folders = (start, *start.absolute().parents)
        there = next((parent for parent in folders if parent.exists() or parent.is_symlink()), None)
        if there is None:  # a drive of Windows
            raise ConfigError(f"got the output {path}, whose drive is not there; expected one; name another output")
        if not there.is_dir():
            raise ConfigError(f"got the output {path}, but {there} is not a folder; expected one; name another output")
        remove_leftovers(there)  # a run that is refused for a name that exists would leave them
        _try(there / f"{TEMPORARY}{secrets.token_hex(4)}")
    except OSError as error:
        raise ConfigError(
            f"got the output {shown_path(text)}, which cannot be written ({error.strerror or error}); expected a "
            "folder with the right, and the room, to write; name another output"
        ) from error


def _try(probe: Path) -> None:
    """Make a file of one byte, since a full disk takes an empty one, and remove it; a signal in between leaves it to
    `remove_temporaries`."""
    _live[probe.name] = (probe,)
    try:
        try:
            probe.write_bytes(b"\0")
        except OSError:
            with suppress(OSError):  # where it could not be made
                probe.unlink()
            raise
        probe.unlink(missing_ok=True)  # another process may have taken it for a leftover
    except OSError:
        _live.pop(probe.name)
        raise
    _live.pop(probe.name)


def check_name(text: str, *, folder: bool) -> None:
    """Refuse what no file, or no folder, can be called on this system. Raises ConfigError."""
    try:
        os.fsencode(text)
        fits = "\0" not in text
    except UnicodeEncodeError:
        fits = False
    if not text.strip() or not fits:
        raise ConfigError(f"got the output {shown(text)}; expected the name of a file or folder; name one")
    separators = tuple(separator for separator in (os.sep, os.altsep) if separator)
    if not folder and (text.endswith(separators) or Path(text).name in ("", ".", "..")):
        raise ConfigError(f"got the output {shown_path(text)}, which names a folder; expected a file; add its name")
    check_for_system(text)


def is_there(path: Path) -> bool:
    """Whether there is something at a path. False too for a name that no disk can have, where `Path.exists` raises."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder at a path, as `is_there`."""
    return is_there(path) and path.is_dir()


def is_broken_link(path: Path) -> bool:
    """Whether there is a link at a path to something that is not there."""
    try:
        return path.is_symlink() and not path.exists()
    except (OSError, ValueError):
        return False


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


@contextmanager
def whole(path: Path, *, folder: bool = False) -> Generator[Path, None, None]:
    """A temporary name next to `path` to write to. It becomes `path` when the block ends without an exception.

    A file or folder that is already at `path` stays until the new one is complete and has reached the disk, and is
    then replaced. Missing parent folders are created. The temporary name has the suffix of `path`, from which some
    libraries choose the format.

    folder: the block writes a folder, which exists, empty, when the block starts.

    Raises:
        OSError: `path` cannot be written, or the disk is full; the message names `path`. After this and any other
            exception, KeyboardInterrupt included, nothing that the block wrote remains.
    """
    try:
        with temporary(path.parent, path.suffix) as part:
            if folder:
                part.mkdir()
            yield part
            sync(part)
            try:
                part.replace(path)
            except OSError:  # a folder takes the place of an empty one alone; another process may just have made one
                if not (folder and path.is_dir()):
                    raise
                _exchange(part, path)
            _sync_folder(path.parent)
    except OSError as error:
        # For a file in a folder that is itself written whole, `error` names a temporary path: its cause says enough.
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise _failed(path, reason) from reason
    except Exception as error:
        reason = _as_os_error(error)
        if reason is None:
            raise
        raise _failed(path, reason) from reason


@contextmanager
def temporary(folder: Path, suffix: str = "") -> Generator[Path, None, None]:
    """A name in `folder`, which is made if it is missing, for a file or folder that lasts as long as the block.

    Leftovers of processes that have ended go first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    token = secrets.token_hex(4)
    part = folder / f"{TEMPORARY}{token}{suffix}"
    lock = Lock(folder / f"{LOCK}{token}")
    _live[token] = (part, lock.path)
    try:
        lock.take()
        yield part
    finally:
        try:
            _remove(part)
        except OSError:
            lock.release()
            _live.pop(token, None)
            raise
        # Where a signal comes in between, both stay known, for `remove_temporaries`.
        lock.release()
        _live.pop(token, None)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed have left in a folder, and put back what they had moved aside.

    A leftover is removed if nobody holds its lock. Where that cannot be known, as on a file system without locks, it
    stays.
    """
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.startswith(TEMPORARY)]
    except OSError:
        return
    found: dict[str, list[re.Match[str]]] = {}
    for name in names:
        match = _LEFTOVER.fullmatch(name) or _LOCK_FILE.fullmatch(name)
        if match is not None and match["token"] not in _live:
            found.setdefault(match["token"], []).append(match)
    for token, matches in found.items():
        lock = Lock(folder / f"{LOCK}{token}")
        if lock.path.is_symlink():  # planted, in a folder of everybody: opening it would cut off what it leads to
            continue
        with suppress(OSError):
            if not lock.take() or not lock.is_held:
                continue
            try:
                for match in matches:
                    _settle(folder, match)
            finally:
                lock.release()


def _settle(folder: Path, match: re.Match[str]) -> None:
    leftover, target = folder / match[0], match.groupdict().get("target")
    if match[0].startswith(LOCK):
        return
    if target is not None and not os.path.lexists(folder / target):
        leftover.replace(folder / target)  # the process ended between the two halves of an exchange
    else:
        _remove(leftover)


def remove_temporaries() -> None:
    """Remove everything unfinished of this process, which is about to end without leaving its blocks."""
    for paths in list(_live.values()):
        for path in paths:
            with suppress(OSError):
                _remove(path)
    remove_held()


def _exchange(part: Path, path: Path) -> None:
    """Put a folder in the place of another one, which stays if that fails."""
    name = f"{part.name.removesuffix(part.suffix)}.old.{path.name}"
    old = path.with_name(name if len(os.fsencode(name)) <= LONGEST_NAME else f"{part.name}_")
    try:
        path.replace(old)
        part.replace(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    finally:
        if path.exists():
            _remove(old)


def sync(path: Path) -> None:
    """Wait until a file, or everything in a folder, is on the disk: a name that survives a power cut must not survive
    its content."""
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            sync(entry)
        _sync_folder(path)
        return
    if not path.is_file():
        return
    # Windows flushes through handles that may write only.
    _flush(path, os.O_RDWR | getattr(os, "O_BINARY", 0) if sys.platform == "win32" else os.O_RDONLY)


def _sync_folder(path: Path) -> None:
    if sys.platform != "win32":  # which opens no folders
        _flush(path, os.O_RDONLY)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _failed(path: Path, reason: OSError) -> OSError:
    said = reason.strerror or str(reason)
    if reason.filename and not Path(str(reason.filename)).name.startswith(TEMPORARY):  # which nobody knows
        said += f": {reason.filename}"
    in_use = isinstance(reason, PermissionError) and sys.platform == "win32" and path.exists()
    advice = "; if a program, or a model loaded from it, has it open, close that first" if in_use else ""
    return OSError(reason.errno, f"cannot write {path} ({said}); nothing is left of it{advice}")


def _as_os_error(error: Exception) -> OSError | None:
    """What the disk said, where a library that writes tells it in an error of its own; None: it is another error."""
    if isinstance(error, LTXKitError):
        return None
    # safetensors, and everything else in Rust; the second is how safetensors 0.4 says it.
    number = re.search(r"(?:\(os error |Os \{ code: )(\d+)", str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    inner: BaseException | None = error
    if isinstance(error, RuntimeError) and re.search(r"unexpected pos|PytorchStreamWriter", str(error)):  # torch.save
        while inner is not None and not isinstance(inner, OSError):
            inner = inner.__cause__ or inner.__context__
        return inner or OSError(errno.EIO, "not all of it could be written; is the disk full?")
    return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
