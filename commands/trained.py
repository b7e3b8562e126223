"""Commands that use a model trained here: `ltxkit sample`, `extend` and `reconstruct`."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..ltx_core.config import STEP_CACHES
from ..ltx_core.errors import ConfigError
from ..ltx_core.values import LARGEST_SCALE, MOST_STEPS
from ..ltx_core.weights.bundled import BUNDLED
from . import arguments
from .command import DONE, Command
from .console import Console
from .jobs import prompt_lines

if TYPE_CHECKING:
    from torch import Tensor

    from ..ltx_core.host import Host
    from ..ltx_core.shapes import PixelShape
    from ..ltx_core.training.generate import ClipSettings


def model_arguments(parser: argparse.ArgumentParser, default: Path | None = None) -> None:
    """Which model, and how it samples."""
    parser.add_argument(
        "--model",
        type=Path,
        default=default,
        required=default is None,
        metavar="DIR",
        help=f"run of train, a folder with its files, or {BUNDLED}, the model that comes with the pack",
    )
    parser.add_argument("--fps", type=arguments.frame_rate, default=Fraction(25), help="frames per second (default 25)")
    parser.add_argument("--steps", type=arguments.whole(1, MOST_STEPS), default=20, help="of the sampler (default 20)")
    parser.add_argument(
        "--guidance", type=arguments.number(0, LARGEST_SCALE), default=3.0, help="guidance scale (default 3)"
    )
    parser.add_argument("--seed", type=arguments.seed, default=0)
    parser.add_argument(
        "--step-cache",
        type=arguments.step_cache,
        default="off",
        metavar="HOW",
        help=f"steps without the model: {', '.join(STEP_CACHES)}, or a share of the schedule, 0 to 1 (default off)",
    )


def size_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=arguments.size, default=(64, 64), metavar="WxH", help="in pixels (default 64x64)"
    )
    parser.add_argument("--frames", type=arguments.frames, default=25, help="(default 25)")


def clip_size(options: argparse.Namespace) -> PixelShape:
    """The size that the options of `size_arguments` ask for."""
    from ..ltx_core.shapes import PixelShape

    width, height = options.size
    return PixelShape(options.frames, height, width)


def clip_settings(options: argparse.Namespace, size: PixelShape, seed: int | None = None) -> ClipSettings:
    """What the options of `model_arguments` say. seed: in place of --seed."""
    from ..ltx_core.pipelines.settings import Overrides, PassSettings
    from ..ltx_core.training.generate import ClipSettings

    said = Overrides(
        first=PassSettings(steps=options.steps, guidance_scale=options.guidance, step_cache=options.step_cache)
    )
    return ClipSettings(size, float(options.fps), options.seed if seed is None else seed, said)


def host_of(console: Console) -> Host:
    """The best device there is, and the terminal."""
    from ..ltx_core.placing.placement import DevicePlacement, host_on

    return host_on(DevicePlacement(keep=None), console.progress, console.note)


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    model_arguments(parser)
    size_arguments(parser)
    parser.add_argument("--prompt", action="append", default=[], help="may be repeated; clip i gets seed + i")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt per line")
    parser.add_argument("-o", "--output", type=arguments.output_folder, required=True, metavar="DIR")


def _sample(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.training.generate import generate_clips, load_models
    from ..ltx_core.training.pictures import save_samples

    prompts = [*options.prompt, *prompt_lines(options.prompts)]
    if not prompts:
        raise ConfigError("got no prompt; expected --prompt or --prompts; add one")
    settings, host = clip_settings(options, clip_size(options)), host_of(console)
    clips = generate_clips(load_models(options.model, host=host), prompts, settings, host=host)
    for path in save_samples(options.output, clips, prompts, float(options.fps)):
        console.told(str(path))
    return DONE


def _extend_arguments(parser: argparse.ArgumentParser) -> None:
    model_arguments(parser)
    parser.add_argument("--video", type=Path, required=True, metavar="FILE", help="clip to continue, or its frames")
    parser.add_argument("--prompt", default="", help="what the clip shows")
    parser.add_argument("--frames", type=arguments.frames, required=True, help="how many frames to add")
    parser.add_argument(
        "--overlap",
        type=arguments.count,
        default=9,
        help="frames that each window repeats from the last, k*t+1 (default 9)",
    )
    parser.add_argument("-o", "--output", type=arguments.mp4, required=True, metavar="FILE.mp4")


def _extend(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.media import read_video, write_video
    from ..ltx_core.shapes import PixelShape
    from ..ltx_core.training.generate import extend, load_models, window_frames

    clip, host = read_video(options.video, fps=options.fps, notes=console.note).frames, host_of(console)
    models = load_models(options.model, host=host)
    window = window_frames(len(clip), options.overlap, models.vae.config.scale_factors.frames)
    settings = clip_settings(options, PixelShape(window, *clip.shape[1:3]))
    longer = extend(models, clip, options.prompt, settings, frames=options.frames, overlap=options.overlap, host=host)
    write_video(options.output, [longer], fps=options.fps)
    console.told(str(options.output))
    return DONE


def _reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    model_arguments(parser)
    size_arguments(parser)
    parser.add_argument("--video", type=Path, required=True, metavar="FILE", help="clip to reconstruct, or its frames")
    parser.add_argument(
        "--sigma",
        type=arguments.number(0, 1),
        default=0.0,
        help="0: the VAE alone; up to 1: add noise of this level and remove it",
    )
    parser.add_argument("--prompt", default="", help="what the clip shows, for --sigma above 0")
    parser.add_argument("-o", "--output", type=arguments.mp4, required=True, metavar="FILE.mp4")


def _reconstruct(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.media import write_video
    from ..ltx_core.training.generate import load_models, reconstruct
    from ..ltx_core.training.pictures import to_frames

    settings, host = clip_settings(options, clip_size(options)), host_of(console)
    pixels = _read_clip(options.video, options.fps, settings.size, console)[None]
    models = load_models(options.model, host=host)
    restored = reconstruct(models, pixels, [options.prompt], settings, sigma=options.sigma, host=host)
    write_video(options.output, [to_frames(restored.pixels[0])], fps=options.fps)
    console.told(f"{options.output}: PSNR {float(restored.psnr[0]):.2f} dB, SSIM {float(restored.ssim[0]):.4f}")
    return DONE


def _read_clip(path: Path, fps: Fraction, size: PixelShape, console: Console) -> Tensor:
    """The first frames of a video, resized, as (3 f h w) in [-1, 1]."""
    from einops import rearrange

    from ..ltx_core.media import read_video, resize

    frames = read_video(path, fps=fps, notes=console.note).frames
    if len(frames) < size.frames:
        raise ConfigError(f"got {path} with {len(frames)} frames; expected {size.frames} or more; lower --frames")
    frames = resize(frames[: size.frames], size.height, size.width, "crop", kernel="bicubic")
    return rearrange(frames * 2 - 1, "f h w c -> c f h w")


COMMANDS = (
    Command(
        "sample",
        "Make clips with a model trained here.",
        _sample_arguments,
        _sample,
        (
            'sample --model runs/moving-mnist --prompt "the digit three moving left" -o out',
            "sample --model ltxkit-digits --prompts prompts.txt -o out",
        ),
    ),
    Command(
        "extend",
        "Make a clip longer.",
        _extend_arguments,
        _extend,
        ('extend --model runs/moving-mnist --video out/000.mp4 --prompt "a 7 moving up" --frames 32 -o longer.mp4',),
    ),
    Command(
        "reconstruct",
        "Measure what survives the VAE, or noising and denoising.",
        _reconstruct_arguments,
        _reconstruct,
        ("reconstruct --model runs/moving-mnist --video out/000.mp4 -o through-the-vae.mp4",),
    ),
)
