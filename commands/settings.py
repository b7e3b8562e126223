"""The options of `ltxkit generate` that override a recipe, `--set` for every one of them, and the one value that they
fill in."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..ltx_core.config import LEVELS, SAMPLER_NAMES, STEP_CACHES, STG_MODES
from ..ltx_core.errors import ConfigError
from ..ltx_core.values import LARGEST_SCALE, MOST_STEPS, shown
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
    Option(
        "step-cache",
        "step_cache",
        arguments.step_cache,
        f"steps without the model: {', '.join(STEP_CACHES)}, or a share of the schedule, 0 to 1",
        "HOW",
    ),
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


# ---------------------------------------------------------------------------------------------------------------- --set


def _each(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of a value that may be a list: one for each step, or for each of guidance_timesteps."""

    def values(text: str) -> Any:
        listed = [read(part.strip()) for part in text.split(",")]
        return tuple(listed) if len(listed) > 1 else listed[0]

    return values


def _blocks(text: str) -> tuple[Any, ...]:
    """A list of blocks, or several with semicolons between them."""
    lists = [arguments.whole_numbers(part) for part in text.split(";")]
    return tuple(lists) if len(lists) > 1 else lists[0]


def _switch(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.strip().lower() not in words:
        raise argparse.ArgumentTypeError(f"got {shown(text)}; expected true or false")
    return words[text.strip().lower()]


_LISTS: Mapping[str, Callable[[str], Any]] = {
    "guidance_scale": _each(_scale),
    "stg_scale": _each(_scale),
    "stg_rescale": _each(_share),
    "stg_blocks": _blocks,
}
_SET_ONLY = Option(
    "guidance-timesteps", "guidance_timesteps", arguments.numbers, "levels from which the entries of such lists count"
)
_DOWNSCALE = Option(
    "downscale-factor", "downscale_factor", arguments.number(0, 1, above=0), "size of the first of two passes, a share"
)


def _knobs() -> dict[str, Option]:
    """Every option by its keys: first.steps, second.guidance or second.guidance_scale, tone_map."""
    passes = (STEPS, GUIDANCE, *OF_PASS, _SET_ONLY)
    knobs = {
        f"{which}.{name}": option
        for which in ("first", "second")
        for option in passes
        for name in (option.name.replace("-", "_"), option.field)
    }
    return knobs | {option.field: option for option in (*OF_RUN, ADAIN, _DOWNSCALE, *DECODING)}


class Assignment(NamedTuple):
    """A value of --set. of_pass: "first", "second", or "" for the whole run."""

    of_pass: str
    field: str
    value: Any


def assignment(text: str) -> Assignment:
    """KEY=VALUE, such as first.guidance=3 or tone_map=0.6."""
    key, equals, value = text.partition("=")
    key, knobs = key.strip().replace("-", "_"), _knobs()
    if not equals or key not in knobs:
        near = difflib.get_close_matches(key, knobs, n=1, cutoff=0.7) or [
            known for known in knobs if known.endswith(f".{key}")
        ]
        advice = f"; did you mean {near[0]}={value or 'VALUE'}?" if near else f"; the keys are {', '.join(knobs)}"
        raise argparse.ArgumentTypeError(
            f"got {shown(text)}; expected KEY=VALUE such as first.guidance=3" + (advice if key or not equals else "")
        )
    option = knobs[key]
    read = _LISTS.get(option.field) or option.type or _switch
    try:
        parsed = read(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {shown(text)}; expected another value") from error
    if option.choices is not None and parsed not in option.choices:
        near = difflib.get_close_matches(value, option.choices, n=1, cutoff=0.5)
        raise argparse.ArgumentTypeError(
            f"got {shown(text)}; expected one of {', '.join(option.choices)}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return Assignment(key.partition(".")[0] if "." in key else "", option.field, parsed)


# -------------------------------------------------------------------------------------------------------------- options


def usual_arguments(group: Group) -> None:
    """The two that are changed most."""
    for option in (STEPS, GUIDANCE):
        _add(group, option, "first", "; of the pass, or of the first of two (default: the recipe's)")


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """The others. One that is left out stays None: the recipe decides."""
    sampling = parser.add_argument_group("sampling", "Each of these overrides the recipe of the checkpoint.")
    sampling.add_argument(
        "--recipe", type=Path, metavar="FILE", help="a recipe in YAML or JSON, LTXKit's or Lightricks' own"
    )
    sampling.add_argument(
        "--set",
        type=assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any of them by its key, such as first.guidance=3 or second.stg_scale=1,0; may be repeated",
    )
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


def overrides(options: argparse.Namespace, recipe: Overrides | None = None) -> Overrides:
    """What the options and --set say, over what a recipe's file says.

    Raises:
        ConfigError: a value that cannot be, or is said twice, or is for a second pass where there is no upscaler.
    """
    from ..ltx_core.pipelines.settings import NO_OVERRIDES

    base = recipe or NO_OVERRIDES
    said = _said(options)
    _check_second(said, options.upscaler is not None)
    passes = {name: _over(getattr(base, name), said[name]) for name in ("first", "second")}
    return _replaced(base, {**said[""], **passes})


def _said(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The fields that are said, by their pass: "first", "second", and "" for those of the whole run."""
    places = {
        (which, option.field): _place(option, which)
        for which in ("first", "second")
        for option in (STEPS, GUIDANCE, *OF_PASS)
    }
    places |= {("", option.field): option.field for option in (*OF_RUN, ADAIN, *DECODING)}
    said: dict[str, dict[str, Any]] = {"first": {}, "second": {}, "": {}}
    for (which, field), place in places.items():
        if getattr(options, place) is not None:
            said[which][field] = getattr(options, place)
    for which, field, value in options.set:
        if field in said[which]:
            raise ConfigError(
                f"got {f'{which}.' if which else ''}{field} twice; expected one value; leave one of the two out"
            )
        said[which][field] = value
    return said


def _over(base: PassSettings, said: Mapping[str, Any]) -> PassSettings:
    """A pass of a recipe's file with what is said; of levels and a schedule, the one that is said."""
    from ..ltx_core.pipelines.settings import SCHEDULE

    dropped: dict[str, Any] = {}
    if "sigmas" in said:
        dropped = dict.fromkeys(SCHEDULE)
    elif any(name in said for name in SCHEDULE):
        dropped = {"sigmas": None, "unfinished": None}
    return _replaced(base, {**dropped, **said})


def _replaced(value: Any, fields: Mapping[str, Any]) -> Any:
    from dataclasses import replace

    return replace(value, **fields)


def _check_second(said: Mapping[str, Mapping[str, Any]], two: bool) -> None:
    names = {option.field: option.name for option in (STEPS, GUIDANCE, *OF_PASS, _SET_ONLY)}
    named = [f"--second-{names[field]}" for field in said["second"]]
    named += [f"--{option.name}" for option in (ADAIN, _DOWNSCALE) if option.field in said[""]]
    if named and not two:
        raise ConfigError(
            f"got {' and '.join(named)} without --upscaler; expected an upscaler, which makes two passes; add it, or "
            f"leave {'it' if len(named) == 1 else 'them'} out"
        )
