"""Safetensors files in the official layouts, written tensor by tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..files import whole
from ..progress import Progress, ProgressEvent, silent
from .containers import DTYPE_NAMES

TRANSFORMER_PREFIX = "model.diffusion_model."
VAE_PREFIX = "vae."


@dataclass(frozen=True)
class Pending:
    """A tensor that is computed only when it is written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file whole or not at all."""
    entries = {name: Pending(tensor.dtype, tuple(tensor.shape), lambda t=tensor: t) for name, tensor in tensors.items()}
    stream_safetensors(path, entries, metadata)


def stream_safetensors(
    path: Path,
    entries: Mapping[str, Pending],
    metadata: Mapping[str, str],
    *,
    stage: str = "",
    progress: Progress = silent,
) -> None:
    """Write tensors one after the other, holding only one in memory; the file is there whole or not at all."""
    # Wide numbers first: every tensor then starts at a multiple of its item size.
    order = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        entry = entries[name]
        start, end = end, end + prod(entry.shape) * entry.dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole(path) as part, part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for step, name in enumerate(order):
            progress(ProgressEvent(stage, step, len(order)))
            _write(file, entries[name].read())
        progress(ProgressEvent(stage, len(order), len(order)))


def _write(file: BinaryIO, tensor: Tensor) -> None:
    if tensor.numel():
        file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
