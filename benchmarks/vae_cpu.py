"""How much less CPU time the VAE takes than others', and how much less memory a streamed decode.

Random models of the released layers; one thread and CPU time; "all cores" by the clock of the wall. diffusers saves its
model and LTXKit loads that folder: all have the same weights. "channels last" is diffusers converted to
`torch.channels_last_3d`. Lightricks' code and ComfyUI join where their checkouts are named (`vae_peers.py`); ComfyUI
pads with zeros here, like all others.

At the released width of 128 the share of the limit is that of the time which the same convolutions take by themselves
with packed weights, and the products. Narrow models are an eighth and a quarter as wide.

Ours computes as a placed model does: by the forms that are chosen for this processor.

The notes mention two properties of PyTorch on a CPU. For a single clip whose batch x channels x frames x rows is at
most 20480, `F.conv3d` uses a plain loop instead of oneDNN. And without AVX-512 its half-precision convolutions are some
hundred times slower than float32: on such CPUs the peer of bfloat16 is diffusers in float32, with the same rounded
weights.

python benchmarks/vae_cpu.py [--tiny] [--only WORDS]      e.g. --only "128 decoder float32"
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo
from protocol import Part, Rounds, Row, arguments, asked, compare, measured, only_some, publish
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from vae_peers import Half, comfyui, keep_half, official, timestep

from ltxkit.ltx_core.kernels import private
from ltxkit.ltx_core.kernels.choice import PLAIN, parse_kernels
from ltxkit.ltx_core.kernels.here import kernels_here
from ltxkit.ltx_core.measuring.machine import cores, peak_bytes
from ltxkit.ltx_core.measuring.protocol import threads
from ltxkit.ltx_core.models.dtypes import compute_dtype
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.placing.computing import computing, using
from ltxkit.ltx_core.weights.build import load_vae

# bfloat16: some 165 roundings in a row, each of 2^-8 / sqrt(3) rms at most, in two runs: sqrt(2 * 165 / 3) * 2^-8 is
# 4 % rms, and the largest error is half as much again in terms of the largest number.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
RELEASED_WIDTH = 128
SIZES = ((3, 8, 12), (6, 8, 8))  # cells
ROUNDS = 2  # at the released width: a call takes up to half a minute
NATIVE_HALF = compute_dtype(torch.empty(0, dtype=torch.bfloat16)) == torch.bfloat16
RELEASED_DTYPES = tuple(TOLERANCE) if NATIVE_HALF else (torch.float32,)
LOOP_NOTE = "diffusers' convolutions take PyTorch's plain loop at this size"
ONEDNN_NOTE = "diffusers' large convolutions run in oneDNN as well"


def their_vae(generation: str, width: int) -> Any:
    """The arguments of huggingface/diffusers scripts/convert_ltx_to_diffusers.py, with `width` for 128."""
    if generation == "0.9.0":
        channels = (width, 2 * width, 4 * width, 4 * width)
        return AutoencoderKLLTXVideo(block_out_channels=channels, decoder_block_out_channels=channels)
    return AutoencoderKLLTXVideo(
        block_out_channels=tuple(width * m for m in (1, 2, 4, 8, 16)),
        down_block_types=("LTXVideo095DownBlock3D",) * 4,
        decoder_block_out_channels=tuple(width * m for m in (2, 4, 8)),
        layers_per_block=(4, 6, 6, 2, 2),
        decoder_layers_per_block=(5, 5, 5, 5),
        spatio_temporal_scaling=(True, True, True, True),
        decoder_spatio_temporal_scaling=(True, True, True),
        decoder_inject_noise=(False, False, False, False),
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        upsample_residual=(True, True, True),
        upsample_factor=(2, 2, 2),
        timestep_conditioning=True,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )


def build(generation: str, width: int, dtype: torch.dtype) -> tuple[VideoVAE, Any]:
    torch.manual_seed(0)
    theirs = their_vae(generation, width).to(dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(Path(folder) / "vae")
        ours = copy.deepcopy(
            load_vae(Path(folder) / "vae", version=f"2b-{generation}")
        )  # the weights would go away with the folder
    return ours.eval(), theirs


def decoding(
    generation: str, width: int, dtype: torch.dtype, size: tuple[int, int, int], note: str = "", *, tiny: bool = False
) -> list[Row]:
    ours, theirs = build(generation, width, dtype)
    latent = torch.randn(1, ours.config.latent_channels, *size)
    timestep = torch.tensor([0.05]) if ours.config.timestep_conditioning else None

    def diffusers(model: Any, run_dtype: torch.dtype) -> Callable[[], Tensor]:
        return lambda: model.decode(latent.to(run_dtype), timestep).sample

    if dtype == torch.float32 or NATIVE_HALF:
        channels_last = copy.deepcopy(theirs).to(memory_format=torch.channels_last_3d)
        peers = {"diffusers": diffusers(theirs, dtype), "diffusers, channels last": diffusers(channels_last, dtype)}
    else:
        peers = {"diffusers in float32": diffusers(copy.deepcopy(theirs).float(), torch.float32)}
    return compare(
        f"{generation} decoder, width {width}, {'x'.join(map(str, size))} cells, {str(dtype).removeprefix('torch.')}",
        lambda: ours.decode(latent.to(dtype), timestep),
        peers,
        Rounds(TOLERANCE[dtype]),
        note=note,
        tiny=tiny,
    )


def encoding(generation: str, width: int, frames: int, side: int, *, tiny: bool = False) -> list[Row]:
    ours, theirs = build(generation, width, torch.float32)
    pixels = torch.rand(1, 3, frames, side, side) * 2 - 1
    return compare(
        f"{generation} encoder, width {width}, {frames} frames of {side}x{side} pixels, float32",
        lambda: ours.encode(pixels).mean,
        {"diffusers": lambda: theirs.encode(pixels).latent_dist.mode()},
        Rounds(TOLERANCE[torch.float32]),
        note=LOOP_NOTE,
        tiny=tiny,
    )


class Recorded(TorchDispatchMode):
    """Every convolution and product that runs inside: its operator and arguments, numbers aside -> how often."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Any, tuple[Callable[..., Tensor], tuple[Any, ...], int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__.partition(".")[0] in COUNTED:
            key = (func, *(_layout(each) for each in args))
            run, made, count = self.calls.get(key) or (func, tuple(_like(each) for each in args), 0)
            self.calls[key] = run, made, count + 1
        return func(*args, **(kwargs or {}))


COUNTED = ("mkldnn_convolution", "convolution", "mm", "addmm", "bmm", "baddbmm", "linear")


def _layout(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(value) if isinstance(value, list) else value


def _like(value: Any) -> Any:
    return torch.empty_like(value).normal_() if isinstance(value, Tensor) else value


def limit_of(half: nn.Module, run: Callable[[], Tensor]) -> Callable[[], None]:
    """The convolutions of `run`, a call of `half`, with weights that were packed before, and its products."""
    with torch.no_grad(), using(half, None), Recorded() as recorded:
        run()
    calls: list[tuple[Callable[[], Tensor], int]] = []
    for func, args, count in recorded.calls.values():
        if func.__name__.startswith("mkldnn_convolution") and private.works("convolutions", args[0].dtype):
            x, weight, bias, padding, stride, dilation, groups = args
            at = {"padding": padding, "stride": stride, "dilation": dilation, "groups": groups}
            packed = private.pack_convolution(weight, x.shape, **at)
            calls.append((partial(private.convolution, x, packed, bias, **at), count))
        else:
            calls.append((partial(func, *args), count))

    if not calls:
        raise RuntimeError("no convolution was seen; the share of the limit would be of nothing")

    def limit() -> None:
        for call, count in calls:
            for _ in range(count):
                call()

    return limit


def at_released_width(
    dtype: torch.dtype,
    *,
    encode: bool,
    width: int = RELEASED_WIDTH,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    count: int = 1,
    tiny: bool = False,
) -> list[Row]:
    """Decoding of some sizes, or encoding of nine frames, against everybody, with `count` threads."""
    ours, theirs = build("0.9.5", width, dtype)
    level, half = timestep(ours), "encoder" if encode else "decoder"
    diffusers: Half = (
        lambda latent: theirs.decode(latent, level).sample,
        lambda pixels: theirs.encode(pixels).latent_dist.mode(),
    )
    keep_half(theirs, half)
    name = str(dtype).removeprefix("torch.")
    rows: list[Row] = []
    # One peer at a time: all of them together leave no memory for packed weights.
    for peer in (
        lambda: {"diffusers": diffusers},
        lambda: official(ours, dtype, half),
        lambda: comfyui(ours, dtype, half),
    ):
        halves = peer()
        if encode:
            frames, height, across = (1, 32, 32) if tiny else (9, 128, 192)
            pixels = (torch.rand(1, 3, frames, height, across) * 2 - 1).to(dtype)
            case = f"0.9.5 encoder, width {width}, {frames} frames of {across}x{height} pixels, {name}"
            encoders = {title: partial(run, pixels) for title, (_, run) in halves.items()}
            with threads(count):
                rows += contest(case, ours.encoder, lambda x=pixels: ours.encode(x).mean, encoders, dtype, tiny)
        for size in () if encode else ((1, 2, 2),) if tiny else sizes:
            latent = torch.randn(1, ours.config.latent_channels, *size).to(dtype)
            case = f"0.9.5 decoder, width {width}, {'x'.join(map(str, size))} cells, {name}"
            decoders = {title: partial(run, latent) for title, (run, _) in halves.items()}
            with threads(count):
                rows += contest(case, ours.decoder, lambda z=latent: ours.decode(z, level), decoders, dtype, tiny)
        theirs.to("meta")
    return rows


def contest(
    case: str,
    half: nn.Module,
    run: Callable[[], Tensor],
    peers: Mapping[str, Callable[[], Tensor]],
    dtype: torch.dtype,
    tiny: bool,
) -> list[Row]:
    """One row per peer, each with our share of the limit."""
    limit = limit_of(half, run)
    kernels = parse_kernels("convolutions=packed", "by the rehearsal") if tiny else kernels_here()
    with computing(half, kernels or PLAIN):
        return compare(case, run, peers, Rounds(TOLERANCE[dtype], ROUNDS, warmup=0), limit=limit, tiny=tiny)


def peak_megabytes(run: Callable[[], object]) -> float:
    """Peak of the bytes that PyTorch's CPU allocator holds, beyond those before the call."""
    return (peak_bytes(run, torch.device("cpu")) or 0) / 1e6


def memory(generation: str, width: int, size: tuple[int, int, int]) -> list[Row]:
    """Finished frames are copied into an array allocated in advance, as in `pipelines.decode`."""
    ours, theirs = build(generation, width, torch.float32)
    latent, timestep = torch.randn(1, ours.config.latent_channels, *size), torch.tensor([0.05])
    pixels = ours.config.scale_factors
    canvas = torch.empty(1, 3, (size[0] - 1) * pixels.frames + 1, size[1] * pixels.height, size[2] * pixels.width)

    def streamed() -> None:
        done = 0
        for piece in ours.stream_decode(latent, timestep):
            canvas[:, :, done : done + piece.shape[2]] = piece
            done += piece.shape[2]

    with torch.inference_mode():
        whole = ours.decode(latent, timestep)
        streamed()
        difference = ((canvas - whole).abs().max() / whole.abs().max()).item()
    if difference > 1e-5:
        raise ValueError(f"the streamed decode differs by {difference:.2e}; expected <= 1e-5")
    del whole
    case = (
        f"{generation} decoder, width {width}, {canvas.shape[2]} frames of {canvas.shape[4]}x{canvas.shape[3]}: memory"
    )
    ours_peak = peak_megabytes(streamed)
    peers = {
        "LTXKit, whole clip": lambda: ours.decode(latent, timestep),
        "diffusers": lambda: theirs.decode(latent, timestep),
    }
    return [
        Row(
            case=case,
            unit="MB",
            ours=ours_peak,
            peer_name=name,
            peer=(peak := peak_megabytes(run)),
            difference=difference if name.startswith("LTXKit") else None,
            note=f"streamed, 1/{peak / ours_peak:.1f} of it; the frames themselves not counted"
            if name.startswith("LTXKit")
            else f"1/{peak / ours_peak:.1f} of it",
        )
        for name, run in peers.items()
    ]


def tiny_parts(half: str) -> list[Part]:
    """Every measurement once, at a size without meaning."""
    return [
        Part("0.9.0 decoder float32", partial(decoding, "0.9.0", 8, torch.float32, (1, 2, 2), tiny=True)),
        Part("0.9.5 decoder bfloat16", partial(decoding, "0.9.5", 8, torch.bfloat16, (1, 2, 2), half, tiny=True)),
        Part("0.9.5 encoder", partial(encoding, "0.9.5", 8, 1, 32, tiny=True)),
        *(
            Part(f"width 128 {dtype}", partial(at_released_width, dtype, encode=encode, width=8, tiny=True))
            for dtype in TOLERANCE
            for encode in (False, True)
        ),
        Part("memory", partial(memory, "0.9.5", 8, (3, 2, 2))),
    ]


def parts(half: str) -> list[Part]:
    """Narrow models first: the first one is the line in the README."""
    made = [
        Part(
            "narrow decoder, 0.9.5 float32 short", partial(decoding, "0.9.5", 16, torch.float32, (3, 8, 8), LOOP_NOTE)
        ),
        Part("narrow decoder, 0.9.5 float32", partial(decoding, "0.9.5", 16, torch.float32, (3, 12, 12), ONEDNN_NOTE)),
        Part("narrow decoder, 0.9.5 bfloat16", partial(decoding, "0.9.5", 16, torch.bfloat16, (3, 8, 8), half)),
        Part("narrow decoder, 0.9.0 float32", partial(decoding, "0.9.0", 32, torch.float32, (3, 8, 8), ONEDNN_NOTE)),
        Part("narrow decoder, 0.9.0 bfloat16", partial(decoding, "0.9.0", 32, torch.bfloat16, (3, 8, 8), half)),
        Part("narrow encoder, 0.9.5 float32", partial(encoding, "0.9.5", 16, 9, 128)),
    ]
    for dtype in RELEASED_DTYPES:
        name = str(dtype).removeprefix("torch.")
        for size in SIZES:
            run = partial(at_released_width, dtype, encode=False, sizes=(size,))
            made.append(Part(f"128 decoder, {name} {'x'.join(map(str, size))}", run))
        made.append(Part(f"128 encoder, {name}", partial(at_released_width, dtype, encode=True)))
        run = partial(at_released_width, dtype, encode=False, sizes=SIZES[:1], count=cores())
        made.append(Part(f"128 decoder, {name} {'x'.join(map(str, SIZES[0]))}, all cores", run))
    return [*made, Part("narrow memory", partial(memory, "0.9.5", 16, (16, 8, 8)))]


def main() -> None:
    parser = arguments(__doc__)
    only_some(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    half = "bfloat16 weights, computed in float32: this CPU has no bfloat16 convolutions" if not NATIVE_HALF else ""
    rows = measured(tiny_parts(half) if options.tiny else parts(half), options.only)
    question = "How much faster is the VAE on a CPU, and how much memory does a streamed decode take?"
    publish("vae_cpu", question, rows, **asked(options))


if __name__ == "__main__":
    main()
