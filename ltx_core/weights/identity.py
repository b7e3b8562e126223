"""Which file it was: name, size and hashes, by which the files of a clip are found again, without reading them whole.

What is described may come from a stranger's clip. So a name is a name, never a path, and files are looked for in the
folders that the caller names, and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..values import shown
from .bundled import bundled_name, bundled_named

_HEADER = 2**20  # bytes of a file without a header of its own that are hashed as one
_LONGEST_HEADER = 100_000_000  # of safetensors, as the format says
_SAMPLES, _SAMPLE = 16, 2**16  # places of a file that are hashed, and bytes at each
_DEEPEST = 8  # folders below one that is searched
_LONGEST_NAME = 255


@dataclass(frozen=True)
class FileIdentity:
    """A file or folder. size: in bytes. header: SHA-256 of its header; samples: of 16 pieces of 64 KiB spread over it,
    which tell files of one layout apart. A folder has those of its files, by their names."""

    name: str
    size: int
    header: str
    samples: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> FileIdentity:
        """Raises ConfigError: not what `to_json` writes, or a name that is a path."""
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"got {shown(value)} for a file; expected its name, size and hashes; the metadata is damaged"
            )
        name, size = value.get("name"), value.get("size")
        hashes = [value.get(field) for field in ("header", "samples")]
        if not isinstance(name, str) or not _is_name(name):
            raise _damaged(f"the file name {shown(name)}", "a plain name")
        if type(size) is not int or size < 0 or not all(isinstance(each, str) and len(each) == 64 for each in hashes):
            raise ConfigError(
                f"got the file {shown(name)} without size and hashes; expected them; the metadata is damaged"
            )
        return cls(name, size, str(hashes[0]), str(hashes[1]))


def _damaged(what: str, expected: str) -> ConfigError:
    return ConfigError(f"got {what}; expected {expected}; the metadata is damaged, choose another clip")


def _is_name(name: str) -> bool:
    if name in ("", ".", "..") or any(each in name for each in "/\\\0:"):
        return False
    try:
        return len(os.fsencode(name)) <= _LONGEST_NAME
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def described(path: Path) -> FileIdentity:
    """Raises ConfigError: the file cannot be read."""
    path = Path(path)
    try:
        if not path.is_dir():
            return FileIdentity(path.name, *_described_file(path))
        header, samples, size = hashlib.sha256(), hashlib.sha256(), 0
        for each in sorted(each for each in path.rglob("*") if each.is_file() and not each.name.startswith(".")):
            one, *hashes = _described_file(each)
            size += one
            for whole, part in zip((header, samples), hashes, strict=True):
                whole.update(f"{each.relative_to(path).as_posix()}\0{one}\0{part}\n".encode(errors="surrogateescape"))
        return FileIdentity(path.resolve().name, size, header.hexdigest(), samples.hexdigest())
    except OSError as error:
        raise ConfigError(
            f"got {path}, which cannot be read ({error.strerror or error}); expected a file; check it"
        ) from error


def identity_of(files: Iterable[Path]) -> str | None:
    """A text that is another one for other files: of headers, samples, sizes and times of change; names do not matter.
    None: a file cannot be read, or changes meanwhile."""
    whole = hashlib.sha256()
    try:
        for path in files:
            before = path.stat()
            size, *hashes = _described_file(path)
            whole.update(f"{size} {before.st_mtime_ns} {' '.join(hashes)}\n".encode())
            after = path.stat()
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                return None
    except OSError:
        return None
    return whole.hexdigest()


def named_identity(path: Path) -> FileIdentity:
    """As `described`; a file of a bundled model has the name of that model, by which it is found again."""
    identity, bundled = described(path), bundled_name(path)
    return identity if bundled is None else replace(identity, name=bundled)


def _described_file(path: Path) -> tuple[int, str, str]:
    """Size, hash of the header, hash of the samples."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 and path.suffix == ".safetensors" else 0
        if not 0 < length <= min(_LONGEST_HEADER, size):
            length = _HEADER
        header = hashlib.sha256(start)
        header.update(file.read(length))
        samples = hashlib.sha256()
        for number in range(_SAMPLES):
            file.seek(max(size - _SAMPLE, 0) * number // (_SAMPLES - 1))
            samples.update(file.read(_SAMPLE))
    return size, header.hexdigest(), samples.hexdigest()


def find(wanted: FileIdentity, folders: Iterable[Path]) -> Path:
    """The file in one of these folders, or below; a bundled model by its own name.

    Raises:
        ConfigError: none of that name is there, or only others.
    """
    folders = list(folders)
    bundled = bundled_named(wanted.name)
    candidates = bundled or list(_named(wanted.name, folders))
    for path in candidates:
        there = described(path)
        if (there.size, there.header, there.samples) == (wanted.size, wanted.header, wanted.samples):
            return Path(wanted.name) if bundled else path
    where = ", ".join(map(str, folders)) or "no folder"
    if candidates:
        there = described(candidates[0])
        size = f" ({there.size} bytes, not {wanted.size})" if there.size != wanted.size else ""
        raise ConfigError(
            f"got {candidates[0]}, which is not the {wanted.name} that the clip was made with{size}; expected the same "
            "file; bring it, or choose another yourself"
        )
    raise ConfigError(
        f"got no {wanted.name}, which the clip was made with ({wanted.size} bytes); expected it in {where}; bring it, "
        "or choose another yourself"
    )


def _named(name: str, folders: Iterable[Path]) -> Iterator[Path]:
    """Files and folders of a name, each once, those at the top first."""
    seen: set[Path] = set()
    for folder in folders:
        level = [folder]
        for _ in range(_DEEPEST):
            below: list[Path] = []
            for each in level:
                candidate = each / name
                if candidate.exists() and candidate.resolve() not in seen:
                    seen.add(candidate.resolve())
                    yield candidate
                below += _folders_in(each)
            level = below


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError:
        return []
