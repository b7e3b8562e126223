"""Train LoRA: a real `ltxkit train` on a tiny checkpoint reports progress, stops, resumes; its LoRA can be applied."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.budget.plan import Card
from ltxkit.ltx_core.errors import ConfigError, TrainingError, UnsupportedError
from ltxkit.ltx_core.locks import LOCK, locked_folder
from ltxkit.ltx_core.media import write_image, write_video
from ltxkit.ltx_core.pipelines.dry_run import card_here
from ltxkit.ltx_core.placing.devices import Memory
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.run_log import read_log
from ltxkit.ltx_core.training.checkpoints import latest_checkpoint
from ltxkit.ltx_core.training.config import load_config
from ltxkit.ltx_core.training.plans import plan_training
from ltxkit.nodes import background, processes
from ltxkit.nodes import run_picture as run_pictures
from ltxkit.nodes import train as train_node
from ltxkit.nodes.host import use_host
from ltxkit.nodes.loaders import ApplyLoRA, LoadModel
from ltxkit.nodes.run_picture import CURVE, WIDTH, run_picture
from ltxkit.nodes.train import RUNS, TrainLoRA
from ltxkit.nodes.widgets import declared_inputs

# A command whose output goes into the files that come before its arguments.
COMMAND = """
import os, sys
from ltxkit import cli
for number, path in enumerate(sys.argv[1:3], 1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
sys.exit(cli.main(sys.argv[3:]))
"""


class CancelledError(Exception):
    """Stands for the exception of a host."""


@pytest.fixture
def quick_commands(forked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands that the nodes start are forks of a process that has imported torch, where one can fork."""
    if sys.platform != "linux":
        yield
        return
    started: list[Any] = []

    def start(command: list[str], *, cwd: Path | str, stdout: Any, stderr: Any, env: dict[str, str], **_: Any) -> Any:
        python, pack, *arguments = command
        assert (python, pack) == (sys.executable, str(processes.PACK))
        said = stdout.name if stderr == subprocess.STDOUT else stderr.name
        started.append(forked(["-c", COMMAND, stdout.name, said, *arguments], env, Path(cwd)))
        return started[-1]

    others = ("DEVNULL", "STDOUT", "TimeoutExpired")
    stand_in = types.SimpleNamespace(Popen=start, **{name: getattr(subprocess, name) for name in others})
    for module in (train_node, processes):
        monkeypatch.setattr(module, "subprocess", stand_in)
    yield
    for process in started:
        process.communicate(timeout=60)


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
@pytest.mark.usefixtures("quick_commands")
def test_cancelled_resumed_and_used(
    host: PlainHost, videos: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    monkeypatch.setattr(train_node, "subprocess", subprocess)  # once as a user has it
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


# ---------------------------------------------------------------------------------------------------------- background


def entries(run: Path, count: int) -> None:
    run.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step, "loss": 1 / step, "seconds_left": 300.0} for step in range(1, count + 1)]
    lines += [{"step": count, "validation_loss": 0.5}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "log.jsonl").write_text(text + '{"step": 9, "lo', encoding="utf-8")


@pytest.mark.parametrize("count", [0, 1, 2, 5000])
def test_a_run_is_a_picture(count: int, tmp_path: Path) -> None:
    if count:
        entries(tmp_path, count)
    bare = run_picture(read_log(tmp_path / "log.jsonl") if count else [], None)
    assert bare.dtype == torch.uint8
    assert bare.shape == (1, CURVE, WIDTH, 3)
    assert len(bare.reshape(-1, 3).unique(dim=0)) > 3  # something is drawn
    words = (bare[0, :28].float().mean(dim=-1) > 150).nonzero()  # in letters that are still read at half the size
    assert int(words[:, 0].max() - words[:, 0].min()) >= 12
    assert int(words[:, 1].max()) < WIDTH - 1
    sheet = tmp_path / "sheet.png"
    write_image(sheet, torch.ones(1, 64, 9 * 64, 3))
    whole = run_picture([], sheet)
    assert whole.shape == (1, CURVE + round(64 * WIDTH / (9 * 64)), WIDTH, 3)
    assert bool((whole[0, CURVE:] == 255).all())


def test_a_picture_comes_when_there_is_something_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(run_pictures, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    pictures = run_pictures.RunPictures(tmp_path)
    assert pictures.due() is None  # no log yet
    entries(tmp_path, 3)
    assert pictures.due() is not None
    entries(tmp_path, 4)
    assert pictures.due() is None  # too soon
    clock[0] += 100
    assert pictures.due() is not None
    clock[0] += 100
    assert pictures.due() is None  # nothing new
    assert pictures.due(now=True) is not None


def test_what_does_not_fit_beside_the_queue_is_refused_with_both_figures(
    host: PlainHost, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    asked: list[list[str]] = []
    plan = {"peak": 5_000_000_000, "changes": ["quantization=int8"]}
    monkeypatch.setattr(train_node, "start", lambda *_, **__: started.append(1))
    monkeypatch.setattr(background, "findings", lambda arguments, _: asked.append(list(arguments)) or plan)
    monkeypatch.setattr(background, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(background, "memory", lambda _: Memory(1_000_000, 10**9))
    with pytest.raises(
        UnsupportedError,
        match=r"takes about 5\.00 GB, with 0\.00 GB free on cpu beside the models .* or put quantization=int8 into set",
    ):
        TrainLoRA().run(**settings(videos, background=True, settings="quantization=nf4"))
    assert not started
    ((*start, last),) = asked
    assert start[:7] == ["plan", "--train", "lora-2b", "--json", "--named-optimizers", "--device", "cpu"]
    assert last == "quantization=nf4"
    assert f"data.path={json.dumps(str(videos), ensure_ascii=False)}" in start

    plan |= {"peak": 1_000_000, "changes": []}
    background.check_fits("lora-2b", [], lambda: None)
    monkeypatch.setattr(background, "memory", lambda _: None)  # a system that does not say
    plan["peak"] = 10**15
    background.check_fits("lora-2b", [], lambda: None)


def test_a_card_is_counted_without_opening_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the memory that is free beside the queue's models."""
    asked: list[list[str]] = []
    monkeypatch.setattr(
        background, "findings", lambda arguments, _: asked.append(list(arguments)) or {"peak": 3 * 2**30, "changes": []}
    )
    monkeypatch.setattr(background, "memory", lambda _: Memory(2 * 2**30, 24 * 2**30))
    with pytest.raises(UnsupportedError, match=r"about 3\.22 GB, with 2\.15 GB free on cuda:0"):
        background.check_fits("lora-2b", [], lambda: None, torch.device("cuda:0"))
    (command,) = asked
    assert "--device" not in command
    card = Card.of_size(int(float(command[command.index("--card") + 1]) * 2**30))
    assert card.available == 2 * 2**30


@pytest.mark.slow
@pytest.mark.usefixtures("quick_commands")
def test_the_figure_is_that_of_the_plan(host: PlainHost, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "memory", lambda _: Memory(1_000_000, 10**9))
    model, text = host.models / "checkpoints/ltxv-tiny.safetensors", host.models / "text_encoders/t5-tiny"
    said = train_node.assignments(
        {"initial": str(model), "vae": str(model), "text.encoder": str(text), "data.path": str(videos)},
        ["data.sizes=[[9,64,64]]", "lora.rank=4"],
    )
    with pytest.raises(UnsupportedError) as raised:
        background.check_fits("lora-2b", said, lambda: None, torch.device("cpu"))
    peak = plan_training(load_config("lora-2b", said), card_here("cpu")).peak
    assert f"takes about {peak / 1e9:.2f} GB, with 0.00 GB free on cpu" in str(raised.value)
    with pytest.raises(ConfigError, match=r"unknown key optimization\.stepz; .* did you mean steps\?"):
        background.check_fits("lora-2b", [*said, "optimization.stepz=3"], lambda: None, torch.device("cpu"))
    by_path = [*said, "optimization.optimizer=torch.optim.SGD"]
    with pytest.raises(ConfigError, match=r"got optimizer torch\.optim\.SGD in the settings of a node"):
        background.check_fits("lora-2b", by_path, lambda: None, torch.device("cpu"))


def test_a_run_that_failed_in_the_background_says_so_when_queued_again(
    host: PlainHost, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = host.output_folder / RUNS / "noise"

    def start(*_: Any, **__: Any) -> Any:
        run.mkdir(parents=True, exist_ok=True)
        (run / "output.txt").write_text("ltxkit: got no captions; expected some; write them\n", encoding="utf-8")
        return types.SimpleNamespace(poll=lambda: 1, returncode=1)

    monkeypatch.setattr(train_node, "start", start)
    monkeypatch.setattr(train_node, "check_fits", lambda *_: None)
    TrainLoRA().run(**settings(videos, background=True))
    with pytest.raises(TrainingError, match="status 1 from training: got no captions"):
        TrainLoRA().run(**settings(videos, background=True))
    TrainLoRA().run(**settings(videos, background=True))  # said once; then it is tried again
    background.ended_with(run)


def test_a_lock_left_behind_is_no_run(tmp_path: Path) -> None:
    assert not background.is_running(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{LOCK}folder").touch()  # of a process that was killed
    assert not background.is_running(tmp_path / "run")
    with locked_folder(tmp_path / "run", "training"):
        assert background.is_running(tmp_path / "run")
    assert not background.is_running(tmp_path / "run")


def test_with_background_the_node_runs_each_time_it_is_queued() -> None:
    assert TrainLoRA.IS_CHANGED(background=False, name="x") == TrainLoRA.IS_CHANGED(name="x")
    assert TrainLoRA.IS_CHANGED(background=True, name="x") != TrainLoRA.IS_CHANGED(name="x")


@pytest.mark.slow
@pytest.mark.usefixtures("quick_commands")
def test_in_the_background_watched_stopped_and_finished(host: PlainHost, videos: Path, said: list[str]) -> None:
    run = host.output_folder / RUNS / "noise"
    lines = settings(videos)["settings"] + "\nlogging.checkpoint_every=2"
    _, file = TrainLoRA().run(**settings(videos, steps=5000, settings=lines, background=True))
    assert background.is_running(run)
    assert Path(file).name == "lora_comfyui.safetensors"
    assert any("started in the background" in line for line in said)
    events: list[ProgressEvent] = []

    def cancel(event: ProgressEvent) -> None:
        events.append(event)
        if event.step >= 2:
            raise CancelledError

    host.report = cancel
    with pytest.raises(CancelledError):  # off: it waits for the run that is there, and stops it
        TrainLoRA().run(**settings(videos, steps=5000, settings=lines))
    assert not background.is_running(run)
    assert not (run / "stop").exists()
    stopped = latest_checkpoint(run)
    assert stopped is not None, (run / "output.txt").read_text()
    assert any(event.picture is not None for event in events)
    assert "Traceback" not in (run / "output.txt").read_text("utf-8")
    host.report = events.append
    done = int(stopped.name.removeprefix("step_"))
    TrainLoRA().run(**settings(videos, steps=done + 1, settings=lines, background=True))
    trained, _ = TrainLoRA().run(**settings(videos, steps=done + 1, settings=lines))  # goes on, and waits for the end
    assert trained == host.models / "loras/noise.safetensors"
    assert trained.is_file()
    again, _ = TrainLoRA().run(**settings(videos, steps=done + 1, settings=lines, background=True))
    assert again == trained  # nothing is left to do
