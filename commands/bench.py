"""`ltxkit bench`: how fast LTXKit is on this machine, and how fast others are beside it."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ltx_core.errors import ConfigError, ShapeError
from ..ltx_core.releases import RELEASES
from ..ltx_core.shapes import PixelShape
from ..ltx_core.values import shown
from . import arguments
from .command import DONE, Command
from .console import Console

if TYPE_CHECKING:
    from ..ltx_core.measuring.bench import Choices

WHAT = ("step", "decode", "encode", "clip")  # as measuring.bench.WHAT, which imports torch
PEERS = ("diffusers", "official", "comfyui")
FAMILIES = ("2b", "13b")
_MOST_ROUNDS = 1000


def sizes(text: str) -> tuple[PixelShape, ...]:
    """WxHxF between commas, in pixels and frames."""
    return tuple(_size(word) for word in text.split(","))


def _size(text: str) -> PixelShape:
    match = re.fullmatch(r"\s*(\d{1,9})[xX](\d{1,9})[xX](\d{1,9})\s*", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"got {shown(text)}; expected width x height x frames, such as 768x512x49, with commas between sizes"
        )
    width, height, frames = map(int, match.groups())
    try:
        return PixelShape.asked(frames, height, width)
    except ShapeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def one_size(text: str) -> PixelShape:
    """WxHxF."""
    return _size(text)


def thread_counts(text: str) -> tuple[int, ...]:
    """Counts between commas; "all" is 0."""
    return tuple(0 if word.strip() == "all" else arguments.count(word) for word in text.split(","))


def parts(text: str) -> frozenset[str]:
    """Some of WHAT between commas."""
    words = [word.strip() for word in text.split(",")]
    wrong = next((word for word in words if word not in WHAT), None)
    if wrong is not None:
        raise argparse.ArgumentTypeError(f"got {shown(wrong)}; expected some of {', '.join(WHAT)}")
    return frozenset(words)


def _arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--model",
        metavar="FILE",
        help="a model file or folder, or a name as for ltxkit.load (default: random weights of the released size)",
    )
    what.add_argument("--text-encoder", metavar="FILE", help="its T5; without it no clip is made of --model")
    what.add_argument("--vae", metavar="FILE", help="for a model without one")
    what.add_argument("--version", choices=tuple(RELEASES), metavar="RELEASE", help="of a file that does not state it")
    what.add_argument(
        "--random", choices=FAMILIES, default="2b", help="the size of random weights (default 2b; 13b writes 28 GB)"
    )
    what.add_argument(
        "--tiny", action="store_true", help="rehearse with a tiny model, in seconds; figures mean nothing"
    )
    what.add_argument(
        "--only", type=parts, default=frozenset(WHAT), metavar="PARTS", help=f"some of {','.join(WHAT)} (default: all)"
    )
    what.add_argument(
        "--sizes",
        type=sizes,
        metavar="WxHxF,...",
        help="of steps, decoding and encoding, in pixels and frames (default 384x256x25,768x512x49: 384 and 2,688 "
        "tokens)",
    )
    what.add_argument(
        "--clip", type=one_size, metavar="WxHxF", help="of the clip (default: the first size on a CPU, else the last)"
    )
    what.add_argument(
        "--settings",
        choices=tuple(RELEASES),
        metavar="RELEASE",
        help="the release whose recipe the clip uses (default: the model's; for random weights 0.9.8-distilled)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--against",
        metavar="PEERS",
        help=f"others to measure beside it, some of {','.join(PEERS)}, with =FOLDER for a checkout that is not "
        "installed: diffusers,comfyui=~/ComfyUI",
    )
    how.add_argument("--dtype", choices=arguments.DTYPES, default="auto", help="of all weights (default: as stored)")
    how.add_argument("--device", metavar="NAME", help="cuda, cuda:1, xpu, mps or cpu (default: the best there is)")
    how.add_argument(
        "--threads",
        type=thread_counts,
        default=(1, 0),
        metavar="COUNTS",
        help="of a CPU, with commas between them; all: every core (default 1,all). A clip has the most of them",
    )
    how.add_argument(
        "--rounds", type=arguments.whole(1, _MOST_ROUNDS), default=3, help="of which the median counts (default 3)"
    )
    how.add_argument(
        "--folder", type=Path, metavar="DIR", help="where random weights are written, and removed again (default: temp)"
    )
    result = parser.add_argument_group("result")
    result.add_argument("--json", action="store_true", help="as one JSON object (default: a Markdown table to paste)")


def _choices(options: argparse.Namespace) -> Choices:
    """Raises ConfigError: choices that cannot be."""
    from ..ltx_core.measuring.bench import SIZES, TINY_SIZES, Choices
    from ..ltx_core.measuring.peers import parse_peers

    asked: dict[str, Any] = {"against": tuple(parse_peers(options.against))} if options.against else {}
    return Choices(
        model=options.model,
        text_encoder=options.text_encoder,
        vae=options.vae,
        version=options.version,
        family=options.random,
        tiny=options.tiny,
        dtype=arguments.torch_dtype(options.dtype),
        device=options.device,
        settings=options.settings,
        sizes=options.sizes or (TINY_SIZES if options.tiny else SIZES),
        clip=options.clip,
        threads=options.threads,
        rounds=options.rounds,
        only=options.only,
        folder=options.folder,
        **asked,
    )


def _bench(options: argparse.Namespace, console: Console) -> int:
    if options.against is not None and not options.against.strip():
        raise ConfigError(f"got no peer for --against; expected some of {', '.join(PEERS)}; name one")
    from ..ltx_core.measuring.bench import bench
    from ..ltx_core.measuring.report import markdown

    result = bench(_choices(options), console.progress, console.note)
    if options.json:
        console.result(json.dumps(result, indent=2))
        return DONE
    console.result(markdown(result, made_by="`ltxkit bench --tiny`" if options.tiny else "`ltxkit bench`"))
    for what in result["left_out"]:
        console.result(f"Left out: {what}.")
    return DONE


COMMANDS = (
    Command(
        "bench",
        "Measure this machine: steps, decoding, whole clips, memory; others beside it.",
        _arguments,
        _bench,
        (
            "bench",
            "bench --model ltxv-2b-0.9.8-distilled.safetensors --text-encoder t5xxl_fp16.safetensors",
            "bench --against diffusers,official=~/LTX-Video,comfyui=~/ComfyUI --only step,decode",
            "bench --sizes 384x256x25 --threads all --json > bench.json",
            "bench --tiny --against diffusers",
        ),
    ),
)
