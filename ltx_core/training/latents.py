"""Clips as the transformer sees them: encoded once and cached, or encoded whenever they are needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..models.video_vae import VideoVAE
from ..progress import Notes
from ..shapes import PixelShape
from .checkpoints import saved_cache, write_cache
from .config import Data
from .data import Source, shuffled
from .encoded_cache import EncodedCache, content_key, filled, key_of
from .encoding import ClipEncoder
from .folder import VideoFolder
from .settings_file import to_tree

FORMAT = 2  # of the cache: entries of the source, in its own order


@dataclass(frozen=True, eq=False)
class EncodedClips:
    """latents: (b c f h w) float32, normalised, on the CPU. captions: one per clip. extras: what their conditions need,
    see `Extras`."""

    latents: Tensor
    captions: list[str]
    extras: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, indices: Sequence[int]) -> EncodedClips:
        rows = self.latents.index_select(0, torch.tensor(indices))
        extras = {name: each.index_select(0, torch.tensor(indices)) for name, each in self.extras.items()}
        return EncodedClips(rows, [self.captions[index] for index in indices], extras)


def joined(parts: Sequence[EncodedClips]) -> EncodedClips:
    """Clips of one size, one after the other."""
    extras = {name: torch.cat([part.extras[name] for part in parts]) for name in parts[0].extras}
    captions = [caption for part in parts for caption in part.captions]
    return EncodedClips(torch.cat([part.latents for part in parts]), captions, extras)


class Extras(Protocol):
    """What is encoded beside the clips: references, keyframes, masks (`conditions.ClipConditions`)."""

    def identity(self) -> list[str]:
        """What it depends on apart from the clips."""
        ...

    def encode(
        self,
        encode: Callable[[Tensor], Tensor],
        source: Source,
        entries: Sequence[int],
        size: PixelShape,
        pixels: Tensor,
    ) -> dict[str, Tensor]:
        """By name, on the CPU, one row for each of these samples.

        encode: clips (b 3 f h w) in [-1, 1] to normalised latents on the CPU. pixels: those of the samples.
        """
        ...

    def of_stored(self, source: Source, entry: int, size: PixelShape) -> dict[str, Tensor]:
        """The same of a sample that is stored as latents, one row."""
        ...


@dataclass(frozen=True)
class LatentCache:
    """Which samples are encoded once, and where they are kept.

    count: number of samples (all, if the source has fewer) in `folder`/latents_FxHxW.pt; 0: none, every sample is
    encoded when it is needed, as those are that the cache has no place for. Of a source that never repeats, the cached
    samples take the place of all. writes: whether this process writes the files. share_sizes: the sizes share `count`
    as they share the samples; otherwise each size gets all of it. shared: of all runs, from which files of a folder are
    taken.
    """

    folder: Path
    count: int
    writes: bool
    share_sizes: bool = True
    shared: EncodedCache | None = None


class Latents:
    """Latents of a source's samples, posterior means. data, seed: that the source was made with."""

    def __init__(
        self,
        source: Source,
        vae: VideoVAE,
        data: Data,
        seed: int,
        *,
        cache: LatentCache,
        notes: Notes,
        extras: Extras | None = None,
        encoder: ClipEncoder | None = None,
    ) -> None:
        """encoder: of the VAE; None: one on the device that the VAE is on."""
        self.source, self.vae, self.data, self.seed = source, vae, data, seed
        self.cache, self.notes, self.extras = cache, notes, extras
        self.encoder = encoder or ClipEncoder(vae, next(vae.parameters()).device)
        self._kept: dict[PixelShape, EncodedClips] = {}

    @cached_property
    def key(self) -> str:
        """A hash of everything that the cached latents depend on; reads every weight of the VAE."""
        parts = [FORMAT, to_tree(self.data), self.seed, self.cache.count, self.source.identity()]
        if self.extras is not None:
            parts.append(self.extras.identity())
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode() + self.vae_key.encode()).hexdigest()

    @cached_property
    def vae_key(self) -> str:
        """A hash of every weight of the VAE."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.vae.state_dict().items()):  # one by one: the decoder stays in its file
            digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def clips(self, indices: Sequence[int], size: PixelShape) -> EncodedClips:
        """The samples with these numbers."""
        entries = [self.source.entry(index, size) for index in indices]
        if not self.cache.count:
            return self._encode(entries, size)
        self.prepare(size)
        kept = self._kept[size]
        cached = len(kept.captions)
        if self.source.distinct(size) is None:
            # The first pass has their order; the source draws them at random.
            return kept.rows([i if i < cached else shuffled(range(cached), i, self.seed) for i in entries])
        if all(entry < cached for entry in entries):
            return kept.rows(entries)
        parts = [kept.rows([i]) if i < cached else self._encode([i], size) for i in entries]
        return joined(parts)

    def complete(self) -> bool:
        """Whether every sample of every size is cached, so that the VAE is needed no more."""
        if not self.cache.count:
            return False
        return all(len(kept.captions) >= (self.source.distinct(size) or 0) for size, kept in self._kept.items())

    def prepare(self, size: PixelShape) -> None:
        """Fill the cache for a size: from its file, or by encoding."""
        if self.cache.count and size not in self._kept:
            self._kept[size] = self._read(size) or self._make(size)

    @torch.no_grad()
    def _encode(self, entries: Sequence[int], size: PixelShape) -> EncodedClips:
        stored = self._stored(entries, size)
        if stored is not None:
            return stored
        whole = self.encoder.needs(size, len(entries)).tiling is None
        samples = self.source.entries(entries, size, self.encoder.device if whole else torch.device("cpu"))
        pixels, extras = samples.pixels, {}
        if self.extras is not None:
            extras = self.extras.encode(self.encoder.encode, self.source, entries, size, pixels)
        return EncodedClips(self.encoder.encode(pixels), samples.captions, extras)

    def _stored(self, entries: Sequence[int], size: PixelShape) -> EncodedClips | None:
        """Entries of which some are stored as latents; None: all are pixels."""
        if not isinstance(self.source, VideoFolder):
            return None
        found = [self.source.stored(entry, size) for entry in entries]
        if all(latents is None for latents in found):
            return None
        parts: list[EncodedClips] = []
        for entry, latents in zip(entries, found, strict=True):
            if latents is None:
                parts.append(self._encode([entry], size))
                continue
            extras = {} if self.extras is None else self.extras.of_stored(self.source, entry, size)
            parts.append(EncodedClips(latents[None], [self.source.caption(entry, size)], extras))
        return joined(parts)

    def _file(self, size: PixelShape) -> Path:
        return self.cache.folder / f"latents_{size.frames}x{size.height}x{size.width}.pt"

    def _read(self, size: PixelShape) -> EncodedClips | None:
        saved = saved_cache(self._file(size), ("key", "latents", "captions"), self.notes)
        if saved is None or saved["key"] != self.key:
            return None
        return EncodedClips(saved["latents"], saved["captions"], saved.get("extras", {}))

    def _make(self, size: PixelShape) -> EncodedClips:
        distinct, count = self.source.distinct(size), self.cache.count
        if self.cache.share_sizes:
            count = max(8, round(count * self._share(size)))
        count = min(count, distinct or count)
        if distinct is not None and count < distinct and self.cache.share_sizes:
            self.notes(
                f"the cache has {count} of {distinct} clips of this size (cache_clips={self.cache.count}); the other "
                f"{distinct - count} are trained on too, and encoded whenever they are needed"
            )
        encoded = self._all(count, self.encoder.needs(size, count).at_once, size)
        if self.cache.writes:
            saved = {"key": self.key, "latents": encoded.latents, "captions": encoded.captions}
            write_cache(self._file(size), saved | ({"extras": encoded.extras} if encoded.extras else {}))
        return encoded

    def _all(self, count: int, at_once: int, size: PixelShape) -> EncodedClips:
        """The first `count` entries; what another run has encoded of them is read."""
        of = f"of {size.frames} frames of {size.width}x{size.height}"
        keys = self._shared_keys(count, size)
        if keys is None or not isinstance(self.source, VideoFolder):
            self.notes(f"encoding {count} clips {of}")
            return joined([self._encode(range(i, min(i + at_once, count)), size) for i in range(0, count, at_once)])

        def make(numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
            earlier = count - len(numbers)
            self.notes(f"encoding {len(numbers)} clips {of}" + (f"; {earlier} are known" if earlier else ""))
            for start in range(0, len(numbers), at_once):
                chosen = numbers[start : start + at_once]
                yield from zip(chosen, self._encode(chosen, size).latents, strict=True)

        captions = [self.source.caption(number, size) for number in range(count)]
        return EncodedClips(torch.stack(filled(self.cache.shared, keys, "its clips", make)), captions)

    def _shared_keys(self, count: int, size: PixelShape) -> list[str] | None:
        """What the first entries are made from: content, place, size and rate of each clip, and the VAE. None: they are
        not shared, since they are drawn, or stored as latents."""
        source = self.source
        if self.cache.shared is None or self.extras is not None or not isinstance(source, VideoFolder):
            return None
        windows = source.groups[size][:count]
        if any(media.stored is not None for media, _ in windows):
            return None
        return [
            key_of("latents", self.vae_key, content_key(media.path), start, list(size), str(source.fps))
            for media, start in windows
        ]

    def _share(self, size: PixelShape) -> float:
        """Of the samples, those of one size."""
        counts = {each: self.source.distinct(each) for each in self.source.sizes()}
        known = [count for count in counts.values() if count is not None]
        if known and counts.get(size):
            return (counts[size] or 0) / sum(known)
        sizes = [self.source.size(batch) for batch in range(1000)]
        return sizes.count(size) / len(sizes)
