"""What a clip can be saved as: one table of formats, and the check that comes before any work.

A name's suffix decides the format; `codec` chooses among its codecs, `quality` how closely the frames are kept. Nothing
here imports torch, so that a command can refuse a wrong name at once.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

from . import files
from .errors import ConfigError, UnsupportedError
from .shapes import PixelShape
from .threads import scheduling_kept
from .values import is_number, shown, shown_path


@dataclass(frozen=True)
class Encoder:
    """An encoder of FFmpeg, and the layout of pixels that it gets."""

    name: str
    layout: str

    @property
    def is_available(self) -> bool:
        """Whether this installation of PyAV has it."""
        from av.codec import Codec as Known
        from av.codec.codec import UnknownCodecError

        try:
            return self.layout in {each.name for each in Known(self.name, "w").video_formats or ()}
        except UnknownCodecError:
            return False

    def takes(self, width: int, height: int, options: Mapping[str, str] = MappingProxyType({})) -> bool:
        """Whether it takes frames of this size, and these options, which only opening it tells."""
        from av import CodecContext
        from av.error import FFmpegError

        context: Any = CodecContext.create(self.name, "w")
        context.width, context.height, context.pix_fmt = width, height, self.layout
        context.framerate, context.time_base = Fraction(24), Fraction(1, 24)
        context.options = {**QUIET.get(self.name, {}), **options}
        try:
            with scheduling_kept():
                context.open()
        except (FFmpegError, ValueError):
            return False
        return True


QUIET: Mapping[str, Mapping[str, str]] = {"libx265": {"x265-params": "log-level=none"}}
"""Options of encoders that write to stderr by themselves otherwise."""


@dataclass(frozen=True)
class Codec:
    """How frames are stored.

    usual: FFmpeg's encoder and its layout of pixels; None where Pillow writes. exact: those that lose nothing; None:
    there are none. worst, crf: the end and the usual value of its scale of compression, which begins at 0; 0: it has
    none. lossless: nothing is ever lost.
    """

    usual: Encoder | None = None
    exact: Encoder | None = None
    worst: int = 0
    crf: int = 0
    lossless: bool = False

    @property
    def is_available(self) -> bool:
        return self.usual is None or self.usual.is_available


CODECS: Mapping[str, Codec] = {
    "h264": Codec(Encoder("libx264", "yuv420p"), Encoder("libx264rgb", "rgb24"), 51, 18),
    "hevc": Codec(Encoder("libx265", "yuv420p10le"), Encoder("libx265", "gbrp"), 51, 18),
    "av1": Codec(Encoder("libsvtav1", "yuv420p10le"), None, 63, 18),
    "vp9": Codec(Encoder("libvpx-vp9", "yuv420p"), Encoder("libvpx-vp9", "gbrp"), 63, 15),
    "prores": Codec(Encoder("prores_ks", "yuv422p10le")),
    "ffv1": Codec(Encoder("ffv1", "bgr0"), Encoder("ffv1", "bgr0"), lossless=True),
    "gif": Codec(),
    "webp": Codec(),
    "png": Codec(lossless=True),
    "exr": Codec(Encoder("exr", "gbrpf32le"), lossless=True),
}


@dataclass(frozen=True)
class Format:
    """What a suffix stands for: its codecs and those of its sound, the usual one first; no sound codec: no sound."""

    title: str
    codecs: tuple[str, ...]
    sounds: tuple[str, ...] = ()


FORMATS: Mapping[str, Format] = {
    ".mp4": Format("MP4", ("h264", "hevc", "av1", "vp9"), ("aac", "flac", "opus")),
    ".webm": Format("WebM", ("vp9", "av1"), ("opus",)),
    ".mkv": Format("Matroska", ("h264", "hevc", "av1", "vp9", "ffv1", "prores"), ("flac", "aac", "opus", "pcm")),
    ".mov": Format("QuickTime", ("prores", "h264", "hevc"), ("pcm", "aac", "alac")),
    ".gif": Format("GIF", ("gif",)),
    ".webp": Format("animated WebP", ("webp",)),
}
FOLDER = Format("folder of pictures", ("png", "exr"), ("pcm",))
PICTURES: Mapping[str, str] = {".png": "png", ".exr": "exr"}
"""Codecs of a folder by the suffix of its pictures."""

ALIASES = {"avc": "h264", "x264": "h264", "h265": "hevc", "x265": "hevc", "libx264": "h264", "libx265": "hevc"}
OUTPUT_CODECS = tuple(CODECS)
SOUND_CODECS = ("aac", "flac", "opus", "pcm", "alac")
LOSSLESS_SOUND = ("flac", "pcm", "alac")
SOUND_FILE = "sound.wav"  # beside the pictures of a folder
DIGITS = 4  # of the number of a picture, at least
PRORES_444 = 95  # the quality from which on ProRes stores colours in full resolution
_PRORES = ((20, "proxy"), (40, "lt"), (70, "standard"), (PRORES_444, "hq"), (100, "4444"))  # each up to a quality
LONGEST_SIDES = {"gif": 65535, "webp": 16383}  # in pixels, as these formats store it

_NUMBER = re.compile(r"%0?(\d*)d|(#+)|\*")
"""Where a number stands in the name of a picture: as FFmpeg writes it, as Blender, or a star."""


@dataclass(frozen=True)
class Output:
    """A checked place and form for a clip.

    path: the file, or the folder. codec: a name of `CODECS`. crf: on the encoder's scale; None where it has none.
    is_exact: frames of 8 bits are stored without any loss. sound_codec: None: the format has no sound.
    prefix, suffix, digits: the names of the pictures in a folder. still: a single picture, not a folder.
    """

    path: Path
    codec: str
    crf: float | None = None
    quality: float | None = None
    is_exact: bool = False
    sound_codec: str | None = None
    prefix: str = ""
    suffix: str = ""
    digits: int = DIGITS
    still: bool = False

    @property
    def is_folder(self) -> bool:
        return self.codec in FOLDER.codecs and not self.still

    @property
    def encoder(self) -> Encoder | None:
        """FFmpeg's part in it; None: Pillow writes it."""
        codec = CODECS[self.codec]
        if self.codec == "prores" and self.quality is not None and self.quality >= PRORES_444:
            return Encoder("prores_ks", "yuv444p10le")
        return codec.exact if self.is_exact and codec.exact else codec.usual

    @property
    def has_bytes(self) -> bool:
        """Whether frames are stored, or compressed, from eight bits of a channel."""
        encoder = self.encoder
        return encoder is None or not (encoder.layout.endswith("10le") or self.codec == "exr")

    @property
    def prores_profile(self) -> str | None:
        """The profile that FFmpeg would not take by itself for the layout, HQ or 4444."""
        if self.codec != "prores" or self.quality is None:
            return None
        profile = next((profile for end, profile in _PRORES if self.quality < end), "4444xq")
        return None if profile in ("hq", "4444") else profile

    def stored_size(self, size: PixelShape) -> tuple[int, int]:
        """(width, height) of the stored frames: as asked, or the next even numbers where the encoder takes no others.

        Raises:
            UnsupportedError: it takes neither.
        """
        longest = LONGEST_SIDES.get(self.codec)
        if longest is not None and max(size.height, size.width) > longest:
            raise _too_large(self, size, f"has at most {longest} pixels a side")
        encoder = self.encoder
        if encoder is None or self.codec in FOLDER.codecs:
            return size.width, size.height
        even = (size.width + size.width % 2, size.height + size.height % 2)
        for width, height in dict.fromkeys([(size.width, size.height), even]):
            halves = encoder.layout.startswith("yuv422") and width % 2
            if not halves and encoder.takes(width, height):
                return width, height
        raise _too_large(self, size, "does not take them")

    def remarks(self, size: PixelShape, *, has_sound: bool = False) -> list[str]:
        """What of a clip the format cannot keep, a sentence each. Raises as `stored_size`."""
        said: list[str] = []
        if has_sound and self.sound_codec is None:
            said.append(f"{self.path.name} has no sound: this format cannot store any.")
        width, height = self.stored_size(size)
        if (width, height) != (size.width, size.height):
            said.append(
                f"{self.path.name} has frames of {width}x{height} pixels: {self.codec} takes no odd sides, so that the "
                "last row or column is repeated."
            )
        return said

    def picture(self, number: int) -> str:
        """The name of a folder's picture, numbered from 1."""
        return f"{self.prefix}{number:0{self.digits}}{self.suffix}"


def check_output(
    path: Path | str,
    *,
    codec: str | None = None,
    quality: float | str | None = None,
    sound_codec: str | None = None,
    size: PixelShape | None = None,
    overwrite: bool = True,
) -> Output:
    """Refuse a name, codec or quality that a clip cannot be saved with: before a model is loaded.

    path: a file with a suffix of `FORMATS`; or a folder of pictures, which is a name with "/" at its end, an existing
        folder, a name without suffix and the codec png or exr, or the name of its pictures, such as shot/%04d.exr.
    codec: a name of `CODECS` or `ALIASES` that the format has, or both codecs, as "h264+flac". None: its usual one.
    quality: 0 to 100 over the whole scale of the codec, 100 without loss where it can; or its own scale, as "crf18".
        None: the usual one, which is hard to tell from the frames.
    sound_codec: a name of `SOUND_CODECS`. None: the usual one.
    size: of the clip; None: not known yet. overwrite: whether what is there may be replaced.

    Raises:
        ConfigError: one of them cannot be, or the place cannot be written.
        UnsupportedError: PyAV has no encoder for it here, or the encoder does not take this size.
    """
    text = os.fspath(path)
    files.check_name(text, folder=True)
    if codec is not None and "+" in codec:
        codec, _, of_sound = codec.partition("+")
        sound_codec = sound_codec or of_sound
    codec = ALIASES.get(codec, codec) if codec else None
    check_codecs(codec, sound_codec)
    pattern = _pattern(text)
    if pattern is not None:
        output = _folder(pattern, codec)
    elif _is_folder(text, codec):
        if Path(text).suffix.lower() in FORMATS and not Path(text).is_dir():
            raise ConfigError(
                f"got the output {text!r}, a folder that is named as a file; expected one of the two; leave out the "
                "last / for a file"
            )
        output = _folder((Path(text), "", DIGITS, ""), codec)
    else:
        output = _file(Path(text), codec, size)
    _check_available(output)
    output = _with_quality(output, quality)
    output = _with_sound(output, sound_codec)
    _check_place(output, overwrite)
    if size is not None:
        output.stored_size(size)
    return output


def folder_or_file(path: Path) -> Path:
    """What a name stands for: a file, or the folder of the pictures that it names."""
    pattern = _pattern(os.fspath(path))
    return path if pattern is None else pattern[0]


def check_codecs(codec: str | None, sound_codec: str | None) -> None:
    """Refuse a codec that does not exist, whatever the format. Raises ConfigError."""
    for name, value, known in (("codec", codec, OUTPUT_CODECS), ("sound_codec", sound_codec, SOUND_CODECS)):
        if value is not None and value not in known:
            raise ConfigError(f"got {name} {shown(value)}; expected one of {', '.join(known)}; choose one")


# --- names ------------------------------------------------------------------------------------------------------------


def _pattern(text: str) -> tuple[Path, str, int, str] | None:
    """Folder, prefix, digits and suffix of a name such as shot/frame_%04d.png; None: it is none."""
    path = Path(text)
    found = list(_NUMBER.finditer(path.stem))
    known = path.suffix.lower() in PICTURES or (not path.suffix and "%" in path.stem)
    if not found or not known:
        return None
    match = found[-1]
    folder = path.parent
    if folder == Path() or match.end() != len(path.stem) or len(found) > 1 or folder.parent == folder:
        raise ConfigError(
            f"got the output {shown_path(text)}; expected pictures in a folder of their own, with the number at the "
            "end of the name, such as shot/%04d.png; name them so"
        )
    digits = int(match[1]) if match[1] else len(match[2] or "") or DIGITS
    if digits > 9:
        raise ConfigError(f"got the output {shown_path(text)} with {digits} digits; expected at most 9; write %04d")
    return folder, path.stem[: match.start()], digits, path.suffix


def _is_folder(text: str, codec: str | None) -> bool:
    separators = tuple(separator for separator in (os.sep, os.altsep) if separator)
    path = Path(text)
    return text.endswith(separators) or os.path.isdir(text) or (not path.suffix and codec in FOLDER.codecs)  # noqa: PTH112 - raises for no name


def _folder(names: tuple[Path, str, int, str], codec: str | None) -> Output:
    path, prefix, digits, suffix = names
    implied = PICTURES.get(suffix.lower() or path.suffix.lower())
    chosen = codec or implied or FOLDER.codecs[0]
    if chosen not in FOLDER.codecs or (suffix and chosen != implied):
        expected = implied if suffix else _either(FOLDER.codecs)
        raise ConfigError(
            f"got the codec {chosen} for the output {path}, a {FOLDER.title}; expected {expected}; choose it, or name "
            "a file"
        )
    return Output(path, chosen, prefix=prefix, digits=digits, suffix=suffix or f".{chosen}")


def _file(path: Path, codec: str | None, size: PixelShape | None) -> Output:
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        return _still(path, codec, size)
    if suffix not in FORMATS:
        hint = "" if suffix else f" (for pictures, {path}/ or {path}/%04d.exr)"
        raise ConfigError(
            f"got the output {shown_path(path)}; expected a name that ends in {_either(tuple(FORMATS))}, or a folder, "
            f"which ends in /; change it{hint}"
        )
    form = FORMATS[suffix]
    if codec is not None and codec not in form.codecs:
        raise ConfigError(
            f"got the codec {codec} for {path.name}; expected {_either(form.codecs)} in {form.title}; choose one of "
            "them, or another suffix"
        )
    return Output(path, codec or form.codecs[0])


def _still(path: Path, codec: str | None, size: PixelShape | None) -> Output:
    chosen = PICTURES[path.suffix.lower()]
    if codec not in (None, chosen):
        raise ConfigError(f"got the codec {codec} for {path.name}; expected {chosen}; leave it out")
    if size is None or size.frames != 1:
        raise ConfigError(
            f"got the output {shown_path(path)}, one picture, for a clip; expected a folder of pictures or a video; "
            f"write {path.with_suffix('')}/%04d{path.suffix}, or ask for one frame"
        )
    return Output(path, chosen, still=True, suffix=path.suffix)


# --- what of it can be ------------------------------------------------------------------------------------------------


def _check_available(output: Output) -> None:
    if CODECS[output.codec].is_available:
        return
    form = FOLDER if output.is_folder or output.still else FORMATS[output.path.suffix.lower()]
    there = [name for name in form.codecs if CODECS[name].is_available]
    raise UnsupportedError(
        f"got the codec {output.codec}, for which this installation of PyAV has no encoder; expected "
        f"{_either(there) if there else 'another format'}; choose it, or install av from PyPI"
    )


def _with_quality(output: Output, quality: float | str | None) -> Output:
    """The output with what a quality means to its codec."""
    codec = CODECS[output.codec]
    if quality is None:
        return replace(output, crf=float(codec.crf) if codec.worst else None, is_exact=codec.lossless)
    match = re.fullmatch(r"crf[ =]?(\d+(?:\.\d+)?)", quality.strip().lower()) if isinstance(quality, str) else None
    if match:
        crf = float(match[1])
        if not codec.worst or crf > codec.worst:
            expected = f"crf0 to crf{codec.worst}" if codec.worst else "0 to 100: it has no CRF"
            raise ConfigError(f"got quality {shown(quality)} for {output.codec}; expected {expected}; change it")
        return replace(output, crf=crf)
    try:
        value = float(quality)
    except (TypeError, ValueError):
        value = -1.0
    if isinstance(quality, bool) or not is_number(value) or not 0 <= value <= 100:
        raise ConfigError(
            f"got quality {shown(quality)}; expected 0 to 100, or a number of the codec's own scale such as crf18; "
            "100 is without loss where the codec can"
        )
    crf = codec.worst * (100 - value) / 100 if codec.worst else None
    exact = codec.lossless or (value == 100 and (output.codec == "webp" or codec.exact is not None))
    if exact and codec.exact is not None and not codec.exact.is_available:
        raise UnsupportedError(
            f"got quality {shown(quality)}, for which this installation of PyAV lacks {codec.exact.name}; expected "
            "less than 100 for this codec; lower it"
        )
    output = replace(output, crf=crf, quality=value, is_exact=exact)
    if output.prores_profile and not _chooses_prores_profiles():
        raise UnsupportedError(
            f"got quality {shown(quality)}, for which the FFmpeg of this installation of PyAV (7.1) cannot choose the "
            "profile of ProRes; expected 70 to 99; change it, or upgrade av to 15 or later"
        )
    return output


@functools.cache
def _chooses_prores_profiles() -> bool:
    """That of av 14.2 looks the profile's name up among those of other codecs."""
    encoder = CODECS["prores"].usual
    return encoder is not None and encoder.takes(64, 64, {"profile": "proxy"})


def _with_sound(output: Output, sound_codec: str | None) -> Output:
    form = FOLDER if output.is_folder else FORMATS.get(output.path.suffix.lower(), Format("picture", ()))
    if sound_codec is not None and sound_codec not in form.sounds:
        expected = _either(form.sounds) if form.sounds else "none: it has no sound"
        raise ConfigError(
            f"got the sound codec {sound_codec} for {output.path.name}; expected {expected}; leave it out, or choose "
            "another suffix"
        )
    return replace(output, sound_codec=sound_codec or next(iter(form.sounds), None))


def _check_place(output: Output, overwrite: bool) -> None:
    path = output.path
    files.check_output(path, folder=output.is_folder)
    if not path.exists():
        return
    if output.is_folder:
        names = re.compile(r".*\d+\.(png|exr)|" + re.escape(SOUND_FILE), re.IGNORECASE)
        entries = list(path.iterdir())
        other = next((each.name for each in entries if not (each.is_file() and names.fullmatch(each.name))), None)
        if other is not None:
            raise ConfigError(
                f"got the output folder {path}, which has other things in it ({shown(other)}); expected a new folder, "
                "or one of pictures; name another"
            )
        if not entries:
            return
    if not overwrite:
        raise ConfigError(f"got the output {path}, which exists; expected a new name; choose another, or overwrite it")


def _too_large(output: Output, size: PixelShape, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"got frames of {size.width}x{size.height} pixels for {output.codec}, which {why}; expected another size; "
        "choose another codec or format"
    )


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
