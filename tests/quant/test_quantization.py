"""Quantized weights in safetensors: every format, in both layouts, against the library that defines it."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bitsandbytes
import bitsandbytes.functional as bnb
import diffusers
import pytest
import torch
import transformers
from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer
from packaging.version import Version
from places import PLACES, T5, T5_PLACES, write_t5, write_transformer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import CheckpointError, ConfigError, UnsupportedError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing.copies import Copies
from ltxkit.ltx_core.placing.lora import applied
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.quant.bitsandbytes import quantize_int8, quantize_nf4
from ltxkit.ltx_core.quant.ggml_blocks import BLOCK_TYPES
from ltxkit.ltx_core.quant.linear import QuantizedLinear, stored_buffers
from ltxkit.ltx_core.quant.registry import QUANTIZATION_NAMES, QUANTIZATIONS, UNREAD
from ltxkit.ltx_core.quant.scales import weight_name
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.containers import DTYPE_NAMES, TensorInfo
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS
from ltxkit.ltx_core.weights.lora import WeightedLoRA, load_lora
from ltxkit.ltx_core.weights.report import inspect
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER

OLD_TRANSFORMERS = Version(transformers.__version__) < Version("4.56")

TinyModels = Callable[..., Path]
HEADS, HEAD_DIM, LAYERS, CHANNELS, CAPTION = 4, 32, 2, 8, 64
VERSION = "2b-0.9.5"
IDS = torch.arange(3, 20)[None]


@pytest.fixture(scope="module")
def transformer() -> LTXTransformer:
    torch.manual_seed(0)
    config = TransformerConfig.of_size(
        layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM, channels=CHANNELS, captions=CAPTION
    )
    return LTXTransformer(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def t5() -> transformers.T5EncoderModel:
    torch.manual_seed(0)
    return transformers.T5EncoderModel(transformers.T5Config(**T5)).eval().requires_grad_(False)


@torch.no_grad()
def embedding(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).last_hidden_state.float()


# --- storage formats: (state dict) -> (the tensors of the file, the same weights in float32) --------------------------

Stored = tuple[dict[str, Tensor], dict[str, Tensor]]
State = Mapping[str, Tensor]


def is_block_linear(key: str, tensor: Tensor) -> bool:
    """Cast by the official converter (Lightricks/LTX-Video-Q8-Kernels scripts/convert_weights.py); likewise for T5."""
    return "block" in key and tensor.ndim == 2 and key.endswith(".weight") and "relative" not in key


def plain(dtype: torch.dtype) -> Callable[[State], Stored]:
    def store(state: State) -> Stored:
        stored = {key: tensor.to(dtype) for key, tensor in state.items()}
        return stored, {key: tensor.float() for key, tensor in stored.items()}

    return store


def block_cast(state: State) -> Stored:
    stored = {
        key: tensor.to(torch.float8_e4m3fn if is_block_linear(key, tensor) else torch.bfloat16)
        for key, tensor in state.items()
    }
    return stored, {key: tensor.float() for key, tensor in stored.items()}


def comfy_scaled(dtype: torch.dtype) -> Callable[[State], Stored]:
    def store(state: State) -> Stored:
        stored: dict[str, Tensor] = {"scaled_fp8": torch.zeros(0 if dtype == torch.float8_e4m3fn else 2, dtype=dtype)}
        weights: dict[str, Tensor] = {}
        for key, tensor in state.items():
            if is_block_linear(key, tensor):
                scale = tensor.abs().max() / torch.finfo(dtype).max
                stored[key] = (tensor / scale).to(dtype)
                stored[f"{key.removesuffix('weight')}scale_weight"] = scale
                stored[f"{key.removesuffix('weight')}scale_input"] = torch.tensor(0.5)
                weights[key] = stored[key].float() * scale
            else:
                stored[key] = tensor.to(torch.float16)
                weights[key] = stored[key].float()
        return stored, weights

    return store


def bnb_int8(state: State) -> Stored:
    stored, weights = plain(torch.float32)(state)
    for key, tensor in state.items():
        if is_block_linear(key, tensor):
            scale = tensor.abs().amax(dim=1)
            stored[key] = (tensor * 127 / scale.unsqueeze(1)).round().to(torch.int8)
            stored[f"{key.removesuffix('weight')}SCB"] = scale
            stored[f"{key.removesuffix('weight')}weight_format"] = torch.tensor(0, dtype=torch.uint8)
            weights[key] = bnb.int8_vectorwise_dequant(stored[key], scale)
    return stored, weights


def bnb_4bit(kind: str, nested: bool) -> Callable[[State], Stored]:
    def store(state: State) -> Stored:
        stored, weights = plain(torch.float32)(state)
        for key, tensor in state.items():
            if is_block_linear(key, tensor):
                packed, quant_state = bnb.quantize_4bit(tensor, quant_type=kind, compress_statistics=nested)
                stored[key] = packed
                stored |= {f"{key}.{name}": value for name, value in quant_state.as_dict(packed=True).items()}
                weights[key] = bnb.dequantize_4bit(packed, quant_state)
        return stored, weights

    return store


STORAGES: dict[str, tuple[str | None, Callable[[State], Stored]]] = {
    "fp32": (None, plain(torch.float32)),
    "bf16": (None, plain(torch.bfloat16)),
    "fp16": (None, plain(torch.float16)),
    "official fp8": ("fp8", block_cast),
    "all e4m3": ("fp8", plain(torch.float8_e4m3fn)),
    "all e5m2": ("fp8", plain(torch.float8_e5m2)),
    "scaled e4m3": ("fp8", comfy_scaled(torch.float8_e4m3fn)),
    "scaled e5m2": ("fp8", comfy_scaled(torch.float8_e5m2)),
    "bnb int8": ("bitsandbytes", bnb_int8),
    "bnb nf4": ("bitsandbytes", bnb_4bit("nf4", nested=False)),
    "bnb nf4 nested": ("bitsandbytes", bnb_4bit("nf4", nested=True)),
    "bnb fp4": ("bitsandbytes", bnb_4bit("fp4", nested=False)),
}


# --- the same numbers as other programs spell them --------------------------------------------------------------------


def of_eight_bits(
    names: Mapping[str, str],
    dtype: torch.dtype,
    block: tuple[int, int] | None = None,
    shape: Callable[[Tensor], Tensor] = lambda scale: scale,
    scale_dtype: torch.dtype = torch.float32,
) -> Callable[[State], Stored]:
    """names: of "weight", "scale" and perhaps "zero" after `<module>.`, and of tensors with a 1 beside every weight.
    block: rows and columns that share a scale, where 0 is all of them; None: the whole weight, without zero points.
    shape: what is stored of the scales (down, across).
    """

    def store(state: State) -> Stored:
        stored, weights = plain(torch.float32)(state)
        largest = torch.iinfo(dtype).max if dtype == torch.int8 else torch.finfo(dtype).max
        for key in [key for key, tensor in state.items() if is_block_linear(key, tensor)]:
            stem, tensor = key.removesuffix("weight"), stored.pop(key)
            height, width = ((side or size) for side, size in zip(block or (0, 0), tensor.shape, strict=True))
            tiles = tensor.unflatten(0, (-1, height)).unflatten(2, (-1, width))  # (down, height, across, width)
            scale = (tiles.abs().amax((1, 3)) / largest).to(scale_dtype)
            each = scale[:, None, :, None]
            zero = torch.randint(-9, 9, scale.shape, generator=torch.Generator().manual_seed(1)).to(torch.int8)
            numbers = tiles / each + (zero[:, None, :, None] if "zero" in names else 0)
            numbers = (numbers.round() if dtype == torch.int8 else numbers).clamp(-largest, largest).to(dtype)
            exact = (numbers.to(scale_dtype) - (zero[:, None, :, None] if "zero" in names else 0)) * each
            weights[key] = exact.reshape(tensor.shape).float()
            sides = {name: torch.tensor(1.0) for name in names if name not in ("weight", "scale", "zero")}
            entries = {
                "weight": numbers.reshape(tensor.shape), "scale": shape(scale).contiguous(),
                "zero": zero, **sides,
            }  # fmt: skip
            stored |= {stem + spelled: entries[name] for name, spelled in names.items()}
        return stored, weights

    return store


def beside_plain(scale: float) -> Callable[[State], Stored]:
    """ComfyUI's scaled form with a scale also for every second weight, which is kept in 16 bits."""

    def store(state: State) -> Stored:
        stored, weights = comfy_scaled(E4M3)(state)
        for key in [key for key, tensor in state.items() if is_block_linear(key, tensor)][::2]:
            stored[key] = (state[key] / scale).to(torch.float16)
            stored[f"{key.removesuffix('weight')}scale_weight"] = torch.tensor(scale)
            weights[key] = stored[key].float() * scale
        return stored, weights

    return store


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SCALED = {"weight": "weight", "scale": "scale_weight"}
QUANTO = {"weight": "weight._data", "scale": "weight._scale", "1": "input_scale", "one": "output_scale"}
TORCHAO = {"weight": "_weight_qdata", "scale": "_weight_scale"}
WITH_ZEROS = {**TORCHAO, "zero": "_weight_zero_point"}
INVERSE = {"weight": "weight", "scale": "weight_scale_inv"}
PACKED = {"weight": "weight", "scale": "weight_scale"}
STORAGES |= {
    "scaled (1,)": ("fp8", of_eight_bits(SCALED, E4M3, (0, 0), torch.ravel)),
    "scaled (n,)": ("fp8", of_eight_bits(SCALED, E5M2, (1, 0), torch.ravel)),
    "scaled (n, 1)": ("fp8", of_eight_bits(SCALED, E4M3, (1, 0))),
    "scaled (n, 1, 1) bf16": (
        "fp8",
        of_eight_bits(SCALED, E4M3, (1, 0), lambda scale: scale[..., None], torch.bfloat16),
    ),
    "scaled blocks 2-D": ("fp8", of_eight_bits(SCALED, E4M3, (32, 16))),
    "scaled runs 3-D": ("fp8", of_eight_bits(SCALED, E4M3, (1, 32), lambda scale: scale[..., None])),
    "scaled blocks 4-D bf16": (
        "fp8",
        of_eight_bits(SCALED, E4M3, (16, 32), lambda scale: scale[:, None, :, None], torch.bfloat16),
    ),
    "scaled runs in a row": ("fp8", of_eight_bits(SCALED, E4M3, (1, 32), torch.ravel)),
    "scaled int8": ("scaled int8", of_eight_bits(SCALED, torch.int8, (0, 0), torch.squeeze)),
    "scaled int8 runs": ("scaled int8", of_eight_bits(SCALED, torch.int8, (1, 32))),
    "beside plain": ("fp8", beside_plain(1.0)),
    "beside plain, not 1": ("fp8", beside_plain(0.5)),
    "blocks of DeepSeek": ("block-wise fp8", of_eight_bits(INVERSE, E4M3, (64, 64))),
    "quanto int8": ("quanto", of_eight_bits(QUANTO, torch.int8, (1, 0))),
    "quanto int8 bf16": ("quanto", of_eight_bits(QUANTO, torch.int8, (1, 0), scale_dtype=torch.bfloat16)),
    "quanto fp8": ("quanto", of_eight_bits(QUANTO, E4M3, (1, 0))),
    "quanto e5m2": ("quanto", of_eight_bits(QUANTO, E5M2, (0, 0), torch.squeeze)),
    "torchao int8": ("torchao", of_eight_bits(WITH_ZEROS, torch.int8, (1, 0))),
    "torchao int8 groups": ("torchao", of_eight_bits(WITH_ZEROS, torch.int8, (1, 32), scale_dtype=torch.bfloat16)),
    "torchao fp8": ("torchao", of_eight_bits(TORCHAO, E4M3, (1, 0))),
    "torchao fp8 whole": ("torchao", of_eight_bits(TORCHAO, E4M3, (0, 0))),
    "torchao fp8 blocks": ("torchao", of_eight_bits(TORCHAO, E4M3, (64, 64))),
    "compressed-tensors int8": ("compressed-tensors", of_eight_bits(PACKED, torch.int8, (1, 0))),
    "compressed-tensors groups": (
        "compressed-tensors",
        of_eight_bits({**PACKED, "zero": "weight_zero_point"}, torch.int8, (1, 32), scale_dtype=torch.bfloat16),
    ),
    "compressed-tensors fp8": ("compressed-tensors", of_eight_bits(PACKED, E4M3, (1, 0), scale_dtype=torch.bfloat16)),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("storage", STORAGES)
def test_transformer(
    storage: str, place: str, transformer: LTXTransformer, tmp_path: Path, velocity: Callable[..., Tensor]
) -> None:
    name, store = STORAGES[storage]
    stored, weights = store(transformer.state_dict())
    path = write_transformer(tmp_path / "model", stored, transformer.config, place)
    model, info = load_transformer(path, dtype=torch.float32, version=VERSION)
    assert info.quantization == name == inspect(path)["quantization"]
    reference = LTXTransformer(transformer.config).eval()
    reference.load_state_dict(weights)
    expected = velocity(reference)
    assert float(expected.std()) > 0.1
    assert (velocity(model) - expected).abs().max() <= 1e-5
    shapes, _ = load_transformer(path, dtype=torch.float32, version=VERSION, data=False)
    assert {key: (t.shape, t.dtype) for key, t in shapes.state_dict().items()} == {
        key: (t.shape, t.dtype) for key, t in model.state_dict().items()
    }
    linears = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert len(linears) >= (0 if name is None else LAYERS * (5 if storage.startswith("beside") else 10))
    before = velocity(model)
    copies = Copies(model, torch.clone)  # like a move to another device; sums may depend on the memory address
    torch.testing.assert_close(velocity(model), before, rtol=0, atol=1e-5)
    copies.drop()
    assert torch.equal(velocity(model), before)


@pytest.mark.slow
@pytest.mark.parametrize("place", T5_PLACES)
@pytest.mark.parametrize("storage", STORAGES)
def test_t5(
    storage: str,
    place: str,
    t5: transformers.T5EncoderModel,
    tiny_models: TinyModels,
    tmp_path: Path,
    rounding_bound: Callable[..., float],
) -> None:
    state = {key: tensor for key, tensor in t5.state_dict().items() if "embed_tokens" not in key}
    stored, weights = STORAGES[storage][1](state)
    path = write_t5(tmp_path / "t5", stored, place)
    if T5_PLACES[place][1] is None and storage.startswith(("bnb nf4", "bnb fp4")):
        with pytest.raises(CheckpointError, match=r"4-bit weights do not show its sizes; .*use the folder"):
            load_text_encoder(path, tokenizer=tiny_models() / TEXT_ENCODER)
        return
    ours = load_text_encoder(path, dtype=torch.float32, tokenizer=tiny_models() / TEXT_ENCODER)
    reference = transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()
    reference.load_state_dict(weights | {"encoder.embed_tokens.weight": weights["shared.weight"]})
    expected = embedding(reference)
    assert (embedding(ours.model) - expected).abs().max() <= 1e-5 * expected.abs().max()
    if STORAGES[storage][0] is not None:
        default = load_text_encoder(path, tokenizer=tiny_models() / TEXT_ENCODER).model
        assert default.dtype == torch.bfloat16
        shapes, ids = copy.deepcopy(default).to("meta"), IDS.to("meta")
        bound = rounding_bound(
            lambda: shapes(input_ids=ids), torch.bfloat16, weights=len(state)
        )  # errors: a third of it
        assert (embedding(default) - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("names", ["first", "second", "both"])
def test_a_scaled_embedding(
    names: str, t5: transformers.T5EncoderModel, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """T5's embedding has two names; its scale has that of the weight beside it."""
    state = {key: tensor for key, tensor in t5.state_dict().items() if "embed_tokens" not in key}
    stored, weights = comfy_scaled(E4M3)(state)
    plain_embedding, scale = stored.pop("shared.weight"), torch.tensor(0.25)
    weights["shared.weight"] = plain_embedding.float()
    if names != "first":
        stored["encoder.embed_tokens.weight"] = (state["shared.weight"] / scale).to(E4M3)
        stored["encoder.embed_tokens.scale_weight"] = scale
    if names == "first":
        stored["shared.weight"], stored["shared.scale_weight"] = (state["shared.weight"] / scale).to(E4M3), scale
    if names == "both":
        stored["shared.weight"] = plain_embedding
    else:
        weights["shared.weight"] = (state["shared.weight"] / scale).to(E4M3).float() * scale
    path = write_t5(tmp_path / "t5", stored, "file")
    ours = load_text_encoder(path, dtype=torch.float32, tokenizer=tiny_models() / TEXT_ENCODER)
    reference = transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()
    reference.load_state_dict(weights | {"encoder.embed_tokens.weight": weights["shared.weight"]})
    expected = embedding(reference)
    assert (embedding(ours.model) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("storage", ["bnb nf4", "bnb int8", "quanto int8", "torchao fp8"])
def test_one_file_of_a_folder(
    storage: str,
    transformer: LTXTransformer,
    t5: transformers.T5EncoderModel,
    tiny_models: TinyModels,
    tmp_path: Path,
    velocity: Callable[..., Tensor],
) -> None:
    """The sizes that packed weights hide are in the config.json beside it."""
    stored, _ = STORAGES[storage][1](transformer.state_dict())
    folder = write_transformer(tmp_path / "model", stored, transformer.config, "component folder")
    whole, _ = load_transformer(folder, dtype=torch.float32, version=VERSION)
    file = folder / "diffusion_pytorch_model.safetensors"
    model, _ = load_transformer(file, dtype=torch.float32, version=VERSION)
    assert torch.equal(velocity(model), velocity(whole))
    state = {key: tensor for key, tensor in t5.state_dict().items() if "embed_tokens" not in key}
    folder = write_t5(tmp_path / "t5", STORAGES[storage][1](state)[0], "component folder")
    models = [
        load_text_encoder(path, dtype=torch.float32, tokenizer=tiny_models() / TEXT_ENCODER).model
        for path in (folder, folder / "model.safetensors")
    ]
    assert torch.equal(*map(embedding, models))
    for path in (file, folder / "model.safetensors"):
        assert inspect(path, version=VERSION)["problems"] == []


# --- LoRA on them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_lora(
    storage: str,
    transformer: LTXTransformer,
    tmp_path: Path,
    lora_and_merged: Callable[..., tuple[Any, Any]],
    velocity: Callable[..., Tensor],
) -> None:
    """Factors, DoRA and differences, against the weights as the library unpacks them with the same LoRA added."""
    stored, weights = STORAGES[storage][1](transformer.state_dict())
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    model, _ = load_transformer(path, dtype=torch.float32, version=VERSION)
    tensors, merged = lora_and_merged(weights, 0.8)
    save_file(tensors, tmp_path / "lora.safetensors")
    reference = LTXTransformer(transformer.config).eval()
    reference.load_state_dict(merged)
    base = velocity(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with applied(model, [WeightedLoRA(load_lora(tmp_path / "lora.safetensors"), 0.8)]) as (report,):
        got = velocity(model)
    expected = velocity(reference)
    assert len(report.matched) == LAYERS * 10 + 2
    assert (expected - base).abs().max() > 0.05
    assert (got - expected).abs().max() <= 1e-4
    assert torch.equal(velocity(model), base)  # off again
    assert all(torch.equal(tensor.float(), before[name].float()) for name, tensor in model.state_dict().items())


# --- a library's own files -----------------------------------------------------------------------------------------


LIBRARY_OPTIONS: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
}


def unpacked_by_the_library(model: nn.Module) -> dict[str, Tensor]:
    """The float32 weights of a model that transformers or diffusers quantized, as bitsandbytes unpacks them."""
    weights = {key: tensor.float() for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
    quantized = 0
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weights[f"{name}.weight"] = bnb.dequantize_4bit(weight.data, weight.quant_state).float()
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            scale = weight.SCB if weight.SCB is not None else module.state.SCB
            weights[f"{name}.weight"] = bnb.int8_vectorwise_dequant(weight.data, scale)
        else:
            continue
        quantized += 1
    assert quantized >= LAYERS * 6
    return weights


@pytest.mark.skipif(OLD_TRANSFORMERS, reason="transformers 4.50 does not let bitsandbytes work on a CPU")
@pytest.mark.parametrize("kind", LIBRARY_OPTIONS)
def test_what_transformers_saves(
    kind: str, t5: transformers.T5EncoderModel, tiny_models: TinyModels, tmp_path: Path
) -> None:
    t5.save_pretrained(tmp_path / "plain")
    theirs = transformers.T5EncoderModel.from_pretrained(
        tmp_path / "plain",
        dtype=torch.float32,
        quantization_config=transformers.BitsAndBytesConfig(**LIBRARY_OPTIONS[kind]),
    )
    theirs.save_pretrained(tmp_path / "quantized")
    ours = load_text_encoder(tmp_path / "quantized", dtype=torch.float32, tokenizer=tiny_models() / TEXT_ENCODER)
    reference = transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()
    weights = unpacked_by_the_library(theirs)
    reference.load_state_dict({key: weights[key] for key in reference.state_dict()})
    exact, expected, got = embedding(t5), embedding(reference), embedding(ours.model)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert 1e-4 < (got - exact).norm() / exact.norm() < (0.02 if kind == "int8" else 0.3)


@pytest.mark.parametrize("kind", LIBRARY_OPTIONS)
def test_what_diffusers_saves(
    kind: str,
    transformer: LTXTransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    velocity: Callable[..., Tensor],
) -> None:
    for quantizer in (
        BnB4BitDiffusersQuantizer,
        BnB8BitDiffusersQuantizer,
    ):  # they insist on a GPU, bitsandbytes does not
        monkeypatch.setattr(quantizer, "validate_environment", lambda self, *_, **__: None)
        monkeypatch.setattr(quantizer, "update_device_map", lambda self, device_map: {"": "cpu"})
    plain = write_transformer(tmp_path / "plain", transformer.state_dict(), transformer.config, "component folder")
    theirs = diffusers.LTXVideoTransformer3DModel.from_pretrained(
        plain,
        torch_dtype=torch.float32,
        quantization_config=diffusers.BitsAndBytesConfig(**LIBRARY_OPTIONS[kind]),
    )
    theirs.save_pretrained(tmp_path / "quantized")
    model, info = load_transformer(tmp_path / "quantized", dtype=torch.float32, version=VERSION)
    assert info.quantization == "bitsandbytes"
    reference = LTXTransformer(transformer.config).eval()
    weights, names = unpacked_by_the_library(theirs), TRANSFORMER_FROM_DIFFUSERS.inverse()
    reference.load_state_dict({key: weights[names.rename(key)] for key in reference.state_dict()})
    expected = velocity(reference)
    rounded = kind == "fp4" and Version(bitsandbytes.__version__) < Version("0.50")  # 0.47 rounds its values
    assert (velocity(model) - expected).abs().max() <= (2e-4 if rounded else 1e-5)
    exact = velocity(transformer)
    assert 1e-4 < (expected - exact).norm() / exact.norm() < (0.02 if kind == "int8" else 0.3)


def test_without_the_packages_of_the_extras(
    transformer: LTXTransformer, tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading and creating quantizations needs no package; only writing GGUF does, and its error names the package."""
    paths = [
        write_transformer(
            tmp_path / name.replace(" ", ""), store(transformer.state_dict())[0], transformer.config, "bare"
        )
        for name, (_, store) in STORAGES.items()
    ]
    for name in ("bitsandbytes", "gguf", "accelerate", "diffusers", "peft", "comfy_kitchen"):
        monkeypatch.setitem(sys.modules, name, None)
    for path in paths:
        load_transformer(path, version=VERSION)
    for quantization in QUANTIZATION_NAMES:
        load_transformer(paths[1], version=VERSION, quantization=quantization)
    with pytest.raises(UnsupportedError, match="pip install gguf"):
        convert(tiny_models() / CHECKPOINT, tmp_path / "x.gguf", "gguf-q8_0")


# --- who claims what ---


def comfy(state: State) -> Stored:
    """ComfyUI's format since late 2025, see test_comfy_quant.py."""
    stored = dict(state)
    for key, tensor in state.items():
        if is_block_linear(key, tensor):
            stored[key] = tensor.to(torch.float8_e4m3fn)
            stored[f"{key}_scale"] = torch.ones(())
    return stored, {}


def claiming(tensors: Mapping[str, Tensor]) -> list[str]:
    stored = {
        weight_name(key): TensorInfo(tuple(t.shape), DTYPE_NAMES[t.dtype], t.nbytes, 0) for key, t in tensors.items()
    }
    return [known.name for known in (*QUANTIZATIONS, *UNREAD) if known.claims(stored)]


@pytest.mark.parametrize("storage", STORAGES)
def test_exactly_one_quantization_claims_each_file(
    storage: str, transformer: LTXTransformer, t5: transformers.T5EncoderModel
) -> None:
    name, store = STORAGES[storage]
    for model in (transformer, t5):
        assert claiming(store(model.state_dict())[0]) == ([] if name is None else [name])


@pytest.mark.parametrize("kind", [name for name in BLOCK_TYPES if name not in ("F32", "F16", "BF16")])
def test_gguf_alone_claims_blocks(kind: str, transformer: LTXTransformer) -> None:
    stored = {
        key: TensorInfo(tuple(tensor.shape), kind if is_block_linear(key, tensor) else "F32", tensor.nbytes, 0)
        for key, tensor in transformer.state_dict().items()
    }
    assert [known.name for known in (*QUANTIZATIONS, *UNREAD) if known.claims(stored)] == ["gguf"]


def test_two_claims_at_once_are_refused_with_both_names(transformer: LTXTransformer, tmp_path: Path) -> None:
    state = transformer.state_dict()
    first = {key: tensor for key, tensor in state.items() if key.startswith("transformer_blocks.0.")}
    rest = {key: tensor for key, tensor in state.items() if key not in first}
    mixtures = {
        "fp8 and as bitsandbytes": (block_cast, bnb_4bit("nf4", nested=False)),
        "fp8 and as comfy_quant": (comfy_scaled(torch.float8_e4m3fn), comfy),
    }
    for names, (one, other) in mixtures.items():
        stored = one(first)[0] | other(rest)[0]
        path = write_transformer(tmp_path / names, stored, transformer.config, "checkpoint")
        with pytest.raises(CheckpointError, match=f"stored as {names}; expected one quantization"):
            load_transformer(path, version=VERSION)


def test_integers_that_nobody_explains_are_refused(transformer: LTXTransformer, tmp_path: Path) -> None:
    stored = {
        key: tensor.to(torch.int8) if is_block_linear(key, tensor) else tensor
        for key, tensor in transformer.state_dict().items()
    }
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    with pytest.raises(
        UnsupportedError, match=r"\(and 19 more\) stored as I8, a quantization that LTXKit does not know"
    ):
        load_transformer(path, version=VERSION)


@pytest.mark.parametrize("storage", [name for name, (quantization, _) in STORAGES.items() if quantization is not None])
def test_what_is_stored_keeps_its_type(storage: str, transformer: LTXTransformer, tmp_path: Path) -> None:
    """Including scales, whatever the names of the buffers: a Linear declares them by registering them."""
    stored, _ = STORAGES[storage][1](transformer.state_dict())
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    model, _ = load_transformer(path, dtype=torch.float16, version=VERSION)
    kept = {key: tensor.dtype for key, tensor in model.state_dict().items() if key in stored_buffers(model)}
    assert len(kept) >= LAYERS * 10
    assert torch.float16 not in kept.values()


# --- quantized while they load ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantization", "least"),
    [("fp8", 0.999), ("int8", 0.9999), ("nf4", 0.98), ("mxfp8", 0.999), ("nvfp4", 0.98), ("int8_convrot", 0.9999)],
)
def test_quantized_on_load(
    quantization: str,
    least: float,
    transformer: LTXTransformer,
    t5: transformers.T5EncoderModel,
    tiny_models: TinyModels,
    tmp_path: Path,
    velocity: Callable[..., Tensor],
) -> None:
    stored = {key: tensor.to(torch.bfloat16) for key, tensor in transformer.state_dict().items()}
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    model, info = load_transformer(path, dtype=torch.float32, quantization=quantization)
    assert info.quantization == quantization
    quantized = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    assert len(quantized) == LAYERS * 10
    assert all(name.startswith("transformer_blocks.") for name in quantized)
    exact = velocity(load_transformer(path, dtype=torch.float32)[0])
    cosine = torch.cosine_similarity(velocity(model).flatten(), exact.flatten(), dim=0)
    assert least <= float(cosine) < 1

    state = {key: tensor for key, tensor in t5.state_dict().items() if "embed_tokens" not in key}
    encoder = load_text_encoder(
        write_t5(tmp_path / "t5", state, "file"), quantization=quantization, dtype=torch.float32,
        tokenizer=tiny_models() / TEXT_ENCODER,
    )  # fmt: skip
    cosine = torch.cosine_similarity(embedding(encoder.model).flatten(), embedding(t5).flatten(), dim=0)
    assert least <= float(cosine) < 1


def test_quantizing_is_what_bitsandbytes_does() -> None:
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(0))
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4")
    ours = quantize_nf4(weight)
    assert torch.equal(ours["packed"], packed.flatten())
    assert torch.equal(ours["absmax"], state.absmax)
    assert torch.equal(ours["quant_map"], state.code)
    theirs, scale, _ = bnb.int8_vectorwise_quant(weight.half())
    ours = quantize_int8(weight)
    torch.testing.assert_close(ours["scale_weight"] * 127, scale, rtol=1e-3, atol=0)
    assert (ours["packed"].int() - theirs.int()).abs().max() <= 1  # bitsandbytes starts from float16
    nothing = quantize_nf4(torch.zeros(2, 64))
    assert set(nothing["packed"].tolist()) == {0x77}  # level 0 is 0.0


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage", "ending", "message"),
    [
        ("scaled e4m3", "to_q.scale_weight", r"without .*to_q\.scale_weight \(and 3 more\)"),
        ("bnb int8", "to_q.SCB", r"to_q\.weight without .*to_q\.SCB"),
        ("bnb nf4", "to_q.weight.absmax", r"to_q\.weight without .*to_q\.weight\.absmax"),
        ("bnb nf4", "to_q.weight.quant_map", "of another shape|missing"),
        ("bnb nf4", "to_q.weight.quant_state.bitsandbytes__nf4", r"to_q\.weight without .*bitsandbytes__nf4"),
        ("bnb nf4 nested", "to_q.weight.nested_absmax", "missing|another shape|unexpected"),
        ("bnb nf4 nested", "to_q.weight.nested_quant_map", "missing"),
        ("scaled e5m2", "ff.net.2.scale_weight", r"without .*ff\.net\.2\.scale_weight \(and 1 more\)"),
    ],
)
def test_a_missing_scale_is_named(
    storage: str, ending: str, message: str, transformer: LTXTransformer, tmp_path: Path
) -> None:
    stored, _ = STORAGES[storage][1](transformer.state_dict())
    rest = {key: tensor for key, tensor in stored.items() if not key.endswith(ending)}
    path = write_transformer(tmp_path / "model", rest, transformer.config, "checkpoint")
    with pytest.raises(CheckpointError, match=message):
        load_transformer(path)


def test_requests_that_make_no_sense(tiny_models: TinyModels, transformer: LTXTransformer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got quantization 'q4'; expected one of fp8, int8, nf4, mxfp8"):
        load_transformer(tiny_models() / CHECKPOINT, quantization="q4")
    stored, _ = block_cast(transformer.state_dict())
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    with pytest.raises(ConfigError, match=r"got quantization 'int8' for .* quantized already \(fp8\)"):
        load_transformer(path, quantization="int8")
    assert QUANTIZATION_NAMES == ("fp8", "int8", "nf4", "mxfp8", "nvfp4", "int8_convrot")


def test_weights_of_another_shape_or_order(transformer: LTXTransformer, tmp_path: Path) -> None:
    stored, _ = bnb_4bit("nf4", nested=False)(transformer.state_dict())
    key = next(key for key in stored if "quant_state" in key)
    state = json.loads(bytes(stored[key].tolist())) | {"shape": [1, 2]}
    stored[key] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=r"4-bit weights of shape \[1, 2\].*another model"):
        load_transformer(write_transformer(tmp_path / "a", stored, transformer.config, "checkpoint"))
    stored[key] = torch.tensor(list(b"{"), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=r"quant_state of .*, which is not JSON"):
        load_transformer(write_transformer(tmp_path / "c", stored, transformer.config, "checkpoint"))
    stored, _ = bnb_int8(transformer.state_dict())
    key = next(key for key in stored if key.endswith("weight_format"))
    stored[key] = torch.tensor(2, dtype=torch.uint8)
    with pytest.raises(UnsupportedError, match=r"weight_format = \[2\]; expected 0"):
        load_transformer(write_transformer(tmp_path / "b", stored, transformer.config, "checkpoint"))


@pytest.mark.slow
def test_the_first_fp8_upload_of_the_13b_is_told_about(tiny_models: TinyModels, tmp_path: Path) -> None:
    """No tensor reveals it, so every plain float8 13B of that version gets the hint, and no other file does."""
    source = tiny_models(family="13b") / CHECKPOINT
    tensors = {
        key: tensor.to(torch.float8_e4m3fn) if is_block_linear(key, tensor) and "diffusion_model" in key else tensor
        for key, tensor in load_file(source).items()
    }
    save_file(tensors, tmp_path / "13b.safetensors")
    notes = load_transformer(tmp_path / "13b.safetensors")[1].notes
    assert any("pure noise" in note and "13b-0.9.7-dev-fp8" in note for note in notes)
    assert not any("noise" in note for note in load_transformer(source)[1].notes)
    assert not any("noise" in note for note in load_transformer(source, quantization="fp8")[1].notes)


def test_a_device_without_the_type_of_the_weights(
    transformer: LTXTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like MPS, which has no float8; int8 and nf4, whose bytes are plain integers, run everywhere."""
    to = Tensor.to

    def refusing(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if self.dtype == torch.float8_e4m3fn and arguments[:1] == (torch.device("meta"),):
            raise TypeError("Trying to convert Float8_e4m3fn to the MPS backend but it does not have support for it")
        return to(self, *arguments, **options)

    path = write_transformer(
        tmp_path / "model", plain(torch.bfloat16)(transformer.state_dict())[0], transformer.config, "bare"
    )
    models = {name: load_transformer(path, quantization=name)[0] for name in ("fp8", "int8", "nf4", "int8_convrot")}
    monkeypatch.setattr(Tensor, "to", refusing)
    message = r"type torch\.float8_e4m3fn for meta, which does not support it .*int8, nf4 or GGUF file"
    with pytest.raises(UnsupportedError, match=message), DevicePlacement("meta")(models["fp8"]):
        pass
    assert all(tensor.device.type == "cpu" for tensor in models["fp8"].state_dict().values())  # none is left there
    for name in ("int8", "nf4", "int8_convrot"):
        with DevicePlacement("meta")(models[name]):
            assert all(tensor.is_meta for tensor in models[name].state_dict().values())
