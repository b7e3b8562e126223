"""Quantized weights on a GPU: unpacked to the same bits as on the CPU, with a LoRA, with and without streaming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing.lora import applied
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.quant.ggml_blocks import BLOCK_TYPES, dequantize
from ltxkit.ltx_core.quant.linear import QuantizedLinear
from ltxkit.ltx_core.quant.registry import QUANTIZATION_NAMES, quantization_by_name
from ltxkit.ltx_core.weights.lora import WeightedLoRA, load_lora

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
CONFIG = TransformerConfig.of_size(layers=6, heads=8, head_dim=64, channels=16, captions=32)


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ggml_blocks(name: str, dtype: torch.dtype) -> None:
    """Any bytes form blocks; where a scale is NaN, so is the weight, on both sides."""
    kind = BLOCK_TYPES[name]
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (1000 * kind.bytes_per_block,), dtype=torch.uint8, generator=generator)
    shape = (1000, kind.weights_per_block)
    expected = dequantize(packed, kind, shape, dtype)
    found = dequantize(packed.to(CUDA), kind, shape, dtype).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert expected.isfinite().float().mean() > 0.5


def build(quantization: str) -> LTXTransformer:
    """Quantized blocks, the rest in float32."""
    torch.manual_seed(0)
    model = LTXTransformer(CONFIG).eval().requires_grad_(False)
    state = dict(model.state_dict())
    pack = quantization_by_name(quantization, "transformer_blocks.").prepare(model, {}, torch.float32)
    packed = {name: tensor for key, value in state.items() for name, tensor in pack(key, value).items()}
    model.load_state_dict(packed, assign=True)
    return model


def lora(path: Path) -> WeightedLoRA:
    """Factors and DoRA, whose norms are computed on the device."""
    generator = torch.Generator().manual_seed(2)
    tensors: dict[str, Tensor] = {}
    for layer in range(CONFIG.num_layers):
        stem = f"diffusion_model.transformer_blocks.{layer}.attn1"
        for name in ("to_q", "to_v"):
            tensors[f"{stem}.{name}.lora_A.weight"] = torch.randn(4, 512, generator=generator) * 0.05
            tensors[f"{stem}.{name}.lora_B.weight"] = torch.randn(512, 4, generator=generator) * 0.3
        tensors[f"{stem}.to_v.dora_scale"] = torch.rand(512, 1, generator=generator) + 0.5
    save_file(tensors, path)
    return WeightedLoRA(load_lora(path), 1.0)


@pytest.mark.parametrize("quantization", QUANTIZATION_NAMES)
def test_a_quantized_model_with_and_without_a_lora(quantization: str, velocity_on: Any, tmp_path: Path) -> None:
    model = build(quantization)
    linears = [part for part in model.modules() if isinstance(part, QuantizedLinear)]
    on_cpu = [part.dequantized(torch.float32) for part in linears]
    expected, one = velocity_on(model, torch.device("cpu")), lora(tmp_path / "lora.safetensors")
    with applied(model, [one]):
        with_lora = velocity_on(model, torch.device("cpu"))
    assert (with_lora - expected).abs().max() > 0.05
    for resident in (None, 2):
        with DevicePlacement(CUDA, resident_blocks=resident)(model) as device:
            if resident is None:
                unpacked = [part.dequantized(torch.float32).cpu() for part in linears]
                assert all(torch.equal(a, b) for a, b in zip(unpacked, on_cpu, strict=True))
            found = velocity_on(model, device)
            with applied(model, [one]):
                found_with_lora = velocity_on(model, device)
            assert torch.equal(velocity_on(model, device), found)
        assert (found - expected).abs().max() <= 2e-3 * expected.abs().max()
        assert (found_with_lora - with_lora).abs().max() <= 2e-3 * with_lora.abs().max()
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
    assert torch.equal(velocity_on(model, torch.device("cpu")), expected)
