"""Clips one after the other: no weight is copied twice, and no text is encoded twice.

Meta stands in for the device, and a number for its memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core import cache, media
from ltxkit.ltx_core.pipelines.condition import Condition
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.pipelines.settings import Overrides, PassSettings
from ltxkit.ltx_core.placing import placement
from ltxkit.ltx_core.placing.devices import Memory
from ltxkit.ltx_core.placing.placement import DevicePlacement

ONE_STEP = PassSettings(steps=1, guidance_scale=1.0)
SMALL = {
    "width": 96,
    "height": 64,
    "frames": 9,
    "fps": 8,
    "settings": Overrides(first=ONE_STEP, second=PassSettings(sigmas=(0.5,), guidance_scale=1.0)),
}


class Copies:
    """A device that counts how often each weight of the models is copied to it."""

    def __init__(self, ltx: Components, device: Any) -> None:
        models = (ltx.transformer, ltx.vae, ltx.text_encoder.model, ltx.upscaler)
        self.models = [model for model in models if model is not None]
        self.names = {
            tensor.data_ptr(): f"{type(model).__name__}.{name}"
            for model in self.models
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        self.counts: Counter[str] = Counter()
        self.mode = device(look=self)

    def __call__(self, func: Any, tensors: Sequence[Tensor]) -> None:
        name = func.overloadpacket.__name__
        if name == "_to_copy" and not tensors[0].is_meta and tensors[-1].is_meta:
            self.counts.update([self.names.get(tensors[0].data_ptr(), "work")])

    def of_weights(self) -> dict[str, int]:
        """What was copied since the last call."""
        counts = {name: count for name, count in self.counts.items() if name != "work"}
        self.counts.clear()
        return counts

    def memory(self, total: int) -> Callable[[torch.device], Memory]:
        def now(_: torch.device) -> Memory:
            there = sum(
                tensor.nbytes
                for model in self.models
                for tensor in {*model.parameters(), *model.buffers()}
                if tensor.is_meta
            )
            return Memory(total - there, total)

        return now


@pytest.fixture
def made(
    tiny_models: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meta_device: Any
) -> Callable[..., tuple[Components, Copies]]:
    """made(keep, total=...): a library with two passes on a card of `total` bytes, and what is copied to it."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))  # what meta encodes is nothing to keep
    folder = tiny_models()

    def make(keep: bool | None, total: int = 2**40) -> tuple[Components, Copies]:
        ltx = Components.load(
            folder / "checkpoints/ltxv-tiny.safetensors",
            folder / "text_encoders/t5-tiny",
            upscaler=folder / "latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors",
            device="cpu",
        )
        ltx = replace(ltx, placement=DevicePlacement("meta", keep=keep))
        copies = Copies(ltx, meta_device)
        monkeypatch.setattr(placement, "memory", copies.memory(total))
        return ltx, copies

    return make


def clip(ltx: Components, copies: Copies, prompt: str, repository: Path) -> None:
    start = Condition(media.read_image(repository / "assets/examples/temple.jpg"))
    with copies.mode:
        frames = ltx.generate(prompt, **SMALL, conditions=[start]).frames()
        assert sum(len(chunk) for chunk in frames) == SMALL["frames"]


@pytest.mark.slow
def test_a_second_clip_copies_no_weight_and_encodes_no_text(made: Any, repository: Path) -> None:
    ltx, copies = made(None)
    clip(ltx, copies, "fox", repository)
    first = copies.of_weights()
    assert {name.partition(".")[0] for name in first} == {
        "LTXTransformer",
        "VideoVAE",
        "T5EncoderModel",
        "LatentUpsampler",
    }
    assert set(first.values()) == {1}  # also in two passes

    encoded: list[object] = []
    handle = ltx.text_encoder.model.register_forward_pre_hook(lambda *_: encoded.append(1))
    clip(ltx, copies, "fox", repository)
    assert copies.of_weights() == {}
    assert encoded == []
    clip(ltx, copies, "house", repository)
    assert copies.of_weights() == {}
    assert encoded != []
    handle.remove()
    ltx.release()
    assert not any(tensor.is_meta for model in copies.models for tensor in model.parameters())


@pytest.mark.slow
def test_without_keeping_every_pass_copies(made: Any, repository: Path) -> None:
    ltx, copies = made(False)
    clip(ltx, copies, "fox", repository)
    assert any(name.startswith("T5EncoderModel") for name in copies.of_weights())
    clip(ltx, copies, "fox", repository)
    counts = copies.of_weights()
    assert counts["LTXTransformer.proj_out.weight"] == 2
    assert not any(name.startswith("T5EncoderModel") for name in counts)  # the prompt is kept all the same
