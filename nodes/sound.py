"""The node that takes the sound of a clip to a video made from it, and AUDIO as the core's sound."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import Tensor

from ..ltx_core.errors import ConfigError
from ..ltx_core.media import Sound
from . import sockets
from .widgets import decimal, frame_rate, integer, link


class KeepSound(sockets.Node):
    CATEGORY = "LTXKit/sound"
    DESCRIPTION = (
        "The sound of a clip for the video that goes on from it: it starts where the clip's frames start, with the "
        "same samples, cut to the video or followed by silence, never stretched. A clip without sound gives none."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "audio", "keep audio", "trim audio", "pad audio", "silence", "extend"]
    RETURN_TYPES = ("AUDIO",)
    RETURN_NAMES = ("audio",)
    OUTPUT_TOOLTIPS = ("For Create Video, Long Video or another Sound.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "audio": link("AUDIO", "Sound of the clip, from Get Video Components, which gives none where none is."),
                "take": integer(
                    0,
                    -100000,
                    100000,
                    "As in Condition: 0: the whole sound; 25: that of the first 25 frames; -25: that of the last 25 "
                    "frames and of what follows them.",
                ),
                "frame": integer(
                    0,
                    -100000,
                    100000,
                    "As in Condition: frame of the video where it starts; 0 is the first, -1 the last.",
                ),
                "frame_rate": frame_rate(sockets.DEFAULT_FRAME_RATE, "Frames per second of the video."),
            },
            "optional": {
                "images": link(
                    "IMAGE",
                    "Frames of the video: the sound becomes as long. Without them it ends with the sound of the clip.",
                ),
                "clip": link("IMAGE", "All frames of the clip, from Get Video Components; for a `take` below 0."),
                "clip_rate": decimal(
                    0.0,
                    0.0,
                    240.0,
                    0.01,
                    "Frames per second of the clip, from Get Video Components. 0: those of the video.",
                ),
                "before": link("AUDIO", "Sound of the video so far, such as that of another Sound; both are heard."),
            },
        }

    def run(
        self,
        audio: object,
        take: int,
        frame: int,
        frame_rate: float,
        images: Tensor | None = None,
        clip: Tensor | None = None,
        clip_rate: float = 0.0,
        before: object = None,
    ) -> tuple[dict[str, Any] | None]:
        sound, earlier = received_sound(audio, "audio"), received_sound(before, "before")
        rate = Fraction(frame_rate)
        start = _start(frame, images) / rate
        if sound is not None:
            taken = _taken(sound, take, clip, Fraction(clip_rate) or rate)
            shift = sound.samples_in(start)
            length = taken.waveform.shape[1]
            sound = Sound(taken.part(-shift, length), taken.rate)
        both = _together(sound, earlier)
        if both is not None and images is not None:
            both = both.lasting(len(images) / rate)
        return (None if both is None else {"waveform": both.waveform[None], "sample_rate": both.rate},)


def received_sound(value: object, name: str) -> Sound | None:
    """The sound in an AUDIO, on the CPU; None: there is none.

    Raises:
        ConfigError: not an AUDIO, or several sounds in one.
    """
    if value is None:
        return None
    waveform = value.get("waveform") if isinstance(value, Mapping) else None  # other packs have mappings of their own
    if not isinstance(value, Mapping) or not isinstance(waveform, Tensor) or waveform.ndim != 3:
        raise ConfigError(
            f"got {type(value).__name__} on `{name}`; expected AUDIO; connect Get Video Components or Load Audio"
        )
    if len(waveform) != 1:
        raise ConfigError(f"got {len(waveform)} sounds on `{name}`; expected one; connect a single sound")
    if not waveform.numel():
        return None
    return Sound(waveform[0].float().cpu(), int(value["sample_rate"]))


def _start(frame: int, images: Tensor | None) -> int:
    """Raises ConfigError: a frame that the video does not have."""
    if images is None:
        if frame < 0:
            raise ConfigError(
                f"got frame {frame} without `images`; expected a number from 0; connect the frames of the video, from "
                "whose end it counts"
            )
        return frame
    start = frame + len(images) if frame < 0 else frame
    if not 0 <= start < len(images):
        raise ConfigError(
            f"got sound at frame {frame}; expected {-len(images)} to {len(images) - 1} for a video of {len(images)} "
            "frames; start it elsewhere"
        )
    return start


def _taken(sound: Sound, take: int, clip: Tensor | None, clip_rate: Fraction) -> Sound:
    """The sound of the first frames of a clip, or from the first of its last frames on."""
    if take >= 0:
        return sound.lasting(take / clip_rate) if take else sound
    if clip is None:
        raise ConfigError(
            f"got take {take} without `clip`; expected all frames of the clip, from whose end it counts; connect the "
            "images of Get Video Components"
        )
    first = sound.samples_in(max(len(clip) + take, 0) / clip_rate)
    return Sound(sound.part(first, max(sound.waveform.shape[1], first)), sound.rate)


def _together(sound: Sound | None, earlier: Sound | None) -> Sound | None:
    """Both at once, as long as the longer one."""
    if sound is None or earlier is None:
        return sound or earlier
    seconds = max(Fraction(each.waveform.shape[1], each.rate) for each in (sound, earlier))
    return earlier.lasting(seconds).overlaid(sound)
