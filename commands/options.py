"""The options of `ltxkit generate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..ltx_core.weights.bundled import BUNDLED, BUNDLED_LORA
from . import arguments, formats, settings
from .settings import Group

COPY_HELP = "read weights into memory, so that a file may change while its model is in use (default: files are mapped)"
EXAMPLES = (
    'generate "a lighthouse in a storm, slow aerial shot"',
    'generate "a fox in the snow" --size 768x512 --frames 121 --seed 7 -o fox.mp4',
    'generate "the fox turns around" --at 0=first.png --at -1=last.png@0.8',
    'generate "the same scene as a watercolour" --from clip.mp4@0.6',
    'generate "a calm sea" --from clip.mp4 --mask white-is-made-anew.png',
    "generate --prompts prompts.txt --count 4 -o 'out/{number}-{prompt}-{seed}.mp4'",
    'generate "a river" --set first.guidance=3 --set first.stg_scale=1 --set decode_timestep=0.05',
    "generate --like fox.mp4 --seed 8",
    f'generate --model {BUNDLED} "the digit three moving left"',
)


def declare(parser: argparse.ArgumentParser) -> None:
    """All options of `generate`."""
    parser.add_argument("words", nargs="*", metavar="PROMPT", help="what the clip shows, in quotes")
    _usual_arguments(parser.add_argument_group("the usual"))
    _start_arguments(parser.add_argument_group("pictures and videos"))
    _model_arguments(parser.add_argument_group("models"))
    _memory_arguments(parser.add_argument_group("memory"))
    settings.recipe_arguments(parser)
    formats.output_arguments(parser.add_argument_group("format of the result"))
    _result_arguments(parser.add_argument_group("more results"))
    _again_arguments(parser)


def _usual_arguments(usual: Group) -> None:
    usual.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="checkpoint, or transformer with --vae (default: $LTXKIT_MODEL, the config file, ComfyUI's folders, the "
        "Hugging Face cache)",
    )
    usual.add_argument(
        "--text-encoder", type=Path, metavar="FILE", help="T5 v1.1 XXL: file or folder (default: searched likewise)"
    )
    usual.add_argument("--upscaler", type=Path, metavar="FILE", help="latent upscaler: makes two passes")
    usual.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="the prompt; may be repeated: a clip each"
    )
    usual.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line: a clip each")
    usual.add_argument("--count", type=arguments.count, default=1, metavar="N", help="clips of each prompt (default 1)")
    usual.add_argument(
        "--negative", metavar="TEXT", help="what the clip avoids, where the recipe uses it (default: the recipe's)"
    )
    usual.add_argument(
        "--size",
        type=arguments.size,
        metavar="WxH",
        help="of the result, in pixels (default: of --from, or the recipe's)",
    )
    usual.add_argument("--frames", type=arguments.frames, help="of the result (default: of --from, or the recipe's)")
    usual.add_argument(
        "--fps",
        type=arguments.frame_rate,
        metavar="RATE",
        help="frames per second (default: of the first video, or the recipe's)",
    )
    usual.add_argument(
        "--seed",
        type=arguments.seed,
        help="the same seed gives the same clip (default: 0, or the first whose made name is free); --count counts on",
    )
    settings.usual_arguments(usual)
    usual.add_argument(
        "-o",
        "--output",
        type=arguments.clip,
        metavar="FILE",
        help="ends in .mp4, .webm, .mkv, .mov, .gif or .webp, or names a folder of pictures: frames/ or "
        "frames/%%04d.exr; with {prompt}, {seed}, {number} or {date} for many (default: an mp4, named by prompt and "
        "seed)",
    )
    usual.add_argument("--overwrite", action="store_true", help="replace results that exist")


def _start_arguments(shown: Group) -> None:
    start = shown.add_mutually_exclusive_group()
    start.add_argument("--image", type=Path, metavar="FILE", help="picture to start from: whatever Pillow opens")
    start.add_argument(
        "--video",
        type=Path,
        metavar="FILE",
        help="clip to start from: a video, an animated picture, or a folder of numbered frames",
    )
    at = shown.add_argument(
        "--at",
        type=arguments.shown_at,
        action="append",
        default=[],
        metavar="FRAME=FILE[@STRENGTH]",
        help="picture or clip to show from this frame on, -1 is the last; may be repeated",
    )
    at.takes_negative = True  # pyright: ignore[reportAttributeAccessIssue]
    shown.add_argument(
        "--from",
        type=arguments.file_with_share,
        dest="source",
        metavar="VIDEO[@SHARE]",
        help="video to make anew; SHARE: how much of the noise schedule runs, 0 to 1 (default 0.6; 1 with --mask)",
    )
    shown.add_argument(
        "--mask", type=Path, metavar="FILE", help="picture or video over --from: white is made anew, black is kept"
    )
    shown.add_argument(
        "--reference", type=Path, metavar="FILE", help="video that an IC-LoRA follows: depth, edges, ..."
    )
    shown.add_argument(
        "--strength",
        type=arguments.number(0, 1),
        help="how closely the clip keeps to --image, --video and --at, 0 to 1 (default 1)",
    )
    shown.add_argument(
        "--no-sound",
        action="store_true",
        help="leave out the sound of --from, --video or --reference; otherwise it goes through, cut to the result or "
        "followed by silence",
    )
    shown.add_argument(
        "--crf", type=arguments.whole(0, 63), default=29, help="H.264 compression of the start, 0 for none (default 29)"
    )
    shown.add_argument(
        "--long",
        type=arguments.frames,
        metavar="FRAMES",
        help="make a clip of this length in windows, each with the next prompt, or all with the only one",
    )
    shown.add_argument(
        "--window", type=arguments.frames, metavar="FRAMES", help="of a window, 8k+1 (default: the recipe's length)"
    )
    shown.add_argument(
        "--keep-windows",
        type=arguments.output_folder,
        metavar="DIR",
        help="keep finished windows there; the same command goes on from them",
    )
    shown.add_argument(
        "--overlap",
        type=arguments.frames,
        metavar="FRAMES",
        help="that a window repeats of the one before (default 25, at most half)",
    )


def _model_arguments(models: Group) -> None:
    models.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="a folder laid out like ComfyUI's models folder, to search in place of ComfyUI's and the cache",
    )
    models.add_argument("--vae", type=Path, metavar="FILE", help="file with the VAE, if --model has none")
    models.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="spiece.model or tokenizer.json (default: beside the encoder, or T5's own)",
    )
    arguments.add_loras(
        models,
        f"a LoRA (also LoHa, LoKr, OFT), the folder of a trainer, or {BUNDLED_LORA}, which comes with the pack; may be "
        "repeated",
    )
    models.add_argument(
        "--allow-partial", action="store_true", help="leave out what of a LoRA cannot be applied, and say so"
    )
    models.add_argument(
        "--lora-mode",
        choices=arguments.LORA_MODES,
        default="auto",
        help="merged: LoRAs go into copies of weights that are not quantized; beside: into the results of Linears "
        "(auto: merged, on a CPU where main memory has room for the copies)",
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
    memory.add_argument("--force", action="store_true", help="try what takes more memory than there is")
    memory.add_argument(
        "--device",
        metavar="NAME[,NAME...]",
        help="cuda, mps, cpu (default: the best there is); several, such as cuda:0,cuda:1, share the blocks; under "
        "torchrun each process takes its own card, and all of them make each clip together",
    )
    memory.add_argument(
        "--dtype", choices=arguments.DTYPES, default="auto", help="type of the weights (auto: as stored)"
    )
    memory.add_argument("--copy", action="store_true", help=COPY_HELP)
    memory.add_argument(
        "--kernels",
        metavar="auto|plain|LIST",
        help="what the device computes by: the best there is (default), plain torch in the type of the weights, or a "
        "list: for a CPU such as products=packed,attention=products,dtype=float32, for a card such as "
        "elementwise=comfy-kitchen,attention=flash-attn-3",
    )
    memory.add_argument(
        "--compile",
        action="store_true",
        help="compile the blocks of the transformer, where none is streamed: the first step takes longer, others less",
    )
    memory.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="--compile, and record the blocks as CUDA graphs, which pays for small clips",
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


def _result_arguments(result: Group) -> None:
    result.add_argument(
        "--save-latent", type=arguments.output(), metavar="FILE", help="the latent, as ComfyUI's Load Latent reads it"
    )
    result.add_argument(
        "--contact-sheet", type=arguments.picture, metavar="FILE.png", help="eight frames as one picture"
    )
    result.add_argument("--json", action="store_true", help="the results as one JSON object, with seeds and times")
    result.add_argument("--no-metadata", action="store_true", help="do not say in the file what it was made with")


def _again_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of making a clip again; last of all."""
    group = parser.add_argument_group("again")
    group.add_argument(
        "--like",
        type=Path,
        metavar="CLIP",
        help="make a clip again from its own metadata: every option that is not given is as it was",
    )
    group.add_argument(
        "--input", type=Path, metavar="DIR", help="with --like: where its pictures and videos are (default: input)"
    )
