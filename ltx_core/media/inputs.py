"""Pictures and clips as people have them: Pillow's, numpy's and torch's, lists of these, and paths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..files import is_there
from ..progress import Notes, log_note
from ..values import shown
from .clips import Clip, is_clip, read_video
from .colour import from_sixteen_bits
from .frames import rgb_frames
from .pictures import read_image, shown_picture

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Frames: TypeAlias = (
        "Tensor | np.ndarray | Image | Path | str | Clip | Sequence[Tensor | np.ndarray | Image | Path | str]"
    )

CHANNELS = (1, 3, 4)


def as_frames(
    given: Frames, *, limit: int | None = None, fps: Fraction | None = None, notes: Notes = log_note
) -> Tensor:
    """A picture or a clip as frames (f, h, w, c), uint8 or float, as `rgb_frames` takes them.

    given: (h, w, c) or (f, h, w, c) of torch or numpy, 0 to 1 or uint8; a Pillow image; the path of a picture, a video
    or a folder of numbered frames; a clip in memory; or a list of pictures of one size. limit: the first frames of it.
    fps: at which a video that is read is resampled; None: its own rate.

    Raises:
        ShapeError: channels first, or pictures of several sizes. ConfigError: none of these, or a file that cannot be
            read.
    """
    if isinstance(given, str | Path):
        return _read(Path(given), limit, fps, notes)
    if isinstance(given, Clip):
        given = given.frames
    if isinstance(given, list | tuple):
        pictures = [as_frames(each, notes=notes) for each in itertools.islice(given, limit)]
        if not pictures:
            raise ShapeError("got no frames; expected at least one picture; give a list that is not empty")
        sizes = list(dict.fromkeys(f"{each.shape[2]}x{each.shape[1]}" for each in pictures))
        if len(sizes) > 1:
            raise ShapeError(
                f"got pictures of {sizes[0]} and {sizes[1]} pixels in one list; expected one size; resize them, or "
                "make a condition of each"
            )
        # Mixed with floats, bytes would be stacked as 0 to 255; and pictures may have different channels.
        mixed = len({(each.dtype, each.shape[-1]) for each in pictures}) > 1
        return torch.cat([rgb_frames(each) for each in pictures] if mixed else pictures)
    return _in_order(_array(given, notes))[:limit]


def as_masks(given: Frames, *, limit: int | None = None) -> Tensor:
    """Masks (f, h, w) float32 in [0, 1] from what `as_frames` takes, or (h, w): white is 1; of colours, the mean."""
    if not isinstance(given, str | Path | Clip | list | tuple) and hasattr(given, "ndim"):
        array: Any = given
        if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] not in CHANNELS):
            given = array[..., None]
    return rgb_frames(as_frames(given, limit=limit)).mean(dim=-1)


def _read(path: Path, limit: int | None, fps: Fraction | None, notes: Notes) -> Tensor:
    if "://" in str(path) or str(path).startswith(("http:", "https:")):
        raise ConfigError(f"got the address {path}; expected a file on this machine; download it first")
    if not is_there(path):
        raise ConfigError(f"got {path}, which does not exist; expected a picture or a video; check the path")
    if is_clip(path):
        return read_video(path, limit=limit, fps=fps, notes=notes).frames
    return read_image(path, notes)


def _array(given: Any, notes: Notes) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach().cpu()
    if type(given).__module__.partition(".")[0] == "PIL":
        picture = shown_picture(given, lambda text: notes(f"The picture {text}."))
        return picture.over_black()[None]
    if hasattr(given, "__array__"):
        import numpy as np

        array = np.asarray(given)
        if array.dtype == np.uint16:
            array = from_sixteen_bits(torch.from_numpy(array.astype(np.float32))).numpy()
        if array.dtype.kind not in "biuf":
            raise ConfigError(f"got an array of {array.dtype}; expected numbers from 0 to 1, or uint8; convert it")
        native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
        return torch.from_numpy(np.ascontiguousarray(native))
    raise ConfigError(
        f"got {shown(given)} as frames; expected a path, a Pillow image, an array or tensor (height, width, 3), or a "
        "list of these; pass one of them"
    )


def _in_order(frames: Tensor) -> Tensor:
    if frames.ndim == 2:
        frames = frames[..., None]
    if frames.ndim in (3, 4) and frames.shape[-1] not in CHANNELS and frames.shape[-3] in CHANNELS:
        raise ShapeError(
            f"got frames of shape {tuple(frames.shape)}, channels first; expected ({'frames, ' * (frames.ndim == 4)}"
            f"height, width, channels); write frames.movedim(-3, -1), or np.moveaxis(frames, -3, -1)"
        )
    if frames.ndim == 3:
        frames = frames[None]
    return frames
