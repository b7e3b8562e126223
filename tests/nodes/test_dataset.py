"""Dataset: what `ltxkit data check` finds stands on the node, and Train LoRA trains on what it has looked at."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.media import write_video
from ltxkit.ltx_core.progress import ProgressEvent, silent
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.nodes import dataset as dataset_node
from ltxkit.nodes import processes, sockets
from ltxkit.nodes import train as train_node
from ltxkit.nodes.dataset import CheckDataset
from ltxkit.nodes.host import use_host
from ltxkit.nodes.train import TrainLoRA

SIZE = {"width": 64, "height": 32, "frames": 9, "frame_rate": 25.0}


class CancelledError(Exception):
    """Stands for the exception of a host."""


@pytest.fixture
def host(said: list[str], tmp_path: Path) -> Iterator[PlainHost]:
    plain = PlainHost(tmp_path / "models", tmp_path, tmp_path / "output", device=torch.device("cpu"), notes=said.append)
    for name in ("checkpoints/base.safetensors", "text_encoders/t5/config.json"):
        (plain.models / name).parent.mkdir(parents=True)
        (plain.models / name).touch()
    with use_host(plain):
        yield plain


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos \U0001f98a"  # the path passes through JSON and YAML
    for number in range(2):
        frames = torch.rand(9, 32, 64, 3, generator=torch.Generator().manual_seed(number))
        write_video(folder / f"{number}.mp4", [frames], fps=Fraction(25))
        (folder / f"{number}.txt").write_text(f"noise number {number}")
    return folder


def found(**changes: Any) -> dict[str, Any]:
    return {"lines": ["clips: 2 of 2 files can be used"], "faults": [], **changes}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The assignments of every check, which finds nothing wrong."""
    calls: list[list[str]] = []

    def check(_: Path, assignments: list[str], __: Any) -> Any:
        calls.append(assignments)
        return found(), torch.zeros(1, 8, 8, 3)

    monkeypatch.setattr(dataset_node, "check", check)
    return calls


@pytest.mark.slow
def test_what_is_found_stands_on_the_node(host: PlainHost, videos: Path, said: list[str]) -> None:
    events: list[ProgressEvent] = []
    host.report = events.append
    (videos / "short.mp4").write_bytes(b"no video")
    clips, sheet, findings = CheckDataset().run(str(videos), **SIZE, windows="all", trigger_word="#1 \U0001f98a")
    assert clips == sockets.Dataset(videos, PixelShape(9, 32, 64), 25.0, clips.settings)
    assert "2 of 3 files can be used, 1 skipped" in findings
    assert "9 frames of 64x32: 2 clips, 2 windows" in findings
    assert "short.mp4" in findings
    assert findings.endswith("a training on this data would start")
    assert f": {findings}" in said
    assert sheet.shape[0] == 1
    assert sheet.shape[-1] == 3
    assert len(sheet.reshape(-1, 3).unique(dim=0)) > 100  # frames of noise
    assert events[-1].picture is not None
    assert events[-1].picture.dtype == torch.uint8

    (videos / "1.txt").unlink()
    clips, _, findings = CheckDataset().run(str(videos), **SIZE)
    assert "a training on this data would be refused" in findings
    assert clips.faults == (f"{videos / '1.mp4'}: no caption",)
    with pytest.raises(ConfigError, match=r"got a dataset that cannot be trained on: .*1\.mp4: no caption; expected"):
        TrainLoRA().run(**training(clips))

    with pytest.raises(ConfigError, match=r"unknown key data\.wndows; .* did you mean windows\?"):
        CheckDataset().run(str(videos), **SIZE, settings="data.wndows=all")


@pytest.mark.slow
def test_cancel_stops_the_check(host: PlainHost, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    start = processes.subprocess.Popen
    monkeypatch.setattr(
        processes.subprocess, "Popen", lambda *said, **more: started.append(start(*said, **more)) or started[-1]
    )

    def cancel(_: ProgressEvent) -> None:
        raise CancelledError

    host.report = cancel
    with pytest.raises(CancelledError):
        CheckDataset().run(str(videos), **SIZE)
    (process,) = started
    assert process.poll() is not None


def test_a_table_or_another_tool_s_file_is_a_dataset(
    host: PlainHost, videos: Path, asked: list[list[str]], tmp_path: Path
) -> None:
    for name in ("captions.csv", "sets.toml", "shard.tar"):
        (tmp_path / name).touch()
        clips, _, _ = CheckDataset().run(name, **SIZE)  # in the input folder
        assert clips.path == tmp_path / name
    assert len(asked) == 3
    clips, _, _ = CheckDataset().run(str(videos), **SIZE)
    assert clips.path == videos
    for name in ("nowhere", "", "../nowhere.csv"):
        with pytest.raises(ConfigError, match=r"got path .* does not exist; expected videos and captions"):
            CheckDataset().run(name, **SIZE)


def test_settings_are_about_clips_alone(host: PlainHost, videos: Path, asked: list[list[str]]) -> None:
    CheckDataset().run(str(videos), **SIZE, settings=" data.fps=12\n\nvalidation.share=0.1\n")
    assert asked[0][-2:] == ["data.fps=12", "validation.share=0.1"]
    for line in ("optimization.steps=3", "initial=x", "data", "output=/etc"):
        with pytest.raises(ConfigError, match=rf"got '{line}' in settings; expected lines that begin with data\. or"):
            CheckDataset().run(str(videos), **SIZE, settings=line)


def test_many_findings_do_not_fill_the_node(
    host: PlainHost, videos: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"skipped: {number}" for number in range(150)]
    monkeypatch.setattr(dataset_node, "check", lambda *_: (found(lines=lines), torch.zeros(1, 8, 8, 3)))
    _, _, findings = CheckDataset().run(str(videos), **SIZE)
    assert findings.splitlines() == lines
    assert said[-1].removeprefix(": ").splitlines() == [*lines[:100], "and 50 more lines, which `findings` has"]


def test_the_node_looks_again_when_a_file_has_changed(host: PlainHost, videos: Path, tmp_path: Path) -> None:
    before = CheckDataset.IS_CHANGED(path=str(videos), width=64)
    assert CheckDataset.IS_CHANGED(path=videos.name) == before  # below input
    (videos / "more.txt").touch()
    more = CheckDataset.IS_CHANGED(path=str(videos))
    assert more != before
    os.utime(videos / "0.txt", (1, 1))
    assert CheckDataset.IS_CHANGED(path=str(videos)) not in (before, more)
    (tmp_path / "table.csv").touch()
    for given in ({"path": "table.csv"}, {"path": None}, {"path": str(videos), "settings": "validation.path=x"}):
        assert isinstance(CheckDataset.IS_CHANGED(**given), float)  # it looks each time
    assert isinstance(CheckDataset.IS_CHANGED(path=str(videos), settings=None), float)


# ---------------------------------------------------------------------------------------------------------- Train LoRA


def training(clips: Any, **changes: Any) -> dict[str, Any]:
    names = {"model_name": "base.safetensors", "vae_name": "in the model file", "text_encoder_name": "t5"}
    size = {"width": 768, "height": 512, "frames": 49, "frame_rate": 24.0, "batch_size": 1}
    run = {"name": "x", "steps": 6, "learning_rate": 1e-2, "rank": 2, "seed": 1, "copy_to_loras": False}
    return {**names, "version": "from the file", "folder": "nowhere", **size, **run, "dataset": clips} | changes


def test_train_lora_takes_clips_size_and_rate_from_it(
    host: PlainHost, videos: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[dict[str, Any], list[str]]] = []
    monkeypatch.setattr(train_node, "train", lambda _, values, further, *__: started.append((values, further)))
    clips, _, _ = CheckDataset().run(str(videos), **SIZE, trigger_word="x", settings="data.precomputed=false")
    TrainLoRA().run(**training(clips, settings="optimization.accumulation=2"))
    ((values, further),) = started
    assert values["data.path"] == str(videos)
    assert values["data.sizes"] == [[9, 32, 64]]
    assert values["data.fps"] == 25.0
    assert further[-2:] == ["data.precomputed=false", "optimization.accumulation=2"]
    assert 'data.trigger_word="x"' in further
    said = dict(line.split("=", 1) for line in asked[0])
    assert json.loads(said["data.sizes"]) == values["data.sizes"]
    assert set(further[:-1]) < set(asked[0])  # what is trained on is what was looked at


def test_train_lora_without_it_is_as_before(host: PlainHost, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[dict[str, Any], list[str]]] = []
    monkeypatch.setattr(train_node, "train", lambda _, values, further, *__: started.append((values, further)))
    TrainLoRA().run(**training(None, folder=str(videos)))
    ((values, further),) = started
    assert (values["data.path"], values["data.sizes"], values["data.fps"]) == (str(videos), [[49, 512, 768]], 24.0)
    assert further == []
    with pytest.raises(ConfigError, match=r"got folder .* is not a folder"):
        TrainLoRA().run(**training(None))


def test_what_is_no_dataset_is_refused(host: PlainHost) -> None:
    with pytest.raises(ConfigError, match=r"dataset.*Dataset \(LTXKit\)"):
        TrainLoRA().run(**training("videos"))


@pytest.mark.slow
def test_a_check_that_ends_without_a_result_is_quoted(
    host: PlainHost, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_node, "PRESET", "no-such-preset")
    with pytest.raises(ConfigError, match="got config no-such-preset; expected a YAML file or one of the presets"):
        dataset_node.check(videos, [], silent)
