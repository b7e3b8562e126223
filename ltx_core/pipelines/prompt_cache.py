"""Encoded prompts that are kept: by the tokens of the text and by the files that they were encoded with.

A kept prompt is equal to a computed one to the last bit: its key has everything that the numbers depend on, down to the
device and the release of torch. It is in memory, and as a file in the user's cache folder (`cache.cache_folder`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..cache import cache_folder
from ..config import TextEncoderConfig
from ..files import TEMPORARY, remove_leftovers, whole
from ..kernels.choice import Kernels
from ..placing.devices import arithmetic_of
from ..weights.build import Opened
from ..weights.identity import identity_of

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when a text is encoded in another way than before
IN_MEMORY = 128 * 2**20  # bytes: a prompt of T5 XXL takes 2 MB at most in half precision
ON_DISK = 512 * 2**20
_ABANDONED = 24 * 3600  # seconds after which a temporary file belongs to nobody
_NAME = "embeddings"
FOLDER = "prompts"


class PromptCache:
    """What one text encoder, in one dtype and on one device, has made of prompts.

    Damaged entries, and those of others, count as absent; a folder that cannot be written keeps nothing.
    """

    def __init__(
        self,
        made_by: Mapping[str, Any],
        folder: Path | None,
        *,
        in_memory: int = IN_MEMORY,
        on_disk: int = ON_DISK,
    ) -> None:
        """made_by: what an embedding depends on beside its tokens, as JSON values.

        folder: for the files; None: in memory only. in_memory, on_disk: bytes; the prompts that were used longest ago
            leave.
        """
        self._made_by = json.dumps([FORMAT, dict(made_by)], sort_keys=True)
        self._folder = folder
        self._limit, self._limit_on_disk = in_memory, on_disk
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        if folder is not None:  # a run that finds every prompt writes nothing there, which would remove them too
            remove_leftovers(folder)

    def get(self, ids: Sequence[int]) -> Tensor | None:
        """(1, l, d_model) on the CPU of a prompt's tokens, not to be changed; None: it is not kept."""
        key = self._key(ids)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
        stored = self._read(key, len(ids))
        if stored is not None:
            self._remember(key, stored)
        return stored

    def put(self, ids: Sequence[int], embeddings: Tensor) -> None:
        """Keep what was computed: (1, l, d_model) on the CPU."""
        key = self._key(ids)
        self._remember(key, embeddings)
        if self._folder is not None:
            self._write(key, self._folder / _file_name(key), embeddings)

    def _key(self, ids: Sequence[int]) -> str:
        return hashlib.sha256(json.dumps([self._made_by, list(ids)]).encode()).hexdigest()

    def _remember(self, key: str, embeddings: Tensor) -> None:
        with self._lock:
            self._kept[key] = embeddings
            while sum(each.nbytes for each in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)

    def _read(self, key: str, length: int) -> Tensor | None:
        if self._folder is None:
            return None
        path = self._folder / _file_name(key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                embeddings: Tensor = file.get_tensor(_NAME).clone()
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            logger.info("%s is damaged (%s); its prompt is encoded again", path, error)
            return None
        whole_entry = metadata.get("key") == key and metadata.get("sha256") == _digest(embeddings)
        if not whole_entry or embeddings.ndim != 3 or embeddings.shape[:2] != (1, length):
            logger.info("%s is damaged or from elsewhere; its prompt is encoded again", path)
            return None
        with suppress(OSError):  # of another user, or gone: it counts as older than it is
            os.utime(path)
        return embeddings

    def _write(self, key: str, path: Path, embeddings: Tensor) -> None:
        metadata = {"key": key, "sha256": _digest(embeddings)}
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with whole(path) as temporary:
                save_file({_NAME: embeddings.contiguous()}, temporary, metadata)
            _prune(path.parent, self._limit_on_disk)
        except (OSError, SafetensorError) as error:
            logger.info("a prompt is not kept in %s (%s)", path.parent, error)


def prompts_of(
    opened: Opened,
    config: TextEncoderConfig,
    *,
    dtype: torch.dtype | None,
    quantization: str | None,
    device: torch.device,
    kernels: Kernels | None = None,
) -> PromptCache:
    """The prompts that this text encoder has encoded on this device, also in other processes.

    opened: its file or folder. dtype, quantization: as `load_text_encoder`. kernels: by which it computes on a CPU;
    None: plainly.
    """
    folder, files = cache_folder(), identity_of(file.path for file in opened.checkpoint.files)
    made_by = {
        "files": files,
        "config": asdict(config),
        "dtype": str(dtype),
        "quantization": quantization,
        "arithmetic": arithmetic_of(device),
        "kernels": None if kernels is None or kernels.is_plain else [kernels.to_json(), kernels.widens_half],
    }
    return PromptCache(made_by, None if folder is None or files is None else folder / FOLDER)


def _file_name(key: str) -> str:
    return f"{key}.safetensors"


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _prune(folder: Path, limit: int) -> None:
    """Remove the entries that were used longest ago, until the others take `limit` bytes at most. What else lies in the
    folder stays."""
    entries: list[tuple[float, int, Path]] = []
    for path in folder.glob("*.safetensors"):
        is_temporary = path.name.startswith(TEMPORARY)
        if not is_temporary and (len(path.stem) != 64 or set(path.stem) - set("0123456789abcdef")):
            continue
        try:
            status = path.stat()
            if not is_temporary:
                entries.append((status.st_mtime, status.st_size, path))
            elif time.time() - status.st_mtime > _ABANDONED:
                path.unlink()
        except FileNotFoundError:  # another process has removed it
            continue
    left = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if left <= limit:
            return
        path.unlink(missing_ok=True)
        left -= size
