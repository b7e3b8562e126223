"""How much less CPU time a step and a decode take than with OpenVINO, which people with Intel machines pick.

diffusers' transformer and decoder with the weights of ours are converted by `openvino.convert_model`, as optimum-intel
converts them, and compiled for the CPU with one thread, in float32 or with the hint that computes in bfloat16; its
documentation recommends the latter where the processor has such products. Blocks of the 2B width as in
transformer_cpu.py; a VAE of the 0.9.5 layout, a quarter as wide as the released one. OpenVINO converts for one size of
clip, and its conversion and compilation are not in the clock: a note says what they take.

OpenVINO need not be in the environment of LTXKit: OPENVINO_PATH names the site-packages of another one, such as
`python -m venv ov && ov/bin/pip install openvino` makes. Without it, diffusers alone takes part.

python benchmarks/openvino_cpu.py [--tiny] [--only WORDS]
"""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from protocol import Part, Rounds, Row, arguments, asked, compare, measured, only_some, publish
from torch import Tensor, nn
from transformer_cpu import LAYERS, LONG, ROUNDS, SHORT, TOLERANCE, config_of
from transformer_peers import POSITIVE, Inputs, diffusers
from vae_cpu import TOLERANCE as VAE_TOLERANCE
from vae_cpu import build as build_vae
from vae_peers import timestep

from ltxkit.ltx_core.kernels.choice import PLAIN
from ltxkit.ltx_core.kernels.here import kernels_here
from ltxkit.ltx_core.measuring.peers import Asked, open_peer
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.placing.computing import computing

WIDTH = 32  # of the VAE
CELLS = (3, 8, 12)
# OpenVINO chooses itself which operations it rounds to bfloat16, attention and norms among them.
OPENVINO_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}
_PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}


def openvino() -> Any | None:
    """The package; None where it is not installed."""
    folder = os.environ.get("OPENVINO_PATH")
    if folder and folder not in sys.path:
        sys.path.append(folder)  # behind all others: torch and numpy stay those of this environment
    return importlib.import_module("openvino") if importlib.util.find_spec("openvino") else None


def converted(model: nn.Module, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Callable[[], Tensor], str]:
    """A module of OpenVINO's, as a function of nothing, and what the conversion took. Its inputs are float32.

    inputs: by the names of the arguments of `forward`, which returns one tensor.
    """
    package = openvino()
    assert package is not None
    start = time.perf_counter()
    with torch.no_grad():
        described = package.convert_model(model, example_input=dict(inputs))
    shapes = {name: list(value.shape) for name, value in inputs.items()}
    described.reshape(shapes)
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": _PRECISION[dtype],
    }
    request = package.Core().compile_model(described, "CPU", options).create_infer_request()
    seconds = time.perf_counter() - start
    arrays = {name: value.numpy() for name, value in inputs.items()}

    def run() -> Tensor:
        (result,) = request.infer(arrays, share_inputs=True).values()
        return torch.from_numpy(result)

    return run, f"OpenVINO converts and compiles it in {seconds:.0f} s, for this size alone"


class Step(nn.Module):
    """One forward of diffusers' transformer for tracing: tensors in, one tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, text: Tensor, timestep: Tensor, mask: Tensor, coords: Tensor) -> Tensor:
        return self.model(x, text, timestep, mask, video_coords=coords, return_dict=False)[0]


class Decode(nn.Module):
    """diffusers' decoder for tracing."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, latent: Tensor, level: Tensor) -> Tensor:
        return self.decoder(latent, level)


def peers(
    theirs: Callable[[], Tensor], model: nn.Module, inputs: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[dict[str, Callable[[], Tensor]], str]:
    """diffusers, and OpenVINO where it is installed; and a note."""
    package = openvino()
    if package is None:
        return {"diffusers": theirs}, "OpenVINO is left out: it is not installed here (OPENVINO_PATH)"
    run, note = converted(model.float(), inputs, dtype)
    return {f"OpenVINO {package.__version__.partition('-')[0]}": run, "diffusers": theirs}, note


def step(dtype: torch.dtype, grid: tuple[int, int, int], *, tiny: bool) -> list[Row]:
    layers, rounds = LAYERS[grid], ROUNDS[grid]
    if tiny:
        grid = (2, 4, 4)
    config = config_of(layers, tiny=tiny)
    torch.manual_seed(0)
    ours = LTXTransformer(config).to(dtype).eval()
    given = Inputs.of(grid, config, conditioned=False)
    model = open_peer(Asked("diffusers"), torch.device("cpu")).transformer(ours)
    inputs = {
        "x": given.x,
        "text": given.padded[1:],
        "timestep": (given.sigma * 1000).squeeze(-1),
        "mask": given.masks[1:].float(),
        "coords": given.positions,
    }
    others, note = peers(diffusers(model, given, dtype, None), Step(copy.deepcopy(model)), inputs, dtype)
    case = f"a step, CFG 1, {given.x.shape[1]} tokens, {layers} blocks, {str(dtype).removeprefix('torch.')}"
    with computing(ours, PLAIN if tiny else kernels_here()):
        with torch.inference_mode():
            rotary = ours.prepare_positions(given.positions)
            branch = Branch(ours.prepare_text([given.padded[1, :POSITIVE]]))
        how = Rounds(max(TOLERANCE[dtype], OPENVINO_TOLERANCE[dtype]), rounds, warmup=0)
        return compare(
            case, lambda: ours(given.x, given.sigma, rotary, (branch,))[0], others, how, note=note, tiny=tiny
        )


def decode(dtype: torch.dtype, *, tiny: bool) -> list[Row]:
    width, size = (8, (1, 2, 2)) if tiny else (WIDTH, CELLS)
    ours, theirs = build_vae("0.9.5", width, dtype)
    level = timestep(ours)
    assert level is not None
    latent = torch.randn(1, ours.config.latent_channels, *size)
    z = latent.to(dtype)
    others, note = peers(
        lambda: theirs.decode(z, level).sample,
        Decode(copy.deepcopy(theirs.decoder)),
        {"latent": latent, "level": level},
        dtype,
    )
    case = f"decode, width {width}, {'x'.join(map(str, size))} cells, {str(dtype).removeprefix('torch.')}"
    with computing(ours.decoder, PLAIN if tiny else kernels_here()):
        how = Rounds(max(VAE_TOLERANCE[dtype], OPENVINO_TOLERANCE[dtype]))
        return compare(case, lambda: ours.decode(z, level), others, how, note=note, tiny=tiny)


def main() -> None:
    parser = arguments(__doc__)
    only_some(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: list[Part] = []
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for grid in (SHORT,) if options.tiny else (SHORT, LONG):
            tokens = grid[0] * grid[1] * grid[2]
            parts.append(Part(f"step {tokens} {name}", partial(step, dtype, grid, tiny=options.tiny)))
        parts.append(Part(f"decode {name}", partial(decode, dtype, tiny=options.tiny)))
    rows = measured(parts, options.only)
    question = "How much less CPU time does it take than OpenVINO? (blocks of the 2B width, a narrow VAE)"
    # OpenVINO's memory is not torch's, whose allocator is what counts here.
    rows = [replace(row, peer_memory=None) if str(row.peer_name).startswith("OpenVINO") else row for row in rows]
    publish("openvino_cpu", question, rows, **asked(options))


if __name__ == "__main__":
    main()
