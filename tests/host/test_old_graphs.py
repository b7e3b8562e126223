"""Graphs with nodes of ComfyUI-LTXVideo as of July 2025, on ComfyUI 0.33, where that pack is not installed."""

from __future__ import annotations

from typing import Any

import pytest
from comfy_client import Server

from ltxkit.headless.migration.known import OF_OLD_PACK
from ltxkit.nodes.replacements import REPLACEMENTS

pytestmark = pytest.mark.slow


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


# What the old example graphs contain of that pack; core has one of them itself.
USED = set(OF_OLD_PACK) - {
    *{"LTXVSelectLatents", "LTXVAddLatents", "LTXVAddLatentGuide", "LTXVSetVideoLatentNoiseMasks", "DecoderNoise"},
    *{"LTXVPreprocessMasks", "LTXVQ8LoraModelLoader", "LTXVApplySTG", "STGGuider", "AddLatentGuide", "LTXVQ8Patch"},
}


def test_every_node_that_the_old_graphs_have_is_there_or_replaced(server_newest: Server):
    known = set(server_newest.get("/object_info"))
    registered = server_newest.get("/node_replacements")
    for old in USED - known:
        assert registered[old][0]["new_node_id"] in known, old
    for each in REPLACEMENTS:
        inputs = server_newest.get("/object_info")[each.new]["input"]
        declared = {**inputs.get("required", {}), **inputs.get("optional", {})}
        assert {new["new_id"] for new in each.input_mapping()} <= set(declared), each.old
        required = set(inputs.get("required", {})) - {new["new_id"] for new in each.input_mapping()}
        assert required == set(), each.old


def old_prompt(model: str, upscaler: str, text_encoder: str, image: str) -> dict[str, Any]:
    """Every sampler of the old pack, without the optional inputs that a prompt may lack."""
    lists = {"sigmas": "1.0, 0.95", "cfg_values": "3,1", "stg_scale_values": "1,0", "stg_rescale_values": "1,1"}
    guider = {"skip_steps_sigma_threshold": 0.999, "cfg_star_rescale": True, **lists, "stg_layers_indices": "[3],[4]"}
    parts = {"vae": ["1", 2], "guider": ["6", 0], "sampler": ["7", 0], "sigmas": ["8", 0], "noise": ["9", 0]}
    shown = {"optional_cond_images": ["10", 0], "optional_cond_indices": "0", "crop": "center"}
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=model),
        "2": node("LTXQ8Patch", model=["1", 0], use_fp8_attention=False),
        "3": node("LTXKitLoadTextEncoder", text_encoder_name=text_encoder, dtype="fp32", keep_on_device=False),
        "4": node("LTXKitEncodePrompt", text_encoder=["3", 0], positive="a cat", negative="bad", frame_rate=24),
        "6": node("STGGuiderAdvanced", model=["2", 0], positive=["4", 0], negative=["4", 1], **guider),
        "7": node("KSamplerSelect", sampler_name="euler"),
        "8": node("BasicScheduler", model=["2", 0], scheduler="linear_quadratic", steps=2, denoise=1.0),
        "9": node("RandomNoise", noise_seed=5),
        "10": node("LoadImage", image=image),
        "11": node(
            "LTXVBaseSampler",
            model=["2", 0],
            **parts,
            **shown,
            width=96,
            height=64,
            num_frames=17,
            strength=0.8,
            crf=30,
            blur=1,
        ),
        "12": node("LTXVExtendSampler", model=["2", 0], **parts, latents=["11", 0], num_new_frames=16, frame_overlap=8),
        "13": node("LTXVLatentUpsamplerModelLoader", upscale_model=upscaler, spatial_upsample=True),
        "14": node("LTXVLatentUpsampler", samples=["11", 0], upscale_model=["13", 0], vae=["1", 2]),
        "15": node("LTXVAdainLatent", latents=["14", 0], reference=["11", 0], factor=0.25),
        "16": node(
            "LTXVTiledSampler", model=["2", 0], **parts, **shown, latents=["15", 0], images_cond_strengths="0.9"
        ),
        "17": node("Set VAE Decoder Noise", vae=["1", 2], timestep=0.05, scale=0.025, seed=42),
        "18": node("LTXVTiledVAEDecode", vae=["17", 0], latents=["16", 1]),
        "19": node("LTXVFilmGrain", images=["18", 0], grain_intensity=0.01, saturation=0.5),
        "20": node("SaveImage", images=["19", 0], filename_prefix="old/frames"),
        "21": node("EmptyLTXVLatentVideo", width=96, height=64, length=41, batch_size=1),
        "22": node(
            "LTXVLoopingSampler",
            model=["2", 0],
            **parts,
            latents=["21", 0],
            temporal_tile_size=24,
            temporal_overlap=16,
            temporal_overlap_cond_strength=0.5,
        ),
        "23": node("LTXVInContextSampler", **parts, guiding_latents=["11", 0]),
        **{
            f"3{i}": node("SaveLatent", samples=[source, 0], filename_prefix=f"old/{source}")
            for i, source in enumerate(("12", "22", "23"))
        },
    }


def test_a_prompt_of_old_nodes_runs(server_newest: Server):
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    Image.new("RGB", (96, 64), (90, 120, 40)).save(server_newest.base / "input/old.png")
    info = server_newest.get("/object_info")

    def first(kind: str, name: str, words: str = "") -> str:
        spec = info[kind]["input"]["required"][name]
        choices = spec[0] if isinstance(spec[0], list) else spec[1]["options"]
        return next(choice for choice in choices if words in choice)

    events = server_newest.run(
        old_prompt(
            first("CheckpointLoaderSimple", "ckpt_name"),
            first("LatentUpscaleModelLoader", "model_name"),
            first("LTXKitLoadTextEncoder", "text_encoder_name"),
            "old.png",
        )
    )
    assert events.error == ""
    saved = server_newest.base / "output/old"
    assert len(list(saved.glob("frames*.png"))) == 17
    frames = {path.name.split("_")[0]: load_file(path)["latent_tensor"] for path in saved.glob("*.latent")}
    assert {name: latent.shape[2] for name, latent in frames.items()} == {"12": 5, "22": 6, "23": 3}
    assert all(bool(torch.isfinite(latent).all()) for latent in frames.values())


def test_an_experiment_opens_and_says_what_to_do(server_newest: Server):
    prompt = {
        "1": node("LTXFlowEditSampler", skip_steps=3, refine_steps=6, seed=0),
        "2": node("PreviewAny", source=["1", 0]),
    }
    assert "denoise_strength" in server_newest.run(prompt).error
