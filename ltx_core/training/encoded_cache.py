"""Latents and embeddings that all runs of a user share, each in a file of its own, by what it was made from.

A file is written as soon as its content is made, whole or not at all, with a checksum: an interrupted encoding goes on
where it was, and a damaged file is made again. One process encodes; the others wait and read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..cache import cache_folder
from ..errors import reason_of
from ..locks import waiting
from ..progress import Notes
from ..weights.save import write_safetensors
from .data import file_identity

FORMAT = 1
_NAME = "encoded"
_SUM = "sha256"
_BLOCK = 2**22


class EncodedCache:
    """folder: is made when the first entry is written; it can be removed at any time."""

    def __init__(self, folder: Path, notes: Notes) -> None:
        self.folder, self.notes = folder, notes

    @classmethod
    def of_user(cls, notes: Notes) -> EncodedCache | None:
        """In the user's cache; None: there shall be none, or it cannot be written."""
        cache = cache_folder()
        if cache is None:
            return None
        folder = cache / _NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            notes(f"{folder} cannot be written ({error.strerror or error}); what is encoded is kept for this run alone")
            return None
        return cls(folder, notes)

    def get(self, key: str) -> Tensor | None:
        """An entry; None: there is none, or it is damaged, which is said."""
        file = self._file(key)
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                tensor, known = opened.get_tensor(_NAME), (opened.metadata() or {}).get(_SUM)
        except (SafetensorError, OSError, ValueError) as error:
            self.notes(f"{file} is damaged ({reason_of(error)}) and made again")
            return None
        if known != _sum(tensor):
            self.notes(f"{file} is damaged (it has another checksum) and made again")
            return None
        return tensor

    def put(self, key: str, tensor: Tensor) -> None:
        """Write an entry, whole or not at all."""
        tensor = tensor.detach().cpu().contiguous()
        write_safetensors(self._file(key), {_NAME: tensor}, {_SUM: _sum(tensor), "format": str(FORMAT)})

    @contextmanager
    def alone(self, what: str) -> Generator[None, None, None]:
        """This process alone encodes in the block. what: for the one sentence of those that wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with waiting(self.folder / "encoding.lock", lambda: self.notes(f"another process is encoding; {what} wait")):
            yield

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def key_of(*parts: object) -> str:
    """The name of what is made from these values, which JSON can write."""
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()


def content_key(path: Path) -> str:
    """The content of a file, or of all files of a folder of frames; each is read once per process while it stays as it
    is."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        return key_of([(file.name, content_key(file)) for file in files])
    return _content(path, file_identity(path))


@lru_cache(maxsize=100_000)
def _content(path: Path, _: str) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sum(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def filled(
    cache: EncodedCache | None,
    keys: Sequence[str],
    what: str,
    make: Callable[[list[int]], Iterable[tuple[int, Tensor]]],
) -> list[Tensor]:
    """What belongs to these keys, in order: read, or made and kept at once. what: "clips". make: from numbers of keys
    to each with its content."""
    if cache is None:
        made = dict(make(list(range(len(keys)))))
        return [made[number] for number in range(len(keys))]
    first = {key: number for number, key in reversed(list(enumerate(keys)))}  # of repeated clips, one is made
    found = {key: tensor for key in first if (tensor := cache.get(key)) is not None}
    if len(found) < len(first):
        with cache.alone(what):
            for key in first.keys() - found.keys():  # others may have made them in the meantime
                if (tensor := cache.get(key)) is not None:
                    found[key] = tensor
            missing = sorted(first[key] for key in first.keys() - found.keys())
            if missing:
                for number, tensor in make(missing):
                    cache.put(keys[number], tensor)
                    found[keys[number]] = tensor
    return [found[key] for key in keys]
