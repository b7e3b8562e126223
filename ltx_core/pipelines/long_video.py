"""Clips of any length, in windows that overlap.

Each window after the first begins with the last frames of the one before it, decoded and encoded again as a clip at
frame 0 (as the official pipeline extends a video), and is sampled with its own prompt, seed and conditions. Memory does
not grow with the length of the clip. Finished windows can be kept in a folder, under names that hash everything they
depend on: an interrupted run resumes, and a changed prompt repeats only its own window and later ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..host import Host
from ..sampling.filters import adain
from ..sampling.noise import SeededNoise
from ..shapes import PixelShape
from ..values import check_frame_rate, check_number, check_seed, check_whole
from ..weights.containers import open_checkpoint
from ..weights.save import write_safetensors
from .condition import Condition, ConditioningItem, Conditions, Reference
from .passes import Pass
from .sample import EncodedPrompt, LatentClip, Prompts, sample

if TYPE_CHECKING:
    from ..models.video_vae import VideoVAE

CONTEXT = 2  # latent frames decoded before the overlap and discarded: a decoder's first frames lack their past

FINGERPRINT_VALUES = 64  # of each tensor

Decode = Callable[[Tensor], Tensor]
"""(1 c f h w) normalised latent -> frames (8f - 7, h, w, 3) float in [0, 1]; equal at every call."""


@dataclass(frozen=True)
class Window:
    """Latent frames start to start + length - 1 of the whole clip; the first `overlap` repeat the window before."""

    index: int
    start: int
    length: int
    overlap: int


@dataclass(frozen=True)
class LongSettings:
    """A long clip, and how it is composed of windows.

    size: of the whole clip, one that the VAE can have. fps: frames per second. seed: of the first window; it grows by 1
    from window to window.
    window_frames, overlap_frames: frames of a window, and of the end of each that begins the next; t*k + 1 each.
    strength: of the overlap as a condition.
    adain_factor: how far the channel statistics of every window move to those of the first, against drift.
    folder: where finished windows are kept; None: nowhere.
    fingerprint: identifies the models, see `fingerprint`; part of the name of every kept window.

    Raises:
        ConfigError: a value outside its range.
    """

    size: PixelShape
    fps: float
    seed: int
    window_frames: int
    overlap_frames: int
    strength: float = 1.0
    adain_factor: float = 0.0
    folder: Path | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_frame_rate("fps", self.fps)
        check_seed(self.seed)
        for name, frames in (("window_frames", self.window_frames), ("overlap_frames", self.overlap_frames)):
            check_whole(name, frames, 1, advice="pass a number of frames such as 121, less for the overlap")
        check_number("strength", self.strength, 0, 1, advice="1 keeps the overlap unchanged")
        check_number("adain", self.adain_factor, 0, 1, advice="0 turns it off")


def plan_windows(settings: LongSettings, frames_per_latent: int) -> tuple[Window, ...]:
    """The windows of a long clip.

    Raises:
        ConfigError: a length that the VAE cannot have, or an overlap as long as a window.
    """
    t = frames_per_latent
    for name, value in (("window", settings.window_frames), ("overlap", settings.overlap_frames)):
        if value < 1 or value % t != 1 % t:
            near = max(round((value - 1) / t), 0) * t + 1
            raise ConfigError(f"got {name}s of {value} frames; expected {t}k+1; use {near}")
    length, overlap = ((value - 1) // t + 1 for value in (settings.window_frames, settings.overlap_frames))
    total = (settings.size.frames - 1) // t + 1
    if overlap >= length and total > length:
        raise ConfigError(
            f"got an overlap of {settings.overlap_frames} frames in windows of {settings.window_frames}; expected less "
            "than a window; shorten the overlap or lengthen the windows"
        )
    windows = [Window(0, 0, min(length, total), 0)]
    while (end := windows[-1].start + windows[-1].length) < total:
        start = end - overlap
        windows.append(Window(len(windows), start, min(length, total - start), overlap))
    return tuple(windows)


def check_prompts(count: int, windows: Sequence[Window], settings: LongSettings) -> None:
    """Raises ConfigError unless there is one prompt for all windows, or one for each."""
    if count not in (1, len(windows)):
        raise ConfigError(
            f"got {count} prompts for {len(windows)} windows of {settings.window_frames} frames; expected 1 or "
            f"{len(windows)}; change the prompts or the length"
        )


def fingerprint(*modules: nn.Module) -> str:
    """Identifies models by a hash of the names, shapes and first values of their tensors, which reads little of a file.

    It tells apart files with equal headers, such as a model and a further trained one.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
            start = tensor.detach().flatten()[:FINGERPRINT_VALUES].cpu().contiguous()
            digest.update(start.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sample_windows(
    run_pass: Pass,
    vae: VideoVAE,
    prompts: Sequence[EncodedPrompt],
    negative: EncodedPrompt | None,
    settings: LongSettings,
    *,
    decode: Decode,
    host: Host,
    items: Sequence[ConditioningItem] = (),
) -> Iterator[Tensor]:
    """Latent frames of a long clip, window by window, (1 c n h w) float32 on the CPU, normalised; concatenated along
    frames they are the latent of the whole clip.

    prompts: one for all windows, or one each.
    items: with frame numbers of the whole clip; a condition belongs to the first window that shows its start, and every
        window has its part of a reference.

    Raises:
        ConfigError: as `plan_windows`; another number of prompts; a condition outside the clip.
    """
    scale = vae.config.scale_factors
    windows = plan_windows(settings, scale.frames)
    check_prompts(len(prompts), windows, settings)
    shares = _share_out(_at_rate(items, settings.fps, host), windows, settings.size.frames, scale.frames)

    store = _KeptWindows(settings, run_pass, negative)
    first: Tensor | None = None
    before: Tensor | None = None
    for window, share in zip(windows, shares, strict=True):
        prompt = prompts[window.index if len(prompts) > 1 else 0]
        latent = store.find(window, prompt, share)
        if latent is None:
            if store.reused == window.index > 0:
                host.say(f"Windows 1 to {store.reused} of {len(windows)} are reused from an earlier run.")
            overlap = [] if before is None else [_overlap(before, window, settings, decode, scale.frames)]
            latent = sample(
                run_pass.named(f"window {window.index + 1} of {len(windows)}"),
                LatentClip.empty(vae, _window_size(window, settings.size, scale.frames), settings.fps),
                Prompts(prompt, negative),
                noise=SeededNoise(settings.seed + window.index),
                host=host,
                conditions=Conditions([*overlap, *share], vae),
            )
            if first is not None and settings.adain_factor:
                latent = adain(latent, first, settings.adain_factor)
            store.keep(latent)
        if first is None:
            first = latent
        before = latent
        yield latent[:, :, window.overlap :]


def seam_frames(windows: Sequence[Window], frames_per_latent: int) -> tuple[int, ...]:
    """The first new frame of every window but the first, counted in the whole clip."""
    return tuple((window.start + window.overlap - 1) * frames_per_latent + 1 for window in windows[1:])


def _overlap(before: Tensor, window: Window, settings: LongSettings, decode: Decode, t: int) -> Condition:
    """The end of the previous window, as a clip at frame 0."""
    frames = decode(before[:, :, -(window.overlap + CONTEXT) :])
    return Condition(frames[-((window.overlap - 1) * t + 1) :], 0, settings.strength, "stretch")


def _window_size(window: Window, size: PixelShape, t: int) -> PixelShape:
    return PixelShape((window.length - 1) * t + 1, size.height, size.width)


def _at_rate(items: Sequence[ConditioningItem], fps: float, host: Host) -> list[ConditioningItem]:
    """References at the rate of the clip, before they are cut into windows."""
    return [item.at_rate(fps, host.say) if isinstance(item, Reference) else item for item in items]


def _share_out(
    items: Sequence[ConditioningItem], windows: Sequence[Window], frames: int, t: int
) -> list[list[ConditioningItem]]:
    """The items of each window, with frame numbers of the window."""
    shares: list[list[ConditioningItem]] = [[] for _ in windows]
    for item in items:
        for window, share in zip(windows, shares, strict=True):
            part = item.share(window.start * t, (window.start + window.length - 1) * t, frames)
            if part is not None:
                share.append(part)
                if item.in_one_window:
                    break
    return shares


class _KeptWindows:
    """Windows of earlier runs, by a hash of everything they depend on, which includes the windows before them."""

    def __init__(self, settings: LongSettings, run_pass: Pass, negative: EncodedPrompt | None) -> None:
        self.reused = 0  # number of windows from an earlier run
        self._settings, self._pass, self._negative = settings, run_pass, negative
        self._key = ""
        self._path: Path | None = None

    def find(self, window: Window, prompt: EncodedPrompt, items: Sequence[ConditioningItem]) -> Tensor | None:
        """The window's latent, if an earlier run made it from the same inputs."""
        self._key = self._next_key(window, prompt, items)
        folder = self._settings.folder
        self._path = None if folder is None else folder / f"window-{window.index:03d}-{self._key[:16]}.safetensors"
        if self._path is None or not self._path.is_file():
            return None
        try:
            latent = open_checkpoint(self._path).tensor("latent").clone()
        except CheckpointError:  # an unreadable window is made again
            return None
        self.reused += 1
        return latent

    def keep(self, latent: Tensor) -> None:
        """Keep the latent of the window that `find` was last called for."""
        if self._path is not None:
            write_safetensors(self._path, {"latent": latent}, {})

    def _next_key(self, window: Window, prompt: EncodedPrompt, items: Sequence[ConditioningItem]) -> str:
        settings, run_pass = self._settings, self._pass
        size = settings.size
        values = (window, size.height, size.width, settings.fps, settings.seed, run_pass.guidance, run_pass.sampler)
        if run_pass.step_cache:
            values = *values, run_pass.step_cache
        mix = settings.strength, settings.adain_factor, settings.fingerprint
        digest = hashlib.sha256(repr((self._key, values, mix)).encode())
        tensors = [run_pass.sigmas, prompt.embeddings, prompt.mask]
        if self._negative is not None:
            tensors += [self._negative.embeddings, self._negative.mask]
        for item in items:
            digest.update(repr(item.describe()).encode())
            tensors.append(item.frames)
        for tensor in tensors:
            if tensor is not None:
                digest.update(repr(tensor.shape).encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
