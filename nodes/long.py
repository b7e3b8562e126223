"""The node that makes long clips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ltx_core.media import Sound, write_video
from ..ltx_core.models.video_vae import VideoVAE
from ..ltx_core.pipelines.clip_statistics import ClipStatistics, motion_settings
from ..ltx_core.pipelines.condition import ConditioningItem, crop_chunks
from ..ltx_core.pipelines.decode import decode_frames
from ..ltx_core.pipelines.long_video import (
    LongSettings,
    check_prompts,
    fingerprint,
    plan_windows,
    sample_windows,
    seam_frames,
)
from ..ltx_core.pipelines.settings import Overrides
from ..ltx_core.pipelines.text import encode_prompts
from ..ltx_core.releases import NEGATIVE_PROMPT
from ..ltx_core.sampling.guidance import Guidance
from ..ltx_core.shapes import LatentShape, PixelShape
from . import sockets
from .host import host
from .latent import TILE_SIZE, TONE_MAP, say_padding, tiles_of
from .passes import LEVELS, SAMPLER, STEP_CACHE, made_pass, received_pass, sampler_name, settings_of
from .ran import FILE_TEXTS, RAN, into_file, note
from .room import check_sampling
from .sound import received_sound
from .widgets import advanced, decimal, frame_rate, integer, link, seed, text

FOLDER = "ltxkit-long"  # in the output folder, which ComfyUI does not clear


class GenerateLongVideo(sockets.Node):
    CATEGORY = "LTXKit/sampling"
    DESCRIPTION = (
        "A video of any length, made in windows: each begins with the end of the one before and has a prompt of its "
        "own. Finished windows are kept in the output folder, and an interrupted run resumes from them."
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
                "overlap_strength": advanced(decimal(1.0, 0.0, 1.0, 0.01, "How firmly the next window keeps to them.")),
                "adain": advanced(
                    decimal(
                        0.2,
                        0.0,
                        1.0,
                        0.01,
                        "How far the colours of each window move to those of the first, against drift.",
                    )
                ),
                "seed": seed("Seed of the first window; it grows by 1 from window to window."),
                "condition_noise": decimal(
                    0.15, 0.0, 1.0, 0.01, "Noise on overlaps and conditions while sampling, for more motion."
                ),
                "decode_timestep": advanced(decimal(0.05, 0.0, 1.0, 0.001, "As in Decode Video.")),
                "decode_noise_scale": advanced(decimal(0.025, 0.0, 1.0, 0.001, "As in Decode Video.")),
            },
            "optional": {
                "conditions": link(
                    sockets.CONDITION,
                    "Pictures and clips, with frame numbers of the whole video, over all windows. Every window uses "
                    "its part of a reference.",
                ),
                "schedule": link("SIGMAS", "From Schedule, for every window. Without it: the checkpoint's own."),
                "guidance": link(sockets.GUIDANCE, "From Guidance. Without it: the checkpoint's own."),
                "sampler": SAMPLER,
                "levels": advanced(LEVELS),
                "tone_map": advanced(TONE_MAP),
                "tile_size": advanced(TILE_SIZE),
                "audio": link(
                    "AUDIO",
                    "Sound of the video, from its first frame on; cut to it or followed by silence. For a clip that "
                    "goes on: from Sound.",
                ),
                "step_cache": advanced(STEP_CACHE),
            },
            "hidden": FILE_TEXTS,
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
        conditions: Sequence[ConditioningItem] = (),
        schedule: Tensor | None = None,
        guidance: Guidance | None = None,
        sampler: str = "preset",
        levels: Any = "own",
        tone_map: float = 0.0,
        tile_size: int = 0,
        audio: object = None,
        step_cache: str = "off",
        extra_pnginfo: Any = None,
    ) -> tuple[Any, dict[str, Any]]:
        here, ran = host(), dict[str, str]()
        handle = sockets.received_model(model, "Long Video")
        vae = sockets.received(sockets.VAE, vae, "vae")
        encoder: sockets.Encoder = sockets.received(sockets.TEXT_ENCODER, text_encoder, "text_encoder")
        sound = received_sound(audio, "audio")
        chain: tuple[ConditioningItem, ...] = sockets.received(sockets.CONDITION, conditions, "conditions")
        scale = vae.config.scale_factors
        asked = PixelShape(frames, height, width)
        size = asked.padded(scale)
        grid = size.latent(scale)
        check_sampling((vae.config.latent_channels, *grid))  # the windows of the latent, and the whole
        say_padding(asked, scale)
        settings = LongSettings(
            size,
            frame_rate,
            seed,
            window_frames,
            overlap_frames,
            overlap_strength,
            adain,
            folder=here.output_folder / FOLDER,
            fingerprint=repr(
                (fingerprint(handle.transformer, vae), handle.lora_names, decode_timestep, decode_noise_scale)
            ),
        )
        windows = plan_windows(settings, scale.frames)
        lines = [line.strip() for line in prompts.splitlines() if line.strip()] or [""]
        here.say(f"{len(windows)} windows of {window_frames} frames, {len(lines)} prompt{'s' * (len(lines) > 1)}.")
        check_prompts(len(lines), windows, settings)
        overrides = Overrides(
            first=received_pass(schedule, guidance, step_cache),
            sampler=sampler_name(sampler),
            condition_noise=condition_noise,
            levels=levels,
            decode_timestep=decode_timestep,
            decode_noise_scale=decode_noise_scale,
            tone_map=tone_map,
        )
        whole = settings_of(handle, overrides)
        tokens = LatentShape(windows[0].length, grid.height, grid.width).tokens
        window_pass = made_pass(handle, whole, "one", tokens, label="Every window: ")

        *positive, unwanted = encode_prompts(encoder.encoder, [*lines, negative], host=sockets.stage_host(encoder))
        if not encoder.keep:
            here.release(encoder.module)
        decoding, tiling = whole.decoding("one"), tiles_of(tile_size, vae)

        def decoded(latent: Tensor) -> Iterator[Tensor]:
            return decode_frames(vae, latent, decoding, seed=seed, host=sockets.stage_host(), tiling=tiling)

        parts = sample_windows(
            window_pass,
            vae,
            positive,
            unwanted,
            settings,
            decode=lambda latent: torch.cat(list(decoded(latent))),
            host=sockets.stage_host(handle, record=partial(note, ran)),
            items=[item.on_canvas(asked, size, here.say) for item in chain],
        )
        latent = torch.cat(list(parts), dim=2)
        path = here.output_folder / FOLDER / f"video-{_digest(latent, sound, asked, frame_rate, settings)}.mp4"
        statistics = ClipStatistics(seam_frames(windows, scale.frames))
        finished = statistics.watch(crop_chunks(decoded(latent), asked))
        write_video(path, finished, fps=Fraction(frame_rate).limit_denominator(1001), sound=sound)
        here.say(statistics.describe(motion_settings(chain, condition_noise)))
        canvas = sockets.Canvas(asked, frame_rate, grid)
        into_file(extra_pnginfo, ran)
        noted = {RAN: ran} if ran else {}
        return here.video(path), {"samples": sockets.outgoing(latent), "ltxkit_canvas": canvas, **noted}


def _digest(latent: Tensor, sound: Sound | None, *values: object) -> str:
    """A name for a video, from its latent, its sound and the settings of its decoding."""
    digest = hashlib.sha256(repr(values).encode())
    digest.update(latent.contiguous().numpy().tobytes())
    if sound is not None:
        digest.update(str(sound.rate).encode())
        digest.update(sound.waveform.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
