"""What products in float8 gain over products in bfloat16, with the same float8 weights.

python benchmarks/fp8_gpu.py [--tiny]

Four blocks of the 13B width. "fp8 weights, bf16 products" is LTXKit with the switch off; "bf16 weights" are the same
numbers, unpacked. Takes seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from protocol import Rounds, Row, arguments, compare, publish
from torch import Tensor

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.quant.fp8 import multiplies_fp8, use_fp8_matmul
from ltxkit.ltx_core.quant.linear import QuantizedLinear
from ltxkit.ltx_core.quant.registry import quantization_by_name

LAYERS, TEXT_TOKENS = 4, 128
GRIDS = ((4, 16, 24), (13, 22, 38))  # 25 frames of 768x512, 97 frames of 1216x704
TOLERANCE = 0.2  # of the largest number: three significant bits of weights and activations, through four blocks

CONFIG = TransformerConfig.of_size(layers=LAYERS, heads=32, head_dim=128, channels=128, captions=4096)


def build(config: TransformerConfig, device: torch.device) -> tuple[LTXTransformer, LTXTransformer, LTXTransformer]:
    """Three models of the same numbers: products in float8, products in bfloat16, and weights unpacked to bfloat16."""
    torch.manual_seed(0)
    with torch.device(device):
        unpacked = LTXTransformer(config).bfloat16().eval().requires_grad_(False)
    models: list[LTXTransformer] = []
    for _ in range(2):
        with torch.device("meta"):
            model = LTXTransformer(config).eval()
        pack = quantization_by_name("fp8", "transformer_blocks.").prepare(model, {}, torch.bfloat16)
        packed = {
            name: tensor for key, value in unpacked.state_dict().items() for name, tensor in pack(key, value).items()
        }
        model.load_state_dict(packed, assign=True)
        models.append(model.requires_grad_(False))
    use_fp8_matmul(models[0])
    weights = {
        f"{name}.weight": part.dequantized(torch.bfloat16)
        for name, part in models[0].named_modules()
        if isinstance(part, QuantizedLinear)
    }
    unpacked.load_state_dict(unpacked.state_dict() | weights)
    return models[0], models[1], unpacked


def measure(config: TransformerConfig, grid: tuple[int, int, int], device: torch.device, *, tiny: bool) -> list[Row]:
    models = build(config, device)
    cells = torch.stack(torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij"))
    positions = cells.reshape(1, 3, -1) * torch.tensor([8 / 25, 32, 32], device=device)[None, :, None]
    tokens = positions.shape[2]
    x = torch.randn(1, tokens, config.in_channels, device=device)
    sigma = torch.full((1, 1, 1), 0.725, device=device)
    text = torch.randn(TEXT_TOKENS, config.caption_channels, device=device)

    def prepared(model: LTXTransformer) -> Callable[[], Tensor]:
        with torch.inference_mode():
            rotary, branch = model.prepare_positions(positions), Branch(model.prepare_text([text]))

        def step() -> Tensor:
            return model(x, sigma, rotary, (branch,))[0]

        return step

    fast, plain, unpacked = map(prepared, models)
    peers = {"fp8 weights, bf16 products": plain, "bf16 weights": unpacked}
    return compare(f"{LAYERS} blocks, {tokens} tokens", fast, peers, Rounds(TOLERANCE), tiny=tiny)


def main() -> None:
    tiny = arguments(__doc__).parse_args().tiny
    device = torch.device("cpu" if tiny else "cuda")
    if not multiplies_fp8(device) and not tiny:  # a CPU without such products rehearses with bfloat16 ones
        raise SystemExit(f"{device} does not multiply in float8: nothing to measure")
    config, grids = CONFIG, GRIDS
    if tiny:
        config, grids = replace(CONFIG, attention_head_dim=8, cross_attention_dim=256), ((2, 4, 8),)
    rows = list(itertools.chain.from_iterable(measure(config, grid, device, tiny=tiny) for grid in grids))
    question = f"How much faster are products in float8? ({LAYERS} blocks of the 13B width)"
    publish("fp8_gpu", question, rows, tiny=tiny)


if __name__ == "__main__":
    main()
