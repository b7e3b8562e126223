"""Pictures read: everything that Pillow opens, and what only PyAV opens, as sRGB."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError, LTXKitError
from ..files import is_there
from ..progress import Notes, log_note
from .colour import from_sixteen_bits
from .decoding import read_still

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

PICTURE_SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2",
    ".j2k", ".jxl", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".dds", ".psd", ".qoi", ".ico", ".exr", ".hdr",
    ".dpx",
})  # fmt: skip
"""Names of files that are listed as pictures; what a file is, its content decides."""

_MOVING = frozenset({"AVIF", "FLI", "GIF", "PNG", "TIFF", "WEBP"})
"""Formats (of Pillow) whose pictures follow each other in time; elsewhere they are views, sizes or layers."""

_NOT_SHOWN = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow recognises and does not draw itself: for EPS it would start another program."""

_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    EOFError,
    struct.error,
    zlib.error,
)
"""What Pillow's some forty decoders raise on damaged bytes: they leave to Python whatever it says."""


@dataclass(frozen=True, eq=False)
class Picture:
    """pixels: (h, w, 3) float32 sRGB in [0, 1]. alpha: (h, w) in [0, 1], 0 for transparent; None: all is opaque."""

    pixels: Tensor
    alpha: Tensor | None = None

    def over_black(self) -> Tensor:
        return self.pixels if self.alpha is None else self.pixels * self.alpha[..., None]


@dataclass(frozen=True, eq=False)
class TimedPicture:
    """A picture of an animation. seconds: how long it is shown; None: the format states no time."""

    picture: Picture
    seconds: Fraction | None


def read_image(path: Path, notes: Notes = log_note) -> Tensor:
    """A picture as (1, h, w, 3) float32 sRGB in [0, 1], transparent parts over black; of an animation, the first.

    The same holds as for `read_picture`.
    """
    picture = read_picture(path, notes)
    if picture.alpha is not None:
        notes(f"{path} is transparent in parts, which are shown on black.")
    return picture.over_black()[None]


def read_picture(path: Path, notes: Notes = log_note) -> Picture:
    """A picture, turned as EXIF says, in sRGB by its ICC profile; of an animation, the first.

    16-bit grey is 1 at 65535. Floats in [0, 1] are taken as they are; other numbers are spread over it, from the least
    to the greatest, and `notes` says so. Grey is repeated.

    Raises:
        ConfigError: the file is missing, is not a picture, is damaged, or has more pixels than Pillow's limit.
    """
    import numpy as np

    try:
        return next(_pillow_pictures(path, notes, all_of_them=False)).picture
    except NotOpenedError as error:
        still = read_still(path, notes)
        if still is None:
            raise ConfigError(
                f"got {path}, which is not a picture; expected PNG, JPEG, WebP or a similar format; choose another file"
            ) from error
    pixels, alpha = still
    values = pixels.double().numpy()
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        pixels = torch.from_numpy(_in_unit_range(values, lambda text: notes(f"{path} {text}."))).float()
    return Picture(pixels, alpha)


def read_pictures(path: Path, notes: Notes = log_note) -> Iterator[TimedPicture]:
    """All pictures of an animation (GIF, WebP, PNG, AVIF, TIFF, FLI), or one picture. The same holds as for
    `read_picture`; `is_animated` says for which files."""
    return _pillow_pictures(path, notes, all_of_them=True)


def is_animated(path: Path) -> bool:
    """Whether Pillow finds more than one picture in a file, which follow each other in time."""
    return (_count(path) or 0) > 1


def is_still(path: Path) -> bool:
    """Whether Pillow finds a single picture in a file."""
    return _count(path) == 1


def _count(path: Path) -> int | None:
    """How many pictures follow each other in a file; None: not a picture, or a damaged one."""
    try:
        with opened(path) as file:
            count = getattr(file, "n_frames", 1) if file.format in _MOVING else 1
            return count - bool(file.info.get("default_image"))
    except LTXKitError:
        return None


class NotOpenedError(ConfigError):
    """Pillow does not know the format."""


@contextlib.contextmanager
def opened(path: Path) -> Generator[Image, None, None]:
    """A file in Pillow. Whatever its decoders raise inside the block becomes one ConfigError that names the file."""
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if is_there(path) and not (path.is_file() or path.is_dir()):  # a pipe or a device could be waited for without end
        raise ConfigError(f"got picture {path}, which is not a file; expected PNG, JPEG or WebP; choose another")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of half the limit, and of damaged tags: the file is shown or refused
            with Image.open(path) as file:
                if file.format in _NOT_SHOWN:
                    raise NotOpenedError(f"got {path}, a {file.format} file; expected pixels; save it as PNG")
                yield file
    except LTXKitError:
        raise
    except UnidentifiedImageError as error:
        raise NotOpenedError(
            f"got {path}, which Pillow does not open; expected a picture; choose another file"
        ) from error
    except Image.DecompressionBombError as error:
        raise ConfigError(
            f"got picture {path}, which is too large ({str(error).split(', could')[0]}); expected fewer pixels; make "
            "it smaller in a picture editor"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"got picture {path}, which cannot be read ({error.strerror or error}); expected a readable file; check it"
        ) from error
    except _DECODER_ERRORS as error:
        raise ConfigError(
            f"got picture {path}, which is damaged ({error or type(error).__name__}); expected a readable file; save "
            "it again or choose another"
        ) from error


def _pillow_pictures(path: Path, notes: Notes, *, all_of_them: bool) -> Iterator[TimedPicture]:
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:  # once for all pictures of an animation
            said.add(text)
            notes(f"{path} {text}.")

    with opened(path) as file:
        count = getattr(file, "n_frames", 1) if file.format in _MOVING else 1
        first = 1 if all_of_them and count > 1 and file.info.get("default_image") else 0  # for viewers without APNG
        if count > 1 and not all_of_them:
            say(f"is animated: the first of its {count} pictures is taken")
        for number in range(first, count if all_of_them else 1):
            if number:
                file.seek(number)
            file.load()
            seconds = None if file.format == "TIFF" else _seconds(file.info.get("duration") or 0)
            yield TimedPicture(shown_picture(file, say), seconds)


def _seconds(milliseconds: float) -> Fraction:
    """How long browsers show a picture: times up to 10 ms mean "not set" to them, and become 100 ms."""
    return Fraction(100 if milliseconds <= 10 else milliseconds).limit_denominator(1000) / 1000


# --- pixels -----------------------------------------------------------------------------------------------------------


def shown_picture(picture: Image, say: Notes) -> Picture:
    """A picture of Pillow as `read_picture` shows the file of it. say: receives what follows "The picture"."""
    # Where it is not TIFF, Pillow has 16 bits in its 32-bit mode.
    deep = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format != "TIFF")
    picture = _upright(picture, say)
    if deep or picture.mode in ("I", "F"):
        return _by_own_range(picture, deep, say)
    profile = picture.info.get("icc_profile")
    alpha = None
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        rgba = picture.convert("RGBA")
        values = _array(rgba.getchannel("A"))
        alpha = None if bool((values == 1).all()) else values
        picture = rgba.convert("L" if picture.mode in ("LA", "La") else "RGB")
    return Picture(_array(_in_srgb(picture, profile, say)), alpha)


def _array(picture: Image) -> Tensor:
    """8-bit pixels as float32 in [0, 1]."""
    import numpy as np

    return torch.from_numpy(np.array(picture)).float() / 255


def _upright(picture: Image, say: Notes) -> Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    except _DECODER_ERRORS as error:
        say(f"has damaged EXIF data ({error}), so that its orientation is unknown: it is shown as stored")
        return picture


def _in_srgb(picture: Image, profile: bytes | None, say: Notes) -> Image:
    """The picture as RGB; an ICC profile that does not fit it is left out, and that is said."""
    if profile:
        from PIL import ImageCms

        try:
            source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            kind: str = source.profile.xcolor_space.strip()
            if ImageCms.getProfileDescription(source).startswith("sRGB"):
                return picture.convert("RGB")
            modes = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}
            mode = modes.get(kind)
            if mode == picture.mode or (mode == "RGB" and picture.mode not in ("CMYK", "LAB")):
                srgb = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(picture.convert(mode), source, srgb, outputMode="RGB")
                return converted or picture.convert("RGB")  # None comes only of a conversion in place
            say(f"has an ICC profile for {kind}, but is {picture.mode}: it is left out")
        except (ImageCms.PyCMSError, *_DECODER_ERRORS) as error:
            say(f"has an ICC profile that cannot be used ({error}): its colours are taken as sRGB")
    return picture.convert("RGB")


def _by_own_range(picture: Image, deep: bool, say: Notes) -> Picture:
    """Grey of 16 or 32 bits, or of floats. deep: 65535 is 1; otherwise its numbers tell."""
    import numpy as np

    values = np.asarray(picture).astype(np.float64)
    hidden = picture.info.get("transparency")
    alpha = torch.from_numpy(values != hidden).float() if isinstance(hidden, int) else None
    if alpha is not None and bool(alpha.all()):
        alpha = None
    if deep:
        grey = from_sixteen_bits(torch.from_numpy(values)).clip(0, 1)
    else:
        grey = torch.from_numpy(_in_unit_range(values, say)).float()
    return Picture(grey[..., None].expand(-1, -1, 3), alpha)


_ROUNDING = 1e-2


def _in_unit_range(values: np.ndarray, say: Notes) -> np.ndarray:
    """Any numbers in [0, 1]: whole ones up to 255 or 65535 as 8 or 16 bits, others from the least to the greatest."""
    import numpy as np

    if not np.isfinite(values).all():
        say("has values that are not finite: they are shown as its least and greatest")
        known = values[np.isfinite(values)]
        ends = (known.min(), known.max()) if known.size else (0.0, 0.0)
        values = np.nan_to_num(values, nan=ends[0], posinf=ends[1], neginf=ends[0])
    least, greatest = values.min(), values.max()
    if least >= -_ROUNDING and greatest <= 1 + _ROUNDING:
        return values.clip(0, 1)
    if least >= 0 and greatest <= 65535 and (values % 1 == 0).all():
        full = 255 if greatest <= 255 else 65535
        say(f"has whole numbers up to {greatest:g} as its values: 1 is {full}")
        return values / full
    say(f"has values from {least:g} to {greatest:g}, which are spread over black to white")
    return (values - least) / max(greatest - least, 1e-300)
