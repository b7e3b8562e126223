"""The table of other models whose files end up beside ours: their signs, their names, what to use instead.

A row has alternatives, separated by semicolons; an alternative lists signs that must all be there:

- `blocks.{}.self_attn.q`: a path inside some key, whole segments, wherever it starts and however the key goes on. `{}`
  stands for any number. Segments are what dots and slashes separate; in Kohya's LoRA names, underscores.
- `shared.weight@0=256384|250112`: such a path whose tensor has one of these sizes on an axis (of a LoRA's target: the
  width that its first factor reads).
- `!decoder.time_embedder`: no key with this path.
- `=double_blocks.{}.img_attn_qkv`: not in Kohya's names, where another model's path looks the same.

The first row that matches wins, so specific rows come first. `foreign` looks them up.

Sources: the classes of huggingface/diffusers and huggingface/transformers, Comfy-Org/ComfyUI comfy/model_detection.py,
comfy/sd.py and comfy/lora.py, kohya-ss/sd-scripts and musubi-tuner (names of LoRA tensors and of header entries).
`tests/parity/foreign` holds the names that their classes have.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Foreign:
    """A model of others.

    what: in words, with its article. instead: what to do, as the end of a message. signs: alternatives, see above.
    """

    what: str
    instead: str
    signs: str


# --- what to use instead ----------------------------------------------------------------------------------------------

_OWN_FILES = "for LTX-Video choose a file such as ltxv-2b-0.9.8-distilled.safetensors"
_LTX2 = f"use it with the LTX-2 nodes of ComfyUI; {_OWN_FILES}"
_OTHER = f"use it with the nodes for that model; {_OWN_FILES}"
_VAE = "use it with the nodes for that model; LTX-Video's VAE is in its checkpoint, or in its repository's vae folder"
_TEXT = "LTX-Video reads T5 v1.1 XXL: choose a file such as t5xxl_fp16.safetensors"
_CONTROL = "LTX-Video is controlled by IC-LoRAs, which Load LoRA takes"
_UPSCALER = (
    "use it with Load Upscale Model of ComfyUI; for latents choose a file such as "
    "ltxv-spatial-upscaler-0.9.8.safetensors"
)
_LORA = "use it with that model; for LTX-Video choose a LoRA that was trained for its 2B or 13B model"

# --- whole models -----------------------------------------------------------------------------------------------------

MODELS: tuple[Foreign, ...] = (
    Foreign(
        "an LTX-2 checkpoint (audio and video: LTX-2, 2.3 or 2.5), which is another model",
        _LTX2,
        "audio_patchify_proj; audio_adaln_single; av_ca_a2v_gate_adaln_single; transformer_blocks.{}.audio_attn1; "
        "transformer_blocks.{}.audio_to_video_attn; transformer_blocks.{}.attn1.to_gate_logits "
        "transformer_blocks.{}.attn2; transformer_blocks.{}.prompt_scale_shift_table; prompt_adaln_single; "
        "audio_proj_in audio_time_embed; audio_proj_in av_cross_attn_video_a2v_gate; keyframes_abs_pos_embedding; "
        "patchify_proj caption_projection.linear_1.weight@1=3840; proj_in time_embed "
        "caption_projection.linear_1.weight@1=3840; patchify_proj video_embeddings_connector",
    ),
    Foreign(
        "the audio VAE of LTX-2",
        _LTX2,
        "audio_vae.encoder; audio_vae.decoder; audio_vae.per_channel_statistics; decoder.up.{}.upsample.conv.conv "
        "decoder.mid.block_1.conv1.conv !decoder.mid.block_1.norm1 !decoder.mid.attn_1.q",
    ),
    Foreign(
        "the vocoder of LTX-2 (it makes sound)",
        _LTX2,
        "vocoder.resblocks; vocoder.vocoder; vocoder.resnets.{}.convs1; bwe_generator; upsamplers.{} "
        "resnets.{}.convs1.{} conv_in conv_out !time_embedding; ups.{} resblocks.{}.convs1.{} conv_pre conv_post",
    ),
    Foreign(
        "the text projection or connector of LTX-2",
        _LTX2,
        "text_embedding_projection !model.layers; video_embeddings_connector !model.layers; "
        "audio_embeddings_connector !model.layers; video_connector.learnable_registers; "
        "audio_connector.learnable_registers; transformer_1d_blocks.{} learnable_registers; text_proj_in "
        "video_connector; aggregate_embed !model.layers; video_aggregate_embed !model.layers",
    ),
    Foreign("the duration predictor of LTX-2", _LTX2, "video_modality_emb audio_modality_emb"),
    Foreign(
        "the diffusion decoder of LTX-2.5",
        _LTX2,
        "det_stages.{} diff_blocks.{}; conv_in_x_t diff_blocks; decoder.conv_in_x_t",
    ),
    Foreign(
        "the video VAE of LTX-2",
        _LTX2,
        "encoder.conv_in.conv.weight@1=48 decoder.conv_in.conv.weight@0=1024 decoder.conv_in.conv.weight@1=128 "
        "decoder.conv_out.conv.weight@1=128 encoder.down_blocks.1.conv.conv !decoder.last_time_embedder "
        "!decoder.time_embedder; encoder.conv_in.conv.weight@1=48 decoder.conv_in.conv.weight@0=1024 "
        "decoder.conv_in.conv.weight@1=128 decoder.conv_out.conv.weight@1=128 "
        "encoder.down_blocks.0.downsamplers.0.conv.conv !decoder.last_time_embedder !decoder.time_embedder",
    ),
    Foreign(
        "a latent upscaler of LTX-2",
        _LTX2,
        "initial_conv.weight@0=1024 initial_conv.weight@1=128 post_upsample_res_blocks; upsampler.blur_down "
        "post_upsample_res_blocks",
    ),
    Foreign(
        "a ControlNet",
        _CONTROL,
        "control_model; controlnet_cond_embedding; controlnet_blocks; controlnet_down_blocks; controlnet_x_embedder; "
        "controlnet_mode_embedder; zero_convs; input_hint_block; control_blocks; control_layers; "
        "control_all_x_embedder; control_img_in; pos_embed_input controlnet_blocks; adapter.body.{}.resnets; "
        "body.{}.block1 body.{}.block2 conv_in !encoder",
    ),
    Foreign(
        "an IP-Adapter",
        _CONTROL,
        "ip_adapter.{}; ip_adapter.ip_layers; ip_adapter_proj_model; ip_adapter_double_blocks; image_proj.proj; "
        "image_proj.latents; image_proj.perceiver_resampler; pulid_encoder; pulid_ca",
    ),
    Foreign("a style model for Flux (Redux)", _OTHER, "redux_up redux_down"),
    Foreign("a motion module of AnimateDiff", _OTHER, "motion_modules !conv_in; temporal_transformer.norm !conv_in"),
    Foreign("a GLIGEN module", _OTHER, "position_net; fuser.linear"),
    Foreign(
        "a Stable Video Diffusion checkpoint",
        _OTHER,
        "input_blocks.{}.{}.time_stack; input_blocks.{}.{}.time_mixer; down_blocks.{}.resnets.{}.spatial_res_block",
    ),
    Foreign(
        "a Stable Diffusion XL checkpoint",
        _OTHER,
        "conditioner.embedders; label_emb.0.0; add_embedding.linear_1 down_blocks.{}.resnets.{}.time_emb_proj",
    ),
    Foreign("a Kandinsky 3 checkpoint", _OTHER, "add_time_condition; down_blocks.{}.resnets_in"),
    Foreign("the VAE of Allegro", _VAE, "encoder.temp_conv_in; decoder.temp_conv_in"),
    Foreign(
        "a text-to-video UNet (ModelScope, I2VGen-XL, AnimateDiff)",
        _OTHER,
        "down_blocks.{}.temp_convs; down_blocks.{}.motion_modules conv_in; image_latents_proj_in; transformer_in",
    ),
    Foreign(
        "a Stable Diffusion 1.x or 2.x checkpoint",
        _OTHER,
        "input_blocks.0.0; input_blocks.{}.{}.in_layers; cond_stage_model.transformer.text_model",
    ),
    Foreign(
        "a Stable Diffusion UNet (diffusers)",
        _OTHER,
        "down_blocks.{}.resnets.{}.time_emb_proj; time_embedding down_blocks.{}.resnets conv_norm_out",
    ),
    Foreign(
        "a Stable Diffusion 3 checkpoint",
        _OTHER,
        "joint_blocks.{}; pos_embed.pos_embed time_text_embed.timestep_embedder transformer_blocks.{}.norm1_context",
    ),
    Foreign(
        "a Stable Cascade checkpoint",
        _OTHER,
        "clip_txt_pooled_mapper; clip_txt_mapper; effnet_mapper; down_blocks.{}.{}.channelwise clf",
    ),
    Foreign("a Chroma checkpoint", _OTHER, "distilled_guidance_layer; nerf_blocks"),
    Foreign("a Hunyuan3D checkpoint", _OTHER, "latent_in cond_in double_blocks; geo_decoder.cross_attn_decoder"),
    Foreign(
        "a HunyuanVideo checkpoint",
        _OTHER,
        "txt_in.individual_token_refiner; double_blocks.{}.img_attn_qkv; context_embedder.token_refiner; "
        "cond_type_embed context_embedder_2; image_embedder.norm_in context_embedder_2",
    ),
    Foreign("a HunyuanDiT checkpoint", _OTHER, "mlp_t5.{} pooler; text_embedding_padding time_extra_emb"),
    Foreign(
        "a JoyImage checkpoint", _OTHER, "double_blocks.{}.attn.img_attn_qkv; double_blocks.{}.img_mod.modulate_table"
    ),
    Foreign(
        "a Flux 2 checkpoint",
        _OTHER,
        "double_stream_modulation_img; double_stream_modulation_txt single_stream_modulation",
    ),
    Foreign(
        "an Ovis or LongCat image checkpoint",
        _OTHER,
        "double_blocks.{}.img_mlp.gate_proj; timestep_embedder.linear_1 context_embedder_norm",
    ),
    Foreign(
        "a Nucleus image checkpoint",
        _OTHER,
        "transformer_blocks.{}.img_mlp.experts; transformer_blocks.{}.img_mlp.gate",
    ),
    Foreign(
        "a Qwen-Image checkpoint",
        _OTHER,
        "transformer_blocks.{}.img_mlp.net transformer_blocks.{}.txt_mlp; transformer_blocks.{}.img_mod; txt_norm "
        "txt_in img_in !double_blocks",
    ),
    Foreign("a Motif-Video checkpoint", _OTHER, "x_embedder.proj context_embedder.linear_1 single_transformer_blocks"),
    Foreign(
        "a Flux checkpoint",
        _OTHER,
        "double_blocks.{}.img_attn; single_blocks.{}.linear1; time_text_embed transformer_blocks.{}.attn.add_q_proj "
        "single_transformer_blocks.{}.proj_mlp",
    ),
    Foreign(
        "a Bria or LongCat image checkpoint",
        _OTHER,
        "time_embed.timestep_embedder single_transformer_blocks.{}.proj_mlp",
    ),
    Foreign("an AuraFlow checkpoint", _OTHER, "joint_transformer_blocks; double_layers.{}.mlpC; double_layers.{}.attn"),
    Foreign("a Mochi checkpoint", _OTHER, "t5_yproj; blocks.{}.mod_x blocks.{}.mod_y; pos_frequencies"),
    Foreign(
        "a variant of Wan (VACE, HuMo, Animate)",
        _OTHER,
        "vace_blocks; vace_patch_embedding; audio_proj.audio_proj_glob_1; face_adapter pose_patch_embedding",
    ),
    Foreign(
        "a MiniMax checkpoint",
        _OTHER,
        "video_patch_proj audio_patch_proj; proj_in audio_proj_in token_refiner; time_proj preprocess_conv "
        "transformer_blocks proj_in postprocess_conv !cross_attention_proj",
    ),
    Foreign("a Cosmos Predict 2 checkpoint", _OTHER, "blocks.{}.self_attn.q_proj blocks.{}.adaln_modulation_self_attn"),
    Foreign(
        "a Cosmos checkpoint",
        _OTHER,
        "blocks.block0.blocks; learnable_pos_embed patch_embed; transformer_blocks.{}.norm1.linear_1 "
        "transformer_blocks.{}.norm2.linear_1 patch_embed; x_embedder.proj.{} t_embedder.{}.linear_1",
    ),
    Foreign("a Helios checkpoint", _OTHER, "patch_short patch_mid patch_long"),
    Foreign(
        "a Wan checkpoint (or SkyReels-V2, which is built like it)",
        _OTHER,
        "blocks.{}.self_attn.q; blocks.{}.self_attn.norm_q; condition_embedder.time_embedder "
        "blocks.{}.attn1.to_q; condition_embedder.text_embedder blocks.{}.attn2.to_k; patch_embedding "
        "text_embedding.{} time_projection.{}",
    ),
    Foreign(
        "a CogVideoX or CogView checkpoint",
        _OTHER,
        "patch_embed.text_proj; transformer_blocks.{}.norm1.linear transformer_blocks.{}.norm2.linear "
        "!transformer_blocks.{}.norm2_context; blocks.{}.norm1.linear blocks.{}.norm2.linear; "
        "time_embedding_linear_1 patch_embed",
    ),
    Foreign("a GLM-Image checkpoint", _OTHER, "glyph_projector prior_projector"),
    Foreign("a Kandinsky 5 checkpoint", _OTHER, "visual_transformer_blocks; text_transformer_blocks visual_embeddings"),
    Foreign("a HiDream checkpoint", _OTHER, "double_stream_blocks; single_stream_blocks p_embedder"),
    Foreign("a Z-Image checkpoint", _OTHER, "cap_pad_token x_pad_token noise_refiner; all_x_embedder all_final_layer"),
    Foreign(
        "an OmniGen checkpoint",
        _OTHER,
        "patch_embedding.input_image_proj; ref_image_patch_embedder; input_image_patch_embedder; output_image_embedder",
    ),
    Foreign(
        "a Lumina checkpoint",
        _OTHER,
        "noise_refiner context_refiner; cap_embedder.{} layers.{}.attention; time_caption_embed layers.{}",
    ),
    Foreign(
        "a Sana checkpoint",
        _OTHER,
        "transformer_blocks.{}.ff.conv_inverted; blocks.{}.mlp.inverted_conv; caption_norm transformer_blocks; "
        "attention_y_norm y_embedder.y_proj",
    ),
    Foreign("a Latte checkpoint", _OTHER, "temporal_transformer_blocks pos_embed.proj"),
    Foreign("a StepVideo checkpoint", _OTHER, "transformer_blocks.{}.attn1.wqkv; caption_norm.weight clip_projection"),
    Foreign(
        "an Open-Sora checkpoint",
        _OTHER,
        "spatial_blocks.{}.attn temporal_blocks.{}.attn; y_embedder spatial_blocks.{}",
    ),
    Foreign(
        "a PixArt checkpoint",
        _OTHER,
        "t_block.{} y_embedder.y_embedding; pos_embed.proj.weight@0=1152 adaln_single; csize_embedder ar_embedder",
    ),
    Foreign(
        "an Allegro checkpoint", _OTHER, "pos_embed.proj adaln_single caption_projection transformer_blocks.{}.attn1"
    ),
    Foreign("a DiT image checkpoint", _OTHER, "pos_embed.proj transformer_blocks.{}.norm1.emb; proj_out_1 proj_out_2"),
    Foreign(
        "an EasyAnimate checkpoint",
        _OTHER,
        "text_proj_t5 transformer_blocks; text_proj proj transformer_blocks.{}.attn2.add_q_proj",
    ),
    Foreign("a SeedVR2 checkpoint", _OTHER, "vid_in.proj vid_out; blocks.{}.attn.proj_qkv.vid; blocks.{}.mlp.vid"),
    Foreign(
        "an ACE-Step music checkpoint",
        _OTHER,
        "lyric_encoder; genre_embedder; proj_in_conv proj_out_conv time_embed_r; encoder.lyric_encoder",
    ),
    Foreign(
        "a Stable Audio checkpoint",
        _OTHER,
        "preprocess_conv postprocess_conv; to_cond_embed transformer.layers; timestep_features to_timestep_embed",
    ),
    Foreign("a Krea 2 checkpoint", _OTHER, "txtfusion; text_fusion.layerwise_blocks; text_fusion txt_in"),
    Foreign("an Ideogram checkpoint", _OTHER, "embed_image_indicator; llm_cond_proj"),
    Foreign("an ERNIE-Image checkpoint", _OTHER, "layers.{}.adaLN_sa_ln; layers.{}.mlp.linear_fc2 x_embedder"),
    Foreign(
        "a PRX image checkpoint",
        _OTHER,
        "blocks.{}.img_qkv_proj; blocks.{}.attention.img_qkv_proj; blocks.{}.txt_kv_proj",
    ),
    Foreign(
        "a prior or masked image model (unCLIP, Amused)",
        _OTHER,
        "prd_embedding; proj_to_clip_embeddings; project_to_hidden project_from_hidden",
    ),
    Foreign(
        "a tiny VAE for previews (TAESD, TAEHV, taeltx)",
        _VAE,
        "taesd_decoder; taesd_encoder; encoder.layers.{}.conv.{} decoder.layers; decoder.layers.{}.conv.{} "
        "!encoder.layers.{}.layers; decoder.22 decoder.1; decoder.{}.conv.{} encoder.{}.conv.{} !decoder.conv_in; "
        "3.conv.{} 4.conv.{}",
    ),
    Foreign("the VAE of Stable Cascade", _VAE, "vquantizer; backbone.1.0.block; blocks.11.num_batches_tracked"),
    Foreign(
        "the VAE of CogVideoX",
        _VAE,
        "decoder.mid_block.resnets.0.norm1.norm_layer; decoder.mid_block.resnets.0.norm1.conv_y",
    ),
    Foreign(
        "the VAE of Mochi",
        _VAE,
        "decoder.block_in.resnets; encoder.block_in.resnets; decoder.blocks.{}.{}.stack; blocks.{}.blocks.{}.stack; "
        "layers.{}.layers.{}.attn_block; encoder.layers.{}.layers.{}.attn_block; decoder.blocks.{}.{}.weight "
        "encoder.layers",
    ),
    Foreign(
        "the VAE of Wan or Qwen-Image",
        _VAE,
        "decoder.middle.0.residual; encoder.middle.0.residual; decoder.mid_block.attentions.{}.to_qkv "
        "decoder.mid_block.resnets.{}.norm1.gamma; decoder.upsamples.{}",
    ),
    Foreign("a VidTok video VAE", _VAE, "encoder.down_temporal; decoder.up_temporal"),
    Foreign(
        "the VAE of HunyuanVideo or HunyuanImage",
        _VAE,
        "decoder.mid_block.attentions.{}.group_norm decoder.conv_in.conv; decoder.mid.block_1.conv1.conv "
        "decoder.mid.attn_1.q decoder.conv_in; decoder.mid_block.resnets.{}.norm1.gamma; "
        "decoder.mid_block.attentions.{}.to_q decoder.conv_in.conv; decoder.conv_in.weight@1=64|32 "
        "decoder.mid.block_1; decoder.conv_in.weight@1=64 decoder.mid_block",
    ),
    Foreign("the VAE of Cosmos", _VAE, "decoder.unpatcher3d; decoder.conv_in.{}.conv3d; decoder.conv_in.conv_s"),
    Foreign(
        "the VAE of Stable Video Diffusion",
        _VAE,
        "decoder.mid.block_1.mix_factor; decoder.mid_block.resnets.{}.spatial_res_block; decoder.time_conv_out",
    ),
    Foreign("the VAE of SeedVR2", _VAE, "decoder.up_blocks.{}.upsamplers.{}.upscale_conv"),
    Foreign(
        "an audio VAE or codec",
        _VAE,
        "encoder.block.{}.res_unit1; decoder.block.{}.res_unit1; decoder.layers.{}.layers.{}.beta; "
        "decoder.model.0.weight_g; encoder.blocks.{}.new_tokens; decoder.layers.{}.layers.{}.weight_v; "
        "vocoder.backbone",
    ),
    Foreign(
        "the VAE of another video model",
        _VAE,
        "decoder.mid.block_1.conv1.conv; encoder.down.{}.block.{}.conv1.conv; decoder.mid_block.resnets.{}.norm1 "
        "decoder.conv_in.conv; decoder.transformer_blocks.{}.scale1; encoder.down_blocks.{}.resnets.{}.norm1 "
        "encoder.conv_in.conv; pixel_space_vae",
    ),
    Foreign("the VAE of Flux 2", _VAE, "bn.running_mean decoder.conv_in"),
    Foreign(
        "an image VAE",
        _VAE,
        "decoder.up.{}.block.{}.conv1; encoder.down.{}.block.{}.conv1; decoder.up_blocks.{}.resnets.{}.conv1.weight; "
        "encoder.down_blocks.{}.resnets.{}.conv1.weight; decoder.up_blocks.{}.convs; decoder.up_blocks.{}.{}.conv1; "
        "decoder.up_blocks.{}.{}.conv_out; quantize.embedding; encoder.stages decoder.stages; quant_conv "
        "post_quant_conv",
    ),
    Foreign(
        "a UMT5 text encoder (of Wan)",
        _TEXT,
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias; enc.blk.1.attn_rel_b; shared.weight@0=256384 "
        "encoder.block; token_embd.weight@0=256384 enc.blk; blocks.{}.pos_embedding.embedding token_embedding "
        "blocks.{}.ffn.gate",
    ),
    Foreign("an mT5 text encoder", _TEXT, "shared.weight@0=250112 encoder.block; token_embd.weight@0=250112 enc.blk"),
    Foreign(
        "a ByT5 text encoder",
        _TEXT,
        "shared.weight@0=384|1510 encoder.block shared.weight@1=1472; "
        "encoder.block.0.layer.0.SelfAttention.q.weight@1=1472",
    ),
)

# These may lie in one file with a model of ours, which then counts.
COMPANIONS: tuple[Foreign, ...] = (
    Foreign(
        "Gemma, the text encoder of LTX-2 and others",
        _TEXT,
        "layers.{}.post_feedforward_layernorm layers.{}.pre_feedforward_layernorm; blk.{}.post_ffw_norm; "
        "multi_modal_projector.mm_input_projection_weight",
    ),
    Foreign(
        "a speech or audio encoder",
        _OTHER,
        "feature_extractor.conv_layers; encoder.embed_positions encoder.conv1; encoder.layers.{}.self_attn.q_proj "
        "encoder.conv1",
    ),
    Foreign(
        "a CLIP text encoder",
        _TEXT,
        "text_model.encoder.layers; embeddings.token_embedding encoder.layers.{}.self_attn; "
        "transformer.resblocks.{}.attn; cond_stage_model.model.transformer",
    ),
    Foreign(
        "a CLIP or SigLIP vision encoder",
        _TEXT,
        "vision_model.encoder.layers !multi_modal_projector; "
        "embeddings.patch_embedding encoder.layers.{}.self_attn !multi_modal_projector; visual.transformer.resblocks",
    ),
    Foreign(
        "a vision encoder (DINOv2, SigLIP, or a projector of a language model)",
        _TEXT,
        "embeddings.patch_embeddings encoder.layer.{}.norm1 !backbone !head; v.blk.{}; v.patch_embd; mm.0",
    ),
    Foreign(
        "a language model (of the kind of Llama, Qwen or Mistral)",
        _TEXT,
        "layers.{}.self_attn.q_proj; layers.{}.self_attn.qkv_proj; layers.{}.attention.wq tok_embeddings; "
        "layers.{}.linear_attn; blk.{}.attn_q token_embd !enc.blk; blk.{}.attn_qkv token_embd; blk.{}.attn_norm "
        "token_embd !enc.blk; transformer.h.{}.attn; h.{}.attn.c_attn; encoder.layer.{}.attention.self.query; "
        "encoder.layers.{}.mixer; lm_head model.embed_tokens",
    ),
    Foreign(
        "a depth estimation model",
        _OTHER,
        "depth_head; neck.reassemble_stage; head.scratch; backbone.embeddings.patch_embeddings",
    ),
    Foreign(
        "a segmentation or detection model",
        _OTHER,
        "detector.backbone; image_encoder.trunk; sam_mask_decoder; mask_decoder.transformer; encoder.pan_blocks",
    ),
    Foreign(
        "a frame interpolation model (RIFE, FILM)",
        "use it with the frame interpolation nodes of ComfyUI, on the decoded frames",
        "encode.cnn0 blocks.{}.conv0; flownet; block0.conv0 block1.conv0; block0.convblock block1.convblock; "
        "extract.extract_sublevels; predict_flow fuse",
    ),
    Foreign(
        "an image upscale model (such as ESRGAN, SwinIR, HAT or SPAN)",
        _UPSCALER,
        "model.0 model.1.sub; model.1.sub.0.RDB1; RRDB_trunk; body.{}.rdb1; conv_first conv_body; conv_first "
        "conv_after_body; layers.{}.residual_group.blocks; relative_position_index_SA; before_RG; "
        "residual_layer.{}.residual_layer; conv_1.sk; block_1.c1_r; conv_cat block_1; upsampler.{} conv_1 block_1; "
        "body.0.weight@1=3 !encoder; params_ema; body.{}.weight upsampler.{}",
    ),
    Foreign(
        "a face restoration model (GFPGAN, CodeFormer)",
        _UPSCALER,
        "stylegan_decoder; conv_body_first; fuse_convs_dict",
    ),
    Foreign(
        "a diffusion transformer of another model",
        _OTHER,
        "single_transformer_blocks.{}; double_blocks.{}; single_blocks.{}; joint_transformer_blocks; "
        "transformer_blocks.{}.attn.add_q_proj; transformer_blocks.{}.attn.to_q; transformer_blocks.{}.attn1.to_q "
        "pos_embed; transformer_blocks.{}.attn1.to_q patch_embed; transformer_blocks.{}.attn1.to_q x_embedder; "
        "transformer_blocks.{}.attn1.to_q img_in; blocks.{}.attn1.to_q; blocks.{}.self_attn; blocks.{}.attn.qkv; "
        "blocks.{}.cross_attn; layers.{}.attention.qkv; layers.{}.attention.to_q",
    ),
)

# --- LoRAs ------------------------------------------------------------------------------------------------------------


def _lora(model: str, signs: str) -> Foreign:
    return Foreign(f"a LoRA for {model}", _LORA, signs)


def for_model(model: str, *, ltx2: bool) -> Foreign:
    """A LoRA that says itself what it is for."""
    return Foreign(f"a LoRA for {model}", LTX2_LORA.instead if ltx2 else _LORA, "")


LTX2_LORA = Foreign(
    "a LoRA for LTX-2 (LTX-2, 2.3 or 2.5)",
    "use it with the LTX-2 nodes of ComfyUI; for LTX-Video choose a LoRA that was trained for its 2B or 13B model",
    "transformer_blocks.{}.audio_attn1; transformer_blocks.{}.audio_attn2; transformer_blocks.{}.audio_ff; "
    "transformer_blocks.{}.audio_to_video_attn; transformer_blocks.{}.video_to_audio_attn; "
    "transformer_blocks.{}.attn1.to_gate_logits; transformer_blocks.{}.attn2.to_gate_logits; "
    "transformer_blocks.{}.prompt_scale_shift_table; audio_patchify_proj; audio_proj_in; audio_proj_out; "
    "audio_adaln_single; audio_time_embed; audio_caption_projection; audio_prompt_adaln_single; "
    "prompt_adaln_single; av_ca_video_scale_shift_adaln_single; av_ca_audio_scale_shift_adaln_single; "
    "av_ca_a2v_gate_adaln_single; av_ca_v2a_gate_adaln_single; av_cross_attn_video_scale_shift; "
    "av_cross_attn_audio_scale_shift; av_cross_attn_video_a2v_gate; av_cross_attn_audio_v2a_gate; "
    "video_embeddings_connector; audio_embeddings_connector; text_embedding_projection; "
    "caption_projection.linear_1@1=3840",
)

LORAS: tuple[Foreign, ...] = (
    Foreign("an IP-Adapter", _CONTROL, "ip_adapter; image_proj"),
    Foreign("a ControlNet", _CONTROL, "lora_controlnet; control_model; controlnet_cond_embedding"),
    LTX2_LORA,
    _lora(
        "Cosmos Predict 2",
        "blocks.{}.self_attn.q_proj; blocks.{}.adaln_modulation_self_attn; blocks.{}.self_attn.output_proj",
    ),
    _lora(
        "Wan or SkyReels-V2",
        "blocks.{}.self_attn.q; blocks.{}.self_attn.k; blocks.{}.self_attn.v; blocks.{}.self_attn.o; "
        "blocks.{}.cross_attn.q; blocks.{}.cross_attn.k; blocks.{}.cross_attn.v; blocks.{}.cross_attn.o; "
        "blocks.{}.cross_attn.k_img; blocks.{}.ffn.0; blocks.{}.ffn.2; blocks.{}.ffn.net; blocks.{}.attn1.to_q; "
        "blocks.{}.attn1.to_k; blocks.{}.attn1.to_v; blocks.{}.attn1.to_out; blocks.{}.attn2.to_q; "
        "blocks.{}.attn2.to_k; blocks.{}.attn2.to_v; blocks.{}.attn2.add_k_proj; vace_blocks; "
        "condition_embedder.time_embedder; time_projection.1",
    ),
    _lora("Chroma", "distilled_guidance_layer"),
    _lora("Flux 2", "double_stream_modulation_img; single_transformer_blocks.{}.attn.to_qkv_mlp_proj"),
    _lora(
        "HunyuanVideo",
        "=double_blocks.{}.img_attn_qkv; =double_blocks.{}.img_attn_proj; double_blocks.{}.img_mod.linear; "
        "double_blocks.{}.img_mlp.fc1; double_blocks.19; single_blocks.38; txt_in.individual_token_refiner; "
        "context_embedder.token_refiner; transformer_blocks.19.norm1_context single_transformer_blocks; "
        "single_transformer_blocks.38",
    ),
    _lora("AuraFlow", "joint_transformer_blocks; double_layers.{}; single_layers.{}"),
    _lora(
        "Flux (or HunyuanVideo)",
        "double_blocks.{}; single_blocks.{}; single_transformer_blocks.{}.attn; "
        "single_transformer_blocks.{}.proj_mlp; single_transformer_blocks.{}.proj_out; "
        "single_transformer_blocks.{}.norm",
    ),
    _lora(
        "Qwen-Image",
        "transformer_blocks.{}.img_mlp; transformer_blocks.{}.txt_mlp; transformer_blocks.{}.img_mod; "
        "transformer_blocks.{}.txt_mod; transformer_blocks.38.attn; transformer_blocks.59.attn",
    ),
    _lora(
        "Mochi",
        "transformer_blocks.{}.attn1.add_q_proj; transformer_blocks.{}.attn1.to_add_out; blocks.{}.attn.qkv_x",
    ),
    _lora(
        "Stable Diffusion 3",
        "joint_blocks; transformer_blocks.{}.attn2.add_q_proj; transformer_blocks.{}.ff_context",
    ),
    _lora(
        "Stable Diffusion 3, Qwen-Image or another image model",
        "transformer_blocks.{}.attn.add_q_proj; transformer_blocks.{}.attn.to_q; transformer_blocks.{}.attn.to_k; "
        "transformer_blocks.{}.attn.to_v; transformer_blocks.{}.attn.to_out",
    ),
    _lora("HiDream", "double_stream_blocks; single_stream_blocks"),
    _lora("Kandinsky 5", "visual_transformer_blocks; text_transformer_blocks"),
    _lora("Lumina or Z-Image", "noise_refiner; context_refiner; layers.{}.attention; layers.{}.feed_forward"),
    _lora("Krea 2", "text_fusion; txtfusion"),
    _lora("CogVideoX", "transformer_blocks.{}.norm1.linear !transformer_blocks.{}.attn2; patch_embed.text_proj"),
    _lora("ACE-Step", "lyric_encoder; layers.{}.self_attn.to_q; speaker_embedder"),
    _lora("Stable Cascade", "clip_txt_pooled_mapper; down_blocks.{}.{}.attention"),
    _lora("Stable Diffusion XL", "lora_te2_text_model; lora_te2; text_encoder_2 !transformer_blocks; conditioner"),
    _lora(
        "Stable Diffusion (1.x, 2.x or XL)",
        "input_blocks.{}; middle_block; output_blocks.{}; down_blocks.{}.attentions; up_blocks.{}.attentions; "
        "mid_block.attentions; down_blocks.{}.resnets",
    ),
    _lora("a CLIP text encoder", "text_model.encoder.layers !transformer_blocks"),
    _lora(
        "a language model",
        "layers.{}.self_attn.q_proj !transformer_blocks; layers.{}.self_attn.v_proj !transformer_blocks; "
        "layers.{}.mlp.gate_proj !transformer_blocks",
    ),
    _lora("CogVideoX", "transformer_blocks.{}.attn1.to_q@1=1920|3072; transformer_blocks.{}.attn1.to_k@1=1920|3072"),
    _lora(
        "PixArt, Sana, Allegro or Latte",
        "transformer_blocks.{}.attn1.to_q@1=1152|2240|2304; transformer_blocks.{}.attn1.to_k@1=1152|2240|2304; "
        "transformer_blocks.{}.ff.conv_inverted",
    ),
    _lora(
        "Cosmos",
        "transformer_blocks.{}.attn2.to_k@1=1024 transformer_blocks.{}.attn1.to_q@1=4096|5120; blocks.block0.blocks",
    ),
)

# Header entries in which programs that train say what they trained, and what they call it.
ARCHITECTURE_KEYS = (
    "modelspec.architecture",
    "ss_base_model_version",
    "base_model_version",
    "base_model",
    "base_model_name_or_path",
    "ss_sd_model_name",
    "ss_pretrained_model_name_or_path",
    "model_type",
    "general.architecture",
)
# What the name of an architecture contains -> the model that it is; None: ours. First match wins. Each is a search in a
# short text without repetitions that could overlap.
LTX2_NAME = r"ltx[-_ .]?(?:v|video)?[-_ .]?2(?:[-_.]?[35])?(?![0-9b])|ltxav|ltx[-_. 0-9a-z]{0,12}(?:19|22)b"
ARCHITECTURES: tuple[tuple[str, str | None], ...] = (
    (LTX2_NAME, "LTX-2 (LTX-2, 2.3 or 2.5)"),
    (r"ltx|lightricks", None),
    (r"skyreels", "SkyReels"),
    (r"(?:^|[^a-z])wan(?:[-_ ./0-9]|video|$)", "Wan"),
    (r"hunyuan|framepack", "HunyuanVideo"),
    (r"chroma", "Chroma"),
    (r"flux", "Flux"),
    (r"qwen", "Qwen-Image"),
    (r"cogvideo", "CogVideoX"),
    (r"mochi", "Mochi"),
    (r"hidream", "HiDream"),
    (r"lumina|z[-_]?image", "Lumina or Z-Image"),
    (r"kandinsky", "Kandinsky"),
    (r"cosmos", "Cosmos"),
    (r"aura[-_]?flow", "AuraFlow"),
    (r"pixart", "PixArt"),
    (r"(?:^|[^a-z])sana(?:[-_./0-9]|$)", "Sana"),
    (r"allegro", "Allegro"),
    (r"step[-_]?video", "StepVideo"),
    (r"ace[-_]?step", "ACE-Step"),
    (r"stable[-_]?diffusion[-_]?xl|sd[-_]?xl|pony|illustrious", "Stable Diffusion XL"),
    (r"stable[-_]?diffusion[-_]?v?3|sd[-_]?3", "Stable Diffusion 3"),
    (r"stable[-_]?diffusion|(?:^|[^a-z])sd[-_]?v?[12]", "Stable Diffusion"),
)

# A LoRA of LTX-2 that leaves its audio half alone has the very names and shapes of one for LTX-Video 13B; without a
# word in the header only the file's name tells (DESIGN, section 2: the name breaks a tie, and the user is told).
LTX2_FILE = r"ltx[-_ .]?(?:v|video)?[-_ .]?2(?:[-_.]?[35])?(?![0-9b])|.*ltx.*(?:19|22)b"
WIDTH_OF_BOTH = 4096
