"""The node that makes long clips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..ltx_core.media import write_video
from ..ltx_core.models.video_vae import VideoVAE
from ..ltx_core.pipelines.canvas import crop_chunks, on_canvas
from ..ltx_core.pipelines.clip_statistics import ClipStatistics, motion_settings
from ..ltx_core.pipelines.condition import Condition
from ..ltx_core.pipelines.decode import decode_frames
from ..ltx_core.pipelines.long_video import (
    LongSettings,
    check_prompts,
    fingerprint,
    plan_windows,
    sample_windows,
    seam_frames,
)
from ..ltx_core.pipelines.recipe import guidance_for, recipe_for, sampler_for, sigmas_for, warnings_for
from ..ltx_core.pipelines.text import encode_prompts
from ..ltx_core.pipelines.two_stage import PassSettings
from ..ltx_core.presets import NEGATIVE_PROMPT
from ..ltx_core.sampling.guidance import Guidance, describe_plan
from ..ltx_core.sampling.samplers import SamplerSettings
from ..ltx_core.shapes import LatentShape, PixelShape
from . import sockets
from .host import host
from .latent import say_padding
from .steps import received_sigmas
from .widgets import decimal, frame_rate, integer, link, seed, text

FOLDER = "ltxkit-long"  # in the output folder, which ComfyUI does not clear


class GenerateLongVideo(sockets.Node):
    CATEGORY = "LTXKit/sampling"
    DESCRIPTION = (
        "A video of any length, made in windows: each begins with the end of the one before and has a prompt of its "
        "own. Finished windows are kept in the output folder, so that an interrupted run goes on where it was."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "long video", "extend", "looping sampler", "multi prompt", "prompt schedule"]
    RETURN_TYPES = ("VIDEO", "LATENT")
    RETURN_NAMES = ("video", "latent")
    OUTPUT_TOOLTIPS = ("The finished video, as a file, for Save Video.", "Its latent.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": link(sockets.MODEL, "From Load Model."),
                "vae": link(sockets.VAE, "From Load Model."),
                "text_encoder": link(sockets.TEXT_ENCODER, "From Load Text Encoder."),
                "prompts": text("", "One line for the whole video, or one line for each window.", lines=True),
                "negative": text(
                    NEGATIVE_PROMPT,
                    "What it should not look like. Has an effect only where guidance is above 1.",
                    lines=True,
                ),
                "width": integer(768, 16, 16384, "Width in pixels; any number."),
                "height": integer(512, 16, 16384, "Height in pixels; any number."),
                "frames": integer(361, 1, 1000000, "Length in frames; any number."),
                "frame_rate": frame_rate(sockets.DEFAULT_FRAME_RATE, "Frames per second of the result."),
                "window_frames": integer(121, 1, 100000, "Frames of a window, 8k+1."),
                "overlap_frames": integer(
                    25, 1, 100000, "Frames at the end of a window with which the next one begins, 8k+1."
                ),
                "overlap_strength": decimal(1.0, 0.0, 1.0, 0.01, "How firmly the next window keeps to them."),
                "adain": decimal(
                    0.2, 0.0, 1.0, 0.01, "How far the colours of each window go to those of the first, against drift."
                ),
                "seed": seed("Seed of the first window; each window has the one after that before it."),
                "condition_noise": decimal(
                    0.15, 0.0, 1.0, 0.01, "Noise on overlaps and conditions while sampling, for more motion."
                ),
                "decode_timestep": decimal(0.05, 0.0, 1.0, 0.001, "As in Decode Video."),
                "decode_noise_scale": decimal(0.025, 0.0, 1.0, 0.001, "As in Decode Video."),
            },
            "optional": {
                "conditions": link(
                    sockets.CONDITION,
                    "Pictures and clips; their frames count in the whole video, over all windows. Of a reference, "
                    "every window gets its part.",
                ),
                "schedule": link("SIGMAS", "From Schedule, for every window. Without it: the checkpoint's own."),
                "guidance": link(sockets.GUIDANCE, "From Guidance. Without it: the checkpoint's own."),
            },
        }

    def run(
        self,
        model: sockets.Model,
        vae: VideoVAE,
        text_encoder: sockets.Encoder,
        prompts: str,
        negative: str,
        width: int,
        height: int,
        frames: int,
        frame_rate: float,
        window_frames: int,
        overlap_frames: int,
        overlap_strength: float,
        adain: float,
        seed: int,
        condition_noise: float,
        decode_timestep: float,
        decode_noise_scale: float,
        conditions: Sequence[Condition] = (),
        schedule: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        here = host()
        handle = sockets.received_model(model, "Long Video")
        vae = sockets.received(sockets.VAE, vae, "vae")
        encoder: sockets.Encoder = sockets.received(sockets.TEXT_ENCODER, text_encoder, "text_encoder")
        shown = sockets.received(sockets.CONDITION, conditions, "conditions")
        scale = vae.config.scale_factors
        asked = PixelShape(frames, height, width)
        size = asked.padded(scale)
        grid = size.latent(scale)
        say_padding(asked, scale)
        settings = LongSettings(
            window_frames,
            overlap_frames,
            overlap_strength,
            adain,
            folder=here.output_folder / FOLDER,
            fingerprint=repr(
                (fingerprint(handle.transformer, vae), handle.lora_names, decode_timestep, decode_noise_scale)
            ),
        )
        windows = plan_windows(size.frames, settings, scale.frames)
        lines = [line.strip() for line in prompts.splitlines() if line.strip()] or [""]
        here.say(f"{len(windows)} windows of {window_frames} frames, {len(lines)} prompt{'s' * (len(lines) > 1)}.")
        check_prompts(len(lines), windows, settings)
        entry = _pass_settings(handle, windows[0].length, grid, schedule, guidance, condition_noise)

        *positive, unwanted = encode_prompts(
            encoder.encoder, [*lines, negative], placement=here.place, progress=here.progress(), notes=here.say
        )
        if not encoder.keep:
            here.release(encoder.encoder.model)

        def decoded(latent: Tensor) -> Iterator[Tensor]:
            return decode_frames(
                vae,
                latent,
                decode_timestep=decode_timestep,
                decode_noise_scale=decode_noise_scale,
                seed=seed,
                placement=here.place,
                memory=here.spare_memory(vae.decoder),
                progress=here.progress(),
            )

        parts = sample_windows(
            entry,
            vae,
            positive,
            unwanted,
            size=size,
            settings=settings,
            seed=seed,
            fps=frame_rate,
            decode=lambda latent: torch.cat(list(decoded(latent))),
            placement=here.place,
            conditions=[on_canvas(one, asked, size, here.say) for one in shown],
            progress=here.progress(),
            notes=here.say,
        )
        latent = torch.cat(list(parts), dim=2)
        path = here.output_folder / FOLDER / f"video-{_digest(latent, asked, frame_rate, settings)}.mp4"
        statistics = ClipStatistics(seam_frames(windows, scale.frames))
        finished = statistics.watch(crop_chunks(decoded(latent), asked))
        write_video(path, finished, fps=Fraction(frame_rate).limit_denominator(1001))
        here.say(statistics.describe(motion_settings(shown, condition_noise)))
        canvas = sockets.Canvas(asked, frame_rate, grid)
        return here.video(path), {"samples": latent.to(here.output_device), "ltxkit_canvas": canvas}


def _pass_settings(
    model: sockets.Model,
    window_length: int,
    grid: LatentShape,
    schedule: Any,
    guidance: Any,
    condition_noise: float,
) -> PassSettings:
    """What every window is made with; said, with what the checkpoint was not made for."""
    recipe, sentence = recipe_for(model.info.versions)
    say = host().say
    if schedule is None or guidance is None:
        say(sentence)
    if schedule is None:
        tokens = LatentShape(window_length, grid.height, grid.width).tokens
        schedule = sigmas_for(recipe.one_pass, model.info.scheduler, tokens)
    sigmas = received_sigmas(schedule)
    if guidance is None:
        guidance = guidance_for(recipe.one_pass, recipe)
    chosen: Guidance = sockets.received(sockets.GUIDANCE, guidance, "guidance")
    layers = model.transformer.config.num_layers
    plan = chosen.plan(sigmas, layers)
    for sentence in (*warnings_for(recipe, sigmas, plan), f"Every window: {describe_plan(plan, layers)}"):
        say(sentence)
    stepping = SamplerSettings(sampler_for(recipe).name, condition_noise)
    return PassSettings(model.transformer, sigmas, chosen, stepping, model.loras)


def _digest(latent: Tensor, *values: object) -> str:
    """A name for a video: what it is decoded from, and how."""
    digest = hashlib.sha256(repr(values).encode())
    digest.update(latent.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
