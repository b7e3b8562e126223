"""Quantized files between this pack and ComfyUI 0.33: what `convert` writes it loads, and what it saves loads here.

One process of ComfyUI does all of its part (`quantized_script.py`), on the CPU, with a small model of the real names.
The environment needs comfy-kitchen, as ComfyUI's own requirements say.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from comfy_client import find_comfyui
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltxkit.ltx_core.config import CheckpointConfig, TransformerConfig
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.quant.comfy_quantize import quantize_float8, quantize_nvfp4
from ltxkit.ltx_core.quant.linear import QuantizedLinear
from ltxkit.ltx_core.sampling.patchify import Coordinates, patchify, unpatchify
from ltxkit.ltx_core.shapes import LatentShape, ScaleFactors
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.convert_comfy import COMFY_FORMATS
from ltxkit.ltx_core.weights.metadata import format_config
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder
from ltxkit.ltx_core.weights.tiny import TEXT_ENCODER

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

KINDS = (
    "float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "int8_tensorwise by row", "int8_tensorwise rotated", "mxfp8",
    "nvfp4", "convrot_w4a4", "asym_w4a8_int8", "asym_w4a8_int8 without table",
)  # fmt: skip
SHAPE = LatentShape(3, 4, 4)
T5: dict[str, Any] = {
    "vocab_size": 512, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our files, what ComfyUI has of them, and its own files."""
    found = find_comfyui("COMFYUI_CURRENT_PATH", "ComfyUI-0.33")
    if isinstance(found, str):
        pytest.skip(found)
    folder = tmp_path_factory.mktemp("exchange")
    for name in ("ours", "theirs", "saved", "ours_t5", "theirs_t5", "saved_t5"):
        (folder / name).mkdir()
    # Few layers of a width that ConvRot turns as a whole: rounding to bf16 grows with the layers, and is 1.4e-2 on each
    # side in the 28 of the tiny release.
    torch.manual_seed(0)
    model = LTXTransformer(
        TransformerConfig.of_size(layers=4, heads=8, head_dim=32, channels=16, captions=64, causal=True)
    )
    text = format_config(CheckpointConfig(transformer=model.config, vae=None, scheduler=None))
    source = folder / "plain.safetensors"
    plain = {f"model.diffusion_model.{key}": tensor.bfloat16() for key, tensor in model.state_dict().items()}
    save_file(plain, source, {"config": text})
    for to in COMFY_FORMATS:
        convert(source, folder / f"ours/{to}.safetensors", to, version="2b-0.9.5")
    (folder / "config.json").write_text(text)
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "latent": torch.randn(1, model.config.in_channels, *SHAPE, generator=generator),
        "context": torch.randn(1, 9, model.config.caption_channels, generator=generator),
    }
    save_file(inputs, folder / "inputs.safetensors")
    _write_t5(folder)
    script = Path(__file__).parent / "quantized_script.py"
    done = subprocess.run(
        [str(found.python), str(script), str(folder)],
        cwd=found.root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "unexpected" not in done.stderr
    assert "missing" not in done.stderr
    return folder


def _write_t5(folder: Path) -> None:
    """Every Linear quantized, the embedding in float8, as ComfyUI reads them; tensors have `quantize`'s shapes."""
    torch.manual_seed(0)
    config = transformers.T5Config(**T5, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    model = transformers.T5EncoderModel(config)
    for kind, quantize in (("float8_e4m3fn", quantize_float8), ("nvfp4", quantize_nvfp4)):
        stored: dict[str, Tensor] = {}
        for key, tensor in model.state_dict().items():
            stem = key.removesuffix(".weight")
            if "embed_tokens" in key:
                continue
            if tensor.ndim != 2 or "relative" in key:
                stored[key] = tensor
                continue
            is_table = stem == "shared"
            parts = quantize_float8(tensor) if is_table else quantize(tensor)
            for role, part in parts.items():
                stored[f"{stem}.{'weight' if role == 'packed' else role}"] = (
                    part.squeeze() if part.numel() == 1 else part
                )
            said = {"format": "float8_e4m3fn" if is_table else kind}
            stored[f"{stem}.comfy_quant"] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
        save_file(stored, folder / f"ours_t5/{kind}.safetensors")
    theirs = {**T5, "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "t5"}
    (folder / "t5.json").write_text(json.dumps(theirs))


def unpacked(model: nn.Module) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            weights[f"{name}.weight"] = module.dequantized(torch.float32)
        elif getattr(module, "weight", None) is not None:
            weights[f"{name}.weight"] = module.weight.float()
    return weights


def assert_same_weights(model: nn.Module, theirs: dict[str, Tensor]) -> None:
    ours = unpacked(model)
    assert len(theirs) > 15
    for name, weight in theirs.items():
        assert (ours[name] - weight).abs().max() <= 1e-6, name


@torch.no_grad()
def velocity(model: LTXTransformer, folder: Path) -> Tensor:
    inputs = load_file(folder / "inputs.safetensors")
    latent, context = (inputs[name].to(model.dtype) for name in ("latent", "context"))
    coordinates = Coordinates(ScaleFactors(8, 32, 32), 25.0, causal=True)
    x = patchify(latent)
    got = model(
        x,
        torch.full((1, 1, 1), 0.7),
        model.prepare_positions(coordinates.positions(SHAPE)),
        (Branch(model.prepare_text([context[0]])),),
    )[0]
    return unpatchify(got.float(), SHAPE)


@pytest.mark.parametrize("to", COMFY_FORMATS)
def test_comfyui_has_the_weights_of_our_files(to: str, exchange: Path, rms: Callable[..., float]) -> None:
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        theirs = load_file(exchange / f"theirs/{to}.{name}.safetensors")
        expected = theirs.pop("velocity")
        model, _ = load_transformer(exchange / f"ours/{to}.safetensors", dtype=dtype)
        if dtype == torch.float32:
            assert_same_weights(model, theirs)
        difference = rms(velocity(model, exchange), expected)
        # ComfyUI multiplies int8 as it is stored, on every device; the other formats only where the device can.
        assert difference <= (1e-5 if dtype == torch.float32 and to != "comfy-int8" else 1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_our_weights_are_those_of_its_files(kind: str, exchange: Path, rms: Callable[..., float]) -> None:
    theirs = load_file(exchange / f"saved/{kind}.weights.safetensors")
    expected = theirs.pop("velocity")
    model, info = load_transformer(exchange / f"saved/{kind}.safetensors", dtype=torch.float32)
    assert info.quantization == "comfy_quant"
    assert_same_weights(model, theirs)
    model, _ = load_transformer(exchange / f"saved/{kind}.safetensors", dtype=torch.bfloat16)
    assert rms(velocity(model, exchange), expected) <= 1e-2


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "nvfp4"])
def test_a_text_encoder_of_ours_there(kind: str, exchange: Path, tiny_models: Callable[..., Path]) -> None:
    theirs = load_file(exchange / f"theirs_t5/{kind}.safetensors")
    hidden = theirs.pop("hidden")
    path = exchange / f"ours_t5/{kind}.safetensors"
    model = load_text_encoder(path, dtype=torch.float32, tokenizer=tiny_models() / TEXT_ENCODER).model
    assert_same_weights(model, theirs)
    with torch.no_grad():
        got = model(input_ids=torch.arange(3, 20)[None]).last_hidden_state
    assert (got - hidden).abs().max() <= 1e-4 * hidden.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_encoder_of_its_own_here(kind: str, exchange: Path, tiny_models: Callable[..., Path]) -> None:
    theirs = load_file(exchange / f"saved_t5/{kind}.weights.safetensors")
    path = exchange / f"saved_t5/{kind}.safetensors"
    model = load_text_encoder(path, dtype=torch.float32, tokenizer=tiny_models() / TEXT_ENCODER).model
    assert_same_weights(model, theirs)
