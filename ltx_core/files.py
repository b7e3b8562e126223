"""Files and folders that appear under their final name complete or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".ltxkit-"  # prefix of every temporary name


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
