"""The clips that a config asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..progress import Notes, log_note
from ..shapes import PixelShape
from .captions import Tables
from .config import Data, HoldOut
from .data import Source, Split
from .datasets.precomputed import LatentFormat
from .digits.clips import DigitSource, MovingDigits, mnist_digits, sklearn_digits
from .folder import Media, Reading, VideoFolder, read_folder
from .moving_mnist import MovingMNIST


def open_source(
    config: Data, split: Split, seed: int, notes: Notes = log_note, hold_out: HoldOut = HoldOut()
) -> Source:
    """The clips of one split that a config asks for; those of "validation" are the same as of "train" where a folder
    holds none out.

    Raises:
        ConfigError: files are missing or unreadable, sizes do not fit, captions are missing or wrong, or a folder holds
            no usable clip.
    """
    return open_sources(config, seed, notes, hold_out)[0 if split == "train" else 1]


def open_sources(
    config: Data,
    seed: int,
    notes: Notes = log_note,
    hold_out: HoldOut = HoldOut(),
    *,
    captioned: bool = True,
    latents: LatentFormat | None = None,
    leave_out: tuple[Path, ...] = (),
) -> tuple[Source, Source]:
    """The clips to train on and those of validations; a folder is looked through once.

    captioned: whether captions are read at all. latents: of the VAE, for clips that are stored as latents; None: those
        cannot be used. leave_out: folders and files that go with clips, and are none.

    Raises:
        ConfigError: as `open_source`.
    """
    if not config.sizes:
        raise ConfigError("got no data.sizes; expected one or more [frames, height, width]; add one")
    sizes = [PixelShape(*size) for size in config.sizes]
    if config.brightness != 1 and config.kind not in ("digits", "mnist"):
        raise ConfigError(
            f"got data.brightness {config.brightness:g} with data.kind {config.kind}; expected it with digits that "
            "are drawn; leave it out"
        )
    if config.kind == "folder":
        reading = reading_of(config, hold_out, captioned=captioned, latents=latents, leave_out=leave_out)
        clips = read_folder(config, sizes, fps=config.fps, seed=seed, notes=notes, reading=reading)

        def of(media: list[Media], split: Split) -> Source:
            return VideoFolder.of(media, sizes, split=split, fps=config.fps, seed=seed, reading=reading)

        return of(clips.train, "train"), of(clips.validation, "validation")
    if hold_out != HoldOut():
        raise ConfigError(
            f"got validation.path or validation.share with data.kind {config.kind}; expected them with a folder: a "
            "tenth of the others is always held out; leave them out"
        )
    if len(sizes) != 1:
        raise ConfigError(f"got {len(sizes)} data.sizes for {config.kind}; expected one; only a folder has several")
    return _drawn(config, sizes, "train", seed), _drawn(config, sizes, "validation", seed)


def _drawn(config: Data, sizes: Sequence[PixelShape], split: Split, seed: int) -> Source:
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
    return DigitSource(clips, sizes[0], config.enlarged, seed, config.brightness)


def _path(config: Data) -> Path:
    if config.path is None:
        raise ConfigError(f"got no data.path; expected one for {config.kind}; add it")
    return config.path


def reading_of(
    config: Data,
    hold_out: HoldOut = HoldOut(),
    *,
    captioned: bool = True,
    latents: LatentFormat | None = None,
    leave_out: tuple[Path, ...] = (),
) -> Reading:
    """How the clips of a config are read; see `open_sources`."""
    return Reading(
        windows=config.windows,
        random_windows=config.random_windows,
        short_videos_as_pictures=config.short_videos_as_pictures,
        allow_empty_captions=config.allow_empty_captions or not captioned,
        share=hold_out.share,
        held_out=hold_out.path,
        tables=Tables(file_column=config.file_column, caption_column=config.caption_column),
        latents=latents,
        precomputed=config.precomputed,
        leave_out=leave_out,
    )
