"""Our nodes among ComfyUI's own, in a real server: the same meaning gives the same result.

ComfyUI loads the same tiny checkpoint with its own LTXV model and VAE, so both sides compute with the same weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from comfy_client import Server

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

Graph = dict[str, dict[str, Any]]
LEVELS = "1, 0.9, 0.7, 0.4"


def node(class_name: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_name, "inputs": inputs}


def common(checkpoint: str = "ltxv-tiny.safetensors") -> Graph:
    """Both models from one file, a prompt, a schedule, and the other inputs of native sampling."""
    return {
        "model": node(
            "LTXKitLoadModel", model_name=checkpoint, vae_name="in the model file", dtype="fp32", version="2b-0.9.5"
        ),
        "t5": node("LTXKitLoadTextEncoder", text_encoder_name="t5-tiny", dtype="fp32", keep_on_device=False),
        "prompt": node(
            "LTXKitEncodePrompt", text_encoder=["t5", 0], positive="a red ball", negative="blurry", frame_rate=24.0
        ),
        "schedule": node("LTXKitCreateSchedule", kind="list", steps=1, levels=LEVELS, denoise_strength=1.0),
        "guidance": node(
            "LTXKitCreateGuidance",
            guidance_scale=3.0,
            guidance_rescale=0.0,
            stg_scale=0.0,
            stg_blocks="",
            stg_mode="attention_values",
            stg_rescale=1.0,
            cfg_star=False,
        ),
        "native": node("TestNativeModels", checkpoint=checkpoint),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "noise": node("RandomNoise", noise_seed=7),
        "empty": node("EmptyLTXVLatentVideo", width=64, height=96, length=17, batch_size=1),
        "picture": node("LoadImage", image="example.png"),
    }


def ours(latent: list[Any], positive: list[Any], negative: list[Any]) -> dict[str, Any]:
    return node(
        "LTXKitSampleVideo",
        model=["model", 0],
        positive=positive,
        negative=negative,
        latent=latent,
        seed=7,
        sampler="euler",
        condition_noise=0.0,
        schedule=["schedule", 0],
        guidance=["guidance", 0],
    )


def natively(graph: Graph, name: str, latent: list[Any], positive: list[Any], negative: list[Any]) -> None:
    graph[f"{name} guider"] = node("CFGGuider", model=["native", 0], positive=positive, negative=negative, cfg=3.0)
    graph[name] = node(
        "SamplerCustomAdvanced",
        noise=["noise", 0],
        guider=[f"{name} guider", 0],
        sampler=["euler", 0],
        sigmas=["schedule", 0],
        latent_image=latent,
    )


def image_to_video(graph: Graph, strength: float) -> None:
    graph["i2v"] = node(
        "LTXVImgToVideo",
        positive=["prompt", 0],
        negative=["prompt", 1],
        vae=["native", 1],
        image=["picture", 0],
        width=64,
        height=96,
        length=17,
        batch_size=1,
        strength=strength,
    )


def results(server: Server, graph: Graph, *names: str) -> list[np.ndarray]:
    for name in names:
        graph[f"save {name}"] = node("TestSaveTensor", value=[name, 0], name=name)
    events = server.run(graph)
    assert events.error == ""
    return [np.load(server.base / f"output/{name}.npy") for name in names]


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    assert expected.std() > 0.1
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_sample_is_what_native_sampling_makes_of_the_same_file(server: Server):
    graph = common()
    graph["our empty"] = node(
        "LTXKitEmptyLatent", width=64, height=96, frames=17, seconds=0.0, frame_rate=24.0, batch_size=1
    )
    graph["ours"] = ours(["our empty", 0], ["prompt", 0], ["prompt", 1])
    graph["with native empty"] = ours(["empty", 0], ["prompt", 0], ["prompt", 1])
    natively(graph, "theirs", ["empty", 0], ["prompt", 0], ["prompt", 1])
    mine, with_native_empty, theirs = results(server, graph, "ours", "with native empty", "theirs")
    assert np.array_equal(mine, with_native_empty)
    assert_close(mine, theirs)


def test_a_prompt_of_clip_text_encode_is_the_same_prompt(server: Server):
    graph = common()
    for name, output in (("positive", 0), ("negative", 1)):
        graph[name] = node("TestAsCLIPTextEncode", conditioning=["prompt", output])
    graph["rate"] = node("LTXVConditioning", positive=["positive", 0], negative=["negative", 0], frame_rate=24.0)
    graph["ours"] = ours(["empty", 0], ["prompt", 0], ["prompt", 1])
    graph["from native"] = ours(["empty", 0], ["rate", 0], ["rate", 1])
    mine, from_native = results(server, graph, "ours", "from native")
    assert_close(from_native, mine)


def test_a_noise_mask_means_the_same(server: Server):
    graph = common()
    image_to_video(graph, strength=1.0)
    graph["ours"] = ours(["i2v", 2], ["i2v", 0], ["i2v", 1])
    natively(graph, "theirs", ["i2v", 2], ["i2v", 0], ["i2v", 1])
    mine, theirs = results(server, graph, "ours", "theirs")
    assert_close(mine, theirs)


def test_guides_of_native_nodes_mean_the_same(server: Server):
    graph = common()
    graph["guide"] = node(
        "LTXVAddGuide",
        positive=["prompt", 0],
        negative=["prompt", 1],
        vae=["native", 1],
        latent=["empty", 0],
        image=["picture", 0],
        frame_idx=8,
        strength=1.0,
    )
    graph["ours"] = ours(["guide", 2], ["guide", 0], ["guide", 1])
    natively(graph, "theirs", ["guide", 2], ["guide", 0], ["guide", 1])
    for name in ("ours", "theirs"):
        graph[f"{name} cropped"] = node(
            "LTXVCropGuides", positive=["guide", 0], negative=["guide", 1], latent=[name, 0]
        )
        graph[f"save {name}"] = node("TestSaveTensor", value=[f"{name} cropped", 2], name=name)
    events = server.run(graph)
    assert events.error == ""
    mine, theirs = (np.load(server.base / f"output/{name}.npy") for name in ("ours", "theirs"))
    assert mine.shape[2] == 3  # the guide is gone
    assert_close(mine, theirs)


def test_native_nodes_sample_on_from_our_latent_and_conditioning(server: Server):
    graph = common()
    natively(graph, "theirs", ["empty", 0], ["prompt", 0], ["prompt", 1])
    graph["decoded"] = node("VAEDecode", samples=["theirs", 0], vae=["native", 1])
    (frames,) = results(server, graph, "decoded")
    assert frames.shape == (17, 96, 64, 3)


def test_decode_and_encode_are_what_the_native_vae_does(server: Server):
    # 0.9.0: later decoders draw noise from a generator that ComfyUI does not seed.
    graph = common("ltxv-tiny-0.9.0.safetensors")
    graph["ours"] = ours(["empty", 0], ["prompt", 0], ["prompt", 1])
    graph["our frames"] = node(
        "LTXKitDecodeVideo",
        latent=["ours", 0],
        vae=["model", 1],
        decode_timestep=0.05,
        decode_noise_scale=0.025,
        seed=0,
    )
    graph["their frames"] = node("VAEDecode", samples=["ours", 0], vae=["native", 1])
    graph["our latent"] = node("LTXKitEncodeVideo", images=["our frames", 0], vae=["model", 1], frame_rate=24.0)
    graph["their latent"] = node("VAEEncode", pixels=["our frames", 0], vae=["native", 1])
    names = ("our frames", "their frames", "our latent", "their latent")
    our_frames, their_frames, our_latent, their_latent = results(server, graph, *names)
    assert_close(our_frames, their_frames)
    assert_close(our_latent, their_latent)
