"""Clips as the transformer sees them: encoded once and kept, or encoded whenever they are needed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..media import replacing
from ..models.video_vae import VideoVAE
from ..progress import Notes
from ..shapes import PixelShape
from .config import Data, to_tree
from .data import Source
from .models import tensors_of


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """latent: (c f h w) float32, normalised."""

    latent: Tensor
    caption: str


class Latents:
    """Latents of a source's samples, posterior means.

    count: as many samples are encoded once and used again and again, in file `folder`/latents_FxHxW.pt; 0: all are
    encoded when they are needed. share_sizes: a size keeps as large a share of them as it has of the batches; else all.
    """

    def __init__(
        self,
        source: Source,
        vae: VideoVAE,
        data: Data,
        seed: int,
        count: int,
        folder: Path,
        notes: Notes,
        *,
        writes: bool,
        share_sizes: bool = True,
    ) -> None:
        self.source, self.vae, self.count, self.folder = source, vae, count, folder
        self.notes, self.writes, self.share_sizes = notes, writes, share_sizes
        self.device = next(vae.parameters()).device
        self._kept: dict[PixelShape, list[EncodedClip]] = {}
        text = json.dumps([to_tree(data), seed, count], sort_keys=True)
        digest = hashlib.sha256(text.encode())
        for name, tensor in sorted(tensors_of(vae).items()):
            digest.update(name.encode() + tensor.float().numpy().tobytes())
        self.key = digest.hexdigest()

    def clips(self, indices: range, size: PixelShape) -> list[EncodedClip]:
        """The samples with these numbers; with a cache, numbers start again after `count`."""
        if not self.count:
            return self._encode(list(indices), size)
        if size not in self._kept:
            self._kept[size] = self._read(size) or self._make(size)
        kept = self._kept[size]
        return [kept[index % len(kept)] for index in indices]

    @torch.no_grad()
    def _encode(self, indices: list[int], size: PixelShape) -> list[EncodedClip]:
        samples = [self.source.sample(index, size) for index in indices]
        pixels = torch.stack([sample.pixels for sample in samples]).to(self.device)
        latents = self.vae.normalize(self.vae.encode(pixels).mode().float()).cpu()
        return [EncodedClip(latent, sample.caption) for latent, sample in zip(latents, samples, strict=True)]

    def _file(self, size: PixelShape) -> Path:
        return self.folder / f"latents_{size.frames}x{size.height}x{size.width}.pt"

    def _read(self, size: PixelShape) -> list[EncodedClip]:
        path = self._file(size)
        if not path.is_file():
            return []
        saved = torch.load(path, weights_only=True)
        if saved["key"] != self.key:
            return []
        return [
            EncodedClip(latent, caption) for latent, caption in zip(saved["latents"], saved["captions"], strict=True)
        ]

    def _make(self, size: PixelShape) -> list[EncodedClip]:
        sizes = [self.source.size(batch) for batch in range(1000)] if self.share_sizes else [size]
        count = max(8, round(self.count * sizes.count(size) / len(sizes)))
        self.notes(f"encoding {count} clips of {size.frames} frames of {size.width}x{size.height}")
        made: list[EncodedClip] = []
        for start in range(0, count, 8):
            made += self._encode(list(range(start, min(start + 8, count))), size)
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            saved = {
                "key": self.key,
                "latents": torch.stack([clip.latent for clip in made]),
                "captions": [clip.caption for clip in made],
            }
            with replacing(self._file(size)) as part:
                torch.save(saved, part)
        return made
