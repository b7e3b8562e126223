"""Nodes around the latent: an empty one, encode, upscale, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ltx_core.budget.tiling import Tiling
from ..ltx_core.media import rgb_frames
from ..ltx_core.models.upsampler import LatentUpsampler
from ..ltx_core.models.video_vae import VideoVAE
from ..ltx_core.pipelines.clip_statistics import ClipStatistics
from ..ltx_core.pipelines.condition import crop_to, pad_to
from ..ltx_core.pipelines.decode import decode
from ..ltx_core.pipelines.encode import encode_frames
from ..ltx_core.pipelines.settings import Decoding
from ..ltx_core.pipelines.two_stage import Upscaling, upscale_latent
from ..ltx_core.sampling import filters
from ..ltx_core.sampling.noise import stream
from ..ltx_core.shapes import LatentShape, PixelShape, ScaleFactors
from . import sockets
from .host import host
from .ran import FILE_TEXTS, into_file, ran_before
from .room import check_frames, check_sampling
from .widgets import advanced, choice, decimal, frame_rate, integer, link, seed

OFFICIAL_SCALE = ScaleFactors(8, 32, 32)  # of every released VAE
OFFICIAL_CHANNELS = 128
TILE_SIZE = integer(
    0,
    0,
    16384,
    "Side of the tiles in which pictures are decoded, in pixels. Ten more latent cells on every side are computed and "
    "discarded, to hide the seams. 0: in one piece, or in tiles that fit the memory.",
)
TONE_MAP = decimal(
    0.0,
    0.0,
    1.0,
    0.01,
    "Reduces extreme values of the latent. Lightricks use 0.6 after the second pass of 13B 0.9.8 distilled. 0: off.",
)
DOUBLE_RATE, SLOW_MOTION = "double the frame rate", "slow motion"


class EmptyLatent(sockets.Node):
    CATEGORY = "LTXKit/latent"
    DESCRIPTION = (
        "The canvas of a new video, of any size and length. If the model needs a larger grid, it gets one, the node "
        "says so, and Decode Video crops the result to the size you asked for."
    )
    SEARCH_ALIASES = [
        "ltx",
        "ltxv",
        "empty latent video",
        "EmptyLTXVLatentVideo",
        "resolution",
        "size",
        "length",
        "seconds",
    ]
    RETURN_TYPES = ("LATENT", "FLOAT")
    RETURN_NAMES = ("latent", "frame_rate")
    OUTPUT_TOOLTIPS = ("The empty latent, for Sample.", "The frame rate, for Encode Prompt and Create Video.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "width": integer(768, 16, 16384, "Width in pixels; any number."),
                "height": integer(512, 16, 16384, "Height in pixels; any number."),
                "frames": integer(121, 1, 100000, "Length in frames; any number. Ignored if seconds is set."),
                "seconds": decimal(0.0, 0.0, 3600.0, 0.01, "Length in seconds, instead of frames. 0: use frames."),
                "frame_rate": frame_rate(sockets.DEFAULT_FRAME_RATE, "Frames per second of the result."),
                "batch_size": integer(1, 1, 64, "Number of videos; each has a seed of its own."),
            },
            "optional": {
                "model": link(
                    sockets.MODEL, "Needed only for a model that was trained with another latent grid than Lightricks'."
                ),
            },
        }

    def run(
        self,
        width: int,
        height: int,
        frames: int,
        seconds: float,
        frame_rate: float,
        batch_size: int,
        model: sockets.Model | None = None,
    ) -> tuple[dict[str, Any], float]:
        scale, channels = OFFICIAL_SCALE, OFFICIAL_CHANNELS
        if model is not None:
            handle: sockets.Model = sockets.received(sockets.MODEL, model, "model")
            scale, channels = handle.scale, handle.transformer.config.in_channels
        asked = PixelShape(max(round(seconds * frame_rate), 1) if seconds else frames, height, width)
        grid = asked.padded(scale).latent(scale)
        check_sampling((batch_size, channels, *grid))
        samples = torch.zeros(batch_size, channels, *grid, device=host().output_device, dtype=host().output_dtype)
        say_padding(asked, scale)
        return {"samples": samples, "ltxkit_canvas": sockets.Canvas(asked, frame_rate, grid)}, frame_rate


def say_padding(asked: PixelShape, scale: ScaleFactors) -> None:
    """Tell the user the grid, and whether it is larger than the clip."""
    grid = asked.padded(scale)
    text = f"{asked.width}x{asked.height}, {asked.frames} frames"
    if grid != asked:
        text += (
            f": made as {grid.width}x{grid.height}, {grid.frames} frames, a size that the model can have, and cropped "
            "by Decode Video"
        )
    cells = grid.latent(scale)
    host().say(f"{text}. Latent grid: {cells.width}x{cells.height}, {cells.frames} frames.")


class UpscaleLatent(sockets.Node):
    CATEGORY = "LTXKit/latent"
    DESCRIPTION = (
        "Doubles the width and height of a latent (or, with a temporal upscaler, its frame rate) for a second, "
        "refining pass of Sample with a schedule that starts below 1."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "latent upscaler", "LTXVLatentUpsampler", "two stage", "adain"]
    RETURN_TYPES = ("LATENT", "FLOAT")
    RETURN_NAMES = ("latent", "frame_rate")
    OUTPUT_TOOLTIPS = (
        "The upscaled latent, for a second Sample.",
        "Its frame rate, for Create Video, and for Encode Prompt of a second pass.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "latent": link("LATENT", "The result of the first Sample."),
                "upscaler": link(sockets.UPSCALER, "From Load Latent Upscaler."),
                "vae": link(sockets.VAE, "The VAE of the model, whose statistics the upscaler needs."),
                "adain": decimal(
                    1.0,
                    0.0,
                    1.0,
                    0.01,
                    "How far the colours return to those of the first pass. Lightricks use 1, diffusers 0.",
                ),
            },
            "optional": {
                "more_frames": choice(
                    [DOUBLE_RATE, SLOW_MOTION],
                    "What the frames that a temporal upscaler adds are for. double the frame rate: smoother motion in "
                    "the same time. slow motion: the same rate at half the speed. A spatial upscaler adds none.",
                ),
            },
        }

    def run(
        self,
        latent: dict[str, Any],
        upscaler: LatentUpsampler,
        vae: VideoVAE,
        adain: float,
        more_frames: str = DOUBLE_RATE,
    ) -> tuple[dict[str, Any], float]:
        samples = sockets.latent_samples(latent)
        sockets.refuse_guides(latent)
        sockets.refuse_unfinished(latent, "Upscale Latent")
        if sockets.seems_guided(latent):
            host().say("If the last frames of this latent are guides of native nodes, crop them first: LTXVCropGuides.")
        vae = sockets.received(sockets.VAE, vae, "vae")
        upscaling = Upscaling(sockets.received(sockets.UPSCALER, upscaler, "upscaler"), vae, adain)
        result = upscale_latent(upscaling, samples, host=sockets.stage_host())
        slower = more_frames == SLOW_MOTION
        larger = sockets.upscaled(latent, sockets.outgoing(result), slower=slower)
        return larger, _say_rate(latent, larger, vae.config.scale_factors, slower=slower)


def _say_rate(before: dict[str, Any], after: dict[str, Any], scale: ScaleFactors, *, slower: bool) -> float:
    """The frame rate of an upscaled latent; the user is told of additional frames."""
    canvas = sockets.latent_canvas(before)
    rate = canvas.fps if canvas else sockets.DEFAULT_FRAME_RATE
    cells = [latent["samples"].shape[2] for latent in (before, after)]
    if cells[0] == cells[1]:
        return rate
    old, new = ((count - 1) * scale.frames + 1 for count in cells)
    new_rate = rate if slower else 2 * rate
    how = (
        "at the same rate: half the speed"
        if slower
        else f"at {new_rate:g} a second instead of {rate:g}: the same speed"
    )
    host().say(f"{new} frames instead of {old}, {how}.")
    return new_rate


class EncodeVideo(sockets.Node):
    CATEGORY = "LTXKit/latent"
    DESCRIPTION = (
        "Encodes pictures into a latent, for video-to-video: Sample starts from it with a schedule below 1. Sizes "
        "and lengths that the VAE cannot have are padded, and Decode Video crops them off again."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "vae encode", "video to video", "v2v"]
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The encoded clip.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": link("IMAGE", "The frames of the clip."),
                "vae": link(sockets.VAE, "From Load Model."),
                "frame_rate": frame_rate(sockets.DEFAULT_FRAME_RATE, "Frames per second of the clip."),
            }
        }

    def run(self, images: Tensor, vae: VideoVAE, frame_rate: float) -> tuple[dict[str, Any]]:
        vae = sockets.received(sockets.VAE, vae, "vae")
        frames = rgb_frames(images)
        asked = PixelShape(*frames.shape[:3])
        grid = asked.padded(vae.config.scale_factors)
        say_padding(asked, vae.config.scale_factors)
        samples = encode_frames(vae, pad_to(frames.cpu(), grid), host=sockets.stage_host())
        canvas = sockets.Canvas(asked, frame_rate, grid.latent(vae.config.scale_factors))
        return ({"samples": sockets.outgoing(samples), "ltxkit_canvas": canvas},)


class DecodeVideo(sockets.Node):
    CATEGORY = "LTXKit/latent"
    DESCRIPTION = (
        "Decodes a latent into pictures, piece by piece: memory does not grow with the length of the clip. Padding is "
        "cropped off: the result has exactly the size and length you asked for."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "vae decode", "vae decode tiled", "decode noise", "decode timestep"]
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The frames, for Create Video.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "latent": link("LATENT", "The sampled latent."),
                "vae": link(sockets.VAE, "From Load Model."),
                "decode_timestep": decimal(
                    0.05, 0.0, 1.0, 0.001, "Noise level that the decoder assumes in the latent; not for 0.9.0."
                ),
                "decode_noise_scale": advanced(
                    decimal(0.025, 0.0, 1.0, 0.001, "Noise that is mixed in for the decoder to remove; not for 0.9.0.")
                ),
                "seed": seed("Seed of that noise, and of the grain."),
            },
            "optional": {
                "tone_map": advanced(TONE_MAP),
                "film_grain": decimal(0.0, 0.0, 1.0, 0.01, "Strength of film grain. 0: off; 0.05 is visible."),
                "grain_saturation": advanced(decimal(0.5, 0.0, 1.0, 0.01, "Colour of the grain: 0 is grey.")),
                "tile_size": advanced(TILE_SIZE),
            },
            "hidden": FILE_TEXTS,
        }

    def run(
        self,
        latent: dict[str, Any],
        vae: VideoVAE,
        decode_timestep: float,
        decode_noise_scale: float,
        seed: int,
        tone_map: float = 0.0,
        film_grain: float = 0.0,
        grain_saturation: float = 0.5,
        tile_size: int = 0,
        extra_pnginfo: Any = None,
    ) -> tuple[Tensor]:
        decoding = Decoding(decode_timestep, decode_noise_scale, tone_map)
        sockets.latent_samples(latent)
        left = sockets.left_of(latent)
        if left is not None:
            host().say(f"This latent was left at level {left.level:g}: its noise is in the picture.")
        clips = decode_clips(latent, vae, decoding, seed, tile_size)
        canvas = sockets.latent_canvas(latent)
        if canvas is not None:
            clips = [crop_to(clip, canvas.size) for clip in clips]
        say_motion(clips, latent.get(sockets.MOTION, ""))
        into_file(extra_pnginfo, ran_before(latent))
        if film_grain:
            clips = [
                filters.film_grain(clip, film_grain, grain_saturation, stream(seed + i, "film grain"))
                for i, clip in enumerate(clips)
            ]
        return (sockets.outgoing(torch.cat(clips)),)


def say_motion(clips: Sequence[Tensor], settings: str) -> None:
    """Tell the user how much each clip (f, h, w, 3) moves, and which settings govern that."""
    for clip in clips:
        if len(clip) > 1:
            statistics = ClipStatistics()
            statistics.add(clip)
            host().say(statistics.describe(settings))


def tiles_of(size: int, vae: VideoVAE) -> Tiling | None:
    """Tiles with sides of about `size` pixels; for 0 None: the planner chooses."""
    return Tiling.square(-(-size // vae.config.scale_factors.height)) if size else None


def decode_clips(
    latent: dict[str, Any], vae: VideoVAE, decoding: Decoding, seed: int, tile_size: int = 0
) -> list[Tensor]:
    """The frames (f, h, w, 3) of every clip of a LATENT, at the size of its grid."""
    vae = sockets.received(sockets.VAE, vae, "vae")
    samples = sockets.latent_samples(latent)
    check_frames(LatentShape(*samples.shape[2:]).pixels(vae.config.scale_factors), len(samples))
    return list(decode(vae, samples, decoding, seed=seed, host=sockets.stage_host(), tiling=tiles_of(tile_size, vae)))
