"""Nodes that sample: one pass, both passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..ltx_core.models.upsampler import LatentUpsampler
from ..ltx_core.models.video_vae import VideoVAE
from ..ltx_core.pipelines.canvas import on_canvas, pad_to
from ..ltx_core.pipelines.clip_statistics import motion_settings
from ..ltx_core.pipelines.condition import Condition, fit_frames
from ..ltx_core.pipelines.generate import sample
from ..ltx_core.pipelines.recipe import REFINE, guidance_for, recipe_for, sampler_for, sigmas_for, warnings_for
from ..ltx_core.pipelines.two_stage import PassSettings, first_pass_size, generate_two_stage
from ..ltx_core.presets import PassPreset, Preset
from ..ltx_core.sampling.guidance import Guidance, describe_plan
from ..ltx_core.sampling.noise import SeededNoise
from ..ltx_core.sampling.samplers import SamplerSettings
from ..ltx_core.shapes import LatentShape, PixelShape
from . import sockets
from .host import host
from .latent import decode_clips, say_motion
from .steps import received_sigmas
from .widgets import choice, decimal, integer, link, seed

ADAIN = decimal(
    1.0, 0.0, 1.0, 0.01, "How far the colours go back to those of the first pass. Lightricks use 1, diffusers 0."
)
CONDITION_NOISE = decimal(
    0.15, 0.0, 1.0, 0.01, "Noise on conditions of strength 1 while sampling, for more motion. It is not in the result."
)


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
                "conditions": link(
                    sockets.CONDITION, "Pictures and clips, from Condition; a control video, from Reference."
                ),
                "schedule": link("SIGMAS", "From Schedule. Without it: the checkpoint's own."),
                "guidance": link(sockets.GUIDANCE, "From Guidance. Without it: the checkpoint's own."),
                "levels": choice(
                    ["own", "official"],
                    "Conditions below strength 1. own: each is denoised from its own level. official: as Lightricks' "
                    "script, which can leave noise on them.",
                ),
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
        levels: Any = "own",
    ) -> tuple[dict[str, Any]]:
        handle = sockets.received_model(model, "Sample")
        samples = sockets.latent_samples(latent)
        prompt, values = sockets.from_conditioning(positive, "positive")
        guides = sockets.guide_frames(values, samples)
        grid = LatentShape(samples.shape[2] - guides, *samples.shape[3:])
        canvas = sockets.latent_canvas(latent)
        size = grid.pixels(handle.scale)
        recipe = _recipe(handle, say=schedule is None or guidance is None)
        if schedule is None:
            schedule = sigmas_for(recipe.one_pass, handle.info.scheduler, grid.tokens)
        sigmas = received_sigmas(schedule)
        guidance = guidance_for(recipe.one_pass, recipe) if guidance is None else _guidance(guidance)
        layers = handle.transformer.config.num_layers
        plan = guidance.plan(sigmas, layers)
        for sentence in (*warnings_for(recipe, sigmas, plan), describe_plan(plan, layers)):
            host().say(sentence)
        shown = sockets.received(sockets.CONDITION, conditions, "conditions")
        noise = sockets.continued_noise(latent, seed)
        result = sample(
            handle.transformer,
            samples,
            prompt,
            sockets.from_conditioning(negative, "negative")[0],
            sigmas=sigmas,
            noise=noise,
            fps=sockets.frame_rate(values, canvas),
            scale=handle.scale,
            placement=host().place,
            guidance=guidance,
            settings=_settings(recipe, sampler, condition_noise, levels),
            conditions=_placed(shown, canvas.size if canvas else size, size),
            vae=None if vae is None else sockets.received(sockets.VAE, vae, "vae"),
            loras=handle.loras,
            noise_mask=_mask_on_grid(latent.get("noise_mask"), canvas, size),
            keyframe_idxs=values.get("keyframe_idxs"),
            progress=host().progress(),
            notes=host().say,
        )
        made = {**latent, "samples": result.to(host().output_device)}
        made[sockets.GUIDES], made[sockets.MOTION] = guides, motion_settings(shown, condition_noise)
        made[sockets.NOISE] = sockets.NoiseDrawn(seed, noise.drawn)
        return (made,)


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
                "conditions": link(
                    sockets.CONDITION,
                    "Pictures and clips, from Condition; a control video, from Reference; used in both passes.",
                ),
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
        first = sockets.received_model(model, "Two-Stage")
        second = first if second_model is None else sockets.received_model(second_model, "the second pass")
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
        result = {
            "samples": latent.to(host().output_device),
            sockets.NOISE: sockets.NoiseDrawn(seed, noise.drawn),
        }
        tone = second_pass.tone_map_compression_ratio
        (clip,) = decode_clips(result, vae, refining.decode_timestep, refining.decode_noise_scale, seed, tone)
        clip = fit_frames(clip[:frames], height, width, "stretch")
        say_motion([clip], motion_settings(conditions, condition_noise))
        return clip.to(host().output_device), result


def _pass_settings(
    model: sockets.Model, entry: PassPreset, recipe: Preset, tokens: int, condition_noise: float
) -> PassSettings:
    sigmas = sigmas_for(entry, model.info.scheduler, tokens)
    settings = _settings(recipe, "preset", condition_noise, "own")
    return PassSettings(model.transformer, sigmas, guidance_for(entry, recipe), settings, model.loras)


def _guidance(guidance: Any) -> Guidance:
    return sockets.received(sockets.GUIDANCE, guidance, "guidance")


def _placed(conditions: Any, asked: PixelShape, grid: PixelShape) -> list[Condition]:
    given = sockets.received(sockets.CONDITION, conditions, "conditions")
    return [on_canvas(one, asked, grid, host().say) for one in given]


def _mask_on_grid(mask: Tensor | None, canvas: sockets.Canvas | None, size: PixelShape) -> Tensor | None:
    """A noise mask of pictures (f, [1,] h, w) that was made for the canvas, continued to its grid as the clip is."""
    if mask is None or canvas is None or mask.ndim not in (3, 4):
        return mask
    pictures = mask.reshape(-1, *mask.shape[-2:], 1)
    frames, height, width, _ = pictures.shape
    if frames == canvas.size.frames:
        frames = size.frames
    if (height, width) == (canvas.size.height, canvas.size.width):
        height, width = size.height, size.width
    return pad_to(pictures, PixelShape(frames, height, width))[..., 0]


def _recipe(model: sockets.Model, *, say: bool) -> Preset:
    recipe, sentence = recipe_for(model.info.versions)
    if say:
        host().say(sentence)
    return recipe


def _settings(recipe: Preset, sampler: str, condition_noise: float, levels: Any) -> SamplerSettings:
    name = sampler_for(recipe).name if sampler == "preset" else sampler
    return SamplerSettings(name, condition_noise, levels)
