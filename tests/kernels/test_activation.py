"""Norm, modulation and SiLU of a VAE by each form, and what each moves."""

import pytest
import torch
import torch.nn.functional as F

from ltxkit.ltx_core.kernels import activation
from ltxkit.ltx_core.kernels.activation import in_one_kernel, norm_activation
from ltxkit.ltx_core.kernels.active import PLAINLY, Active
from ltxkit.ltx_core.kernels.cards import PLAIN_CARD, CardKernels
from ltxkit.ltx_core.kernels.choice import PLAIN
from ltxkit.ltx_core.measuring.traffic import counting

EPS = 1e-8
FORMS = {
    "a CPU": PLAINLY,
    "plain": Active(PLAIN, card=PLAIN_CARD),
    "comfy-kitchen": Active(PLAIN, card=CardKernels(elementwise="comfy-kitchen")),
    "compiled": Active(PLAIN, card=CardKernels(compiles=True)),
}
library = torch.library.Library("ltxkit_test_activation", "DEF")
library.define("one(Tensor x, Tensor? scale, Tensor? shift, float eps, *, Tensor(a!) out) -> ()")
library.impl("one", in_one_kernel, "CPU")


@pytest.fixture(autouse=True)
def _one_operator(monkeypatch):
    """Stands for the kernel that torch's compiler makes: the same numbers in one operator."""
    monkeypatch.setattr(activation, "_compiled", lambda: torch.ops.ltxkit_test_activation.one)


def given(dtype, *, modulated, channels=64):
    made = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, channels, generator=made).to(dtype)
    scale, shift = torch.randn(2, 1, 1, 1, channels, generator=made).to(dtype) / 2
    return x, (1 + scale, shift) if modulated else None


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_that_of_float64(form, dtype, modulated):
    x, pair = given(dtype, modulated=modulated)
    joined = torch.zeros(5, 4, 5, 64, dtype=dtype)  # frames that were kept stand before and behind
    with torch.inference_mode():
        norm_activation(x, pair, EPS, joined[1:4], FORMS[form])
    exact = x.double() * (x.double().square().mean(-1, keepdim=True) + EPS).rsqrt()
    exact = F.silu(exact if pair is None else exact * pair[0].double() + pair[1].double())
    roundings = 1 if form == "compiled" and dtype == torch.bfloat16 else 4  # of the sum over channels, in float32
    assert (joined[1:4] - exact).abs().max() <= roundings * torch.finfo(dtype).eps * exact.abs().max()
    assert not joined[0].any()
    assert not joined[4].any()


@pytest.mark.parametrize(("form", "passes"), [("plain", 7), ("comfy-kitchen", 4), ("compiled", 2)])
def test_passes_of_each_form(form, passes):
    x, pair = given(torch.bfloat16, modulated=True)
    with torch.inference_mode(), counting(x.nbytes // 2) as traffic:
        norm_activation(x, pair, EPS, torch.empty_like(x), FORMS[form])
    assert traffic.bytes / x.nbytes <= passes + 0.1
