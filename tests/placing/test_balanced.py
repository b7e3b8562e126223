"""Blocks on several devices: the same numbers as on one, no operation across two, and the originals stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltxkit import cli
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.transformer import Branch
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.pipelines.text import encode_prompts
from ltxkit.ltx_core.placing import balanced
from ltxkit.ltx_core.placing.balanced import BalancedPlacement, divide
from ltxkit.ltx_core.placing.copies import Copies
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder

CPU = torch.device("cpu")


class Second(Copies):
    """A second device on the CPU: weights are copied to fresh memory, and every copy is recorded."""

    log: list[tuple[nn.Module, torch.device]]

    def __init__(self, module: nn.Module, device: torch.device, **options: Any) -> None:
        self.log.append((module, device))
        super().__init__(module, Tensor.clone, **options)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "int8", "nf4"])
def test_two_devices_give_the_bits_of_one(
    tiny_models: Callable[..., Path], denoise: Any, monkeypatch: pytest.MonkeyPatch, quantization: str | None
) -> None:
    model, _ = load_transformer(tiny_models() / "checkpoints/ltxv-tiny.safetensors", quantization=quantization)
    pointers = [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]
    hooks = [len(part._forward_pre_hooks) for part in model.modules()]  # those that watch the model's file
    expected = denoise(model, BalancedPlacement([CPU]))
    Second.log = []
    monkeypatch.setattr(balanced, "DeviceCopies", Second)
    place = BalancedPlacement([torch.device("cpu", 0), torch.device("cpu", 1)])
    assert torch.equal(denoise(model, place), expected)
    where = [device.index for block, device in Second.log if block is not model]
    assert where == sorted(where)
    assert abs(where.count(0) - where.count(1)) <= 4  # weights outside the blocks count on the first device
    assert [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())] == pointers
    assert [len(part._forward_pre_hooks) for part in model.modules()] == hooks


def test_text_encoder(tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_text_encoder(tiny_models() / "text_encoders/t5-tiny")
    (expected,) = encode_prompts(encoder, ["a red ball"], host=Host(BalancedPlacement([CPU])))
    Second.log = []
    monkeypatch.setattr(balanced, "DeviceCopies", Second)
    (found,) = encode_prompts(encoder, ["a red ball"], host=Host(BalancedPlacement(["cpu:0", "cpu:1"])))
    assert torch.equal(found.embeddings, expected.embeddings)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [("meta", "cpu"), ("cpu", "meta"), ("cpu", "meta", "cpu")])
def test_nothing_is_computed_across_devices(
    tiny_models: Callable[..., Path], denoise: Any, meta_device: Any, devices: tuple[str, ...]
) -> None:
    """Meta and the CPU are two devices that torch itself keeps apart: only copies pass between them."""
    model, _ = load_transformer(tiny_models() / "checkpoints/ltxv-tiny.safetensors")
    mixed: set[str] = set()

    def look(func: Any, tensors: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        if len({tensor.device for tensor in tensors if tensor.ndim}) > 1 and name not in ("_to_copy", "copy_"):
            mixed.add(name)

    left_out = {"skip_blocks": (tuple(range(model.config.num_layers)),), "stg_mode": "transformer_block"}
    with meta_device(look=look):
        for skip in ({}, left_out):  # a lane that skips a block meets the others on the device of that block
            assert denoise(model, BalancedPlacement(devices), **skip).shape == (1, model.config.in_channels, 2, 2, 3)
        encoder = load_text_encoder(tiny_models() / "text_encoders/t5-tiny")
        encode_prompts(encoder, ["a red ball"], host=Host(BalancedPlacement(devices)))
    assert not mixed


@pytest.mark.slow
def test_the_result_is_on_the_first_device_without_the_last_block(
    tiny_models: Callable[..., Path], meta_device: Any
) -> None:
    model, _ = load_transformer(tiny_models() / "checkpoints/ltxv-tiny.safetensors")
    channels, captions = model.config.in_channels, model.config.caption_channels
    last = frozenset({model.config.num_layers - 1})
    with meta_device(), BalancedPlacement(["cpu", "meta"])(model) as device, torch.no_grad():
        branch = Branch(model.prepare_text([torch.zeros(3, captions, device=device)]), last, "transformer_block")
        rotary = model.prepare_positions(torch.zeros(1, 3, 4, device=device))
        x, sigma = torch.zeros(1, 4, channels, device=device), torch.ones(1, 1, 1, device=device)
        (velocity,) = model(x, sigma, rotary, (branch,))
    assert velocity.device == device


def test_bytes_are_divided_evenly_and_in_order() -> None:
    assert divide([10] * 8, 0, 2) == [0] * 4 + [1] * 4
    assert divide([10] * 8, 40, 2) == [0, 0] + [1] * 6
    assert divide([10] * 9, 0, 3) == [0] * 3 + [1] * 3 + [2] * 3
    with pytest.raises(ConfigError, match="got no devices"):
        BalancedPlacement([])


def test_what_has_no_blocks_is_on_the_first_device() -> None:
    layer = nn.Linear(2, 2)
    with BalancedPlacement(["meta", "cpu"])(layer) as device:
        assert device.type == "meta"
        assert layer.weight.is_meta
    assert not layer.weight.is_meta


@pytest.mark.slow
def test_library_and_command_take_several(tiny_models: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_models() / "checkpoints/ltxv-tiny.safetensors"
    text_encoder = tiny_models() / "text_encoders/t5-tiny"
    latents = []
    for device in ("cpu", ["cpu", "cpu"]):
        ltx = Components.load(model, text_encoder, device=device)
        latents.append(ltx.generate("a ball", width=64, height=64, frames=9, steps=2, seed=1).latent)
    assert torch.equal(*latents)
    files = ["--model", model, "--text-encoder", text_encoder, "-o", tmp_path / "clip.mp4"]
    wanted = ["--prompt", "a ball", "--size", "64x64", "--frames", "9", "--steps", "2", "--device", "cpu,cpu"]
    assert cli.main(["generate", *map(str, files), *wanted]) == 0
    assert (tmp_path / "clip.mp4").stat().st_size > 0
