"""How many (tokens, width) tensors a block reads and writes beside products and attention.

A pass is one such tensor of bfloat16 that anything but a product or attention reads or writes, tables included;
broadcast dimensions count once, a norm and an operation of comfy-kitchen as one kernel each, as on a card. What a block
takes is half the difference of models with three and with one. Counted by a dispatch mode on the CPU, where the forms
for cards do the same operations; nothing is timed. The int8 row has Linears as int8 (ConvRot) with comfy-kitchen's
products, which turn their input into int8 themselves and take GELU with it: none of that counts. Name checkouts of
Lightricks/LTX-Video in LTX_VIDEO_PATH and of ComfyUI in COMFYUI_PATH to count them too.

python benchmarks/passes.py [--tiny]
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from protocol import Row, arguments, publish
from safetensors.torch import save_file
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]
from vae_cpu import build

from ltxkit.ltx_core.config import CheckpointConfig, TransformerConfig
from ltxkit.ltx_core.kernels import activation
from ltxkit.ltx_core.kernels.active import Active
from ltxkit.ltx_core.kernels.cards import PLAIN_CARD, CardKernels
from ltxkit.ltx_core.kernels.choice import PLAIN
from ltxkit.ltx_core.kernels.fused import KITCHEN
from ltxkit.ltx_core.measuring.inputs import DECODE_TIMESTEP, StepInputs
from ltxkit.ltx_core.measuring.peers import Asked, PeerMissingError, open_peer
from ltxkit.ltx_core.measuring.protocol import Run, equal_peers
from ltxkit.ltx_core.measuring.traffic import Traffic, counting
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing.computing import using
from ltxkit.ltx_core.quant import comfy_linear
from ltxkit.ltx_core.shapes import LatentShape
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.metadata import format_config

GRID, TINY_GRID = LatentShape(4, 8, 12), LatentShape(2, 4, 4)
TOLERANCE = 3e-2  # of outputs in bfloat16 after three blocks with random weights
INT8_TOLERANCE = 0.3  # of the same where weights and activations are int8
VAE_TOLERANCE = 6e-2  # as in vae_cpu.py
MIB = 2**20
LEAST = 50_000  # bytes below which an operation is none: rows of a table, levels
VAE_FORMS = {
    "plain torch": PLAIN_CARD,
    "comfy-kitchen": CardKernels(elementwise=KITCHEN),
    "compiled": CardKernels(compiles=True),
}
FORMS = {"plain torch": PLAIN_CARD, "comfy-kitchen": CardKernels(elementwise=KITCHEN)}
INT8 = "int8, comfy-kitchen"
CHECKOUTS = {"official": "LTX_VIDEO_PATH", "comfyui": "COMFYUI_PATH"}


def main() -> None:
    tiny = arguments(__doc__).parse_args().tiny
    torch.set_num_threads(1)
    rows: list[Row] = []
    for conditioned in (False, True):
        counted = {layers: count(layers, conditioned=conditioned, tiny=tiny) for layers in (1, 3)}
        ours = {name: per_block(counted, name, tiny=tiny) for name in counted[1]}
        case = "conditioned on the first frame" if conditioned else "CFG 1"
        for form in (*FORMS, INT8):
            mine = ours[form]
            theirs = {name: each for name, each in ours.items() if name not in (*FORMS, INT8)}
            rest = {} if form == INT8 else theirs  # which compute in bfloat16
            for name, (passes, kernels) in rest.items():
                row = Row(f"{case}, {form}", "passes", mine[0], peer_name=name, peer=passes)
                rows.append(replace(row, note=f"in {mine[1]:.0f} kernels; {name} in {kernels:.0f}"))
            if not rest:
                rows.append(Row(f"{case}, {form}", "passes", mine[0], note=f"in {mine[1]:.0f} kernels"))
    rows += decoding(tiny=tiny)
    publish("passes", "How many tensors does a block read and write beside products and attention?", rows, tiny=tiny)


def count(layers: int, *, conditioned: bool, tiny: bool) -> dict[str, Traffic]:
    """Traffic of one step by each implementation, with the same weights; outputs are compared first."""
    size: dict[str, Any] = (
        {"heads": 2, "head_dim": 32, "captions": 64} if tiny else {"heads": 32, "head_dim": 64, "captions": 4096}
    )
    config = TransformerConfig.of_size(layers=layers, channels=128, **size)
    torch.manual_seed(0)
    model = LTXTransformer(config).to(torch.bfloat16).eval()
    grid = TINY_GRID if tiny else GRID
    given = StepInputs.random(config, grid, torch.device("cpu"))
    if conditioned:
        of_first = torch.arange(grid.tokens) < grid.height * grid.width
        given = replace(given, sigma=torch.where(of_first, 0.0, given.sigma.item())[None, :, None])
    traffic: dict[str, Traffic] = {}
    outputs: dict[str, Run] = {}
    least = grid.tokens * config.hidden_size  # half a pass
    for name, card in FORMS.items():
        with using(model, Active(PLAIN, card=card)), torch.inference_mode():
            step = given.step_of(model)
            outputs[name] = kept(step())  # and texts are read
            with counting(least) as traffic[name]:
                step()
    int8 = in_int8(model)
    with using(int8, Active(PLAIN, card=FORMS["comfy-kitchen"])), torch.inference_mode():
        step = given.step_of(int8)
        rounded = kept(step())
        with counting(least) as traffic[INT8], products_of_int8_are_products():
            step()
    equal_peers(outputs["plain torch"], {INT8: rounded}, INT8_TOLERANCE, refuse)
    for name, run in peers(model, given).items():
        with torch.inference_mode():
            outputs[name] = kept(run())
            with counting(least) as traffic[name]:
                run()
    first, *others = outputs
    equal_peers(outputs[first], {name: outputs[name] for name in others}, TOLERANCE, refuse)
    return traffic


def in_int8(model: LTXTransformer) -> LTXTransformer:
    """The same model as a user gets it with int8 weights and `fp8_matmul`, by way of a file."""
    text = format_config(CheckpointConfig(transformer=model.config, vae=None, scheduler=None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(
            {f"model.diffusion_model.{key}": each for key, each in model.state_dict().items()}, path, {"config": text}
        )
        return load_transformer(path, quantization="int8_convrot", fp8_matmul=True)[0]


def decoding(*, tiny: bool) -> list[Row]:
    """MiB that a decode of 6x8x8 cells by a VAE of a quarter of the released width moves outside convolutions."""
    ours, theirs = build("0.9.5", 4 if tiny else 32, torch.bfloat16)
    shape = (1, 128, 2, 2, 2) if tiny else (1, 128, 6, 8, 8)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    timestep = torch.tensor([DECODE_TIMESTEP])
    outputs: dict[str, Run] = {}
    traffic: dict[str, Traffic] = {}
    for name, card in VAE_FORMS.items():
        with using(ours.decoder, Active(PLAIN, card=card)), torch.inference_mode(), counting(LEAST) as traffic[name]:
            outputs[name] = kept(ours.decode(latent, timestep))
    with torch.inference_mode(), counting(LEAST) as of_theirs:
        outputs["diffusers"] = kept(theirs.decode(latent, timestep, return_dict=False)[0])
    first, *others = outputs
    tolerance = 4 * VAE_TOLERANCE if tiny else VAE_TOLERANCE  # few channels: a rounding weighs more
    equal_peers(outputs[first], {name: outputs[name] for name in others}, tolerance, refuse)
    peer = of_theirs.bytes / MIB
    return [
        Row(
            f"VAE decode outside convolutions, {name}",
            "MiB",
            each.bytes / MIB,
            peer_name="diffusers",
            peer=peer,
            note=f"in {each.kernels} kernels; diffusers in {of_theirs.kernels}",
        )
        for name, each in traffic.items()
    ]


# Stands for the kernel that torch's compiler makes on a card: the same numbers, and counted as one.
LIBRARY = torch.library.Library("ltxkit_counted", "DEF")
LIBRARY.define("norm_activation(Tensor x, Tensor? scale, Tensor? shift, float eps, *, Tensor(a!) out) -> ()")
LIBRARY.impl("norm_activation", activation.in_one_kernel, "CPU")
activation._compiled = lambda: torch.ops.ltxkit_counted.norm_activation  # pyright: ignore[reportPrivateUsage]


@contextmanager
def products_of_int8_are_products() -> Generator[None]:
    """On a CPU a product of comfy-kitchen is many operations of torch; here it is the product that it is on cards."""
    multiply = comfy_linear.product

    def uncounted(*given: Any, **named: Any) -> torch.Tensor:
        with _disable_current_modes():
            return multiply(*given, **named)

    comfy_linear.product = uncounted
    try:
        yield
    finally:
        comfy_linear.product = multiply


def kept(output: torch.Tensor) -> Run:
    return lambda: output


def refuse(name: str, why: str) -> None:
    raise ValueError(f"{name}: {why}")


def peers(model: LTXTransformer, given: StepInputs) -> dict[str, Run]:
    """The steps of those that are here."""
    asked = [
        Asked("diffusers"),
        *(Asked(name, Path(os.environ[key])) for name, key in CHECKOUTS.items() if key in os.environ),
    ]
    runs: dict[str, Run] = {}
    for each in asked:
        try:
            if each.path is not None and each.name == "comfyui":
                sys.path.append(str(each.path))
                options: Any = importlib.import_module("comfy.cli_args")
                options.args.use_pytorch_cross_attention = True  # as it computes on cards by itself
            peer = open_peer(each, torch.device("cpu"))
            runs[peer.title] = peer.step(model, given)
        except PeerMissingError as error:
            print(f"{each.name}: {error}")
    return runs


def per_block(counted: dict[int, dict[str, Traffic]], name: str, *, tiny: bool) -> tuple[float, float]:
    """Passes and kernels of one block."""
    one, three = counted[1][name], counted[3][name]
    grid, width = (TINY_GRID, 64) if tiny else (GRID, 2048)
    unit = grid.tokens * width * torch.bfloat16.itemsize
    return (three.bytes - one.bytes) / 2 / unit, (three.kernels - one.kernels) / 2


if __name__ == "__main__":
    main()
