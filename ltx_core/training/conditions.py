"""What clips are conditioned on while a transformer is trained: references, keyframes, ends and masks.

Everything takes the form that it has in sampling, through the same functions (`sampling.conditioning`): a reference is
a second sequence at the coordinates of the clip, a frame that is shown alone becomes tokens at its time, and tokens
that are kept stand at level 0. The loss leaves all of them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ConfigError
from ..sampling.conditioning import PREFIX_FRAMES, LatentCondition, LatentReference, apply_conditions
from ..sampling.patchify import Coordinates, patchify
from ..sampling.state import LatentState
from ..shapes import LatentShape, PixelShape, ScaleFactors
from .captions import listed_companions
from .companions import MASKS, REFERENCES, WHITE, Companions, Window
from .condition_settings import ReferenceSettings
from .config import TransformerTraining
from .data import Source, file_identity
from .datasets.precomputed import read_latents
from .edges import check_edges, edges
from .flow import Draws
from .folder import VideoFolder
from .latents import EncodedClips
from .survey import Media, some


@dataclass(frozen=True, eq=False)
class Drawn:
    """The conditions of a batch.

    kept: (b, n) bool, tokens of the clips that stay clean. masked: (b,) bool, samples that keep what their masks leave
    black. reference, suffix: whether the batch has them. keyframes: numbers of the places that are shown.
    """

    kept: Tensor
    masked: Tensor
    reference: bool = False
    suffix: bool = False
    keyframes: tuple[int, ...] = ()

    def rows(self, rows: slice) -> Drawn:
        return Drawn(self.kept[rows], self.masked[rows], self.reference, self.suffix, self.keyframes)


class Tokens(NamedTuple):
    """What the objective takes: x0, noise (b n c), sigma (b n 1) or (b 1 1), positions (1 3 n), with the tokens of
    conditions in front."""

    x0: Tensor
    noise: Tensor
    sigma: Tensor
    positions: Tensor


def reference_folder(config: TransformerTraining) -> Path | None:
    """Where the references are that the data does not name; None: nowhere, or they are computed."""
    reference, data = config.reference, config.data.path
    if reference is None or reference.kind != "files":
        return None
    return reference.path or (data if data is not None and data.is_dir() else None)


def companion_paths(config: TransformerTraining) -> tuple[Path, ...]:
    """Folders and files that are no clips of their own, for they go with others."""
    paths: list[Path] = []
    for folder, kind in ((reference_folder(config), REFERENCES), (config.conditions.masks, MASKS)):
        if folder is not None and folder.is_dir():
            paths += [folder, *listed_companions(folder, kind.columns).values()]
    return tuple(paths)


def extra_tokens(config: TransformerTraining, size: PixelShape, scale: ScaleFactors) -> int:
    """Tokens of a sample beside those of its clip, at most."""
    grid, cells, settings = size.latent(scale), 0, config.conditions
    if config.reference is not None:
        cells += grid.frames
    if grid.frames > 1:
        cells += (2 if settings.suffix else 0) + (settings.most_keyframes if settings.keyframes else 0)
    return cells * grid.height * grid.width


class ClipConditions:
    """The conditions that a config asks for, over the clips of its sources.

    Raises:
        ConfigError: files do not suit the clips, see `Companions`; or a size cannot have a condition.
        UnsupportedError: OpenCV is missing for edges.
    """

    def __init__(self, config: TransformerTraining, sources: Sequence[Source], scale: ScaleFactors) -> None:
        self.reference, self.settings, self.scale = config.reference, config.conditions, scale
        self._companions: dict[str, Companions] = {}
        sizes = [PixelShape(*size) for size in config.data.sizes]
        if self.settings.suffix:
            self._check_suffix(sizes)
        self._stored = [m for source in _folders(sources) for m in source.media if m.stored is not None]
        if self._stored:
            self._check_stored(self._stored[0], sources)
        if self.reference is not None and self.reference.kind == "edges":
            check_edges()
        elif self.reference is not None:
            self._pair_references(config, self.reference, sources)
        masks = self.settings.masks
        if masks is not None or (self.settings.inpaint and _have_masks(sources)):
            windows = _windows(sources, MASKS.name, lambda media: media.mask if masks is None else None)
            self._companions["mask"] = Companions(masks, MASKS, windows, _roots(config), config.data.fps)

    def _pair_references(
        self, config: TransformerTraining, reference: ReferenceSettings, sources: Sequence[Source]
    ) -> None:
        """Find the files of references; those that are stored as latents have been found with their clips."""
        of_data = reference.path is None
        windows = _windows(sources, REFERENCES.name, lambda media: media.reference if of_data else None)
        folder = reference_folder(config)
        if folder is None and windows and not any(window.companion for window in windows):
            raise ConfigError(
                "got reference.kind files without reference.path, and data that names no references; expected a folder "
                "of them; set reference.path"
            )
        if windows or not self._stored:
            self._companions["reference"] = Companions(folder, REFERENCES, windows, _roots(config), config.data.fps)

    def _check_stored(self, first: Media, sources: Sequence[Source]) -> None:
        """Refuse what cannot be made where clips are stored as latents."""
        reference, settings = self.reference, self.settings
        masked = settings.masks is not None or (settings.inpaint and _have_masks(sources))
        wanted = {
            "reference.kind edges": reference is not None and reference.kind == "edges",
            "reference.path": reference is not None and reference.path is not None,
            "conditions.suffix": settings.suffix,
            "conditions.keyframes": settings.keyframes,
            "masks": masked,
        }
        if any(wanted.values()):
            raise ConfigError(
                f"got {first.path}, which is stored as latents, with "
                f"{', '.join(name for name, is_wanted in wanted.items() if is_wanted)}; expected clips, from whose "
                "pixels these are made; leave them out, or set data.precomputed=false"
            )
        lacking = [m.path for m in self._stored if m.stored is not None and m.stored.reference is None]
        if reference is not None and lacking:
            raise ConfigError(
                f"got {some([str(path) for path in lacking])}: latents without those of a reference; expected "
                "reference_latents beside latents, as LTX-Video-Trainer writes them; compute them, or set "
                "data.precomputed=false"
            )

    def _check_suffix(self, sizes: Sequence[PixelShape]) -> None:
        length, t = self.settings.suffix_frames, self.scale.frames
        for size in sizes:
            if (length - 1) % t or (size.frames > 1 and length >= size.frames):
                raise ConfigError(
                    f"got conditions.suffix_frames {length} for clips of {size.frames} frames; expected {t}k+1, fewer "
                    f"than the clip has; use {(min(length, size.frames - 1) - 1) // t * t + 1}"
                )

    # ------------------------------------------------------------------------------------------------------- latents

    def identity(self) -> list[str]:
        """What the latents of conditions depend on: cached ones with another identity are made again."""
        parts: list[str] = []
        reference, settings = self.reference, self.settings
        if reference is not None:
            parts.append(f"{reference.kind} {reference.low} {reference.high}")
        if settings.suffix:
            parts.append(f"suffix {settings.suffix_frames}")
        if settings.keyframes:
            parts.append(f"keyframes {settings.keyframe_places}")
        if reference is not None:
            found = (media.stored.reference for media in self._stored if media.stored is not None)
            parts += [f"latents {file_identity(path)}" for path in found if path is not None]
        return parts + [line for companions in self._companions.values() for line in companions.identity()]

    def encode(
        self,
        encode: Callable[[Tensor], Tensor],
        source: Source,
        entries: Sequence[int],
        size: PixelShape,
        pixels: Tensor,
    ) -> dict[str, Tensor]:
        """What the conditions of these samples need, on the CPU, one row each.

        reference: (b c f h w). suffix: (b c f h w), encoded without a past, as in sampling. keyframes: (b c k h w),
        each encoded alone. mask: (b 1 f h w), 1 for what is made. pixels: (b 3 f h w) in [-1, 1], the clips.
        """
        found: dict[str, Tensor] = {}
        settings, reference = self.settings, self.reference
        if reference is not None:
            found["reference"] = encode(self._reference_pixels(reference, source, entries, size, pixels))
        if settings.suffix and size.frames > 1:
            found["suffix"] = encode(pixels[:, :, -settings.suffix_frames :])
        if settings.keyframes and size.frames > 1:
            places = self.places(size)
            alone = rearrange(pixels[:, :, places], "b c k h w -> (b k) c 1 h w")
            found["keyframes"] = rearrange(encode(alone), "(b k) c 1 h w -> b c k h w", k=len(places))
        if "mask" in self._companions:
            masks = [self._companions["mask"].frames(_window(source, entry, size)) for entry in entries]
            found["mask"] = torch.stack([_cells(mask, size.latent(self.scale), self.scale) for mask in masks])
        return found

    def of_stored(self, source: Source, entry: int, size: PixelShape) -> dict[str, Tensor]:
        """What the conditions of a sample need that is stored as latents: reference, (1 c f h w)."""
        assert isinstance(source, VideoFolder)
        media, _ = source.groups[size][entry]
        if self.reference is None or media.stored is None or media.stored.reference is None:
            return {}
        return {"reference": read_latents(media.stored.reference).latents[None]}

    def _reference_pixels(
        self, reference: ReferenceSettings, source: Source, entries: Sequence[int], size: PixelShape, pixels: Tensor
    ) -> Tensor:
        if reference.kind == "files":
            clips = [self._companions["reference"].frames(_window(source, entry, size)) for entry in entries]
        else:
            shown = (rearrange(clip, "c f h w -> f h w c").float().cpu() * 0.5 + 0.5 for clip in pixels)
            clips = [edges(frames, reference.low, reference.high) for frames in shown]
        return rearrange(torch.stack(clips) * 2 - 1, "b f h w c -> b c f h w").to(pixels.device)

    def places(self, size: PixelShape) -> list[int]:
        """The frames of a clip that can be keyframes: spread evenly, the last one among them, never the first."""
        count = min(self.settings.keyframe_places, size.frames - 1)
        return [round((number + 1) * (size.frames - 1) / count) for number in range(count)]

    # --------------------------------------------------------------------------------------------------------- draws

    def draw(self, rng: torch.Generator, count: int, size: PixelShape) -> Drawn:
        """The conditions of a whole batch."""
        settings, grid = self.settings, size.latent(self.scale)
        common, several = torch.rand(3, generator=rng), torch.rand((), generator=rng)
        kinds, boxes = torch.rand(count, generator=rng), torch.rand(count, 6, generator=rng)
        lengths = torch.rand(count, generator=rng)
        kept = torch.zeros(count, *grid, dtype=torch.bool)
        ends = (
            settings.prefix,
            settings.prefix + settings.inpaint,
            settings.prefix + settings.inpaint + settings.outpaint,
        )
        from_files = "mask" in self._companions
        for row, kind in enumerate(kinds.tolist()):
            if kind < ends[0] and grid.frames > 1:
                kept[row, : self._prefix(float(lengths[row]), grid)] = True
            elif ends[0] <= kind < ends[1] and not from_files:
                kept[row] = ~_box(boxes[row], grid)
            elif ends[1] <= kind < ends[2]:
                kept[row] = _middle(boxes[row], grid)
        kept = kept.flatten(1)
        masked = (kinds >= ends[0]) & (kinds < ends[1]) & from_files
        moving = grid.frames > 1
        suffix = moving and bool(common[0] < settings.suffix)
        keyframes: tuple[int, ...] = ()
        if moving and bool(common[1] < settings.keyframes):
            places = self.places(size)
            free = [n for n, frame in enumerate(places) if not suffix or frame < size.frames - settings.suffix_frames]
            wanted = min(len(free), 1 + int(float(several) * settings.most_keyframes))
            order = torch.randperm(len(free), generator=rng)[:wanted].tolist()
            keyframes = tuple(sorted(free[number] for number in order))
        reference = self.reference is not None and bool(common[2] < self.reference.probability)
        return Drawn(kept, masked, reference, suffix, keyframes)

    def _prefix(self, drawn: float, grid: LatentShape) -> int:
        """How many latent frames a prefix has."""
        if self.settings.prefix_frames is None:
            return 1 + int(drawn * (grid.frames - 1))
        return min(grid.frames - 1, 1 + (self.settings.prefix_frames - 1) // self.scale.frames)

    # ------------------------------------------------------------------------------------------------------ sequence

    def tokens(
        self, clips: EncodedClips, draws: Draws, drawn: Drawn, coordinates: Coordinates, size: PixelShape
    ) -> Tokens:
        """A batch with its conditions."""
        extras, noise = clips.extras, draws.noise
        device, grid = noise.device, size.latent(self.scale)
        x0 = patchify(clips.latents).to(device)
        kept = self._kept(clips, draws, drawn, size).to(device)
        state = LatentState(
            latent=x0,
            denoise_mask=(~kept).float()[..., None],
            positions=coordinates.positions(grid).to(device),
            clean_latent=x0,
            shape=grid,
            noise=noise,
        )
        items: list[LatentReference | LatentCondition] = []
        if drawn.reference:
            items.append(LatentReference(extras["reference"].to(device)))
        if drawn.suffix:
            items.append(LatentCondition(extras["suffix"].to(device), size.frames - self.settings.suffix_frames))
        places = self.places(size) if drawn.keyframes else []
        for number in drawn.keyframes:
            items.append(LatentCondition(extras["keyframes"][:, :, number : number + 1].to(device), places[number]))
        state = apply_conditions(state, items, coordinates, torch.zeros)
        assert state.noise is not None
        level = draws.sigma.to(device)[:, None, None]
        if bool((state.denoise_mask == 1).all()):
            return Tokens(state.clean_latent, state.noise, level, state.positions)  # one level per sample is less work
        return Tokens(state.clean_latent, state.noise, level * state.denoise_mask, state.positions)

    def _kept(self, clips: EncodedClips, draws: Draws, drawn: Drawn, size: PixelShape) -> Tensor:
        """The tokens (b, n) bool of the clips that stay clean; in each sample, one is left to make."""
        grid, kept = size.latent(self.scale), drawn.kept
        cells = grid.height * grid.width
        if "mask" in clips.extras:
            black = patchify(clips.extras["mask"])[..., 0] == 0
            kept = torch.where(drawn.masked[:, None], black, kept)
        shown = torch.zeros(grid.tokens, dtype=torch.bool)  # what the end of the clip, as a condition, takes
        if drawn.suffix:
            begin = (size.frames - self.settings.suffix_frames) // self.scale.frames
            shown[(begin + PREFIX_FRAMES) * cells :] = True
        first = torch.zeros_like(kept)
        if grid.frames > 1:
            first[:, :cells] = draws.first_frame[:, None]
        kept = kept & ~(kept | shown).all(dim=1, keepdim=True)
        both = kept | first
        return torch.where((both | shown).all(dim=1, keepdim=True), kept, both)


def _folders(sources: Sequence[Source]) -> list[VideoFolder]:
    return [source for source in sources if isinstance(source, VideoFolder)]


def _have_masks(sources: Sequence[Source]) -> bool:
    """Whether the data names masks."""
    return any(media.mask is not None for source in _folders(sources) for media in source.media)


def _roots(config: TransformerTraining) -> list[Path]:
    """The folders that clips come from."""
    return [path for path in (config.data.path, config.validation.path) if path is not None]


def _windows(sources: Sequence[Source], name: str, companion: Callable[[Media], Path | None]) -> list[Window]:
    """What is seen of the files of folders. companion: what the data has for one."""
    windows: dict[tuple[Path, int, Path | None], Window] = {}
    for source in sources:
        if not isinstance(source, VideoFolder):
            raise ConfigError(
                f"got {name} with clips that are no files; expected data.kind folder; change data.kind, or leave it out"
            )
        for size, group in source.groups.items():
            for media, start in group:
                if media.stored is None:
                    other = companion(media)
                    windows[media.path, start, other] = Window(media.path, start, size, other)
    return list(windows.values())


def _window(source: Source, entry: int, size: PixelShape) -> Window:
    assert isinstance(source, VideoFolder)
    media, start = source.groups[size][entry]
    return Window(media.path, start, size)


def _cells(mask: Tensor, grid: LatentShape, scale: ScaleFactors) -> Tensor:
    """A mask (f h w 3) on the latent grid, (1 f h w): a cell with a white pixel is made."""
    white = (mask.mean(dim=-1) >= WHITE).float()
    blocks = rearrange(white, "f (h y) (w x) -> f h w (y x)", h=grid.height, w=grid.width).amax(dim=-1)
    if grid.frames == 1:
        return blocks[None, :1]
    later = rearrange(blocks[1:], "(f t) h w -> f h w t", t=scale.frames).amax(dim=-1)
    return torch.cat([blocks[:1], later])[None]


def _span(length: int, least: float, size: float, place: float) -> slice:
    """A part of `length` cells: from `least` of them up to all; size, place: in [0, 1)."""
    low = max(1, round(least * length))
    count = low + int(size * (length - low + 1))
    start = int(place * (length - count + 1))
    return slice(start, start + count)


def _box(drawn: Tensor, grid: LatentShape) -> Tensor:
    """A random box (f h w) bool; half of them have the length of the clip."""
    f, h, w, y, x, t = drawn.tolist()
    frames = slice(0, grid.frames) if f < 0.5 else _span(grid.frames, 0.25, 2 * f - 1, t)
    box = torch.zeros(*grid, dtype=torch.bool)
    box[frames, _span(grid.height, 0.25, h, y), _span(grid.width, 0.25, w, x)] = True
    return box


def _middle(drawn: Tensor, grid: LatentShape) -> Tensor:
    """A random box of at least half of each side, over the whole clip: what is kept when its surroundings are made."""
    _, h, w, y, x, _ = drawn.tolist()
    box = torch.zeros(*grid, dtype=torch.bool)
    box[:, _span(grid.height, 0.5, h, y), _span(grid.width, 0.5, w, x)] = True
    return box
