"""A trained model as it is shipped: one folder, weights at half the size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from ...errors import CheckpointError
from ...files import remove_leftovers, whole
from ...locks import claimed
from ...weights.save import write_safetensors
from ..checkpoints import find_export

STATISTICS = "per_channel_statistics"  # of the VAE's latents; a few hundred numbers, kept in float32


def bundle(run: Path, upscaler: Path | None, folder: Path) -> None:
    """Write `folder` with model.safetensors, text_encoder/ and, if there is one, upscaler.safetensors, in bfloat16.

    run: the run of a transformer and its text encoder. upscaler: a run, or a file.

    Raises:
        CheckpointError: the run does not exist, or the folder does. ConfigError: another process is writing the folder.
    """
    remove_leftovers(folder.parent)
    _refuse_existing(folder)
    model = find_export(run, "model.safetensors")
    text = model.parent / "text_encoder"
    files = {model: "model.safetensors", text / "model.safetensors": "text_encoder/model.safetensors"}
    if upscaler is not None:
        files[find_export(upscaler, "upscaler.safetensors")] = "upscaler.safetensors"
    with claimed(folder):
        _refuse_existing(folder)  # of a command that has ended since
        _write(files, text, folder)


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise CheckpointError(f"got {folder}, which exists already; expected a new folder; remove it, or name another")


def _write(files: Mapping[Path, str], text: Path, folder: Path) -> None:
    with whole(folder, folder=True) as part:
        for source, name in files.items():
            _write_halved(source, part / name)
        for name in ("config.json", "spiece.model"):
            (part / "text_encoder" / name).write_bytes((text / name).read_bytes())


def _write_halved(source: Path, target: Path) -> None:
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a handle, not a dict
        metadata = file.metadata()
    halved = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() and STATISTICS not in name else tensor
        for name, tensor in tensors.items()
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(target, halved, metadata)
