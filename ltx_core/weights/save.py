"""Writing safetensors files in the official layouts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

TRANSFORMER_PREFIX = "model.diffusion_model."
VAE_PREFIX = "vae."


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file whole or not at all: the bytes go to a neighbour that takes the name when it is complete."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, dict(metadata))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
