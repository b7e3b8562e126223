"""Clips written, in any of the formats of `outputs`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..files import whole
from ..outputs import FOLDER, SOUND_FILE, Output
from ..progress import Notes, log_note
from ..shapes import PixelShape
from . import animations, streams
from .frames import rgb_frames
from .sound import Sound, write_sound
from .stills import write_still


def write_clip(
    output: Output,
    chunks: Iterable[Tensor],
    *,
    fps: Fraction,
    sound: Sound | None = None,
    metadata: Mapping[str, object] | None = None,
    notes: Notes = log_note,
) -> PixelShape:
    """Write a clip as `outputs.check_output` has agreed to; a file or folder appears complete or not at all.

    chunks: (f, h, w, 3) in [0, 1] or uint8, any number of frames each, all of one size. Videos and folders are written
        as the frames arrive; GIF and WebP need them all first, as bytes.
    sound: heard from the first frame on; cut after the last, or followed by silence up to it. None: no sound track.
    metadata: by name, each value as JSON, which `read_metadata` reads again; ComfyUI reads `prompt` and `workflow`.
    notes: hears what the format cannot keep: the sound, an odd size.
    Returns: the size of the clip, as stored.

    Raises:
        ShapeError: no frames, or frames of several sizes.
        ConfigError: a rate that is not positive. UnsupportedError: the encoder does not take this size.
        OSError: the disk is full or the place cannot be written.
    """
    if fps <= 0:
        raise ConfigError(f"got {fps} frames per second; expected a positive rate; 24, 25 and 30 are usual")
    frames = _of_one_size(chunks, keep_bytes=output.has_bytes)
    first = next(frames, None)
    if first is None:
        raise ShapeError("got no frames; expected at least one; decode a latent that is not empty")
    height, width = first.shape[:2]
    shape = PixelShape(1, height, width)
    for remark in output.remarks(shape, has_sound=sound is not None):
        notes(remark)
    if output.sound_codec is None:
        sound = None
    frames = itertools.chain([first], frames)
    texts = dict(metadata or {})
    if output.still:
        with whole(output.path) as temporary:
            write_still(temporary, first, output.codec, texts)
        return shape
    if output.is_folder:
        return _write_folder(output, frames, fps=fps, sound=sound, metadata=texts)
    if output.codec in animations.WRITERS:
        with whole(output.path) as temporary:
            return animations.write(temporary, frames, output, fps, texts)
    size = output.stored_size(shape)
    with whole(output.path) as temporary:
        return streams.write(temporary, frames, output, streams.Stream(size, fps, sound, texts))


def _of_one_size(chunks: Iterable[Tensor], *, keep_bytes: bool) -> Iterator[Tensor]:
    """Frames (h, w, 3) one by one. Raises ShapeError: they have several sizes."""
    size: torch.Size | None = None
    for chunk in chunks:
        for frame in rgb_frames(chunk, keep_bytes=keep_bytes):
            if size is not None and frame.shape != size:
                raise ShapeError(
                    f"got a frame of {frame.shape[1]}x{frame.shape[0]} pixels after frames of {size[1]}x{size[0]}; "
                    "expected one size; resize the frames first"
                )
            size = frame.shape
            yield frame


def _write_folder(
    output: Output, frames: Iterator[Tensor], *, fps: Fraction, sound: Sound | None, metadata: Mapping[str, object]
) -> PixelShape:
    count = height = width = 0
    with whole(output.path, folder=True) as temporary:
        for count, frame in enumerate(frames, 1):
            height, width = frame.shape[:2]
            write_still(temporary / output.picture(count), frame, output.codec, metadata)
        if sound is not None:
            write_sound(temporary / SOUND_FILE, sound.lasting(count / fps), FOLDER.sounds[0])
    return PixelShape(count, height, width)


def write_video(
    path: Path,
    chunks: Iterable[Tensor],
    *,
    fps: Fraction,
    metadata: Mapping[str, object] | None = None,
    crf: int = 18,
    sound: Sound | None = None,
    sound_codec: str = "aac",
) -> PixelShape:
    """An mp4 (H.264, yuv420p, BT.709), written as the frames arrive: `write_clip` without a choice of format.

    chunks: (f, h, w, 3) in [0, 1], any number of frames each, all of one size. The last row or column of an odd
        side is repeated, because yuv420p needs even sizes.
    metadata: container tags, each value as JSON; ComfyUI reads `prompt` and `workflow`.
    sound: heard from the first frame on; cut after the last, or followed by silence up to it. None: no sound track.
    sound_codec: one of `SOUND_CODECS`.
    Returns: the size of the written clip.

    Raises:
        As `write_clip`; ConfigError also: an unknown codec.
    """
    output = Output(Path(path), "h264", float(crf), sound_codec=sound_codec)
    return write_clip(output, chunks, fps=fps, sound=sound, metadata=metadata)


def write_gif(path: Path, frames: Tensor, fps: Fraction) -> None:
    """An animated GIF that repeats for ever: `write_clip` without a choice of format."""
    write_clip(Output(Path(path), "gif"), [frames], fps=fps)
