"""Models of ComfyUI's classes, for `record.py core`: run with ComfyUI's folder as the working folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Built = nn.Module | Mapping[str, torch.Tensor]


def _ops() -> Any:
    return importlib.import_module("comfy.ops").disable_weight_init


def _core(path: str, /, **values: Any) -> Callable[[], Built]:
    """A diffusion model: these take device, dtype and operations."""
    module, _, name = path.rpartition(".")

    def build() -> nn.Module:
        made = getattr(importlib.import_module(f"comfy.{module}"), name)
        return made(**values, device="meta", dtype=torch.bfloat16, operations=_ops())

    return build


def _plain(path: str, /, *args: Any, **values: Any) -> Callable[[], Built]:
    module, _, name = path.rpartition(".")
    return lambda: getattr(importlib.import_module(module), name)(*args, **values)


def _under(prefix: str, build: Callable[[], Built]) -> Callable[[], Built]:
    def prefixed() -> dict[str, torch.Tensor]:
        built = build()
        tensors = built.state_dict() if isinstance(built, nn.Module) else built
        return {prefix + key: tensor for key, tensor in tensors.items()}

    return prefixed


def _both(*builds: Callable[[], Built]) -> Callable[[], Built]:
    return lambda: {key: tensor for build in builds for key, tensor in _under("", build)().items()}  # type: ignore[union-attr]


def _unet(**values: Any) -> dict[str, Any]:
    base = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "legacy": False}
    return {**base, "use_spatial_transformer": True, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], **values}


_SD1 = _unet(
    context_dim=768,
    num_heads=8,
    transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    transformer_depth_middle=1,
)
_SDXL = _unet(
    context_dim=2048,
    num_head_channels=64,
    num_classes="sequential",
    adm_in_channels=2816,
    num_res_blocks=[2, 2, 2],
    channel_mult=[1, 2, 4],
    use_linear_in_transformer=True,
    transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
    transformer_depth_middle=10,
)
_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
_CHROMA = {
    **{key: value for key, value in _FLUX.items() if key != "guidance_embed"},
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 3072,
    "hidden_dim": 5120,
    "n_layers": 5,
}
_HUNYUAN = {
    **{key: value for key, value in _FLUX.items() if key != "txt_ids_dims"},
    "patch_size": [1, 2, 2],
    "theta": 256,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
_WAN = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 2}
_KL = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
_CLIP = {"hidden_act": "quick_gelu", "num_hidden_layers": 2, "num_attention_heads": 12}
_CLIP_L = {**_CLIP, "hidden_size": 768, "intermediate_size": 3072, "eos_token_id": 49407, "max_position_embeddings": 77}
_LTX_VAE = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "causal_decoder": False,
    "timestep_conditioning": False,
    # As diffusers has it: its single-file conversion of LTX-2 names these blocks.
    "encoder_blocks": [
        ["res_x", {"num_layers": 4}],
        ["compress_space_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_time_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 5}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x", {"num_layers": 5}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x", {"num_layers": 5}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x", {"num_layers": 5}],
    ],
}


def _engine(encoder: str, decoder: str, config: dict[str, Any]) -> Callable[[], Built]:
    return _plain(
        "comfy.ldm.models.autoencoder.AutoencodingEngine",
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": f"comfy.ldm.{encoder}", "params": config},
        decoder_config={"target": f"comfy.ldm.{decoder}", "params": config},
    )


def _kl(**values: Any) -> Callable[[], Built]:
    kernels = "modules.diffusionmodules.model"
    return _engine(f"{kernels}.Encoder", f"{kernels}.Decoder", {**_KL, **values})


def _text(path: str, config: dict[str, Any]) -> Callable[[], Built]:
    module, _, name = path.rpartition(".")

    def build() -> nn.Module:
        made = getattr(importlib.import_module(f"comfy.{module}"), name)
        return made(config, torch.bfloat16, "meta", _ops())

    return build


def models() -> Mapping[str, Callable[[], Built]]:
    """Name of the model -> what builds it."""
    sys.path.insert(0, ".")
    sys.argv = [sys.argv[0], "--cpu"]
    importlib.import_module("comfy.options").enable_args_parsing(True)
    unet = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    sd1, sdxl = _core(unet, **_SD1), _core(unet, **_SDXL)
    clip_l = _text("clip_model.CLIPTextModel", _CLIP_L)
    whole = "model.diffusion_model."
    t5 = {"vocab_size": 384, "model_type": "umt5", "d_kv": 64, "d_ff": 10240, "d_model": 4096, "num_layers": 2}
    t5 |= {"num_heads": 64, "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True}
    cosmos = {"max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16}
    cosmos |= {"patch_spatial": 2, "patch_temporal": 1, "num_blocks": 2, "use_adaln_lora": True}
    return {
        "SD1 UNet": sd1,
        "SD1 checkpoint": _both(
            _under(whole, sd1), _under("first_stage_model.", _kl()), _under("cond_stage_model.transformer.", clip_l)
        ),
        "SDXL UNet": sdxl,
        "SDXL checkpoint": _both(_under(whole, sdxl), _under("conditioner.embedders.0.transformer.", clip_l)),
        "SVD": _under(
            whole,
            _core(
                unet,
                **{**_SD1, "in_channels": 8, "use_temporal_attention": True, "use_temporal_resblock": True},
                num_classes="sequential",
                adm_in_channels=768,
                extra_ff_mix_layer=True,
                use_spatial_context=True,
                merge_strategy="learned_with_images",
                merge_factor=0.0,
                video_kernel_size=[3, 1, 1],
            ),
        ),
        "SD3": _under(
            whole,
            _core(
                "ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",
                depth=24,
                in_channels=16,
                adm_in_channels=2048,
                num_patches=36864,
                pos_embed_max_size=192,
                context_embedder_config={
                    "target": "torch.nn.Linear",
                    "params": {"in_features": 4096, "out_features": 1536},
                },
            ),
        ),
        "Stable Cascade C": _core("ldm.cascade.stage_c.StageC"),
        "Stable Cascade B": _core("ldm.cascade.stage_b.StageB"),
        "Flux": _core("ldm.flux.model.Flux", image_model="flux", **_FLUX),
        "Flux checkpoint": _under(whole, _core("ldm.flux.model.Flux", image_model="flux", **_FLUX)),
        "Flux 2": _core(
            "ldm.flux.model.Flux",
            image_model="flux2",
            **{**_FLUX, "vec_in_dim": None, "qkv_bias": False, "patch_size": 1, "in_channels": 128},
            ops_bias=False,
            global_modulation=True,
            mlp_silu_act=True,
        ),
        "Chroma": _core("ldm.chroma.model.Chroma", image_model="chroma", **_CHROMA),
        "Chroma Radiance": _core(
            "ldm.chroma_radiance.model.ChromaRadiance",
            image_model="chroma_radiance",
            **{**_CHROMA, "in_channels": 3, "out_channels": 3},
            nerf_hidden_size=64,
            nerf_mlp_ratio=4,
            nerf_depth=4,
            nerf_max_freqs=8,
            nerf_tile_size=512,
            nerf_final_head_type="conv",
            nerf_embedder_dtype=torch.float32,
            use_x0=False,
            use_sequential_txt_ids=False,
        ),
        "HunyuanVideo": _core("ldm.hunyuan_video.model.HunyuanVideo", image_model="hunyuan_video", **_HUNYUAN),
        "HunyuanVideo 1.5": _core(
            "ldm.hunyuan_video.model.HunyuanVideo",
            image_model="hunyuan_video",
            **{**_HUNYUAN, "vec_in_dim": None, "byt5": True, "use_cond_type_embedding": True, "vision_in_dim": 1152},
        ),
        "Hunyuan3D 2": _core("ldm.hunyuan3d.model.Hunyuan3Dv2"),
        "HunyuanDiT": _core("ldm.hydit.models.HunYuanDiT", depth=4),
        "Mochi": _core(
            "ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint",
            depth=2,
            num_heads=24,
            hidden_size_x=3072,
            hidden_size_y=1536,
            mlp_ratio_x=4.0,
            learn_sigma=False,
            in_channels=12,
            qk_norm=True,
            qkv_bias=False,
            use_t5=True,
        ),
        "Wan 2.1 T2V": _core("ldm.wan.model.WanModel", **_WAN),
        "Wan 2.1 I2V": _core("ldm.wan.model.WanModel", model_type="i2v", in_dim=36, **_WAN),
        "Wan VACE": _core("ldm.wan.model.VaceWanModel", vace_layers=2, vace_in_dim=96, **_WAN),
        "Wan HuMo": _core("ldm.wan.model.HumoWanModel", **_WAN),
        "PixArt Sigma": _core("ldm.pixart.pixartms.PixArtMS", depth=2, micro_condition=False),
        "PixArt Alpha": _core("ldm.pixart.pixartms.PixArtMS", depth=2),
        "Cosmos 1": _core("ldm.cosmos.model.GeneralDIT", **cosmos, pos_emb_cls="rope3d", affline_emb_norm=True),
        "Cosmos Predict 2": _core("ldm.cosmos.predict2.MiniTrainDIT", **cosmos, pos_emb_cls="rope3d"),
        "Lumina 2": _core(
            "ldm.lumina.model.NextDiT", n_layers=2, dim=2304, n_heads=24, axes_dims=[32, 32, 32], qk_norm=True
        ),
        "Z-Image": _core(
            "ldm.lumina.model.NextDiT",
            n_layers=2,
            dim=3840,
            n_heads=30,
            axes_dims=[32, 48, 48],
            qk_norm=True,
            z_image_modulation=True,
            pad_tokens_multiple=32,
        ),
        "HiDream": _core(
            "ldm.hidream.model.HiDreamImageTransformer2DModel",
            patch_size=2,
            num_layers=2,
            num_single_layers=2,
            caption_channels=[4096, 4096],
            llama_layers=[0, 1],
        ),
        "AuraFlow": _core("ldm.aura.mmdit.MMDiT", n_layers=6),
        "ACE-Step": _core("ldm.ace.model.ACEStepTransformer2DModel", num_layers=2),
        "Kandinsky 5": _core("ldm.kandinsky5.model.Kandinsky5", num_visual_blocks=2),
        "Qwen-Image": _core("ldm.qwen_image.model.QwenImageTransformer2DModel", num_layers=2),
        "OmniGen 2": _core("ldm.omnigen.omnigen2.OmniGen2Transformer2DModel", num_layers=2),
        "CogVideoX": _core("ldm.cogvideo.model.CogVideoXTransformer3DModel", num_layers=2),
        "Stable Audio": _core("ldm.audio.dit.AudioDiffusionTransformer", depth=2),
        "SeedVR2": _core("ldm.seedvr.model.NaDiT", norm_eps=1e-5, num_layers=12, mlp_type="swiglu"),
        "LTX-2": _core("ldm.lightricks.av_model.LTXAVModel", num_layers=2, audio_in_channels=128),
        "LTX-2 checkpoint": _both(
            _under(whole, _core("ldm.lightricks.av_model.LTXAVModel", num_layers=2)),
            _under("vae.", _plain("comfy.ldm.lightricks.vae.causal_video_autoencoder.VideoVAE", config=_LTX_VAE)),
        ),
        "LTX-2.3": _core(
            "ldm.lightricks.av_model.LTXAVModel",
            num_layers=2,
            apply_gated_attention=True,
            caption_proj_before_connector=True,
            cross_attention_adaln=True,
        ),
        "LTX-2 video VAE": _plain("comfy.ldm.lightricks.vae.causal_video_autoencoder.VideoVAE", config=_LTX_VAE),
        "LTX-2.5 diffusion decoder": _plain("comfy.ldm.lightricks.vae.na_diffusion_decoder.NADiffusionDecoder"),
        "LTX-2 connector": _under(
            "video_embeddings_connector.",
            _core("ldm.lightricks.embeddings_connector.Embeddings1DConnector"),
        ),
        "LTX-2 duration head": _plain("comfy.ldm.lightricks.duration_head.DurationHead"),
        "LTX-2.3 upscaler x1.5": lambda: importlib.import_module(
            "comfy.ldm.lightricks.latent_upsampler"
        ).LatentUpsampler(_ops(), spatial_scale=1.5, rational_resampler=True),
        "Wan 2.1 VAE": _plain("comfy.ldm.wan.vae.WanVAE", dim=96, z_dim=16),
        "Wan 2.2 VAE": _plain("comfy.ldm.wan.vae2_2.WanVAE", z_dim=48),
        "Mochi VAE": _plain("comfy.ldm.genmo.vae.model.VideoVAE"),
        "CogVideoX VAE": _plain("comfy.ldm.cogvideo.vae.AutoencoderKLCogVideoX"),
        "SD VAE": _kl(),
        "Flux VAE": _kl(z_channels=16),
        "HunyuanVideo VAE": _kl(
            z_channels=16,
            ch_mult=[1, 2, 4, 4],
            conv3d=True,
            time_compress=4,
        ),
        "HunyuanImage VAE": _engine(
            "hunyuan_video.vae.Encoder",
            "hunyuan_video.vae.Decoder",
            {
                "block_out_channels": [128, 256, 512, 512, 1024, 1024],
                "in_channels": 3,
                "out_channels": 3,
                "num_res_blocks": 2,
                "ffactor_spatial": 32,
                "z_channels": 64,
            },
        ),
        "HunyuanVideo 1.5 VAE": _engine(
            "hunyuan_video.vae_refiner.Encoder",
            "hunyuan_video.vae_refiner.Decoder",
            {
                "block_out_channels": [128, 256, 512, 1024, 1024],
                "in_channels": 3,
                "out_channels": 3,
                "num_res_blocks": 2,
                "ffactor_spatial": 16,
                "ffactor_temporal": 4,
                "refiner_vae": False,
                "z_channels": 32,
            },
        ),
        "Cosmos VAE": _plain(
            "comfy.ldm.cosmos.vae.CausalContinuousVideoTokenizer",
            z_channels=16,
            z_factor=1,
            latent_channels=16,
            num_groups=1,
            resolution=1024,
            in_channels=3,
            out_channels=3,
            channels=128,
            channels_mult=[2, 4, 4],
            num_res_blocks=2,
            attn_resolutions=[32],
            dropout=0.0,
            patch_size=4,
            patch_method="haar",
            spatial_compression=8,
            temporal_compression=8,
        ),
        "TAESD": _plain("comfy.taesd.taesd.TAESD"),
        "TAESD decoder": lambda: importlib.import_module("comfy.taesd.taesd").Decoder(4),
        "TAEHV": _plain("comfy.taesd.taehv.TAEHV", 16),
        "taeltx": _plain("comfy.taesd.taehv.TAEHV", 128),
        "ControlNet SD1": _plain(
            "comfy.cldm.cldm.ControlNet",
            **{key: value for key, value in _SD1.items() if key not in ("out_channels", "transformer_depth_output")},
            hint_channels=3,
        ),
        "CLIP L": clip_l,
        "CLIP vision": lambda: importlib.import_module("comfy.clip_model").CLIPVisionModelProjection(
            {
                **_CLIP_L,
                "model_type": "clip_vision_model",
                "image_size": 224,
                "patch_size": 14,
                "num_channels": 3,
                "projection_dim": 768,
            },
            torch.bfloat16,
            "meta",
            _ops(),
        ),
        "UMT5": _text("text_encoders.t5.T5", {**t5, "vocab_size": 256384}),
        "ByT5": _text("text_encoders.t5.T5", {**t5, "vocab_size": 1510, "d_model": 1472, "model_type": "t5"}),
        "Gemma 3 12B": _text("text_encoders.llama.Gemma3_12B", {"num_hidden_layers": 2}),
        "Llama": _text("text_encoders.llama.Llama2", {"num_hidden_layers": 2}),
        "Qwen 2.5 VL": _text("text_encoders.llama.Qwen25_7BVLI", {"num_hidden_layers": 2}),
        "Qwen 3 4B": _text("text_encoders.llama.Qwen3_4B", {"num_hidden_layers": 2}),
        "Mistral 3": _text("text_encoders.llama.Mistral3Small24B", {"num_hidden_layers": 2}),
        "ESRGAN": _plain("spandrel.architectures.ESRGAN.ESRGAN", num_blocks=2),
        "RealESRGAN compact": _plain("spandrel.architectures.Compact.Compact"),
        "SwinIR": _plain("spandrel.architectures.SwinIR.SwinIR", img_size=64, window_size=8),
        "HAT": _plain("spandrel.architectures.HAT.HAT"),
        "DAT": _plain("spandrel.architectures.DAT.DAT"),
        "OmniSR": _plain("spandrel.architectures.OmniSR.OmniSR"),
        "SPAN": _plain("spandrel.architectures.SPAN.SPAN", num_in_ch=3, num_out_ch=3),
        "GFPGAN": _plain("spandrel.architectures.GFPGAN.GFPGAN"),
        "RIFE": _plain("comfy_extras.frame_interpolation_models.ifnet.IFNet"),
        "FILM": _plain("comfy_extras.frame_interpolation_models.film_net.FILMNet"),
        "Redux": lambda: importlib.import_module("comfy.ldm.flux.redux").ReduxImageEncoder(),
    }
