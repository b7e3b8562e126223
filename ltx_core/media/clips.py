"""Clips read: videos, animated pictures, folders of numbered frames."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

from torch import Tensor

from .. import main_memory
from ..errors import ConfigError
from ..progress import Notes, log_note
from .decoding import Screen, decoded_frames, open_video
from .pictures import PICTURE_SUFFIXES, Picture, is_animated, is_still, read_image, read_pictures
from .timing import ASSUMED_RATE, LOOK_AHEAD, Shot, at_ticks, average_rate, own_rate, timed

CLIP_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".m2v", ".vob",
    ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".ogg", ".mxf", ".y4m", ".ivf", ".h264", ".264", ".h265",
    ".265", ".hevc", ".mjpeg", ".mjpg", ".dv", ".nut",
})  # fmt: skip
"""Names of files that are listed as clips; animated WebP, PNG and AVIF are clips under the names of pictures."""

_STORED_BYTES, _SHOWN_BYTES = 1, 24  # of a pixel: at least, decoded; and float32 RGB, as a list and as a tensor


@dataclass(frozen=True)
class Clip:
    """A video in memory: frames (f, h, w, 3) float32 in [0, 1], and their rate per second."""

    frames: Tensor
    fps: Fraction


def is_clip(path: Path) -> bool:
    """Whether a file or folder is shown as a clip, not as a picture: by its name, or because it is animated."""
    path = Path(path)
    return path.is_dir() or path.suffix.lower() in CLIP_SUFFIXES or is_animated(path)


def read_video(
    path: Path,
    *,
    start: int = 0,
    limit: int | None = None,
    fps: Fraction | None = None,
    notes: Notes = log_note,
) -> Clip:
    """A clip in memory, with its frames at their times.

    start, limit: first frame and number of frames, counted after resampling.
    fps: resample to this rate. None: the clip's own rate, at which each frame is seen once; a clip of variable rate
        gets one at which its frames keep their times, and `notes` says so.

    Raises:
        ConfigError: as `stream_video`; the clip has no frame number `start`.
        UnsupportedError: main memory does not hold it.
    """
    say = _saying(path, notes)
    stop = None if limit is None else start + limit
    with _opened(path, say) as source:
        rate = source.rate or fps or ASSUMED_RATE
        # All that may be shown is decoded first: a time that goes back later on decides for the whole clip.
        shots = timed(_in_memory(source, path, limit), rate, None if stop is None else max(stop, LOOK_AHEAD), say)
        if fps is None:
            known = list(shots if stop is None else itertools.islice(shots, max(stop, LOOK_AHEAD)))
            fps, constant = own_rate(known, source.rate)
            shots = itertools.chain(known, shots)
            if not constant:
                say(f"has a variable frame rate: its frames are shown at their times, at {float(fps):g} per second")
                shots = at_ticks(shots, fps)
        else:
            shots = at_ticks(shots, fps)
        frames = _shown(itertools.islice(shots, start, stop))
        first = next(frames, None)
        if first is None:
            raise ConfigError(f"got {path}, which has no frame number {start}; expected a longer clip; start earlier")
        return Clip(main_memory.gathered(itertools.chain([first], frames), f"the clip {path}"), fps)


def video_fps(path: Path, notes: Notes = log_note) -> Fraction:
    """Frames per second that a file states, on average; where it states none, by the times of its frames."""
    say = _saying(path, notes)
    with _opened(path, say) as source:
        if source.rate:
            return source.rate
        shots = list(timed(itertools.islice(source.shots, LOOK_AHEAD), ASSUMED_RATE, None, say))
        return average_rate(shots)


def stream_video(
    path: Path,
    *,
    start: int = 0,
    limit: int | None = None,
    fps: Fraction | None = None,
    notes: Notes = log_note,
) -> Iterator[Tensor]:
    """Frames (h, w, 3) float32 sRGB in [0, 1] one by one, as a player shows them (`Screen`, `read_picture`); what
    follows the last one is not read.

    path: a video, an animated picture, or a folder of numbered frames.
    start, limit: first frame and number of frames, counted after resampling.
    fps: resample to this rate; every output frame is the stored one nearest in time. Where a file has no times, or some
        that go back, its frames are taken in their order at the rate that it states, or else at this one. None: each
        stored frame once.

    Raises:
        ConfigError: the file is missing, is not a video, holds sound alone or no frames, or its frames change their
            size.
    """
    say = _saying(path, notes)
    stop = None if limit is None else start + limit
    with _opened(path, say) as source:
        shots = source.shots
        if fps is not None:
            shots = at_ticks(timed(shots, source.rate or fps, LOOK_AHEAD, say), fps)
        yield from _shown(itertools.islice(shots, start, stop))


def first_picture(folder: Path) -> Path:
    """The first of the numbered pictures of a folder. Raises ConfigError: there are none, or several series."""
    return numbered(folder)[0]


def _saying(path: Path, notes: Notes) -> Notes:
    return lambda text: notes(f"{path} {text}.")


def _in_memory(source: _Source, path: Path, limit: int | None) -> Iterator[Shot]:
    """The shots, as long as main memory holds what becomes of them: the frames as they are stored, and those that are
    shown, one by one and as one tensor. A small file may hold hours of one large picture."""
    for number, shot in enumerate(source.shots, 1):
        yield shot
        if source.pixels and number % max(main_memory.ASKED_EVERY // (source.pixels * _SHOWN_BYTES), 1) == 0:
            seen = number if limit is None else min(number, limit)
            main_memory.check_main_memory(
                source.pixels * (number * _STORED_BYTES + seen * _SHOWN_BYTES),
                f"the clip {path}, of which {number} frames are read",
            )


def _shown(shots: Iterator[Shot]) -> Iterator[Tensor]:
    """The frames of the shots; one that is seen twice is made once."""
    last: Shot | None = None
    frame: Tensor | None = None
    for shot in shots:
        if frame is None or last is None or shot.show is not last.show:
            frame = shot.show()
        last = shot
        yield frame


# --- where frames come from -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Source:
    """An open clip. rate: frames per second that it states, on average. pixels: of a frame; 0: not known."""

    rate: Fraction | None
    shots: Iterator[Shot]
    pixels: int = 0


@contextlib.contextmanager
def _opened(path: Path, say: Notes) -> Generator[_Source, None, None]:
    path = Path(path)  # names do too
    if path.is_dir():
        yield _Source(None, _in_order(path))
    elif is_animated(path):
        yield _Source(None, _animation(path, say))
    elif is_still(path):
        say("is a picture: it is taken as a clip of one frame")
        yield _Source(None, iter([Shot(lambda: read_image(path, lambda _: None)[0], Fraction(0))]))
    else:
        with open_video(path) as (container, stream):
            rate = stream.average_rate or stream.guessed_rate
            screen = Screen(path, stream, say)

            def shots() -> Iterator[Shot]:
                for number, frame in enumerate(decoded_frames(container, stream, path, say)):
                    screen.check(frame, number)
                    base = frame.time_base or stream.time_base
                    time = None if frame.pts is None or base is None else frame.pts * base
                    yield Shot(partial(screen.show, frame), time)

            yield _Source(Fraction(rate) if rate else None, shots(), stream.width * stream.height)


def _animation(path: Path, say: Notes) -> Iterator[Shot]:
    """The pictures of an animation at their times; without times, in their order."""
    time: Fraction | None = Fraction(0)
    first: Picture | None = None
    for number, timed_picture in enumerate(read_pictures(path, lambda text: say(text.removeprefix(f"{path} ")[:-1]))):
        picture, seconds = timed_picture.picture, timed_picture.seconds
        first = first or picture
        _check_size(path, picture.pixels, first.pixels, f"frame {number}")
        if number == 0 and picture.alpha is not None:
            say("is transparent in parts, which are shown on black")
        yield Shot(picture.over_black, time, seconds)
        time = None if time is None or seconds is None else time + seconds


def _check_size(path: Path, frame: Tensor, first: Tensor, name: str) -> None:
    if frame.shape != first.shape:
        before, after = (f"{shape[1]}x{shape[0]}" for shape in (first.shape, frame.shape))
        raise ConfigError(
            f"got {path}, whose frames change from {before} to {after} pixels at {name}; expected one size; cut the "
            "clip there or convert it to one size"
        )


def numbered(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their numbers: the last number in each name.

    Raises:
        ConfigError: there are none, one has no number, or there are several series of them.
    """
    numbers: dict[int, Path] = {}
    series: set[str] = set()
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()):
        match = re.fullmatch(r"(.*?)(\d+)(\D*)", path.stem)
        if match is None:
            raise ConfigError(
                f"got folder {folder} as a clip, with {path.name}; expected pictures with a number in each name; move "
                "the others away"
            )
        series.add(f"{match[1]}#{match[3]}")
        if len(series) > 1 or int(match[2]) in numbers:
            raise ConfigError(
                f"got folder {folder} as a clip, with several series of pictures ({path.name} is of the second); "
                "expected one; put each into a folder of its own"
            )
        numbers[int(match[2])] = path
    if not numbers:
        raise ConfigError(
            f"got folder {folder} as a clip, without pictures; expected numbered frames such as 0001.png; choose "
            "another folder"
        )
    return [numbers[number] for number in sorted(numbers)]


def _in_order(folder: Path) -> Iterator[Shot]:
    files = numbered(folder)
    first = read_image(files[0])[0]

    def show(path: Path) -> Tensor:
        frame = read_image(path)[0]
        _check_size(folder, frame, first, path.name)
        return frame

    return (Shot(partial(show, path)) for path in files)
