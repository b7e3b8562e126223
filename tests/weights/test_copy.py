"""`--copy`: weights in memory, so that nothing that happens to their files afterwards changes a clip."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import ltxkit
from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.weights.build import open_models
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER
from ltxkit.nodes import launch
from ltxkit.nodes.host import use_host
from ltxkit.nodes.loaders import FROM_FILE, SAME_FILE, ApplyLoRA, LoadModel, LoadTextEncoder, LoadUpscaler

REQUEST: dict[str, Any] = {"width": 32, "height": 32, "frames": 9, "steps": 1, "guidance_scale": 1, "seed": 3}


def cut_off(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\xff" * size)


@pytest.fixture
def models(tiny_models: Callable[..., Path], tmp_path: Path) -> Path:
    """Copies that a test may damage, and a LoRA."""
    folder = tmp_path / "models"
    shutil.copytree(tiny_models(), folder, symlinks=False)
    tensors: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    width = open_models(folder / CHECKPOINT).description.transformer().hidden_size
    for half, shape in (("A", (2, width)), ("B", (width, 2))):
        tensors[f"diffusion_model.transformer_blocks.0.attn1.to_q.lora_{half}.weight"] = torch.randn(
            shape, generator=generator
        )
    save_file(tensors, folder / "lora.safetensors")
    return folder


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix in (".safetensors", ".model") and path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("change", [cut_off, overwritten])
def test_a_clip_does_not_change_with_its_files(models: Path, change: Callable[[Path], object]):
    ltx = ltxkit.load(
        models / CHECKPOINT,
        models / TEXT_ENCODER,
        loras=models / "lora.safetensors",
        device="cpu",
        cache=False,
        copy=True,
        notes=lambda _: None,
    )
    picture = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    expected = ltx.generate("a fox", conditions=picture, **REQUEST).to_tensor()
    clip = ltx.generate("a fox", conditions=picture, **REQUEST)
    for path in list(files(models)):
        change(path)
    assert torch.equal(clip.to_tensor(), expected)  # decoded afterwards
    assert torch.equal(ltx.generate("a fox", conditions=picture, **REQUEST).to_tensor(), expected)
    assert ltx.generate("another prompt", **REQUEST).to_tensor().shape == (9, 32, 32, 3)


def weights_of(*modules: nn.Module) -> list[Tensor]:
    return [tensor for module in modules for tensor in module.state_dict().values()]


@pytest.mark.slow
def test_what_the_loaders_of_a_graph_hold_does_not_change_with_its_files(models: Path, tmp_path: Path):
    (models / "loras").mkdir()
    (models / "lora.safetensors").rename(models / "loras/lora.safetensors")
    upscaler = next((models / "latent_upscale_models").iterdir()).name
    with use_host(PlainHost(models, tmp_path, tmp_path, device=torch.device("cpu"), copy=True, notes=lambda _: None)):
        model, vae = LoadModel().run("ltxv-tiny.safetensors", SAME_FILE, "auto", FROM_FILE)
        (encoder,) = LoadTextEncoder().run("t5-tiny", "auto", False)
        (larger,) = LoadUpscaler().run(upscaler, "auto")
        (model,) = ApplyLoRA().run(model, "lora.safetensors", 1.0, False, "automatic")
    lora = [
        stored.tensor
        for item in model.loras
        for target in item.lora.targets
        for roles in target.adapters.values()
        for stored in roles.values()
    ]
    held = [*weights_of(model.transformer, vae, encoder.module, larger), *lora]
    assert len(lora) == 2
    before = [tensor.clone() for tensor in held]
    for path in files(models):
        overwritten(path)
    assert all(torch.equal(now, then) for now, then in zip(held, before, strict=True))


def test_comfyuis_own_flag_copies_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "is_set", lambda option: option == "disable_mmap")
    assert launch.storage_of("transformer").copy
    monkeypatch.setattr(launch, "is_set", lambda option: False)
    assert not launch.storage_of("transformer").copy


@pytest.mark.slow
def test_the_plan_counts_what_is_copied(tiny_models: Callable[..., Path]):
    given = (tiny_models() / CHECKPOINT, tiny_models() / TEXT_ENCODER)
    mapped, copied = (
        ltxkit.plan(*given, width=32, height=32, frames=9, device="cpu", copy=copy) for copy in (False, True)
    )
    models = ("transformer", "text encoder", "VAE decoder", "VAE encoder")
    assert mapped.converted < copied.converted
    assert copied.converted >= sum(copied.weights[name] for name in models)
    assert copied.peak - mapped.peak == copied.converted - mapped.converted
    assert "that are converted or copied" in str(copied)


def test_a_file_that_changes_while_it_is_copied_is_noticed(models: Path):
    opened = open_models(models / CHECKPOINT, copy=True)
    first, *others = opened.checkpoint.tensors
    opened.checkpoint.tensor(first)
    overwritten(models / CHECKPOINT)
    with pytest.raises(CheckpointError, match="overwritten after it was opened"):
        opened.checkpoint.tensor(others[0])
