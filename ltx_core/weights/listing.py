"""Which models lie in a folder: the choices of a loader. Names decide, and hardly a file is opened."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .containers import COMPONENTS
from .gguf import MAGIC
from .headers import MAX_HEADER_BYTES
from .layouts import PartName, parts_named_in
from .shards import SAFETENSORS, Shard, folder_files, unfinished_download

SUFFIXES = (*SAFETENSORS, ".gguf")

# Of a pipeline folder: `tokenizer` and `scheduler` hold no weights, the others are the pipeline's own.
_OF_A_PIPELINE = (*COMPONENTS, "tokenizer", "scheduler")
# What the cache of the Hugging Face hub keeps beside the snapshots of a repository.
_OF_A_CACHE = ("blobs", "refs")
# Of a GGUF file: names of tensors follow a tokenizer, if there is one (T5's takes less than a megabyte).
_GGUF_HEAD_BYTES = 4_000_000


# A file system's clock may tick as slowly as this: a change in the tick of a walk leaves no trace in a folder's time.
_TICK = 0.01  # seconds


@dataclass(frozen=True, eq=False)
class Listing:
    """The models below a folder, sorted, as of one walk.

    models: path by name, which is relative to the folder, with `/`.
    seen: what the walk depends on, with the time of its last change: folders, and links that lead nowhere (None).
    """

    models: Mapping[str, Path]
    seen: Mapping[str, int | None]

    def holds(self) -> bool:
        """Whether a walk would give the same, as far as the times of the folders show."""
        return all(_changed(path) == time for path, time in self.seen.items())


_listings: dict[Path, Listing] = {}


def listed(root: Path) -> Listing:
    """The models below a folder. It is walked anew only if a folder in it has changed, as ComfyUI keeps its lists."""
    listing = _listings.get(root)
    if listing is None or not listing.holds():
        seen: dict[str, int | None] = {}
        paths = sorted(models_in(root, seen))
        _listings[root] = listing = Listing({path.relative_to(root).as_posix(): path for path in paths}, seen)
    return listing


def _changed(path: str) -> int | None:
    """When a folder changed, in nanoseconds; None if there is nothing."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116  # of thousands of folders
    except OSError:
        return None


def models_in(root: Path, seen: dict[str, int | None] | None = None) -> Iterator[Path]:
    """The models below a folder: files, and folders in the layouts of diffusers and transformers as one entry each.

    A repository as it was cloned has both. Of the shards of a set the first is listed; files whose download is not
    finished, links to nothing and hidden files and folders are not. A folder that several links lead to is listed once,
    by its own name if that lies below `root`: links in a circle end.

    seen: takes what the walk depends on, as in `Listing`.
    """
    visit = _Visit({} if seen is None else seen, set())
    pending, linked = [root], list[Path]()
    while pending or linked:
        here = pending.pop() if pending else linked.pop(0)
        entries = visit.entries(here)
        files = [entry.name for entry in entries if entry.is_file()]
        folders = [entry for entry in entries if entry.is_dir()]
        is_pipeline = here != root and _is_pipeline(files, folders, visit.seen)
        yield from _offered(here, files, is_root=here == root, is_pipeline=is_pipeline)
        for entry in folders:
            if (is_pipeline and entry.name in _OF_A_PIPELINE) or _is_of_a_cache(here, entry.name):
                continue
            (linked if entry.is_symlink() else pending).append(Path(entry.path))


def holds(path: Path, part: PartName) -> bool:
    """Whether a model of the listing has this part, from the names of its tensors; a damaged one has none."""
    if path.is_dir():
        names = {"upscaler": "latent_upsampler"}
        component = path / names.get(part, part)
        return component.is_dir() and bool(_weights_in(component))
    try:
        status = path.stat()
    except OSError:
        return False
    return part in _parts_of(str(path), status.st_mtime_ns, status.st_size)


# --- folders ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Visit:
    """A walk. seen: as in `Listing`; identities: of the folders that it has been in."""

    seen: dict[str, int | None]
    identities: set[tuple[int, int]]

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """What is in a folder, hidden names aside; nothing where it cannot be read or was seen already."""
        try:
            status = folder.stat()
        except OSError:
            self.seen[str(folder)] = None
            return []
        self.seen[str(folder)] = status.st_mtime_ns
        identity = status.st_dev, status.st_ino
        if identity in self.identities:
            return []
        self.identities.add(identity)
        if 0 <= time.time() - status.st_mtime < _TICK:
            time.sleep(_TICK)
        try:
            with os.scandir(folder) as entries:
                visible = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError:
            return []
        self.seen.update(
            (entry.path, None) for entry in visible if entry.is_symlink() and not Path(entry.path).exists()
        )
        return visible


def _entries(folder: Path, seen: dict[str, int | None] | None = None) -> list[os.DirEntry[str]]:
    """What is in one folder. seen: as in `models_in`."""
    return _Visit({} if seen is None else seen, set()).entries(folder)


def _is_pipeline(files: list[str], folders: list[os.DirEntry[str]], seen: dict[str, int | None]) -> bool:
    """Without a `model_index.json`, components are models by themselves, as in a folder of text encoders."""
    parts = (Path(entry.path) for entry in folders if entry.name in COMPONENTS)
    return "model_index.json" in files and any(_weights_in(part, seen) for part in parts)


def _weights_in(folder: Path, seen: dict[str, int | None] | None = None) -> list[str]:
    """Names of the weights in one folder, of pickles too: on loading, the message says what to do."""
    entries = _entries(folder, seen)
    return [entry.name for entry in entries if entry.name.lower().endswith((*SAFETENSORS, ".bin")) and entry.is_file()]


def _is_of_a_cache(folder: Path, name: str) -> bool:
    return folder.name.startswith("models--") and name in _OF_A_CACHE


def _offered(folder: Path, files: list[str], *, is_root: bool, is_pipeline: bool) -> Iterator[Path]:
    there = set(files)
    weights = [name for name in files if name.lower().endswith(SUFFIXES) and unfinished_download(name, there) is None]
    has_config = not is_root and any(_is_config(name) for name in files)
    own = folder_files(weights) if has_config and not is_pipeline else set[str]()
    pickles = has_config and not weights and any(name.endswith(".bin") for name in files)
    if is_pipeline or own or pickles:
        yield folder
    for name in _first_of_each(name for name in weights if name not in own):
        yield folder / name


def _is_config(name: str) -> bool:
    return name == "config.json" or (name.endswith(".json") and ".index." in name)


def _first_of_each(names: Iterable[str]) -> Iterator[str]:
    """The names, those of shards once: the first of the set, or of what there is of it."""
    seen: set[tuple[str, int, str]] = set()
    for name in names:
        shard = Shard.of(name)
        if shard is None or shard.series not in seen:
            yield name
        if shard is not None:
            seen.add(shard.series)


# --- files ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=10_000)
def _parts_of(path: str, changed: int, size: int) -> frozenset[PartName]:  # noqa: ARG001  # a changed file is read again
    try:
        return parts_named_in(_head(path))
    except OSError:
        return frozenset()


def _head(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        start = file.read(8)
        if start.startswith(MAGIC):
            return file.read(_GGUF_HEAD_BYTES)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        return file.read(length) if length <= MAX_HEADER_BYTES else b""
