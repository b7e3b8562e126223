"""Old node ids and what ComfyUI puts in their place, from core 0.33 on (`app/node_replace_manager.py`).

ComfyUI replaces an id only where no pack has it, and its new id exists. Older cores have nothing like it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_CONTROL = "control"  # the widget behind a seed, which no input has


@dataclass(frozen=True)
class Replacement:
    """One old id. widgets: its widgets in the order in which files store them. inputs: new names by old ones.

    values: new inputs that the old node did not have. optional: defaults of the old inputs that a prompt may lack.
    Outputs have the same numbers: core 0.33 fails on others where the next node is replaced too.
    """

    old: str
    new: str
    widgets: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    optional: Mapping[str, Any] = field(default_factory=dict)

    def input_mapping(self) -> list[dict[str, Any]]:
        renamed = [{"new_id": new, "old_id": old} for old, new in self.inputs.items()]
        return renamed + [{"new_id": new, "set_value": value} for new, value in self.values.items()]


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_PARTS = _same("vae", "guider", "sampler", "sigmas", "noise")
_SAMPLE = {
    "task": "new clip",
    "width": 768,
    "height": 512,
    "frames": 97,
    "overlap": 24,
    "window": 80,
    "strength": 0.9,
    "crop": "center",
    "crf": 0,
    "blur": 0,
    "frames_of_images": "0",
    "strengths": "",
    "adain": 0.0,
}


def _sample(
    old: str,
    task: str,
    widgets: str,
    renamed: Mapping[str, str],
    *,
    optional: Mapping[str, Any],
    values: Mapping[str, Any] | None = None,
    new: str = "LTXKitSampleNatively",
) -> Replacement:
    said = {name: value for name, value in _SAMPLE.items() if name not in renamed.values()}
    said |= {"task": task, **(values or {})}
    return Replacement(old, new, tuple(widgets.split()), {**_PARTS, **renamed}, said, optional)


def _passed(old: str, name: str, note: str, widgets: str = "") -> Replacement:
    return Replacement(old, "LTXKitPassOn", tuple(widgets.split()), {name: "value"}, {"instead_of": old, "note": note})


_EDIT = "for a changed clip, use Encode Video into Sample with a Schedule of denoise_strength below 1"


def _reported(old: str, widgets: str = "", remedy: str = _EDIT) -> Replacement:
    return Replacement(old, "LTXKitReportMissing", tuple(widgets.split()), {}, {"instead_of": old, "remedy": remedy})


_GUIDER = "skip_steps_sigma_threshold cfg_star_rescale sigmas cfg_values stg_scale_values stg_rescale_values"
_GUIDE = _same("positive", "negative", "vae", "image", "strength", "crf", "blur_radius", "interpolation", "crop")
REPLACEMENTS: tuple[Replacement, ...] = (
    Replacement(
        "STGGuiderAdvanced",
        "LTXKitCreateNativeGuider",
        (*_GUIDER.split(), "stg_layers_indices"),
        _same("model", "positive", "negative", *_GUIDER.split(), "stg_layers_indices", "preset"),
        optional={"preset": None},
    ),
    Replacement("STGAdvancedPresets", "PrimitiveString", ("preset",), {"preset": "value"}),
    _sample(
        "LTXVBaseSampler",
        "new clip",
        "width height num_frames optional_cond_indices strength crop crf blur",
        {
            **_same("width", "height", "strength", "crop", "crf", "blur"),
            "num_frames": "frames",
            "optional_cond_images": "images",
            "optional_cond_indices": "frames_of_images",
        },
        optional={
            "optional_cond_images": None,
            "optional_cond_indices": "0",
            "strength": 0.9,
            "crop": "disabled",
            "crf": 35,
            "blur": 0,
        },
    ),
    _sample(
        "LTXVTiledSampler",
        "refine",
        "horizontal_tiles vertical_tiles overlap latents_cond_strength boost_latent_similarity crop "
        "optional_cond_indices images_cond_strengths",
        {
            **_same("crop"),
            "latents": "latent",
            "optional_cond_images": "images",
            "optional_cond_indices": "frames_of_images",
            "images_cond_strengths": "strengths",
        },
        new="LTXKitRefineNatively",
        optional={"optional_cond_images": None, "optional_cond_indices": "0", "images_cond_strengths": "0.9"},
    ),
    _sample(
        "LTXVExtendSampler",
        "extend",
        "num_new_frames frame_overlap strength",
        {
            **_same("strength"),
            "latents": "latent",
            "num_new_frames": "frames",
            "frame_overlap": "overlap",
            "optional_guiding_latents": "guiding_latent",
        },
        optional={"optional_guiding_latents": None, "strength": 0.5},
    ),
    _sample(
        "LTXVInContextSampler",
        "follow",
        "num_frames",
        {"guiding_latents": "guiding_latent", "num_frames": "frames", "optional_cond_image": "images"},
        values={"strength": 1.0, "crop": "disabled"},
        optional={"optional_cond_image": None, "num_frames": -1},
    ),
    _sample(
        "LTXVLoopingSampler",
        "long clip",
        "guiding_strength temporal_tile_size temporal_overlap temporal_overlap_cond_strength horizontal_tiles "
        "vertical_tiles spatial_overlap adain_factor optional_negative_index optional_negative_index_strength "
        "per_tile_seed_offsets per_tile_use_negative_latents",
        {
            "latents": "latent",
            "temporal_tile_size": "window",
            "temporal_overlap": "overlap",
            "temporal_overlap_cond_strength": "strength",
            "adain_factor": "adain",
            "optional_cond_image": "images",
            "optional_guiding_latents": "guiding_latent",
            "optional_positive_conditionings": "prompts",
        },
        values={"strengths": "1", "crop": "disabled"},
        optional={
            "adain_factor": 0.0,
            "optional_cond_image": None,
            "optional_guiding_latents": None,
            "optional_positive_conditionings": None,
        },
    ),
    Replacement("MultiPromptProvider", "LTXKitEncodePromptList", ("prompts",), _same("prompts", "clip")),
    Replacement(
        "LTXVAddGuideAdvanced",
        "LTXKitAddNativeGuide",
        ("frame_idx", "strength", "crf", "blur_radius", "interpolation", "crop"),
        {**_GUIDE, "latent": "latent", "frame_idx": "frame"},
        {"width": 768, "height": 512, "length": 97, "batch_size": 1},
    ),
    Replacement(
        "LTXVImgToVideoAdvanced",
        "LTXKitAddNativeGuide",
        ("width", "height", "length", "batch_size", "crf", "blur_radius", "interpolation", "crop", "strength"),
        {**_GUIDE, **_same("width", "height", "length", "batch_size")},
        {"frame": 0},
    ),
    Replacement(
        "LTXVLatentUpsamplerModelLoader",
        "LatentUpscaleModelLoader",
        ("upscale_model", "spatial_upsample", "temporal_upsample"),
        {"upscale_model": "model_name"},
    ),
    Replacement(
        "LTXVAdainLatent",
        "LTXKitAdaptLatent",
        ("factor",),
        {"latents": "latent", "reference": "reference", "factor": "factor"},
    ),
    Replacement(
        "LTXVFilmGrain",
        "LTXKitAddFilmGrain",
        ("grain_intensity", "saturation"),
        {"images": "images", "grain_intensity": "film_grain", "saturation": "grain_saturation"},
        {"seed": 0},
    ),
    *(
        Replacement(
            old,
            "LTXKitSetDecodeNoise",
            ("timestep", "scale", "seed", _CONTROL),
            {"vae": "vae", "timestep": "decode_timestep", "scale": "decode_noise_scale"},
        )
        for old in ("Set VAE Decoder Noise", "LTXVSetVAEDecoderNoise")
    ),
    Replacement(
        "LTXVTiledVAEDecode",
        "VAEDecodeTiled",
        ("horizontal_tiles", "vertical_tiles", "overlap", "last_frame_fix"),
        {"vae": "vae", "latents": "samples"},
        {"tile_size": 512, "overlap": 64, "temporal_size": 4096, "temporal_overlap": 8},
    ),
    Replacement(
        "LTXVPromptEnhancer", "PrimitiveStringMultiline", ("prompt", "max_resulting_tokens"), {"prompt": "value"}
    ),
    Replacement(
        "LTXVPromptEnhancerLoader", "PrimitiveString", ("llm_name", "image_captioner_name"), {"llm_name": "value"}
    ),
    _passed("LTXQ8Patch", "model", "the model runs without the Q8 kernels of another library."),
    _passed("LTXVPatcherVAE", "vae", ""),
    _passed("ImageToCPU", "image", ""),
    _passed("ModifyLTXModel", "model", ""),
    _passed("LTXPerturbedAttention", "model", "perturbed attention is left out.", "scale rescale cfg"),
    _passed("LTXFetaEnhance", "model", "enhanced attention between frames is left out.", "feta_weight"),
    _reported("LTXForwardModelSamplingPred"),
    _reported("LTXReverseModelSamplingPred"),
    _reported("LTXRFForwardODESampler", "gamma start_step end_step gamma_trend seed control order"),
    _reported("LTXRFReverseODESampler", "eta start_step end_step eta_trend order"),
    _reported("LTXAttentionBank", "save_steps blocks"),
    _reported("LTXPrepareAttnInjections", "query key value inject_steps"),
    _reported("LTXAttentioOverride", "blocks"),
    _reported("LTXAttnOverride", "layers"),
    _reported("LTXFlowEditCFGGuider", "source_cfg target_cfg"),
    _reported("LTXFlowEditSampler", "skip_steps refine_steps seed control"),
    _reported("LinearOverlapLatentTransition", "overlap axis", "for two clips, use the template interpolate"),
)
