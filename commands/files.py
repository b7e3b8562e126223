"""Commands about weights files: what a file holds, what memory a run takes, other formats, a small random set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..ltx_core.errors import ConfigError
from . import again, arguments
from .command import DONE, Command
from .console import Console


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="a weights file, one of its shards, a diffusers or transformers folder, or a clip that LTXKit saved",
    )
    parser.add_argument("--version", metavar="NAME", help="which release the model is, if the file does not say")
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def _inspect(options: argparse.Namespace, console: Console) -> int:
    if again.is_media(options.file):
        made_with = again.made_with(options.file)
        console.result(json.dumps(made_with, indent=2) if options.json else again.format_report(made_with))
        return DONE
    from ..ltx_core.releases import release
    from ..ltx_core.weights.bundled import find_model
    from ..ltx_core.weights.report import format_report, inspect

    if options.version is not None:
        release(options.version)
    report = inspect(find_model(find_model(options.file, "checkpoints"), "loras"), options.version)
    console.result(json.dumps(report, indent=2) if options.json else format_report(report))
    return DONE


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, nargs="?", metavar="FILE", help="checkpoint, or transformer with --vae; none with --train"
    )
    parser.add_argument(
        "--train", metavar="CONFIG", help="every phase of this training instead: a YAML file, or the name of a preset"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="overrides", help="with --train: change one value"
    )
    parser.add_argument(
        "--processes",
        type=arguments.count,
        default=1,
        metavar="N",
        help="each with a card of its own: that make the clip together, or with --train share a batch (default 1)",
    )
    parser.add_argument("--vae", type=Path, metavar="FILE", help="file with the VAE, if the checkpoint has none")
    parser.add_argument("--text-encoder", type=Path, metavar="FILE", help="T5 v1.1 XXL: file or folder")
    parser.add_argument("--upscaler", type=Path, metavar="FILE", help="latent upscaler: makes two passes")
    parser.add_argument("--version", metavar="NAME", help="as in `generate`")
    parser.add_argument(
        "--dtype", choices=arguments.DTYPES, default="auto", help="type of the weights (auto: as stored)"
    )
    parser.add_argument("--quantization", metavar="KIND", help="as in `generate`")
    parser.add_argument("--text-quantization", metavar="KIND", help="as in `generate`")
    parser.add_argument(
        "--size", type=arguments.size, default=(768, 512), metavar="WxH", help="in pixels (default 768x512)"
    )
    parser.add_argument("--frames", type=arguments.frames, default=121, help="of the clip (default 121)")
    parser.add_argument(
        "--branches", type=arguments.whole(1, 3), help="of a step: 2 with guidance, 3 with STG (default: the recipe's)"
    )
    parser.add_argument("--image", action="store_true", help="the clip starts from a picture")
    parser.add_argument("--reference", action="store_true", help="the clip follows the reference video of an IC-LoRA")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--card",
        type=arguments.number(0, 2**20, above=0),
        metavar="GiB",
        help="memory of a card (default: the one here)",
    )
    where.add_argument("--device", metavar="NAME", help="cuda, mps, cpu (default: the best there is)")
    parser.add_argument("--resident-blocks", type=arguments.whole(0), metavar="N", help="as in `generate`")
    parser.add_argument("--tile", type=arguments.count, metavar="CELLS", help="as in `generate`")
    arguments.add_loras(parser, "as in `generate`: counted, and in main memory the copies that it is merged into")
    parser.add_argument("--lora-mode", choices=arguments.LORA_MODES, default="auto", help="as in `generate`")
    parser.add_argument("--cuda-graphs", action="store_true", help="as in `generate`: the memory that they keep")
    parser.add_argument("--copy", action="store_true", help="as in `generate`: weights count as main memory in full")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.add_argument("--named-optimizers", action="store_true", help=argparse.SUPPRESS)  # settings of a stranger


def _plan_training(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.budget.plan import Card
    from ..ltx_core.pipelines.dry_run import card_here
    from ..ltx_core.training.plans import plan_training
    from .training import config_to_plan

    unused = {name: getattr(options, name) for name in _OF_A_CLIP if getattr(options, name) != _OF_A_CLIP[name]}
    if unused:
        named = ", ".join("FILE" if name == "model" else f"--{name.replace('_', '-')}" for name in unused)
        raise ConfigError(
            f"got --train with {named}; expected what belongs to a training: --set, --vae, --processes, --card, "
            "--device, --json; say the rest by --set A.B=C"
        )
    config = config_to_plan(options.train, options.overrides, options.vae, named_optimizers=options.named_optimizers)
    card = Card.of_size(int(options.card * 2**30)) if options.card is not None else card_here(options.device)
    training_plan = plan_training(config, card, processes=options.processes)
    console.result(json.dumps(training_plan.to_json(), indent=2) if options.json else str(training_plan))
    return DONE


# Options of a clip, which a training does not take, with their defaults.
_OF_A_CLIP: dict[str, object] = {
    **dict.fromkeys(("model", "text_encoder", "upscaler", "version", "quantization", "text_quantization")),
    **dict.fromkeys(("branches", "resident_blocks", "tile")),
    **dict.fromkeys(("image", "reference", "copy", "cuda_graphs"), False),
    "lora": [],
    "lora_mode": "auto",
    "dtype": "auto",
    "size": (768, 512),
    "frames": 121,
}


def _plan(options: argparse.Namespace, console: Console) -> int:
    if options.train is not None:
        return _plan_training(options, console)
    if options.model is None or options.overrides:
        raise ConfigError(
            "got a plan without a model, or --set without --train; expected a checkpoint, or --train CONFIG; name one"
        )
    from ..ltx_core.budget.plan import Card, format_plan
    from ..ltx_core.budget.tiling import Tiling
    from ..ltx_core.pipelines.dry_run import Choices, card_here, outline, plan
    from ..ltx_core.pipelines.places import find_file
    from ..ltx_core.pipelines.recipe import recipe_for
    from ..ltx_core.shapes import PixelShape
    from ..ltx_core.weights.build import open_files
    from ..ltx_core.weights.lora import WeightedLoRA, load_lora

    def found(path: Path | None, kind: str) -> Path | None:
        return find_file(path, kind) if path is not None else None

    files = open_files(
        find_file(options.model, "checkpoints"),
        found(options.text_encoder, "text_encoders"),
        vae=found(options.vae, "checkpoints"),
        upscaler=found(options.upscaler, "latent_upscale_models"),
        version=options.version,
        copy=options.copy,
    )
    models = outline(
        files,
        version=options.version,
        dtype=arguments.torch_dtype(options.dtype),
        quantization=options.quantization,
        text_quantization=options.text_quantization,
    )
    versions = models.info.versions
    for note in (*models.info.notes, *([recipe_for(versions)[1]] if len(versions) > 1 else [])):
        console.note(note)
    width, height = options.size
    choices = Choices(
        branches=options.branches,
        resident=options.resident_blocks,
        tiling=Tiling.square(options.tile),
        shows_picture=options.image,
        follows_reference=options.reference,
        processes=options.processes,
        loras=tuple(WeightedLoRA(load_lora(path, copy=options.copy), strength) for path, strength in options.lora),
        lora_mode=options.lora_mode,
        cuda_graphs=options.cuda_graphs,
    )
    card = Card.of_size(int(options.card * 2**30)) if options.card is not None else card_here(options.device)
    memory_plan = plan(models, PixelShape(options.frames, height, width), card, choices)
    console.result(json.dumps(memory_plan.to_json(), indent=2) if options.json else format_plan(memory_plan))
    return DONE


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FILE", help="a checkpoint or diffusers folder with plain weights")
    parser.add_argument("target", type=Path, metavar="TARGET", help="what to write; must not exist yet")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="single-file, diffusers, fp8, fp8-scaled, comfy- with fp8, int8, mxfp8 or nvfp4 (as ComfyUI reads them "
        "since late 2025), or gguf- with q8_0, q5_1, q5_0, q4_1, q4_0 or bf16",
    )
    parser.add_argument(
        "--version", metavar="NAME", help="which release the model is, if the file does not say; the copy says it then"
    )


def _convert(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.weights.convert import convert

    left = convert(options.source, options.target, options.to, version=options.version, progress=console.progress)
    if left:
        named = f"{', '.join(left[:5])}{' ...' if left[5:] else ''}"
        console.note(f"{len(left)} tensors have no place in this format: {named}")
    console.told(str(options.target))
    return DONE


def _make_tiny_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=arguments.output_folder, metavar="DIR", help="folder for checkpoints/, text_encoders/ and so on"
    )
    parser.add_argument("--family", choices=("2b", "13b"), default="2b")
    parser.add_argument("--vae", choices=("0.9.0", "0.9.1", "0.9.5"), default="0.9.5")
    parser.add_argument("--compression", choices=("32x8", "16x4"), default="32x8", help="space x time, per latent cell")
    parser.add_argument("--seed", type=arguments.seed, default=0)


def _make_tiny(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.weights.tiny import make_tiny

    make_tiny(
        options.folder, family=options.family, vae=options.vae, compression=options.compression, seed=options.seed
    )
    for path in sorted(path for path in options.folder.rglob("*") if path.is_file()):
        console.told(str(path))
    console.told("These weights are random: what they make is noise.")
    return DONE


COMMANDS = (
    Command(
        "inspect",
        "Say what a weights file is, from its header, or what a clip was made with.",
        _inspect_arguments,
        _inspect,
        ("inspect ltxv-2b-0.9.8-distilled.safetensors", "inspect ltxkit-digits --json", "inspect clip.mp4"),
    ),
    Command(
        "plan",
        "Say how much memory a run or a training takes, and where; reads only headers.",
        _plan_arguments,
        _plan,
        (
            "plan ltxv-13b-0.9.8-dev.safetensors --text-encoder t5xxl_fp16.safetensors --size 1216x704 --card 8",
            "plan ltxkit-digits --size 64x64 --frames 25",
            "plan --train lora-2b --set initial=2b-0.9.6-dev.safetensors --vae 2b-0.9.6-dev.safetensors --card 12",
        ),
    ),
    Command(
        "convert",
        "Write a checkpoint as folder, single file, fp8 or GGUF.",
        _convert_arguments,
        _convert,
        (
            "convert ltxv-13b-0.9.8-dev.safetensors 13b-q8_0.gguf --to gguf-q8_0",
            "convert ltxv-2b-0.9.8-distilled.safetensors 2b-fp8.safetensors --to fp8-scaled",
        ),
    ),
    Command(
        "make-tiny",
        "Write a complete small random model set.",
        _make_tiny_arguments,
        _make_tiny,
        ("make-tiny models --family 2b --vae 0.9.5",),
    ),
)
