"""Files of the stand-in nodes: names inside the input, output and temp folders, and the next free numbered name."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from ..ltx_core.errors import ConfigError, UnsupportedError
from ..nodes.host import host
from .host import PlainHost


def _host() -> PlainHost:
    current = host()
    if not isinstance(current, PlainHost):
        raise UnsupportedError("got a stand-in node outside `ltxkit run`; expected ComfyUI's own node; remove this one")
    return current


def say(text: str) -> None:
    """A sentence for the user, beside the node that runs."""
    _host().say(text)


def _inside(folder: Path, name: str) -> Path:
    """`folder / name`, unless that leaves the folder (ConfigError)."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ConfigError(
            f"got the path {name!r}, which leaves {folder}; expected a file inside it; move the file there"
        )
    return path


def named_file(name: str) -> Path:
    """The file that a loading node names: in the input folder, or for `name [output]` and `name [temp]` in that one."""
    match = re.fullmatch(r"(.*?) ?\[(input|output|temp)\]", name)
    name, kind = match.groups() if match else (name, "input")
    return _inside(_host().folder(kind), name)


def check_file(name: str) -> bool | str:
    """For VALIDATE_INPUTS: whether the file exists."""
    try:
        path = named_file(name)
    except ConfigError as error:
        return str(error)
    if path.is_file():
        return True
    return f"got {name!r}; expected a file in {path.parent}; put it there, or point --input to its folder"


def file_digest(name: str) -> str:
    return hashlib.sha256(named_file(name).read_bytes()).hexdigest()


def input_files(suffixes: frozenset[str]) -> list[str]:
    folder = _host().folder("input")
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in suffixes) if folder.is_dir() else []


@dataclass(frozen=True)
class NumberedFiles:
    """Unused names, numbered as ComfyUI's core numbers them: `<prefix>_00001_.mp4` and so on."""

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
        target = _inside(root, prefix)
        counter = re.compile(re.escape(target.name) + r"_(\d+)_?\..*")
        used = [counter.fullmatch(path.name) for path in target.parent.iterdir()] if target.parent.is_dir() else []
        first = max((int(match[1]) for match in used if match), default=0) + 1
        subfolder = target.parent.relative_to(root.resolve()).as_posix()
        return cls(target.parent, "" if subfolder == "." else subfolder, target.name, first, kind)

    def path(self, suffix: str, offset: int = 0) -> Path:
        return self.folder / f"{self.stem}_{self.first + offset:05}_{suffix}"

    def entry(self, path: Path) -> dict[str, str]:
        """The file in the form of a node's `ui`."""
        return {"filename": path.name, "subfolder": self.subfolder, "type": self.kind}
