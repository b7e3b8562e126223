"""What the clips of `ltxkit generate` show, follow and start from: pictures, videos and a mask."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..ltx_core.errors import ConfigError
from ..ltx_core.files import is_there
from .console import Console

if TYPE_CHECKING:
    from torch import Tensor

    from ..ltx_core.media import Sound
    from ..ltx_core.pipelines.condition import ConditioningItem
    from ..ltx_core.pipelines.settings import Overrides
    from ..ltx_core.pipelines.start import Start

READ = (
    "model",
    "text_encoder",
    "vae",
    "upscaler",
    "tokenizer",
    "image",
    "video",
    "reference",
    "mask",
    "prompts",
    "recipe",
)
"""Options whose files a run reads."""

MADE_ANEW = 0.6  # of the schedule with --from: enough for another style, little enough to keep shapes and motion


@dataclass(frozen=True)
class Place:
    """A picture or clip, and where the result shows it. option: as the user wrote it."""

    option: str
    file: Path
    frame: int
    strength: float

    @property
    def is_picture(self) -> bool:
        return self.option == "--image"


def places_of(options: argparse.Namespace) -> tuple[Place, ...]:
    """The values of --image, --video and --at."""
    usual = 1.0 if options.strength is None else options.strength
    starts = {"--image": options.image, "--video": options.video}
    shown = [Place(option, file, 0, usual) for option, file in starts.items() if file is not None]
    return (
        *shown,
        *(
            Place(f"--at {at.frame}={at.file}", at.file, at.frame, usual if at.strength is None else at.strength)
            for at in options.at
        ),
    )


def inputs_of(options: argparse.Namespace) -> Iterator[Path]:
    """The files that a run reads, as far as the options name them."""
    yield from (path for path in (getattr(options, name) for name in READ) if path is not None)
    yield from (place.file for place in places_of(options))
    yield from (path for path, _ in options.lora)
    if options.source is not None:
        yield options.source[0]


def check_inputs(options: argparse.Namespace) -> None:
    """Refuse at once what needs no file to be opened.

    Raises:
        ConfigError: a picture, video or mask that is not there, or options that do not go together.
    """
    named: dict[str, Path | None] = {place.option: place.file for place in places_of(options)}
    named |= {f"--{name}": getattr(options, name) for name in ("reference", "mask", "tokenizer", "recipe")}
    if options.source is not None:
        named["--from"] = options.source[0]
    for option, path in named.items():
        if path is not None and not is_there(path):
            raise ConfigError(
                f"got {option.partition(' ')[0]} {path}, which is not there; expected a file; check the path"
            )
    if options.strength is not None and not places_of(options):
        raise ConfigError(
            "got --strength without --image, --video or --at; expected something to keep to; with --from, write "
            "--from VIDEO@SHARE"
        )
    if options.source is not None and options.source[1] == 0:
        raise ConfigError(
            f"got --from {options.source[0]}@0; expected a share above 0: with 0 nothing is made anew; raise it"
        )
    if options.mask is not None and options.source is None:
        raise ConfigError("got --mask without --from; expected the video that it is for; add --from VIDEO")
    if options.long is None:
        said = [f"--{name.replace('_', '-')}" for name in ("window", "overlap") if getattr(options, name) is not None]
        if said:
            raise ConfigError(f"got {said[0]} without --long; expected a long clip; add --long FRAMES, or leave it out")
        return
    for option, value in (
        ("--frames", options.frames),
        ("--from", options.source),
        ("--upscaler", options.upscaler),
        ("--count", options.count if options.count > 1 else None),
    ):
        if value is not None:
            raise ConfigError(
                f"got --long and {option}; expected one of them: a long clip is made once, in windows; leave "
                "one of the two out"
            )


def check_places(options: argparse.Namespace, frames: int) -> None:
    """Raises ConfigError: a picture or clip beyond the clip, or two at one frame."""
    taken: dict[int, str] = {}
    for place in places_of(options):
        start = place.frame + frames if place.frame < 0 else place.frame
        if not 0 <= start < frames:
            raise ConfigError(
                f"got {place.option} for a clip of {frames} frames; expected frame {-frames} to {frames - 1}; move it, "
                "or make the clip longer with --frames"
            )
        if start in taken:
            raise ConfigError(
                f"got {taken[start]} and {place.option}, both at frame {start}; expected one; leave one out, or move it"
            )
        taken[start] = place.option


@dataclass(frozen=True, eq=False)
class Source:
    """The video that is made anew: frames (f h w 3) in [0, 1].

    share: of the schedule that runs. mask: (n h w), 1 for what is made anew; None: everything is.
    """

    frames: Tensor
    fps: Fraction
    share: float | None
    mask: Tensor | None

    @property
    def start(self) -> Start:
        """As the library has it."""
        from ..ltx_core.pipelines.start import Start

        return Start.of(self.frames, self.mask)


def source_of(options: argparse.Namespace, console: Console) -> Source | None:
    """The values of --from and --mask."""
    if options.source is None:
        return None
    from ..ltx_core import media

    path, share = options.source
    clip = media.read_video(path, limit=options.frames, fps=options.fps, notes=console.note)
    mask = None
    if options.mask is not None:
        if media.is_clip(options.mask):
            pictures = media.read_video(options.mask, limit=len(clip.frames), fps=clip.fps, notes=console.note).frames
        else:
            pictures = media.read_image(options.mask, console.note)
        mask = pictures.mean(dim=-1)
    return Source(clip.frames, clip.fps, share, mask)


def started(said: Overrides, source: Source | None, options: argparse.Namespace) -> Overrides:
    """The settings with the share of the schedule that --from says, or the usual one where nothing else does.

    Raises:
        ConfigError: the share is said twice.
    """
    if source is None:
        return said
    first = said.first
    chosen = first.denoise_strength is not None or first.sigmas is not None or first.skip_initial_steps is not None
    if source.share is None:
        if chosen or source.mask is not None:
            return said
        return replace(said, first=replace(first, denoise_strength=MADE_ANEW))
    if first.denoise_strength is not None and first.denoise_strength != source.share:
        raise ConfigError(
            f"got --from {options.source[0]}@{source.share:g} and a denoise strength of {first.denoise_strength:g}; "
            "expected one of them; leave one out"
        )
    return replace(said, first=replace(first, denoise_strength=source.share))


def conditions_of(
    options: argparse.Namespace, frames: int, fps: Fraction | None, console: Console
) -> tuple[list[ConditioningItem], Fraction | None]:
    """What the clip shows and follows, and its frame rate: `fps`, else that of the first video."""
    from ..ltx_core import media
    from ..ltx_core.pipelines.condition import Condition, Reference

    conditions: list[ConditioningItem] = []
    for place in places_of(options):
        start = place.frame + frames if place.frame < 0 else place.frame
        if place.option != "--video" and (place.is_picture or not media.is_clip(place.file)):
            conditions.append(Condition(media.read_image(place.file, console.note), start, place.strength))
            continue
        clip = media.read_video(place.file, limit=frames - start, fps=fps, notes=console.note)
        fps = clip.fps
        conditions.append(Condition(clip.frames, start, place.strength))
    if options.reference:
        reference = media.read_video(options.reference, limit=frames, fps=fps, notes=console.note)
        fps = reference.fps
        conditions.append(Reference(reference.frames, fps=float(fps)))
    return conditions, fps


def sound_of(options: argparse.Namespace, seconds: Fraction | None, console: Console) -> Sound | None:
    """What is heard with the clip: the sound of --from, else of --video or a clip at frame 0, else of --reference."""
    from ..ltx_core import media

    first = [place.file for place in places_of(options) if place.frame == 0 and media.is_clip(place.file)]
    source = options.source[0] if options.source is not None else None
    files = () if options.no_sound else filter(None, (source, *first, options.reference))
    return next(filter(None, (media.read_sound(path, seconds=seconds, notes=console.note) for path in files)), None)
