"""What a user's folders hold in these tests: tiny models under the released names, a picture, a clip, two videos."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL_NAMES = {  # file names in the shipped workflows, and the tiny family that stands in for each
    "ltxv-2b-0.9.8-distilled.safetensors": "2b",
    "ltxv-13b-0.9.7-dev.safetensors": "13b",
    "ltxv-13b-0.9.7-distilled.safetensors": "13b",
    "ltxv-13b-0.9.8-distilled.safetensors": "13b",
}
LORA_NAMES = ("ltxv-097-ic-lora-depth-control-comfyui.safetensors",)
UPSCALER_NAMES = ("ltxv-spatial-upscaler-0.9.7.safetensors", "ltxv-spatial-upscaler-0.9.8.safetensors")


def fill_models(folder: Path, tiny_models: Callable[..., Path]) -> None:
    """A tiny file for every name in the shipped workflows. tiny_models: as the fixture."""
    for name, family in MODEL_NAMES.items():
        _copy(tiny_models(family) / "checkpoints/ltxv-tiny.safetensors", folder / "checkpoints" / name)
    two_b, first = tiny_models("2b"), tiny_models("2b", vae="0.9.0")
    _copy(first / "checkpoints/ltxv-tiny.safetensors", folder / "checkpoints/ltxv-tiny-0.9.0.safetensors")
    _copy(two_b / "checkpoints/ltxv-tiny.safetensors", folder / "checkpoints/ltxv-tiny.safetensors")
    other_grid = tiny_models("2b", compression="16x4") / "checkpoints/ltxv-tiny.safetensors"
    _copy(other_grid, folder / "checkpoints/ltxv-tiny-16x4.safetensors")
    for name in (*UPSCALER_NAMES, "ltxv-tiny-spatial-upscaler.safetensors"):
        upscaler = two_b / "latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors"
        _copy(upscaler, folder / "latent_upscale_models" / name)
    for name in LORA_NAMES:
        _write_lora(folder / "loras" / name)
    encoder = two_b / "text_encoders/t5-tiny"
    shutil.copytree(encoder, folder / "text_encoders/t5-tiny")
    _copy(encoder / "model.safetensors", folder / "text_encoders/t5xxl_fp16.safetensors")
    _copy(encoder / "spiece.model", folder / "text_encoders/spiece.model")


def fill_inputs(folder: Path, repository: Path) -> None:
    """Write the picture and the clips that the shipped workflows load; the clip has a sound as long as its frames."""
    from fractions import Fraction

    import torch

    from ltxkit.ltx_core import media

    picture = media.read_image(repository / "assets/examples/temple.jpg")
    small = media.resize(picture, 64, 96, "crop")
    for name in ("temple.jpg", "example.png"):
        media.write_image(folder / name, small)
    shutil.copyfile(repository / "assets/examples/three.png", folder / "three.png")
    clip = small.repeat(21, 1, 1, 1)
    for index in range(21):
        clip[index] = clip[index].roll(2 * index, dims=1)
    tone = 0.4 * (torch.arange(42000) * (2 * torch.pi * 440 / 48000)).sin()
    sound = media.Sound(torch.stack([tone, -tone]), 48000)
    media.write_video(folder / "clip.mp4", [clip], fps=Fraction(24), sound=sound)
    (folder / "my-videos").mkdir(exist_ok=True)
    for number in range(12):  # a set whose table is as high as the Dataset node lets it be
        media.write_video(folder / f"my-videos/{number}.mp4", [clip.flip(2 * (number % 2))], fps=Fraction(24))
        (folder / f"my-videos/{number}.txt").write_text("a temple that moves")


def reduced(prompt: dict[str, Any]) -> dict[str, Any]:
    """The same graph at a size affordable for a test; changed in place."""
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"] == "LTXKitLoadExample" and inputs["example"].endswith(".mp4"):
            inputs["example"] = "clip.mp4"
        if node["class_type"] == "LTXKitEmptyLatent":
            inputs.update(width=60, height=64, frames=17)
        if node["class_type"] == "LTXKitGenerateTwoStage":
            inputs.update(width=96, height=96, frames=9)
        if node["class_type"] == "LTXKitGenerateLongVideo":
            inputs.update(width=60, height=64, frames=41, window_frames=17, overlap_frames=9)  # four windows
        if node["class_type"] in ("LTXKitAddCondition", "LTXKitKeepSound"):  # for 17 frames
            inputs["frame"] = max(min(inputs["frame"], 8), -9)
            inputs["take"] = max(min(inputs["take"], 9), -9)
        if node["class_type"] == "ImageScale":
            inputs.update(width=90, height=96)
        if node["class_type"] == "LTXKitCreateSchedule":
            inputs["steps"] = min(inputs["steps"], 6)
        if node["class_type"] == "LTXKitCheckDataset":
            inputs.update(width=64, height=64, frames=9)
        if node["class_type"] == "LTXKitTrainLoRA":
            inputs.update(width=64, height=64, frames=9, steps=2, rank=2)
            inputs["settings"] = "optimization.precision=fp32\nvalidation_samples=1"
        if node["class_type"] == "LTXKitLoadModel" and "distilled" in inputs["model_name"]:
            inputs["version"] = inputs["model_name"].removeprefix("ltxv-").removesuffix(".safetensors")
    return prompt


def _write_lora(path: Path) -> None:
    """A LoRA for the tiny 13B, with targets and names as in the released IC-LoRAs: rank 8, attention, feed-forward."""
    import torch
    from safetensors.torch import save_file

    width, layers, rank = 64, 48, 8
    shapes = {f"attn{n}.{part}": (width, width) for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")}
    shapes |= {"ff.net.0.proj": (4 * width, width), "ff.net.2": (width, 4 * width)}
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        for name, (rows, columns) in shapes.items():
            stem = f"diffusion_model.transformer_blocks.{layer}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, columns, generator=generator).bfloat16()
            tensors[f"{stem}.lora_B.weight"] = 0.01 * torch.randn(rows, rank, generator=generator).bfloat16()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)
