"""Pictures and clips from the user, resized to a clip, and encoded as latent conditions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..host import Host
from ..media import RESIZE_POLICIES, ResizePolicy, as_frames, compress, crop_to_shape, resize, rgb_frames
from ..models.video_vae import LOGVAR_RANGE
from ..progress import Notes, log_note
from ..sampling.conditioning import LatentCondition, LatentItem, LatentReference
from ..sampling.noise import Noise
from ..shapes import PixelShape
from ..values import check_choice, check_crf, check_frame_rate, check_number, check_whole
from .encode import encode_posterior
from .hints import CONDITION, hinted

if TYPE_CHECKING:
    from ..models.video_vae import VideoVAE


class ConditioningItem(ABC):
    """Frames on which a clip is conditioned: a `Condition` that it shows, or a `Reference` that it follows.

    frames: (f h w 3) float, 0 to 1, of any size, from what `media.as_frames` takes. strength: 0 to 1. resize: see
    `media.resize`.
    """

    frames: Tensor
    strength: float
    resize: ResizePolicy

    needs_lora: ClassVar[bool]
    """Whether only a model with a LoRA for this kind of item understands it."""

    in_one_window: ClassVar[bool]
    """Whether only the first window of a long clip that has a share in it uses it."""

    @abstractmethod
    def prepared(self, crf: int) -> ConditioningItem:
        """The item with three channels, and with the compression `crf` if it has none of its own."""

    @abstractmethod
    def on_canvas(self, asked: PixelShape, grid: PixelShape, say: Notes = log_note) -> ConditioningItem:
        """The item resized to `asked`, with its edges continued to `grid`; `crop_to` undoes the latter."""

    @abstractmethod
    def placed(self, size: PixelShape, frames_per_latent: int, fps: float, say: Notes) -> ConditioningItem:
        """The item with its frames counted from the start of a clip of this size and rate, cut to a length that the
        VAE can have.

        Raises:
            ShapeError: not frames of three channels. ConfigError: its place is not possible in this clip.
        """

    def check_place(self, frames: int, frames_per_latent: int) -> None:  # noqa: B027 - a reference starts with the clip
        """Refuse a place that is not possible in a clip of this length. Raises ConfigError, as `placed`."""

    @abstractmethod
    def share(self, first: int, last: int, frames: int) -> ConditioningItem | None:
        """The part that a window of the frames `first` to `last` uses, in a clip of `frames` frames; None: no part."""

    @abstractmethod
    def as_latent(self, latent: Tensor) -> LatentItem:
        """The item in latent form. latent: its encoded frames, (b c f h w)."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """The item as JSON values, without its frames: everything else that distinguishes it."""

    def __repr__(self) -> str:
        f, h, w, _ = self.frames.shape
        others = (each for each in fields(self) if each.name != "frames")  # pyright: ignore[reportArgumentType]
        said = [f"{e.name}={value!r}" for e in others if (value := getattr(self, e.name)) != e.default]
        return f"{type(self).__name__}({', '.join([f'{f} x {w}x{h}', *said])})"

    def _check_values(self) -> None:
        """Raises ConfigError: a strength, policy or frames that cannot be."""
        limit = getattr(self, "limit", None)
        if limit is not None:
            check_whole("limit", limit, 1, advice="pass the number of frames to take")
        object.__setattr__(self, "frames", as_frames(self.frames, limit=limit))
        check_number("strength", self.strength, 0, 1, advice="1 keeps the picture unchanged")
        check_choice("resize", self.resize, RESIZE_POLICIES)

    def _check_frames(self) -> None:
        frames = self.frames
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] == 0:
            raise ShapeError(
                f"got a condition of shape {tuple(frames.shape)}; expected (frames, height, width, 3) with at least "
                "one frame; drop an alpha channel, or repeat a grey one"
            )


@hinted(CONDITION, "ltxkit.Condition")
@dataclass(frozen=True, eq=False, repr=False)
class Condition(ConditioningItem):
    """A picture or clip that the result must show.

    frames: of any size: a path, a Pillow image, an array or tensor (h w 3) or (f h w 3), uint8 or 0 to 1, or a list of
        these; kept as (f h w 3).
    frame: where it starts in the result; negative counts from the end, -1 is the last frame.
    strength: 0 to 1; 1 keeps it unchanged. resize: how it gets the size of the result, see `media.resize`.
    crf: H.264 compression of every frame (`media.compress`), after cropping and before resizing, as in the official
        code, whose value is 29; 0: none. None: not set: the library then takes the value of the run, and a direct call
        of `sample` does not compress.
    limit: how many frames of a clip are taken, the first ones; None: all.

    Raises:
        ConfigError: a value outside its range.
    """

    frames: Tensor
    frame: int = 0
    strength: float = 1.0
    resize: ResizePolicy = "crop"
    crf: int | None = None
    limit: int | None = None

    needs_lora = False
    in_one_window = True

    def __post_init__(self) -> None:
        self._check_values()
        check_whole("frame", self.frame, advice="0 is the first frame, -1 the last")
        if self.crf is not None:
            check_crf(self.crf)

    def prepared(self, crf: int) -> Condition:
        return replace(self, frames=rgb_frames(self.frames), crf=crf if self.crf is None else self.crf)

    def compressed(self, size: PixelShape) -> Condition:
        """The condition after compression, which happens once, for `size`, the first size that it is resized to.

        Raises ConfigError if crf is outside 0 to 63.
        """
        frames = crop_to_shape(self.frames, size.height, size.width) if self.resize == "crop" else self.frames
        return replace(self, frames=compress(frames, self.crf or 0), crf=0)

    def on_canvas(self, asked: PixelShape, grid: PixelShape, say: Notes = log_note) -> Condition:  # noqa: ARG002
        """A frame index is one of `asked`, from whose end a negative one counts: nobody sees the frames beyond.

        Raises:
            ConfigError: there is no such frame in `asked`.
        """
        start = self._start(asked.frames)
        return replace(self, frames=_on_canvas(self.compressed(asked), asked, grid), frame=start, crf=0)

    def placed(self, size: PixelShape, frames_per_latent: int, fps: float, say: Notes) -> Condition:  # noqa: ARG002
        """Raises ConfigError also if a clip does not start on a multiple of `frames_per_latent`."""
        self._check_frames()
        self.check_place(size.frames, frames_per_latent)
        start, count, t = self._start(size.frames), len(self.frames), frames_per_latent
        length = self._length(size.frames, t)
        if length != count:
            say(
                f"The condition at frame {start} was trimmed from {count} to {length} frames: {t}k+1 that fit in the "
                "clip."
            )
        return replace(self, frames=self.frames[:length], frame=start).compressed(size)

    def check_place(self, frames: int, frames_per_latent: int) -> None:
        start, t = self._start(frames), frames_per_latent
        if self._length(frames, t) > 1 and start % t:
            raise ConfigError(
                f"got a clip as condition at frame {start}; expected a multiple of {t} (an image can stand anywhere); "
                f"use frame {round(start / t) * t}"
            )

    def _length(self, frames: int, t: int) -> int:
        """How many of its frames a clip of this length shows."""
        return (min(len(self.frames), frames - self._start(frames)) - 1) // t * t + 1

    def _start(self, frames: int) -> int:
        start = self.frame + frames if self.frame < 0 else self.frame
        if not 0 <= start < frames:
            raise ConfigError(
                f"got a condition at frame {self.frame}; expected {-frames} to {frames - 1} for a clip of "
                f"{frames} frames; move the condition or make the clip longer"
            )
        return start

    def share(self, first: int, last: int, frames: int) -> Condition | None:
        """A window that shows the first frame of the condition uses all of it."""
        start = self._start(frames)
        return replace(self, frame=start - first) if first <= start <= last else None

    def as_latent(self, latent: Tensor) -> LatentCondition:
        return LatentCondition(latent, self.frame, self.strength)

    def describe(self) -> dict[str, object]:
        count, crf = len(self.frames), self.crf or 0
        return {
            "kind": "condition", "frame": self.frame, "frames": count, "strength": self.strength,
            "resize": self.resize, "crf": crf,
        }  # fmt: skip


@hinted(CONDITION, "ltxkit.Reference")
@dataclass(frozen=True, eq=False, repr=False)
class Reference(ConditioningItem):
    """The video that an IC-LoRA follows: depth, poses or edges, frame by frame, or a clip to refine.

    frames: as of a `Condition`; they start with the clip. strength: IC-LoRAs are trained at 1.
    fps: of the frames; for a clip with another rate, the frames nearest in time are taken. None: the rate of the clip.

    Raises:
        ConfigError: a value outside its range.
    """

    frames: Tensor
    strength: float = 1.0
    resize: ResizePolicy = "crop"
    fps: float | None = None

    needs_lora = True
    in_one_window = False

    def __post_init__(self) -> None:
        self._check_values()
        if self.fps is not None:
            check_frame_rate("fps", self.fps)

    def prepared(self, crf: int) -> Reference:  # noqa: ARG002 - a reference is never compressed
        return replace(self, frames=rgb_frames(self.frames))

    def at_rate(self, fps: float, say: Notes) -> Reference:
        """The same video at the rate of a clip."""
        if self.fps is None or self.fps == fps:
            return self
        count = int((len(self.frames) - 1) * fps / self.fps + 1e-3) + 1  # up to the time of the last frame
        nearest = (torch.arange(count) * (self.fps / fps)).round().long().clamp(max=len(self.frames) - 1)
        say(
            f"The reference has {self.fps:g} frames per second and the clip {fps:g}: of its {len(self.frames)} frames "
            f"the {count} nearest in time were taken."
        )
        return replace(self, frames=self.frames[nearest], fps=fps)

    def on_canvas(self, asked: PixelShape, grid: PixelShape, say: Notes = log_note) -> Reference:
        self.say_resizing(asked, say)
        return replace(self, frames=_on_canvas(self, asked, grid))

    def say_resizing(self, size: PixelShape, say: Notes) -> None:
        """Report the resizing, if the reference has another size than the clip."""
        h, w = self.frames.shape[1:3]
        if (h, w) != (size.height, size.width):
            say(f"The reference of {w}x{h} pixels was resized to {size.width}x{size.height} ({self.resize}).")

    def placed(self, size: PixelShape, frames_per_latent: int, fps: float, say: Notes) -> Reference:
        """The reference at the rate of the clip and no longer than it; `say` reports every change."""
        self._check_frames()
        reference = self.at_rate(fps, say)
        count, t = len(reference.frames), frames_per_latent
        length = (min(count, size.frames) - 1) // t * t + 1
        if length != count:
            say(f"The reference was trimmed from {count} to {length} frames: {t}k+1 that fit in the clip.")
        if length < size.frames:
            say(
                f"The reference ends before the clip: frames {length} to {size.frames - 1} are made without it; make a "
                f"clip of {length} frames, or use a longer reference."
            )
        reference.say_resizing(size, say)
        return replace(reference, frames=reference.frames[:length])

    def share(self, first: int, last: int, frames: int) -> Reference | None:  # noqa: ARG002
        part = self.frames[first : last + 1]
        return replace(self, frames=part) if len(part) else None

    def as_latent(self, latent: Tensor) -> LatentReference:
        return LatentReference(latent, self.strength)

    def describe(self) -> dict[str, object]:
        count = len(self.frames)
        return {"kind": "reference", "frame": 0, "frames": count, "strength": self.strength, "resize": self.resize}


@dataclass(frozen=True, eq=False)
class Conditions:
    """The conditioning of a pass. vae: encodes the items that are frames; latent items alone do not need it."""

    items: Sequence[ConditioningItem | LatentItem] = ()
    vae: VideoVAE | None = None

    @property
    def needs_lora(self) -> bool:
        return any(item.needs_lora for item in self.items)

    def encoded(self, size: PixelShape, batch: int, fps: float, noise: Noise, host: Host) -> list[LatentItem]:
        """All items as latents at the size of a clip, see `encode_conditions`. Raises ConfigError without a VAE."""
        frames = [item for item in self.items if isinstance(item, ConditioningItem)]
        if not frames:
            return [item for item in self.items if not isinstance(item, ConditioningItem)]
        if self.vae is None:
            raise ConfigError(
                "got conditions without a VAE; expected the VAE of the model, which encodes them; pass it"
            )
        latents = iter(encode_conditions(self.vae, frames, size, batch=batch, fps=fps, noise=noise, host=host))
        return [next(latents) if isinstance(item, ConditioningItem) else item for item in self.items]


NOTHING = Conditions()


@torch.no_grad()
def encode_conditions(
    vae: VideoVAE,
    items: Sequence[ConditioningItem],
    size: PixelShape,
    *,
    batch: int,
    fps: float,
    noise: Noise,
    host: Host,
) -> tuple[LatentItem, ...]:
    """Conditions at the size of a clip, as draws from the VAE's posterior, which the official code uses, not its mean.

    noise: one draw per item, for `batch` samples. fps: of the clip.

    Returns latents (batch c f h w) float32 on the CPU.

    Raises:
        As `ConditioningItem.placed`.
    """
    placed = [item.placed(size, vae.config.scale_factors.frames, fps, host.say) for item in items]
    encoded: list[LatentItem] = []
    for item in placed:
        frames = resize(item.frames, size.height, size.width, item.resize)
        posterior = encode_posterior(vae, frames, host=host)
        deviation = (0.5 * posterior.logvar.clamp(*LOGVAR_RANGE)).exp()
        latent = posterior.mean + deviation * noise((batch, *posterior.mean.shape[1:]))
        encoded.append(item.as_latent(vae.normalize(latent)))
    return tuple(encoded)


# --- the canvas: a clip of any size in the middle of a grid that the VAE can have -------------------------------------


def _on_canvas(item: ConditioningItem, asked: PixelShape, grid: PixelShape) -> Tensor:
    frames = resize(item.frames, asked.height, asked.width, item.resize)
    return pad_to(frames, PixelShape(len(frames), grid.height, grid.width))


def crop_to(frames: Tensor, asked: PixelShape) -> Tensor:
    """The clip (f h w c) cut out of its grid: the middle of the first `asked.frames` frames."""
    top, left = (frames.shape[1] - asked.height) // 2, (frames.shape[2] - asked.width) // 2
    return frames[: asked.frames, top : top + asked.height, left : left + asked.width]


def crop_chunks(chunks: Iterable[Tensor], asked: PixelShape) -> Iterator[Tensor]:
    """`crop_to` for a clip in pieces (f h w c)."""
    left = asked.frames
    for chunk in chunks:
        frames = crop_to(chunk, asked)[:left]
        left -= len(frames)
        if len(frames):
            yield frames


def pad_to(frames: Tensor, grid: PixelShape) -> Tensor:
    """The clip (f h w c) in the middle of its grid, its edges and its last frame continued; `crop_to` undoes it."""
    f, h, w, _ = frames.shape
    top, left = (grid.height - h) // 2, (grid.width - w) // 2
    border = (left, grid.width - w - left, top, grid.height - h - top)
    padded = F.pad(frames.movedim(-1, 1), border, mode="replicate").movedim(1, -1)
    return padded[torch.arange(grid.frames).clamp(max=f - 1)] if grid.frames > f else padded
