"""What a path that `--data` names is, by its content, as settings of `config.Data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError

FRAMES_PER_LATENT = 8  # of most VAEs; lengths that suit it suit VAEs of 4 and 2 as well


def data_settings(name: str) -> dict[str, Any]:
    """The kind of a source and its path; "digits" is the one without a file.

    Raises:
        ConfigError: there is nothing that could be trained on.
    """
    path = Path(name)
    if name == "digits" and not path.exists():
        return {"kind": "digits", "path": None}
    if path.is_dir():
        published = path / "videos_data.npz"  # of the xdiffusion example
        if published.is_file():
            return {"kind": "moving_mnist", "path": str(published)}
        for folder in (path, path / "raw", path / "MNIST" / "raw"):  # the others are torchvision's
            if any((folder / f"train-images-idx3-ubyte{suffix}").is_file() for suffix in ("", ".gz")):
                return {"kind": "mnist", "path": str(folder)}
        return {"kind": "folder", "path": name}
    if path.is_file() and path.suffix.lower() in (".npy", ".npz"):
        return {"kind": "moving_mnist", "path": name}
    raise ConfigError(
        f"got data {name}; expected a folder of videos, the .npy or .npz file of Moving MNIST, a folder with MNIST's "
        "idx files, or digits, which are drawn; check the path"
    )


def fitting_frames(name: str, frames: int) -> int:
    """The length of clips from a file of Moving MNIST: `frames`, or the longest that it has for a VAE of 8 frames per
    latent frame. Where the file cannot be read, `frames`: opening it says why."""
    path = Path(name)
    if path.suffix.lower() != ".npy":
        return frames
    from .moving_mnist import NUMPY_ERRORS

    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except NUMPY_ERRORS:
        return frames
    if len(shape) != 4 or shape[0] >= frames:
        return frames
    return max(1, (shape[0] - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1)
