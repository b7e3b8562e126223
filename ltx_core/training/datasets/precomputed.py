"""Latents and embeddings that LTX-Video-Trainer has computed: .precomputed/latents and .precomputed/conditions.

Source: LTX-Video-Trainer, scripts/process_videos.py, process_captions.py and ltxv_trainer/datasets.py. A file of
latents has the normalised tokens (f*h*w, c) of one clip with num_frames, height and width in latent cells and fps; one
of conditions has prompt_embeds (l, d) and prompt_attention_mask (l,). Earlier versions name them latent_X.pt and
condition_X.pt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ...errors import ConfigError
from ...shapes import PixelShape, ScaleFactors
from ...values import is_number, is_whole
from ..checkpoints import UNREADABLE, load_plain

FOLDER = ".precomputed"
REFERENCES = ("reference_latents", "ref_latents")


@dataclass(frozen=True)
class LatentFormat:
    """What latents of a VAE look like."""

    channels: int
    scale: ScaleFactors


@dataclass(frozen=True)
class Stored:
    """The files of one clip. conditions: its embedding; None: it has none. name: below the folder, without suffix."""

    latents: Path
    conditions: Path | None
    reference: Path | None
    name: Path


@dataclass(frozen=True, eq=False)
class StoredLatents:
    """latents: (c, f, h, w) float32, normalised. fps: frames per second that they stand for; None: not said."""

    latents: Tensor
    fps: float | None


def precomputed_root(folder: Path) -> Path | None:
    """The folder that has `latents` and `conditions`: this one or the one below, as the trainer itself looks for it."""
    for root in (folder / FOLDER, folder):
        if (root / "latents").is_dir() and next((root / "latents").rglob("*.pt"), None) is not None:
            return root
    return None


def stored_clips(root: Path) -> list[Stored]:
    """All clips of a precomputed folder, in order."""
    place, found = root / "latents", list[Stored]()
    references = next((root / name for name in REFERENCES if (root / name).is_dir()), None)
    for latents in sorted(place.rglob("*.pt")):
        below = latents.relative_to(place)
        named = below.name
        if named.startswith("latent_"):
            named = f"condition_{named.removeprefix('latent_')}"
        conditions = root / "conditions" / below.with_name(named)
        if not conditions.is_file():
            conditions = root / "conditions" / below
        reference = None if references is None else references / below
        found.append(Stored(latents, conditions if conditions.is_file() else None, reference, below.with_suffix("")))
    return found


def read_latents(file: Path) -> StoredLatents:
    """The latents of one clip.

    Raises:
        ConfigError: the file is damaged, has other content, or has pickled objects, which are not loaded.
    """
    content = _load(file)
    latents = _plain(content.get("latents"), file)
    if not isinstance(latents, Tensor) or latents.ndim not in (2, 4):
        raise ConfigError(
            f"got {file} with {', '.join(map(str, content)) or 'nothing'}; expected latents, num_frames, height and "
            "width, as LTX-Video-Trainer writes them; compute it again"
        )
    if latents.ndim == 2:
        frames, height, width = (_whole(_plain(content.get(name), file)) for name in ("num_frames", "height", "width"))
        if min(frames, height, width) < 1 or frames * height * width != len(latents):
            raise ConfigError(
                f"got {file} with {len(latents)} tokens of {frames} x {height} x {width} cells; expected as many; "
                "compute it again"
            )
        latents = rearrange(latents, "(f h w) c -> c f h w", f=frames, h=height, w=width)
    if not latents.numel():
        raise ConfigError(f"got {file} with latents of no cells; expected those of a clip; compute it again")
    if not latents.is_floating_point() or not bool(latents.float().isfinite().all()):
        raise ConfigError(f"got {file} with latents that are not finite numbers; compute it again")
    fps = content.get("fps")
    return StoredLatents(latents.float(), float(fps) if is_number(fps) and fps > 0 else None)


def read_embedding(file: Path) -> Tensor:
    """The tokens (l, d) of a caption, without padding.

    Raises:
        ConfigError: as `read_latents`.
    """
    content = _load(file)
    tokens, mask = (_plain(content.get(f"prompt_{name}"), file) for name in ("embeds", "attention_mask"))
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not tokens.is_floating_point():
        raise ConfigError(
            f"got {file} with {', '.join(map(str, content)) or 'nothing'}; expected prompt_embeds and "
            "prompt_attention_mask, as LTX-Video-Trainer writes them; compute it again"
        )
    if isinstance(mask, Tensor):
        if mask.shape != tokens.shape[:1] or not bool(mask.bool().any()):
            raise ConfigError(f"got {file} with a mask of {tuple(mask.shape)}; expected one value for each token")
        tokens = tokens[mask.bool()]
    if not bool(tokens.float().isfinite().all()):
        raise ConfigError(f"got {file} with embeddings that are not finite numbers; compute it again")
    return tokens.clone()


def pixel_size(latents: Tensor, format: LatentFormat) -> PixelShape:
    """The clip that latents (c, f, h, w) are of.

    Raises:
        ConfigError: they have other channels than the VAE's.
    """
    channels, frames, height, width = latents.shape
    if channels != format.channels:
        raise ConfigError(
            f"got latents of {channels} channels; expected {format.channels}, as the VAE makes them; they are of "
            "another VAE: pass that one, or compute them again"
        )
    scale = format.scale
    return PixelShape((frames - 1) * scale.frames + 1, height * scale.height, width * scale.width)


def _load(file: Path) -> dict[Any, Any]:
    try:
        content = load_plain(file)
    except UNREADABLE as error:
        pickled = "weights" in str(error).lower() and "unsupported" in str(error).lower()
        reason = "it has pickled objects, which could run any program" if pickled else _first_line(error)
        raise ConfigError(f"got {file}, which is not loaded ({reason}); expected tensors; compute it again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"got {file} with {type(content).__name__}; expected a dict of tensors; compute it again")
    return content


def _plain(value: Any, file: Path) -> Any:
    """A value as it is; of a tensor, its bytes are in the file.

    Raises:
        ConfigError: a tensor of another kind (sparse, quantized, nested, without bytes), or one that repeats its bytes,
            which could be of any size.
    """
    if not isinstance(value, Tensor):
        return value
    strided = value.layout == torch.strided and not value.is_quantized and not value.is_nested
    if not strided or value.device.type != "cpu" or value.untyped_storage().nbytes() < value.numel() * value.itemsize:
        raise ConfigError(
            f"got {file} with a tensor that is not plain; expected as many values as its shape says; compute it again"
        )
    return value


def _whole(value: Any) -> int:
    """A count; collating makes tensors of them."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return int(value) if is_whole(value) else 0


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
