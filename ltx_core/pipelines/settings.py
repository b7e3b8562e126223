"""Everything that a user may choose about how a clip is made, in one value: a recipe, and its overrides.

None means that the user has not chosen, and the recipe decides; 0 is a value like any other. Nodes, library, command
line and trainer fill in the same fields, and `passes.Pass` is made from nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..config import Levels, STGMode
from ..errors import ConfigError
from ..releases import DOWNSCALE_FACTOR, PassRecipe, Recipe
from ..sampling.guidance import ADVICE, Guidance
from ..sampling.samplers import SamplerSettings
from ..sampling.schedules import explicit
from ..sampling.step_cache import threshold_of
from ..values import LARGEST_SCALE, MOST_STEPS, check_kind, check_number, check_whole, shown
from .recipe import REFINE

Which = Literal["one", "first", "second"]
"""The only pass of a run, or the first or the second of two."""

SCHEDULE = ("steps", "skip_initial_steps", "skip_final_steps")

Each = float | tuple[float, ...]
"""A number for every step, or a list: one for each of `guidance_timesteps`, or without these one for each step."""

ADAIN = 1.0  # between the passes of every release (Lightricks/LTX-Video, LTXMultiScalePipeline)


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are given."""
    return {name: value for name, value in values.items() if value is not None}


def _check_range(values: Mapping[str, Any], most: float) -> None:
    for name, value in _said(values).items():
        check_number(name, value, 0, most, advice=ADVICE)


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """Overrides of the recipe in one pass.

    sigmas: the levels themselves, 1 to 0; they replace any schedule. unfinished: the pass leaves the clip at the last
    of them; otherwise it goes on to 0. steps: of the checkpoint's own
    schedule as a whole. skip_initial_steps, skip_final_steps: numbers of steps to omit from it. denoise_strength: the
    share of the steps that run, for a pass that starts from a latent.
    guidance: as a whole; the fields below it override single values. Those of type `Each` hold for every step, or are
    lists; of `stg_blocks`, a list of blocks, or one such list each. guidance_timesteps: levels, 1 to 0, from which the
    entries of the lists count, see `Guidance`.
    step_cache: steps without the model, as a word of `config.STEP_CACHES` or a number, see `step_cache.threshold_of`.

    Raises:
        ConfigError: a value that no model can use, or sigmas and a schedule at once. UnsupportedError: see `Guidance`.
    """

    sigmas: tuple[float, ...] | None = None
    unfinished: bool | None = None
    steps: int | None = None
    skip_initial_steps: int | None = None
    skip_final_steps: int | None = None
    denoise_strength: float | None = None
    guidance: Guidance | None = None
    guidance_scale: Each | None = None
    guidance_timesteps: tuple[float, ...] | None = None
    guidance_rescale: float | None = None
    stg_scale: Each | None = None
    stg_blocks: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None
    stg_rescale: Each | None = None
    stg_mode: STGMode | None = None
    cfg_star: bool | None = None
    step_cache: str | float | None = None

    def __post_init__(self) -> None:
        scheduled = [name for name in SCHEDULE if getattr(self, name) is not None]
        if self.sigmas is not None:
            explicit(self.sigmas, unfinished=bool(self.unfinished))
            if scheduled:
                raise ConfigError(
                    f"got sigmas and {' and '.join(scheduled)}; expected the levels themselves or a schedule; leave "
                    "one of them out"
                )
        elif self.unfinished:
            raise ConfigError("got unfinished without sigmas; expected the levels; the last is where the pass ends")
        if self.steps is not None:
            check_whole("steps", self.steps, 1, MOST_STEPS, advice="set the number of steps")
        if self.denoise_strength is not None:
            check_number("denoise_strength", self.denoise_strength, 0, 1, above=0, advice="1 runs all steps")
        for name in ("skip_initial_steps", "skip_final_steps"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 0, MOST_STEPS, advice=ADVICE)
        _check_range({"guidance_rescale": self.guidance_rescale}, 1)
        for name, most in (("guidance_scale", LARGEST_SCALE), ("stg_scale", LARGEST_SCALE), ("stg_rescale", 1)):
            for value in _listed(getattr(self, name)) or ():
                check_number(name, value, 0, most, advice=ADVICE)
        if self.cfg_star is not None:
            check_kind("cfg_star", self.cfg_star, bool)  # the text "false" would switch it on
        levels: Any = self.guidance_timesteps  # of whatever a request says
        if levels is not None and (not isinstance(levels, list | tuple) or not levels):
            raise ConfigError(
                f"got guidance_timesteps={shown(levels)}; expected levels from 1 to 0; give a list such as [1, 0.9]"
            )
        for level in levels or ():
            check_number("guidance_timesteps", level, 0, 1, advice=ADVICE)
        blocks = self.stg_blocks
        kinds = {isinstance(each, tuple) for each in blocks} if isinstance(blocks, tuple) else {True, False}
        if blocks is not None and len(kinds) > 1:
            raise ConfigError(
                f"got stg_blocks={shown(blocks)}; expected numbers of blocks, or a list of them for each step; give a "
                "list such as [19]"
            )
        if self.guidance is not None:
            check_kind("guidance", self.guidance, Guidance)
        if self.step_cache is not None:
            threshold_of(self.step_cache)  # which refuses what it cannot be
        steps = max((len(each) for each in self._lists().values()), default=1)
        self.over_guidance(Guidance(), [1 - step / steps for step in range(steps)])  # which refuses what it cannot be

    def over(self, entry: PassRecipe) -> PassRecipe:
        """The recipe's entry with the overrides of its schedule."""
        if self.steps is not None:
            # `steps` counts the whole schedule: a recipe's own list, and the steps it omits at the end, do not apply.
            entry = replace(entry, num_inference_steps=self.steps, timesteps=None, skip_final_inference_steps=0)
        if self.denoise_strength is not None:  # it says from where the schedule runs, in place of the recipe's skip
            entry = replace(entry, skip_initial_inference_steps=0)
        skips = {
            "skip_initial_inference_steps": self.skip_initial_steps,
            "skip_final_inference_steps": self.skip_final_steps,
        }
        return replace(entry, **_said(skips))

    def over_guidance(self, guidance: Guidance, levels: Sequence[float]) -> Guidance:
        """The recipe's guidance with the overrides. levels: those that the steps of the pass start from.

        Raises:
            ConfigError: a list that has neither as many entries as `guidance_timesteps` nor as there are steps.
        """
        guidance, lists = self.guidance or guidance, self._lists()
        known = self.guidance_timesteps or guidance.guidance_timesteps
        if self.guidance_timesteps is not None:
            guidance = _at_levels(guidance, self.guidance_timesteps)
        elif any(len(each) not in (1, len(known or (1,))) for each in lists.values()):
            wrong = {name: len(each) for name, each in lists.items() if len(each) not in (1, len(levels))}
            if wrong:
                described = ", ".join(f"{name} with {count} entries" for name, count in wrong.items())
                raise ConfigError(
                    f"got {described} for {len(levels)} steps; expected one value, or one for each step; change the "
                    "list, or say with guidance_timesteps from which level each entry counts"
                )
            guidance = _at_levels(guidance, levels)
        values = {"guidance_rescale": self.guidance_rescale, "stg_mode": self.stg_mode, "cfg_star": self.cfg_star}
        return replace(guidance, **lists, **_said(values))

    def _lists(self) -> dict[str, tuple[Any, ...]]:
        """The fields that may be lists, as `Guidance` has them."""
        blocks = self.stg_blocks
        one = blocks is not None and not any(isinstance(block, tuple) for block in blocks)
        values = {
            "scale": _listed(self.guidance_scale),
            "stg_scale": _listed(self.stg_scale),
            "rescaling_scale": _listed(self.stg_rescale),
            "skip_blocks": (blocks,) if one else blocks,
        }
        return _said(values)


def _listed(value: Each | None) -> tuple[float, ...] | None:
    return value if value is None or isinstance(value, tuple) else (value,)


def _at_levels(guidance: Guidance, levels: Sequence[float]) -> Guidance:
    """The same guidance with an entry for each of these levels."""
    steps = [guidance.at(level) for level in levels]
    return replace(
        guidance,
        guidance_timesteps=tuple(levels),
        scale=tuple(step.scale for step in steps),
        stg_scale=tuple(step.stg_scale for step in steps),
        rescaling_scale=tuple(step.rescaling_scale for step in steps),
        skip_blocks=tuple(tuple(sorted(step.skip_blocks)) for step in steps),
    )


AS_RECIPE = PassSettings()


@dataclass(frozen=True)
class Decoding:
    """How a latent is decoded (Lightricks/LTX-Video, pipeline_ltx_video.py).

    timestep, noise_scale: the noise level that the decoder receives, and the share of noise mixed into the latent, 0 to
    1; both have no effect on a VAE without timestep conditioning (0.9.0). tone_map: `filters.tone_map`, 0 to 1.
    """

    timestep: float
    noise_scale: float
    tone_map: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("decode_timestep", self.timestep), ("decode_noise_scale", self.noise_scale)):
            check_number(name, value, 0, 1, advice="the official recipes have 0.05 and 0.025")
        check_number("tone_map", self.tone_map, 0, 1, advice="0 turns it off")


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """A user's choices for a run; None leaves one to the recipe.

    first: for the only pass, or the first of two. second: for the second.
    sampler: a name of `samplers.SAMPLERS`. condition_noise, levels: see `SamplerSettings`.
    adain: how far the channel statistics of the upscaled latent return to those of the first pass, 0 to 1.
    downscale_factor: the size of the first of two passes, as a share of both sides of the clip.
    decode_timestep, decode_noise_scale, tone_map: see `Decoding`.

    Raises:
        ConfigError: a value that no recipe can be overridden with.
    """

    first: PassSettings = AS_RECIPE
    second: PassSettings = AS_RECIPE
    sampler: str | None = None
    condition_noise: float | None = None
    levels: Levels | None = None
    adain: float | None = None
    downscale_factor: float | None = None
    decode_timestep: float | None = None
    decode_noise_scale: float | None = None
    tone_map: float | None = None

    def __post_init__(self) -> None:
        check_kind("first", self.first, PassSettings)
        check_kind("second", self.second, PassSettings)
        given = {"name": self.sampler, "condition_noise": self.condition_noise, "levels": self.levels}
        SamplerSettings(**_said(given))  # which refuses what it cannot be
        names = ("adain", "decode_timestep", "decode_noise_scale", "tone_map")
        _check_range({name: getattr(self, name) for name in names}, 1)
        if self.downscale_factor is not None:
            check_number("downscale_factor", self.downscale_factor, 0, 1, above=0, advice="the official value is 2/3")

    def to_json(self) -> dict[str, Any]:
        """The choices other than None, as JSON values."""
        values = asdict(self)
        passes = {name: _said(values.pop(name)) for name in ("first", "second")}
        return {**{name: said for name, said in passes.items() if said}, **_said(values)}


NO_OVERRIDES = Overrides()


@dataclass(frozen=True)
class Settings:
    """A recipe and its overrides: the whole description of a run but for its models, size and seed."""

    recipe: Recipe
    overrides: Overrides = NO_OVERRIDES

    def entry(self, which: Which) -> PassRecipe:
        """The recipe's entry for a pass, with the user's schedule."""
        recipe = self.recipe
        entries = {
            "one": recipe.one_pass,
            "first": recipe.first_pass or recipe.one_pass,
            "second": recipe.second_pass or REFINE,
        }
        return self.of_pass(which).over(entries[which])

    def of_pass(self, which: Which) -> PassSettings:
        return self.overrides.second if which == "second" else self.overrides.first

    @property
    def stepping(self) -> SamplerSettings:
        """How the steps of every pass are taken."""
        recipe, said = self.recipe, self.overrides
        own = "stochastic" if recipe.stochastic_sampling else "euler"
        noise = recipe.image_cond_noise_scale if said.condition_noise is None else said.condition_noise
        return SamplerSettings(said.sampler or own, noise, said.levels or "own")

    @property
    def adain_factor(self) -> float:
        return ADAIN if self.overrides.adain is None else self.overrides.adain

    @property
    def downscale_factor(self) -> float:
        return DOWNSCALE_FACTOR if self.overrides.downscale_factor is None else self.overrides.downscale_factor

    def decoding(self, last: Which) -> Decoding:
        """How the result of the last pass is decoded."""
        recipe, said = self.recipe, self.overrides
        values = {"timestep": said.decode_timestep, "noise_scale": said.decode_noise_scale, "tone_map": said.tone_map}
        tone_map = self.entry(last).tone_map_compression_ratio
        return replace(Decoding(recipe.decode_timestep, recipe.decode_noise_scale, tone_map), **_said(values))
