"""How much less CPU time one denoising step of the transformer takes than others', and how near it is to the limit.

Blocks of the 2B width: four at 384 latent tokens, three at 2,688, the size of 49 frames of 768x512; with guidance,
attention is skipped in the last one (the releases skip one of the later ones, too). A prompt of 60 tokens, which the
others get padded to 256 with a mask, the length that their pipelines pad to. diffusers always takes part, Lightricks'
code and ComfyUI where their checkouts are named (`transformer_peers.py`).

Ours computes by the kernels that were measured on this machine, as a placed model does. The clock excludes its
preparations, done once per prompt and clip (text projection, keys, values; rotary table), as a real run shares them
between steps; the others have no place to keep them. The limit is what the products and the attention of the step take
alone, each by the fastest form that torch has for it here.

One thread and CPU time; "all cores" by the clock of the wall. Memory is what a step takes beside the weights; for ours,
the packed weights count from the first step on and are not in it.

python benchmarks/transformer_cpu.py [--tiny] [--only WORDS]      e.g. --only "2688 float32 STG"
"""

from __future__ import annotations

from functools import partial

import torch
from protocol import Part, Rounds, Row, arguments, asked, compare, measured, only_some, publish
from torch import Tensor
from transformer_peers import NEGATIVE, POSITIVE, Inputs, peers

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.kernels.choice import PLAIN
from ltxkit.ltx_core.kernels.here import kernels_here
from ltxkit.ltx_core.measuring.limits import only_work, step_work
from ltxkit.ltx_core.measuring.machine import cores
from ltxkit.ltx_core.measuring.protocol import threads
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.placing.computing import computing

SHORT, LONG = (4, 8, 12), (7, 16, 24)  # latent cells
LAYERS = {SHORT: 4, LONG: 3}
ROUNDS = {SHORT: 7, LONG: 2}
# bfloat16: as in vae_cpu.py; the shallower model and its residual sums leave a third of that.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
CASES = ("CFG 1", "CFG 1, conditioned on the first frame", "CFG + STG")


def config_of(layers: int, *, tiny: bool) -> TransformerConfig:
    heads, width = (2, 16) if tiny else (32, 64)
    captions = 64 if tiny else 4096
    return TransformerConfig.of_size(layers=layers, heads=heads, head_dim=width, channels=128, captions=captions)


def measure(kind: str, dtype: torch.dtype, grid: tuple[int, int, int], count: int, *, tiny: bool) -> list[Row]:
    """One of CASES with `count` threads."""
    layers = LAYERS[grid]
    rounds = Rounds(TOLERANCE[dtype], ROUNDS[grid], warmup=0)  # the comparison of outputs was one: a call takes seconds
    skipped = layers - 1 if kind == CASES[2] else None
    if tiny:
        grid = (2, 4, 4)
    config = config_of(layers, tiny=tiny)
    torch.manual_seed(0)
    ours = LTXTransformer(config).to(dtype).eval()
    given = Inputs.of(grid, config, conditioned=kind == CASES[1])
    steps = peers(ours, dtype)(given, skipped)
    tokens = given.x.shape[1]
    case = f"{kind}, {tokens} tokens, {layers} blocks, {str(dtype).removeprefix('torch.')}"
    with threads(count), computing(ours, PLAIN if tiny else kernels_here()):
        with torch.inference_mode():
            rotary = ours.prepare_positions(given.positions)
            negative, positive = (ours.prepare_text([given.padded[i, :n]]) for i, n in enumerate((NEGATIVE, POSITIVE)))
        branches = (Branch(positive),)
        if skipped is not None:
            branches = (Branch(negative), Branch(positive), Branch(positive, frozenset({skipped})))

        def step() -> Tensor:
            return torch.cat(ours(given.x, given.sigma, rotary, branches))

        computed = ours.compute_dtype
        note = "" if computed == dtype else f"computed in {str(computed).removeprefix('torch.')}, weights as stored"
        limit = None
        if skipped is None:
            limit = only_work(step_work(config, tokens, POSITIVE, computed), "processor" if count == 1 else "wall")
        return compare(case, step, steps, rounds, limit=limit, note=note, tiny=tiny)


def parts(*, tiny: bool) -> list[Part]:
    """CFG 1 at 384 tokens in bfloat16 first: it is the line in the README."""
    made: list[Part] = []
    for grid in (SHORT,) if tiny else (SHORT, LONG):
        tokens = grid[0] * grid[1] * grid[2]
        for dtype in (torch.bfloat16, torch.float32):
            name = str(dtype).removeprefix("torch.")
            made += [
                Part(f"{kind}, {tokens} {name}, one thread", partial(measure, kind, dtype, grid, 1, tiny=tiny))
                for kind in CASES
            ]
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        made.append(
            Part(f"{CASES[0]}, 384 {name}, all cores", partial(measure, CASES[0], dtype, SHORT, cores(), tiny=tiny))
        )
    return made


def main() -> None:
    parser = arguments(__doc__)
    only_some(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    publish(
        "transformer_cpu",
        "How much less CPU time does a denoising step take? (blocks of the 2B width)",
        measured(parts(tiny=options.tiny), options.only),
        **asked(options),
    )


if __name__ == "__main__":
    main()
