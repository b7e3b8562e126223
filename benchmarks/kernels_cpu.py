"""What products cost on this CPU, in each form that LTXKit can choose, and in eight bits, which it cannot.

All products of one block of the 2B width, at 384 and 2,688 tokens, each with weights of its own. "int8" is oneDNN's
product of bytes (torch.ops.onednn.qlinear_pointwise) with a scale per row of the weight; activations are quantized when
it is called, with one scale per tensor or, "in pieces", per 128 rows, which stay in the processor's cache. The product
alone, with activations quantized before, is its limit. How far its result is from the float one stands beside it.

Eight bits would be worth a form of their own from 1.3 times the best float one on; the table says where this CPU is.
One thread, CPU time.

python benchmarks/kernels_cpu.py [--tiny] [--only WORDS]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from protocol import Part, Rounds, Row, arguments, asked, compare, measured, only_some, publish
from torch import Tensor

from ltxkit.ltx_core.kernels import private
from ltxkit.ltx_core.kernels.choice import name_of

TOKENS = (384, 2688)
WIDTH = 2048
# Outputs and inputs in widths, and how many of them share an input: q, k and v; the output of attention, q and the
# output of cross-attention; the feed-forward.
BLOCK = ((1, 1, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), (4, 1, 1), (1, 4, 1))
ROWS = 128  # of a piece
FLOAT = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
EIGHT_BITS = 6e-2
# Of an activation. AVX2 adds pairs of products in 16 bits, where those of full bytes saturate: torch.ao.quantization
# reduces the range there, too (`reduce_range`).
LEVELS = 127 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 255
ROUNDS = 5


@dataclass(frozen=True, eq=False)
class Bytes:
    """A weight (out, in) as int8 with a scale per row, in oneDNN's layout."""

    packed: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, rows: int) -> Bytes:
        scale = weight.float().abs().amax(1) / 127
        stored = (weight.float() / scale[:, None]).round().to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(stored, [rows, weight.shape[1]])
        return cls(packed, scale, torch.zeros(len(weight), dtype=torch.int64), bias.float())


@dataclass(frozen=True, eq=False)
class Activations:
    """x (n, in) as unsigned bytes: (x - zero) * scale."""

    stored: Tensor
    scale: float
    zero: int

    @classmethod
    def of(cls, x: Tensor) -> Activations:
        least, greatest = (float(each) for each in x.aminmax())
        least, greatest = min(least, 0.0), max(greatest, 0.0)
        scale = (greatest - least) / LEVELS or 1.0
        zero = round(-least / scale)
        stored = x.to(torch.float32, copy=True).mul_(1 / scale).add_(zero).round_().clamp_(0, LEVELS).to(torch.uint8)
        return cls(stored, scale, zero)


def multiply(x: Activations, weight: Bytes, dtype: torch.dtype) -> Tensor:
    return torch.ops.onednn.qlinear_pointwise(
        x.stored, x.scale, x.zero, weight.packed, weight.scale, weight.zero, weight.bias, 1.0, 0, dtype, "none", [], ""
    )


Product = tuple[Tensor, list[tuple[Tensor, Tensor]]]
"""An input (n, in), and the weights (out, in) and biases that it is multiplied by."""


def block(tokens: int, width: int, dtype: torch.dtype) -> list[Product]:
    made = torch.Generator().manual_seed(0)

    def random(*size: int, spread: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=made) * spread).to(dtype)

    return [
        (
            random(tokens, ins * width),
            [
                (random(outs * width, ins * width, spread=(ins * width) ** -0.5), random(outs * width))
                for _ in range(count)
            ],
        )
        for outs, ins, count in BLOCK
    ]


def floats(products: list[Product]) -> Mapping[str, Callable[[], Tensor]]:
    """The block's products in each form, as functions that return their results (n, all outs)."""
    packed = [[private.pack_linear(weight) for weight, _ in weights] for _, weights in products]

    def each(product: Callable[[Tensor, Tensor, Tensor], Tensor], turned: bool) -> Tensor:
        results = [
            product(x, kernel if turned else weight, bias)
            for (x, weights), kernels in zip(products, packed, strict=True)
            for (weight, bias), kernel in zip(weights, kernels, strict=True)
        ]
        return torch.cat(results, dim=1)

    return {
        "F.linear": lambda: each(F.linear, False),
        "oneDNN": lambda: each(private.linear, False),
        "oneDNN, packed": lambda: each(private.linear, True),
    }


def eight_bits(products: list[Product], dtype: torch.dtype) -> Mapping[str, Callable[[], Tensor]]:
    """The same in int8. An input is quantized once for all weights that share it."""
    packed = [[Bytes.of(weight, bias, len(x)) for weight, bias in weights] for x, weights in products]
    before = [Activations.of(x) for x, _ in products]

    def alone() -> Tensor:
        pairs = zip(before, packed, strict=True)
        return torch.cat([multiply(x, weight, dtype) for x, weights in pairs for weight in weights], dim=1)

    def per_tensor() -> Tensor:
        results: list[Tensor] = []
        for (x, _), weights in zip(products, packed, strict=True):
            stored = Activations.of(x)
            results += [multiply(stored, weight, dtype) for weight in weights]
        return torch.cat(results, dim=1)

    def in_pieces() -> Tensor:
        results: list[Tensor] = []
        for (x, _), weights in zip(products, packed, strict=True):
            outs = [x.new_empty(len(x), len(weight.scale)) for weight in weights]
            for start in range(0, len(x), ROWS):
                piece = Activations.of(x[start : start + ROWS])
                for out, weight in zip(outs, weights, strict=True):
                    out[start : start + ROWS] = multiply(piece, weight, dtype)
            results += outs
        return torch.cat(results, dim=1)

    return {"int8, the product alone": alone, "int8": per_tensor, "int8, in pieces": in_pieces}


def measure(tokens: int, dtype: torch.dtype, *, tiny: bool) -> list[Row]:
    products = block(32 if tiny else tokens, 64 if tiny else WIDTH, dtype)
    case = f"products of a block, {tokens} tokens, {name_of(dtype)}"
    if not private.works("products", dtype):
        return [Row(case, "s", None, note=f"oneDNN has no products in {name_of(dtype)} on this processor")]
    forms = dict(floats(products))
    plain = forms.pop("F.linear")
    rows = compare(f"{case}: F.linear", plain, forms, Rounds(FLOAT[dtype], ROUNDS, warmup=1), tiny=tiny)
    seconds: dict[str, float] = {
        "F.linear": rows[0].ours or 0.0,
        **{str(row.peer_name): row.peer or 0.0 for row in rows},
    }
    best = min(seconds, key=seconds.__getitem__)
    how = Rounds(EIGHT_BITS, ROUNDS, warmup=1)
    return rows + compare(
        f"{case}: the fastest, {best}",
        ({"F.linear": plain} | forms)[best],
        eight_bits(products, dtype),
        how,
        note="below 0.77x, eight bits are 1.3 times as fast",
        tiny=tiny,
    )


def main() -> None:
    parser = arguments(__doc__)
    only_some(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = [
        Part(f"{tokens} {name_of(dtype)}", partial(measure, tokens, dtype, tiny=options.tiny))
        for tokens in TOKENS[: 1 if options.tiny else None]
        for dtype in FLOAT
    ]
    rows = measured(parts, options.only)
    question = "What do the products of a block cost in each form, and in eight bits? (2B width)"
    publish("kernels_cpu", question, rows, **asked(options))


if __name__ == "__main__":
    main()
