"""Nodes that sample: one pass, both passes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..ltx_core.errors import ConfigError
from ..ltx_core.media import resize
from ..ltx_core.models.upsampler import LatentUpsampler
from ..ltx_core.models.video_vae import VideoVAE
from ..ltx_core.pipelines.clip_statistics import motion_settings
from ..ltx_core.pipelines.condition import ConditioningItem, Conditions
from ..ltx_core.pipelines.sample import LatentClip, Prompts
from ..ltx_core.pipelines.settings import Overrides
from ..ltx_core.pipelines.two_stage import Upscaling, first_pass_size, generate_two_stage
from ..ltx_core.sampling.guidance import Guidance
from ..ltx_core.sampling.noise import SeededNoise
from ..ltx_core.shapes import LatentShape, PixelShape
from . import sockets
from .guides import (
    check_one_clip,
    comfyui_mask,
    denoise_mask,
    guides_of,
    mask_on_grid,
    refuse_native_guides,
    sample_guided,
    say_partial,
)
from .host import host
from .latent import TILE_SIZE, decode_clips, say_motion
from .passes import CONDITION_NOISE, LEVELS, SAMPLER, STEP_CACHE, made_pass, received_pass, sampler_name, settings_of
from .ran import FILE_TEXTS, RAN, into_file, note, ran_before
from .room import check_frames, check_sampling
from .widgets import advanced, decimal, integer, labelled, link, seed, switch, text

MISSING = object()  # an input that is not connected
NO_VAE = "got conditions without a VAE; expected one, to encode them; connect the vae of Load Model (LTXKit)"
ADAIN = decimal(
    1.0, 0.0, 1.0, 0.01, "How far the colours return to those of the first pass. Lightricks use 1, diffusers 0."
)

SECOND_STEP_CACHE = labelled(text("off", "As step_cache, for the second pass."), "second step cache")


class SampleVideo(sockets.Node):
    CATEGORY = "LTXKit/sampling"
    DESCRIPTION = (
        "Makes the video, as a latent. On its own it uses the settings that the checkpoint was made for: schedule, "
        "guidance and sampler. Conditions are encoded and placed here, and the result has exactly the frames of the "
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
                "sampler": SAMPLER,
                "condition_noise": CONDITION_NOISE,
            },
            "optional": {
                "vae": link(sockets.VAE, "Needed with conditions."),
                "conditions": link(
                    sockets.CONDITION, "Pictures and clips, from Condition; a control video, from Reference."
                ),
                "schedule": link(
                    "SIGMAS", "From Schedule, or a part of it from SplitSigmas. Without it: the checkpoint's own."
                ),
                "guidance": link(sockets.GUIDANCE, "From Guidance. Without it: the checkpoint's own."),
                "levels": advanced(LEVELS),
                "add_noise": advanced(
                    switch(
                        True,
                        "On: adds noise up to the schedule's first level, unless the latent says that another Sample "
                        "left it there. Off: the latent still has its noise, as from a native sampler whose schedule "
                        "ended where this one starts.",
                    )
                ),
                "step_cache": advanced(STEP_CACHE),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, conditions: Any = MISSING, vae: Any = MISSING) -> bool | str:
        # ComfyUI passes None for what is connected, and puts the sentence on `conditions`, the only one there.
        if conditions is MISSING or vae is not MISSING:
            return True
        return NO_VAE

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
        conditions: Sequence[ConditioningItem] = (),
        schedule: Tensor | None = None,
        guidance: Guidance | None = None,
        levels: Any = "own",
        add_noise: bool = True,
        step_cache: str = "off",
    ) -> tuple[dict[str, Any]]:
        handle = sockets.received_model(model, "Sample")
        samples = sockets.latent_samples(latent)
        check_sampling(samples.shape)
        chain: tuple[ConditioningItem, ...] = sockets.received(sockets.CONDITION, conditions, "conditions")
        if chain and vae is None:
            raise ConfigError(NO_VAE)
        prompts, values = sockets.from_conditioning(positive, "positive")
        unwanted, values_of_negative = sockets.from_conditioning(negative, "negative")
        guides = guides_of(values, samples)
        count = guides.count if guides else 0
        grid = LatentShape(samples.shape[2] - count, *samples.shape[3:])
        canvas = sockets.latent_canvas(latent)
        size = grid.pixels(handle.scale)
        overrides = Overrides(
            first=received_pass(schedule, guidance, step_cache, unfinished=True),
            sampler=sampler_name(sampler),
            condition_noise=condition_noise,
            levels=levels,
        )
        only_pass = made_pass(handle, settings_of(handle, overrides), "one", grid.tokens)
        if only_pass.is_guided:
            check_one_clip(values, values_of_negative)
        left = sockets.left_of(latent, float(only_pass.sigmas[0]))
        mask = mask_on_grid(latent.get("noise_mask"), canvas, size)
        if mask is not None:
            by_comfyui = only_pass.sampler.levels == "comfyui"
            mask = comfyui_mask(mask, samples) if by_comfyui else denoise_mask(mask, samples, handle.scale.frames)
            say_partial(mask, only_pass.sampler.levels)
        clip = LatentClip(
            samples,
            handle.scale,
            sockets.frame_rate(values, canvas),
            mask,
            left or ("noise" if add_noise else "as it is"),
        )
        items = _on_canvas(chain, canvas.size if canvas else size, size)
        noise, ran = sockets.continued_noise(latent, seed), ran_before(latent)
        result, left = sample_guided(
            only_pass,
            clip,
            Prompts(prompts, unwanted),
            noise,
            Conditions(items, None if vae is None else sockets.received(sockets.VAE, vae, "vae")),
            guides=guides,
            host=sockets.stage_host(handle, record=partial(note, ran)),
        )
        sampled = {key: value for key, value in latent.items() if key != sockets.LEFT}
        sampled["samples"] = sockets.outgoing(result)
        if left is not None:
            sampled[sockets.LEFT] = sockets.Unfinished(left, sampled["samples"])
            host().say(f"Left at level {left.level:g}, for a second Sample with the rest of the schedule.")
        sampled[sockets.GUIDES], sampled[sockets.MOTION] = count, motion_settings(chain, condition_noise)
        sampled[sockets.NOISE] = sockets.NoiseDrawn(seed, noise.drawn)
        return ({**sampled, RAN: ran} if ran else sampled,)


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
                "adain": advanced(ADAIN),
                "condition_noise": CONDITION_NOISE,
            },
            "optional": {
                "conditions": link(
                    sockets.CONDITION,
                    "Pictures and clips, from Condition; a control video, from Reference; used in both passes.",
                ),
                "second_model": link(sockets.MODEL, "Another model for the second pass, of the same VAE."),
                "sampler": SAMPLER,
                "levels": advanced(LEVELS),
                "schedule": link("SIGMAS", "From Schedule, for the first pass. Without it: the checkpoint's own."),
                "guidance": link(
                    sockets.GUIDANCE, "From Guidance, for the first pass. Without it: the checkpoint's own."
                ),
                "second_schedule": link(
                    "SIGMAS", "For the second pass, starting below 1. Without it: the checkpoint's own."
                ),
                "second_guidance": link(sockets.GUIDANCE, "For the second pass. Without it: the checkpoint's own."),
                "tile_size": advanced(TILE_SIZE),
                "second_step_cache": advanced(SECOND_STEP_CACHE),
                "step_cache": advanced(STEP_CACHE),
            },
            "hidden": FILE_TEXTS,
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
        conditions: Sequence[ConditioningItem] = (),
        second_model: sockets.Model | None = None,
        sampler: str = "preset",
        levels: Any = "own",
        schedule: Tensor | None = None,
        guidance: Guidance | None = None,
        second_schedule: Tensor | None = None,
        second_guidance: Guidance | None = None,
        tile_size: int = 0,
        second_step_cache: str = "off",
        step_cache: str = "off",
        extra_pnginfo: Any = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        first = sockets.received_model(model, "Two-Stage")
        second = first if second_model is None else sockets.received_model(second_model, "the second pass")
        vae = sockets.received(sockets.VAE, vae, "vae")
        chain: tuple[ConditioningItem, ...] = sockets.received(sockets.CONDITION, conditions, "conditions")
        prompt, values = sockets.from_conditioning(positive, "positive")
        refuse_native_guides(values, "Two-Stage")
        prompts = Prompts(prompt, sockets.from_conditioning(negative, "negative")[0])
        asked = PixelShape(frames, height, width)
        check_frames(asked)
        size = first_pass_size(asked, vae.config.scale_factors)
        clip = LatentClip.empty(vae, size, sockets.frame_rate(values, None))
        overrides = Overrides(
            first=received_pass(schedule, guidance, step_cache),
            second=received_pass(second_schedule, second_guidance, second_step_cache, "second_guidance"),
            sampler=sampler_name(sampler),
            condition_noise=condition_noise,
            levels=levels,
            adain=adain,
        )
        refining = settings_of(second, overrides)
        passes = (
            made_pass(first, settings_of(first, overrides), "first", clip.grid.tokens, label="First pass: "),
            made_pass(
                second,
                refining,
                "second",
                4 * clip.grid.tokens,
                label="Second pass: ",
                names_recipe=second is not first,
            ),
        )
        upscaling = Upscaling(sockets.received(sockets.UPSCALER, upscaler, "upscaler"), vae, refining.adain_factor)
        noise, ran = SeededNoise(seed), dict[str, str]()
        latent = generate_two_stage(
            passes,
            clip,
            prompts,
            upscaling,
            noise=(noise, noise),
            host=sockets.stage_host(first, second, record=partial(note, ran)),
            conditions=Conditions(_on_canvas(chain, asked, PixelShape(size.frames, height, width)), vae),
        )
        result = {
            "samples": sockets.outgoing(latent),
            sockets.NOISE: sockets.NoiseDrawn(seed, noise.drawn),
            **({RAN: ran} if ran else {}),
        }
        into_file(extra_pnginfo, ran)
        (frames_made,) = decode_clips(result, vae, refining.decoding("second"), seed, tile_size)
        fitted = resize(frames_made[:frames], height, width, "stretch")
        say_motion([fitted], motion_settings(chain, condition_noise))
        return sockets.outgoing(fitted), result


def _on_canvas(items: Sequence[ConditioningItem], asked: PixelShape, grid: PixelShape) -> tuple[ConditioningItem, ...]:
    return tuple(item.on_canvas(asked, grid, host().say) for item in items)
