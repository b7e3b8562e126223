"""Long videos cut into their scenes, at one frame rate: clips for a training.

Where scenes begin, PySceneDetect says (its adaptive detector); decoding and writing are `media`'s.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..errors import ConfigError, UnsupportedError, reason_of
from ..media import stream_video, video_fps, write_video
from ..progress import Notes

QUALITY = 12  # of the written clips: x264's crf, at which nothing is seen of it


@dataclass(frozen=True)
class Cut:
    """How a video is cut. fps: of the clips; None: the video's own. shortest: seconds below which a scene is left out;
    longest: beyond which it becomes several clips. threshold: of the detector; higher finds fewer scenes."""

    fps: Fraction | None = None
    shortest: float = 1.0
    longest: float = 10.0
    threshold: float = 3.0


def scenes_of(video: Path, cut: Cut) -> list[tuple[float, float]]:
    """First and last moment of each scene, in seconds; one that is too long is divided evenly.

    Raises:
        ConfigError: the video cannot be read.
        UnsupportedError: PySceneDetect is not installed.
    """
    try:
        from scenedetect import AdaptiveDetector, VideoOpenFailure, detect
    except ImportError as error:
        raise UnsupportedError(
            "got no PySceneDetect; expected it to find scenes; do pip install ltxkit[data]"
        ) from error
    try:
        found = detect(str(video), AdaptiveDetector(adaptive_threshold=cut.threshold), start_in_scene=True)
    except (VideoOpenFailure, OSError) as error:
        raise ConfigError(
            f"got {video}, which cannot be read ({reason_of(error)}); expected a video; leave it out"
        ) from error
    scenes: list[tuple[float, float]] = []
    for start, end in ((each[0].seconds, each[1].seconds) for each in found):
        parts = max(1, -int(-(end - start) // cut.longest))
        scenes += [(start + (end - start) * n / parts, start + (end - start) * (n + 1) / parts) for n in range(parts)]
    return scenes


def split_video(video: Path, folder: Path, cut: Cut, notes: Notes) -> tuple[list[Path], int]:
    """Write the scenes of a video as `folder`/NAME-001.mp4; those that are there stay. Returns all of them, and how
    many scenes were too short.

    Raises:
        As `scenes_of`; OSError: the disk is full.
    """
    rate = cut.fps or video_fps(video)
    frames = stream_video(video, fps=rate, notes=notes)  # once for all scenes
    seen = 0
    written: list[Path] = []
    short = 0
    for number, (start, end) in enumerate(scenes_of(video, cut), 1):
        if end - start < cut.shortest:
            short += 1
            continue
        target = folder / f"{video.stem}-{number:03}.mp4"
        written.append(target)
        if target.exists():
            continue
        first, last = round(start * rate), round(end * rate)
        chunks = (frame[None] for frame in itertools.islice(frames, first - seen, last - seen))
        write_video(target, chunks, fps=rate, crf=QUALITY)
        seen = last
        notes(f"{target}: {start:.2f} to {end:.2f} s")
    return written, short
