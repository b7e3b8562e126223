"""Weights in bfloat16 on a card that only imitates it: float16 with a float32 stream, float32 once numbers leave it.

Shown on the CPU, which rounds to float16 as a card does.
"""

import logging

import pytest
import torch

from ltxkit.ltx_core.budget import stages
from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.kernels import attention as attention_module
from ltxkit.ltx_core.kernels.active import PLAINLY, Active, keep_dtype
from ltxkit.ltx_core.kernels.attention import attention
from ltxkit.ltx_core.kernels.cards import Capabilities, CardKernels, chosen
from ltxkit.ltx_core.kernels.choice import PLAIN, WITHOUT_BFLOAT16
from ltxkit.ltx_core.models.dtypes import compute_dtype
from ltxkit.ltx_core.models.text_encoder import text_dtype
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.placing.computing import active_on, using
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on

pytestmark = pytest.mark.usefixtures("half_precision")

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
TURING = chosen(Capabilities("cuda", (7, 5), bfloat16=False), None, lambda form: None)
OLD_MAC = chosen(Capabilities("mps", bfloat16=False), None, lambda form: None)
CONFIG = TransformerConfig.of_size(layers=3, heads=2, head_dim=16, channels=8, captions=24)
TOKENS = 12


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LTXTransformer(CONFIG).to(BF16).eval().requires_grad_(False)


def inputs():
    made = torch.Generator().manual_seed(1)
    positions = torch.rand(1, 3, TOKENS, generator=made) * 4
    return torch.randn(1, TOKENS, 8, generator=made), positions, torch.randn(5, 24, generator=made)


def step(model, active, sigma=None, branches=(frozenset(), frozenset({1}))):
    x, positions, text = inputs()
    sigma = torch.full((1, 1, 1), 0.7) if sigma is None else sigma
    with using(model, active), torch.inference_mode():
        rotary, prepared = model.prepare_positions(positions), model.prepare_text([text])
        given = tuple(Branch(prepared, skips) for skips in branches)
        return torch.cat(model(x, sigma, rotary, given)), torch.cat(model(x, sigma, rotary, given)), model.compute_dtype


def distance(result, expected):
    return ((result - expected).norm() / expected.norm()).item()


def test_cards_are_told_apart():
    assert (TURING.bfloat16, TURING.query_blocks, TURING.kernels) == (False, False, WITHOUT_BFLOAT16)
    assert (OLD_MAC.bfloat16, OLD_MAC.query_blocks) == (False, True)
    ampere = chosen(Capabilities("cuda", (8, 6)), None, lambda form: None)
    assert (ampere.bfloat16, ampere.query_blocks, ampere.kernels) == (True, False, PLAIN)
    assert "only imitates" in TURING.in_words()
    assert "imitates" not in ampere.in_words()


@pytest.mark.parametrize("conditioned", [False, True])
def test_float16_is_closer_to_float32_than_bfloat16_is(model, conditioned):
    sigma = torch.where(torch.arange(TOKENS) < 4, 0.0, 0.7)[None, :, None] if conditioned else None
    exact, _, _ = step(model.float(), PLAINLY, sigma)
    model.to(BF16)
    in_bfloat16, _, _ = step(model, PLAINLY, sigma)
    result, again, computed = step(model, active_on(TURING, model), sigma)
    assert computed == F16
    assert result.dtype == F32
    assert torch.equal(result, again)
    assert distance(result, exact) < 2e-3
    assert distance(result, exact) < distance(in_bfloat16, exact) / 2


def test_numbers_that_leave_float16_are_computed_in_float32_from_that_step_on(model, caplog):
    model.transformer_blocks[1].ff.net[0].proj.bias.fill_(2.0**14)
    model.transformer_blocks[1].ff.net[2].weight.mul_(64)
    exact, _, _ = step(model.float(), PLAINLY)
    model.to(BF16)
    active = active_on(TURING, model)
    with caplog.at_level(logging.INFO):
        result, again, computed = step(model, active)
    assert computed == F32
    assert torch.isfinite(result).all()
    assert torch.equal(result, again)
    assert distance(result, exact) < 1e-5
    assert sum("left the range of float16" in record.getMessage() for record in caplog.records) == 1
    assert step(model, active_on(TURING, model))[2] == F32, "each placement tries anew"


def test_what_the_user_asks_for_is_computed(model):
    keep_dtype(model)
    assert step(model, active_on(TURING, model))[2] == BF16


def test_stored_float16_is_no_matter_of_the_card(model):
    model.to(F16)
    modern = chosen(Capabilities("cuda", (8, 6)), None, lambda form: None)
    result, _, computed = step(model, active_on(TURING, model))
    expected, _, elsewhere = step(model, active_on(modern, model))
    assert computed == elsewhere
    assert torch.equal(result, expected)


def test_the_other_models_compute_in_float32():
    active = Active(WITHOUT_BFLOAT16, card=TURING)
    on_card = torch.empty(1, dtype=BF16, device="meta")
    assert compute_dtype(on_card, WITHOUT_BFLOAT16.convolutions) == F32
    assert compute_dtype(on_card, WITHOUT_BFLOAT16.products) == F16
    assert text_dtype(on_card, active) == F32
    assert text_dtype(on_card, PLAINLY) == compute_dtype(on_card) == BF16
    assert text_dtype(on_card.to(F16), active) == F16


def test_a_card_that_would_hold_all_scores_gets_some_queries_at_a_time(monkeypatch):
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=made) for n in (13, 9, 9))
    seen = []
    monkeypatch.setattr(attention_module, "BLOCK_SCORES", 2 * 3 * 9 * 4)
    plain = attention_module.F.scaled_dot_product_attention
    monkeypatch.setattr(
        attention_module.F, "scaled_dot_product_attention", lambda q, k, v: seen.append(q.shape[2]) or plain(q, k, v)
    )
    with torch.no_grad():
        result = attention(q, k, v, Active(PLAIN, card=OLD_MAC))
        assert seen == [4, 4, 4, 1]
        assert torch.allclose(result, attention(q, k, v, PLAINLY), atol=1e-6)


def test_the_plan_counts_what_is_wider(model, monkeypatch):
    given = {"tokens": 4000, "branches": 2, "text_tokens": [60]}
    native, wide = (stages.sampling(model, **given, kernels=kernels) for kernels in (PLAIN, WITHOUT_BFLOAT16))
    assert wide > native
    placement = DevicePlacement("meta")
    monkeypatch.setattr(DevicePlacement, "card", CardKernels(bfloat16=False))
    assert stages.dtypes_of(host_on(placement)) == WITHOUT_BFLOAT16
    assert stages.dtypes_of(Host(placement)) == PLAIN
