"""The options of `ltxkit generate` that override a recipe, and the one value that they fill in."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..ltx_core.config import LEVELS, SAMPLER_NAMES, STG_MODES
from ..ltx_core.errors import ConfigError
from ..ltx_core.values import LARGEST_SCALE, MOST_STEPS
from . import arguments

if TYPE_CHECKING:
    from ..ltx_core.pipelines.settings import Overrides, PassSettings

Group = argparse._ArgumentGroup  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True)
class Option:
    """An option that says one field. type: None for a switch with a --no- form. choices: what the field can be."""

    name: str
    field: str
    type: Callable[[str], Any] | None
    help: str
    metavar: str | None = None
    choices: Sequence[str] | None = None


_share = arguments.number(0, 1)
_scale = arguments.number(0, LARGEST_SCALE)
_skipped = arguments.whole(0, MOST_STEPS)

STEPS = Option("steps", "steps", arguments.whole(1, MOST_STEPS), "steps of the sampler", "N")
GUIDANCE = Option("guidance", "guidance_scale", _scale, "guidance scale; 1 is off", "SCALE")
OF_PASS = (  # fields of PassSettings
    Option("sigmas", "sigmas", arguments.numbers, "levels such as 1,0.9,0.5 in place of a schedule", "LIST"),
    Option(
        "skip-initial-steps", "skip_initial_steps", _skipped, "steps of the schedule to leave out at its start", "N"
    ),
    Option("skip-final-steps", "skip_final_steps", _skipped, "steps to leave out at its end", "N"),
    Option(
        "denoise-strength",
        "denoise_strength",
        arguments.number(0, 1, above=0),
        "share of the steps that run, the last ones",
        "SHARE",
    ),
    Option(
        "guidance-rescale", "guidance_rescale", _share, "contrast of guidance taken back, 0 to 1; 0 is off", "SHARE"
    ),
    Option("stg-scale", "stg_scale", _scale, "spatio-temporal guidance; 0 is off", "SCALE"),
    Option("stg-blocks", "stg_blocks", arguments.whole_numbers, "blocks that it disturbs, such as 11,25", "LIST"),
    Option("stg-mode", "stg_mode", str, "what it disturbs in them", choices=STG_MODES),
    Option("stg-rescale", "stg_rescale", _share, "contrast of STG taken back, 0 to 1; 1 is off (sic)", "SHARE"),
    Option("cfg-star", "cfg_star", None, "scale the negative prediction to the positive one first"),
)
OF_RUN = (  # fields of Overrides
    Option("sampler", "sampler", str, "how the steps are taken", choices=SAMPLER_NAMES),
    Option(
        "levels",
        "levels",
        str,
        "conditions below strength 1 are denoised from their own level, as officially, or blended in as by ComfyUI",
        choices=LEVELS,
    ),
    Option(
        "condition-noise", "condition_noise", _share, "noise on conditions while sampling, for more motion", "SCALE"
    ),
)
DECODING = (
    Option("decode-timestep", "decode_timestep", _share, "noise level that the decoder receives, 0 to 1", "LEVEL"),
    Option("decode-noise-scale", "decode_noise_scale", _share, "share of noise in what it decodes, 0 to 1", "SHARE"),
    Option("tone-map", "tone_map", _share, "extreme values taken back, 0 to 1; 0 is off", "SHARE"),
)
ADAIN = Option("adain", "adain", _share, "colours go back to those of the first pass, 0 to 1", "SHARE")


def usual_arguments(group: Group) -> None:
    """The two that are changed most."""
    for option in (STEPS, GUIDANCE):
        _add(group, option, "first", "; of the pass, or of the first of two (default: the recipe's)")


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """The others. One that is left out stays None: the recipe decides."""
    sampling = parser.add_argument_group("sampling", "Each of these overrides the recipe of the checkpoint.")
    for option in OF_RUN:
        _add(sampling, option)
    for option in OF_PASS:
        _add(sampling, option, "first")
    second = parser.add_argument_group("second of two passes", "With --upscaler; the options above are the first's.")
    for option in (STEPS, GUIDANCE, *OF_PASS):
        _add(second, option, "second")
    _add(second, ADAIN)
    decoding = parser.add_argument_group("decoding")
    for option in DECODING:
        _add(decoding, option)


def _add(group: Group, option: Option, of_pass: str = "", default: str = "") -> None:
    name = f"--second-{option.name}" if of_pass == "second" else f"--{option.name}"
    place, text = _place(option, of_pass), option.help + default
    if option.type is None:
        group.add_argument(name, dest=place, action=argparse.BooleanOptionalAction, help=text)
    else:
        choices = option.choices
        group.add_argument(name, dest=place, type=option.type, choices=choices, metavar=option.metavar, help=text)


def _place(option: Option, of_pass: str = "") -> str:
    return f"{of_pass}_{option.field}" if of_pass else option.field


def overrides(options: argparse.Namespace) -> Overrides:
    """What the options say.

    Raises:
        ConfigError: a value that cannot be, or one for a second pass where there is no upscaler.
    """
    from ..ltx_core.pipelines.settings import Overrides

    _check_second(options)
    run = {option.field: getattr(options, option.field) for option in (*OF_RUN, ADAIN, *DECODING)}
    return Overrides(first=_pass_settings(options, "first"), second=_pass_settings(options, "second"), **run)


def _pass_settings(options: argparse.Namespace, of_pass: str) -> PassSettings:
    from ..ltx_core.pipelines.settings import PassSettings

    values = {option.field: getattr(options, _place(option, of_pass)) for option in (STEPS, GUIDANCE, *OF_PASS)}
    return PassSettings(**values)


def _check_second(options: argparse.Namespace) -> None:
    said = [
        f"--second-{option.name}"
        for option in (STEPS, GUIDANCE, *OF_PASS)
        if getattr(options, _place(option, "second")) is not None
    ]
    if options.adain is not None:
        said.append("--adain")
    if said and options.upscaler is None:
        raise ConfigError(
            f"got {' and '.join(said)} without --upscaler; expected an upscaler, which makes two passes; add it, or "
            f"leave {'it' if len(said) == 1 else 'them'} out"
        )
