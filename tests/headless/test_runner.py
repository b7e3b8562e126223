"""The shipped demo without ComfyUI, on the bundled model: results, re-use, metadata, errors with titles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxkit.headless.host import PlainHost
from ltxkit.headless.prompt import PromptError
from ltxkit.headless.runner import Runner, all_nodes, run_workflow
from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import ConfigError, LTXKitError
from ltxkit.nodes.templates import template

STEPS = {"First schedule.steps": 2, "Second schedule.steps": 2}


@pytest.fixture
def demo(repository: Path) -> dict[str, Any]:
    """The demo graph, reduced: a picture of 64x64, 9 frames, two steps in each pass."""
    prompt = json.loads(template("demo-two-stage").read_text())
    for node in prompt.values():
        if node["class_type"] == "LTXKitEmptyLatent":
            node["inputs"].update(width=60, height=64, frames=8)
        if node["class_type"] == "LTXKitCreateSchedule":
            node["inputs"]["steps"] = 2
        if node["class_type"] == "ImageScale":
            node["inputs"].update(width=90, height=96)
    return prompt


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def host(tiny_models: Callable[..., Path], repository: Path, tmp_path: Path, said: list[str]) -> PlainHost:
    return PlainHost(tiny_models(), repository / "assets/examples", tmp_path / "out", notes=said.append)


@pytest.fixture
def runner(host: PlainHost) -> Runner:
    return Runner(host, all_nodes())


def titled(prompt: dict[str, Any], title: str) -> str:
    return next(node_id for node_id, node in prompt.items() if node["_meta"]["title"] == title)


def test_the_demo_makes_the_clip_that_was_asked_for(
    runner: Runner, host: PlainHost, demo: dict[str, Any], said: list[str]
):
    result = runner.run(demo)
    (entry,) = result.ui[titled(demo, "Save video")]["images"]
    file = host.folder("output") / entry["filename"]
    clip = media.read_video(file)
    assert clip.frames.shape == (8, 96, 90, 3)
    assert clip.fps == 25
    assert media.read_metadata(file)["prompt"] == demo  # from which ComfyUI opens the graph
    assert set(result.executed) == set(demo)
    assert any("60x64, 8 frames: made as 64x64, 9 frames" in text for text in said)


def test_only_what_changed_runs_again(runner: Runner, demo: dict[str, Any]):
    runner.run(json.loads(json.dumps(demo)))
    again = runner.run(json.loads(json.dumps(demo)))
    assert again.executed == ()
    assert set(again.cached) == set(demo)
    assert again.ui  # the output nodes still report the saved files

    demo[titled(demo, "Scale")]["inputs"]["width"] = 60
    changed = runner.run(demo)
    assert {demo[node]["_meta"]["title"] for node in changed.executed} == {"Scale", "Create video", "Save video"}


def test_a_replaced_input_file_is_noticed(runner: Runner, host: PlainHost, demo: dict[str, Any], tmp_path: Path):
    host.folders["input"] = tmp_path
    media.write_image(tmp_path / "a.png", torch.zeros(64, 64, 3))
    preview = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    runner.run(preview)
    assert runner.run(preview).executed == ()
    media.write_image(tmp_path / "a.png", torch.ones(64, 64, 3))
    assert runner.run(preview).executed == ("1", "2")


@pytest.mark.slow
def test_one_seed_is_one_latent(
    tiny_models: Callable[..., Path], repository: Path, tmp_path: Path, demo: dict[str, Any]
):
    def latent(seed: int, name: str) -> torch.Tensor:
        demo["save"] = {
            "class_type": "SaveLatent",
            "inputs": {"samples": [titled(demo, "Second pass"), 0], "filename_prefix": "x"},
        }
        del demo[titled(demo, "Save video")]
        demo[titled(demo, "First pass")]["inputs"]["seed"] = seed
        host = PlainHost(tiny_models(), repository / "assets/examples", tmp_path / name)
        Runner(host, all_nodes()).run(demo)
        from safetensors.torch import load_file

        demo["end"] = demo.pop("save")
        demo["end"]["_meta"] = {"title": "Save video"}
        return load_file(tmp_path / name / "x_00001_.latent")["latent_tensor"]

    first, again, other = latent(1, "a"), latent(1, "b"), latent(2, "c")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_run_workflow_takes_a_file_and_other_values(
    tiny_models: Callable[..., Path], repository: Path, tmp_path: Path, demo: dict[str, Any]
):
    path = tmp_path / "demo.json"
    path.write_text(json.dumps(demo))
    events: list[str] = []
    (file,) = run_workflow(
        path,
        models=tiny_models(),
        input_folder=repository / "assets/examples",
        output_folder=tmp_path / "out",
        assignments=["Canvas.frames=3", "Save video.filename_prefix=clips/mine"],
        progress=lambda event: events.append(event.stage),
    )
    assert file == tmp_path / "out/clips/mine_00001_.mp4"
    assert len(media.read_video(file).frames) == 3
    assert {"load transformer", "load vae", "load text encoder", "encode text", "sample"} <= set(events)
    assert {"load upscaler", "upscale", "decode"} <= set(events)


def test_an_error_names_the_node(runner: Runner, demo: dict[str, Any]):
    demo[titled(demo, "Condition")]["inputs"]["frame"] = 99
    with pytest.raises(LTXKitError, match=r'"First pass" \(LTXKitSampleVideo, \d+\): got a condition at frame 99'):
        runner.run(demo)


def test_after_an_interrupt_the_next_run_works(runner: Runner, host: PlainHost, demo: dict[str, Any]):
    def cancel(event: Any) -> None:
        if event.stage == "decode" and event.step:
            raise KeyboardInterrupt

    host.report = cancel
    with pytest.raises(KeyboardInterrupt):
        runner.run(demo)
    assert not list(host.folder("output").rglob("*.mp4"))
    host.report = lambda event: None
    result = runner.run(demo)
    assert titled(demo, "First pass") in result.cached
    assert titled(demo, "Decode") in result.executed


@pytest.mark.parametrize("value", ["../secret.png", "/etc/passwd", "x/../../y.png [output]"])
def test_a_path_that_leaves_the_input_folder_is_refused(runner: Runner, demo: dict[str, Any], value: str):
    demo[titled(demo, "Picture")].update(class_type="LoadImage", inputs={"image": value})
    with pytest.raises(PromptError, match=r"which leaves .*; expected a file inside it"):
        runner.run(demo)


@pytest.mark.parametrize("prefix", ["../clip", "/tmp/clip", "a/../../clip"])
def test_a_path_that_leaves_the_output_folder_is_refused(runner: Runner, demo: dict[str, Any], prefix: str):
    preview = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "temple.jpg"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }
    with pytest.raises(ConfigError, match="which leaves"):
        runner.run(preview)


def test_a_missing_model_file_says_what_there_is_and_where(runner: Runner, demo: dict[str, Any]):
    demo[titled(demo, "Model")]["inputs"]["model_name"] = "ltxv-13b.safetensors"
    with pytest.raises(PromptError) as caught:
        runner.run(demo)
    message = str(caught.value)
    assert "got 'ltxv-13b.safetensors', which does not exist; expected ltxv-tiny.safetensors in" in message
    assert "checkpoints" in message
