"""Long Video: windows, prompts, resumption, and the resulting file."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.pipelines.long_video import fingerprint
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.nodes.condition import AddCondition
from ltxkit.nodes.host import use_host
from ltxkit.nodes.latent import DecodeVideo
from ltxkit.nodes.loaders import LoadModel, LoadTextEncoder
from ltxkit.nodes.long import FOLDER, GenerateLongVideo

SCHEDULE = torch.tensor([1.0, 0.5, 0.0])


@pytest.fixture(scope="module")
def parts(tiny_models: Callable[..., Path]) -> tuple[Any, ...]:
    """Model, VAE, text encoder."""
    with use_host(PlainHost(tiny_models(), Path(), Path())), torch.inference_mode():
        model, vae = LoadModel().run("ltxv-tiny.safetensors", "in the model file", "fp32", "2b-0.9.8-distilled")
        (encoder,) = LoadTextEncoder().run("t5-tiny", "fp32", True)
    return model, vae, encoder


@pytest.fixture
def host(models: Path, said: list[str], tmp_path: Path) -> Iterator[PlainHost]:
    """A host whose output folder is empty at the start of each test."""
    plain = PlainHost(models, tmp_path, tmp_path / "out", device=torch.device("cpu"), notes=said.append)
    with use_host(plain), torch.inference_mode():
        yield plain


def long(parts: tuple[Any, ...], prompts: str = "a dune\na storm\nthe sea", **changed: Any) -> tuple[Any, Any]:
    inputs = {
        "negative": "",
        "width": 60,
        "height": 40,
        "frames": 38,
        "frame_rate": 12.0,
        "window_frames": 17,
        "overlap_frames": 9,
        "overlap_strength": 1.0,
        "adain": 0.2,
        "seed": 5,
        "condition_noise": 0.0,
        "decode_timestep": 0.05,
        "decode_noise_scale": 0.025,
        "schedule": SCHEDULE,
    }
    return GenerateLongVideo().run(*parts, prompts, **{**inputs, **changed})


FOUR = "a dune\na storm\n\nthe sea\nan island\n"  # an empty line does not count


@pytest.mark.slow
def test_the_clip_has_the_length_that_was_asked_for_and_stands_in_a_file(
    host: PlainHost, parts: Any, tmp_path: Path, said: list[str]
):
    video, latent = long(parts, FOUR)
    assert video.path.parent == host.folder("output") / FOLDER
    clip = media.read_video(video.path)
    assert clip.frames.shape == (38, 40, 60, 3)
    assert clip.fps == 12
    assert latent["samples"].shape == (1, 128, 6, 2, 2)
    assert latent["ltxkit_canvas"].size == PixelShape(38, 40, 60)
    (images,) = DecodeVideo().run(latent, parts[1], 0.05, 0.025, 5)
    media.write_video(tmp_path / "same.mp4", [images], fps=clip.fps)
    assert torch.equal(media.read_video(tmp_path / "same.mp4").frames, clip.frames)
    text = "\n".join(said)
    assert "4 windows of 17 frames, 4 prompts" in text
    assert "seams change" in text
    assert "mean colour drifts by" in text
    assert "Every window: 2 steps" in text


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(host: PlainHost, parts: Any):
    whole, expected = long(parts, FOUR)
    expected_bytes = whole.path.read_bytes()
    for path in (host.folder("output") / FOLDER).iterdir():
        path.unlink()

    def die(event: Any) -> None:
        if event.stage == "window 3 of 4" and event.step == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    host.report = die
    child = os.fork()
    if child == 0:
        try:
            long(parts, FOUR)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list((host.folder("output") / FOLDER).iterdir())) == 2
    stages: set[str] = set()
    host.report = lambda event: stages.add(event.stage)
    video, latent = long(parts, FOUR)
    assert torch.equal(latent["samples"], expected["samples"])
    assert video.path.read_bytes() == expected_bytes
    assert {"window 3 of 4", "window 4 of 4"} <= stages
    assert not {"window 1 of 4", "window 2 of 4"} & stages


@pytest.mark.slow
def test_another_model_makes_its_own_windows(host: PlainHost, parts: Any, tiny_models: Callable[..., Path]):
    with use_host(PlainHost(tiny_models(seed=1), Path(), Path())):
        other, _ = LoadModel().run("ltxv-tiny.safetensors", "in the model file", "fp32", "2b-0.9.8-distilled")
    assert fingerprint(other.transformer) != fingerprint(parts[0].transformer)
    _, first = long(parts, "a dune")
    _, second = long((other, *parts[1:]), "a dune")
    assert not torch.allclose(first["samples"], second["samples"], atol=0.1)


@pytest.mark.slow
def test_conditions_count_in_the_whole_clip(host: PlainHost, parts: Any):
    (shown,) = AddCondition().run(torch.rand(1, 40, 60, 3), 30, 1.0, "crop")
    _, free = long(parts, FOUR)
    _, late = long(parts, FOUR, conditions=shown)
    assert torch.equal(free["samples"][:, :, :3], late["samples"][:, :, :3])
    assert not torch.allclose(free["samples"][:, :, 4:], late["samples"][:, :, 4:], atol=1e-2)


def test_windows_keep_as_many_blocks_as_the_loaders_asked_for(
    host: PlainHost, parts: Any, monkeypatch: pytest.MonkeyPatch
):
    resident: dict[Any, int | None] = {}
    place = host.place

    def watched(module: Any, *, memory_required: int = 0, resident_blocks: int | None = None) -> Any:
        resident[module] = resident_blocks
        return place(module, memory_required=memory_required, resident_blocks=resident_blocks)

    monkeypatch.setattr(host, "place", watched)
    model, vae, encoder = parts
    chosen = (replace(model, resident_blocks=1), vae, replace(encoder, resident_blocks=0))
    long(chosen, "a dune", frames=17)
    assert (resident[model.transformer], resident[encoder.encoder.model], resident[vae.decoder]) == (1, 0, None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": "a dune\na storm"}, "got 2 prompts for 4 windows of 17 frames; expected 1 or 4"),
        ({"overlap_frames": 17}, "got an overlap of 17 frames in windows of 17; expected less than a window"),
        ({"window_frames": 20}, "got windows of 20 frames; expected 8k\\+1; use 17"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(host: PlainHost, parts: Any, changed: Any, message: str):
    events: list[Any] = []
    host.report = events.append
    with pytest.raises(ConfigError, match=message):
        long(parts, **{"prompts": FOUR, **changed})
    assert not events
