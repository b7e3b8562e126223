"""Train LoRA: a real `ltxkit train` on a tiny checkpoint reports progress, stops, resumes; its LoRA can be applied."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.errors import ConfigError, TrainingError
from ltxkit.ltx_core.media import write_video
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.training.checkpoints import latest_checkpoint
from ltxkit.ltx_core.training.logs import read_log
from ltxkit.nodes.host import use_host
from ltxkit.nodes.loaders import ApplyLoRA, LoadModel
from ltxkit.nodes.train import RUNS, TrainLoRA
from ltxkit.nodes.widgets import declared_inputs


class CancelledError(Exception):
    """Stands for the exception of a host."""


@pytest.fixture
def host(link_models: Callable[[Path], Path], said: list[str], tmp_path: Path) -> Iterator[PlainHost]:
    models = link_models(tmp_path / "models")
    plain = PlainHost(models, tmp_path, tmp_path / "output", device=torch.device("cpu"), notes=said.append)
    with use_host(plain):
        yield plain


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos \U0001f98a"  # the path passes through JSON and YAML
    folder.mkdir()
    for number in range(3):
        frames = torch.rand(9, 64, 64, 3, generator=torch.Generator().manual_seed(number))
        write_video(folder / f"{number}.mp4", [frames], fps=Fraction(25))
        (folder / f"{number}.txt").write_text(f"noise number {number}")
    return folder


def settings(videos: Path, **changes: Any) -> dict[str, Any]:
    names = {"model_name": "ltxv-tiny.safetensors", "vae_name": "in the model file", "text_encoder_name": "t5-tiny"}
    size = {"width": 64, "height": 64, "frames": 9, "frame_rate": 25.0, "batch_size": 1}
    run = {"name": "noise", "steps": 6, "learning_rate": 1e-2, "rank": 2, "seed": 1}
    lines = "optimization.precision=fp32\noptimization.warmup_steps=0\nvalidation_samples=1\nlogging.validate_every=100"
    return {**names, "version": "from the file", "folder": str(videos), **size, **run, "settings": lines} | changes


@pytest.mark.slow
def test_cancelled_resumed_and_used(host: PlainHost, videos: Path, said: list[str]) -> None:
    def cancel(event: ProgressEvent) -> None:
        if event.step >= 2:
            raise CancelledError

    host.report = cancel
    with pytest.raises(CancelledError):
        TrainLoRA().run(**settings(videos, steps=500))
    run = host.output_folder / RUNS / "noise"
    stopped = latest_checkpoint(run)
    assert stopped is not None, (run / "output.txt").read_text()
    done = int(stopped.name.removeprefix("step_"))
    assert 2 <= done < 500

    events: list[ProgressEvent] = []
    host.report = events.append
    lora, file = TrainLoRA().run(**settings(videos, steps=done + 2))
    assert [entry["step"] for entry in read_log(run / "log.jsonl") if "loss" in entry] == list(range(1, done + 3))
    assert (events[-1].step, events[-1].total) == (done + 2, done + 2)
    assert any("GiB" in line for line in said)
    assert str(lora) == file
    assert lora == host.models / "loras/noise.safetensors"

    model = LoadModel().run("ltxv-tiny.safetensors", "in the model file", "fp32", "from the file")[0]
    (changed,) = ApplyLoRA().run(model, "", 1.0, False, "those of the model", lora)
    assert len(changed.loras) == 1
    assert any("noise.safetensors: 224" in line for line in said)  # 28 blocks x 2 attentions x 4 targets
    (changed,) = ApplyLoRA().run(model, "that of the link", 1.0, False, "those of the model", lora)
    assert len(changed.loras) == 1
    choices = declared_inputs(ApplyLoRA)["lora_name"].choices
    assert "" in choices  # in graphs of before
    assert "that of the link" in choices
    with pytest.raises(ConfigError, match="got no LoRA; expected a file; choose lora_name, or connect Train LoRA"):
        ApplyLoRA().run(model, "that of the link", 1.0, False, "those of the model")


def test_what_goes_wrong_is_said(host: PlainHost, videos: Path) -> None:
    with pytest.raises(ConfigError, match=r"got folder 'nowhere', but .*nowhere is not a folder; expected videos"):
        TrainLoRA().run(**settings(videos, folder="nowhere"))
    for name in ("../x", "con", "NUL.1", "x.", "x ", "C:x", ""):
        with pytest.raises(ConfigError, match=rf"got name {re.escape(repr(name))}"):
            TrainLoRA().run(**settings(videos, name=name))
        assert TrainLoRA.VALIDATE_INPUTS(name=name) is not True
    assert TrainLoRA.VALIDATE_INPUTS(name="my lora.v2-con") is True
    with pytest.raises(TrainingError, match=r"unknown key optimization.stepz; .* did you mean steps\?"):
        TrainLoRA().run(**settings(videos, settings="optimization.stepz=3"))
    assert not (host.models / "loras/noise.safetensors").exists()
