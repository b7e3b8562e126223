"""Norms with what follows them, a few rows at a time: the numbers of float64, rounded once."""

import pytest
import torch
import torch.nn.functional as F

from ltxkit.ltx_core.kernels import norms
from ltxkit.ltx_core.kernels.active import PLAINLY, Active
from ltxkit.ltx_core.kernels.choice import parse_kernels
from ltxkit.ltx_core.kernels.elementwise import MOST_RUNS, TokenRows, gated_sum, norm_modulation, norm_rotation
from ltxkit.ltx_core.kernels.rotation import rotation_table

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
WIDTH, TOKENS, EPS = 48, 17, 1e-6
IN_PIECES = Active(parse_kernels("norms=pieces", "asked for"))
RUNS = TokenRows.of(torch.tensor([[0] * 5 + [2] * 9 + [1] * 3]))
DIFFERING = TokenRows.of(torch.arange(2 * TOKENS).view(2, -1) % 3)  # samples whose tokens differ
MANY = TokenRows.of(torch.arange(TOKENS)[None] % 3)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(norms, "PIECE", 4 * WIDTH)  # several pieces, the last one shorter


def random(*size, dtype=F32, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(result, exact, dtype):
    bound = max(torch.finfo(dtype).eps, 8 * torch.finfo(F32).eps)
    return (result.double() - exact).abs().max() <= bound * exact.abs().max()


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("lanes", [(), (1,), (3,)])
@pytest.mark.parametrize(
    ("rows", "count"), [(TokenRows(), 1), (TokenRows(), 2), (RUNS, 3), (DIFFERING, 3), (MANY, 3)], ids=str
)
def test_norm_and_modulation(rows, count, lanes, dtype):
    assert MANY.runs is None
    assert TOKENS > MOST_RUNS
    x = random(*lanes, 2, TOKENS, WIDTH, dtype=dtype, seed=1)
    shift, scale = random(2, count, WIDTH, dtype=dtype, seed=2)
    before = x.clone()
    normed = F.rms_norm(x.double(), (WIDTH,), None, EPS)
    exact = normed * (1 + rows.spread(scale.double())) + rows.spread(shift.double())
    with torch.no_grad():
        result = norm_modulation(x, EPS, shift, scale, rows, IN_PIECES)
    assert (result.dtype, result.shape) == (dtype, x.shape)
    assert torch.equal(x, before)
    if rows.index is None or rows.runs is not None:
        assert close(result, exact, dtype)
    else:  # a row for each token: after the norm the factor, the product and the sum are rounded
        assert (result.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


def test_lanes_of_one_memory_are_read_and_never_written():
    x = random(1, 2, TOKENS, WIDTH, dtype=BF16)
    lanes, table = x.expand(3, -1, -1, -1), random(2, 2, WIDTH, dtype=BF16, seed=2)
    with torch.no_grad():
        result = norm_modulation(lanes, EPS, *table, TokenRows(), IN_PIECES)
        one = norm_modulation(x, EPS, *table, TokenRows(), IN_PIECES)
    assert torch.equal(result, one.expand(3, -1, -1, -1))


def test_a_table_of_more_bits_decides_the_dtype_as_ever():
    x, table = random(2, TOKENS, WIDTH, dtype=BF16), random(2, 1, WIDTH, seed=2)  # as GGUF files store it
    with torch.no_grad():
        result = norm_modulation(x, EPS, *table, TokenRows(), IN_PIECES)
        plain = norm_modulation(x, EPS, *table, TokenRows(), PLAINLY)
    assert result.dtype == plain.dtype == F32
    assert (result - plain).abs().max() <= 2 * torch.finfo(BF16).eps * plain.abs().max()


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize(("samples", "tables"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("stored", [F32, BF16])
def test_norm_and_rotation(stored, samples, tables, lanes, dtype):
    query, key = (random(lanes, samples, TOKENS, WIDTH, dtype=dtype, seed=seed) for seed in (1, 2))
    weights = random(2, WIDTH, dtype=stored, seed=3).unbind(0)
    angles = random(tables, TOKENS, WIDTH // 2, seed=4) * 9
    table = rotation_table(angles, "complex")
    cos, sin = angles.double().cos(), angles.double().sin()
    with torch.no_grad():
        result = norm_rotation(query.clone(), key.clone(), weights, EPS, table, IN_PIECES)
        apart = norm_rotation(query.mT.contiguous().mT, key.clone(), weights, EPS, table, IN_PIECES)
    assert torch.equal(apart[0], result[0])
    for x, weight, mine in zip((query, key), weights, result, strict=True):
        pairs = F.rms_norm(x.double(), (WIDTH,), weight.to(dtype).double(), EPS).unflatten(-1, (-1, 2))
        turned = pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 0] * sin + pairs[..., 1] * cos
        assert (mine.dtype, mine.shape) == (dtype, x.shape)
        assert close(mine, torch.stack(turned, -1).flatten(-2), dtype)


def test_autograd_keeps_to_the_plain_forms():
    x = random(1, 1, TOKENS, WIDTH).requires_grad_()
    shift, scale = random(2, 1, WIDTH, seed=2)
    table = rotation_table(random(1, TOKENS, WIDTH // 2, seed=4), "complex")
    before = x.detach().clone()
    norm_modulation(x, EPS, shift, scale, TokenRows(), IN_PIECES).sum().backward()
    query, _ = norm_rotation(x, x, (shift[0], scale[0]), EPS, table, IN_PIECES)
    query.square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("rows", [TokenRows(), RUNS, MANY], ids=str)
def test_a_gated_sum_takes_the_memory_of_what_is_added(rows):
    x, y = (random(2, 1, TOKENS, WIDTH, dtype=BF16, seed=seed) for seed in (1, 2))
    gate = random(1 if rows.index is None else 3, WIDTH, dtype=BF16, seed=3)
    before = x.clone()
    expected = torch.addcmul(x, rows.spread(gate), y)
    added = y.clone()
    with torch.no_grad():
        result = gated_sum(x, gate, added, rows)
    assert torch.equal(result, expected)
    assert torch.equal(x, before)
    assert result.data_ptr() == added.data_ptr()
    again = y.clone()
    assert torch.equal(gated_sum(x, gate, again.requires_grad_(), rows), expected)  # with autograd
    assert torch.equal(again, y)
    wide = gated_sum(x.float(), gate, y, rows)
    assert wide.dtype == F32
