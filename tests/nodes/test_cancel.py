"""Cancel in every long node: the host's exception passes through, and the next run works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.nodes.condition import AddCondition
from ltxkit.nodes.latent import DecodeVideo, EmptyLatent, EncodeVideo, UpscaleLatent
from ltxkit.nodes.loaders import LoadModel, LoadTextEncoder, LoadUpscaler
from ltxkit.nodes.sample import SampleVideo
from ltxkit.nodes.text import EncodePrompt

MODEL = ("ltxv-tiny.safetensors", "in the model file", "auto", "2b-0.9.8-distilled")
UPSCALER = ("ltxv-tiny-spatial-upscaler.safetensors", "auto")


class Cancelled(Exception):  # noqa: N818
    """Like ComfyUI's InterruptProcessingException, a direct subclass of Exception."""


@pytest.fixture(scope="module")
def runs(host: PlainHost) -> dict[str, Callable[[], Any]]:
    """Runs of nodes, by the stage that is cancelled."""
    model, vae = LoadModel().run(*MODEL)
    (encoder,) = LoadTextEncoder().run("t5-tiny", "auto", False)
    (upscaler,) = LoadUpscaler().run(*UPSCALER)
    prompts = EncodePrompt().run(encoder, "a", "b", 24.0)
    empty, _ = EmptyLatent().run(64, 64, 9, 0.0, 24.0, 1)
    latent = {**empty, "samples": torch.randn(1, 128, 2, 2, 2)}
    images = torch.rand(9, 64, 64, 3)
    (conditions,) = AddCondition().run(images, 0, 1.0, "crop")

    def sample() -> Any:
        return SampleVideo().run(model, *prompts, empty, 0, "preset", 0.0, vae=vae, conditions=conditions)

    return {
        "load transformer": lambda: LoadModel().run(*MODEL),
        "load vae": lambda: LoadModel().run(*MODEL),
        "load text encoder": lambda: LoadTextEncoder().run("t5-tiny", "auto", False),
        "load upscaler": lambda: LoadUpscaler().run(*UPSCALER),
        "encode text": lambda: EncodePrompt().run(encoder, "a", "b", 24.0),
        "encode": lambda: EncodeVideo().run(images, vae, 24.0),
        "sample": sample,
        "upscale": lambda: UpscaleLatent().run(latent, upscaler, vae, 1.0),
        "decode": lambda: DecodeVideo().run(latent, vae, 0.05, 0.025, 0),
    }


STAGES = ["load transformer", "load vae", "load text encoder", "load upscaler", "encode text", "encode", "sample"]
STAGES += ["upscale", "decode"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("step", [0, 1])
def test_cancel_stops_the_node_and_leaves_it_usable(
    host: PlainHost, runs: dict[str, Callable[[], Any]], stage: str, step: int
):
    def cancel(event: ProgressEvent) -> None:
        if event.stage == stage and event.step >= step:
            raise Cancelled

    host.report = cancel
    with pytest.raises(Cancelled):
        runs[stage]()
    host.report = lambda event: None
    assert runs[stage]() is not None


def test_conditions_can_be_cancelled_while_they_are_encoded(host: PlainHost, runs: dict[str, Callable[[], Any]]):
    def cancel(event: ProgressEvent) -> None:
        if event.stage == "encode":
            raise Cancelled

    host.report = cancel
    with pytest.raises(Cancelled):
        runs["sample"]()
    host.report = lambda event: None
