"""ComfyUI's `comfy_quant` files, in every format, container and layout, against comfy-kitchen's unpacked weights."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from places import PLACES, T5, T5_PLACES, named, write_files, write_named, write_t5
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltxkit.ltx_core.config import CheckpointConfig, TransformerConfig
from ltxkit.ltx_core.errors import CheckpointError, ConfigError, UnsupportedError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.placing.copies import Copies
from ltxkit.ltx_core.placing.lora import applied
from ltxkit.ltx_core.quant import comfy_products
from ltxkit.ltx_core.quant.comfy_formats import FORMATS
from ltxkit.ltx_core.quant.fp8 import Float8Linear
from ltxkit.ltx_core.quant.linear import QuantizedLinear, stored_buffers
from ltxkit.ltx_core.quant.registry import QUANTIZATIONS
from ltxkit.ltx_core.weights.build import load_transformer, load_vae
from ltxkit.ltx_core.weights.containers import open_checkpoint
from ltxkit.ltx_core.weights.layouts import vae_from_diffusers
from ltxkit.ltx_core.weights.lora import WeightedLoRA, load_lora
from ltxkit.ltx_core.weights.metadata import format_config
from ltxkit.ltx_core.weights.report import format_report, inspect
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER

if comfy_products.kitchen() is None:
    pytest.skip("comfy-kitchen is not installed, or not for this torch", allow_module_level=True)
kitchen_tensor = importlib.import_module("comfy_kitchen.tensor")

TinyModels = Callable[..., Path]
State = Mapping[str, Tensor]
VERSION = "2b-0.9.5"
LAYERS = 2
IDS = torch.arange(3, 20)[None]


@pytest.fixture(scope="module")
def transformer() -> LTXTransformer:
    torch.manual_seed(0)
    config = TransformerConfig.of_size(layers=LAYERS, heads=4, head_dim=32, channels=8, captions=64)
    return LTXTransformer(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def t5() -> transformers.T5EncoderModel:
    torch.manual_seed(0)
    return transformers.T5EncoderModel(transformers.T5Config(**T5)).eval().requires_grad_(False)


# --- how comfy-kitchen stores a weight --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """A format with its options: of `comfy_quant`, of the layout's `quantize`, and of its parameters."""

    format: str
    said: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ROTATED = {"convrot_groupsize": 64}
KINDS = {
    "float8_e4m3fn": Kind("float8_e4m3fn"),
    "float8_e5m2": Kind("float8_e5m2", options={"dtype": torch.float8_e5m2}),
    "int8": Kind("int8_tensorwise"),
    "int8 by row": Kind("int8_tensorwise", options={"per_channel": True}),
    "int8 convrot": Kind(
        "int8_tensorwise", {"convrot": True, **ROTATED}, {"per_channel": True, "convrot": True, **ROTATED}
    ),
    "int8 convrot in params": Kind(
        "int8_tensorwise",
        {"params": {"convrot": True, "convrot_groupsize": 16}},
        {"per_channel": True, "convrot": True, "convrot_groupsize": 16},
    ),
    "mxfp8": Kind("mxfp8"),
    "nvfp4": Kind("nvfp4"),
    "convrot_w4a4": Kind("convrot_w4a4", ROTATED, ROTATED),
    "convrot_w4a4 as int8": Kind(
        "convrot_w4a4", {"linear_dtype": "int8", "convrot_groupsize": 16}, {"convrot_groupsize": 16}
    ),
    "asym_w4a8_int8": Kind("asym_w4a8_int8", {"group_size": 16, **ROTATED}, ROTATED),
    "asym_w4a8_int8 without table": Kind(
        "asym_w4a8_int8",
        {"group_size": 32, "convrot_groupsize": 16},
        {"group_size": 32, "convrot_groupsize": 16, "codebook": False, "scale_dtype": torch.float32},
    ),
}
LAYOUTS = {
    "float8_e4m3fn": "TensorCoreFP8Layout", "float8_e5m2": "TensorCoreFP8Layout", "mxfp8": "TensorCoreMXFP8Layout",
    "nvfp4": "TensorCoreNVFP4Layout", "int8_tensorwise": "TensorWiseINT8Layout",
    "convrot_w4a4": "TensorCoreConvRotW4A4Layout", "asym_w4a8_int8": "AsymW4A8Int8Layout",
}  # fmt: skip


def packed(stem: str, weight: Tensor, kind: Kind) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of the file without the marker, and the weight as the library unpacks it."""
    made = kitchen_tensor.QuantizedTensor.from_float(weight.float(), LAYOUTS[kind.format], **kind.options)
    return {key: tensor.clone() for key, tensor in made.state_dict(f"{stem}.weight").items()}, made.dequantize()


def marker(kind: Kind, **said: Any) -> Tensor:
    return torch.tensor(list(json.dumps({"format": kind.format, **kind.said, **said}).encode()), dtype=torch.uint8)


def quantized(
    state: State, kind: Kind, chosen: Callable[[str, Tensor], bool], **said: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the tensors of a file, all weights in float32)."""
    stored: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for key, tensor in state.items():
        stem = key.removesuffix(".weight")
        if chosen(key, tensor):
            parts, weights[key] = packed(stem, tensor, kind)
            stored |= parts | {f"{stem}.comfy_quant": marker(kind, **said)}
        else:
            stored[key] = tensor.to(torch.float16)
            weights[key] = stored[key].float()
    return stored, weights


def in_blocks(key: str, tensor: Tensor) -> bool:
    return "block" in key and tensor.ndim == 2 and key.endswith(".weight") and "relative" not in key


def in_header(stored: State, prefix: str) -> tuple[dict[str, Tensor], str]:
    """The same with all `comfy_quant` tensors as one entry of the header. prefix: of the names in it."""
    layers = {
        f"{prefix}{key.removesuffix('.comfy_quant')}": json.loads(bytes(tensor.tolist()))
        for key, tensor in stored.items()
        if key.endswith(".comfy_quant")
    }
    rest = {key: tensor for key, tensor in stored.items() if not key.endswith(".comfy_quant")}
    return rest, json.dumps({"format_version": "1.0", "layers": layers})


def unpacked(model: nn.Module) -> dict[str, Tensor]:
    """All weights of a loaded model in float32."""
    weights = {name: tensor.float() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            weights[f"{name}.weight"] = module.dequantized(torch.float32)
    return weights


def assert_weights(model: nn.Module, expected: State) -> None:
    got = unpacked(model)
    for key, weight in expected.items():
        assert (got[key] - weight).abs().max() <= 1e-5, key


# --- container and layout ---------------------------------------------------------------------------------------------


def write_transformer(
    path: Path, tensors: State, config: TransformerConfig, place: str, header: str | None = None
) -> Path:
    """header: prefix of the layers' names in the header; None: they are described by tensors."""
    stored, prefix = named(tensors, place), PLACES[place][0]
    metadata: dict[str, str] = {}
    if header is not None:
        renamed = {key.removeprefix(prefix): tensor for key, tensor in stored.items()}
        rest, metadata["_quantization_metadata"] = in_header(renamed, header)
        stored = {prefix + key: tensor for key, tensor in rest.items()}
    return write_named(path, stored, config, place, metadata)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_transformer(
    kind: str, place: str, transformer: LTXTransformer, tmp_path: Path, velocity: Callable[..., Tensor]
) -> None:
    stored, weights = quantized(transformer.state_dict(), KINDS[kind], in_blocks)
    path = write_transformer(tmp_path / "model", stored, transformer.config, place)
    model, info = load_transformer(path, dtype=torch.float32, version=VERSION)
    assert_weights(model, weights)
    assert info.quantization == "comfy_quant"
    report = inspect(path, version=VERSION)
    assert report["quantization"] == "comfy_quant"
    assert report["formats"] == {"transformer": {KINDS[kind].format: LAYERS * 10}}
    assert report["problems"] == []
    assert f"{LAYERS * 10} {KINDS[kind].format}" in format_report(report)
    reference = LTXTransformer(transformer.config).eval()
    reference.load_state_dict(weights)
    before = velocity(model)
    assert (before - velocity(reference)).abs().max() <= 1e-5
    shapes, _ = load_transformer(path, dtype=torch.float32, version=VERSION, data=False)
    assert {key: (t.shape, t.dtype) for key, t in shapes.state_dict().items()} == {
        key: (t.shape, t.dtype) for key, t in model.state_dict().items()
    }
    copies = Copies(model, torch.clone)  # as to another device
    torch.testing.assert_close(velocity(model), before, rtol=0, atol=1e-5)
    copies.drop()
    assert torch.equal(velocity(model), before)
    half, _ = load_transformer(path, dtype=torch.float16, version=VERSION)
    kept = {half.state_dict()[key].dtype for key in stored_buffers(half)}
    assert torch.float16 not in kept
    assert half.dtype == torch.float16


@pytest.mark.slow
@pytest.mark.parametrize("place", T5_PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_t5(kind: str, place: str, t5: transformers.T5EncoderModel, tiny_models: TinyModels, tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in t5.state_dict().items() if "embed_tokens" not in key}
    stored, weights = quantized(state, KINDS[kind], in_blocks)
    path = write_t5(tmp_path / "t5", stored, place)
    model = load_text_encoder(path, dtype=torch.float32, tokenizer=tiny_models() / TEXT_ENCODER).model
    assert_weights(model, weights)
    reference = transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()
    reference.load_state_dict(weights | {"encoder.embed_tokens.weight": weights["shared.weight"]})
    with torch.no_grad():
        expected, got = (each(input_ids=IDS).last_hidden_state for each in (reference, model))
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    half = load_text_encoder(path, dtype=torch.float16, tokenizer=tiny_models() / TEXT_ENCODER).model
    with torch.no_grad():
        assert half(input_ids=IDS).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "int8", "int8 by row", "int8 convrot"])
@pytest.mark.parametrize("name", ["shared", "encoder.embed_tokens"])
def test_an_embedding_is_unpacked(
    name: str, kind: str, t5: transformers.T5EncoderModel, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """ComfyUI looks rows up in these formats; its files have the table under either name."""
    state = {key: tensor for key, tensor in t5.state_dict().items() if "embed_tokens" not in key}
    stored, weights = quantized(state, KINDS[kind], lambda key, tensor: key == "shared.weight")
    stored = {f"{name}{key[6:]}" if key.startswith("shared.") else key: tensor for key, tensor in stored.items()}
    path = write_t5(tmp_path / "t5", stored, "file")
    model = load_text_encoder(path, dtype=torch.float32, tokenizer=tiny_models() / TEXT_ENCODER).model
    assert (model.shared.weight - weights["shared.weight"]).abs().max() <= 1e-5


# --- VAE --------------------------------------------------------------------------------------------------------------


def vae_stored(state: State, kind: Kind) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Linears in the format, and convolutions too where it is one number per weight with one scale for all."""

    def chosen(key: str, tensor: Tensor) -> bool:
        fits = kind.format in ("float8_e4m3fn", "float8_e5m2") or kind == KINDS["int8"]
        return key.endswith(".weight") and ((tensor.ndim == 5 and fits) or "timestep_embedder" in key)

    return quantized(state, kind, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["checkpoint", "file", "diffusers folder"])
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "int8", "int8 convrot in params", "mxfp8", "nvfp4"])
def test_vae(kind: str, place: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    source = tiny_models() / CHECKPOINT
    checkpoint, plain = open_checkpoint(source), load_vae(source, dtype=torch.float32)
    stored, weights = vae_stored(plain.state_dict(), KINDS[kind])
    path = tmp_path / "vae.safetensors"
    config = checkpoint.metadata["config"]
    if place == "checkpoint":
        rest = {key: checkpoint.tensor(key).clone() for key in checkpoint.tensors if not key.startswith("vae.")}
        save_file(
            rest | {f"vae.{key}": tensor.contiguous() for key, tensor in stored.items()}, path, {"config": config}
        )
    elif place == "file":
        save_file({key: tensor.contiguous() for key, tensor in stored.items()}, path, {"config": config})
    else:
        path = tmp_path / "pipeline"
        names = vae_from_diffusers(stored).inverse()
        renamed = {names.rename(key) or key: tensor for key, tensor in stored.items()}
        write_files(path / "vae", "diffusion_pytorch_model", renamed, 1, {"config": config})
        (path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLLTXVideo"}))
    vae = load_vae(path, dtype=torch.float32)
    assert_weights(vae, weights)
    reference = VideoVAE(plain.config).eval()
    reference.load_state_dict({key: weights[key] for key in reference.state_dict()})
    latent = torch.randn(1, plain.config.latent_channels, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = (each.decode(latent, timestep=torch.tensor([0.05])) for each in (reference, vae))
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert load_vae(path).decoder.conv_in.conv.weight.dtype == torch.bfloat16
    if place == "file":  # the sizes follow from the tensors, too
        save_file(load_file(path), path)
        assert load_vae(path, version=VERSION).config == plain.config


def test_a_kernel_may_have_one_scale_for_each_output(tiny_models: TinyModels, tmp_path: Path) -> None:
    source = tiny_models() / CHECKPOINT
    plain = load_vae(source, dtype=torch.float32).state_dict()
    key = "decoder.conv_in.conv.weight"
    scale = plain[key].abs().amax(dim=(1, 2, 3, 4), keepdim=True) / 127
    levels = (plain[key] / scale).round().to(torch.int8)
    stem = key.removesuffix(".weight")
    stored = {**plain, key: levels, f"{stem}.weight_scale": scale, f"{stem}.comfy_quant": marker(KINDS["int8"])}
    path = tmp_path / "vae.safetensors"
    save_file(stored, path, {"config": open_checkpoint(source).metadata["config"]})
    assert torch.equal(load_vae(path, dtype=torch.float32).state_dict()[key], levels.float() * scale)


# --- what the file says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["", "model.diffusion_model.", "diffusion_model.", "transformer."])
@pytest.mark.parametrize("place", ["checkpoint", "comfyui", "diffusers file", "pipeline folder", "shards"])
def test_the_header_says_the_same(header: str, place: str, transformer: LTXTransformer, tmp_path: Path) -> None:
    stored, weights = quantized(transformer.state_dict(), KINDS["int8 convrot"], in_blocks)
    path = write_transformer(tmp_path / "model", stored, transformer.config, place, header)
    model, info = load_transformer(path, dtype=torch.float32, version=VERSION)
    assert info.quantization == "comfy_quant"
    assert_weights(model, weights)
    report = inspect(path, version=VERSION)
    assert report["formats"] == {"transformer": {"int8_tensorwise": LAYERS * 10}}
    assert report["unknown_metadata"] == report["problems"] == []


def test_the_header_counts_where_both_speak(transformer: LTXTransformer, tmp_path: Path) -> None:
    """As in ComfyUI, which overwrites the tensors; layers that the file does not hold are left out."""
    stored, weights = quantized(transformer.state_dict(), KINDS["int8 convrot"], in_blocks)
    wrong = {key: marker(KINDS["int8"]) if key.endswith("comfy_quant") else tensor for key, tensor in stored.items()}
    _, entry = in_header(stored, "")
    layers = json.loads(entry)["layers"] | {"somewhere.else": {"format": "nvfp4"}}
    text = format_config(CheckpointConfig(transformer=transformer.config, vae=None, scheduler=None))
    path = tmp_path / "model.safetensors"
    save_file(wrong, path, {"config": text, "_quantization_metadata": json.dumps({"layers": layers})})
    assert_weights(load_transformer(path, dtype=torch.float32)[0], weights)


@pytest.mark.parametrize("entry", ["{", "[]", '{"layers": []}', '{"layers": {"a": 1}}'])
def test_a_damaged_header_is_refused(entry: str, tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "a.safetensors", {"_quantization_metadata": entry})
    with pytest.raises(CheckpointError, match="header entry _quantization_metadata"):
        open_checkpoint(tmp_path / "a.safetensors")


def test_layers_have_formats_of_their_own(
    transformer: LTXTransformer, tmp_path: Path, velocity: Callable[..., Tensor]
) -> None:
    """Several formats, a plain bf16 layer with a scale of 1, a plain float8 layer, and a bias in float8."""
    kinds = [*KINDS.values()]
    stored: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    number = 0
    for key, tensor in transformer.state_dict().items():
        stem = key.removesuffix(".weight")
        if in_blocks(key, tensor) and number < len(kinds):
            parts, weights[key] = packed(stem, tensor, kinds[number])
            stored |= parts | {f"{stem}.comfy_quant": marker(kinds[number])}
            number += 1
            continue
        plain8 = key.endswith(("1.attn2.to_v.weight", "1.attn2.to_v.bias"))
        stored[key] = tensor.to(torch.float8_e4m3fn if plain8 else torch.bfloat16)
        weights[key] = stored[key].float()
        if key.endswith("1.attn2.to_k.weight"):
            stored[f"{stem}.weight_scale"] = torch.tensor(1.0)
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    model, _ = load_transformer(path, dtype=torch.float32)
    assert_weights(model, weights)
    formats = inspect(path)["formats"]["transformer"]
    assert set(formats) == set(FORMATS)
    assert isinstance(model.transformer_blocks[1].attn2.to_v, Float8Linear)
    reference = LTXTransformer(transformer.config).eval()
    reference.load_state_dict(weights)
    assert (velocity(model) - velocity(reference)).abs().max() <= 1e-5


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (128,), (128, 1)])
@pytest.mark.parametrize("named", [True, False])
def test_scales_of_any_shape(named: bool, shape: tuple[int, ...], transformer: LTXTransformer, tmp_path: Path) -> None:
    """float8 says by itself what it is, also where somebody dropped the marker."""
    stored, weights = quantized(transformer.state_dict(), KINDS["float8_e4m3fn"], in_blocks)
    key = "transformer_blocks.0.attn1.to_q"
    scale = stored[f"{key}.weight_scale"]
    stored[f"{key}.weight_scale"] = scale.expand(shape).clone() if len(shape) else scale.reshape(())
    if not named:
        stored = {name: tensor for name, tensor in stored.items() if not name.endswith("comfy_quant")}
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    assert_weights(load_transformer(path, dtype=torch.float32)[0], weights)


@pytest.mark.parametrize("kind", ["mxfp8", "nvfp4", "asym_w4a8_int8"])
def test_block_scales_as_bare_bytes(kind: str, transformer: LTXTransformer, tmp_path: Path) -> None:
    """ComfyUI takes them as uint8, and of any shape with as many numbers."""
    stored, weights = quantized(transformer.state_dict(), KINDS[kind], in_blocks)
    for key, tensor in stored.items():
        if key.endswith(("weight_scale", "weight_s_rel")):
            bare = tensor.view(torch.uint8)
            stored[key] = bare.flatten() if key.endswith("weight_scale") else bare
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    assert_weights(load_transformer(path, dtype=torch.float32)[0], weights)


def test_sizes_that_no_group_divides(tmp_path: Path) -> None:
    """mxfp8 and nvfp4 are padded: widths of 40 and 72."""
    torch.manual_seed(0)
    config = TransformerConfig.of_size(layers=1, heads=2, head_dim=20, channels=8, captions=72)
    plain = LTXTransformer(config)
    for name in ("mxfp8", "nvfp4"):
        kind = KINDS[name]
        stored, weights = quantized(plain.state_dict(), kind, lambda key, t: key.endswith(".weight") and t.ndim == 2)
        path = write_transformer(tmp_path / name, stored, config, "checkpoint")
        model, _ = load_transformer(path, dtype=torch.float32)
        assert_weights(model, weights)
        assert sum(isinstance(part, QuantizedLinear) for part in model.modules()) > 10


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "nvfp4", "int8 convrot"])
def test_smoothed_activations(
    kind: str, transformer: LTXTransformer, tmp_path: Path, velocity: Callable[..., Tensor]
) -> None:
    """`pre_quant_scale`: the weight was divided by it, and the activations are multiplied (ModelOpt's AWQ)."""
    generator = torch.Generator().manual_seed(0)
    key = "transformer_blocks.0.attn1.to_q.weight"
    scale = torch.rand(128, generator=generator) + 0.5
    state = dict(transformer.state_dict())
    state[key] = state[key] / scale
    stored, weights = quantized(state, KINDS[kind], in_blocks)
    stored["transformer_blocks.0.attn1.to_q.pre_quant_scale"] = scale
    stored["transformer_blocks.0.attn1.to_q.input_scale"] = torch.tensor(0.02)
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    model, _ = load_transformer(path, dtype=torch.float32)
    weights[key] = weights[key] * scale
    assert_weights(model, weights)
    reference = LTXTransformer(transformer.config).eval()
    reference.load_state_dict(weights)
    assert (velocity(model) - velocity(reference)).abs().max() <= 1e-5


# --- with the rest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_lora(
    kind: str,
    transformer: LTXTransformer,
    tmp_path: Path,
    lora_and_merged: Callable[..., tuple[Any, Any]],
    velocity: Callable[..., Tensor],
) -> None:
    stored, weights = quantized(transformer.state_dict(), KINDS[kind], in_blocks)
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    model, _ = load_transformer(path, dtype=torch.float32)
    tensors, merged = lora_and_merged(weights, 0.8)
    save_file(tensors, tmp_path / "lora.safetensors")
    reference = LTXTransformer(transformer.config).eval()
    reference.load_state_dict(merged)
    base = velocity(model)
    with applied(model, [WeightedLoRA(load_lora(tmp_path / "lora.safetensors"), 0.8)]) as (report,):
        got = velocity(model)
    assert len(report.matched) == LAYERS * 10 + 2
    assert (velocity(reference) - base).abs().max() > 0.05
    assert (got - velocity(reference)).abs().max() <= 1e-4
    assert torch.equal(velocity(model), base)


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_one_quantization_claims_it(kind: str, transformer: LTXTransformer, tmp_path: Path) -> None:
    stored, _ = quantized(transformer.state_dict(), KINDS[kind], in_blocks)
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    tensors = open_checkpoint(path).tensors
    assert [known.name for known in QUANTIZATIONS if known.claims(tensors)] == ["comfy_quant"]
    with pytest.raises(ConfigError, match=r"quantized already \(comfy_quant\)"):
        load_transformer(path, quantization="fp8")


def test_reading_needs_no_package(transformer: LTXTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {name: quantized(transformer.state_dict(), kind, in_blocks) for name, kind in KINDS.items()}
    for name in [name for name in sys.modules if name.split(".")[0] == "comfy_kitchen"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name, (stored, weights) in cases.items():
        path = write_transformer(tmp_path / name, stored, transformer.config, "checkpoint")
        assert_weights(load_transformer(path, dtype=torch.float32)[0], weights)


def test_two_quantizations_in_one_file_are_refused(transformer: LTXTransformer, tmp_path: Path) -> None:
    stored, _ = quantized(transformer.state_dict(), KINDS["nvfp4"], in_blocks)
    stored["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    with pytest.raises(CheckpointError, match="stored as fp8 and as comfy_quant; expected one quantization"):
        load_transformer(path)


# --- bad input --------------------------------------------------------------------------------------------------------

TO_Q = "transformer_blocks.0.attn1.to_q"


def change(key: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], None]:
    def do(stored: dict[str, Tensor]) -> None:
        if tensor is None:
            del stored[f"{TO_Q}.{key}"]
        else:
            stored[f"{TO_Q}.{key}"] = tensor

    return do


def text(said: str) -> Tensor:
    return torch.tensor(list(said.encode()), dtype=torch.uint8)


BAD: dict[str, tuple[str, Callable[[dict[str, Tensor]], None], type[Exception], str]] = {
    "no scale": ("int8", change("weight_scale", None), CheckpointError, "int8_tensorwise .*without weight_scale"),
    "no second scale": ("nvfp4", change("weight_scale_2", None), CheckpointError, "nvfp4 .*without weight_scale_2"),
    "scales by block": (
        "float8_e4m3fn", change("weight_scale", torch.ones(128, 4)), CheckpointError, r"weight_scale of \[128, 4\]"
    ),
    "scales in another order": (
        "nvfp4", change("weight_scale", torch.ones(64, 8).to(torch.float8_e4m3fn)), CheckpointError, "order of cuBLAS"
    ),
    "not JSON": ("nvfp4", change("comfy_quant", text("{")), CheckpointError, "comfy_quant, which is not JSON"),
    "no object": ("nvfp4", change("comfy_quant", text("3")), CheckpointError, "expected a JSON object"),
    "unknown format": (
        "nvfp4", change("comfy_quant", text('{"format": "svdquant_w4a4"}')), UnsupportedError, "'svdquant_w4a4'"
    ),
    "no format": ("nvfp4", change("comfy_quant", text("{}")), UnsupportedError, "in the format None"),
    "experts": (
        "nvfp4", change("comfy_quant", text('{"format": "nvfp4", "num_experts": 4}')), UnsupportedError, "experts"
    ),
    "another type": (
        "nvfp4", change("comfy_quant", text('{"format": "int8_tensorwise"}')), CheckpointError, "type U8; expected I8"
    ),
    "a rotation that does not fit": (
        "int8 convrot", change("comfy_quant", text('{"format": "int8_tensorwise", "convrot": true}')), CheckpointError,
        "128 input features in groups of 256",
    ),
    "a group that is no number": (
        "int8 convrot",
        change("comfy_quant", text('{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": "a"}')),
        CheckpointError, "convrot_groupsize 'a'",
    ),
    "nvfp4 without a marker": ("nvfp4", change("comfy_quant", None), UnsupportedError, r"looks like nvfp4"),
    "int8 without a marker": ("int8", change("comfy_quant", None), UnsupportedError, "looks like int8_tensorwise"),
    "mxfp8 without a marker": ("mxfp8", change("comfy_quant", None), UnsupportedError, "looks like mxfp8"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(case: str, transformer: LTXTransformer, tmp_path: Path) -> None:
    kind, spoil, error, message = BAD[case]
    stored, _ = quantized(transformer.state_dict(), KINDS[kind], in_blocks)
    spoil(stored)
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    for options in ({}, {"data": False}):
        with pytest.raises(error, match=message):
            load_transformer(path, **options)
    assert any(part in str(inspect(path)["problems"]) for part in (TO_Q, "comfy_quant"))


def test_a_scale_beside_a_plain_weight_must_be_1(transformer: LTXTransformer, tmp_path: Path) -> None:
    stored, _ = quantized(transformer.state_dict(), KINDS["nvfp4"], lambda key, t: in_blocks(key, t) and "ff" in key)
    stored[f"{TO_Q}.weight_scale"] = torch.tensor(0.5)
    path = write_transformer(tmp_path / "model", stored, transformer.config, "checkpoint")
    with pytest.raises(CheckpointError, match=r"to_q\.weight_scale beside a weight that is not quantized"):
        load_transformer(path)
