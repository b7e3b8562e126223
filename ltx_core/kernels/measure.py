"""What this processor does: each form of products, attention, convolutions and norms timed against the plain one.

The clock is the process's CPU time, which other programs do not lengthen, and contestants take turns. A dtype whose
products turn out many times slower than float32's, as without instructions for it, is dropped after one small product.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from . import private
from .active import Active
from .attention import by_blocks
from .choice import FORMS, PLAIN_FORM, Kernels, Operation
from .elementwise import TokenRows, norm_modulation

OTHER_DTYPE = 1.3  # another dtype than the file's has to be this many times as fast
OTHER_FORM = 1.05  # another form than the plain one: less is what two measurements of the same form differ by
HOPELESS = 8  # times slower than float32
ROUNDS = 3
ROWS, WIDTH = 256, 1280  # of the product: a tenth of a second for everything, and wide enough for full speed
HEADS, TOKENS, HEAD_DIM = 2, 768, 64
EPS = 1e-6
CHANNELS, GRID = 256, (3, 8, 12)  # of the convolution: the coarse end of a VAE, where weights weigh most

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Times = dict[tuple[torch.dtype, str], float]


def measure() -> Kernels:
    """The choice by measurement on this machine, in less than a second of one thread."""
    with torch.inference_mode():
        dtypes = _worth_measuring()
        return chosen(_products(dtypes), _attention(dtypes), _convolutions(dtypes), _norms(dtypes))


def chosen(products: Times, attention: Times, convolutions: Times, norms: Times) -> Kernels:
    """The choice by times in seconds of (dtype, form); a dtype that is missing from them computes nowhere."""
    return Kernels(
        Operation(_forms(products), _computed(products)),
        Operation(_forms(attention)),  # its dtype is that of the products, as the norms'
        Operation(_forms(convolutions), _computed(convolutions)),
        Operation(_forms(norms)),
        widens_half=True,
        origin="measured",
    )


def _forms(times: Times) -> Mapping[torch.dtype, str]:
    """Per dtype the fastest form, or the plain one where that is about as fast."""
    forms: dict[torch.dtype, str] = {}
    for dtype in {dtype for dtype, _ in times}:
        own = {form: seconds for (of, form), seconds in times.items() if of == dtype}
        fastest = min(own, key=own.__getitem__)
        forms[dtype] = fastest if own[PLAIN_FORM] >= OTHER_FORM * own[fastest] else PLAIN_FORM
    return forms


def _computed(times: Times) -> Mapping[torch.dtype, torch.dtype]:
    """16-bit weights in float32, where that is so much faster, or 16 bits are too slow to be measured.

    Never the other way: fewer bits than the file has are the user's own choice.
    """
    best: dict[torch.dtype, float] = {}
    for (dtype, _), seconds in times.items():
        best[dtype] = min(best.get(dtype, seconds), seconds)
    computed: dict[torch.dtype, torch.dtype] = {}
    for half in (torch.bfloat16, torch.float16):
        slow = half not in best or best[half] >= OTHER_DTYPE * best[torch.float32]
        computed[half] = torch.float32 if slow else half
    return computed


def _worth_measuring() -> list[torch.dtype]:
    """float32, and the 16-bit dtypes that have a product of tolerable speed."""
    times: dict[torch.dtype, float] = {}
    for dtype in _DTYPES:
        x, weight = torch.ones(32, 256).to(dtype), torch.ones(256, 256).to(dtype)
        times[dtype] = min(_seconds(lambda x=x, weight=weight: F.linear(x, weight)) for _ in range(ROUNDS))
    return [dtype for dtype in _DTYPES if times[dtype] <= HOPELESS * times[torch.float32]]


def _products(dtypes: list[torch.dtype]) -> Times:
    contest: dict[tuple[torch.dtype, str], Callable[[], Tensor]] = {}
    for dtype in dtypes:
        x, weight, bias = (_random(dtype, *size) for size in ((ROWS, WIDTH), (WIDTH, WIDTH), (WIDTH,)))
        contest[dtype, PLAIN_FORM] = lambda x=x, weight=weight, bias=bias: F.linear(x, weight, bias)
        if private.works("products", dtype):
            packed = private.pack_linear(weight)
            contest[dtype, "onednn"] = lambda x=x, weight=weight, bias=bias: private.linear(x, weight, bias)
            contest[dtype, "packed"] = lambda x=x, packed=packed, bias=bias: private.linear(x, packed, bias)
    return _times(contest)


def _attention(dtypes: list[torch.dtype]) -> Times:
    contest: dict[tuple[torch.dtype, str], Callable[[], Tensor]] = {}
    for dtype in dtypes:
        q = _random(dtype, 1, TOKENS, HEADS, HEAD_DIM).transpose(1, 2)
        contest[dtype, PLAIN_FORM] = lambda q=q: F.scaled_dot_product_attention(q, q, q)
        if private.works("products", dtype):
            contest[dtype, "products"] = lambda q=q: by_blocks(q, q, q)
    return _times(contest)


def _convolutions(dtypes: list[torch.dtype]) -> Times:
    contest: dict[tuple[torch.dtype, str], Callable[[], Tensor]] = {}
    padding, ones = (1, 1, 1), (1, 1, 1)
    for dtype in dtypes:
        x = _random(dtype, 1, CHANNELS, *GRID).contiguous(memory_format=torch.channels_last_3d)
        weight, bias = _random(dtype, CHANNELS, CHANNELS, 3, 3, 3), _random(dtype, CHANNELS)
        if not private.works("convolutions", dtype):
            contest[dtype, PLAIN_FORM] = lambda x=x, w=weight, bias=bias: F.conv3d(x, w, bias, ones, padding)
            continue
        packed = private.pack_convolution(weight, x.shape, padding=padding, stride=ones, dilation=ones)

        def convolve(x: Tensor = x, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
            return private.convolution(x, weight, bias, padding=padding, stride=ones, dilation=ones)

        contest[dtype, PLAIN_FORM] = convolve
        contest[dtype, "packed"] = lambda x=x, packed=packed, bias=bias, run=convolve: run(x, packed, bias)
    return _times(contest)


def _norms(dtypes: list[torch.dtype]) -> Times:
    """With the modulation that follows most of them, and becomes part of the pieces."""
    contest: dict[tuple[torch.dtype, str], Callable[[], Tensor]] = {}
    for dtype in dtypes:
        x, table = _random(dtype, 1, ROWS, WIDTH), _random(dtype, 2, 1, WIDTH)
        for form in FORMS["norms"]:
            active = Active(Kernels(norms=Operation({dtype: form})))
            contest[dtype, form] = partial(norm_modulation, x, EPS, table[0], table[1], TokenRows(), active)
    return _times(contest)


def _times(contest: Mapping[tuple[torch.dtype, str], Callable[[], Tensor]]) -> Times:
    """Seconds of each, the least of some rounds after one that warms up."""
    for run in contest.values():
        run()
    times: Times = dict.fromkeys(contest, float("inf"))
    for _ in range(ROUNDS):
        for name, run in contest.items():
            times[name] = min(times[name], _seconds(run))
    return times


def _seconds(run: Callable[[], Tensor]) -> float:
    start = time.process_time()
    run()
    return max(time.process_time() - start, 1e-9)


def _random(dtype: torch.dtype, *size: int) -> Tensor:
    return torch.empty(size).uniform_(-1, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
