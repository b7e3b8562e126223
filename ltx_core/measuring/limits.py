"""How fast a device could be: the work that a model cannot avoid, by the fastest form that torch has for it.

On a CPU every product, attention and convolution of a step is timed alone, in each form that gives the same numbers,
and the fastest ones are added up. On other devices the limit is the rate of one large product in the dtype of the
computation, and the work is counted in operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..config import TransformerConfig
from ..kernels import private
from .protocol import Clock, seconds_of

ROUNDS = 3  # of each form, after one that warms up; the least counts
QUERIES = 512  # of a block of attention by products
LARGE = 8192  # rows and columns of the product that shows a card's rate
_CPU = torch.device("cpu")


class Convolution(NamedTuple):
    """A convolution by its sizes: of the input (b c ...), the weight (o c ...), and how it moves."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


Form = Callable[[], object]
"""One product, attention or convolution, in one of the ways to compute it."""


def step_limit(config: TransformerConfig, tokens: int, text: int, dtype: torch.dtype) -> float:
    """Seconds of the products and the attention of one forward with one branch on this CPU, with its present threads.

    tokens, text, dtype: as `step_work`.
    """
    with torch.inference_mode():
        return sum(times * fastest(forms) for forms, times in step_work(config, tokens, text, dtype))


def step_work(config: TransformerConfig, tokens: int, text: int, dtype: torch.dtype) -> list[tuple[list[Form], int]]:
    """The products and the attention of one forward with one branch: each in every form, and how often it occurs.

    Keys and values of the text are not among them: they are computed once per prompt. tokens: of the latent.
    text: tokens of the prompt. dtype: of the computation.
    """
    d, heads, head_dim = config.hidden_size, config.num_attention_heads, config.attention_head_dim
    # q, k, v and the output of self-attention, q and the output of cross-attention; then the feed-forward.
    products = ((d, d, 6), (4 * d, d, 1), (d, 4 * d, 1))
    work = [(product_forms(tokens, ins, outs, dtype), times * config.num_layers) for outs, ins, times in products]
    attentions = (_attentions(heads, tokens, keys, head_dim, dtype) for keys in (tokens, text))
    return [*work, *((forms, config.num_layers) for forms in attentions)]


def only_work(work: Iterable[tuple[list[Form], int]], clock: Clock = "wall") -> Form:
    """What does nothing but this work, each part in the form that is the fastest on this CPU."""
    with torch.inference_mode():
        chosen = [(min(forms, key=lambda form: fastest([form], clock=clock)), times) for forms, times in work]

    def run() -> None:
        for form, times in chosen:
            for _ in range(times):
                form()

    return run


def convolution_limit(run: Callable[[], object], dtype: torch.dtype) -> float:
    """Seconds of the convolutions of a call on this CPU, with its present threads."""
    with torch.inference_mode():
        recorder = _Convolutions()
        with recorder:
            run()
        return sum(times * fastest(_convolutions(each, dtype)) for each, times in recorder.counted.items())


def device_limit(run: Callable[[], object], device: torch.device, dtype: torch.dtype) -> float | None:
    """Seconds of a call at the rate of one large product on this device; None where a product of the dtype fails.

    The multiplications of products, attention and convolutions are counted.
    """
    with torch.inference_mode():
        counter = FlopCounterMode(display=False)
        with counter:
            run()
        try:
            x, y = (torch.randn(LARGE, LARGE, device=device, dtype=dtype) for _ in range(2))
            seconds = fastest([lambda: x @ y], device)
        except RuntimeError:
            return None
    return counter.get_total_flops() / (2 * LARGE**3 / seconds)


def fastest(forms: Iterable[Form], device: torch.device = _CPU, clock: Clock = "wall") -> float:
    """Seconds of the fastest of these."""
    least = float("inf")
    for run in forms:
        run()
        least = min(least, *(seconds_of(run, device, clock) for _ in range(ROUNDS)))
    return least


def product_forms(rows: int, ins: int, outs: int, dtype: torch.dtype) -> list[Form]:
    """x (rows, ins) W^T + b (outs,) in every form that gives the same numbers."""
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((rows, ins), (outs, ins), (outs,)))
    forms: list[Form] = [lambda: F.linear(x, weight, bias)]
    if private.works("products", dtype):
        packed = private.pack_linear(weight)
        forms += [lambda: private.linear(x, weight, bias), lambda: private.linear(x, packed, bias)]
    return forms


def _attentions(heads: int, tokens: int, keys: int, width: int, dtype: torch.dtype) -> list[Form]:
    q, k, v = (torch.randn(1, heads, count, width).to(dtype) for count in (tokens, keys, keys))
    forms: list[Form] = [lambda: F.scaled_dot_product_attention(q, k, v)]
    if private.works("products", dtype):
        forms.append(lambda: by_products(q, k, v))
    return forms


def by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (1 h n d) per head and block of queries, as two products with a softmax between them."""
    q, k, values, out = (q * q.shape[-1] ** -0.5).contiguous(), k.contiguous(), v.mT.contiguous(), torch.empty_like(q)
    for head in range(q.shape[1]):
        for start in range(0, q.shape[2], QUERIES):
            rows = slice(start, start + QUERIES)
            weights = torch.softmax(private.linear(q[0, head, rows], k[0, head], None), dim=-1)
            out[0, head, rows] = private.linear(weights, values[0, head], None)
    return out


def _convolutions(sizes: Convolution, dtype: torch.dtype) -> list[Callable[[], Tensor]]:
    dimensions = len(sizes.stride)
    plain: Any = F.conv3d if dimensions == 3 else F.conv2d
    last = torch.channels_last_3d if dimensions == 3 else torch.channels_last
    x, weight = torch.randn(sizes.input).to(dtype), torch.randn(sizes.weight).to(dtype)
    inputs = (x, x.contiguous(memory_format=last))
    how = {"stride": sizes.stride, "padding": sizes.padding, "dilation": sizes.dilation, "groups": sizes.groups}
    forms: list[Callable[[], Tensor]] = [lambda given=given: plain(given, weight, None, **how) for given in inputs]
    if private.works("convolutions", dtype):
        packed = private.pack_convolution(weight, sizes.input, **how)  # pyright: ignore[reportArgumentType]
        forms += [lambda given=given: private.convolution(given, packed, None, **how) for given in inputs]  # pyright: ignore[reportArgumentType]
    return forms


class _Convolutions(TorchDispatchMode):
    """Counts the convolutions that run inside, by their sizes, in whatever form they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[Convolution] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        name = func.__name__.partition(".")[0]
        if name == "convolution":
            x, weight, _, stride, padding, dilation, transposed, _, groups = args
            if not transposed:
                self._count(x, weight, (stride, padding, dilation), groups)
        elif name in ("mkldnn_convolution", "_convolution_pointwise"):
            x, weight, _, padding, stride, dilation, groups = args[:7]
            self._count(x, weight, (stride, padding, dilation), groups)
        return func(*args, **(kwargs or {}))

    def _count(self, x: Tensor, weight: Tensor, moves: tuple[Any, Any, Any], groups: int) -> None:
        stride, padding, dilation = (tuple(each) for each in moves)
        self.counted[Convolution(tuple(x.shape), tuple(weight.shape), stride, padding, dilation, groups)] += 1
