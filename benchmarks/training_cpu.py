"""One step of LoRA training against a plain loop of diffusers' transformer, peft and torch's AdamW.

Two blocks of the 2B width, a LoRA of rank 32 on the attention Linears, one clip of 384 and of 2,688 latent tokens and a
caption of 60 tokens, in float32: forward, backward, clipping and AdamW. Both start from the same weights and see the
same clips, noise and levels; ten losses are shown equal before anything is timed. One thread, CPU time.

python benchmarks/training_cpu.py [--tiny]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from protocol import Rounds, Row, arguments, publish
from torch import Tensor, nn

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.measuring.protocol import timed
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.training.config import LoRASettings, Optimization
from ltxkit.ltx_core.training.flow import Flow
from ltxkit.ltx_core.training.lora import LoRALayers
from ltxkit.ltx_core.training.optimize import Updater
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS

LAYERS, TEXT, EQUAL_STEPS = 2, 60, 10
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


def row(grid: tuple[int, int, int], *, tiny: bool) -> Row:
    torch.manual_seed(0)
    model = LTXTransformer(TINY if tiny else CONFIG).requires_grad_(False)
    settings = LoRASettings(rank=4 if tiny else 32, alpha=4.0 if tiny else 32.0)
    mine, lora = ours(model, settings, grid)
    theirs, _ = plain(model, lora, grid, {name: value.clone() for name, value in lora.state_dict().items()})
    losses = [(mine(number), theirs(number)) for number in range(EQUAL_STEPS)]
    difference = max(abs(a - b) for a, b in losses)
    if difference > TOLERANCE or len({a for a, _ in losses}) < EQUAL_STEPS:
        raise ValueError(f"{grid}: ten losses differ by {difference:.2e}; expected at most {TOLERANCE:.0e}")

    def contestant(step: Step) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                return torch.tensor(step(EQUAL_STEPS))

        return run

    rounds = Rounds(1.0, 1, 0) if tiny else Rounds(1.0, 9 if grid == GRIDS[0] else 5, 1)
    times = timed({"ltxkit": contestant(mine), "plain": contestant(theirs)}, rounds, torch.device("cpu"))
    return Row(
        case=f"LoRA step, {grid[0] * grid[1] * grid[2]} tokens, {LAYERS} blocks",
        unit="s",
        ours=times.median("ltxkit"),
        peer_name="diffusers + peft + AdamW",
        peer=times.median("plain"),
        speedup=times.speedup("ltxkit", "plain"),
        difference=difference,
        note="difference: of ten losses",
        threads=1,
    )


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    rows = [row(grid, tiny=options.tiny) for grid in (GRIDS[:1] if options.tiny else GRIDS)]
    publish("training_cpu", "How long does a step of LoRA training take on a CPU?", rows, tiny=options.tiny)


if __name__ == "__main__":
    main()
