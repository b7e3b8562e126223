"""Nodes for the steps of a pass: schedule and guidance."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..ltx_core.config import STG_MODES
from ..ltx_core.errors import ConfigError
from ..ltx_core.pipelines.passes import sigmas_for
from ..ltx_core.pipelines.recipe import recipe_for
from ..ltx_core.pipelines.settings import Settings, Which
from ..ltx_core.releases import RELEASES
from ..ltx_core.sampling.guidance import Guidance, describe_guidance, describe_plan
from ..ltx_core.sampling.schedules import SCHEDULES, explicit, skip, truncate
from ..ltx_core.shapes import LatentShape
from . import sockets
from .host import host
from .passes import received_sigmas
from .widgets import advanced, choice, decimal, integer, labelled, link, switch, text

PRESET, FIRST_PASS, SECOND_PASS = "preset", "preset, first pass", "preset, second pass"
WHICH: Mapping[str, Which] = {PRESET: "one", FIRST_PASS: "first", SECOND_PASS: "second"}
LIST = "list"
# Saved graphs fix the order of the first six; schedules that came later stand behind them.
KINDS = tuple(dict.fromkeys((*WHICH, "linear-quadratic", "shifted", LIST, *SCHEDULES)))
BARS = "".join(map(chr, range(0x2581, 0x2589)))  # an eighth of a line high to the whole
MOST_LEVELS = 40  # in the drawing of a schedule
STG_MODE_TOOLTIP = (
    "What is disturbed in those blocks. attention_values: self-attention returns its values instead of their weighted "
    "means, as Lightricks have it. attention_skip: it returns its input. transformer_block: the block is left out."
)
CFG_STAR_TOOLTIP = "CFG-zero-star: scale the negative prediction to the positive one first."
GUIDANCE_RESCALE = decimal(
    0.0, 0.0, 1.0, 0.01, "How much of the contrast that CFG adds is removed. 0: off. diffusers' examples use 0.7."
)
# Only to show what will run.
SHOWN = {
    "model": link(sockets.MODEL, "With a schedule: the node shows what will run. The guidance does not depend on it."),
    "schedule": link("SIGMAS", "With a model: the node shows what will run. The guidance does not depend on it."),
}


class CreateSchedule(sockets.Node):
    CATEGORY = "LTXKit/sampling"
    DESCRIPTION = (
        "Noise levels for Sample. Without this node Sample uses the checkpoint's own; use it for a second pass, for "
        "fewer or more steps, for a list of your own, or to start from a latent."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "scheduler", "sigmas", "timesteps", "steps", "denoise", "LTXVScheduler"]
    RETURN_TYPES = ("SIGMAS",)
    RETURN_NAMES = ("schedule",)
    OUTPUT_TOOLTIPS = ("The levels from the first to 0, for Sample; ComfyUI's own SIGMAS.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "kind": choice(
                    KINDS,
                    "preset: what the checkpoint was made for (connect the model). "
                    "preset, first pass and preset, second pass: the same for two passes. "
                    "linear-quadratic: as 0.9.5 and later. "
                    "shifted: by the number of latent cells, as 0.9.0 and 0.9.1. "
                    "list: the levels that you write.",
                ),
                "steps": integer(30, 1, 1000, "Number of steps; a preset and a list have their own."),
                "levels": labelled(
                    text(
                        "", "For list: timesteps (1000 to 0) or sigmas (1 to 0), descending; a missing 0 is appended."
                    ),
                    "list of levels",
                ),
                "denoise_strength": decimal(
                    1.0,
                    0.0,
                    1.0,
                    0.001,
                    "Below 1: only the last part of the steps, starting from the latent. 0.4 of 10 steps are 4.",
                ),
            },
            "optional": {
                "model": link(sockets.MODEL, "For the presets: whose preset."),
                "latent": link(
                    "LATENT",
                    "For schedules that depend on the size of the clip: shifted, 0.9.0, 0.9.1. As it is before native "
                    "nodes append guides.",
                ),
                "skip_initial_steps": advanced(
                    integer(0, 0, 1000, "Number of steps to skip at the start, for a second pass.")
                ),
                "skip_final_steps": advanced(
                    integer(0, 0, 1000, "Number of steps to skip at the end; the last one that remains goes to 0.")
                ),
            },
        }

    @classmethod
    def problem(cls, values: Mapping[str, Any]) -> str | None:
        if values.get("kind") != LIST or not isinstance(values.get("levels"), str):
            return None
        return _problem_of(lambda: explicit(_numbers(values["levels"], "levels", "1000, 909, 725")))

    @classmethod
    def VALIDATE_INPUTS(cls, levels: str | None = None) -> bool | str:
        # Whether the list is used is not known here; an empty one is not.
        return True if not (levels or "").strip() else cls.problem({"kind": LIST, "levels": levels}) or True

    def run(
        self,
        kind: str,
        steps: int,
        levels: str,
        denoise_strength: float,
        model: sockets.Model | None = None,
        latent: dict[str, Any] | None = None,
        skip_initial_steps: int = 0,
        skip_final_steps: int = 0,
    ) -> tuple[Tensor]:
        grid = None if latent is None else LatentShape(*sockets.latent_samples(latent).shape[2:])
        if kind == LIST:
            sigmas = explicit(_numbers(levels, "levels", "1000, 909, 725"))
        elif kind in WHICH:
            handle = sockets.received_model(model, f"the schedule {kind!r}")
            sigmas = _preset_sigmas(handle, kind, grid)
        else:
            schedule = SCHEDULES[kind]
            if schedule.by_size and grid is None:
                raise ConfigError(
                    f"got a {kind} schedule without a latent; expected one, for its size; connect the latent"
                )
            sigmas = schedule.levels(steps, 0 if grid is None else grid.tokens)
        if skip_initial_steps or skip_final_steps:
            sigmas = skip(sigmas, skip_initial_steps, skip_final_steps)
        if denoise_strength < 1:
            sigmas = truncate(sigmas, denoise_strength)
        host().say(describe_schedule(sigmas))
        return (sigmas,)


class CreateGuidance(sockets.Node):
    CATEGORY = "LTXKit/sampling"
    DESCRIPTION = (
        "How strongly Sample follows the prompt. Without this node Sample uses the checkpoint's own guidance. "
        "Distilled models need a scale of 1."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "cfg", "cfg scale", "guider", "stg", "rescale", "spatio-temporal guidance"]
    RETURN_TYPES = (sockets.GUIDANCE,)
    RETURN_NAMES = ("guidance",)
    OUTPUT_TOOLTIPS = ("The guidance of all steps, for Sample.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "guidance_scale": decimal(
                    3.0,
                    1.0,
                    100.0,
                    0.1,
                    "Classifier-free guidance (CFG). 1: off, the negative prompt is not used, and a step costs half.",
                ),
                "guidance_rescale": GUIDANCE_RESCALE,
                "stg_scale": decimal(
                    0.0,
                    0.0,
                    100.0,
                    0.1,
                    "Spatio-temporal guidance: away from what the model makes with some blocks disturbed. 0: off.",
                ),
                "stg_blocks": text("", "Blocks that STG disturbs, for example 19 (2B) or 28 (13B)."),
                "stg_mode": advanced(choice(STG_MODES, STG_MODE_TOOLTIP)),
                "stg_rescale": advanced(
                    decimal(
                        1.0,
                        0.0,
                        1.0,
                        0.01,
                        "How much of the contrast that STG adds is removed: 1 is off (sic), Lightricks use 0.7 for 2B.",
                    )
                ),
                "cfg_star": advanced(switch(False, CFG_STAR_TOOLTIP)),
            },
            "optional": SHOWN,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, stg_blocks: str | None = None) -> bool | str:
        return _problem_of(lambda: Guidance(skip_blocks=(_whole_numbers(stg_blocks or ""),))) or True

    def run(
        self,
        guidance_scale: float,
        guidance_rescale: float,
        stg_scale: float,
        stg_blocks: str,
        stg_mode: Any,
        stg_rescale: float,
        cfg_star: bool,
        model: sockets.Model | None = None,
        schedule: Tensor | None = None,
    ) -> tuple[Guidance]:
        guidance = Guidance(
            scale=(guidance_scale,),
            stg_scale=(stg_scale,),
            rescaling_scale=(stg_rescale,),
            skip_blocks=(_whole_numbers(stg_blocks),),
            stg_mode=stg_mode,
            cfg_star=cfg_star,
            guidance_rescale=guidance_rescale,
        )
        _say_guidance(guidance, model, schedule)
        return (guidance,)


LISTS = ("guidance_timesteps", "guidance_scale", "stg_scale", "stg_rescale", "stg_blocks")
_DEFAULT_LISTS = RELEASES["13b-0.9.8-dev"].recipe.one_pass


def _listed(values: tuple[Any, ...] | None) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float | int) else str(list(value)) for value in values or ())


class CreateStepGuidance(sockets.Node):
    CATEGORY = "LTXKit/sampling"
    DESCRIPTION = (
        "Guidance that changes from step to step, as in Lightricks' yaml files: lists keyed by noise level, each entry "
        "with its own blocks. A step computes only what it needs. The defaults are the lists of 13B dev."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "cfg schedule", "STGGuiderAdvanced", "guidance_timesteps", "stg", "per step"]
    RETURN_TYPES = (sockets.GUIDANCE,)
    RETURN_NAMES = ("guidance",)
    OUTPUT_TOOLTIPS = ("The guidance of all steps, for Sample.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        entries = _DEFAULT_LISTS
        return {
            "required": {
                "guidance_timesteps": text(
                    _listed(entries.guidance_timesteps),
                    "Levels, 1 to 0. A step takes the first entry that is not above its own level, otherwise the last. "
                    "Empty: one entry for all steps.",
                ),
                "guidance_scale": text(
                    _listed(entries.guidance_scale), "Classifier-free guidance: one entry for all, or one each. 1: off."
                ),
                "stg_scale": text(
                    _listed(entries.stg_scale), "Spatio-temporal guidance: one entry for all, or one each. 0: off."
                ),
                "stg_rescale": text(
                    _listed(entries.rescaling_scale),
                    "How much of the contrast that STG adds is removed: one entry for all, or one each. 1: off (sic).",
                ),
                "stg_blocks": text(
                    _listed(entries.skip_block_list),
                    "Blocks that STG disturbs: 28 for all steps, or one list each, such as [], [11, 25], [28].",
                ),
                "stg_mode": advanced(choice(STG_MODES, STG_MODE_TOOLTIP)),
                "cfg_star": advanced(switch(entries.cfg_star_rescale, CFG_STAR_TOOLTIP)),
                "guidance_rescale": advanced(GUIDANCE_RESCALE),
            },
            "optional": SHOWN,
        }

    @classmethod
    def problem(cls, values: Mapping[str, Any]) -> str | None:
        lists = [values.get(name) for name in LISTS]
        return None if None in lists else _problem_of(lambda: _step_guidance(*map(str, lists)))

    @classmethod
    def VALIDATE_INPUTS(cls, stg_blocks: str | None = None) -> bool | str:
        return _problem_of(lambda: [Guidance(skip_blocks=(each,)) for each in _block_lists(stg_blocks or "")]) or True

    def run(
        self,
        guidance_timesteps: str,
        guidance_scale: str,
        stg_scale: str,
        stg_rescale: str,
        stg_blocks: str,
        stg_mode: Any,
        cfg_star: bool,
        guidance_rescale: float,
        model: sockets.Model | None = None,
        schedule: Tensor | None = None,
    ) -> tuple[Guidance]:
        lists = _step_guidance(guidance_timesteps, guidance_scale, stg_scale, stg_rescale, stg_blocks)
        guidance = replace(lists, stg_mode=stg_mode, cfg_star=cfg_star, guidance_rescale=guidance_rescale)
        _say_guidance(guidance, model, schedule)
        return (guidance,)


def _step_guidance(timesteps: str, scale: str, stg_scale: str, stg_rescale: str, stg_blocks: str) -> Guidance:
    """The guidance that the lists of Guidance per Step describe. Raises ConfigError: they cannot be, or do not fit."""
    return Guidance(
        scale=_numbers(scale, "guidance_scale", "1, 6, 8"),
        stg_scale=_numbers(stg_scale, "stg_scale", "0, 4, 4"),
        rescaling_scale=_numbers(stg_rescale, "stg_rescale", "1, 0.5, 0.5"),
        skip_blocks=_block_lists(stg_blocks),
        guidance_timesteps=_numbers(timesteps, "guidance_timesteps", "1, 0.99, 0.9") or None,
    )


def _problem_of(make: Callable[[], object]) -> str | None:
    """What making a value raises."""
    try:
        make()
    except ConfigError as error:
        return str(error)
    return None


def _say_guidance(guidance: Guidance, model: Any, schedule: Any) -> None:
    if model is None or schedule is None:
        host().say(describe_guidance(guidance))
        return
    layers = sockets.received_model(model, "what will run").transformer.config.num_layers
    host().say(describe_plan(guidance.plan(received_sigmas(schedule), layers), layers))


def _preset_sigmas(model: sockets.Model, kind: str, grid: LatentShape | None) -> Tensor:
    recipe, _ = recipe_for(model.info.versions)
    scheduler = model.info.scheduler
    which = WHICH[kind]
    if (which == "first" and recipe.first_pass is None) or (which == "second" and recipe.second_pass is None):
        raise ConfigError(
            f"got the schedule {kind!r} for a model whose release has no recipe in two passes; expected {PRESET!r} or "
            "your own steps; choose linear-quadratic with a denoise strength for a second pass"
        )
    if grid is None and scheduler is not None and scheduler.shifting is not None:
        raise ConfigError(
            "got the preset of 0.9.0 or 0.9.1 without a latent; expected one, for its size; connect the latent"
        )
    return sigmas_for(Settings(recipe).entry(which), scheduler, 0 if grid is None else grid.tokens)


def describe_schedule(sigmas: Tensor) -> str:
    """The levels in one line, as a drawing and in numbers: `4 steps ....: 1, 0.909, 0.725, 0.421, 0`."""
    levels, steps = sigmas.tolist(), len(sigmas) - 1
    sampled = (
        [levels[round(i * steps / MOST_LEVELS)] for i in range(MOST_LEVELS)] if steps > MOST_LEVELS else levels[:-1]
    )
    bars = "".join(BARS[round(level * (len(BARS) - 1))] for level in sampled)
    numbers = [f"{level:.4g}" for level in levels]
    if steps > MOST_LEVELS:
        numbers = [*numbers[:8], "...", *numbers[-4:]]
    return f"{steps} step{'s' if steps > 1 else ''} {bars}: {', '.join(numbers)}"


def _words(listed: str) -> list[str]:
    return [word for word in re.split(r"[\s,;\[\]]+", listed) if word]


def _numbers(listed: str, name: str, example: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in _words(listed))
    except ValueError as error:
        raise ConfigError(f"got {listed!r} as {name}; expected numbers such as {example}; correct the list") from error


def _whole_numbers(listed: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(listed))
    except ValueError as error:
        raise ConfigError(
            f"got {listed!r} as stg_blocks; expected block numbers such as 11, 25; correct the list"
        ) from error


def _block_lists(listed: str) -> tuple[tuple[int, ...], ...]:
    """`28` is one list for all entries; `[], [11, 25]`, with or without brackets around the whole, is one per entry."""
    if "[" not in listed:
        return (_whole_numbers(listed),)
    if re.sub(r"\[[^\[\]]*\]", "", listed).strip(" ,;\n[]"):
        raise ConfigError(
            f"got {listed!r} as stg_blocks; expected one list for each entry, such as [], [11, 25], [28]; put every "
            "number into brackets"
        )
    return tuple(_whole_numbers(inner) for inner in re.findall(r"\[([^\[\]]*)\]", listed))
