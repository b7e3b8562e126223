"""What nodes of other packs and of ComfyUI declare, as far as graphs for LTX-Video use them: names, types, order.

A file of the editor stores widgets by position: without these a graph could not be read where the packs are absent.
Facts from Lightricks/ComfyUI-LTXVideo 36fdaf5 (July 2025), Comfy-Org/ComfyUI 0.3.64 and 0.33.0, kijai/ComfyUI-KJNodes,
Kosinkadink/ComfyUI-VideoHelperSuite, cubiq/ComfyUI_essentials and ltdrdata/ComfyUI-Impact-Pack.

A line, with what is indented below it, is `id | inputs > outputs`. An input is `name:TYPE`, with `=default` if a widget
fills it, and `^` behind it if the front end adds one for what becomes of a seed; `?` marks optional inputs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

OLD_PACK = "ComfyUI-LTXVideo"

_LTXV = """
Set VAE Decoder Noise | vae:VAE timestep:FLOAT=0.05 scale:FLOAT=0.025 seed:INT=42^ > VAE
LTXVSetVAEDecoderNoise | vae:VAE timestep:FLOAT=0.05 scale:FLOAT=0.025 seed:INT=42^ > VAE
DecoderNoise | vae:VAE timestep:FLOAT=0.05 scale:FLOAT=0.025 seed:INT=42^ > VAE
LTXVAddGuideAdvanced | positive:CONDITIONING negative:CONDITIONING vae:VAE latent:LATENT image:IMAGE
    frame_idx:INT=0 strength:FLOAT=1.0 crf:INT=29 blur_radius:INT=0 interpolation:COMBO=lanczos
    crop:COMBO=disabled > CONDITIONING CONDITIONING LATENT
LTXVImgToVideoAdvanced | positive:CONDITIONING negative:CONDITIONING vae:VAE image:IMAGE width:INT=768
    height:INT=512 length:INT=97 batch_size:INT=1 crf:INT=29 blur_radius:INT=0 interpolation:COMBO=lanczos
    crop:COMBO=disabled strength:FLOAT=0.9 > CONDITIONING CONDITIONING LATENT
LTXVAdainLatent | latents:LATENT reference:LATENT factor:FLOAT=1.0 > LATENT
LTXVSelectLatents | samples:LATENT start_index:INT=0 end_index:INT=-1 > LATENT
LTXVAddLatents | latents1:LATENT latents2:LATENT > LATENT
LTXVSetVideoLatentNoiseMasks | samples:LATENT masks:MASK > LATENT
LTXVAddLatentGuide | vae:VAE positive:CONDITIONING negative:CONDITIONING latent:LATENT guiding_latent:LATENT
    latent_idx:INT=0 strength:FLOAT=1.0 > CONDITIONING CONDITIONING LATENT
LTXVBaseSampler | model:MODEL vae:VAE width:INT=768 height:INT=512 num_frames:INT=97 guider:GUIDER sampler:SAMPLER
    sigmas:SIGMAS noise:NOISE ?optional_cond_images:IMAGE ?optional_cond_indices:STRING=0 ?strength:FLOAT=0.9
    ?crop:COMBO=disabled ?crf:INT=35 ?blur:INT=0 > LATENT CONDITIONING CONDITIONING
LTXVExtendSampler | model:MODEL vae:VAE latents:LATENT num_new_frames:INT=80 frame_overlap:INT=16 guider:GUIDER
    sampler:SAMPLER sigmas:SIGMAS noise:NOISE strength:FLOAT=0.5 ?optional_guiding_latents:LATENT > LATENT
    CONDITIONING CONDITIONING
LTXVInContextSampler | vae:VAE guider:GUIDER sampler:SAMPLER sigmas:SIGMAS noise:NOISE guiding_latents:LATENT
    ?optional_cond_image:IMAGE ?num_frames:INT=-1 > LATENT CONDITIONING CONDITIONING
LinearOverlapLatentTransition | samples1:LATENT samples2:LATENT overlap:INT=1 ?axis:INT=0 > LATENT
LTXVFilmGrain | images:IMAGE grain_intensity:FLOAT=0.1 saturation:FLOAT=0.5 > IMAGE
LTXVLatentUpsampler | samples:LATENT upscale_model:UPSCALE_MODEL vae:VAE > LATENT
LTXVLatentUpsamplerModelLoader | upscale_model:COMBO= spatial_upsample:BOOLEAN=true
    temporal_upsample:BOOLEAN=false > UPSCALE_MODEL
LTXVLoopingSampler | model:MODEL vae:VAE noise:NOISE sampler:SAMPLER sigmas:SIGMAS guider:GUIDER latents:LATENT
    guiding_strength:FLOAT=1.0 temporal_tile_size:INT=80 temporal_overlap:INT=24
    temporal_overlap_cond_strength:FLOAT=0.5 horizontal_tiles:INT=1 vertical_tiles:INT=1 spatial_overlap:INT=1
    ?optional_cond_image:IMAGE ?optional_guiding_latents:LATENT ?adain_factor:FLOAT=0.0
    ?optional_positive_conditionings:CONDITIONING ?optional_negative_index_latents:LATENT
    ?optional_negative_index:INT=-1 ?optional_negative_index_strength:FLOAT=1.0 ?per_tile_seed_offsets:STRING=0
    ?per_tile_use_negative_latents:STRING=1 > LATENT
MultiPromptProvider | prompts:STRING= clip:CLIP > CONDITIONING
LTXVPreprocessMasks | masks:MASK vae:VAE invert_input_masks:BOOLEAN=false ignore_first_mask:BOOLEAN=true
    pooling_method:COMBO=max grow_mask:INT=0 tapered_corners:BOOLEAN=true clamp_min:FLOAT=0.5 clamp_max:FLOAT=1.0
    > MASK
LTXVPatcherVAE | vae:VAE > VAE
LTXQ8Patch | model:MODEL use_fp8_attention:BOOLEAN=false > MODEL
LTXVQ8Patch | model:MODEL use_fp8_attention:BOOLEAN=false > MODEL
LTXVQ8LoraModelLoader | model:MODEL lora_name:COMBO= strength_model:FLOAT=1.0 > MODEL
LTXVApplySTG | model:MODEL block_indices:STRING='14, 19' > MODEL
STGGuider | model:MODEL positive:CONDITIONING negative:CONDITIONING cfg:FLOAT=1.0 stg:FLOAT=1.0 rescale:FLOAT=0.7
    > GUIDER
STGGuiderAdvanced | model:MODEL positive:CONDITIONING negative:CONDITIONING skip_steps_sigma_threshold:FLOAT=0.998
    cfg_star_rescale:BOOLEAN=true sigmas:STRING='1.0, 0.9933, 0.9850, 0.9767, 0.9008, 0.6180'
    cfg_values:STRING='8, 6, 6, 4, 3, 1' stg_scale_values:STRING='4, 4, 3, 2, 1, 0' stg_rescale_values:STRING='1,
    1, 1, 1, 1, 1' stg_layers_indices:STRING='[29], [29], [29], [29], [29], [29]' ?preset:STG_ADVANCED_PRESET >
    GUIDER
STGAdvancedPresets | preset:COMBO='13b Balanced' > STG_ADVANCED_PRESET
LTXVTiledSampler | model:MODEL vae:VAE noise:NOISE sampler:SAMPLER sigmas:SIGMAS guider:GUIDER latents:LATENT
    horizontal_tiles:INT=1 vertical_tiles:INT=1 overlap:INT=1 latents_cond_strength:FLOAT=0.15
    boost_latent_similarity:BOOLEAN=false crop:COMBO=disabled ?optional_cond_images:IMAGE
    ?optional_cond_indices:STRING=0 ?images_cond_strengths:STRING=0.9 > LATENT LATENT
LTXVTiledVAEDecode | vae:VAE latents:LATENT horizontal_tiles:INT=1 vertical_tiles:INT=1 overlap:INT=1
    last_frame_fix:BOOLEAN=false > IMAGE
LTXVPromptEnhancerLoader | llm_name:STRING= image_captioner_name:STRING= > LTXV_PROMPT_ENHANCER
LTXVPromptEnhancer | prompt:STRING= prompt_enhancer:LTXV_PROMPT_ENHANCER max_resulting_tokens:INT=256
    ?image_prompt:IMAGE > STRING
ImageToCPU | image:IMAGE > IMAGE
ModifyLTXModel | model:MODEL > MODEL
AddLatentGuide | model:MODEL latent:LATENT image_latent:LATENT index:INT=0 strength:FLOAT=1.0 > MODEL LATENT
LTXForwardModelSamplingPred | model:MODEL > MODEL
LTXReverseModelSamplingPred | model:MODEL > MODEL
LTXRFForwardODESampler | gamma:FLOAT=0.5 start_step:INT=0 end_step:INT=5 gamma_trend:COMBO=linear_decrease
    ?seed:INT=0^ ?attn_bank:ATTN_BANK ?order:COMBO=first > SAMPLER
LTXRFReverseODESampler | model:MODEL latent_image:LATENT eta:FLOAT=0.8 start_step:INT=0 end_step:INT=15
    ?eta_trend:COMBO=linear_decrease ?attn_inj:ATTN_INJ ?order:COMBO=first > SAMPLER
LTXAttentionBank | save_steps:INT=0 blocks:STRING= > ATTN_BANK
LTXPrepareAttnInjections | latent:LATENT attn_bank:ATTN_BANK query:BOOLEAN=false key:BOOLEAN=false
    value:BOOLEAN=false inject_steps:INT=0 ?blocks:LTX_BLOCKS > LATENT ATTN_INJ
LTXAttentioOverride | blocks:STRING= > LTX_BLOCKS
LTXPerturbedAttention | model:MODEL scale:FLOAT=2.0 rescale:FLOAT=0.5 cfg:FLOAT=3.0 ?attn_override:ATTN_OVERRIDE >
    MODEL
LTXAttnOverride | layers:STRING= > ATTN_OVERRIDE
LTXFlowEditCFGGuider | model:MODEL source_pos:CONDITIONING source_neg:CONDITIONING target_pos:CONDITIONING
    target_neg:CONDITIONING source_cfg:FLOAT=2.0 target_cfg:FLOAT=4.5 > GUIDER
LTXFlowEditSampler | skip_steps:INT=4 refine_steps:INT=0 seed:INT=0^ > SAMPLER
LTXFetaEnhance | model:MODEL feta_weight:FLOAT=4.0 ?attn_override:ATTN_OVERRIDE > MODEL
"""

_CORE = """
CheckpointLoaderSimple | ckpt_name:COMBO= > MODEL CLIP VAE
UNETLoader | unet_name:COMBO= weight_dtype:COMBO=default > MODEL
VAELoader | vae_name:COMBO= > VAE
CLIPLoader | clip_name:COMBO= type:COMBO=ltxv ?device:COMBO=default > CLIP
LoraLoaderModelOnly | model:MODEL lora_name:COMBO= strength_model:FLOAT=1.0 > MODEL
LoraLoader | model:MODEL clip:CLIP lora_name:COMBO= strength_model:FLOAT=1.0 strength_clip:FLOAT=1.0 > MODEL CLIP
CLIPTextEncode | text:STRING= clip:CLIP > CONDITIONING
ConditioningZeroOut | conditioning:CONDITIONING > CONDITIONING
LTXVConditioning | positive:CONDITIONING negative:CONDITIONING frame_rate:FLOAT=25.0 > CONDITIONING CONDITIONING
EmptyLTXVLatentVideo | width:INT=768 height:INT=512 length:INT=97 batch_size:INT=1 > LATENT
LTXVImgToVideo | positive:CONDITIONING negative:CONDITIONING vae:VAE image:IMAGE width:INT=768 height:INT=512
    length:INT=97 batch_size:INT=1 strength:FLOAT=1.0 > CONDITIONING CONDITIONING LATENT
LTXVImgToVideoInplace | vae:VAE image:IMAGE latent:LATENT strength:FLOAT=1.0 bypass:BOOLEAN=false > LATENT
LTXVAddGuide | positive:CONDITIONING negative:CONDITIONING vae:VAE latent:LATENT image:IMAGE frame_idx:INT=0
    strength:FLOAT=1.0 > CONDITIONING CONDITIONING LATENT
LTXVCropGuides | positive:CONDITIONING negative:CONDITIONING latent:LATENT > CONDITIONING CONDITIONING LATENT
LTXVPreprocess | image:IMAGE img_compression:INT=35 > IMAGE
LTXVScheduler | steps:INT=20 max_shift:FLOAT=2.05 base_shift:FLOAT=0.95 stretch:BOOLEAN=true terminal:FLOAT=0.1
    ?latent:LATENT > SIGMAS
BasicScheduler | model:MODEL scheduler:COMBO=simple steps:INT=20 denoise:FLOAT=1.0 > SIGMAS
ManualSigmas | sigmas:STRING= > SIGMAS
SplitSigmas | sigmas:SIGMAS step:INT=0 > SIGMAS SIGMAS
SplitSigmasDenoise | sigmas:SIGMAS denoise:FLOAT=1.0 > SIGMAS SIGMAS
FlipSigmas | sigmas:SIGMAS > SIGMAS
KSamplerSelect | sampler_name:COMBO=euler > SAMPLER
ModelSamplingLTXV | model:MODEL max_shift:FLOAT=2.05 base_shift:FLOAT=0.95 ?latent:LATENT > MODEL
CFGGuider | model:MODEL positive:CONDITIONING negative:CONDITIONING cfg:FLOAT=8.0 > GUIDER
BasicGuider | model:MODEL conditioning:CONDITIONING > GUIDER
RandomNoise | noise_seed:INT=0^ > NOISE
DisableNoise | > NOISE
SamplerCustomAdvanced | noise:NOISE guider:GUIDER sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT > LATENT LATENT
SamplerCustom | model:MODEL add_noise:BOOLEAN=true noise_seed:INT=0^ cfg:FLOAT=8.0 positive:CONDITIONING
    negative:CONDITIONING sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT > LATENT LATENT
KSampler | model:MODEL seed:INT=0^ steps:INT=20 cfg:FLOAT=8.0 sampler_name:COMBO=euler scheduler:COMBO=simple
    positive:CONDITIONING negative:CONDITIONING latent_image:LATENT denoise:FLOAT=1.0 > LATENT
VAEDecode | samples:LATENT vae:VAE > IMAGE
VAEDecodeTiled | samples:LATENT vae:VAE tile_size:INT=512 overlap:INT=64 temporal_size:INT=64
    temporal_overlap:INT=8 > IMAGE
VAEEncode | pixels:IMAGE vae:VAE > LATENT
VAEEncodeTiled | pixels:IMAGE vae:VAE tile_size:INT=512 overlap:INT=64 temporal_size:INT=64 temporal_overlap:INT=8
    > LATENT
LatentUpscaleModelLoader | model_name:COMBO= > LATENT_UPSCALE_MODEL
ImageBatch | image1:IMAGE image2:IMAGE > IMAGE
LoadImage | image:COMBO= ?upload:COMBO=image > IMAGE MASK
LoadVideo | file:COMBO= ?upload:COMBO=image > VIDEO
GetVideoComponents | video:VIDEO > IMAGE AUDIO FLOAT
ImageFromBatch | image:IMAGE batch_index:INT=0 length:INT=1 > IMAGE
ImageScale | image:IMAGE upscale_method:COMBO=nearest-exact width:INT=512 height:INT=512 crop:COMBO=disabled > IMAGE
GetImageSize | image:IMAGE > INT INT INT
ImageStitch | image1:IMAGE direction:COMBO=right match_image_size:BOOLEAN=true spacing_width:INT=0
    spacing_color:COMBO=white ?image2:IMAGE > IMAGE
CreateVideo | images:IMAGE fps:FLOAT=30.0 ?audio:AUDIO > VIDEO
SaveVideo | video:VIDEO filename_prefix:STRING=video/ComfyUI format:COMBO=auto codec:COMBO=auto >
SaveAnimatedWEBP | images:IMAGE filename_prefix:STRING=ComfyUI fps:FLOAT=6.0 lossless:BOOLEAN=true quality:INT=80
    method:COMBO=default >
SaveAnimatedPNG | images:IMAGE filename_prefix:STRING=ComfyUI fps:FLOAT=6.0 compress_level:INT=4 >
SaveWEBM | images:IMAGE filename_prefix:STRING=ComfyUI codec:COMBO=vp9 fps:FLOAT=24.0 crf:FLOAT=32.0 >
SaveImage | images:IMAGE filename_prefix:STRING=ComfyUI >
PreviewImage | images:IMAGE >
SetLatentNoiseMask | samples:LATENT mask:MASK > LATENT
PrimitiveInt | value:INT=0^ > INT
PrimitiveFloat | value:FLOAT=0.0 > FLOAT
PrimitiveString | value:STRING= > STRING
PrimitiveStringMultiline | value:STRING= > STRING
PrimitiveBoolean | value:BOOLEAN=false > BOOLEAN
Canny | image:IMAGE low_threshold:FLOAT=0.4 high_threshold:FLOAT=0.8 > IMAGE
"""

_OTHERS = """
StringToFloatList | string:STRING='1, 2, 3' > FLOAT
FloatToSigmas | float_list:FLOAT > SIGMAS
ImageResizeKJ | image:IMAGE width:INT=512 height:INT=512 upscale_method:COMBO=bilinear
    keep_proportion:BOOLEAN=false divisible_by:INT=2 ?get_image_size:IMAGE ?crop:COMBO=disabled > IMAGE INT INT
ImageResizeKJv2 | image:IMAGE width:INT=512 height:INT=512 upscale_method:COMBO=bilinear
    keep_proportion:COMBO=stretch pad_color:STRING='0, 0, 0' crop_position:COMBO=center divisible_by:INT=2
    ?device:COMBO=cpu > IMAGE INT INT MASK
GetImageSizeAndCount | image:IMAGE > IMAGE INT INT INT
ImageConcanate | image1:IMAGE image2:IMAGE direction:COMBO=right match_image_size:BOOLEAN=true > IMAGE
ImageResize+ | image:IMAGE width:INT=512 height:INT=512 interpolation:COMBO=nearest method:COMBO=stretch
    condition:COMBO=always multiple_of:INT=0 > IMAGE INT INT
PrintSigmas | sigmas:SIGMAS > SIGMAS
ImpactSwitch | select:INT=1 sel_mode:BOOLEAN=false ?input1:* ?input2:* ?input3:* ?input4:* ?input5:* > * STRING INT
BlurImageFast | images:IMAGE radius_x:INT=1 radius_y:INT=1 > IMAGE
VHS_LoadVideo | video:COMBO= force_rate:FLOAT=0 custom_width:INT=0 custom_height:INT=0 frame_load_cap:INT=0
    skip_first_frames:INT=0 select_every_nth:INT=1 > IMAGE INT AUDIO VHS_VIDEOINFO
VHS_SelectImages | image:IMAGE indexes:STRING=0 err_if_missing:BOOLEAN=true err_if_empty:BOOLEAN=true > IMAGE
VHS_VideoCombine | images:IMAGE frame_rate:FLOAT=8 loop_count:INT=0 filename_prefix:STRING=AnimateDiff
    format:COMBO=video/h264-mp4 pingpong:BOOLEAN=false save_output:BOOLEAN=true ?audio:AUDIO > VHS_FILENAMES
UnetLoaderGGUF | unet_name:COMBO= > MODEL
CLIPLoaderGGUF | clip_name:COMBO= type:COMBO=ltxv > CLIP
"""

_PACKS = {
    "ComfyUI-KJNodes": "StringToFloatList FloatToSigmas ImageResizeKJ ImageResizeKJv2 GetImageSizeAndCount "
    "ImageConcanate",
    "ComfyUI_essentials": "ImageResize+",
    "ComfyUI-VideoHelperSuite": "VHS_LoadVideo VHS_SelectImages VHS_VideoCombine",
    "ComfyUI-Impact-Pack": "ImpactSwitch",
    "ComfyUI-GGUF": "UnetLoaderGGUF CLIPLoaderGGUF",
}
_READ = {"INT": int, "FLOAT": float, "BOOLEAN": lambda text: text == "true"}


def _declared(inputs: str, outputs: str) -> type:
    groups: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for word in shlex.split(inputs):
        name, _, spec = word.lstrip("?").partition(":")
        kind, is_filled, default = spec.partition("=")
        options: dict[str, Any] = {}
        if is_filled:
            value = default.removesuffix("^")
            options = {"default": _READ.get(kind, str)(value)} if kind != "COMBO" else {"options": [value]}
            if default.endswith("^"):
                options["control_after_generate"] = True
        groups["optional" if word.startswith("?") else "required"][name] = (kind, options)
    members = {"INPUT_TYPES": classmethod(lambda _: groups), "RETURN_TYPES": tuple(outputs.split())}
    return type("Declared", (), members)


def _table(text: str) -> dict[str, type]:
    found: dict[str, type] = {}
    for line in text.strip().replace("\n    ", " ").splitlines():
        node_id, _, rest = line.partition("|")
        inputs, _, outputs = rest.rpartition(">")
        found[node_id.strip()] = _declared(inputs, outputs)
    return found


OF_OLD_PACK: Mapping[str, type] = _table(_LTXV)
OF_CORE: Mapping[str, type] = _table(_CORE)
OF_OTHERS: Mapping[str, type] = _table(_OTHERS)
DECLARED: Mapping[str, type] = {**OF_OLD_PACK, **OF_CORE, **OF_OTHERS}


def pack_of(node_id: str, meta: Mapping[str, Any]) -> str:
    """The pack that a node comes from: what its file says, otherwise what is known here; "" if neither does."""
    said = meta.get("cnr_id") or meta.get("aux_id")
    if isinstance(said, str) and said:
        return said
    if node_id in OF_OLD_PACK:
        return OLD_PACK
    return next((pack for pack, ids in _PACKS.items() if node_id in ids.split()), "")
