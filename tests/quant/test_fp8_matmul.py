"""Products in float8: with a scale per row, with `scale_input` as in ComfyUI, and the cases that do not use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.placing.lora import applied
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.quant import fp8
from ltxkit.ltx_core.quant.fp8 import Float8Linear, multiplies_fp8, quantize_rows, use_fp8_matmul
from ltxkit.ltx_core.sampling.guidance import NO_GUIDANCE
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.samplers import EULER
from ltxkit.ltx_core.shapes import ScaleFactors
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.lora import WeightedLoRA, load_lora
from ltxkit.ltx_core.weights.tiny import CHECKPOINT

TinyModels = Callable[..., Path]
E4M3 = torch.float8_e4m3fn

needs_products = pytest.mark.skipif(
    not multiplies_fp8(torch.device("cpu")), reason="this torch multiplies no float8 on the CPU"
)


def linear(scales: int | None = 48, scale_input: float | None = None, dtype: torch.dtype = E4M3) -> Float8Linear:
    """32 -> 48 with weights around 1, stored with their scale."""
    generator = torch.Generator().manual_seed(0)
    made = Float8Linear(nn.Linear(32, 48), dtype, scales, calibrated=scale_input is not None)
    weight = torch.randn(48, 32, generator=generator)
    if scales is not None:
        made.scale_weight = torch.rand(scales, generator=generator) + 0.5
        weight /= made.scale_weight.unsqueeze(1)
    if scale_input is not None:
        made.scale_input = torch.tensor([scale_input])
    made.packed = weight.to(dtype)
    made.fp8_matmul = True
    return made


def activations(rows: int = 40) -> Tensor:
    """Rows of very different magnitude, as in a transformer."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, rows, 32, generator=generator) * torch.logspace(-2, 2, rows).unsqueeze(1)


@needs_products
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scales", [48, 1, None])
@torch.no_grad()
def test_rows_have_their_own_scales(scales: int | None, dtype: torch.dtype) -> None:
    made, x = linear(scales), activations().to(dtype)
    got = made(x)
    assert (got.dtype, got.shape) == (dtype, (2, 40, 48))
    # The same numbers, multiplied in float64.
    largest = x.double().abs().amax(dim=-1, keepdim=True)
    rounded = (x.double() / largest * 448).float().to(E4M3).double() / 448 * largest
    weight = made.packed.double() * (1 if made.scale_weight is None else made.scale_weight.double().unsqueeze(1))
    expected = rounded @ weight.T + made.bias.double()
    unscaled = largest * weight.abs().sum(dim=1)
    assert ((got.double() - expected).abs() <= 2**-8 * expected.abs() + 2**-9 * unscaled).all()
    # Close to the product without float8, but not equal to it.
    made.fp8_matmul = False
    plain = made(x)
    assert not torch.equal(got, plain)
    difference = (got - plain).double().norm(dim=-1) / plain.double().norm(dim=-1)
    assert difference.max() < 0.1
    assert difference.mean() < 0.05  # a significand of four bits: 2^-4 / sqrt(3) rms at most


@needs_products
@torch.no_grad()
def test_scale_input_does_what_comfyui_does_with_it() -> None:
    """fp8_linear in comfy/ops.py: one scale for the activations and one for the weight, without overflow."""
    scale_input = 300.0 / 448
    made, x = linear(1, scale_input), activations().clamp(-299, 299)
    # The same numbers, multiplied in float64: oneDNN has the product with a single scale on few processors.
    rounded = (x / scale_input).to(E4M3).double() * scale_input
    weight = made.packed.double() * made.scale_weight.double()
    expected = rounded @ weight.T + made.bias.double()
    got = made(x)
    # Two roundings to bfloat16, with the bias, err by at most 2^-8 each; the sum of 32 numbers in float32 by 2^-19.
    rounding = 2**-7 * (expected.abs() + made.bias.double().abs()) + 2**-19 * (rounded.abs() @ weight.abs().T)
    assert ((got.double() - expected).abs() <= rounding).all()
    got = got.reshape(-1, 48)
    rows = linear(1)(x).reshape(-1, 48)
    small = slice(0, 8)  # rows to which a common scale leaves hardly any levels
    assert (rows - got)[small].norm() > 0.01 * rows[small].norm()
    # Beyond the calibrated range values clamp to the largest level, where ComfyUI gets NaN.
    made.scale_input = torch.tensor([1e-3])
    assert made(x).isfinite().all()
    # Without float8 products the input scale does not affect the result.
    made.fp8_matmul = False
    assert torch.equal(made(x), without_input_scale(made)(x))


def without_input_scale(made: Float8Linear) -> Float8Linear:
    other = linear(1)
    other.bias, other.packed, other.scale_weight, other.fp8_matmul = made.bias, made.packed, made.scale_weight, False
    return other


@torch.no_grad()
def test_where_float8_is_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices without float8 products, unsupported sizes, few rows, e5m2: bit for bit the ordinary product."""
    made = linear()
    monkeypatch.setattr(fp8, "multiplies_fp8", lambda device: False)
    with_it = made(activations())
    made.fp8_matmul = False
    assert torch.equal(made(activations()), with_it)
    monkeypatch.undo()
    made = linear()
    few = activations(4)[0]
    with_it = made(few)
    made.fp8_matmul = False
    assert torch.equal(made(few), with_it)
    odd = Float8Linear(nn.Linear(24, 40), E4M3, None)
    odd.packed, odd.fp8_matmul = torch.randn(40, 24).to(E4M3), True
    assert torch.equal(odd(torch.ones(32, 24)), odd.packed.float().sum(dim=1) + odd.bias.expand(32, 40))
    model = nn.Sequential(linear(dtype=torch.float8_e5m2), linear())
    model[0].fp8_matmul = model[1].fp8_matmul = False
    use_fp8_matmul(model)
    assert [part.fp8_matmul for part in model] == [False, True]


def test_a_device_is_asked_once_and_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def refuse(a: Tensor, *_: object, **__: object) -> Tensor:
        asked.append(a.dtype)
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0 or 8.9")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    multiplies_fp8.cache_clear()
    try:
        assert [multiplies_fp8(torch.device("cpu")) for _ in range(3)] == [False] * 3
        monkeypatch.setattr(torch, "_scaled_mm", lambda a, *_, **__: torch.zeros(a.shape))  # and with wrong values
        assert asked == [E4M3]
        multiplies_fp8.cache_clear()
        assert not multiplies_fp8(torch.device("cpu"))
    finally:
        multiplies_fp8.cache_clear()


def test_rows_of_zeros() -> None:
    packed, scale = quantize_rows(torch.zeros(3, 16))
    assert torch.equal(packed.float() * scale, torch.zeros(3, 16))


# --- in a model -------------------------------------------------------------------------------------------------------


def fp8_file(source: Path, target: Path, scale_input: float | None) -> Path:
    """The blocks' Linears as the official converter casts them, or with ComfyUI's scales."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in load_file(source).items():
        if ".transformer_blocks." not in key or tensor.ndim != 2 or "table" in key:
            tensors[key] = tensor
        elif scale_input is None:
            tensors[key] = tensor.to(E4M3)
        else:
            scale = tensor.float().abs().max() / 448
            tensors[key] = (tensor.float() / scale).to(E4M3)
            tensors[f"{key.removesuffix('weight')}scale_weight"] = scale
            tensors[f"{key.removesuffix('weight')}scale_input"] = torch.tensor(scale_input)
    if scale_input is not None:
        tensors["model.diffusion_model.scaled_fp8"] = torch.empty(0, dtype=E4M3)
    with safe_open(source, "pt") as file:
        save_file(tensors, target, file.metadata())
    return target


def clip(model: LTXTransformer, say: Callable[[str], None] = lambda text: None) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    prompt = EncodedPrompt(torch.randn(1, 20, model.config.caption_channels, generator=generator))
    return sample(
        Pass(model, torch.tensor([1.0, 0.6, 0.0]), NO_GUIDANCE, EULER),
        LatentClip(torch.zeros(1, model.config.in_channels, 2, 4, 4), ScaleFactors(8, 32, 32), fps=25.0),
        Prompts(prompt),
        noise=SeededNoise(0),
        host=host_on(DevicePlacement("cpu"), say=say),
    )


@pytest.mark.slow
@needs_products
@pytest.mark.parametrize("scale_input", [None, 8.0 / 448])
def test_a_model_stays_within_what_its_quantization_costs(
    scale_input: float | None, tiny_models: TinyModels, tmp_path: Path, rms: Callable[..., float]
) -> None:
    source = tiny_models() / CHECKPOINT
    path = fp8_file(source, tmp_path / "fp8.safetensors", scale_input)
    exact = clip(load_transformer(source, dtype=torch.float32)[0])
    plain = clip(load_transformer(path, dtype=torch.float32)[0])
    model, _ = load_transformer(path, dtype=torch.float32, fp8_matmul=True)
    assert all(part.fp8_matmul for part in model.modules() if isinstance(part, Float8Linear))
    notes: list[str] = []
    got = clip(model, notes.append)
    assert 0 < rms(got, plain) <= 2 * rms(plain, exact)
    assert torch.cosine_similarity(got.flatten(), exact.flatten(), dim=0) >= 0.99
    assert not notes


@pytest.mark.slow
@needs_products
def test_quantized_on_load_and_with_a_lora(tiny_models: TinyModels, tmp_path: Path, rms: Callable[..., float]) -> None:
    source = tiny_models() / CHECKPOINT
    exact, _ = load_transformer(source, dtype=torch.float32)
    model, _ = load_transformer(source, dtype=torch.float32, quantization="fp8", fp8_matmul=True)
    torch.manual_seed(5)
    key = "diffusion_model.transformer_blocks.3.attn1.to_q"
    factors = {f"{key}.lora_A.weight": torch.randn(4, 64), f"{key}.lora_B.weight": torch.randn(64, 4)}
    save_file(factors, tmp_path / "lora.safetensors")
    lora = [WeightedLoRA(load_lora(tmp_path / "lora.safetensors"), 1.0)]
    base = clip(model)
    with applied(model, lora, "beside"):  # outside of a placement, into whose copies LoRAs are merged
        changed = clip(model)
    with applied(exact, lora, "beside"):
        expected = clip(exact)
    assert rms(expected, clip(exact)) > 2 * rms(changed, expected)  # the LoRA has an effect
    assert torch.equal(clip(model), base)


def test_what_is_said(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"fp8_matmul for a model without float8 .* quantization fp8; choose one"):
        load_transformer(tiny_models() / CHECKPOINT, fp8_matmul=True)
    model, _ = load_transformer(tiny_models() / CHECKPOINT, quantization="fp8", fp8_matmul=True)
    monkeypatch.setattr(fp8, "multiplies_fp8", lambda device: False)
    notes: list[str] = []
    clip(model, notes.append)
    assert notes == ["cpu does not multiply in float8: fp8_matmul is on, and has no effect here."]
