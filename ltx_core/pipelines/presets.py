"""A recipe as users of the library write one: a release's, and what they change in it, as plain keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

from .. import releases
from ..config import Levels, STGMode
from ..errors import ConfigError
from ..releases import RELEASES
from ..values import check_choice, check_kind, is_number, shown
from .hints import RECIPE, hinted
from .settings import Overrides, PassSettings, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Values = float | Sequence[float]


class PassKnobs(TypedDict, total=False):
    """What may be said about a pass, see `Recipe`; None leaves it to the release."""

    steps: int | None
    timesteps: Sequence[float] | None
    sigmas: Sequence[float] | None
    skip_initial_steps: int | None
    skip_final_steps: int | None
    denoise_strength: float | None
    guidance_scale: Values | None
    guidance_timesteps: Sequence[float] | None
    guidance_rescale: float | None
    stg_scale: Values | None
    stg_blocks: Sequence[int] | Sequence[Sequence[int]] | None
    stg_rescale: Values | None
    stg_mode: STGMode | None
    cfg_star: bool | None
    step_cache: str | float | None


class Knobs(PassKnobs, total=False):
    """What may be said about a run: the fields of `Recipe` but `release`."""

    second: PassKnobs | None
    sampler: str | None
    levels: Levels | None
    condition_noise: float | None
    adain: float | None
    downscale_factor: float | None
    decode_timestep: float | None
    decode_noise_scale: float | None
    tone_map: float | None


@hinted(RECIPE, "ltxkit.Recipe")
@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe:
    """How a clip is made: the settings of a release, and your changes. `ltx.generate` takes the same keywords directly.

    None leaves a value to the release; 0 is a value like any other. The names of a pass are for the only pass, or the
    first of two; `second` has the same names for the second.

    Args:
        release: a name of `ltxkit.presets()`, whose settings are used; None: those of the checkpoint.
        steps: of the checkpoint's own schedule.
        timesteps: the noise levels themselves in thousandths, as in diffusers, such as [1000, 993, 909, 725, 0].
        sigmas: the same from 1 to 0.
        skip_initial_steps, skip_final_steps: numbers of steps to omit from the schedule.
        denoise_strength: the share of the steps that run, the last ones, for a pass that starts from a clip; above 0,
            at most 1.
        guidance_scale: classifier-free guidance; 1 is off. A list has an entry for each step, or for each entry of
            `guidance_timesteps`; so have `stg_scale`, `stg_blocks` (a list of lists) and `stg_rescale`.
        guidance_timesteps: levels from 1 to 0 at which the entries of the lists begin to count.
        guidance_rescale: share of the contrast of guidance that is taken back, 0 to 1; 0 is off.
        stg_scale: spatio-temporal guidance; 0 is off. stg_blocks: numbers of the blocks that it perturbs.
        stg_rescale: share of its contrast that is kept, 0 to 1; 1 is off.
        stg_mode: "attention_values", "attention_skip" or "transformer_block".
        cfg_star: scale the negative prediction to the positive one first.
        step_cache: leave the model out of steps between whose neighbours its velocities run smoothly: "off", "careful"
            (about half of the forwards of 30 steps), "fast" (two thirds), or a number from 0 to 1: the largest share of
            the schedule between two evaluations. Not for distilled checkpoints, and not below 12 steps.
        second: the same for the second of two passes, as a mapping: {"steps": 10, "denoise_strength": 0.4}.
        sampler: "euler", "heun", "stochastic", "dpmpp_2m" or "gradient_estimation".
        levels: "own", "official" or "comfyui": what a strength between 0 and 1 means.
        condition_noise: on conditions while sampling, for more motion (`image_cond_noise_scale` elsewhere).
        adain: how far the colours of the second pass return to those of the first, 0 to 1.
        downscale_factor: the size of the first of two passes, as a share of both sides of the clip.
        decode_timestep, decode_noise_scale: noise level that the decoder receives, and share of noise in what it gets.
        tone_map: how far extreme values of the latent are taken back, 0 to 1.

    Raises:
        ConfigError: a value that no model can use.
    """

    release: str | None = None
    steps: int | None = None
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    skip_initial_steps: int | None = None
    skip_final_steps: int | None = None
    denoise_strength: float | None = None
    guidance_scale: Values | None = None
    guidance_timesteps: Sequence[float] | None = None
    guidance_rescale: float | None = None
    stg_scale: Values | None = None
    stg_blocks: Sequence[int] | Sequence[Sequence[int]] | None = None
    stg_rescale: Values | None = None
    stg_mode: STGMode | None = None
    cfg_star: bool | None = None
    step_cache: str | float | None = None
    second: PassKnobs | None = None
    sampler: str | None = None
    levels: Levels | None = None
    condition_noise: float | None = None
    adain: float | None = None
    downscale_factor: float | None = None
    decode_timestep: float | None = None
    decode_noise_scale: float | None = None
    tone_map: float | None = None

    def __post_init__(self) -> None:
        if self.release is not None:
            check_choice("release", self.release, RELEASES)
        if self.second is not None:
            check_kind("second", self.second, Mapping)
            unknown = [name for name in self.second if name not in PASS]
            if unknown:
                raise ConfigError(
                    f"got second with {shown(unknown[0])}; expected names of a pass: {', '.join(PASS)}; change it"
                )
        self.overrides()  # which refuses what it cannot be

    def __repr__(self) -> str:
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        return f"Recipe({', '.join(f'{name}={value!r}' for name, value in said.items() if value is not None)})"

    def but(self, **changes: Unpack[Knobs]) -> Recipe:
        """The same recipe with other values."""
        return replace(self, **changes)

    @property
    def official(self) -> releases.Recipe | None:
        """All settings of `release`, as they were published; None without one."""
        return None if self.release is None else RELEASES[self.release].recipe

    def overrides(self) -> Overrides:
        """The changes, as the core takes them."""
        values = {name: getattr(self, name) for name in _RUN}
        return Overrides(
            first=_pass({name: getattr(self, name) for name in PASS}), second=_pass(self.second or {}), **values
        )

    def settings(self, own: releases.Recipe) -> Settings:
        """The whole description of a run. own: the recipe of the checkpoint."""
        return Settings(self.official or own, self.overrides())


PASS = tuple(PassKnobs.__annotations__)
_RUN = tuple(name for name in Knobs.__annotations__ if name not in (*PASS, "second"))


def presets() -> dict[str, Recipe]:
    """The recipe of every release, by its name. `recipe.official` has the published values."""
    return {name: Recipe(release=name) for name in RELEASES}


def _pass(knobs: Mapping[str, Any]) -> PassSettings:
    values = {name: _tupled(value) for name, value in knobs.items()}
    timesteps = values.pop("timesteps", None)
    if timesteps is not None:
        if values.get("sigmas") is not None:
            raise ConfigError(
                "got timesteps and sigmas; expected one of them: the same levels in thousandths; omit one"
            )
        values["sigmas"] = _thousandths(timesteps)
    return PassSettings(**values)


def _thousandths(timesteps: Any) -> tuple[float, ...]:
    if not isinstance(timesteps, tuple) or not timesteps or not all(is_number(value) for value in timesteps):
        raise ConfigError(
            f"got timesteps={shown(timesteps)}; expected descending numbers from 1000 to 0; give a list such as "
            "[1000, 909, 725, 421, 0]"
        )
    if timesteps[0] <= 1:
        raise ConfigError(
            f"got timesteps that begin at {timesteps[0]:g}; expected thousandths, from at most 1000 to 0; for levels "
            "from 1 to 0 write sigmas"
        )
    return tuple(value / 1000 for value in timesteps)


def _tupled(value: Any) -> Any:
    """Lists, ranges, arrays and tensors as tuples, also inside each other."""
    if not isinstance(value, str) and hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple | range) else value


AS_RELEASED = Recipe()
