"""Clips as the transformer sees them: encoded once and cached, or encoded whenever they are needed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..files import whole
from ..models.video_vae import VideoVAE
from ..progress import Notes
from ..shapes import PixelShape
from .config import Data
from .data import Source
from .models import tensors_of
from .settings_file import to_tree

ENCODED_PIXELS = 2**24  # per batch of the encoder


@dataclass(frozen=True, eq=False)
class EncodedClips:
    """latents: (b c f h w) float32, normalised, on the CPU. captions: one per clip."""

    latents: Tensor
    captions: list[str]

    def rows(self, indices: Sequence[int]) -> EncodedClips:
        rows = self.latents.index_select(0, torch.tensor(indices))
        return EncodedClips(rows, [self.captions[index] for index in indices])


@dataclass(frozen=True)
class LatentCache:
    """Which samples are encoded once, and where they are kept.

    count: number of samples (all, if the source has fewer) in `folder`/latents_FxHxW.pt; 0: none, every sample is
    encoded when it is needed. writes: whether this process writes the files. share_sizes: the sizes share `count` as
    they share the batches; otherwise each size gets all of it.
    """

    folder: Path
    count: int
    writes: bool
    share_sizes: bool = True


class Latents:
    """Latents of a source's samples, posterior means. data, seed: that the source was made with."""

    def __init__(
        self, source: Source, vae: VideoVAE, data: Data, seed: int, *, cache: LatentCache, notes: Notes
    ) -> None:
        self.source, self.vae, self.data, self.seed = source, vae, data, seed
        self.cache, self.notes = cache, notes
        self._kept: dict[PixelShape, EncodedClips] = {}

    @cached_property
    def key(self) -> str:
        """A hash of everything that the cached latents depend on; reads every weight of the VAE."""
        text = json.dumps([to_tree(self.data), self.seed, self.cache.count, self.source.identity()], sort_keys=True)
        digest = hashlib.sha256(text.encode())
        for name, tensor in sorted(tensors_of(self.vae).items()):
            digest.update(name.encode() + tensor.float().numpy().tobytes())
        return digest.hexdigest()

    def clips(self, indices: Sequence[int], size: PixelShape) -> EncodedClips:
        """The samples with these numbers; with a cache, modulo its length."""
        if not self.cache.count:
            return self._encode(indices, size)
        self.prepare(size)
        kept = self._kept[size]
        return kept.rows([index % len(kept.captions) for index in indices])

    def prepare(self, size: PixelShape) -> None:
        """Fill the cache for a size: from its file, or by encoding."""
        if self.cache.count and size not in self._kept:
            self._kept[size] = self._read(size) or self._make(size)

    @torch.no_grad()
    def _encode(self, indices: Sequence[int], size: PixelShape) -> EncodedClips:
        samples = self.source.samples(indices, size, next(self.vae.parameters()).device)
        latents = self.vae.normalize(self.vae.encode(samples.pixels).mode().float()).cpu()
        return EncodedClips(latents, samples.captions)

    def _file(self, size: PixelShape) -> Path:
        return self.cache.folder / f"latents_{size.frames}x{size.height}x{size.width}.pt"

    def _read(self, size: PixelShape) -> EncodedClips | None:
        path = self._file(size)
        if not path.is_file():
            return None
        saved = torch.load(path, weights_only=True)
        return EncodedClips(saved["latents"], saved["captions"]) if saved["key"] == self.key else None

    def _make(self, size: PixelShape) -> EncodedClips:
        sizes = [self.source.size(batch) for batch in range(1000)] if self.cache.share_sizes else [size]
        count = max(8, round(self.cache.count * sizes.count(size) / len(sizes)))
        count = min(count, self.source.distinct(size) or count)
        self.notes(f"encoding {count} clips of {size.frames} frames of {size.width}x{size.height}")
        at_once = max(1, ENCODED_PIXELS // math.prod(size))
        parts = [self._encode(range(i, min(i + at_once, count)), size) for i in range(0, count, at_once)]
        encoded = EncodedClips(
            torch.cat([part.latents for part in parts]), [c for part in parts for c in part.captions]
        )
        if self.cache.writes:
            with whole(self._file(size)) as part:
                torch.save({"key": self.key, "latents": encoded.latents, "captions": encoded.captions}, part)
        return encoded
