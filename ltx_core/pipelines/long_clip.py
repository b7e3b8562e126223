"""A clip of any length from the library's models: what a user asks for, as the windows of `long_video`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..host import Host
from ..shapes import PixelShape, ScaleFactors
from ..values import check_crf, check_kind
from .condition import ConditioningItem
from .decode import decode_frames
from .long_video import LongSettings, Window, check_prompts, fingerprint, plan_windows, sample_windows
from .passes import Pass
from .sample import EncodedPrompt
from .settings import NO_OVERRIDES, Decoding, Overrides

if TYPE_CHECKING:
    from ..models.video_vae import VideoVAE

OVERLAP = 25  # frames: three latent frames after the first, enough to carry a motion on
ADAIN = 0.2  # against the drift of colours; the default of the node Long Video


@dataclass(frozen=True, kw_only=True)
class LongRequest:
    """A long clip. Windows have the prompts in turn, or all of them the only one.

    asked: the size of the result, any. window, overlap: frames of a window, and of its end that the next one repeats;
    t*k + 1 each; overlap: None: as `overlap_of`. conditions: with frame numbers of the whole clip. crf, settings,
    force: as `Components.generate`. adain: how far the colours of every window move to those of the first.
    keep: a folder where finished windows are kept, from which an interrupted run resumes; None: nowhere.
    """

    asked: PixelShape
    fps: Fraction
    seed: int
    window: int
    overlap: int | None = None
    conditions: Sequence[ConditioningItem] = ()
    crf: int = 29
    negative_prompt: str | None = None
    settings: Overrides = NO_OVERRIDES
    adain: float = ADAIN
    keep: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_crf(self.crf)
        for item in self.conditions:
            check_kind("conditions", item, ConditioningItem)

    def overlap_of(self, scale: ScaleFactors) -> int:
        """Frames that a window repeats: those that are asked for, or the usual number, at most half of a window."""
        half = self.window // 2 // scale.frames * scale.frames + 1
        return min(OVERLAP, half) if self.overlap is None else self.overlap

    def long_settings(self, scale: ScaleFactors, identity: str = "") -> LongSettings:
        """As the windows take it. identity: of the models, for windows that are kept. Raises ConfigError."""
        return LongSettings(
            self.asked.padded(scale),
            float(self.fps),
            self.seed,
            self.window,
            self.overlap_of(scale),
            adain_factor=self.adain,
            folder=self.keep,
            fingerprint=identity,
        )

    def windows(self, prompts: int, scale: ScaleFactors) -> tuple[Window, ...]:
        """The windows for this number of prompts. Raises ConfigError: lengths that cannot be, or too many prompts."""
        settings = self.long_settings(scale)
        windows = plan_windows(settings, scale.frames)
        check_prompts(prompts, windows, settings)
        return windows

    def window_size(self, scale: ScaleFactors) -> PixelShape:
        """The size in which the windows are made."""
        size = self.asked.padded(scale)
        return PixelShape(min(self.window, size.frames), size.height, size.width)


def long_latent(
    request: LongRequest,
    run_pass: Pass,
    vae: VideoVAE,
    prompts: tuple[Sequence[EncodedPrompt], EncodedPrompt | None],
    decoding: Decoding,
    *,
    host: Host,
) -> Tensor:
    """The latent (1 c f h w) of the whole clip, float32 on the CPU. prompts: of the windows, and the negative one.

    Raises:
        As `sample_windows`.
    """
    scale = vae.config.scale_factors
    names = [(item.lora.path.name, item.strength) for item in run_pass.loras]
    identity = "" if request.keep is None else repr((fingerprint(run_pass.transformer, vae), names, decoding))
    settings = request.long_settings(scale, identity)
    positive, negative = prompts

    def decode(latent: Tensor) -> Tensor:
        return torch.cat(list(_decoded(latent)))

    def _decoded(latent: Tensor) -> Iterator[Tensor]:
        return decode_frames(vae, latent, decoding, seed=request.seed, host=host)

    items = [
        item.prepared(request.crf).on_canvas(request.asked, settings.size, host.say) for item in request.conditions
    ]
    parts = sample_windows(run_pass, vae, positive, negative, settings, decode=decode, host=host, items=items)
    return torch.cat(list(parts), dim=2)


def check_one_pass(two: bool) -> None:
    """Raises UnsupportedError: windows with an upscaler."""
    if two:
        raise UnsupportedError(
            "got a long clip with an upscaler; expected one pass, in which windows are made; leave the upscaler out"
        )
