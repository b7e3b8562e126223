"""Clips of any length, in windows that overlap.

Each window after the first begins with the last frames of the one before it, decoded and encoded again as a clip at
frame 0 (the way in which the official pipeline extends a video), and is sampled with its own prompt, seed and
conditions. What is in memory at once does not grow with the length. Finished windows can be kept in a folder, under
names that hash all that they depend on, so that a run that was interrupted goes on, and a changed prompt redoes its
own window and later ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..progress import Notes, Progress, log_note, silent
from ..sampling.filters import adain
from ..sampling.noise import SeededNoise
from ..shapes import PixelShape
from ..weights.containers import open_checkpoint
from ..weights.save import write_safetensors
from .condition import Condition, Reference
from .generate import EncodedPrompt, sample
from .two_stage import PassSettings

if TYPE_CHECKING:
    from ..memory.placement import Placement
    from ..models.video_vae import VideoVAE

CONTEXT = 2  # latent frames decoded before the overlap and thrown away: a decoder's first frames lack their past

FINGERPRINT_VALUES = 64  # of each tensor

Decode = Callable[[Tensor], Tensor]
"""(1 c f h w) normalised latent -> frames (8f - 7, h, w, 3) float in [0, 1]; the same ones at every call."""


@dataclass(frozen=True)
class Window:
    """Latent frames start to start + length - 1 of the whole clip, of which the first `overlap` are those before it."""

    index: int
    start: int
    length: int
    overlap: int


@dataclass(frozen=True)
class LongSettings:
    """How a long clip is put together.

    window_frames, overlap_frames: frames of a window, and of the end of each that begins the next; t*k + 1 each.
    strength: of the overlap as a condition.
    adain_factor: how far the channel statistics of every window go to those of the first, against drift.
    folder: where finished windows are kept; None: nowhere.
    fingerprint: names the models, for example a hash of their headers; part of the name of every kept window.
    """

    window_frames: int
    overlap_frames: int
    strength: float = 1.0
    adain_factor: float = 0.0
    folder: Path | None = None
    fingerprint: str = ""


def plan_windows(frames: int, settings: LongSettings, frames_per_latent: int) -> tuple[Window, ...]:
    """The windows of a clip of that many frames (t*k + 1).

    Raises:
        ConfigError: a length that the VAE cannot have, or an overlap as long as a window.
    """
    t = frames_per_latent
    for name, value in (("window", settings.window_frames), ("overlap", settings.overlap_frames)):
        if value < 1 or value % t != 1 % t:
            near = max(round((value - 1) / t), 0) * t + 1
            raise ConfigError(f"got {name}s of {value} frames; expected {t}k+1; use {near}")
    length, overlap = ((value - 1) // t + 1 for value in (settings.window_frames, settings.overlap_frames))
    total = (frames - 1) // t + 1
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
    """A name for models: a hash of the names, shapes and first values of their tensors, which reads little of a file.

    Two files with equal headers, such as a model and one that was trained further from it, have two names.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
            start = tensor.detach().flatten()[:FINGERPRINT_VALUES].cpu().contiguous()
            digest.update(start.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sample_windows(
    entry: PassSettings,
    vae: VideoVAE,
    prompts: Sequence[EncodedPrompt],
    negative: EncodedPrompt | None = None,
    *,
    size: PixelShape,
    settings: LongSettings,
    seed: int,
    fps: float,
    decode: Decode,
    placement: Placement,
    conditions: Sequence[Condition] = (),
    progress: Progress = silent,
    notes: Notes = log_note,
) -> Iterator[Tensor]:
    """Latent frames of a long clip, window by window, (1 c n h w) float32 on the CPU, normalised; concatenated along
    frames they are the latent of the whole.

    prompts: one for all windows, or one each. size: of the whole clip, as the VAE can have it.
    seed: of the first window; the window number i has `seed + i`, counted from 0.
    conditions: their frames count in the whole clip; each goes to the first window that shows its start, and of a
        reference every window gets its part.

    Raises:
        ConfigError: as `plan_windows`; another number of prompts; a condition outside the clip.
    """
    t = vae.config.scale_factors.frames
    windows = plan_windows(size.frames, settings, t)
    check_prompts(len(prompts), windows, settings)
    conditions = [one.at_rate(fps, notes) if isinstance(one, Reference) else one for one in conditions]
    shares = _share_out(conditions, windows, size.frames, t)

    grid = size.latent(vae.config.scale_factors)
    first: Tensor | None = None
    before: Tensor | None = None
    key, kept = "", 0
    for window, share in zip(windows, shares, strict=True):
        prompt = prompts[window.index if len(prompts) > 1 else 0]
        key = _key(key, window, prompt, negative, share, size, fps, seed, entry, settings)
        path = (
            None if settings.folder is None else settings.folder / f"window-{window.index:03d}-{key[:16]}.safetensors"
        )
        latent = None if path is None else _kept(path)
        if latent is None:
            if kept == window.index > 0:
                notes(f"Windows 1 to {kept} of {len(windows)} were kept from an earlier run and are not made again.")
            overlap = [] if before is None else [_overlap(before, window, settings, decode, t)]
            latent = sample(
                entry.transformer,
                torch.zeros(1, vae.config.latent_channels, window.length, grid.height, grid.width),
                prompt,
                negative,
                sigmas=entry.sigmas,
                guidance=entry.guidance,
                settings=entry.sampler,
                loras=entry.loras,
                conditions=[*overlap, *share],
                vae=vae,
                noise=SeededNoise(seed + window.index),
                fps=fps,
                scale=vae.config.scale_factors,
                placement=placement,
                progress=progress,
                stage=f"window {window.index + 1} of {len(windows)}",
                notes=notes,
            )
            if first is not None and settings.adain_factor:
                latent = adain(latent, first, settings.adain_factor)
            if path is not None:
                write_safetensors(path, {"latent": latent}, {})
        else:
            kept += 1
        if first is None:
            first = latent
        before = latent
        yield latent[:, :, window.overlap :]


def seam_frames(windows: Sequence[Window], frames_per_latent: int) -> tuple[int, ...]:
    """The first frame of the whole clip that each window after the first adds."""
    return tuple((window.start + window.overlap - 1) * frames_per_latent + 1 for window in windows[1:])


def _overlap(before: Tensor, window: Window, settings: LongSettings, decode: Decode, t: int) -> Condition:
    """The end of the window before, as a clip at frame 0."""
    frames = decode(before[:, :, -(window.overlap + CONTEXT) :])
    return Condition(frames[-((window.overlap - 1) * t + 1) :], 0, settings.strength, "stretch")


def _share_out(
    conditions: Sequence[Condition], windows: Sequence[Window], frames: int, t: int
) -> list[list[Condition]]:
    """The conditions of each window, their frames counted in it."""
    shares: list[list[Condition]] = [[] for _ in windows]
    for condition in conditions:
        if isinstance(condition, Reference):
            for window in windows:
                part = condition.frames[window.start * t : (window.start + window.length - 1) * t + 1]
                if len(part):
                    shares[window.index].append(replace(condition, frames=part))
            continue
        frame = condition.frame + frames if condition.frame < 0 else condition.frame
        if not 0 <= frame < frames:
            raise ConfigError(
                f"got a condition at frame {condition.frame}; expected {-frames} to {frames - 1} for a clip of "
                f"{frames} frames; move the condition or make the clip longer"
            )
        window = next(w for w in windows if frame <= (w.start + w.length - 1) * t)
        shares[window.index].append(replace(condition, frame=frame - window.start * t))
    return shares


def _key(
    before: str,
    window: Window,
    prompt: EncodedPrompt,
    negative: EncodedPrompt | None,
    conditions: Sequence[Condition],
    size: PixelShape,
    fps: float,
    seed: int,
    entry: PassSettings,
    settings: LongSettings,
) -> str:
    """What a window depends on, the windows before it included."""
    values = (window, size.height, size.width, fps, seed, entry.guidance, entry.sampler)
    mix = settings.strength, settings.adain_factor, settings.fingerprint
    digest = hashlib.sha256(repr((before, values, mix)).encode())
    tensors = [entry.sigmas, prompt.embeddings, prompt.mask]
    if negative is not None:
        tensors += [negative.embeddings, negative.mask]
    for condition in conditions:
        kind = type(condition).__name__, condition.frame, condition.strength, condition.resize, condition.crf
        digest.update(repr(kind).encode())
        tensors.append(condition.frames)
    for tensor in tensors:
        if tensor is not None:
            digest.update(repr(tensor.shape).encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _kept(path: Path) -> Tensor | None:
    """A window of an earlier run, or None if there is none that can be read."""
    try:
        return open_checkpoint(path).tensor("latent").clone() if path.is_file() else None
    except CheckpointError:
        return None
