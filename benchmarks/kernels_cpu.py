"""How near a denoising step is to the fastest that torch's own kernels do on this CPU, and how far ahead of others.

Two blocks of the 2B width, 384 and 2,688 latent tokens, in float32 and bfloat16, with the kernels that were measured on
this machine (`ltx_core/kernels`). The limit is what the step's products and its attention take alone, each with the
fastest form that gives the same numbers; everything else of a step is beyond it. Prompts, padding and preparations are
as in transformer_cpu.py. One thread, CPU time.

python benchmarks/kernels_cpu.py [--tiny]
    COMFYUI=DIR      a checkout of ComfyUI core (0.33), to be measured as well
    LTX_VIDEO=DIR    a checkout of Lightricks/LTX-Video, likewise
"""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor
from protocol import Row, arguments, compare, publish
from torch import Tensor
from transformer_cpu import NEGATIVE, PADDED, POSITIVE, TOLERANCE, ValuesProcessor, build

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.kernels import private
from ltxkit.ltx_core.kernels.attention import by_blocks
from ltxkit.ltx_core.kernels.here import kernels_here
from ltxkit.ltx_core.models.transformer import Branch
from ltxkit.ltx_core.placing.computing import computing

LAYERS, SKIPPED = 2, 1
GRIDS = ((4, 8, 12), (7, 16, 24))  # latent cells
CONFIG = TransformerConfig.of_size(layers=LAYERS, heads=32, head_dim=64, channels=128, captions=4096)
TINY = TransformerConfig.of_size(layers=LAYERS, heads=2, head_dim=16, channels=128, captions=64)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Of one step. x (1 n c), sigma (1 1 1) or (1 n 1), padded texts (2 l c): the negative one first."""

    grid: tuple[int, int, int]
    positions: Tensor
    x: Tensor
    sigma: Tensor
    padded: Tensor
    masks: Tensor

    @classmethod
    def of(cls, grid: tuple[int, int, int], config: TransformerConfig, *, conditioned: bool) -> Inputs:
        torch.manual_seed(1)
        cells = torch.stack(torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")).reshape(1, 3, -1)
        tokens = cells.shape[2]
        sigma = torch.full((1, 1, 1), 0.725)
        if conditioned:  # on the first frame
            sigma = torch.where(torch.arange(tokens) < grid[1] * grid[2], 0.0, 0.725)[None, :, None]
        return cls(
            grid,
            cells * torch.tensor([8 / 25, 32, 32])[None, :, None],
            torch.randn(1, tokens, config.in_channels),
            sigma,
            torch.randn(2, PADDED, config.caption_channels),
            torch.arange(PADDED) < torch.tensor([[NEGATIVE], [POSITIVE]]),
        )


def best(forms: list[Callable[[], Tensor]], rounds: int) -> float:
    """Seconds of the fastest of these, each the least of some rounds after one that warms up."""
    least = float("inf")
    for run in forms:
        run()
        for _ in range(rounds):
            start = time.process_time()
            run()
            least = min(least, time.process_time() - start)
    return least


def limit(config: TransformerConfig, tokens: int, dtype: torch.dtype, rounds: int) -> float:
    """Seconds of the products and the attention of a step with one branch."""
    d, heads, head_dim = config.hidden_size, config.num_attention_heads, config.attention_head_dim
    seconds = 0.0
    for outs, ins, count in ((d, d, 6), (4 * d, d, 1), (d, 4 * d, 1)):  # per block; keys and values of text are kept
        x, weight, bias = (torch.randn(size).to(dtype) for size in ((tokens, ins), (outs, ins), (outs,)))
        forms: list[Callable[[], Tensor]] = [lambda x=x, w=weight, b=bias: F.linear(x, w, b)]
        if private.works("products", dtype):
            packed = private.pack_linear(weight)
            forms.append(lambda x=x, w=weight, b=bias: private.linear(x, w, b))
            forms.append(lambda x=x, w=packed, b=bias: private.linear(x, w, b))
        seconds += count * best(forms, rounds)
    for keys in (tokens, POSITIVE):
        q, k = (torch.randn(1, n, heads, head_dim).to(dtype).transpose(1, 2) for n in (tokens, keys))
        forms = [lambda q=q, k=k: F.scaled_dot_product_attention(q, k, k)]
        if private.works("products", dtype):
            forms.append(lambda q=q, k=k: by_blocks(q, k, k))
        seconds += best(forms, rounds)
    return config.num_layers * seconds


def lightricks(state: dict[str, Tensor], config: TransformerConfig, given: Inputs, dtype: torch.dtype) -> Any:
    """Lightricks' own transformer with these weights, as a function of nothing: one branch."""
    sys.path.insert(0, os.environ["LTX_VIDEO"])
    sys.modules.setdefault("imageio", types.ModuleType("imageio"))  # which it imports, and does not need here
    from ltx_video.models.transformers.transformer3d import Transformer3DModel  # pyright: ignore

    theirs: Any = Transformer3DModel(
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.num_layers,
        cross_attention_dim=config.cross_attention_dim,
        caption_channels=config.caption_channels,
        attention_bias=True,
        activation_fn="gelu-approximate",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        adaptive_norm="single_scale_shift",
        standardization_norm="rms_norm",
        qk_norm="rms_norm",
        positional_embedding_type="rope",
        positional_embedding_theta=10000.0,
        positional_embedding_max_pos=[20, 2048, 2048],
        timestep_scale_multiplier=1000,
    )
    theirs.load_state_dict(state)
    theirs.to(dtype).eval()
    timestep = given.sigma.squeeze(-1).expand(1, -1)
    return lambda: theirs(
        given.x.to(dtype),
        indices_grid=given.positions,
        encoder_hidden_states=given.padded[1:].to(dtype),
        encoder_attention_mask=given.masks[1:].to(dtype),
        timestep=timestep,
        return_dict=False,
    )[0]


def core(state: dict[str, Tensor], config: TransformerConfig, given: Inputs, dtype: torch.dtype) -> Any:
    """ComfyUI core's transformer with these weights, as a function of nothing: one branch."""
    sys.path.insert(0, os.environ["COMFYUI"])
    import comfy.cli_args  # pyright: ignore

    comfy.cli_args.args.cpu = True
    import comfy.ldm.lightricks.model  # pyright: ignore
    import comfy.ops  # pyright: ignore

    theirs: Any = comfy.ldm.lightricks.model.LTXVModel(
        num_layers=config.num_layers, dtype=dtype, device="cpu", operations=comfy.ops.disable_weight_init
    )
    theirs.load_state_dict(state)
    theirs.to(dtype).eval()
    cells = given.x.view(1, *given.grid, -1).permute(0, 4, 1, 2, 3).contiguous().to(dtype)
    timestep = given.sigma.to(dtype).flatten() if given.sigma.shape[1] == 1 else given.sigma.to(dtype).squeeze(-1)

    def step() -> Tensor:
        text, mask = given.padded[1:].to(dtype), given.masks[1:].long()
        result = theirs(cells, timestep, text, mask, frame_rate=25, transformer_options={})
        return result.permute(0, 2, 3, 4, 1).reshape(1, -1, config.out_channels)

    return step


def measure(
    case: str,
    dtype: torch.dtype,
    grid: tuple[int, int, int],
    *,
    guided: bool = False,
    conditioned: bool = False,
    tiny: bool = False,
) -> list[Row]:
    """One step: LTXKit by the kernels of this machine, and the others."""
    config = TINY if tiny else CONFIG
    ours, theirs = build(config, dtype)
    given = Inputs.of(grid, config, conditioned=conditioned)
    with torch.inference_mode():
        rotary = ours.prepare_positions(given.positions)
        negative, positive = (ours.prepare_text([given.padded[i, :n]]) for i, n in enumerate((NEGATIVE, POSITIVE)))
    branches = [Branch(positive)]
    if guided:
        branches = [Branch(negative), Branch(positive), Branch(positive, frozenset({SKIPPED}))]

    def forward(row: int) -> Tensor:
        text, mask = given.padded[row : row + 1].to(dtype), given.masks[row : row + 1].to(dtype)
        timestep = (given.sigma * 1000).squeeze(-1)
        return theirs(given.x.to(dtype), text, timestep, mask, video_coords=given.positions, return_dict=False)[0]

    def three_forwards() -> Tensor:
        attention = theirs.transformer_blocks[SKIPPED].attn1
        plain = [forward(0), forward(1)]
        attention.set_processor(ValuesProcessor())
        perturbed = forward(1)
        attention.set_processor(LTXVideoAttnProcessor())
        return torch.cat([*plain, perturbed])

    peers: dict[str, Callable[[], Tensor]] = {"diffusers": three_forwards if guided else lambda: forward(1)}
    if not guided and not tiny:
        if "LTX_VIDEO" in os.environ:
            peers["Lightricks"] = lightricks(ours.state_dict(), config, given, dtype)
        if "COMFYUI" in os.environ:
            peers["ComfyUI core"] = core(ours.state_dict(), config, given, dtype)
    tokens = given.x.shape[1]
    case = f"{case}, {tokens} tokens, {str(dtype).removeprefix('torch.')}"
    kernels = kernels_here(say=print)

    def step() -> Tensor:
        return torch.cat(ours(given.x, given.sigma, rotary, branches))

    with computing(ours, kernels):
        note = f"in {str(ours.compute_dtype).removeprefix('torch.')}"
        rows = compare(case, step, peers, tolerance=TOLERANCE[dtype], rounds=3, warmup=0, note=note, tiny=tiny)
        least = None if guided else limit(config, tokens, ours.compute_dtype, 1 if tiny else 3)
    return rows if least is None else [replace(row, floor=min(least / row.ours, 1.0)) for row in rows]


def main() -> None:
    tiny = arguments(__doc__).parse_args().tiny
    torch.set_num_threads(1)
    rows: list[Row] = []
    for grid in ((2, 4, 4),) if tiny else GRIDS:
        for dtype in (torch.float32, torch.bfloat16):
            rows += measure("CFG 1", dtype, grid, tiny=tiny)
            rows += measure("CFG 1, conditioned on the first frame", dtype, grid, conditioned=True, tiny=tiny)
            rows += measure(f"CFG + STG, block {SKIPPED} of {LAYERS} skipped", dtype, grid, guided=True, tiny=tiny)
    publish(
        "kernels_cpu",
        f"How near is a denoising step to this CPU's limit? ({LAYERS} blocks of the 2B width, kernels as measured)",
        rows,
        tiny=tiny,
    )


if __name__ == "__main__":
    main()
