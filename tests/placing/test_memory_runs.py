"""Streaming with everything that can be attached to a block, and many runs in one process."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.pipelines.text import encode_prompts
from ltxkit.ltx_core.placing import streaming
from ltxkit.ltx_core.placing.copies import Copies
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.lora import WeightedLoRA, load_lora
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder

TinyModels = Callable[..., Path]
ON_LOAD = ("fp8", "int8", "nf4")
IN_FILE = ("fp8", "fp8-scaled", "gguf-q8_0", "gguf-q4_0")


class Spoiling(streaming.DirectTransfers):
    """Blocks arrive as fresh copies, which are overwritten as soon as they are freed: later use would give NaN."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.made: dict[nn.Module, list[Tensor]] = {}
        self.brought = 0

    def finish(self, block: nn.Module) -> None:
        if block not in self._copies:
            made: list[Tensor] = []

            def copy(tensor: Tensor) -> Tensor:
                made.append(tensor.clone())
                return made[-1]

            self._copies[block], self.made[block] = Copies(block, copy), made
            self.brought += 1

    def drop(self, block: nn.Module) -> None:
        super().drop(block)
        for tensor in self.made.pop(block, []):
            tensor.view(torch.uint8).fill_(255) if tensor.ndim else tensor.zero_()


def _other_kinds(width: int) -> dict[str, Tensor]:
    """Adapters beside those of the fixture, for two streamed blocks: small, so that all of them stay finite."""
    generator = torch.Generator().manual_seed(4)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.05

    stem = "diffusion_model.transformer_blocks"
    return {
        f"{stem}.9.attn1.to_q.lokr_w1": noise(4, 4),
        f"{stem}.9.attn1.to_q.lokr_w2": noise(width // 4, width // 4),
        f"{stem}.9.attn1.to_k.oft_blocks": noise(width // 8, 8, 8),
        f"{stem}.9.attn1.to_v.set_weight": noise(width, width),
        f"{stem}.9.attn1.to_v.diff_b": noise(width),
        f"{stem}.9.scale_shift_table.diff": noise(6, width),
        f"{stem}.11.attn1.q_norm.w_norm": noise(width),
        **{f"{stem}.11.attn1.to_q.hada_w{n}_a": noise(width, 2) for n in (1, 2)},
        **{f"{stem}.11.attn1.to_q.hada_w{n}_b": noise(2, width) for n in (1, 2)},
        f"{stem}.11.attn1.to_k.a1.weight": noise(width, 2),
        f"{stem}.11.attn1.to_k.a2.weight": noise(2, width),
        f"{stem}.11.attn1.to_k.b1.weight": noise(width, 2),
        f"{stem}.11.attn1.to_k.b2.weight": noise(2, width),
    }


@pytest.mark.slow
@pytest.mark.parametrize("stored", [None, *ON_LOAD, *(f"file {name}" for name in IN_FILE)])
def test_streamed_equals_resident_with_quantization_and_lora(
    tiny_models: TinyModels,
    lora_and_merged: Any,
    denoise: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: str | None,
) -> None:
    file = tiny_models() / "checkpoints/ltxv-tiny.safetensors"
    plain, _ = load_transformer(file, dtype=torch.float32)
    tensors, _ = lora_and_merged(plain.state_dict(), 1.0)
    tensors |= _other_kinds(plain.scale_shift_table.shape[1])
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "lora.safetensors")
    if stored is None or stored in ON_LOAD:
        model, _ = load_transformer(file, quantization=stored)
    else:
        kind = stored.removeprefix("file ")
        target = tmp_path / ("model.gguf" if kind.startswith("gguf") else "model.safetensors")
        convert(file, target, kind)
        model, _ = load_transformer(target)
    loras = [WeightedLoRA(load_lora(tmp_path / "lora.safetensors"), 0.7)]
    expected = denoise(model, DevicePlacement("cpu"), loras)
    base = denoise(model, DevicePlacement("cpu"), [])
    assert not torch.equal(expected, base)
    spoiling = Spoiling()
    monkeypatch.setattr(streaming, "DirectTransfers", lambda _device: spoiling)
    assert torch.equal(denoise(model, DevicePlacement("cpu", resident_blocks=3), loras), expected)
    assert spoiling.brought == 2 * (model.config.num_layers - 3)


@pytest.mark.parametrize("quantization", [None, *ON_LOAD])
def test_text_encoder_streamed_equals_resident(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch, quantization: str | None
) -> None:
    encoder = load_text_encoder(tiny_models() / "text_encoders/t5-tiny", quantization=quantization)
    (expected,) = encode_prompts(encoder, ["a red ball"], host=Host(DevicePlacement("cpu")))
    spoiling = Spoiling()
    monkeypatch.setattr(streaming, "DirectTransfers", lambda _device: spoiling)
    (found,) = encode_prompts(encoder, ["a red ball"], host=Host(DevicePlacement("cpu", resident_blocks=0)))
    assert torch.equal(found.embeddings, expected.embeddings)
    assert spoiling.brought == encoder.config.num_layers


def live_bytes() -> int:
    """Bytes of all live tensors, by storage."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter) and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.slow
def test_ten_runs_are_one(tiny_models: TinyModels, resident_bytes: Callable[[], int]) -> None:
    """The same bytes result, no tensor remains, and the process stays within 2 % of its size after the second run."""
    folder = tiny_models()
    ltx = Components.load(folder / "checkpoints/ltxv-tiny.safetensors", folder / "text_encoders/t5-tiny", device="cpu")
    made, live, resident = [], [], []
    for _ in range(10):
        clip = ltx.generate("a red ball", width=64, height=64, frames=9, steps=2, seed=3)
        made.append(torch.cat(list(clip.frames())).numpy().tobytes())
        del clip
        live.append(live_bytes())
        resident.append(resident_bytes())
    assert len(set(made)) == 1
    assert len(set(live[1:])) == 1
    assert max(resident[1:]) <= 1.02 * resident[1]


@pytest.fixture
def resident_bytes() -> Callable[[], int]:
    import psutil

    process = psutil.Process()
    return lambda: process.memory_info().rss
