"""Record names and shapes of other models' tensors, from diffusers and transformers or from ComfyUI. See README.md."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).parent
REPEATS = 1  # of each layer of a list; the others have the same names
TELLING = "encoder.block."  # of T5s, whose second layer tells them apart

Build = Callable[[], nn.Module | Mapping[str, torch.Tensor]]


def reduced(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """Shapes by name, of the first layers of every list."""
    seen: Counter[str] = Counter()
    kept: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "#", name)
        seen[pattern] += 1
        if seen[pattern] <= REPEATS + name.startswith(TELLING):
            kept[name] = list(tensor.shape)
    return kept


def built(build: Build) -> nn.Module | Mapping[str, torch.Tensor]:
    """On meta, or with memory where the class computes with its tensors."""
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, NotImplementedError):
        return build()


def from_diffusers() -> Iterator[tuple[str, Build]]:
    import diffusers

    # Defaults where the class has them, else what it cannot be built without.
    arguments: dict[str, dict[str, Any]] = {
        "AutoencoderKLHunyuanImage": {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 64,
            "block_out_channels": (128, 256, 512, 512, 1024, 1024),
            "layers_per_block": 2,
            "spatial_compression_ratio": 32,
            "sample_size": 384,
        },
        "HiDreamImageTransformer2DModel": {
            "patch_size": 2,
            "caption_channels": [4096, 4096],
            "llama_layers": [0, 1],
        },
        "HunyuanDiT2DModel": {"patch_size": 2, "in_channels": 4, "hidden_size": 1408, "cross_attention_dim": 1024},
        "LatteTransformer3DModel": {
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "cross_attention_dim": 1152,
            "sample_size": 64,
            "patch_size": 2,
            "norm_type": "ada_norm_single",
            "caption_channels": 4096,
        },
        "LuminaNextDiT2DModel": {"num_kv_heads": 8},
        "OmniGenTransformer2DModel": {"rope_scaling": {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48}},
    }
    classes = [
        "AceStepTransformer1DModel",
        "AllegroTransformer3DModel",
        "AnyFlowTransformer3DModel",
        "AuraFlowTransformer2DModel",
        "BriaFiboTransformer2DModel",
        "BriaTransformer2DModel",
        "ChromaTransformer2DModel",
        "ChronoEditTransformer3DModel",
        "CogVideoXTransformer3DModel",
        "CogView3PlusTransformer2DModel",
        "CogView4Transformer2DModel",
        "ConsisIDTransformer3DModel",
        "CosmosTransformer3DModel",
        "DiTTransformer2DModel",
        "ErnieImageTransformer2DModel",
        "Flux2Transformer2DModel",
        "FluxTransformer2DModel",
        "GlmImageTransformer2DModel",
        "HeliosTransformer3DModel",
        "HiDreamImageTransformer2DModel",
        "HunyuanDiT2DModel",
        "HunyuanImageTransformer2DModel",
        "HunyuanVideo15Transformer3DModel",
        "HunyuanVideoFramepackTransformer3DModel",
        "HunyuanVideoTransformer3DModel",
        "Ideogram4Transformer2DModel",
        "JoyImageEditTransformer3DModel",
        "Kandinsky3UNet",
        "Kandinsky5Transformer3DModel",
        "Krea2Transformer2DModel",
        "LTX2VideoTransformer3DModel",
        "LatteTransformer3DModel",
        "LongCatImageTransformer2DModel",
        "Lumina2Transformer2DModel",
        "LuminaNextDiT2DModel",
        "MiniMaxH3Transformer3DModel",
        "MiniMaxMusic3Transformer1DModel",
        "MochiTransformer3DModel",
        "MotifVideoTransformer3DModel",
        "NucleusMoEImageTransformer2DModel",
        "OmniGenTransformer2DModel",
        "OvisImageTransformer2DModel",
        "PRXTransformer2DModel",
        "PixArtTransformer2DModel",
        "QwenImageTransformer2DModel",
        "SD3Transformer2DModel",
        "SanaTransformer2DModel",
        "SanaVideoTransformer3DModel",
        "SanaWMTransformer3DModel",
        "SkyReelsV2Transformer3DModel",
        "StableAudioDiTModel",
        "StableCascadeUNet",
        "UNet2DConditionModel",
        "UNet3DConditionModel",
        "UNetMotionModel",
        "UNetSpatioTemporalConditionModel",
        "I2VGenXLUNet",
        "WanAnimateTransformer3DModel",
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
        "ZImageTransformer2DModel",
        "AutoencoderDC",
        "AutoencoderKL",
        "AutoencoderKLAllegro",
        "AutoencoderKLCogVideoX",
        "AutoencoderKLCosmos",
        "AutoencoderKLFlux2",
        "AutoencoderKLHunyuanImage",
        "AutoencoderKLHunyuanImageRefiner",
        "AutoencoderKLHunyuanVideo",
        "AutoencoderKLHunyuanVideo15",
        "AutoencoderKLKVAE",
        "AutoencoderKLKVAEVideo",
        "AutoencoderKLLTX2Audio",
        "AutoencoderKLLTX2Video",
        "AutoencoderKLMagvit",
        "AutoencoderKLMiniMaxH3",
        "AutoencoderKLMochi",
        "AutoencoderKLQwenImage",
        "AutoencoderKLTemporalDecoder",
        "AutoencoderKLWan",
        "AutoencoderOobleck",
        "AutoencoderTiny",
        "AutoencoderVidTok",
        "VQModel",
        "LTX2VideoDiffusionDecoderModel",
        "ControlNetModel",
        "CosmosControlNetModel",
        "FluxControlNetModel",
        "QwenImageControlNetModel",
        "SD3ControlNetModel",
        "SanaControlNetModel",
        "SparseControlNetModel",
        "UNetControlNetXSModel",
        "MotionAdapter",
        "T2IAdapter",
        "PriorTransformer",
        "UVit2DModel",
    ]
    for name in classes:
        yield f"diffusers/{name}", lambda name=name: getattr(diffusers, name)(**arguments.get(name, {}))
    from diffusers.pipelines import ltx2

    for name in ("LTX2TextConnectors", "LTX2Vocoder", "LTX2VocoderWithBWE", "LTX2LatentUpsamplerModel"):
        if hasattr(ltx2, name):
            yield f"diffusers/{name}", getattr(ltx2, name)


def from_transformers() -> Iterator[tuple[str, Build]]:
    import transformers

    def text(model: str, config: str, **values: Any) -> Build:
        return lambda: getattr(transformers, model)(getattr(transformers, config)(**values))

    xxl = {"d_model": 4096, "d_ff": 10240, "num_layers": 2, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
    byt5 = {"d_model": 1472, "d_ff": 3584, "num_layers": 2, "num_heads": 6, "feed_forward_proj": "gated-gelu"}
    for name, build in {
        "UMT5EncoderModel": text("UMT5EncoderModel", "UMT5Config", vocab_size=256384, **xxl),
        "MT5EncoderModel": text("MT5EncoderModel", "MT5Config", vocab_size=250112, **xxl),
        "ByT5": text("T5EncoderModel", "T5Config", vocab_size=384, **byt5),
        "GlyphByT5": text("T5EncoderModel", "T5Config", vocab_size=1510, **byt5),
        "CLIPTextModel": text("CLIPTextModel", "CLIPTextConfig"),
        "CLIPTextModelWithProjection": text("CLIPTextModelWithProjection", "CLIPTextConfig"),
        "CLIPModel": text("CLIPModel", "CLIPConfig"),
        "CLIPVisionModelWithProjection": text("CLIPVisionModelWithProjection", "CLIPVisionConfig"),
        "SiglipVisionModel": text("SiglipVisionModel", "SiglipVisionConfig"),
        "SiglipModel": text("SiglipModel", "SiglipConfig"),
        "Dinov2Model": text("Dinov2Model", "Dinov2Config"),
        "BertModel": text("BertModel", "BertConfig"),
        "GPT2LMHeadModel": text("GPT2LMHeadModel", "GPT2Config"),
        "Gemma2ForCausalLM": text("Gemma2ForCausalLM", "Gemma2Config"),
        "Gemma3ForCausalLM": text("Gemma3ForCausalLM", "Gemma3TextConfig"),
        "Gemma3ForConditionalGeneration": text("Gemma3ForConditionalGeneration", "Gemma3Config"),
        "LlamaForCausalLM": text("LlamaForCausalLM", "LlamaConfig"),
        "MistralForCausalLM": text("MistralForCausalLM", "MistralConfig"),
        "Qwen2ForCausalLM": text("Qwen2ForCausalLM", "Qwen2Config"),
        "Qwen3ForCausalLM": text("Qwen3ForCausalLM", "Qwen3Config"),
        "Qwen2_5_VLForConditionalGeneration": text("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig"),
        "GptOssForCausalLM": text("GptOssForCausalLM", "GptOssConfig", num_hidden_layers=2, num_local_experts=2),
        "Wav2Vec2Model": text("Wav2Vec2Model", "Wav2Vec2Config"),
        "WhisperModel": text("WhisperModel", "WhisperConfig"),
        "LlavaForConditionalGeneration": text("LlavaForConditionalGeneration", "LlavaConfig"),
        "DepthAnythingForDepthEstimation": text("DepthAnythingForDepthEstimation", "DepthAnythingConfig"),
    }.items():
        yield f"transformers/{name}", build


def from_core() -> Iterator[tuple[str, Build]]:
    from core_models import models

    for name, build in models().items():
        yield f"core/{name}", build


SOURCES = {"diffusers": from_diffusers, "transformers": from_transformers, "core": from_core}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", choices=SOURCES)
    source = parser.parse_args().source
    recorded: dict[str, dict[str, list[int]]] = {}
    for name, build in SOURCES[source]():
        model = built(build)
        recorded[name] = reduced(model.state_dict() if isinstance(model, nn.Module) else model)
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(shapes, separators=(',', ':'))}" for name, shapes in recorded.items()
    )
    (HERE / f"{source}.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    sys.stdout.write(f"{len(recorded)} models in {source}.json\n")


if __name__ == "__main__":
    main()
