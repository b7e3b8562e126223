"""Files of the stand-in nodes: names inside the input, output and temp folders, and the next free numbered name."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ltx_core.errors import ConfigError, UnsupportedError, reason_of
from ..ltx_core.filenames import check_for_system, names_a_drive
from ..ltx_core.files import check_output, is_there, sync, temporary
from ..ltx_core.values import shown
from ..nodes.host import host
from .host import PlainHost

LONGEST_NAME = 200  # bytes; file systems take 255, and a number and a suffix follow
LONGEST_PATH = 2000  # Linux takes 4096 for all of it, macOS 1024 and says so


def _host() -> PlainHost:
    current = host()
    if not isinstance(current, PlainHost):
        raise UnsupportedError("got a stand-in node outside `ltxkit run`; expected ComfyUI's own node; remove this one")
    return current


def say(text: str) -> None:
    """A sentence for the user, beside the node that runs."""
    _host().say(text)


def said_in_files(prompt: Any, extra_pnginfo: Any) -> dict[str, Any]:
    """What a saved file says of its making, by the names that ComfyUI reads."""
    return {**(extra_pnginfo or {}), **({"prompt": prompt} if prompt else {})}


def _inside(folder: Path, name: str) -> Path:
    """`folder / name`, unless that leaves the folder (ConfigError)."""
    _check_name(name)
    outside = names_a_drive(name)  # asked first: a look at a place on another machine already logs in there
    if not outside and not is_there(folder / name):
        name = name.replace("\\", "/")  # as Windows separates folders
    try:
        path = (folder / name).resolve() if not outside else folder
    except RuntimeError as error:  # before Python 3.13, of links that lead to each other
        raise ConfigError(
            f"got the path {shown(name)}, whose links lead in a circle; expected a file; remove the link"
        ) from error
    if outside or not path.is_relative_to(folder.resolve()):
        raise ConfigError(
            f"got the path {name!r}, which leaves {folder}; expected a file inside it; move the file there"
        )
    return path


def _check_name(name: object) -> None:
    """Raises ConfigError: what no file system takes for a name."""
    if not isinstance(name, str):
        raise ConfigError(f"got the name {shown(name)}; expected text; write the name of a file")
    try:
        parts = [len(os.fsencode(part)) for part in re.split(r"[\\/]", name)]
        fits = "\0" not in name and max(parts) <= LONGEST_NAME and sum(parts) + len(parts) <= LONGEST_PATH
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise ConfigError(f"got the name {shown(name)}; expected one that a file can have; write another")


def named_file(name: str) -> Path:
    """The file that a loading node names: in the input folder, or for `name [output]` and `name [temp]` in that one."""
    _check_name(name)
    match = re.fullmatch(r"(.*?) ?\[(input|output|temp)\]", name)
    name, kind = match.groups() if match else (name, "input")
    check_for_system(name)
    return _inside(_host().folder(kind), name)


def check_file(name: str) -> bool | str:
    """For VALIDATE_INPUTS: whether the file exists."""
    try:
        path = named_file(name)
        is_file = path.is_file()
    except ConfigError as error:
        return str(error)
    except OSError as error:
        return f"got {shown(name)}, which cannot be read ({reason_of(error)}); expected a file that can; choose another"
    if is_file:
        return True
    return f"got {shown(name)}; expected a file in {path.parent}; put it there, or point --input to its folder"


def file_digest(name: str) -> str:
    return hashlib.sha256(named_file(name).read_bytes()).hexdigest()


def input_files(suffixes: frozenset[str]) -> list[str]:
    folder = _host().folder("input")
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in suffixes) if folder.is_dir() else []


def check_prefix(kind: str, prefix: str) -> bool | str:
    """For VALIDATE_INPUTS: whether files can be saved under a prefix."""
    try:
        check_output(NumberedFiles.under(kind, prefix).path(".png"))
    except ConfigError as error:
        return str(error)
    except OSError as error:
        return f"got {shown(prefix)}, which cannot be written ({reason_of(error)}); expected another name; change it"
    return True


def _reason(error: OSError) -> str:
    """What the disk said; `error` names a temporary file."""
    inner = error.__cause__ if isinstance(error.__cause__, OSError) else error
    return inner.strerror or str(inner)


@dataclass(frozen=True)
class NumberedFiles:
    """Unused names, numbered as ComfyUI's core numbers them: `<prefix>_00001_.mp4` and so on.

    Several processes may save under one prefix at once: a number is taken when a file is complete, by the file itself.
    """

    folder: Path
    subfolder: str
    stem: str
    first: int
    kind: str

    @classmethod
    def under(cls, kind: str, prefix: str, width: int = 0, height: int = 0) -> NumberedFiles:
        now = time.localtime()
        values = {"width": width, "height": height, "year": now.tm_year}
        values |= {"month": f"{now.tm_mon:02}", "day": f"{now.tm_mday:02}", "hour": f"{now.tm_hour:02}"}
        values |= {"minute": f"{now.tm_min:02}", "second": f"{now.tm_sec:02}"}
        for name, value in values.items():
            prefix = prefix.replace(f"%{name}%", str(value))
        root = _host().folder(kind)
        if any(ord(character) < 32 or ord(character) == 127 for character in prefix):
            raise ConfigError(
                f"got the filename_prefix {shown(prefix)}, with control characters; expected text that is seen; remove "
                "them"
            )
        target = _inside(root, prefix)
        check_for_system(f"{prefix}_00001_")
        if target == root.resolve() or Path(prefix.replace("\\", "/")).name in ("", ".."):
            raise ConfigError(
                f"got the filename_prefix {shown(prefix)}; expected the start of a file's name; write one, such as clip"
            )
        counter = re.compile(re.escape(target.name) + r"_(\d+)_?\..*")
        used = [counter.fullmatch(path.name) for path in target.parent.iterdir()] if target.parent.is_dir() else []
        first = max((int(match[1]) for match in used if match), default=0) + 1
        subfolder = target.parent.relative_to(root.resolve()).as_posix()
        return cls(target.parent, "" if subfolder == "." else subfolder, target.name, first, kind)

    def path(self, suffix: str, offset: int = 0) -> Path:
        return self.folder / f"{self.stem}_{self.first + offset:05}_{suffix}"

    def save(self, suffix: str, write: Callable[[Path], object]) -> dict[str, str]:
        """A file under the next free number, in the form of a node's `ui`. write: writes it under another name.

        Raises:
            OSError: it cannot be written; the message names it.
        """
        try:
            with temporary(self.folder, suffix) as part:
                write(part)
                sync(part)
                path = self._take(part, suffix)
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self.path(suffix)} ({_reason(error)})") from error
        return {"filename": path.name, "subfolder": self.subfolder, "type": self.kind}

    def _take(self, part: Path, suffix: str) -> Path:
        """Give a complete file the next free name. That either succeeds or fails as a whole: no look comes first."""
        for offset in itertools.count():
            path = self.path(suffix, offset)
            try:
                os.link(part, path)
            except FileExistsError:
                continue
            except OSError:  # a file system without hard links
                try:
                    path.touch(exist_ok=False)
                except FileExistsError:
                    continue
                part.replace(path)
            return path
        raise AssertionError("itertools.count ends")
