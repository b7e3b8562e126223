"""A file that is written to while its model is in use is noticed at every way in; on Windows too."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.placing.lora import applied
from ltxkit.ltx_core.weights import mapping
from ltxkit.ltx_core.weights.build import load_transformer, load_vae
from ltxkit.ltx_core.weights.containers import open_checkpoint
from ltxkit.ltx_core.weights.lora import WeightedLoRA, load_lora
from ltxkit.ltx_core.weights.mapping import MappedFile

TinyModels = Callable[..., Path]


@pytest.fixture
def file(tiny_models: TinyModels, tmp_path: Path) -> Path:
    source = next((tiny_models(vae="0.9.0") / "checkpoints").iterdir())
    return Path(shutil.copy(source, tmp_path / "model.safetensors"))


def spoil(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.write(b"\0")


@pytest.mark.parametrize("way", ["encode", "stream_encode", "decode", "stream_decode", "prepare_text"])
def test_every_way_into_a_model_is_watched(file: Path, way: str) -> None:
    if way == "prepare_text":
        transformer, _ = load_transformer(file)
        context = torch.zeros(3, transformer.config.caption_channels, dtype=torch.float32)
        work: Callable[[], object] = lambda: transformer.prepare_text([context])  # noqa: E731
    else:
        vae = load_vae(file, dtype=torch.float32)
        pixels, latent = torch.zeros(1, 3, 1, 32, 32), torch.zeros(1, vae.config.latent_channels, 1, 1, 1)
        work = {
            "encode": lambda: vae.encode(pixels),
            "stream_encode": lambda: list(vae.stream_encode([pixels])),
            "decode": lambda: vae.decode(latent),
            "stream_decode": lambda: list(vae.stream_decode(latent)),
        }[way]
    with torch.no_grad():
        work()
        spoil(file)
        with pytest.raises(CheckpointError, match=r"model\.safetensors, which was overwritten after it was opened"):
            work()


def test_a_lora_is_watched_too(file: Path, tmp_path: Path, velocity: Callable[..., Tensor]) -> None:
    transformer, _ = load_transformer(file, dtype=torch.float32)
    width = transformer.config.hidden_size
    name = "diffusion_model.transformer_blocks.0.attn1.to_q"
    factors = {f"{name}.lora_A.weight": torch.ones(2, width), f"{name}.lora_B.weight": torch.ones(width, 2)}
    path = tmp_path / "lora.safetensors"
    save_file(factors, path)
    lora = WeightedLoRA(load_lora(path), 0.5)
    hooks = sum(len(module._forward_pre_hooks) for module in transformer.modules())
    with applied(transformer, [lora]):
        velocity(transformer)
        spoil(path)
        with pytest.raises(CheckpointError, match=r"lora\.safetensors, which was overwritten"):
            velocity(transformer)
    assert sum(len(module._forward_pre_hooks) for module in transformer.modules()) == hooks
    velocity(transformer)
    with (
        pytest.raises(CheckpointError, match=r"lora\.safetensors, which was overwritten"),
        applied(transformer, [lora]),
    ):
        pass


def test_without_reads_at_an_offset_a_change_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: same size, same time, another start."""
    monkeypatch.delattr(os, "pread", raising=False)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(64)))
    mapped = MappedFile(path)
    assert mapped.tensor(8, torch.uint8, (3,)).tolist() == [8, 9, 10]
    mapped.check_unchanged()
    found = path.stat()
    with path.open("r+b") as opened:
        opened.write(b"\xff")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    with pytest.raises(CheckpointError, match="was overwritten"):
        mapped.check_unchanged()


def test_on_windows_files_are_mapped_to_be_read_alone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, velocity: Callable[..., Tensor]
) -> None:
    """A private mapping counts against the page file there. Here such a mapping ends the process when it is written to,
    so a model that runs, with a LoRA, and decodes, writes to none of its weights."""
    ways: list[object] = []
    original = mmap.mmap

    def recorded(descriptor: int, length: int, **options: object) -> mmap.mmap:
        ways.append(options)
        return original(descriptor, length, **options)  # pyright: ignore[reportArgumentType]

    expected = velocity(load_transformer(file, dtype=torch.float32)[0])
    monkeypatch.setattr(mapping.sys, "platform", "win32")
    monkeypatch.setattr(mapping.mmap, "mmap", recorded)
    transformer, _ = load_transformer(file, dtype=torch.float32)
    assert torch.equal(velocity(transformer), expected)
    vae = load_vae(file, dtype=torch.float32)
    with torch.no_grad():
        vae.decode(torch.zeros(1, vae.config.latent_channels, 1, 1, 1, dtype=torch.float32))
    assert ways == [{"access": mmap.ACCESS_READ}] * 2
    checkpoint = open_checkpoint(file)
    for key, tensor in load_file(file).items():
        assert torch.equal(checkpoint.tensor(key), tensor)
