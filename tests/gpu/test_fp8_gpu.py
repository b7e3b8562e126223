"""Products in float8 on a GPU: they follow the formula, and streaming a model does not change a bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.quant.fp8 import Float8Linear, multiplies_fp8, quantize_rows, use_fp8_matmul
from ltxkit.ltx_core.quant.registry import quantization_by_name

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
E4M3 = torch.float8_e4m3fn


def needs_products() -> None:
    if not multiplies_fp8(CUDA):
        pytest.skip("this card does not multiply in float8")


def test_the_card_is_asked_rightly() -> None:
    """Compute capability 8.9 and higher have it; a card with it must be recognised."""
    if torch.version.hip is None:
        assert multiplies_fp8(CUDA) == (torch.cuda.get_device_capability(CUDA) >= (8, 9))


@pytest.mark.parametrize("rows", [16, 37, 1000])
@pytest.mark.parametrize("kind", ["rows", "tensor", "plain", "calibrated"])
@torch.no_grad()
def test_a_product_is_what_the_formula_says(kind: str, rows: int) -> None:
    needs_products()
    generator = torch.Generator().manual_seed(0)
    columns, outputs = 512, 768
    scales = {"rows": outputs, "tensor": 1, "plain": None, "calibrated": 1}[kind]
    made = Float8Linear(nn.Linear(columns, outputs), E4M3, scales, calibrated=kind == "calibrated")
    weight = torch.randn(outputs, columns, generator=generator)
    if scales is not None:
        made.scale_weight = torch.rand(scales, generator=generator) + 0.5
        weight /= made.scale_weight.unsqueeze(1)
    if kind == "calibrated":
        made.scale_input = torch.tensor([6.0 / 448])
    made.packed = weight.to(E4M3)
    x = torch.randn(rows, columns, generator=generator).clamp(-5, 5).bfloat16()

    if kind == "calibrated":
        scale = torch.tensor([[6.0 / 448]], dtype=torch.float64)
        rounded = (x.double() / scale).float().to(E4M3).double() * scale
    else:
        # A value midway between two float8 numbers may round either way; a step is 1/8 at most.
        packed, scale = (part.cpu().double() for part in quantize_rows(x.to(CUDA)))
        wanted = x.double().abs().amax(dim=1, keepdim=True) / 448
        torch.testing.assert_close(scale, wanted, rtol=1e-6, atol=0)
        nearest = (x.double() / wanted).float().to(E4M3).double()
        assert (packed != nearest).double().mean() < 5e-3
        assert ((packed - nearest).abs() <= nearest.abs() / 7).all()
        rounded = packed * scale
    exact = made.packed.double() * (1 if scales is None else made.scale_weight.double().unsqueeze(1))
    expected = rounded @ exact.T + made.bias.double()
    made.to(CUDA)
    made.fp8_matmul = True
    got = made(x.to(CUDA))
    assert (got.dtype, got.device) == (torch.bfloat16, CUDA)
    error = (got.cpu().double() - expected).abs()
    assert error.max() <= 1e-2 * expected.abs().max()
    assert error.norm() <= 4e-3 * expected.norm()  # two roundings to bfloat16 of 2^-8 / sqrt(3) rms are 3.2e-3
    made.fp8_matmul = False
    plain = made(x.to(CUDA)).cpu().double()
    assert 1e-3 < (plain - expected).norm() / expected.norm() < 0.05


def build() -> LTXTransformer:
    """Blocks in float8, the rest in bfloat16."""
    torch.manual_seed(0)
    config = TransformerConfig.of_size(layers=6, heads=8, head_dim=64, channels=16, captions=32)
    model = LTXTransformer(config).bfloat16().eval().requires_grad_(False)
    state = dict(model.state_dict())
    pack = quantization_by_name("fp8", "transformer_blocks.").prepare(model, {}, torch.bfloat16)
    packed = {name: tensor for key, value in state.items() for name, tensor in pack(key, value).items()}
    model.load_state_dict(packed, assign=True)
    return model


def test_a_model_keeps_its_result_and_its_bits_when_streamed(velocity_on: Any) -> None:
    needs_products()
    model = build()
    with DevicePlacement(CUDA)(model) as device:
        plain = velocity_on(model, device)
    use_fp8_matmul(model)
    with DevicePlacement(CUDA)(model) as device:
        got = velocity_on(model, device)
    assert 1e-4 < (got - plain).norm() / plain.norm() < 0.06
    assert torch.cosine_similarity(got.flatten(), plain.flatten(), dim=0) > 0.995
    with DevicePlacement(CUDA, resident_blocks=2)(model) as device:
        assert torch.equal(velocity_on(model, device), got)
