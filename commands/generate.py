"""`ltxkit generate`: a clip from a prompt, and from a picture or video where there is one."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from . import arguments
from .command import DONE, Command
from .console import Console

if TYPE_CHECKING:
    from ..ltx_core.pipelines.condition import ConditioningItem
    from ..ltx_core.pipelines.library import Clip, Components


def _arguments(parser: argparse.ArgumentParser) -> None:
    _file_arguments(parser.add_argument_group("files"))
    _clip_arguments(parser.add_argument_group("clip"))
    result = parser.add_argument_group("result")
    result.add_argument("-o", "--output", type=arguments.mp4, required=True, metavar="FILE.mp4")
    result.add_argument(
        "--save-latent", type=Path, metavar="FILE", help="also save the latent, as ComfyUI's Load Latent reads it"
    )
    result.add_argument("--contact-sheet", type=Path, metavar="FILE.png", help="also save eight frames as one picture")


def _file_arguments(files: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    files.add_argument(
        "--model", type=Path, required=True, metavar="FILE", help="checkpoint, or transformer with --vae"
    )
    files.add_argument("--vae", type=Path, metavar="FILE", help="file with the VAE, if --model has none")
    files.add_argument("--text-encoder", type=Path, required=True, metavar="FILE", help="T5 v1.1 XXL: file or folder")
    files.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="spiece.model or tokenizer.json, if not beside the encoder"
    )
    files.add_argument("--upscaler", type=Path, metavar="FILE", help="latent upscaler: makes two passes")
    files.add_argument("--version", metavar="NAME", help="which release the model is, if the file does not say")
    files.add_argument(
        "--dtype", choices=arguments.DTYPES, default="auto", help="type of the weights (auto: as stored)"
    )
    files.add_argument("--quantization", metavar="KIND", help="make the model's weights fp8, int8 or nf4 on loading")
    files.add_argument("--text-quantization", metavar="KIND", help="the same for the text encoder")
    files.add_argument("--fp8-matmul", action="store_true", help="multiply fp8 weights in fp8, on cards that can")
    files.add_argument(
        "--lora",
        type=arguments.weighted_lora,
        action="append",
        default=[],
        metavar="FILE[=STRENGTH]",
        help="may be repeated",
    )
    files.add_argument(
        "--allow-partial", action="store_true", help="use what fits of a LoRA with targets that the model lacks"
    )
    files.add_argument(
        "--settings",
        metavar="NAME",
        help="release whose recipe to use (default: the model's own; with the distilled LoRA, the distilled model's)",
    )
    files.add_argument(
        "--device",
        metavar="NAME[,NAME...]",
        help="cuda, mps, cpu (default: the best there is); several, such as cuda:0,cuda:1, share the blocks",
    )
    files.add_argument(
        "--resident-blocks", type=int, metavar="N", help="blocks that stay on the device (default: as `ltxkit plan`)"
    )
    files.add_argument(
        "--tile",
        type=int,
        metavar="CELLS",
        help="decode in tiles of this many latent cells (default: as `ltxkit plan`)",
    )


def _clip_arguments(clip: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    clip.add_argument("--prompt", required=True, help="what the clip shows")
    clip.add_argument(
        "--negative", metavar="TEXT", help="what the clip avoids, where the recipe uses it (default: the recipe's)"
    )
    start = clip.add_mutually_exclusive_group()
    start.add_argument("--image", type=Path, metavar="FILE", help="picture to start from")
    start.add_argument("--video", type=Path, metavar="FILE", help="clip to start from")
    clip.add_argument("--reference", type=Path, metavar="FILE", help="video that an IC-LoRA follows: depth, edges, ...")
    clip.add_argument(
        "--strength", type=float, default=1.0, help="how closely the clip keeps to its start, 0 to 1 (default 1)"
    )
    clip.add_argument("--crf", type=int, default=29, help="H.264 compression of the start, 0 for none (default 29)")
    clip.add_argument("--size", type=arguments.size, required=True, metavar="WxH", help="of the result, in pixels")
    clip.add_argument("--frames", type=int, required=True, help="of the result")
    clip.add_argument(
        "--fps",
        type=arguments.frame_rate,
        metavar="RATE",
        help="frames per second (default: of --video, or the recipe's)",
    )
    clip.add_argument("--seed", type=int, default=0, help="the same seed gives the same clip (default 0)")
    clip.add_argument("--steps", type=int, help="of the pass, or of the first of two (default: the recipe's)")
    clip.add_argument("--guidance", type=float, help="guidance scale, likewise (default: the recipe's)")


def _generate(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.placing.devices import spare_main_memory

    spare_main_memory()
    conditions, fps = _conditions(options)
    clip = _clip(_load(options, console), options, console, conditions, fps)
    if options.save_latent:
        clip.save_latent(options.save_latent)
    clip.save(options.output, contact_sheet=options.contact_sheet, progress=console.progress)
    for path in (options.save_latent, options.contact_sheet, options.output):
        if path:
            console.result(str(path))
    return DONE


def _conditions(options: argparse.Namespace) -> tuple[list[ConditioningItem], Fraction | None]:
    """What the clip starts from and follows, and its frame rate: --fps, else that of the videos."""
    from ..ltx_core import media
    from ..ltx_core.pipelines.condition import Condition, Reference

    fps: Fraction | None = options.fps
    conditions: list[ConditioningItem] = []
    if options.image:
        conditions.append(Condition(media.read_image(options.image), strength=options.strength))
    if options.video:
        start = media.read_video(options.video, limit=options.frames, fps=fps)
        fps = start.fps
        conditions.append(Condition(start.frames, strength=options.strength))
    if options.reference:
        reference = media.read_video(options.reference, limit=options.frames, fps=fps)
        fps = reference.fps
        conditions.append(Reference(reference.frames, fps=float(fps)))
    return conditions, fps


def _load(options: argparse.Namespace, console: Console) -> Components:
    from ..ltx_core.pipelines.library import Components
    from ..ltx_core.weights.lora import WeightedLoRA, load_lora

    loras = [WeightedLoRA(load_lora(path), strength, options.allow_partial) for path, strength in options.lora]
    return Components.load(
        options.model,
        options.text_encoder,
        vae=options.vae,
        upscaler=options.upscaler,
        tokenizer=options.tokenizer,
        version=options.version,
        dtype=arguments.torch_dtype(options.dtype),
        quantization=options.quantization,
        text_quantization=options.text_quantization,
        fp8_matmul=options.fp8_matmul,
        loras=loras,
        settings=options.settings,
        device=options.device.split(",") if options.device and "," in options.device else options.device,
        resident_blocks=options.resident_blocks,
        tile=options.tile,
        progress=console.progress,
        notes=console.note,
    )


def _clip(
    components: Components,
    options: argparse.Namespace,
    console: Console,
    conditions: list[ConditioningItem],
    fps: Fraction | None,
) -> Clip:
    width, height = options.size
    return components.generate(
        options.prompt,
        negative_prompt=options.negative,
        width=width,
        height=height,
        frames=options.frames,
        fps=fps,
        seed=options.seed,
        conditions=conditions,
        crf=options.crf,
        steps=options.steps,
        guidance_scale=options.guidance,
        progress=console.progress,
        notes=console.note,
    )


COMMANDS = (
    Command(
        "generate", "Make a clip from a prompt, and from a picture or clip if there is one.", _arguments, _generate
    ),
)
