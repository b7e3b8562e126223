"""Pictures and clips that the result must show, as changes of the latent state.

Semantics of Lightricks/LTX-Video pipeline_ltx_video.py (prepare_conditioning):

* at frame 0, image or clip: mixed into the clip's own tokens, which then stand at level 1 - strength;
* an image at a later frame: extra tokens in front of the sequence, with the position of that frame;
* a clip at a later frame (a multiple of 8): its first two latent frames, which were encoded without a past, become
  extra tokens; the others are mixed into the clip's own tokens.

The reference video of an IC-LoRA differs from these: it is a second sequence at the coordinates of the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..shapes import LatentShape
from .noise import Noise
from .patchify import Coordinates, patchify
from .state import LatentState

PREFIX_FRAMES = 2  # latent frames of a later clip that become extra tokens


class LatentItem(Protocol):
    """Something that changes the state before the first step.

    order: the position of its kind in front of the sequence; the lowest is furthest in front. frame: pixel frame that
    no other item may start on; None: any number may. needs_lora: whether only a model with a LoRA for this kind of
    item understands it.
    """

    order: ClassVar[int]
    needs_lora: ClassVar[bool]

    @property
    def frame(self) -> int | None: ...

    def apply_to(self, state: LatentState, coordinates: Coordinates, noise: Noise) -> LatentState:
        """The state with this item; the argument is not changed. noise: the source of the item's draws."""
        ...


@dataclass(frozen=True, eq=False)
class LatentCondition:
    """An encoded picture or clip.

    latent: (1 | b, c, f, h, w) float32, normalised, of the clip's own height and width. frame: pixel frame at which it
    starts, 0 or more. strength: 0 to 1; 1 keeps it unchanged.
    """

    latent: Tensor
    frame: int
    strength: float = 1.0

    order: ClassVar[int] = 2
    needs_lora: ClassVar[bool] = False

    def apply_to(self, state: LatentState, coordinates: Coordinates, noise: Noise) -> LatentState:
        """The state that shows this condition; the argument is not changed.

        Raises:
            ConfigError: strength outside 0 to 1, frames outside the clip, or a clip that starts between latent frames.
            ShapeError: the grid or the number of channels differs from the state's.
        """
        latent = _fitting(self.latent, self.frame, self.strength, state, coordinates)
        if self.frame == 0:
            return _mix_in(state, latent, 0, self.strength)
        first = self.frame // coordinates.scale.frames
        if latent.shape[2] > PREFIX_FRAMES:
            state = _mix_in(state, latent[:, :, PREFIX_FRAMES:], first + PREFIX_FRAMES, self.strength)
        prefix = latent[:, :, :PREFIX_FRAMES]
        return _add_tokens(state, prefix, noise(prefix.shape), self.frame, self.strength, coordinates)


@dataclass(frozen=True, eq=False)
class LatentReference:
    """The encoded reference video of an IC-LoRA (depth, poses, edges, a clip to refine): tokens next to the clip's own,
    with the coordinates of the same place and time, at level 1 - strength, from the first frame on.

    Source: Lightricks/LTX-Video-Trainer ltxv_pipeline.py (reference_video) and training_strategies.py; the computation
    is that of a ComfyUI guide at frame 0 (Lightricks/ComfyUI-LTXVideo easy_samplers.py, LTXVInContextSampler).

    latent: (1 | b, c, f, h, w) float32, normalised, of the clip's own height and width and at most its length.
    strength: 0 to 1; IC-LoRAs are trained at 1.
    """

    latent: Tensor
    strength: float = 1.0

    order: ClassVar[int] = 1
    needs_lora: ClassVar[bool] = True

    @property
    def frame(self) -> None:
        return None

    def apply_to(self, state: LatentState, coordinates: Coordinates, noise: Noise) -> LatentState:
        """As `LatentCondition.apply_to`; noise is drawn only where the strength is below 1."""
        latent = _fitting(self.latent, 0, self.strength, state, coordinates)
        drawn = noise(latent.shape) if self.strength < 1 else torch.zeros_like(latent)
        return _add_tokens(state, latent, drawn, 0, self.strength, coordinates)


@dataclass(frozen=True, eq=False)
class LatentGuide:
    """Frames that stand at positions of their own, as extra tokens.

    latent, noise: (b c g h w) float32; the noise covers the guide and is drawn together with the clip's.
    mask: (b | 1, 1, g, h, w), 1 - strength; cells below 0 are omitted. positions: (b | 1, 3, g*h*w) seconds, pixels,
    pixels. sigma: level of the first step, the most noise that a cell gets. weights: (g*h*w), see
    `LatentState.weights`; None: all 1.
    """

    latent: Tensor
    noise: Tensor
    mask: Tensor
    positions: Tensor
    sigma: float
    weights: Tensor | None = None

    order: ClassVar[int] = 0
    needs_lora: ClassVar[bool] = False

    @property
    def frame(self) -> None:
        return None

    @property
    def used(self) -> Tensor:
        """The tokens (g*h*w) bool that are not omitted."""
        return patchify(self.mask)[0, :, 0] >= 0

    def apply_to(self, state: LatentState, coordinates: Coordinates, noise: Noise) -> LatentState:  # noqa: ARG002
        """As `LatentCondition.apply_to`; nothing is drawn."""
        positions = self.positions.to(state.positions)
        tokens, drawn = patchify(self.latent).to(state.latent), patchify(self.noise).to(state.latent)
        mask = patchify(self.mask.expand(self.latent.shape[0], -1, -1, -1, -1)).to(state.latent)
        used = self.used
        level = mask.clamp(0, self.sigma)
        noised = level * drawn + (1 - level) * tokens
        weights = None if self.weights is None else self.weights[used]
        return _insert(
            state,
            _Extra(noised[:, used], mask[:, used], positions[..., used], tokens[:, used], drawn[:, used], weights),
        )


def _fitting(latent: Tensor, frame: int, strength: float, state: LatentState, coordinates: Coordinates) -> Tensor:
    """`latent` for every clip of the batch, after the checks of `LatentCondition.apply_to`."""
    if not 0 <= strength <= 1:
        raise ConfigError(f"got condition strength {strength}; expected 0 to 1; 1 keeps the picture unchanged")
    c, f, h, w = latent.shape[1:]
    grid = state.shape
    if (c, h, w) != (state.latent.shape[2], grid.height, grid.width):
        raise ShapeError(
            f"got a condition of {c} channels and {h}x{w} cells; expected {state.latent.shape[2]} channels and "
            f"{grid.height}x{grid.width} cells, as the clip; encode it with the same VAE at the clip's size"
        )
    t = coordinates.scale.frames
    length, frames = (f - 1) * t + 1, (grid.frames - 1) * t + 1
    if frame < 0 or frame + length > frames:
        raise ConfigError(
            f"got a condition on frames {frame} to {frame + length - 1}; expected it to lie within frames 0 to "
            f"{frames - 1} of the clip; move it, shorten it or make the clip longer"
        )
    if f > 1 and frame % t:
        raise ConfigError(
            f"got a clip as condition at frame {frame}; expected a multiple of {t} (an image can stand anywhere); "
            f"use frame {round(frame / t) * t}"
        )
    return latent.to(state.latent).expand(state.latent.shape[0], -1, -1, -1, -1)


def initial_state(
    clean: Tensor, noise: Tensor, sigma: float, coordinates: Coordinates, denoise_mask: Tensor | None = None
) -> LatentState:
    """The state before the first step: `clean` at level `sigma`, or at the mask's level where that is lower.

    clean: (b c f h w) float32, normalised; at sigma 1 noise covers it entirely. noise: same shape.
    denoise_mask: (b | 1, 1, f, h, w), 0 to 1; 0 keeps `clean`, None denoises all.
    """
    b, _, f, h, w = clean.shape
    shape = LatentShape(f, h, w)
    tokens = patchify(clean).float()
    if denoise_mask is None:
        mask = torch.ones_like(tokens[..., :1])
    else:
        mask = patchify(denoise_mask.to(tokens).expand(b, 1, f, h, w))
    level = mask.clamp(max=sigma)
    drawn = patchify(noise).to(tokens)
    return LatentState(
        latent=level * drawn + (1 - level) * tokens,
        denoise_mask=mask,
        positions=coordinates.positions(shape).to(tokens),
        clean_latent=tokens,
        noise=drawn,
        shape=shape,
    )


def all_at(state: LatentState, sigma: float) -> LatentState:
    """A state before its first step with every token at one level, whatever its mask: the start of ComfyUI's levels."""
    if state.noise is None:
        return state
    return state.with_latent(sigma * state.noise + (1 - sigma) * state.clean_latent)


def apply_conditions(
    state: LatentState, items: Sequence[LatentItem], coordinates: Coordinates, noise: Noise
) -> LatentState:
    """The state with all items: guides and references in front, then the conditions, each kind in the order of `items`.

    Raises:
        ConfigError: two conditions start on the same frame.
    """
    frames = [item.frame for item in items if item.frame is not None]
    twice = sorted({frame for frame in frames if frames.count(frame) > 1})
    if twice:
        raise ConfigError(f"got two conditions on frame {twice[0]}; expected one; remove one of them or move it")
    for item in sorted(items, key=lambda item: item.order):
        state = item.apply_to(state, coordinates, noise)
    return state


def _mix_in(state: LatentState, latent: Tensor, first: int, strength: float) -> LatentState:
    """The clip's own tokens of latent frames `first` and on, moved towards `latent` by `strength`."""
    tokens = patchify(latent)
    start = state.num_extra + first * state.shape.height * state.shape.width
    place = slice(start, start + tokens.shape[1])
    mixed, mask, clean = state.latent.clone(), state.denoise_mask.clone(), state.clean_latent.clone()
    mixed[:, place] = torch.lerp(mixed[:, place], tokens, strength)
    mask[:, place] = 1 - strength
    clean[:, place] = tokens
    return replace(state, latent=mixed, denoise_mask=mask, clean_latent=clean)


def _add_tokens(
    state: LatentState, latent: Tensor, noise: Tensor, frame: int, strength: float, coordinates: Coordinates
) -> LatentState:
    """Extra tokens of `latent` at pixel frame `frame`. noise: of the same shape."""
    tokens = patchify(latent)
    noised = torch.lerp(patchify(noise).to(tokens), tokens, strength)
    mask = torch.full_like(tokens[..., :1], 1 - strength)
    positions = coordinates.positions(LatentShape(*latent.shape[2:]), first_frame=frame)
    extra = _Extra(noised, mask, positions.to(tokens), tokens, patchify(noise).to(tokens))
    return _insert(state, extra)


class _Extra(NamedTuple):
    """Extra tokens: the fields of a `LatentState`."""

    latent: Tensor
    mask: Tensor
    positions: Tensor
    clean: Tensor
    noise: Tensor
    weights: Tensor | None = None


def _insert(state: LatentState, tokens: _Extra) -> LatentState:
    """New extra tokens behind the existing ones."""

    def insert(before: Tensor, new: Tensor, dim: int = 1) -> Tensor:
        extra, own = before.tensor_split([state.num_extra], dim=dim)
        return torch.cat([extra, new.expand(before.shape[0], -1, -1), own], dim=dim)

    rows = max(state.positions.shape[0], tokens.positions.shape[0])
    count = tokens.latent.shape[1]
    weights = None
    if state.weights is not None or tokens.weights is not None:
        before = torch.ones(state.num_extra) if state.weights is None else state.weights
        weights = torch.cat([before, torch.ones(count) if tokens.weights is None else tokens.weights])
    return replace(
        state,
        latent=insert(state.latent, tokens.latent),
        denoise_mask=insert(state.denoise_mask, tokens.mask),
        positions=insert(state.positions.expand(rows, -1, -1), tokens.positions, dim=2),
        clean_latent=insert(state.clean_latent, tokens.clean),
        noise=None if state.noise is None else insert(state.noise, tokens.noise),
        num_extra=state.num_extra + count,
        weights=weights,
    )
