"""VIDEO values: frames in memory, or a file that is read when its frames are needed. AUDIO values: their sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from ..ltx_core import media
from ..ltx_core.main_memory import gathered
from ..ltx_core.progress import Notes, log_note
from .decoding import Stored, decoded, stored_as
from .encoding import CONTAINERS


class Audio(TypedDict):
    """An AUDIO, as in ComfyUI: waveform (batch, channels, samples) float32, and its samples per second."""

    waveform: Tensor
    sample_rate: int


@dataclass(frozen=True, eq=False)
class VideoComponents:
    """The parts of a VIDEO, named as in ComfyUI's class of this name."""

    images: Tensor
    frame_rate: Fraction
    audio: Audio | None = None


@dataclass(frozen=True, eq=False)
class VideoInMemory:
    """A VIDEO whose frames are in memory."""

    components: VideoComponents
    depth: int = 8  # bits of a channel where it is stored
    colour_space: str = "sRGB"

    def get_components(self) -> VideoComponents:
        return self.components

    @property
    def rate(self) -> Fraction:
        return self.components.frame_rate

    def frames(self) -> Iterator[Tensor]:
        """The frames (f, h, w, 3), in one piece."""
        yield self.components.images

    def sound(self) -> media.Sound | None:
        """As in ComfyUI, the first of a batch; none where there are no samples."""
        audio = self.components.audio
        if audio is None or not audio["waveform"].numel():
            return None
        return media.Sound(audio["waveform"][0], int(audio["sample_rate"]))


class VideoInFile:
    """A VIDEO whose file is read when its frames are needed.

    As in ComfyUI, it has each stored frame once, and the average of its rate.
    """

    def __init__(self, path: Path, notes: Notes = log_note) -> None:
        self.path, self.notes = path, notes

    def get_components(self) -> VideoComponents:
        return self._components

    @property
    def rate(self) -> Fraction:
        return media.video_fps(self.path)

    def frames(self) -> Iterator[Tensor]:
        """The frames (1, h, w, 3), one at a time: a long clip is never in memory as a whole."""
        if self._stored is None:  # an animation that only Pillow opens
            return (frame[None] for frame in media.stream_video(self.path, notes=self.notes))
        return (frame.pixels[None] for frame in decoded(self.path, self.notes))

    @property
    def depth(self) -> int:
        return 8 if self._stored is None else self._stored.depth

    @property
    def colour_space(self) -> str:
        return "sRGB" if self._stored is None else self._stored.colour_space

    def is_stored_as(self, container: str, codec: str) -> bool:
        """Whether the file has the video in this container and codec; "auto" is any."""
        stored = self._stored
        if stored is None or (codec != "auto" and codec != stored.codec):
            return False
        return container == "auto" or CONTAINERS[container] in stored.containers

    @cached_property
    def _stored(self) -> Stored | None:
        return stored_as(self.path)

    def sound(self) -> media.Sound | None:
        """The sound from the first frame on; None: the file has none."""
        return media.read_sound(self.path, notes=self.notes)

    @cached_property
    def _components(self) -> VideoComponents:
        sound = self.sound()
        audio: Audio | None = None if sound is None else {"waveform": sound.waveform[None], "sample_rate": sound.rate}
        images = gathered((frame[0] for frame in self.frames()), f"the clip {self.path}")
        return VideoComponents(images, self.rate, audio)
