"""One step of LoRA training against a plain loop of diffusers' transformer, peft and torch's AdamW, and other trainers.

Two blocks of the 2B width, a LoRA of rank 32 on the attention Linears, one clip of 384 and of 2,688 latent tokens and a
caption of 60 tokens, in float32: forward, backward, clipping and AdamW. All start from the same weights and see the
same clips, noise and levels; ten losses are shown equal before anything is timed. One thread, CPU time. Lightricks'
LTX-Video-Trainer and finetrainers take part where `training_peers.py` finds them.

Then our step with `optimization.compile` (torch.compile) against the same without it, three losses shown
equal. The first compiled step is timed by the clock of the wall, for it compiles in other processes.

python benchmarks/training_cpu.py [--only WORDS] [--tiny]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from protocol import Part, Rounds, Row, arguments, asked, measured, only_some, publish
from torch import Tensor
from training_peers import LEARNING_RATE, Batch, Start, Step, peers, positions_of

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.measuring.machine import peak_bytes
from ltxkit.ltx_core.measuring.protocol import timed
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing.compiling import compile_blocks
from ltxkit.ltx_core.training.config import LoRASettings, Optimization
from ltxkit.ltx_core.training.flow import Flow
from ltxkit.ltx_core.training.lora import LoRALayers
from ltxkit.ltx_core.training.optimize import Updater

LAYERS, EQUAL_STEPS, COMPILED_STEPS = 2, 10, 3
CPU = torch.device("cpu")
GRIDS = ((4, 8, 12), (7, 16, 24))  # latent cells
CONFIG = TransformerConfig.of_size(layers=LAYERS, heads=32, head_dim=64, channels=128, captions=4096)
TINY = TransformerConfig.of_size(layers=LAYERS, heads=2, head_dim=16, channels=128, captions=64)
TOLERANCE = 1e-4  # of a loss
OPTIMIZATION = Optimization(
    steps=10**6,
    batch_size=1,
    learning_rate=LEARNING_RATE,
    betas=(0.9, 0.999),
    weight_decay=0.01,
    warmup=0,
    schedule="constant",
)


def ours(model: LTXTransformer, lora: LoRALayers, grid: tuple[int, int, int]) -> Step:
    """As `ltxkit train` computes a step."""
    flow, updater, positions = Flow(model, None, lora), Updater([lora], OPTIMIZATION), positions_of(grid)

    def step(number: int) -> float:
        batch = Batch.of(model.config, grid, number)
        loss = flow(*batch.tokens(), batch.level, positions, [batch.text]).mean()
        loss.backward()
        updater.apply(number)
        return float(loss.detach())

    return step


def begin(tiny: bool) -> tuple[LTXTransformer, LoRALayers]:
    torch.manual_seed(0)
    model = LTXTransformer(TINY if tiny else CONFIG).requires_grad_(False)
    return model, LoRALayers(model, LoRASettings(rank=4 if tiny else 32, alpha=4.0 if tiny else 32.0))


def difference_of(case: str, losses: list[float], others: list[float]) -> float:
    """The largest, of losses of the same steps.

    Raises:
        ValueError: they differ, or do not depend on the step.
    """
    difference = max(abs(a - b) for a, b in zip(losses, others, strict=True))
    if not difference <= TOLERANCE or len(set(losses)) < len(losses):
        raise ValueError(f"{case}: losses differ by {difference:.2e}; expected at most {TOLERANCE:.0e}")
    return difference


def compared(case: str, steps: dict[str, Step], rounds: Rounds, differences: dict[str, float], note: str) -> list[Row]:
    """steps: ours, and those of the peers, of which each gets a row. differences: of the peers' losses from ours."""

    def contestant(step: Step) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                return torch.tensor(step(EQUAL_STEPS))

        return run

    mine, runs = next(iter(steps)), {name: contestant(step) for name, step in steps.items()}
    times = timed(runs, rounds, CPU)
    memory = {name: peak_bytes(run, CPU) for name, run in runs.items()}
    return [
        Row(
            case=case,
            unit="s",
            ours=times.median(mine),
            peer_name=peer,
            peer=times.median(peer),
            speedup=times.speedup(mine, peer),
            difference=difference,
            note=note,
            memory=memory[mine],
            peer_memory=memory[peer],
            threads=1,
        )
        for peer, difference in differences.items()
    ]


def against_others(grid: tuple[int, int, int], tiny: bool) -> list[Row]:
    """All take ten steps one after the other, then turns while they are timed."""
    case = f"LoRA step, {grid[0] * grid[1] * grid[2]} tokens, {LAYERS} blocks"
    model, lora = begin(tiny)
    start = Start.of(model, lora, grid)
    steps = {name: make(start) for name, make in peers().items()}
    mine = ours(model, lora, grid)
    numbers = range(EQUAL_STEPS)
    losses = [mine(number) for number in numbers]
    differences = {
        name: difference_of(f"{case}, {name}", losses, [step(number) for number in numbers])
        for name, step in steps.items()
    }
    rounds = Rounds(1.0, 1, 0) if tiny else Rounds(1.0, 9 if grid == GRIDS[0] else 5, 1)
    return compared(case, {"ltxkit": mine, **steps}, rounds, differences, "difference: of ten losses")


def compiled(grid: tuple[int, int, int], tiny: bool) -> list[Row]:
    """As the trainer compiles: after the LoRA has been put on the model."""
    case = f"LoRA step, {grid[0] * grid[1] * grid[2]} tokens, {LAYERS} blocks, torch.compile"
    eager = ours(*begin(tiny), grid)
    model, lora = begin(tiny)
    fast = ours(model, lora, grid)
    compile_blocks(model, CPU, backend="eager" if tiny else "inductor")  # the rehearsal traces, and builds no code
    began = time.perf_counter()
    first = fast(0)
    seconds = time.perf_counter() - began
    later = range(1, COMPILED_STEPS)
    losses = [first, *(fast(number) for number in later)]
    difference = difference_of(case, losses, [eager(0), *(eager(number) for number in later)])
    rounds = Rounds(1.0, 1, 0) if tiny else Rounds(1.0, 9 if grid == GRIDS[0] else 3, 1)
    note = f"first step {seconds:.0f} s; difference: of three losses"
    return compared(case, {"ltxkit": fast, "not compiled": eager}, rounds, {"not compiled": difference}, note)


def main() -> None:
    parser = arguments(__doc__)
    only_some(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: list[Part] = []
    for name, measure in (("plain", against_others), ("compile", compiled)):
        for grid in GRIDS[:1] if options.tiny else GRIDS:
            parts.append(Part(f"{name} {grid[0] * grid[1] * grid[2]}", partial(measure, grid, options.tiny)))
    rows = measured(parts, options.only)
    publish("training_cpu", "How long does a step of LoRA training take on a CPU?", rows, **asked(options))


if __name__ == "__main__":
    main()
