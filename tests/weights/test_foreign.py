"""Models of others are never taken for ours, and each is named; ours are never called foreign.

Data: tests/parity/foreign (names of other models' classes) and tests/data/manifests (ours).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ltxkit.ltx_core.errors import CheckpointError, LTXKitError
from ltxkit.ltx_core.weights.build import load_transformer, load_upsampler, load_vae, open_models
from ltxkit.ltx_core.weights.foreign import foreign_lora, foreign_model
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS, detect_layout
from ltxkit.ltx_core.weights.lora import load_lora
from ltxkit.ltx_core.weights.report import format_report, inspect
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder

TESTS = Path(__file__).parents[1]
RECORDED = TESTS / "parity" / "foreign"
MANIFESTS = TESTS / "data" / "manifests"

Shapes = Mapping[str, list[int]]


@cache
def strangers() -> dict[str, Shapes]:
    return {
        name: shapes
        for source in ("diffusers", "transformers", "core")
        for name, shapes in json.loads((RECORDED / f"{source}.json").read_text(encoding="utf-8")).items()
    }


# A word that the name of each model must contain. What several classes share is named by what they are.
WORDS = {
    "diffusers/AceStepTransformer1DModel": "ACE-Step",
    "diffusers/AllegroTransformer3DModel": "Allegro",
    "diffusers/AnyFlowTransformer3DModel": "Wan",
    "diffusers/AuraFlowTransformer2DModel": "AuraFlow",
    "diffusers/BriaFiboTransformer2DModel": "Bria",
    "diffusers/BriaTransformer2DModel": "Bria",
    "diffusers/ChromaTransformer2DModel": "Chroma",
    "diffusers/ChronoEditTransformer3DModel": "Wan",
    "diffusers/CogVideoXTransformer3DModel": "CogVideoX",
    "diffusers/CogView3PlusTransformer2DModel": "CogView",
    "diffusers/CogView4Transformer2DModel": "CogView",
    "diffusers/ConsisIDTransformer3DModel": "CogVideoX",
    "diffusers/CosmosTransformer3DModel": "Cosmos",
    "diffusers/DiTTransformer2DModel": "DiT",
    "diffusers/ErnieImageTransformer2DModel": "ERNIE",
    "diffusers/Flux2Transformer2DModel": "Flux 2",
    "diffusers/FluxTransformer2DModel": "Flux",
    "diffusers/GlmImageTransformer2DModel": "GLM",
    "diffusers/HeliosTransformer3DModel": "Helios",
    "diffusers/HiDreamImageTransformer2DModel": "HiDream",
    "diffusers/HunyuanDiT2DModel": "HunyuanDiT",
    "diffusers/HunyuanImageTransformer2DModel": "Hunyuan",
    "diffusers/HunyuanVideo15Transformer3DModel": "HunyuanVideo",
    "diffusers/HunyuanVideoFramepackTransformer3DModel": "HunyuanVideo",
    "diffusers/HunyuanVideoTransformer3DModel": "HunyuanVideo",
    "diffusers/Ideogram4Transformer2DModel": "Ideogram",
    "diffusers/JoyImageEditTransformer3DModel": "JoyImage",
    "diffusers/Kandinsky3UNet": "Kandinsky 3",
    "diffusers/Kandinsky5Transformer3DModel": "Kandinsky 5",
    "diffusers/Krea2Transformer2DModel": "Krea 2",
    "diffusers/LTX2VideoTransformer3DModel": "LTX-2",
    "diffusers/LatteTransformer3DModel": "Latte",
    "diffusers/LongCatImageTransformer2DModel": "LongCat",
    "diffusers/Lumina2Transformer2DModel": "Lumina",
    "diffusers/LuminaNextDiT2DModel": "Lumina",
    "diffusers/MiniMaxH3Transformer3DModel": "MiniMax",
    "diffusers/MiniMaxMusic3Transformer1DModel": "MiniMax",
    "diffusers/MochiTransformer3DModel": "Mochi",
    "diffusers/MotifVideoTransformer3DModel": "Motif",
    "diffusers/NucleusMoEImageTransformer2DModel": "Nucleus",
    "diffusers/OmniGenTransformer2DModel": "OmniGen",
    "diffusers/OvisImageTransformer2DModel": "Ovis",
    "diffusers/PRXTransformer2DModel": "PRX",
    "diffusers/PixArtTransformer2DModel": "PixArt",
    "diffusers/QwenImageTransformer2DModel": "Qwen-Image",
    "diffusers/SD3Transformer2DModel": "Stable Diffusion 3",
    "diffusers/SanaTransformer2DModel": "Sana",
    "diffusers/SanaVideoTransformer3DModel": "Sana",
    "diffusers/SanaWMTransformer3DModel": "Sana",
    "diffusers/SkyReelsV2Transformer3DModel": "SkyReels",
    "diffusers/StableAudioDiTModel": "Stable Audio",
    "diffusers/StableCascadeUNet": "Stable Cascade",
    "diffusers/UNet2DConditionModel": "Stable Diffusion",
    "diffusers/UNet3DConditionModel": "text-to-video",
    "diffusers/UNetMotionModel": "AnimateDiff",
    "diffusers/UNetSpatioTemporalConditionModel": "Stable Video Diffusion",
    "diffusers/I2VGenXLUNet": "I2VGen",
    "diffusers/WanAnimateTransformer3DModel": "Wan",
    "diffusers/WanTransformer3DModel": "Wan",
    "diffusers/WanVACETransformer3DModel": "VACE",
    "diffusers/ZImageTransformer2DModel": "Z-Image",
    "diffusers/AutoencoderDC": "image VAE",
    "diffusers/AutoencoderKL": "image VAE",
    "diffusers/AutoencoderKLAllegro": "VAE of Allegro",
    "diffusers/AutoencoderKLCogVideoX": "VAE of CogVideoX",
    "diffusers/AutoencoderKLCosmos": "VAE of Cosmos",
    "diffusers/AutoencoderKLFlux2": "VAE of Flux 2",
    "diffusers/AutoencoderKLHunyuanImage": "HunyuanImage",
    "diffusers/AutoencoderKLHunyuanImageRefiner": "HunyuanImage",
    "diffusers/AutoencoderKLHunyuanVideo": "HunyuanVideo",
    "diffusers/AutoencoderKLHunyuanVideo15": "HunyuanVideo",
    "diffusers/AutoencoderKLKVAE": "VAE",
    "diffusers/AutoencoderKLKVAEVideo": "VAE",
    "diffusers/AutoencoderKLLTX2Audio": "audio VAE of LTX-2",
    "diffusers/AutoencoderKLLTX2Video": "video VAE of LTX-2",
    "diffusers/AutoencoderKLMagvit": "VAE",
    "diffusers/AutoencoderKLMiniMaxH3": "VAE",
    "diffusers/AutoencoderKLMochi": "VAE of Mochi",
    "diffusers/AutoencoderKLQwenImage": "Qwen-Image",
    "diffusers/AutoencoderKLTemporalDecoder": "Stable Video Diffusion",
    "diffusers/AutoencoderKLWan": "VAE of Wan",
    "diffusers/AutoencoderOobleck": "audio VAE",
    "diffusers/AutoencoderTiny": "TAESD",
    "diffusers/AutoencoderVidTok": "VidTok",
    "diffusers/VQModel": "image VAE",
    "diffusers/LTX2VideoDiffusionDecoderModel": "LTX-2.5",
    "diffusers/ControlNetModel": "ControlNet",
    "diffusers/CosmosControlNetModel": "ControlNet",
    "diffusers/FluxControlNetModel": "ControlNet",
    "diffusers/QwenImageControlNetModel": "ControlNet",
    "diffusers/SD3ControlNetModel": "ControlNet",
    "diffusers/SanaControlNetModel": "ControlNet",
    "diffusers/SparseControlNetModel": "ControlNet",
    "diffusers/UNetControlNetXSModel": "ControlNet",
    "diffusers/MotionAdapter": "AnimateDiff",
    "diffusers/T2IAdapter": "ControlNet",
    "diffusers/PriorTransformer": "prior",
    "diffusers/UVit2DModel": "masked image",
    "diffusers/LTX2TextConnectors": "connector of LTX-2",
    "diffusers/LTX2Vocoder": "vocoder of LTX-2",
    "diffusers/LTX2VocoderWithBWE": "vocoder of LTX-2",
    "diffusers/LTX2LatentUpsamplerModel": "upscaler of LTX-2",
    "transformers/UMT5EncoderModel": "UMT5",
    "transformers/MT5EncoderModel": "mT5",
    "transformers/ByT5": "ByT5",
    "transformers/GlyphByT5": "ByT5",
    "transformers/CLIPTextModel": "CLIP",
    "transformers/CLIPTextModelWithProjection": "CLIP",
    "transformers/CLIPModel": "CLIP",
    "transformers/CLIPVisionModelWithProjection": "CLIP",
    "transformers/SiglipVisionModel": "SigLIP",
    "transformers/SiglipModel": "CLIP",
    "transformers/Dinov2Model": "DINOv2",
    "transformers/BertModel": "language model",
    "transformers/GPT2LMHeadModel": "language model",
    "transformers/Gemma2ForCausalLM": "Gemma",
    "transformers/Gemma3ForCausalLM": "Gemma",
    "transformers/Gemma3ForConditionalGeneration": "Gemma",
    "transformers/LlamaForCausalLM": "Llama",
    "transformers/MistralForCausalLM": "Mistral",
    "transformers/Qwen2ForCausalLM": "Qwen",
    "transformers/Qwen3ForCausalLM": "Qwen",
    "transformers/Qwen2_5_VLForConditionalGeneration": "Qwen",
    "transformers/GptOssForCausalLM": "language model",
    "transformers/Wav2Vec2Model": "audio encoder",
    "transformers/WhisperModel": "speech",
    "transformers/LlavaForConditionalGeneration": "language model",
    "transformers/DepthAnythingForDepthEstimation": "depth",
    "core/SD1 UNet": "Stable Diffusion 1",
    "core/SD1 checkpoint": "Stable Diffusion 1",
    "core/SDXL UNet": "Stable Diffusion XL",
    "core/SDXL checkpoint": "Stable Diffusion XL",
    "core/SVD": "Stable Video Diffusion",
    "core/SD3": "Stable Diffusion 3",
    "core/Stable Cascade C": "Stable Cascade",
    "core/Stable Cascade B": "Stable Cascade",
    "core/Flux": "Flux",
    "core/Flux checkpoint": "Flux",
    "core/Flux 2": "Flux 2",
    "core/Chroma": "Chroma",
    "core/Chroma Radiance": "Chroma",
    "core/HunyuanVideo": "HunyuanVideo",
    "core/HunyuanVideo 1.5": "HunyuanVideo",
    "core/Hunyuan3D 2": "Hunyuan3D",
    "core/HunyuanDiT": "HunyuanDiT",
    "core/Mochi": "Mochi",
    "core/Wan 2.1 T2V": "Wan",
    "core/Wan 2.1 I2V": "Wan",
    "core/Wan VACE": "VACE",
    "core/Wan HuMo": "HuMo",
    "core/PixArt Sigma": "PixArt",
    "core/PixArt Alpha": "PixArt",
    "core/Cosmos 1": "Cosmos",
    "core/Cosmos Predict 2": "Cosmos",
    "core/Lumina 2": "Lumina",
    "core/Z-Image": "Z-Image",
    "core/HiDream": "HiDream",
    "core/AuraFlow": "AuraFlow",
    "core/ACE-Step": "ACE-Step",
    "core/Kandinsky 5": "Kandinsky 5",
    "core/Qwen-Image": "Qwen-Image",
    "core/OmniGen 2": "OmniGen",
    "core/CogVideoX": "CogVideoX",
    "core/Stable Audio": "Stable Audio",
    "core/SeedVR2": "SeedVR2",
    "core/LTX-2": "LTX-2",
    "core/LTX-2 checkpoint": "LTX-2",
    "core/LTX-2.3": "LTX-2",
    "core/LTX-2 video VAE": "video VAE of LTX-2",
    "core/LTX-2.5 diffusion decoder": "LTX-2.5",
    "core/LTX-2 connector": "connector of LTX-2",
    "core/LTX-2 duration head": "duration predictor of LTX-2",
    "core/LTX-2.3 upscaler x1.5": "upscaler of LTX-2",
    "core/Wan 2.1 VAE": "VAE of Wan",
    "core/Wan 2.2 VAE": "VAE of Wan",
    "core/Mochi VAE": "VAE of Mochi",
    "core/CogVideoX VAE": "VAE of CogVideoX",
    "core/SD VAE": "image VAE",
    "core/Flux VAE": "image VAE",
    "core/HunyuanVideo VAE": "HunyuanVideo",
    "core/HunyuanImage VAE": "HunyuanImage",
    "core/HunyuanVideo 1.5 VAE": "HunyuanVideo",
    "core/Cosmos VAE": "VAE of Cosmos",
    "core/TAESD": "TAESD",
    "core/TAESD decoder": "TAESD",
    "core/TAEHV": "TAEHV",
    "core/taeltx": "taeltx",
    "core/ControlNet SD1": "ControlNet",
    "core/CLIP L": "CLIP",
    "core/CLIP vision": "CLIP",
    "core/UMT5": "UMT5",
    "core/ByT5": "ByT5",
    "core/Gemma 3 12B": "Gemma",
    "core/Llama": "Llama",
    "core/Qwen 2.5 VL": "Qwen",
    "core/Qwen 3 4B": "Qwen",
    "core/Mistral 3": "Mistral",
    "core/ESRGAN": "ESRGAN",
    "core/RealESRGAN compact": "ESRGAN",
    "core/SwinIR": "SwinIR",
    "core/HAT": "HAT",
    "core/DAT": "upscale model",
    "core/OmniSR": "upscale model",
    "core/SPAN": "SPAN",
    "core/GFPGAN": "GFPGAN",
    "core/RIFE": "RIFE",
    "core/FILM": "FILM",
    "core/Redux": "Redux",
}


def test_every_recorded_model_is_expected() -> None:
    assert set(strangers()) == set(WORDS)
    assert len(WORDS) >= 60


def sparse(path: Path, shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file of bf16 tensors whose data is a hole in the file."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)
    return path


@pytest.mark.parametrize("name", WORDS)
def test_models_of_others_are_named_wherever_they_are_opened(tmp_path: Path, name: str) -> None:
    path = sparse(tmp_path / "model.safetensors", strangers()[name])
    report = inspect(path)
    assert report["kind"] == "unknown"
    assert WORDS[name] in report["what"]
    assert report["instead"] in format_report(report)
    for load in (load_transformer, load_vae, load_upsampler, load_text_encoder, load_lora):
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert report["what"] in str(caught.value)
        assert str(caught.value).endswith(report["instead"])


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer/", "model."])
def test_under_any_prefix(prefix: str) -> None:
    for name, shapes in strangers().items():
        found = foreign_model({prefix + key: shape for key, shape in shapes.items()})
        assert found is not None, name
        assert WORDS[name] in found.what, name


def test_not_one_of_them_is_detected_as_ours_with_its_tensors_shuffled() -> None:
    for name, shapes in strangers().items():
        keys = sorted(shapes, reverse=True)
        assert not detect_layout(keys, shapes).parts, name


# --- ours -------------------------------------------------------------------------------------------------------------


def own_files() -> Iterator[tuple[str, dict[str, list[int]]]]:
    variants = json.loads((MANIFESTS / "variants.json").read_text(encoding="utf-8"))
    for name, entry in variants.items():
        parts = (variants[entry] if isinstance(entry, str) else entry)["parts"]
        for layout in ("single_file", "diffusers"):
            files = [json.loads((MANIFESTS / f"{part}.{layout}.json").read_text(encoding="utf-8")) for part in parts]
            yield f"{name} {layout}", {key: shape for file in files for key, shape in file.items()}
            for part, file in zip(parts, files, strict=True):
                yield f"{part} {layout}", file
    encoder = json.loads((MANIFESTS / "t5xxl.json").read_text(encoding="utf-8"))
    for layout in ("transformers", "comfyui_single_file", "gguf"):
        yield f"t5xxl {layout}", encoder[layout]


OWN = dict(own_files())


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "model/"])
def test_ours_are_never_called_foreign(name: str, prefix: str) -> None:
    shapes = {prefix + key: shape for key, shape in OWN[name].items()}
    for beside_ours in (True, False):
        assert foreign_model(shapes, beside_ours=beside_ours) is None
    if not prefix:
        layout = detect_layout(OWN[name], OWN[name])
        assert layout.parts
        assert layout.instead == ""


def test_ours_beside_a_clip_or_a_vision_encoder_count() -> None:
    ours = OWN["2b-0.9.6-dev single_file"]
    for companion in ("core/CLIP L", "core/CLIP vision", "core/Llama"):
        shapes = {**ours, **{f"text_encoders.{key}": shape for key, shape in strangers()[companion].items()}}
        assert detect_layout(shapes, shapes).kind == "checkpoint", companion


def lora(modules: Mapping[str, list[int]], style: str = "diffusion_model.", rank: int = 4) -> dict[str, list[int]]:
    """Factors for Linears. style: "kohya", or a prefix."""
    shapes: dict[str, list[int]] = {}
    for name, (rows, columns) in modules.items():
        if style == "kohya":
            start, down, up = "lora_unet_" + name.replace(".", "_"), "lora_down", "lora_up"
            shapes[f"{start}.alpha"] = []
        else:
            start, down, up = style + name, "lora_A", "lora_B"
        shapes[f"{start}.{down}.weight"], shapes[f"{start}.{up}.weight"] = [rank, columns], [rows, rank]
    return shapes


def linears(shapes: Shapes) -> dict[str, list[int]]:
    return {
        key.removesuffix(".weight").removeprefix("model.diffusion_model."): shape
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) == 2 and "embed" not in key and "norm" not in key
    }


STYLES = ["diffusion_model.", "transformer.", "", "base_model.model.", "kohya"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("part", ["transformer-2b", "transformer-13b"])
@pytest.mark.parametrize("layout", ["single_file", "diffusers"])
def test_loras_of_ours_are_ours(part: str, layout: str, style: str) -> None:
    prefix = "transformer/" if layout == "diffusers" else "model.diffusion_model."
    modules = {name.removeprefix(prefix): shape for name, shape in linears(OWN[f"{part} {layout}"]).items()}
    attention = {name: shape for name, shape in modules.items() if ".attn" in name}
    for chosen in (modules, attention):
        for metadata in ({}, {"modelspec.architecture": "ltx-video"}, {"ss_base_model_version": "ltxv-2b-0.9.8-dev"}):
            for file in ("ltxv-097-ic-lora-depth-control-comfyui.safetensors", "ltx-2b-style.safetensors", "x"):
                assert foreign_lora(lora(chosen, style), metadata, file) is None
    assert TRANSFORMER_FROM_DIFFUSERS  # both layouts' names are those of the released files


# --- LoRAs of others --------------------------------------------------------------------------------------------------

LORAS = {
    "LTX-2": ["core/LTX-2", "core/LTX-2.3", "diffusers/LTX2VideoTransformer3DModel"],
    "Wan": ["core/Wan 2.1 T2V", "core/Wan 2.1 I2V", "diffusers/WanTransformer3DModel", "core/Wan VACE"],
    "HunyuanVideo": [
        "core/HunyuanVideo",
        "diffusers/HunyuanVideoTransformer3DModel",
        "core/HunyuanVideo 1.5",
    ],
    "Flux": ["core/Flux", "diffusers/FluxTransformer2DModel"],
    "Qwen-Image": ["core/Qwen-Image", "diffusers/QwenImageTransformer2DModel"],
    "Stable Diffusion": ["core/SD1 UNet", "core/SDXL UNet", "diffusers/UNet2DConditionModel", "core/SD3"],
    "CogVideoX": ["diffusers/CogVideoXTransformer3DModel"],
    "Mochi": ["diffusers/MochiTransformer3DModel", "core/Mochi"],
    "Cosmos": ["core/Cosmos Predict 2", "core/Cosmos 1", "diffusers/CosmosTransformer3DModel"],
    "HiDream": ["core/HiDream"],
    "Chroma": ["core/Chroma"],
    "AuraFlow": ["core/AuraFlow", "diffusers/AuraFlowTransformer2DModel"],
    "Lumina": ["core/Lumina 2", "core/Z-Image"],
    "Kandinsky 5": ["core/Kandinsky 5"],
    "PixArt": ["diffusers/PixArtTransformer2DModel", "diffusers/AllegroTransformer3DModel"],
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("model", "name"), [(model, name) for model, names in LORAS.items() for name in names])
def test_loras_of_others_are_named_for_their_model(model: str, name: str, style: str) -> None:
    found = foreign_lora(lora(linears(strangers()[name]), style), {})
    assert found is not None
    assert model in found.what


@pytest.mark.parametrize(
    ("key", "value", "model"),
    [
        ("modelspec.architecture", "ltx-2.3/lora", "LTX-2"),
        ("modelspec.architecture", "ltx-video-2/lora", "LTX-2"),
        ("modelspec.architecture", "LTX2", "LTX-2"),
        ("ss_base_model_version", "ltx2", "LTX-2"),
        ("ss_base_model_version", "ltx_2.5", "LTX-2"),
        ("ss_base_model_version", "ltxv2", "LTX-2"),
        ("ss_sd_model_name", "ltx-2-19b-dev-fp8.safetensors", "LTX-2"),
        ("base_model", "Lightricks/LTX-2.3-22b-dev", "LTX-2"),
        ("ss_base_model_version", "wan2.1", "Wan"),
        ("modelspec.architecture", "wan2.2/lora", "Wan"),
        ("modelspec.architecture", "flux-1-dev/lora", "Flux"),
        ("modelspec.architecture", "hunyuan-video/lora", "HunyuanVideo"),
        ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora", "Stable Diffusion XL"),
        ("ss_base_model_version", "sd_v1", "Stable Diffusion"),
        ("base_model", "Qwen/Qwen-Image", "Qwen-Image"),
    ],
)
def test_a_lora_whose_names_are_ours_is_named_by_its_header(tmp_path: Path, key: str, value: str, model: str) -> None:
    """A LoRA of LTX-2 for its video half alone has the very names and shapes of LTX-Video 13B's."""
    shapes = lora({"transformer_blocks.0.attn1.to_q": [4096, 4096]})
    path = sparse(tmp_path / "lora.safetensors", shapes, {key: value})
    with pytest.raises(CheckpointError, match=model) as caught:
        load_lora(path)
    assert "for LTX-Video choose a LoRA" in str(caught.value)
    report = inspect(path)
    assert report["kind"] == "lora"
    assert model in report["what"]


@pytest.mark.parametrize(
    "value",
    [
        "ltx-video",
        "ltxv",
        "LTX-Video/lora",
        "ltxv-2b-0.9.5",
        "ltx-video-2b-v0.9",
        "ltxv-13b-0.9.8-dev",
        "Lightricks/LTX-Video-0.9.7-dev",
        "swan-lake",
        "",
    ],
)
def test_a_header_that_says_ours_or_nothing_known_is_ours(value: str) -> None:
    shapes = lora({"transformer_blocks.0.attn1.to_q": [4096, 4096]})
    for key in ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name", "base_model"):
        assert foreign_lora(shapes, {key: value}) is None


@pytest.mark.parametrize(
    ("file", "is_foreign"),
    [
        ("ltx-2-19b-lora-camera-control-dolly-in.safetensors", True),
        ("LTX2_style.safetensors", True),
        ("ltx-2.3-22b-ic-lora-union.safetensors", True),
        ("my-ltx-22b-lora.safetensors", True),
        ("ltxv-13b-0.9.7-distilled-lora128.safetensors", False),
        ("ltx-2b-style.safetensors", False),
        ("ltx-video-2b-lora.safetensors", False),
        ("ltxv-098-ic-lora-detailer-comfyui.safetensors", False),
        ("style.safetensors", False),
    ],
)
def test_where_tensors_and_header_leave_both_the_file_name_decides(file: str, is_foreign: bool) -> None:
    both = lora({"transformer_blocks.47.attn1.to_q": [4096, 4096]})
    of_the_2b = lora({"transformer_blocks.0.attn1.to_q": [2048, 2048]})
    found = foreign_lora(both, {}, file)
    assert (found is not None) == is_foreign
    if found is not None:
        assert "rename" in found.instead
    assert foreign_lora(both, {"modelspec.architecture": "ltx-video"}, file) is None
    assert foreign_lora(of_the_2b, {}, file) is None


# --- GGUF, and whatever names a stranger thinks of --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("core/Wan 2.1 T2V", "Wan"),
        ("core/Flux", "Flux"),
        ("core/HunyuanVideo", "HunyuanVideo"),
        ("core/LTX-2", "LTX-2"),
    ],
)
def test_in_gguf_they_are_named_too(tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "ltxv")
    for key in list(strangers()[name])[:300]:
        writer.add_tensor(key, np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(LTXKitError, match=words):
        load_transformer(path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["token_embd.weight", "blk.0.attn_q.weight"], "language model"),
        (["token_embd.weight", "blk.0.attn_q.weight", "blk.0.post_ffw_norm.weight"], "Gemma"),
        (["enc.blk.0.attn_q.weight", "enc.blk.1.attn_rel_b.weight", "token_embd.weight"], "UMT5"),
        (["v.blk.0.attn_q.weight", "v.patch_embd.weight"], "vision encoder"),
    ],
)
def test_llama_cpps_names(names: list[str], words: str) -> None:
    found = foreign_model({name: [2, 2] for name in names})
    assert found is not None
    assert words in found.what


def test_long_names_cost_little() -> None:
    """Every name is looked at once, whatever it repeats."""
    names = ["blocks.0." * 10_000, "a/" * 50_000, "." * 100_000, "0." * 100_000, "lora_unet_" + "0_" * 50_000 + ".x"]
    shapes = {name: [1] for name in names}
    assert foreign_model(shapes) is None
    assert foreign_lora(shapes, {"modelspec.architecture": "ltx" * 10_000}) is None


def test_a_model_in_shards_or_folders_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    save_file(
        {name: torch.zeros(1) for name in strangers()["diffusers/WanTransformer3DModel"]},
        folder / "diffusion_pytorch_model.safetensors",
    )
    for path in (tmp_path, folder):
        assert "Wan" in open_models(path).layout.what
