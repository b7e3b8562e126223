"""One step of LoRA training against a plain loop of diffusers' transformer, peft and torch's AdamW.

Two blocks of the 2B width, a LoRA of rank 32 on the attention Linears, one clip of 384 and of 2,688 latent tokens and a
caption of 60 tokens, in float32: forward, backward, clipping and AdamW. Both start from the same weights and see the
same clips, noise and levels; ten losses are shown equal before anything is timed. One thread, CPU time.

Then our step with `optimization.compile` (torch.compile) against the same without it, three losses shown
equal. The first compiled step is timed by the clock of the wall, for it compiles in other processes.

python benchmarks/training_cpu.py [--only WORDS] [--tiny]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from protocol import Part, Rounds, Row, arguments, asked, measured, only_some, publish
from torch import Tensor, nn

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.measuring.machine import peak_bytes
from ltxkit.ltx_core.measuring.protocol import timed
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing.compiling import compile_blocks
from ltxkit.ltx_core.training.config import LoRASettings, Optimization
from ltxkit.ltx_core.training.flow import Flow
from ltxkit.ltx_core.training.lora import LoRALayers
from ltxkit.ltx_core.training.optimize import Updater
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS

LAYERS, TEXT, EQUAL_STEPS, COMPILED_STEPS = 2, 60, 10, 3
CPU = torch.device("cpu")
GRIDS = ((4, 8, 12), (7, 16, 24))  # latent cells
CONFIG = TransformerConfig.of_size(layers=LAYERS, heads=32, head_dim=64, channels=128, captions=4096)
TINY = TransformerConfig.of_size(layers=LAYERS, heads=2, head_dim=16, channels=128, captions=64)
TOLERANCE = 1e-4  # of a loss
OPTIMIZATION = Optimization(
    steps=10**6, batch_size=1, learning_rate=2e-4, betas=(0.9, 0.999), weight_decay=0.01, warmup=0, schedule="constant"
)

Step = Callable[[int], float]
"""The number of a step -> its loss; the weights change."""


def batch(config: TransformerConfig, grid: tuple[int, int, int], step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents and noise (1 n c), a caption's embedding (l d), and the level (1 1 1), of a step."""
    rng = torch.Generator().manual_seed(step)
    x0, noise = torch.randn(2, 1, grid[0] * grid[1] * grid[2], config.in_channels, generator=rng)
    text = torch.randn(TEXT, config.caption_channels, generator=rng)
    # In thousandths, as diffusers' models read it.
    return x0, noise, text, (torch.rand(1, 1, 1, generator=rng) * 998).round() / 1000 + 1e-3


def positions_of(grid: tuple[int, int, int]) -> Tensor:
    cells = torch.stack(torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")).reshape(1, 3, -1)
    return cells * torch.tensor([8 / 25, 32, 32])[None, :, None]


def ours(model: LTXTransformer, settings: LoRASettings, grid: tuple[int, int, int]) -> tuple[Step, LoRALayers]:
    """As `ltxkit train` computes a step."""
    lora = LoRALayers(model, settings)
    flow, updater, positions = Flow(model, None, lora), Updater([lora], OPTIMIZATION), positions_of(grid)

    def step(number: int) -> float:
        x0, noise, text, sigma = batch(model.config, grid, number)
        loss = flow(x0, noise, sigma, positions, [text]).mean()
        loss.backward()
        updater.apply(number)
        return float(loss.detach())

    return step, lora


def plain(
    model: LTXTransformer, lora: LoRALayers, grid: tuple[int, int, int], factors: dict[str, Tensor]
) -> tuple[Step, nn.Module]:
    """The loop that one writes with diffusers and peft, on the same weights; factors: those of `lora` at the start."""
    import diffusers
    from peft import LoraConfig

    config, settings = model.config, lora.config
    theirs = diffusers.LTXVideoTransformer3DModel(  # pyright: ignore[reportPrivateImportUsage]
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        cross_attention_dim=config.cross_attention_dim,
        caption_channels=config.caption_channels,
    )
    rename = TRANSFORMER_FROM_DIFFUSERS.inverse().rename
    theirs.load_state_dict({str(rename(key)): tensor for key, tensor in model.state_dict().items()}, assign=True)
    theirs.requires_grad_(False)
    alpha = cast(int, settings.alpha)  # peft takes a fraction too
    theirs.add_adapter(LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=list(settings.targets)))
    named = dict(theirs.named_parameters())
    with torch.no_grad():
        for key, name in lora.names.items():
            their_name = (rename(f"{name}.weight") or "").removesuffix(".weight")
            named[f"{their_name}.lora_A.default.weight"].copy_(factors[f"down.{key}"])
            named[f"{their_name}.lora_B.default.weight"].copy_(factors[f"up.{key}"])
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    positions, mask = positions_of(grid), torch.ones(1, TEXT)

    def step(number: int) -> float:
        x0, noise, text, sigma = batch(config, grid, number)
        x = (1 - sigma) * x0 + sigma * noise
        (velocity,) = theirs(x, text[None], (sigma * 1000)[:, :, 0], mask, video_coords=positions, return_dict=False)
        loss = nn.functional.mse_loss(velocity, noise - x0)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step, theirs


def start(tiny: bool) -> tuple[LTXTransformer, LoRASettings]:
    torch.manual_seed(0)
    model = LTXTransformer(TINY if tiny else CONFIG).requires_grad_(False)
    return model, LoRASettings(rank=4 if tiny else 32, alpha=4.0 if tiny else 32.0)


def difference_of(case: str, losses: list[tuple[float, float]]) -> float:
    """Of losses of the same steps.

    Raises:
        ValueError: they differ, or do not depend on the step.
    """
    difference = max(abs(a - b) for a, b in losses)
    if difference > TOLERANCE or len({a for a, _ in losses}) < len(losses):
        raise ValueError(f"{case}: losses differ by {difference:.2e}; expected at most {TOLERANCE:.0e}")
    return difference


def compared(case: str, steps: dict[str, Step], rounds: Rounds, difference: float, note: str) -> Row:
    """steps: ours, and that of the peer."""

    def contestant(step: Step) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                return torch.tensor(step(EQUAL_STEPS))

        return run

    (mine, peer), runs = steps, {name: contestant(step) for name, step in steps.items()}
    times = timed(runs, rounds, CPU)
    memory = {name: peak_bytes(run, CPU) for name, run in runs.items()}
    return Row(
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


def against_a_plain_loop(grid: tuple[int, int, int], tiny: bool) -> list[Row]:
    case = f"LoRA step, {grid[0] * grid[1] * grid[2]} tokens, {LAYERS} blocks"
    model, settings = start(tiny)
    mine, lora = ours(model, settings, grid)
    theirs, _ = plain(model, lora, grid, {name: value.clone() for name, value in lora.state_dict().items()})
    difference = difference_of(case, [(mine(number), theirs(number)) for number in range(EQUAL_STEPS)])
    rounds = Rounds(1.0, 1, 0) if tiny else Rounds(1.0, 9 if grid == GRIDS[0] else 5, 1)
    steps = {"ltxkit": mine, "diffusers + peft + AdamW": theirs}
    return [compared(case, steps, rounds, difference, "difference: of ten losses")]


def compiled(grid: tuple[int, int, int], tiny: bool) -> list[Row]:
    """As the trainer compiles: after the LoRA has been put on the model."""
    case = f"LoRA step, {grid[0] * grid[1] * grid[2]} tokens, {LAYERS} blocks, torch.compile"
    eager, _ = ours(*start(tiny), grid)
    model, settings = start(tiny)
    fast, _ = ours(model, settings, grid)
    compile_blocks(model, CPU, backend="eager" if tiny else "inductor")  # the rehearsal traces, and builds no code
    began = time.perf_counter()
    first = fast(0)
    seconds = time.perf_counter() - began
    losses = [(first, eager(0)), *((fast(number), eager(number)) for number in range(1, COMPILED_STEPS))]
    difference = difference_of(case, losses)
    rounds = Rounds(1.0, 1, 0) if tiny else Rounds(1.0, 9 if grid == GRIDS[0] else 3, 1)
    note = f"first step {seconds:.0f} s; difference: of three losses"
    return [compared(case, {"ltxkit": fast, "not compiled": eager}, rounds, difference, note)]


def main() -> None:
    parser = arguments(__doc__)
    only_some(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: list[Part] = []
    for name, measure in (("plain", against_a_plain_loop), ("compile", compiled)):
        for grid in GRIDS[:1] if options.tiny else GRIDS:
            parts.append(Part(f"{name} {grid[0] * grid[1] * grid[2]}", partial(measure, grid, options.tiny)))
    rows = measured(parts, options.only)
    publish("training_cpu", "How long does a step of LoRA training take on a CPU?", rows, **asked(options))


if __name__ == "__main__":
    main()
