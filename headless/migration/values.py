"""What an output of an old graph stands for in a graph of ours.

Old graphs pass a model, a prompt, a guider, a sampler, levels and noise from node to node; ours has most of them as
inputs of one node. While a graph is read, each output is therefore a value: a link to a node of the new graph, a
constant, or one of the records below, of which nodes are made where something needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Link(NamedTuple):
    """An output of a node of the new graph."""

    node: str
    slot: int = 0


Number = int | float | Link | None


@dataclass(frozen=True)
class Model:
    """A model handle. stg_blocks: what LTXVApplySTG said. shift: ComfyUI's, for its own schedules."""

    link: Link
    stg_blocks: str = ""
    shift: float = 2.37


@dataclass(frozen=True)
class Clip:
    """A text encoder."""

    link: Link


@dataclass(frozen=True)
class Vae:
    """noise: timestep, scale and seed of its decoder; None: not said."""

    link: Link
    noise: tuple[Any, Any, Any] | None = None


@dataclass(frozen=True)
class Text:
    """A prompt that is not encoded yet: one line, or one for each window of a long video."""

    encoder: Link
    text: Any
    frame_rate: Number = None
    windows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """Frames, as they are to be shown.

    crf: their compression. take: how many of them (negative: of the last). count: how many there are, if known.
    parts: the single pictures that were put together. width, height: their size, if known.
    """

    link: Link
    crf: int = 0
    take: int = 0
    count: int | None = None
    parts: tuple[Picture, ...] = ()
    width: Number = None
    height: Number = None


@dataclass(frozen=True)
class Condition:
    picture: Picture
    frame: Any
    strength: Any
    resize: str


@dataclass(frozen=True)
class Reference:
    picture: Picture
    strength: Any


@dataclass(frozen=True)
class Upscaled:
    source: Latent
    upscaler: Link
    vae: Link


@dataclass(frozen=True)
class Latent:
    """A clip as a latent, and what the next sampler must show in it.

    width, height, frames: in pixels, if known. guides: latent frames that native nodes would have appended.
    vae: for its conditions. pixels: the frames that it was encoded from. upscaled: what an upscaler made it of.
    """

    link: Link
    width: Number = None
    height: Number = None
    frames: Number = None
    conditions: tuple[Condition | Reference, ...] = ()
    guides: int = 0
    vae: Vae | None = None
    pixels: Picture | None = None
    upscaled: Upscaled | None = None
    is_empty: bool = False

    @property
    def tokens(self) -> int | None:
        """Latent cells of LTX-Video's VAE, guides included; None if a size comes from a link."""
        if not all(isinstance(side, int) for side in (self.width, self.height, self.frames)):
            return None
        width, height, frames = (int(side) for side in (self.width, self.height, self.frames))  # type: ignore[arg-type]
        return ((frames - 1) // 8 + 1 + self.guides) * (height // 32) * (width // 32)


@dataclass(frozen=True)
class Noise:
    """seed: None for a pass that adds no noise."""

    seed: Any


@dataclass(frozen=True)
class Sampler:
    name: str


@dataclass(frozen=True)
class Sigmas:
    """Levels of the steps. values: if they are known. schedule: inputs of our Schedule that give the same ones.

    link: SIGMAS that came from a node that stays.
    """

    values: tuple[float, ...] | None = None
    schedule: Mapping[str, Any] | None = None
    link: Link | None = None


@dataclass(frozen=True)
class Guider:
    """skip_above: steps above that level are left out. guidance: class and inputs of our node for it."""

    model: Model
    positive: Any
    negative: Any
    guidance: tuple[str, Mapping[str, Any]]
    skip_above: float = 1.0


@dataclass(frozen=True)
class Levels:
    """Numbers in a list, as StringToFloatList gives them."""

    values: tuple[float, ...]


@dataclass(frozen=True)
class Other:
    """A value that means something only to other converted nodes, such as a preset's name."""

    value: Any = field(default=None)


@dataclass(frozen=True)
class Missing:
    """An output that could not be made. reason: the sentence for what needs it."""

    reason: str
