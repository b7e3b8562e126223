"""Nodes that sample: schedule, guidance, one pass, both passes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..ltx_core.errors import ConfigError
from ..ltx_core.models.upsampler import LatentUpsampler
from ..ltx_core.models.video_vae import VideoVAE
from ..ltx_core.pipelines.canvas import on_canvas
from ..ltx_core.pipelines.condition import Condition, fit_frames
from ..ltx_core.pipelines.generate import sample
from ..ltx_core.pipelines.recipe import REFINE, guidance_for, recipe_for, sampler_for, sigmas_for, warnings_for
from ..ltx_core.pipelines.two_stage import PassSettings, first_pass_size, generate_two_stage
from ..ltx_core.presets import PassPreset, Preset
from ..ltx_core.sampling.filters import tone_map
from ..ltx_core.sampling.guidance import Guidance
from ..ltx_core.sampling.noise import SeededNoise
from ..ltx_core.sampling.samplers import SamplerSettings
from ..ltx_core.sampling.schedules import (
    check_sigmas,
    explicit,
    linear_quadratic,
    shift,
    token_shift,
    truncate,
    uniform,
)
from ..ltx_core.shapes import LatentShape, PixelShape
from . import sockets
from .host import host
from .latent import decode_clips
from .widgets import choice, decimal, integer, link, seed, switch, text

PRESET, FIRST_PASS, SECOND_PASS = "preset", "preset, first pass", "preset, second pass"
LINEAR_QUADRATIC, SHIFTED, LIST = "linear-quadratic", "shifted", "list"
ADAIN = decimal(
    1.0, 0.0, 1.0, 0.01, "How far the colours go back to those of the first pass. Lightricks use 1, diffusers 0."
)
CONDITION_NOISE = decimal(
    0.15, 0.0, 1.0, 0.01, "Noise on conditions of strength 1 while sampling, for more motion. It is not in the result."
)


class CreateSchedule(sockets.Node):
    CATEGORY = "LTXKit/sampling"
    DESCRIPTION = (
        "Noise levels for Sample. Without this node Sample takes the checkpoint's own; use it for a second pass, for "
        "fewer or more steps, for a list of your own, or to start from a given latent."
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
                    [PRESET, FIRST_PASS, SECOND_PASS, LINEAR_QUADRATIC, SHIFTED, LIST],
                    "preset: what the checkpoint was made for (connect the model). shifted: by the number of latent "
                    "cells, as 0.9.0 and 0.9.1.",
                ),
                "steps": integer(30, 1, 1000, "For linear-quadratic and shifted."),
                "levels": text(
                    "", "For list: timesteps (1000 to 0) or sigmas (1 to 0), descending; a missing 0 is appended."
                ),
                "denoise_strength": decimal(
                    1.0,
                    0.0,
                    1.0,
                    0.001,
                    "Below 1: only the last part of the steps, starting from the given latent. 0.4 of 10 steps are 4.",
                ),
            },
            "optional": {
                "model": link(sockets.MODEL, "For the presets: whose preset."),
                "latent": link("LATENT", "For schedules that depend on the size of the clip: shifted, 0.9.0, 0.9.1."),
            },
        }

    def run(
        self,
        kind: str,
        steps: int,
        levels: str,
        denoise_strength: float,
        model: sockets.Model | None = None,
        latent: dict[str, Any] | None = None,
    ) -> tuple[Tensor]:
        grid = None if latent is None else LatentShape(*sockets.latent_samples(latent).shape[2:])
        if kind == LIST:
            sigmas = explicit([_number(text) for text in re.split(r"[\s,;\[\]]+", levels) if text])
        elif kind == LINEAR_QUADRATIC:
            sigmas = linear_quadratic(steps)
        elif kind == SHIFTED:
            if grid is None:
                raise ConfigError(
                    "got a shifted schedule without a latent; expected one, for its size; connect the latent"
                )
            sigmas = shift(uniform(steps), token_shift(grid.tokens))
        else:
            handle = _model(model, f"the schedule {kind!r}")
            sigmas = _preset_sigmas(handle, _pass_of(handle, kind), grid)
        if denoise_strength < 1:
            sigmas = truncate(sigmas, denoise_strength)
        host().say(describe_schedule(sigmas))
        return (sigmas,)


class CreateGuidance(sockets.Node):
    CATEGORY = "LTXKit/sampling"
    DESCRIPTION = (
        "How strongly Sample follows the prompt. Without this node Sample takes the checkpoint's own guidance. "
        "Distilled models want a scale of 1."
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
                "guidance_rescale": decimal(
                    0.0,
                    0.0,
                    1.0,
                    0.01,
                    "How far the contrast that CFG adds is taken back. 0: off. diffusers' examples use 0.7.",
                ),
                "stg_scale": decimal(
                    0.0,
                    0.0,
                    100.0,
                    0.1,
                    "Spatio-temporal guidance: away from what the model makes with some blocks disturbed. 0: off.",
                ),
                "stg_blocks": text("", "Blocks that STG disturbs, for example 19 (2B) or 28 (13B)."),
                "stg_mode": choice(
                    ["attention_values", "attention_skip", "transformer_block"],
                    "What is disturbed in those blocks; Lightricks use attention_values.",
                ),
                "stg_rescale": decimal(
                    1.0,
                    0.0,
                    1.0,
                    0.01,
                    "How far the contrast that STG adds is taken back: 1 is off (sic), Lightricks use 0.7 for 2B.",
                ),
                "cfg_star": switch(False, "CFG-zero-star: scale the negative prediction to the positive one first."),
            }
        }

    def run(
        self,
        guidance_scale: float,
        guidance_rescale: float,
        stg_scale: float,
        stg_blocks: str,
        stg_mode: Any,
        stg_rescale: float,
        cfg_star: bool,
    ) -> tuple[Guidance]:
        blocks = tuple(_whole_number(text) for text in re.split(r"[\s,;\[\]]+", stg_blocks) if text)
        guidance = Guidance(
            scale=(guidance_scale,),
            stg_scale=(stg_scale,),
            rescaling_scale=(stg_rescale,),
            skip_blocks=(blocks,),
            stg_mode=stg_mode,
            cfg_star=cfg_star,
            guidance_rescale=guidance_rescale,
        )
        return (guidance,)


class SampleVideo(sockets.Node):
    CATEGORY = "LTXKit/sampling"
    DESCRIPTION = (
        "Makes the video, as a latent. Alone it does what the checkpoint was made for: its own schedule, guidance "
        "and way of stepping. Conditions are encoded and placed here, and the result has exactly the frames of the "
        "latent."
    )
    SEARCH_ALIASES = [
        "ltx",
        "ltxv",
        "ksampler",
        "sampler",
        "SamplerCustomAdvanced",
        "generate",
        "text to video",
        "t2v",
        "i2v",
    ]
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The sampled latent, for Decode Video or Upscale Latent.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": link(sockets.MODEL, "From Load Model."),
                "positive": link("CONDITIONING", "The prompt, from Encode Prompt; it also brings the frame rate."),
                "negative": link("CONDITIONING", "The negative prompt; not used where guidance is 1."),
                "latent": link(
                    "LATENT", "The canvas: empty for a new video, or a latent to start from with a schedule below 1."
                ),
                "seed": seed("One seed, one video, on every device."),
                "sampler": choice(
                    ["preset", "euler", "stochastic"],
                    "preset: euler, except for 2B 0.9.6 distilled, which wants fresh noise in every step.",
                ),
                "condition_noise": CONDITION_NOISE,
            },
            "optional": {
                "vae": link(sockets.VAE, "Needed with conditions."),
                "conditions": link(sockets.CONDITION, "Pictures and clips, from Condition."),
                "schedule": link("SIGMAS", "From Schedule. Without it: the checkpoint's own."),
                "guidance": link(sockets.GUIDANCE, "From Guidance. Without it: the checkpoint's own."),
            },
        }

    def run(
        self,
        model: sockets.Model,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        sampler: str,
        condition_noise: float,
        vae: VideoVAE | None = None,
        conditions: Sequence[Condition] = (),
        schedule: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> tuple[dict[str, Any]]:
        handle = _model(model, "Sample")
        samples = sockets.latent_samples(latent)
        grid = LatentShape(*samples.shape[2:])
        canvas = sockets.latent_canvas(latent)
        size = grid.pixels(handle.scale)
        prompt, values = sockets.from_conditioning(positive, "positive")
        recipe = _recipe(handle, say=schedule is None or guidance is None)
        if schedule is None:
            schedule = sigmas_for(recipe.one_pass, handle.info.scheduler, grid.tokens)
        sigmas = _sigmas(schedule)
        guidance = guidance_for(recipe.one_pass, recipe) if guidance is None else _guidance(guidance)
        for warning in warnings_for(recipe, sigmas, guidance.plan(sigmas, handle.transformer.config.num_layers)):
            host().say(warning)
        result = sample(
            handle.transformer,
            samples,
            prompt,
            sockets.from_conditioning(negative, "negative")[0],
            sigmas=sigmas,
            noise=SeededNoise(seed),
            fps=sockets.frame_rate(values, canvas),
            scale=handle.scale,
            placement=host().place,
            guidance=guidance,
            settings=_settings(recipe, sampler, condition_noise),
            conditions=_placed(conditions, canvas.size if canvas else size, size),
            vae=None if vae is None else sockets.received(sockets.VAE, vae, "vae"),
            noise_mask=latent.get("noise_mask"),
            keyframe_idxs=values.get("keyframe_idxs"),
            progress=host().progress(),
            notes=host().say,
        )
        return ({**latent, "samples": result.to(host().output_device)},)


class GenerateTwoStage(sockets.Node):
    CATEGORY = "LTXKit/sampling"
    DESCRIPTION = (
        "The whole recipe in one node: a first pass at two thirds of the size, the latent upscaler, a refining pass "
        "at four thirds, decoding, and scaling to exactly the size you asked for. Settings are the checkpoint's own."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "multi scale", "upscale", "refine", "all in one", "generate", "text to video"]
    RETURN_TYPES = ("IMAGE", "LATENT")
    RETURN_NAMES = ("images", "latent")
    OUTPUT_TOOLTIPS = ("The frames, for Create Video.", "The latent of the second pass.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": link(sockets.MODEL, "From Load Model."),
                "vae": link(sockets.VAE, "From Load Model."),
                "upscaler": link(sockets.UPSCALER, "From Load Latent Upscaler; a spatial one."),
                "positive": link("CONDITIONING", "The prompt, from Encode Prompt; it also brings the frame rate."),
                "negative": link("CONDITIONING", "The negative prompt; not used where guidance is 1."),
                "width": integer(1152, 64, 16384, "Width of the result in pixels; any number."),
                "height": integer(768, 64, 16384, "Height of the result in pixels; any number."),
                "frames": integer(121, 1, 100000, "Length in frames; any number."),
                "seed": seed("One seed, one video, on every device."),
                "adain": ADAIN,
                "condition_noise": CONDITION_NOISE,
            },
            "optional": {
                "conditions": link(sockets.CONDITION, "Pictures and clips, from Condition; used in both passes."),
                "second_model": link(sockets.MODEL, "Another model for the second pass, of the same VAE."),
            },
        }

    def run(
        self,
        model: sockets.Model,
        vae: VideoVAE,
        upscaler: LatentUpsampler,
        positive: Any,
        negative: Any,
        width: int,
        height: int,
        frames: int,
        seed: int,
        adain: float,
        condition_noise: float,
        conditions: Sequence[Condition] = (),
        second_model: sockets.Model | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        first = _model(model, "Two-Stage")
        second = first if second_model is None else _model(second_model, "the second pass")
        vae = sockets.received(sockets.VAE, vae, "vae")
        prompt, values = sockets.from_conditioning(positive, "positive")
        asked = PixelShape(frames, height, width)
        size = first_pass_size(asked, vae.config.scale_factors)
        tokens = size.latent(vae.config.scale_factors).tokens
        fps = sockets.frame_rate(values, None)
        noise = SeededNoise(seed)
        recipe, refining = _recipe(first, say=True), _recipe(second, say=second is not first)
        second_pass = refining.second_pass or REFINE
        latent = generate_two_stage(
            _pass_settings(first, recipe.first_pass or recipe.one_pass, recipe, tokens, condition_noise),
            _pass_settings(second, second_pass, refining, 4 * tokens, condition_noise),
            sockets.received(sockets.UPSCALER, upscaler, "upscaler"),
            vae,
            prompt,
            sockets.from_conditioning(negative, "negative")[0],
            size=size,
            fps=fps,
            noise=(noise, noise),
            placement=host().place,
            adain_factor=adain,
            conditions=_placed(conditions, asked, PixelShape(size.frames, height, width)),
            progress=host().progress(),
            notes=host().say,
        )
        latent = tone_map(latent, second_pass.tone_map_compression_ratio)
        result = {"samples": latent.to(host().output_device)}
        (clip,) = decode_clips(result, vae, refining.decode_timestep, refining.decode_noise_scale, seed)
        return fit_frames(clip[:frames], height, width, "stretch").to(host().output_device), result


def _pass_settings(
    model: sockets.Model, entry: PassPreset, recipe: Preset, tokens: int, condition_noise: float
) -> PassSettings:
    sigmas = sigmas_for(entry, model.info.scheduler, tokens)
    settings = _settings(recipe, "preset", condition_noise)
    return PassSettings(model.transformer, sigmas, guidance_for(entry, recipe), settings)


def _model(model: Any, wanted_for: str) -> sockets.Model:
    if model is None:
        raise ConfigError(f"got no model; expected one for {wanted_for}; connect Load Model (LTXKit)")
    return sockets.received(sockets.MODEL, model, "model")


def _guidance(guidance: Any) -> Guidance:
    return sockets.received(sockets.GUIDANCE, guidance, "guidance")


def _placed(conditions: Any, asked: PixelShape, grid: PixelShape) -> list[Condition]:
    return [on_canvas(one, asked, grid) for one in sockets.received(sockets.CONDITION, conditions, "conditions")]


def _recipe(model: sockets.Model, *, say: bool) -> Preset:
    recipe, sentence = recipe_for(model.info.versions)
    if say:
        host().say(sentence)
    return recipe


def _settings(recipe: Preset, sampler: str, condition_noise: float) -> SamplerSettings:
    stochastic = sampler_for(recipe).stochastic if sampler == "preset" else sampler == "stochastic"
    return SamplerSettings(stochastic=stochastic, condition_noise=condition_noise)


def _pass_of(model: sockets.Model, kind: str) -> PassPreset:
    recipe = _recipe(model, say=False)
    entry = {PRESET: recipe.one_pass, FIRST_PASS: recipe.first_pass, SECOND_PASS: recipe.second_pass}[kind]
    if entry is None:
        raise ConfigError(
            f"got the schedule {kind!r} for a model whose release has no recipe in two passes; expected {PRESET!r} or "
            "your own steps; choose linear-quadratic with a denoise strength for a second pass"
        )
    return entry


def _preset_sigmas(model: sockets.Model, entry: PassPreset, grid: LatentShape | None) -> Tensor:
    scheduler = model.info.scheduler
    if grid is None and scheduler is not None and scheduler.shifting is not None:
        raise ConfigError(
            "got the preset of 0.9.0 or 0.9.1 without a latent; expected one, for its size; connect the latent"
        )
    return sigmas_for(entry, scheduler, 0 if grid is None else grid.tokens)


def _sigmas(schedule: Any) -> Tensor:
    if not isinstance(schedule, Tensor):
        raise ConfigError(f"got {type(schedule).__name__} on `schedule`; expected SIGMAS; connect Schedule (LTXKit)")
    sigmas = schedule.float().cpu()
    check_sigmas(sigmas)
    return sigmas


def describe_schedule(sigmas: Tensor) -> str:
    """The levels in a line: `4 steps: 1, 0.909, 0.725, 0.421, 0`."""
    steps = len(sigmas) - 1
    return f"{steps} step{'s' if steps > 1 else ''}: " + ", ".join(f"{level:.4g}" for level in sigmas.tolist())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"got {text!r} in the levels; expected numbers such as 1000, 909, 725; remove it") from error


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"got {text!r} in stg_blocks; expected block numbers such as 11, 25; remove it") from error
