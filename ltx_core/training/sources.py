"""The clips that a config asks for."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from ..progress import Notes, log_note
from ..shapes import PixelShape
from .config import Data
from .data import Source, Split
from .digits.clips import DigitSource, MovingDigits, mnist_digits, sklearn_digits
from .folder import VideoFolder
from .moving_mnist import MovingMNIST


def open_source(config: Data, split: Split, seed: int, notes: Notes = log_note) -> Source:
    """The clips that a config asks for.

    Raises:
        ConfigError: files are missing or unreadable, sizes do not fit, or a folder holds no usable clip.
    """
    if not config.sizes:
        raise ConfigError("got no data.sizes; expected one or more [frames, height, width]; add one")
    sizes = [PixelShape(*size) for size in config.sizes]
    if config.kind == "folder":
        return VideoFolder(_path(config), sizes, split=split, fps=config.fps, seed=seed, notes=notes)
    if len(sizes) != 1:
        raise ConfigError(f"got {len(sizes)} data.sizes for {config.kind}; expected one; only a folder has several")
    if config.kind == "moving_mnist":
        return MovingMNIST(_path(config), sizes[0], split, seed)
    digits = sklearn_digits() if config.kind == "digits" else mnist_digits(_path(config))
    frames, height, width = sizes[0]
    clips = MovingDigits(
        digits,
        frames=frames,
        height=height,
        width=width,
        glyph_size=config.glyph_size,
        spread=config.spread,
        split=split,
        seed=seed,
    )
    return DigitSource(clips, sizes[0], config.enlarged, seed)


def _path(config: Data) -> Path:
    if config.path is None:
        raise ConfigError(f"got no data.path; expected one for {config.kind}; add it")
    return config.path
