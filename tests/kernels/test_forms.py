"""Every form computes what plain torch does: products, packing within a budget, attention in blocks."""

import pytest
import torch
import torch.nn.functional as F

from ltxkit.ltx_core.kernels import attention as attention_module
from ltxkit.ltx_core.kernels import private
from ltxkit.ltx_core.kernels.active import PLAINLY, Active
from ltxkit.ltx_core.kernels.attention import attention, by_blocks
from ltxkit.ltx_core.kernels.choice import parse_kernels
from ltxkit.ltx_core.kernels.norms import rms_norm
from ltxkit.ltx_core.kernels.products import product

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Of the largest value: float32 by the sum of 96 products in another order, 16 bits by one rounding and a bit.
BOUND = {F32: 1e-6, BF16: 2**-7, F16: 2**-10}
pytestmark = pytest.mark.skipif(not private.works("products", F32), reason="this torch has no oneDNN products")


def active(text: str, room: int = 1 << 30) -> Active:
    return Active(parse_kernels(text, "asked for"), room)


def distance(result, expected):
    return ((result.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def case(dtype, stored, rows=(2, 3, 17), ins=96, outs=80, bias=True):
    made = torch.Generator().manual_seed(0)
    x = torch.randn(*rows, ins, generator=made).to(dtype)
    weight = torch.randn(outs, ins, generator=made).to(stored)
    return x, weight, torch.randn(outs, generator=made).to(stored) if bias else None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("form", ["plain", "onednn", "packed", "packed without room"])
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16), (F32, BF16), (F32, F16), (BF16, F32)])
def test_products_of_every_form_are_those_of_float64(dtypes, form, gelu, bias, monkeypatch):
    monkeypatch.setattr("ltxkit.ltx_core.kernels.products.SLICE", 96 * 7)  # several slices, the last one shorter
    dtype, stored = dtypes
    if form == "packed" and not private.works("products", dtype):
        pytest.skip(f"oneDNN has no products in {dtype} on this processor, so nothing is packed")
    x, weight, shift = case(dtype, stored, bias=bias)
    name, _, no_room = form.partition(" ")
    chosen = PLAINLY if name == "plain" else active(f"products={name}", 0 if no_room else 1 << 30)
    with torch.no_grad():
        result = product(x, weight, shift, chosen, gelu=gelu)
    expected = F.linear(x.double(), weight.to(dtype).double(), None if shift is None else shift.to(dtype).double())
    expected = F.gelu(expected, approximate="tanh") if gelu else expected
    assert result.dtype == dtype
    assert result.shape == expected.shape
    assert distance(result, expected) <= BOUND[dtype]
    assert (chosen.packed_bytes > 0) == (form == "packed")


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16), (F32, BF16), (F32, F16)])
def test_packed_weights_give_the_same_bits_as_those_without_room(dtypes, gelu):
    x, weight, bias = case(*dtypes)
    with torch.no_grad():
        results = [product(x, weight, bias, active("products=packed", room), gelu=gelu) for room in (1 << 30, 0)]
    assert torch.equal(*results), "a clip must not depend on the memory that was free"


def test_inputs_that_are_no_block_of_memory():
    x, weight, bias = case(F32, F32, rows=(40,))
    lanes = x.expand(3, -1, -1)
    with torch.no_grad():
        result = product(lanes, weight, bias, active("products=packed"))
        assert distance(result, F.linear(lanes, weight, bias)) <= BOUND[F32]
        turned = product(x.T.contiguous().T, weight, bias, active("products=packed"))
    assert torch.equal(turned, result[0])


def test_a_few_rows_and_autograd_stay_plain():
    chosen = active("products=packed")
    x, weight, bias = case(F32, F32, rows=(15,))
    with torch.no_grad():
        assert torch.equal(product(x, weight, bias, chosen), F.linear(x, weight, bias))
    x, weight, bias = case(F32, F32, rows=(32,))
    weight.requires_grad_()
    result = product(x, weight, bias, chosen, gelu=True)
    result.sum().backward()
    assert weight.grad is not None
    assert chosen.packed_bytes == 0


def test_autocast_decides_the_dtype_itself():
    x, weight, bias = case(F32, F32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert product(x, weight, bias, active("products=packed")).dtype == BF16


def test_what_fits_is_packed_once_and_the_rest_never():
    x, weight, bias = case(F32, F32)
    others = [weight.clone() for _ in range(3)]
    chosen = active("products=packed", room=2 * weight.nbytes)
    with torch.no_grad():
        for _ in range(2):
            for other in others:
                product(x, other, bias, chosen)
    assert chosen.packed_bytes == 2 * weight.nbytes


def test_weights_of_few_uses_are_packed_only_after_them():
    x, weight, bias = case(F32, F32)
    chosen = active("products=packed")
    packed = []
    with torch.no_grad():
        for _ in range(4):
            product(x, weight, bias, chosen, pack_after=2)
            packed.append(chosen.packed_bytes)
    assert packed == [0, 0, weight.nbytes, weight.nbytes]


def test_operators_that_are_missing_or_wrong_are_not_used(monkeypatch):
    x, weight, bias = case(F32, F32)
    real = private.linear
    for broken in (
        lambda *_, **__: (_ for _ in ()).throw(AttributeError("no such operator")),
        lambda *arguments, **options: real(*arguments, **options) * 1.001,
    ):
        private.works.cache_clear()
        monkeypatch.setattr(private, "linear", broken)
        assert not private.works("products", F32)
        chosen = active("products=packed,attention=products")
        with torch.no_grad():
            assert torch.equal(product(x, weight, bias, chosen), F.linear(x, weight, bias))
    private.works.cache_clear()


def test_no_operator_is_claimed_for_dtypes_without_one():
    for kind in ("products", "convolutions"):
        assert not private.works(kind, torch.float64)
        assert not private.works(kind, torch.int8)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_norms_in_pieces_are_those_of_float64(dtype, weighted, monkeypatch):
    monkeypatch.setattr("ltxkit.ltx_core.kernels.norms.PIECE", 96 * 7)
    x, weight, _ = case(dtype, dtype, outs=1)
    weight = weight[0] if weighted else None
    before = x.clone()
    with torch.no_grad():
        result = rms_norm(x, weight, 1e-5, active("norms=pieces"))
        plain = rms_norm(x, weight, 1e-5, PLAINLY)
    assert torch.equal(x, before)
    expected = F.rms_norm(x.double(), (96,), None if weight is None else weight.double(), 1e-5)
    assert result.dtype == dtype
    assert distance(result, expected) <= max(torch.finfo(dtype).eps, 4 * torch.finfo(F32).eps)  # four roundings
    assert torch.equal(plain, F.rms_norm(x, (96,), weight, 1e-5))
    with torch.enable_grad():
        assert rms_norm(x.requires_grad_(), weight, 1e-5, active("norms=pieces")).requires_grad


# bfloat16's scores are rounded once before the softmax and its weights once after it.
ATTENTION_BOUND = {F32: 5e-6, BF16: 2**-5}


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("size", [(1, 2, 130, 130), (2, 3, 70, 140), (1, 1, 1, 128)])
def test_attention_in_blocks_is_that_of_float64(size, dtype, monkeypatch):
    if not private.works("products", dtype):
        pytest.skip(f"oneDNN has no products in {dtype} on this processor, where it is not chosen")
    monkeypatch.setattr(attention_module, "ROWS", 32)  # several blocks, the last one shorter
    b, heads, queries, keys = size
    made = torch.Generator().manual_seed(1)
    q = torch.randn(b, queries, heads, 16, generator=made).to(dtype).transpose(1, 2)
    k, v = (torch.randn(b, keys, heads, 16, generator=made).to(dtype).transpose(1, 2) for _ in range(2))
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double()).transpose(1, 2).flatten(2)
    with torch.no_grad():
        result = attention(q, k, v, active("attention=products"))
        assert torch.equal(result, by_blocks(q, k, v))
        plain = attention(q, k, v, PLAINLY)
    assert result.dtype == dtype
    assert distance(result, expected) <= ATTENTION_BOUND[dtype]
    assert torch.equal(plain, F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_block_of_scores_has_a_limit(monkeypatch):
    monkeypatch.setattr(attention_module, "SCORES", 1000)
    sizes = []
    real = private.linear
    monkeypatch.setattr(private, "linear", lambda *given, **options: sizes.append(r := real(*given, **options)) or r)
    q = torch.randn(1, 1, 200, 8)
    with torch.no_grad():
        by_blocks(q, q, q)
    assert max(size.numel() for size in sizes) <= 1000


def test_short_texts_and_training_keep_to_sdpa(monkeypatch):
    monkeypatch.setattr(attention_module, "by_blocks", None)  # calling it would fail
    chosen = active("attention=products")
    q, text = torch.randn(1, 2, 200, 8), torch.randn(1, 2, 60, 8)
    with torch.no_grad():
        attention(q, text, text, chosen)
    q.requires_grad_()
    attention(q, q, q, chosen).sum().backward()
    assert q.grad is not None
