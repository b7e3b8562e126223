"""Whether latents that lie beside their clips are those of this VAE: nothing in a file of LTX-Video-Trainer says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ConfigError, LTXKitError
from ..media import CLIP_SUFFIXES, PICTURE_SUFFIXES, is_clip, read_image, resize, stream_video
from .data import Source
from .datasets.precomputed import FOLDER, read_latents
from .encoding import ClipEncoder
from .folder import VideoFolder
from .survey import Media

ALIKE = 0.5  # correlation; a draw from the posterior, bf16 and another decoder leave over 0.9, another VAE nearly none


def check_stored_latents(sources: Sequence[Source], encoder: ClipEncoder) -> None:
    """Encode one of the clips that lie beside stored latents, and compare.

    Raises:
        ConfigError: they are of another VAE, or of another clip.
    """
    stored = [m for source in sources if isinstance(source, VideoFolder) for m in source.media if m.stored is not None]
    for media in stored:
        clip = _clip_of(media)
        pixels = None if clip is None else _pixels(clip, media)
        if pixels is None:
            continue
        own = encoder.encode(pixels[None])[0]
        alike = float(torch.corrcoef(torch.stack([own.flatten(), read_latents(media.path).latents.flatten()]))[0, 1])
        if not alike >= ALIKE:
            raise ConfigError(
                f"got {media.path}, whose latents are not those of {clip} (correlation {alike:.2f}); expected those of "
                "the VAE that is trained with; pass that VAE, compute them again, or set data.precomputed=false"
            )
        return


def _clip_of(media: Media) -> Path | None:
    """The clip beside the folder of latents."""
    if media.stored is None:
        return None
    latents, name = media.stored.latents, media.stored.name
    root = latents.parents[len(name.parts)]
    stem = (root.parent if root.name == FOLDER else root) / name
    if not stem.parent.is_dir():
        return None
    known = CLIP_SUFFIXES | PICTURE_SUFFIXES
    alike = [path for path in sorted(stem.parent.iterdir()) if path.stem == stem.name and path.suffix.lower() in known]
    return alike[0] if len(alike) == 1 else None


def _pixels(clip: Path, media: Media) -> Tensor | None:
    """(3 f h w) in [-1, 1], as LTX-Video-Trainer shows it to the VAE: its first frames, resized and cropped. None: it
    is another clip."""
    size = media.size
    try:
        if is_clip(clip):
            listed = list(stream_video(clip, limit=size.frames, notes=lambda _: None))
            frames = torch.stack(listed)
        else:
            frames = read_image(clip, lambda _: None)
    except (LTXKitError, OSError):
        return None
    if len(frames) != size.frames:
        return None
    frames = resize(frames, size.height, size.width, "crop", kernel="bicubic")
    return rearrange(frames * 2 - 1, "f h w c -> c f h w")
