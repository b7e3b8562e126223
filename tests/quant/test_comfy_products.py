"""Products of ComfyUI's formats as they are stored, by comfy-kitchen: how close, where, and where not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltxkit.ltx_core.config import CheckpointConfig, TransformerConfig
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.quant import comfy_linear, comfy_products, paying
from ltxkit.ltx_core.quant.comfy_formats import MXFP8, NVFP4, AsymW4A8, ConvRotW4A4, Float8, Format, Int8
from ltxkit.ltx_core.quant.comfy_linear import ComfyLinear
from ltxkit.ltx_core.quant.comfy_products import multiplies
from ltxkit.ltx_core.quant.comfy_quantize import quantize_int8, quantize_mxfp8, quantize_nvfp4
from ltxkit.ltx_core.quant.fp8 import multiplies_fp8
from ltxkit.ltx_core.quant.linear import remarks
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.convert_comfy import COMFY_FORMATS
from ltxkit.ltx_core.weights.metadata import format_config

kitchen = comfy_products.kitchen()
if kitchen is None:
    pytest.skip("comfy-kitchen is not installed, or not for this torch", allow_module_level=True)

CPU = torch.device("cpu")
VERSION = "2b-0.9.5"
LEAST = {"comfy-fp8": 0.99, "comfy-int8": 0.99, "comfy-mxfp8": 0.99, "comfy-nvfp4": 0.98}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer in bf16, of a width that ConvRot rotates as a whole."""
    torch.manual_seed(0)
    model = LTXTransformer(TransformerConfig.of_size(layers=2, heads=8, head_dim=32, channels=16, captions=64))
    text = format_config(CheckpointConfig(transformer=model.config, vae=None, scheduler=None))
    path = tmp_path_factory.mktemp("source") / "model.safetensors"
    save_file(
        {f"model.diffusion_model.{key}": t.bfloat16() for key, t in model.state_dict().items()}, path, {"config": text}
    )
    return path


@torch.no_grad()
def velocity(model: LTXTransformer) -> Tensor:
    """Of 40 tokens: a product of fewer than 16 rows is not worth a format."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 40, model.config.in_channels, generator=generator).to(model.dtype)
    positions = torch.rand(1, 3, 40, generator=generator) * 10
    text = torch.randn(20, model.config.caption_channels, generator=generator).to(model.dtype)
    branch = Branch(model.prepare_text([text]))
    return model(x, torch.full((1, 1, 1), 0.7), model.prepare_positions(positions), (branch,))[0].float()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@pytest.mark.parametrize("to", COMFY_FORMATS)
def test_products_are_close_to_bf16(to: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvfp4 as cards multiply it: without one comfy-kitchen rounds the activations all the same (mxfp8 it refuses)."""
    plain = velocity(load_transformer(source)[0])
    path = tmp_path / "quantized.safetensors"
    convert(source, path, to, version=VERSION)
    exact = velocity(load_transformer(path)[0])
    model, _ = load_transformer(path, fp8_matmul=True)
    if to in ("comfy-mxfp8", "comfy-nvfp4"):
        assert torch.equal(velocity(model), exact)  # no CPU multiplies these
        (remark,) = remarks(model, CPU)
        assert f"cpu does not multiply {to[6:]} as it is stored: fp8_matmul is on, and has no effect here." == remark
    if to == "comfy-nvfp4":
        monkeypatch.setattr(comfy_linear, "multiplies", lambda kind, device: True)
    got = velocity(model)
    assert LEAST[to] <= cosine(got, plain) < 1
    assert LEAST[to] <= cosine(exact, plain) < 1
    assert torch.equal(got, exact) == (to == "comfy-mxfp8" or (to == "comfy-fp8" and not multiplies_fp8(CPU)))
    with DevicePlacement("cpu", resident_blocks=1)(model):
        assert torch.equal(velocity(model), got)  # streamed, with the same bits


def linear(kind: Format, bias: bool = True, **stored: Tensor) -> ComfyLinear:
    made = ComfyLinear(nn.Linear(256, 128, bias=bias), kind)
    for role, tensor in stored.items():
        setattr(made, role, tensor)
    assert made.multiply_stored()
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [None, 64, 256])
@torch.no_grad()
def test_int8_is_what_the_formula_says(group: int | None, dtype: torch.dtype, bias: bool) -> None:
    """Rows of activations as int8 with a scale each; the products are exact."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(128, 256, generator=generator)
    made = linear(Int8(group), bias, **quantize_int8(weight, group))
    x = torch.randn(2, 24, 256, generator=generator).to(dtype)
    got = made(x)
    assert (got.dtype, got.shape) == (dtype, (2, 24, 128))
    expected = F.linear(x.float(), made.dequantized(torch.float32), None if made.bias is None else made.bias.float())
    difference = (got.float() - expected).norm() / expected.norm()
    assert 1e-4 < difference < 0.012  # rows of 255 levels
    few = x[0, :4]
    assert torch.equal(
        made(few), F.linear(few, made.dequantized(dtype), None if made.bias is None else made.bias.to(dtype))
    )


@torch.no_grad()
def test_calibrated_and_smoothed_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfy_linear, "multiplies", lambda kind, device: True)
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(128, 256, generator=generator), torch.randn(32, 256, generator=generator)
    smoothing = torch.rand(256, generator=generator) + 0.5
    made = linear(NVFP4(), **quantize_nvfp4(weight / smoothing))
    made.expect("pre_quant_scale", 256)
    made.pre_quant_scale = smoothing
    expected = F.linear(x, weight, made.bias)
    assert cosine(made(x), expected) > 0.98
    made.expect("input_scale", 1)
    made.input_scale = ((x * smoothing).abs().max() / (448 * 6)).reshape(1)
    assert torch.equal(made(x), linear_like(made, None)(x))  # what comfy-kitchen finds by itself
    made.input_scale = made.input_scale / 100  # far too small: activations are clamped
    assert cosine(made(x), expected) < 0.97


def linear_like(made: ComfyLinear, input_scale: Tensor | None) -> ComfyLinear:
    made_again = linear(NVFP4(), **{role: getattr(made, role) for role in ("packed", "weight_scale", "weight_scale_2")})
    made_again.expect("pre_quant_scale", 256)
    made_again.pre_quant_scale, made_again.input_scale, made_again.bias = made.pre_quant_scale, input_scale, made.bias
    return made_again


# --- where they are not used ------------------------------------------------------------------------------------------


def test_what_a_cpu_multiplies() -> None:
    kinds = (Int8(), Int8(256), Int8(64), ConvRotW4A4(), ConvRotW4A4(64, "int8"), AsymW4A8(), AsymW4A8(64, 32))
    assert all(multiplies(kind, CPU) for kind in kinds)
    assert not any(multiplies(kind, CPU) for kind in (NVFP4(), MXFP8(), Float8()))


@pytest.mark.parametrize("fault", ["raises", "wrong", "missing"])
def test_a_device_is_asked_once_and_by_trying(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def int8_linear(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
        asked.append("int8")
        if fault == "raises":
            raise RuntimeError("no kernel image is available")
        return torch.randn(len(x), len(weight), generator=torch.Generator().manual_seed(0))

    if fault == "missing":  # as in comfy-kitchen 0.2.5, which ComfyUI 0.8.0 brings
        monkeypatch.delattr(kitchen, "int8_linear")
    else:
        monkeypatch.setattr(kitchen, "int8_linear", int8_linear)
    multiplies.cache_clear()
    try:
        assert [multiplies(Int8(), CPU) for _ in range(3)] == [False] * 3
        assert asked == [] if fault == "missing" else ["int8"]
    finally:
        multiplies.cache_clear()


def test_without_the_package(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = velocity(load_transformer(source, quantization="int8_convrot")[0])
    for name in [name for name in sys.modules if name.split(".")[0] == "comfy_kitchen"]:
        monkeypatch.setitem(sys.modules, name, None)
    multiplies.cache_clear()
    try:
        assert comfy_products.kitchen() is None
        model, _ = load_transformer(source, quantization="int8_convrot", fp8_matmul=True)
        assert torch.equal(velocity(model), exact)
        (remark,) = remarks(model, CPU)
        assert remark.startswith("fp8_matmul is on, and has no effect on int8_tensorwise weights")
        assert "pip install comfy-kitchen" in remark
    finally:
        multiplies.cache_clear()


def test_training_needs_derivatives() -> None:
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    made = linear(Int8(), **quantize_int8(weight, None)).requires_grad_(False)
    x = torch.ones(32, 256, requires_grad=True)
    made(x).sum().backward()
    torch.testing.assert_close(x.grad, made.dequantized(torch.float32).sum(0).expand(32, 256))


@torch.no_grad()
def test_sizes_that_kernels_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfy_linear, "multiplies", lambda kind, device: True)
    for kind, quantize in ((NVFP4(), quantize_nvfp4), (MXFP8(), quantize_mxfp8)):
        made = ComfyLinear(nn.Linear(72, 40), kind)
        for role, tensor in quantize(torch.randn(40, 72)).items():
            setattr(made, role, tensor)
        made.multiply_stored()
        x = torch.randn(32, 72)
        assert torch.equal(made(x), F.linear(x, made.dequantized(torch.float32), made.bias))


@pytest.mark.parametrize("to", ["comfy-fp8", "comfy-int8"])
def test_full_precision_is_kept(to: str, source: Path, tmp_path: Path) -> None:
    """`full_precision_matrix_mult` of a layer; where all have it, the switch has nothing to do."""
    convert(source, tmp_path / "all.safetensors", to, version=VERSION)
    tensors, markers = load_file(tmp_path / "all.safetensors"), 0
    with (tmp_path / "all.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for chosen, name in (("transformer_blocks.0.", "some"), ("transformer_blocks.", "every")):
        for key in [key for key in tensors if key.endswith(".comfy_quant") and chosen in key]:
            said = json.loads(bytes(tensors[key].tolist())) | {"full_precision_matrix_mult": True}
            tensors[key] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
            markers += 1
        save_file(tensors, tmp_path / f"{name}.safetensors", header["__metadata__"])
    assert markers == 30
    exact, some = (load_transformer(tmp_path / f"{name}.safetensors")[0] for name in ("all", "some"))
    model, _ = load_transformer(tmp_path / "some.safetensors", fp8_matmul=True)
    x = torch.randn(1, 32, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    for number, same in ((0, True), (1, to == "comfy-fp8" and not multiplies_fp8(CPU))):
        layers = [each.transformer_blocks[number].ff.net[0].proj for each in (exact, model)]
        assert torch.equal(layers[0](x), layers[1](x)) == same
    assert torch.equal(velocity(some), velocity(exact))
    with pytest.raises(ConfigError, match="does not ask for full precision"):
        load_transformer(tmp_path / "every.safetensors", fp8_matmul=True)


@pytest.fixture
def int8_model(source: Path) -> LTXTransformer:
    return load_transformer(source, quantization="int8_convrot", fp8_matmul=True)[0]


def test_gelu_is_a_part_of_the_int8_product(int8_model: LTXTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not where something comes between the two: a LoRA, another format's product, autograd, few tokens."""
    calls: list[dict[str, Any]] = []
    multiply = kitchen.int8_linear

    def counted(*given: Any, **named: Any) -> Tensor:
        calls.append(named)
        return multiply(*given, **named)

    folded = velocity(int8_model)
    monkeypatch.setattr(kitchen, "int8_linear", counted)
    assert torch.equal(velocity(int8_model), folded)
    assert [call.get("input_act") for call in calls].count("gelu_tanh") == int8_model.config.num_layers
    calls.clear()
    monkeypatch.setattr(comfy_linear, "folds_gelu", lambda kind, device: False)
    apart = velocity(int8_model)
    assert not any("input_act" in call for call in calls)
    assert cosine(folded, apart) > 0.9999
    monkeypatch.undo()
    down = int8_model.transformer_blocks[0].ff.net[2]
    x = torch.ones(16, 256)
    with torch.no_grad():
        assert down.folds_gelu(x, 16)
        assert not down.folds_gelu(x, 15)
        hook = down.register_forward_hook(lambda module, given, result: result)
        assert not down.folds_gelu(x, 16)
        hook.remove()
    assert not down.folds_gelu(x, 16)


def test_a_version_without_gelu_in_the_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = kitchen.int8_linear

    def older(
        x: Tensor, weight: Tensor, scale: Tensor, bias: Any, dtype: Any, *, convrot: bool, convrot_groupsize: int
    ):
        return multiply(x, weight, scale, bias, dtype, convrot=convrot, convrot_groupsize=convrot_groupsize)

    monkeypatch.setattr(kitchen, "int8_linear", older)
    assert not comfy_products.folds_gelu.__wrapped__(Int8(256), CPU)
    monkeypatch.setattr(
        kitchen, "int8_linear", lambda *given, **named: multiply(*given, **{**named, "input_act": None})
    )
    assert not comfy_products.folds_gelu.__wrapped__(Int8(256), CPU)  # says that it does, and does not
    monkeypatch.undo()
    assert comfy_products.folds_gelu.__wrapped__(Int8(256), CPU)
    assert not comfy_products.folds_gelu.__wrapped__(ConvRotW4A4(256), CPU)


@pytest.mark.parametrize(
    ("stored", "plain", "said"), [(1.0, 1.3, None), (1.0, 1.1, "little time"), (2.0, 1.0, "no time")]
)
def test_products_that_do_not_pay_say_so(
    stored: float, plain: float, said: str | None, int8_model: LTXTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock stands in for a card's: products as stored are the ones that it is asked for second."""
    shapes: list[tuple[int, ...]] = []

    def clock(run: Any, device: torch.device) -> float:
        shapes.append(tuple(run().shape))
        return plain if len(shapes) % 2 else stored

    monkeypatch.setattr(paying, "seconds", clock)
    card = torch.device("cpu", 0)
    assert paying.gain(lambda: torch.ones(1), lambda: torch.ones(2), CPU) is None, "a CPU's are measured elsewhere"

    def measured_on_meta(kind: Format) -> float | None:
        device = SimpleNamespace(type="cuda")
        return paying.gain(lambda: torch.ones(1), lambda: torch.ones(2), device)

    monkeypatch.setattr(comfy_linear, "product_gain", lambda kind, device: measured_on_meta(kind))
    found = [remark for remark in remarks(int8_model, card) if "int8" in remark]
    assert set(shapes) == {(1,), (2,)}
    if said is None:
        assert not found
    else:
        assert found
        assert all(
            f"saves {said} on cpu:0: products in int8_tensorwise are {plain / stored:.2f} times" in each
            for each in found
        )
