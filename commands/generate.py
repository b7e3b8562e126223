"""`ltxkit generate`: a clip from a prompt, and from a picture or video where there is one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..ltx_core.errors import ConfigError
from . import arguments, settings
from .command import DONE, Command
from .console import Console
from .settings import Group

if TYPE_CHECKING:
    from ..ltx_core.media import Sound
    from ..ltx_core.pipelines.condition import ConditioningItem
    from ..ltx_core.pipelines.library import Components
    from ..ltx_core.pipelines.settings import Overrides
    from ..ltx_core.weights.build import OpenFiles
    from ..ltx_core.weights.lora import WeightedLoRA

READ = ("model", "text_encoder", "vae", "upscaler", "tokenizer", "image", "video", "reference")  # options with inputs


def _arguments(parser: argparse.ArgumentParser) -> None:
    _usual_arguments(parser.add_argument_group("the usual"))
    _start_arguments(parser.add_argument_group("pictures and videos"))
    _model_arguments(parser.add_argument_group("models"))
    _memory_arguments(parser.add_argument_group("memory"))
    settings.recipe_arguments(parser)
    result = parser.add_argument_group("more results")
    result.add_argument(
        "--save-latent", type=arguments.output(), metavar="FILE", help="the latent, as ComfyUI's Load Latent reads it"
    )
    result.add_argument(
        "--contact-sheet", type=arguments.picture, metavar="FILE.png", help="eight frames as one picture"
    )


def _usual_arguments(usual: Group) -> None:
    usual.add_argument(
        "--model", type=Path, required=True, metavar="FILE", help="checkpoint, or transformer with --vae"
    )
    usual.add_argument("--text-encoder", type=Path, required=True, metavar="FILE", help="T5 v1.1 XXL: file or folder")
    usual.add_argument("--upscaler", type=Path, metavar="FILE", help="latent upscaler: makes two passes")
    usual.add_argument("--prompt", required=True, help="what the clip shows")
    usual.add_argument(
        "--negative", metavar="TEXT", help="what the clip avoids, where the recipe uses it (default: the recipe's)"
    )
    usual.add_argument("--size", type=arguments.size, required=True, metavar="WxH", help="of the result, in pixels")
    usual.add_argument("--frames", type=arguments.frames, required=True, help="of the result")
    usual.add_argument(
        "--fps",
        type=arguments.frame_rate,
        metavar="RATE",
        help="frames per second (default: of --video, or the recipe's)",
    )
    usual.add_argument("--seed", type=arguments.seed, default=0, help="the same seed gives the same clip (default 0)")
    settings.usual_arguments(usual)
    usual.add_argument("-o", "--output", type=arguments.mp4, required=True, metavar="FILE.mp4")


def _start_arguments(shown: Group) -> None:
    start = shown.add_mutually_exclusive_group()
    start.add_argument("--image", type=Path, metavar="FILE", help="picture to start from: whatever Pillow opens")
    start.add_argument(
        "--video",
        type=Path,
        metavar="FILE",
        help="clip to start from: a video, an animated picture, or a folder of numbered frames",
    )
    shown.add_argument(
        "--reference", type=Path, metavar="FILE", help="video that an IC-LoRA follows: depth, edges, ..."
    )
    shown.add_argument(
        "--strength",
        type=arguments.number(0, 1),
        default=1.0,
        help="how closely the clip keeps to its start, 0 to 1 (default 1)",
    )
    shown.add_argument(
        "--no-sound",
        action="store_true",
        help="leave out the sound of --video, or of --reference; otherwise it goes through, cut to the result or "
        "followed by silence",
    )
    shown.add_argument(
        "--sound-codec",
        choices=("aac", "flac"),
        default="aac",
        help="aac plays everywhere (default); flac keeps every sample",
    )
    shown.add_argument(
        "--crf", type=arguments.whole(0, 63), default=29, help="H.264 compression of the start, 0 for none (default 29)"
    )


def _model_arguments(models: Group) -> None:
    models.add_argument("--vae", type=Path, metavar="FILE", help="file with the VAE, if --model has none")
    models.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="spiece.model or tokenizer.json (default: beside the encoder, or T5's own)",
    )
    models.add_argument(
        "--lora",
        type=arguments.weighted_lora,
        action="append",
        default=[],
        metavar="FILE[=STRENGTH]",
        help="a LoRA (also LoHa, LoKr, OFT), or the folder of a trainer; may be repeated",
    )
    models.add_argument(
        "--allow-partial", action="store_true", help="leave out what of a LoRA cannot be applied, and say so"
    )
    models.add_argument(
        "--version",
        metavar="NAME",
        help="which release the model is, if the file and its name do not say, or are wrong",
    )
    models.add_argument(
        "--settings",
        metavar="NAME",
        help="release whose recipe to use (default: the model's own; with the distilled LoRA, the distilled model's)",
    )


def _memory_arguments(memory: Group) -> None:
    memory.add_argument(
        "--device",
        metavar="NAME[,NAME...]",
        help="cuda, mps, cpu (default: the best there is); several, such as cuda:0,cuda:1, share the blocks",
    )
    memory.add_argument(
        "--dtype", choices=arguments.DTYPES, default="auto", help="type of the weights (auto: as stored)"
    )
    memory.add_argument(
        "--kernels",
        metavar="auto|plain|LIST",
        help="what a CPU computes by: what was measured here (default), plain torch in the type of the weights, or a "
        "list such as products=packed,attention=products,dtype=float32",
    )
    memory.add_argument(
        "--quantization",
        metavar="KIND",
        help="make the model's weights fp8, int8, nf4, mxfp8, nvfp4 or int8_convrot on loading",
    )
    memory.add_argument("--text-quantization", metavar="KIND", help="the same for the text encoder")
    memory.add_argument(
        "--fp8-matmul", action="store_true", help="multiply quantized weights as stored, where possible"
    )
    memory.add_argument(
        "--resident-blocks",
        type=arguments.whole(0),
        metavar="N",
        help="blocks that stay on the device (default: as `ltxkit plan`)",
    )
    memory.add_argument(
        "--tile",
        type=arguments.count,
        metavar="CELLS",
        help="decode in tiles of this many latent cells (default: as `ltxkit plan`)",
    )
    memory.add_argument(
        "--no-cache",
        action="store_true",
        help="encode the prompts even if they have been encoded before, and keep none (LTXKIT_CACHE=off: always)",
    )


def _generate(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.placing.devices import spare_main_memory

    spare_main_memory()
    said = settings.overrides(options)
    _check_outputs(options)
    loras = _loras(options)
    files = _open_files(options)
    _check_request(options, files, said, loras)
    conditions, fps = _conditions(options, console)
    sound = _sound(options, fps, console)
    width, height = options.size
    clip = _load(options, files, loras, console).generate(
        options.prompt,
        negative_prompt=options.negative,
        width=width,
        height=height,
        frames=options.frames,
        fps=fps,
        seed=options.seed,
        conditions=conditions,
        crf=options.crf,
        settings=said,
        progress=console.progress,
        notes=console.note,
    )
    if options.save_latent:
        clip.save_latent(options.save_latent)
    clip.save(
        options.output,
        contact_sheet=options.contact_sheet,
        sound=sound,
        sound_codec=options.sound_codec,
        progress=console.progress,
    )
    for path in (options.save_latent, options.contact_sheet, options.output):
        if path:
            console.result(str(path))
    return DONE


def _conditions(options: argparse.Namespace, console: Console) -> tuple[list[ConditioningItem], Fraction | None]:
    """What the clip starts from and follows, and its frame rate: --fps, else that of the videos."""
    from ..ltx_core import media
    from ..ltx_core.pipelines.condition import Condition, Reference

    fps: Fraction | None = options.fps
    conditions: list[ConditioningItem] = []
    if options.image:
        conditions.append(Condition(media.read_image(options.image, console.note), strength=options.strength))
    if options.video:
        start = media.read_video(options.video, limit=options.frames, fps=fps, notes=console.note)
        fps = start.fps
        conditions.append(Condition(start.frames, strength=options.strength))
    if options.reference:
        reference = media.read_video(options.reference, limit=options.frames, fps=fps, notes=console.note)
        fps = reference.fps
        conditions.append(Reference(reference.frames, fps=float(fps)))
    return conditions, fps


def _sound(options: argparse.Namespace, fps: Fraction | None, console: Console) -> Sound | None:
    """What is heard with the clip: the sound of --video, else of --reference. fps: of the clip, where one is given."""
    from ..ltx_core import media

    seconds = None if fps is None else options.frames / fps
    files = () if options.no_sound else filter(None, (options.video, options.reference))
    return next(filter(None, (media.read_sound(path, seconds=seconds, notes=console.note) for path in files)), None)


def _check_outputs(options: argparse.Namespace) -> None:
    """Raises ConfigError: two results under one name, or one that would replace what the run reads."""
    written: list[Path] = []
    read = [path for path in (getattr(options, name) for name in READ) if path is not None]
    for path in (options.output, options.save_latent, options.contact_sheet):
        if path is None:
            continue
        for other in (*written, *read, *(path for path, _ in options.lora)):
            if path.absolute() == other.absolute() or (path.exists() and other.exists() and path.samefile(other)):
                role = "another result" if other in written else "a file that the run reads"
                raise ConfigError(f"got the output {path}, which is {role}; expected a name of its own; name another")
        written.append(path)


def _loras(options: argparse.Namespace) -> list[WeightedLoRA]:
    from ..ltx_core.weights.lora import WeightedLoRA, load_lora

    return [WeightedLoRA(load_lora(path), strength, options.allow_partial) for path, strength in options.lora]


def _device(options: argparse.Namespace) -> str | list[str] | None:
    """The value of --device: one name or several."""
    return options.device.split(",") if options.device and "," in options.device else options.device


def _open_files(options: argparse.Namespace) -> OpenFiles:
    from ..ltx_core.weights.build import open_files

    return open_files(
        options.model, options.text_encoder, vae=options.vae, upscaler=options.upscaler, version=options.version
    )


def _check_request(
    options: argparse.Namespace, files: OpenFiles, said: Overrides, loras: Sequence[WeightedLoRA]
) -> None:
    """Refuse from the headers of the files what the models would refuse, once they are loaded."""
    from ..ltx_core.pipelines.dry_run import outline
    from ..ltx_core.pipelines.preflight import check_request
    from ..ltx_core.placing.devices import chosen_device
    from ..ltx_core.shapes import PixelShape

    names = _device(options)
    devices = [chosen_device(name) for name in (names if isinstance(names, list) else [names])]
    models = outline(
        files,
        version=options.version,
        dtype=arguments.torch_dtype(options.dtype),
        quantization=options.quantization,
        text_quantization=options.text_quantization,
    )
    width, height = options.size
    asked = PixelShape.asked(options.frames, height, width)
    device = devices[0] if len(devices) == 1 else None
    check_request(models, asked, said, settings=options.settings, loras=loras, device=device)


def _load(options: argparse.Namespace, files: OpenFiles, loras: Sequence[WeightedLoRA], console: Console) -> Components:
    from ..ltx_core.pipelines.library import Components

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
        device=_device(options),
        resident_blocks=options.resident_blocks,
        tile=options.tile,
        kernels=options.kernels,
        keep=None if options.upscaler else False,  # one clip: only two passes need a model twice
        cache=False if options.no_cache else None,
        opened=files,
        progress=console.progress,
        notes=console.note,
    )


COMMANDS = (
    Command(
        "generate", "Make a clip from a prompt, and from a picture or clip if there is one.", _arguments, _generate
    ),
)
