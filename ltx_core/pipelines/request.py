"""What users write in a call of `generate`, as the core takes it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..releases import Recipe
from ..shapes import PixelShape
from ..values import check_kind, check_seed, check_text, is_whole
from ..weights.lora import WeightedLoRA, load_lora
from . import presets
from .condition import Condition, ConditioningItem
from .sample import EncodedPrompt
from .settings import Overrides, PassSettings

if TYPE_CHECKING:
    from fractions import Fraction

    from ..media.inputs import Frames
    from ..progress import Notes
    from .bar import Shown
    from .clip import Clip
    from .start import Start

    Text: TypeAlias = str | EncodedPrompt | Tensor
    Texts: TypeAlias = list[str] | tuple[str, ...]
    Prompt: TypeAlias = str | EncodedPrompt
    Given: TypeAlias = Sequence[ConditioningItem | Frames] | ConditioningItem | Frames | None
    Starting: TypeAlias = Clip | Frames | None

SEEDS = 32  # bits of a seed that is drawn: torch's generators keep no more


class Request(presets.Knobs, total=False):
    """What `Components.generate` takes besides prompt and seed."""

    width: int | None
    height: int | None
    frames: int | None
    fps: Fraction | float | None
    negative_prompt: Text | Texts | None
    conditions: Given
    crf: int
    start: Starting
    mask: Any
    recipe: presets.Recipe | str | None
    settings: Overrides
    force: bool
    progress: Shown
    notes: Notes


# --- prompts and seeds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AskedClip:
    """One clip of a call."""

    prompt: Prompt
    negative: Prompt | None
    seed: int


@dataclass(frozen=True)
class AskedClips:
    """The clips of a call. several: whether the user has asked for a list."""

    clips: tuple[AskedClip, ...]
    several: bool

    def __iter__(self) -> Iterator[AskedClip]:
        return iter(self.clips)

    def with_seeds(self, seeds: Sequence[int]) -> AskedClips:
        """The same clips with other seeds."""
        clips = (replace(clip, seed=seed) for clip, seed in zip(self.clips, seeds, strict=True))
        return replace(self, clips=tuple(clips))


def asked_clips(prompt: Any, negative: Any, seed: Any) -> AskedClips:
    """The clips of a call: of several prompts, negative prompts or seeds, the first with the first, and so on.

    Raises:
        ConfigError: no text, no seed, or lists of several lengths.
    """
    lists = {"prompt": _several(prompt), "negative_prompt": _several(negative), "seed": _several(seed)}
    lengths = {name: len(each) for name, each in lists.items() if each is not None}
    if 0 in lengths.values() or len(set(lengths.values())) > 1:
        counted = " and ".join(f"{count} of {name}" for name, count in lengths.items())
        raise ConfigError(f"got {counted}; expected as many of each, at least one; or one for all: change the lists")
    count = next(iter(lengths.values()), 1)
    prompts, negatives, seeds = (
        [given] * count if each is None else each
        for given, each in zip((prompt, negative, seed), lists.values(), strict=True)
    )
    clips = tuple(
        AskedClip(
            _text("prompt", text),
            None if other is None else _text("negative_prompt", other),
            _seed(number),
        )
        for text, other, number in zip(prompts, negatives, seeds, strict=True)
    )
    return AskedClips(clips, bool(lengths))


def draws_seeds(seed: Any) -> bool:
    """Whether a seed is drawn for one of the clips."""
    return seed is None or any(each is None for each in _several(seed) or ())


def _several(given: Any) -> list[Any] | None:
    """The items of a list, or of what is like one; None: a single value."""
    if isinstance(given, list | tuple | range):
        return list(given)
    return given.tolist() if hasattr(given, "tolist") and getattr(given, "ndim", 0) == 1 else None


def _text(name: str, given: Any) -> Prompt:
    if isinstance(given, EncodedPrompt):
        return given
    if isinstance(given, Tensor):
        embeddings = given[None] if given.ndim == 2 else given
        if embeddings.ndim != 3 or len(embeddings) != 1:
            raise ShapeError(
                f"got {name} of shape {tuple(given.shape)}; expected embeddings (tokens, width) or (1, tokens, width); "
                "pass one prompt"
            )
        return EncodedPrompt(embeddings)
    check_text(name, given)
    return given


def _seed(given: Any) -> int:
    if given is None:
        return secrets.randbits(SEEDS)
    check_seed(given)
    return int(given)


# --- pictures, LoRAs, sizes -------------------------------------------------------------------------------------------


def as_conditions(given: Any) -> list[ConditioningItem]:
    """The conditions of a call: one or several, or what a condition at frame 0 is made of.

    Raises:
        ConfigError, ShapeError: what is no frames, as `media.as_frames`; or several without a frame of their own.
    """
    if given is None:
        return []
    if not isinstance(given, list | tuple):
        return [given if isinstance(given, ConditioningItem) else Condition(given)]
    bare = [item for item in given if not isinstance(item, ConditioningItem)]
    if len(bare) > 1:
        raise ConfigError(
            f"got {len(bare)} conditions that do not say at which frame they are; expected one at most; write "
            "ltxkit.Condition(picture, frame=...) for each, or ltxkit.Condition(pictures) for a clip"
        )
    return [item if isinstance(item, ConditioningItem) else Condition(item) for item in given]


def asked_loras(given: Any, *, copy: bool = False) -> list[WeightedLoRA]:
    """LoRAs from one or several, or from the paths of their files. copy: as in `load_lora`, which opens them.

    Raises:
        ConfigError: something else. CheckpointError: as `load_lora`.
    """
    if given is None:
        return []
    loras: list[WeightedLoRA] = []
    for item in given if isinstance(given, list | tuple) else [given]:
        check_kind("loras", item, (WeightedLoRA, str, Path))
        loras.append(item if isinstance(item, WeightedLoRA) else WeightedLoRA(load_lora(item, copy=copy), 1.0))
    return loras


def asked_size(given: tuple[Any, Any, Any], start: Start, recipe: Recipe) -> PixelShape:
    """The size of the clip. given: frames, height, width as the user says them, or None; whole floats will do.

    Raises:
        ShapeError: a size that cannot be.
    """
    known = start.size or PixelShape(recipe.num_frames, recipe.height, recipe.width)
    said = (own if value is None else value for value, own in zip(given, known, strict=True))
    return PixelShape.asked(*(int(value) if is_whole(value) else value for value in said))


# --- overrides --------------------------------------------------------------------------------------------------------


def merged(over: Overrides, under: Overrides) -> Overrides:
    """The overrides of both; `over` wins."""
    passes = {name: _merged_pass(getattr(over, name), getattr(under, name)) for name in ("first", "second")}
    said = {each.name: getattr(over, each.name) for each in fields(over) if each.name not in passes}
    return replace(under, **passes, **{name: value for name, value in said.items() if value is not None})


def _merged_pass(over: PassSettings, under: PassSettings) -> PassSettings:
    said = {each.name: getattr(over, each.name) for each in fields(over)}
    return replace(under, **{name: value for name, value in said.items() if value is not None})


def recipe_of(recipe: presets.Recipe | str | None, knobs: Mapping[str, Any]) -> presets.Recipe:
    """The recipe of a call: one, or the name of its release, with the keywords that are given beside it."""
    if isinstance(recipe, str):
        recipe = presets.Recipe(release=recipe)
    if recipe is None:
        recipe = presets.AS_RELEASED
    check_kind("recipe", recipe, presets.Recipe)
    return recipe.but(**knobs) if knobs else recipe


def as_text(prompt: Prompt | None) -> str | None:
    """A prompt in a record; None where there is none, or its embeddings alone were given."""
    return prompt if isinstance(prompt, str) else None
