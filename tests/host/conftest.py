"""Tests against the surroundings of the pack: the real front end in a browser, and real ComfyUI servers.

Where a browser or server is missing, its tests are skipped with the reason. ComfyUI is a checkout with its own
environment:

    git clone <ComfyUI, tag v0.3.64> ~/comfy/ComfyUI   (or elsewhere, named by COMFYUI_PATH)
    cd ~/comfy/ComfyUI && python -m venv .venv && .venv/bin/pip install -r requirements.txt requests

and likewise v0.8.0 in ~/comfy/ComfyUI-next (COMFYUI_NEXT_PATH) and v0.33.0 in ~/comfy/ComfyUI-0.33
(COMFYUI_NEWEST_PATH); one environment may serve all three. `graph_page` says where front ends are. torchaudio must fit torch, or be absent: transformers
imports it, and a torchaudio that does not fit raises.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # for the modules of this folder; not the repository root

from comfy_client import ComfyUI, Server, find_comfyui, make_base, serve
from graph_page import front_end

MODEL_NAMES = {  # file names in the shipped workflows, and the tiny family that stands in for each
    "ltxv-2b-0.9.8-distilled.safetensors": "2b",
    "ltxv-13b-0.9.7-dev.safetensors": "13b",
    "ltxv-13b-0.9.7-distilled.safetensors": "13b",
    "ltxv-13b-0.9.8-distilled.safetensors": "13b",
}
LORA_NAMES = ("ltxv-097-ic-lora-depth-control-comfyui.safetensors",)
UPSCALER_NAMES = ("ltxv-spatial-upscaler-0.9.7.safetensors", "ltxv-spatial-upscaler-0.9.8.safetensors")


@pytest.fixture(scope="session")
def models_folder(tiny_models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `models` folder with a tiny file for every name in the shipped workflows."""
    folder = tmp_path_factory.mktemp("models")
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
    return folder


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


@pytest.fixture(scope="session")
def fill_inputs(repository: Path) -> Callable[[Path], None]:
    """fill_inputs(folder): write the picture and the clip that the shipped workflows load."""

    def fill(folder: Path) -> None:
        from fractions import Fraction

        from ltxkit.ltx_core import media

        picture = media.read_image(repository / "assets/examples/temple.jpg")
        small = media.resize(picture, 64, 96, "crop")
        for name in ("temple.jpg", "example.png"):
            media.write_image(folder / name, small)
        shutil.copyfile(repository / "assets/examples/three.png", folder / "three.png")
        clip = small.repeat(21, 1, 1, 1)
        for index in range(21):
            clip[index] = clip[index].roll(2 * index, dims=1)
        media.write_video(folder / "clip.mp4", [clip], fps=Fraction(24))
        (folder / "my-videos").mkdir(exist_ok=True)
        for number in range(2):
            media.write_video(folder / f"my-videos/{number}.mp4", [clip.flip(2 * number)], fps=Fraction(24))
            (folder / f"my-videos/{number}.txt").write_text("a temple that moves")

    return fill


@pytest.fixture(scope="session")
def small() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """small(prompt): the same graph at a size affordable for a test."""

    def shrink(prompt: dict[str, Any]) -> dict[str, Any]:
        for node in prompt.values():
            inputs = node["inputs"]
            if node["class_type"] == "LTXKitEmptyLatent":
                inputs.update(width=60, height=64, frames=17)
            if node["class_type"] == "LTXKitGenerateTwoStage":
                inputs.update(width=96, height=96, frames=9)
            if node["class_type"] == "LTXKitGenerateLongVideo":
                inputs.update(width=60, height=64, frames=41, window_frames=17, overlap_frames=9)  # four windows
            if node["class_type"] == "LTXKitAddCondition":  # for 17 frames
                inputs["frame"] = max(min(inputs["frame"], 8), -9)
                inputs["take"] = max(min(inputs["take"], 9), -9)
            if node["class_type"] == "ImageScale":
                inputs.update(width=90, height=96)
            if node["class_type"] == "LTXKitCreateSchedule":
                inputs["steps"] = min(inputs["steps"], 10)
            if node["class_type"] == "LTXKitTrainLoRA":
                inputs.update(width=64, height=64, frames=9, steps=2, rank=2)
                inputs["settings"] = "optimization.precision=fp32\nvalidation_samples=1"
            if node["class_type"] == "LTXKitLoadModel" and "distilled" in inputs["model_name"]:
                inputs["version"] = inputs["model_name"].removeprefix("ltxv-").removesuffix(".safetensors")
        return prompt

    return shrink


@pytest.fixture
def workflow(repository: Path, small: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    """workflow(name): a shipped API workflow, reduced by `small`."""
    return lambda name: small(json.loads((repository / f"workflows/api/{name}.json").read_text()))


@pytest.fixture(scope="session")
def made_size() -> Callable[[str], tuple[int, int, int]]:
    """made_size(name): frames, height and width of the video from the reduced workflow."""
    clip = (21, 64, 96)  # of the file that the graphs load
    sizes = {"video-to-video-2b": clip, "inpaint-2b": clip, "long-2b": (41, 64, 60), "two-stage-simple": (9, 96, 96)}
    scaled = ("two-stage-13b-dev", "two-stage-13b-distilled", "demo-two-stage", "demo-text", "demo-first-frame")
    sizes |= dict.fromkeys(scaled, (17, 96, 90))
    return lambda name: sizes.get(name, (17, 64, 60))


def _comfyui(variable: str, folder: str) -> ComfyUI:
    found = find_comfyui(variable, folder)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    """ComfyUI 0.3.64."""
    return _comfyui("COMFYUI_PATH", "ComfyUI")


@pytest.fixture(scope="session")
def comfyui_next() -> ComfyUI:
    """ComfyUI 0.8.0."""
    return _comfyui("COMFYUI_NEXT_PATH", "ComfyUI-next")


@pytest.fixture(scope="session")
def comfyui_newest() -> ComfyUI:
    """ComfyUI 0.33.0."""
    return _comfyui("COMFYUI_NEWEST_PATH", "ComfyUI-0.33")


@pytest.fixture(scope="session")
def server(
    comfyui: ComfyUI,
    models_folder: Path,
    tiny_models: Callable[..., Path],
    fill_inputs: Callable[[Path], None],
    package: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A running ComfyUI 0.3.64 with this pack, the helper pack and an extra models folder, shared by all tests."""
    helper = (Path(__file__).parent / "helper_pack.py").read_text()
    base = make_base(tmp_path_factory.mktemp("comfy"), models_folder, package, others={"helper": helper})
    fill_inputs(base / "input")
    extra = base / "elsewhere"
    _copy(tiny_models() / "checkpoints/ltxv-tiny.safetensors", extra / "from-elsewhere.safetensors")
    (base / "extra.yaml").write_text(f"more:\n  base_path: {base}\n  checkpoints: elsewhere\n")
    flags = ("--extra-model-paths-config", str(base / "extra.yaml"))
    with serve(comfyui, base, *flags, packs=("ltxkit", "helper")) as running:
        yield running


@pytest.fixture(scope="session")
def server_next(
    comfyui_next: ComfyUI,
    models_folder: Path,
    fill_inputs: Callable[[Path], None],
    package: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A running ComfyUI 0.8.0 with this pack."""
    base = make_base(tmp_path_factory.mktemp("comfy-next"), models_folder, package)
    fill_inputs(base / "input")
    with serve(comfyui_next, base) as running:
        yield running


@pytest.fixture(scope="session")
def server_newest(
    comfyui_newest: ComfyUI,
    models_folder: Path,
    fill_inputs: Callable[[Path], None],
    package: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A running ComfyUI 0.33.0 with this pack and front end 1.58.1."""
    static = front_end("1.58.1")
    if isinstance(static, str):
        pytest.skip(static)
    base = make_base(tmp_path_factory.mktemp("comfy-newest"), models_folder, package)
    fill_inputs(base / "input")
    with serve(comfyui_newest, base, front_end=static) as running:
        yield running
