"""From the inputs of a sampling node to a pass of the core, with a report to the user."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..ltx_core.errors import ConfigError
from ..ltx_core.pipelines.passes import Pass
from ..ltx_core.pipelines.recipe import recipe_for
from ..ltx_core.pipelines.settings import Overrides, PassSettings, Settings, Which
from ..ltx_core.sampling.samplers import SAMPLERS
from ..ltx_core.sampling.schedules import check_sigmas
from . import sockets
from .host import host
from .widgets import choice, decimal, labelled, text

PRESET = "preset"
SAMPLER = choice(
    [PRESET, *SAMPLERS],
    "preset: euler, except for 2B 0.9.6 distilled, which needs fresh noise in every step (stochastic). heun: twice the "
    "work per step, the most exact for many steps. dpmpp_2m (DPM++ 2M) and gradient_estimation: more exact than euler "
    "at the same cost. Distilled checkpoints: euler, or what the preset says.",
)
LEVELS = labelled(
    choice(
        ["own", "official", "comfyui"],
        "What a strength or a mask between 0 and 1 means. own: a condition of strength 0.7 starts at noise level 0.3 "
        "and is denoised from there. official: as in Lightricks' script, which can leave noise on it. comfyui: as in "
        "ComfyUI's own samplers, which blend it in at every step; choose it with LTXVImgToVideo, LTXVAddGuide and "
        "noise masks.",
    ),
    "condition levels",
)
CONDITION_NOISE = decimal(
    0.15, 0.0, 1.0, 0.01, "Noise on conditions of strength 1 while sampling, for more motion. It is not in the result."
)
STEP_CACHE = labelled(
    text(
        "off",
        "Leaves the model out of some steps, whose velocities it extrapolates for each branch of guidance. off: no "
        "step. careful: about half of 30 steps. fast: two thirds. Or a number from 0 to 1: the largest share of the "
        "schedule between two steps with the model. For dev checkpoints, from 12 steps on; not with heun or "
        "stochastic. ComfyUI's EasyCache has no effect here.",
    ),
    "step cache",
)


def received_sigmas(schedule: Any, *, unfinished: bool = False) -> Tensor:
    """The value of the input `schedule`: (steps + 1) float32 on the CPU.

    unfinished: they may end above 0, as the first half of SplitSigmas does.

    Raises:
        ConfigError: not SIGMAS, or SIGMAS that do not descend from at most 1 to 0.
    """
    if not isinstance(schedule, Tensor):
        raise ConfigError(f"got {type(schedule).__name__} on `schedule`; expected SIGMAS; connect Schedule (LTXKit)")
    sigmas = schedule.float().cpu()
    if not unfinished and sigmas.ndim == 1 and len(sigmas) > 1 and sigmas[-1] > 0:
        raise ConfigError(
            f"got a schedule that ends at level {float(sigmas[-1]):g}; expected 0 at its end, since this node shows "
            "the result; use Sample (LTXKit) twice, with the halves of SplitSigmas"
        )
    check_sigmas(sigmas, unfinished=unfinished)
    return sigmas


def received_pass(
    schedule: Any, guidance: Any, step_cache: str | float, name: str = "guidance", *, unfinished: bool = False
) -> PassSettings:
    """The overrides that the inputs of a pass contain; None for an input without a link.

    name: of the input for guidance. unfinished: as in `received_sigmas`.
    """
    sigmas = None if schedule is None else received_sigmas(schedule, unfinished=unfinished)
    return PassSettings(
        sigmas=None if sigmas is None else tuple(sigmas.tolist()),
        unfinished=True if sigmas is not None and sigmas[-1] > 0 else None,
        guidance=None if guidance is None else sockets.received(sockets.GUIDANCE, guidance, name),
        step_cache=step_cache,
    )


def sampler_name(widget: str) -> str | None:
    """The sampler that a widget names; None: the recipe's."""
    return None if widget == PRESET else widget


def settings_of(model: sockets.Model, overrides: Overrides) -> Settings:
    """The recipe of a model with the overrides of the widgets."""
    return Settings(recipe_for(model.info.versions)[0], overrides)


def made_pass(
    model: sockets.Model, settings: Settings, which: Which, tokens: int, *, label: str = "", names_recipe: bool = True
) -> Pass:
    """A pass of the model. Tells the user its cost, settings that the checkpoint was not made for, and a recipe in use.

    tokens: of the clip, guides not counted. names_recipe: False if another pass of the node has named the recipe.
    """
    say = host().say
    said = settings.of_pass(which)
    if names_recipe and (said.sigmas is None or said.guidance is None):
        say(recipe_for(model.info.versions)[1])
    result = Pass.of(model.transformer, settings, which, tokens, scheduler=model.info.scheduler, loras=model.loras)
    for sentence in (*result.remarks(settings.recipe), f"{label}{result.describe()}"):
        say(sentence)
    return result
