"""Files and folders that appear under their name whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".ltxkit-"  # start of the names that are written to


@contextmanager
def whole(path: Path, *, folder: bool = False) -> Generator[Path, None, None]:
    """A temporary name next to `path` to write to. It becomes `path` when the block ends without an exception.

    A file that is already at `path` stays until the new one is complete, and is then replaced; so does a folder.
    Missing parent folders are made. The temporary name has the suffix of `path`, which tells some libraries what to
    write.

    folder: what is written is a folder, and is there, empty, when the block starts.

    Raises:
        OSError: `path` cannot be written, or the disk is full; the message names `path`. After this and any other
            exception, KeyboardInterrupt included, nothing of what was written is left.
    """
    part, old = (path.parent / f"{TEMPORARY}{secrets.token_hex(4)}{path.suffix}" for _ in range(2))
    try:
        (part if folder else path.parent).mkdir(parents=True, exist_ok=True)
        try:
            yield part
            if folder and path.is_dir():  # a folder takes the place of an empty one only
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
