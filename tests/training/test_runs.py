"""Runs of the trainer learn, and their results depend on the config and the step alone."""

from __future__ import annotations

import errno
import json
import math
import signal
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from ltxkit.commands.training import stopping_on_signals
from ltxkit.ltx_core.errors import CheckpointError, ConfigError, TrainingError
from ltxkit.ltx_core.models.text_encoder import TextEncoder
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.models.video_vae import Posterior, VideoVAE
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.run_log import read_log
from ltxkit.ltx_core.training import logs, loop
from ltxkit.ltx_core.training.checkpoints import latest_checkpoint
from ltxkit.ltx_core.training.config import load_config
from ltxkit.ltx_core.training.distributed import World
from ltxkit.ltx_core.training.loop import StepReport
from ltxkit.ltx_core.training.models import open_vae, save_checkpoint_file, save_vae, tensors_of
from ltxkit.ltx_core.training.models import transformer_config as architecture
from ltxkit.ltx_core.training.run import find_learning_rate, make_task
from ltxkit.ltx_core.training.run import run_training as run_config
from ltxkit.ltx_core.training.transformer import TransformerTask
from ltxkit.ltx_core.training.vae import VAETask
from ltxkit.ltx_core.weights.build import load_upsampler

ONE = World(0, 1, torch.device("cpu"))
WIDTH = 8
VAE_MODEL = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "patch_size": 4,
    "encoder_base_channels": WIDTH,
    "decoder_base_channels": WIDTH,
    "encoder_blocks": [["res_x", 1], ["compress_all_res", {"multiplier": 2}], ["res_x", 1]],
    "decoder_blocks": [["res_x", 1], ["compress_all", {"multiplier": 2, "residual": True}], ["res_x", 1]],
    "timestep_conditioning": True,
    "causal_decoder": False,
    "spatial_padding_mode": "zeros",
}
TRANSFORMER_MODEL = {
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 16,
    "norm_eps": 1e-6,
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "timestep_scale_multiplier": 1000.0,
    "causal_temporal_positioning": True,
}
DATA = {"kind": "digits", "sizes": [[9, 16, 16]], "glyph_size": 12, "validation_clips": 2}


class Quiet:
    """A console that records its messages."""

    def __init__(self, on_step: Callable[[StepReport], None] = lambda _: None) -> None:
        self.on_step = on_step
        self.steps: list[StepReport] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, report: StepReport) -> None:
        self.steps.append(report)
        self.on_step(report)


def run_training(path: Path, overrides: list[str], console: Quiet, resume: bool = False) -> Path | None:
    """As in the commands."""
    return run_config(
        load_config(path, overrides),
        resume=resume,
        report=console.step,
        stopping=stopping_on_signals(),
        notes=console.note,
    )


def optimization(**changes: Any) -> dict[str, Any]:
    return {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 0, "ema_decay": 0.9} | changes


def vae_config(folder: Path, **changes: Any) -> Path:
    tree = {
        "task": "vae",
        "output": str(folder / "vae"),
        "data": DATA | {"enlarged": 0.25},
        "model": VAE_MODEL,
        "crop_frames": 5,
        "optimization": optimization(),
        "logging": {"log_every": 1, "validate_every": 1000, "checkpoint_every": 2, "keep": 2},
        "kl": {"weight": 1e-4, "start": 1, "ramp": 2},
        "adversary": {"weight": 0.1, "start": 1, "width": 8, "layers": 2},
        "statistics_clips": 8,
    } | changes
    path = folder / "vae.yaml"
    apart = {key: deepcopy(value) for key, value in tree.items()}  # one value of two keys would become an alias
    path.write_text(yaml.safe_dump(apart), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing, which takes longer than these runs."""
    if "curves" not in request.node.name:
        monkeypatch.setattr(logs, "draw_curves", lambda *_: None)
        monkeypatch.setattr(loop, "draw_rate", lambda *_: None)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a VAE that has seen only the clips on which its initialisation depends."""
    folder = tmp_path_factory.mktemp("vae")
    make_task(load_config(vae_config(folder)), ONE, lambda _: None).export(folder)
    return folder / "vae.safetensors"


@pytest.fixture
def transformer_config(vae: Path, tmp_path: Path) -> Path:
    tree = {
        "task": "transformer",
        "output": str(tmp_path / "transformer"),
        "vae": str(vae),
        "data": DATA | {"enlarged": 0.25},
        "model": TRANSFORMER_MODEL,
        "text": {"width": 16, "layers": 1, "heads": 2, "vocabulary": 64},
        "optimization": optimization(optimizer="muon", weight_decay=0.01),
        "logging": {"log_every": 1, "validate_every": 1000, "checkpoint_every": 2, "keep": 2},
        "first_frame": 0.3,
        "sample_steps": 2,
        "prompts": ["the digit three moving left"],
        "cache_clips": 16,
    }
    path = tmp_path / "transformer.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def losses(console: Quiet) -> list[float]:
    return [report.metrics["loss"] for report in console.steps]


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def state(output: Path) -> Any:
    latest = latest_checkpoint(output)
    assert latest is not None
    return torch.load(latest / "state.pt", weights_only=True)["task"]


# ----------------------------------------------------------------------------------------------------------- learning


@pytest.mark.slow
def test_vae_overfits_one_clip(tmp_path: Path) -> None:
    path = vae_config(
        tmp_path,
        data=DATA | {"sizes": [[5, 16, 16]]},
        crop_frames=None,
        kl={"weight": 0.0},
        decoder_noise={"weight": 0.0},
        adversary={"weight": 0.0},
        model=VAE_MODEL | {"encoder_base_channels": 16, "decoder_base_channels": 16},
        optimization=optimization(steps=200, batch_size=1, learning_rate=3e-3, optimizer="muon", ema_decay=0.0),
    )
    task = make_task(load_config(path), ONE, lambda _: None)
    assert isinstance(task, VAETask)
    clip = task.source.samples([0], task.source.size(0), ONE.device)
    task.source.samples = lambda *_: clip  # type: ignore[method-assign]
    for step in range(200):
        error = task.update(step)["loss_l2"]
    assert 10 * math.log10(4 / error) > 30  # pixels span 2


@pytest.mark.slow
def test_transformer_learns(transformer_config: Path) -> None:
    console = Quiet()
    changes = ["steps=60", "optimizer=adamw", "learning_rate=5e-3", "batch_size=16"]
    few = ["cache_clips=8", "data.enlarged=0", "first_frame=0"]  # eight clips of one size, for the model to memorise
    quiet = ["logging.checkpoint_every=100", "prompts=[]"]
    run_training(transformer_config, [*(f"optimization.{change}" for change in changes), *few, *quiet], console)
    first, last = sum(losses(console)[:10]) / 10, sum(losses(console)[-10:]) / 10
    assert last < 0.75 * first


# ----------------------------------------------------------------------------------------- the same, whatever happens


@pytest.mark.slow
def test_accumulation_changes_nothing(tmp_path: Path, transformer_config: Path) -> None:
    for path in (vae_config(tmp_path, optimization=optimization(batch_size=8)), transformer_config):
        seen: list[list[float]] = []
        for pieces in (1, 4):
            console, output = Quiet(), tmp_path / f"{path.stem}{pieces}"
            overrides = [f"optimization.accumulation={pieces}", f"output={output}"]
            run_training(path, [*overrides, "optimization.batch_size=8"], console)
            entries = read_log(output / "log.jsonl")
            (validated,) = (entry[name] for entry in entries for name in ("psnr", "validation_loss") if name in entry)
            seen.append([*losses(console), validated])
        assert seen[0] == pytest.approx(seen[1], abs=1e-5)


@pytest.mark.slow
def test_validation_takes_no_more_clips_at_once_than_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has room for no more; the statistics at the end keep to the same number."""
    encode, seen = VideoVAE.encode, []

    def watched(self: VideoVAE, pixels: Tensor) -> Posterior:
        seen.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(VideoVAE, "encode", watched)
    for pieces in (1, 4):
        task = make_task(
            load_config(vae_config(tmp_path), [f"optimization.accumulation={pieces}"]), ONE, lambda _: None
        )
        seen.clear()
        task.validate(0, None)
        task.export(tmp_path)
        assert max(seen) == 4 // pieces


def interrupt_at(step: int) -> Callable[[StepReport], None]:
    def on_step(report: StepReport) -> None:
        if report.step == step:
            signal.raise_signal(signal.SIGINT)

    return on_step


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vae", "transformer"])
def test_interrupted_and_resumed_is_uninterrupted(task: str, tmp_path: Path, transformer_config: Path) -> None:
    path = vae_config(tmp_path) if task == "vae" else transformer_config
    common = ["optimization.steps=20", "logging.checkpoint_every=50"]
    straight = Quiet()
    run_training(path, [*common, f"output={tmp_path}/straight"], straight)

    broken, handlers = Quiet(interrupt_at(7)), [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    assert run_training(path, [*common, f"output={tmp_path}/broken"], broken) is None
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert latest_checkpoint(tmp_path / "broken") == tmp_path / "broken/checkpoints/step_000007"
    resumed = Quiet()
    final = run_training(path, [*common, f"output={tmp_path}/broken"], resumed, resume=True)

    assert losses(broken) + losses(resumed) == losses(straight)
    assert same(state(tmp_path / "straight"), state(tmp_path / "broken"))
    assert final is not None
    for file in final.rglob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "straight/final" / file.relative_to(final)).read_bytes()
    steps = [entry["step"] for entry in read_log(tmp_path / "broken/log.jsonl") if "loss" in entry]
    assert steps == list(range(1, 21))


ONE_OF_TWO = """
import json, os, sys
from ltxkit.ltx_core.training.config import load_config
from ltxkit.ltx_core.training.run import run_training
for path, overrides, resume, port in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    run_training(load_config(path, overrides), resume=resume)
"""


def logged(output: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(output / "log.jsonl") if "loss" in entry]


@pytest.mark.slow
def test_two_processes_are_one(
    tmp_path: Path, transformer_config: Path, in_gloo_processes: Callable[..., list[str]]
) -> None:
    """DDP, and FSDP2 interrupted and resumed; a validation in between must leave no trace."""
    paths = (vae_config(tmp_path), transformer_config)
    settings = ["optimization.optimizer=adamw", "optimization.schedule=constant"]
    sharded = [*settings, "optimization.sharding=fsdp", f"output={tmp_path}/sharded"]
    runs = [(path, [f"output={tmp_path}/{path.stem}-two"], False) for path in paths]
    runs += [(transformer_config, [*sharded, "optimization.steps=2", "logging.validate_every=2"], False)]
    runs += [(transformer_config, [*sharded, "logging.validate_every=2"], True)]
    said = in_gloo_processes(ONE_OF_TWO, 2, runs)
    assert not [text for text in said if "find_unused_parameters" in text]
    one = [(path, [f"output={tmp_path}/{path.stem}-one"], tmp_path / f"{path.stem}-two") for path in paths]
    plain = [*settings, f"output={tmp_path}/whole"]
    for path, overrides, output in [*one, (transformer_config, plain, tmp_path / "sharded")]:
        console = Quiet()
        final = run_training(path, overrides, console)
        assert logged(output) == pytest.approx(losses(console), abs=1e-5)
        assert final is not None
        assert {p.name for p in (output / "final").iterdir()} == {p.name for p in final.iterdir()}
    whole, sharded_file = (load_file(tmp_path / name / "final/model.safetensors") for name in ("whole", "sharded"))
    for name, tensor in whole.items():
        torch.testing.assert_close(sharded_file[name], tensor, atol=1e-4, rtol=1e-4)
    # A sharded training continues in one process.
    console = Quiet()
    run_training(transformer_config, [*sharded, "optimization.steps=5"], console, resume=True)
    assert [report.step for report in console.steps] == [5]


PREEMPTED = """
import json, os, sys, time
from ltxkit.commands.training import stopping_on_signals
from ltxkit.ltx_core.training.config import load_config
from ltxkit.ltx_core.training.run import run_training
path, overrides, resume, pause = json.loads(sys.argv[1])
def report(now):
    print(now.step, flush=True)
    time.sleep(pause)
run_training(load_config(path, overrides), resume=resume, report=report, stopping=stopping_on_signals())
"""


@pytest.fixture
def pair(forked: Callable[..., Any], free_port: Callable[[], int]) -> Callable[..., list[Any]]:
    """pair(path, overrides, resume=False, pause=0): two processes of one run; the first prints its steps, and rests
    `pause` seconds after each."""

    def start(path: Path, overrides: list[str], *, resume: bool = False, pause: float = 0.0) -> list[Any]:
        command = ["-c", PREEMPTED, json.dumps([str(path), overrides, resume, pause])]
        environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [forked(command, environment | {"RANK": str(rank)}) for rank in range(2)]

    return start


@pytest.mark.slow
def test_a_preempted_run_of_two_processes_is_an_undisturbed_one(
    tmp_path: Path, transformer_config: Path, pair: Callable[..., list[Any]], ended: Callable[..., Any]
) -> None:
    """SIGTERM to either saves both; kill -9 of one ends the other; restarted after both, the run is the same."""
    settings = ["logging.checkpoint_every=1", "logging.validate_every=100", "optimization.steps=6"]
    whole, output = tmp_path / "whole", tmp_path / "preempted"
    straight = ended(pair(transformer_config, [*settings, f"output={whole}"]))
    mine = [*settings, f"output={output}"]
    processes = pair(transformer_config, mine, pause=0.3)
    first = processes[0].stdout
    assert first is not None
    assert first.readline().strip() == "1", ended(processes)
    processes[1].send_signal(signal.SIGTERM)  # the scheduler need not ask the first process
    assert [status for status, _, _ in ended(processes)] == [0, 0]
    saved = latest_checkpoint(output)
    assert saved is not None
    done = int(saved.name.removeprefix("step_"))
    assert 1 <= done < 5
    assert not (output / "final").exists()
    processes = pair(transformer_config, mine, resume=True, pause=0.3)
    first = processes[0].stdout
    assert first is not None
    assert first.readline().strip() == str(done + 1), ended(processes)
    processes[1].kill()
    status, _, error = ended(processes)[0]
    assert status not in (0, None)
    assert "got no answer from another of the 2 processes of this run" in error
    assert not (output / "final").exists()
    again = pair(transformer_config, mine, resume=True)
    results = [*straight, *ended(again)]
    assert [status for status, _, _ in results] == [0] * 4, results
    assert (whole / "final/model.safetensors").read_bytes() == (output / "final/model.safetensors").read_bytes()
    assert same(state(whole), state(output))


@pytest.mark.slow
def test_sharding_says_what_it_cannot_do(transformer_config: Path) -> None:
    with pytest.raises(ConfigError, match="expected adamw: muon needs whole matrices"):
        run_training(transformer_config, ["optimization.sharding=fsdp"], Quiet())


# ----------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.slow
def test_upscaler_learns_in_either_precision(vae: Path, tmp_path: Path) -> None:
    tree = {
        "task": "upscaler",
        "output": str(tmp_path / "upscaler"),
        "vae": str(vae),
        "data": DATA,
        "model": {
            "dims": 3,
            "in_channels": VAE_MODEL["latent_channels"],
            "mid_channels": 32,
            "num_blocks_per_stage": 1,
            "spatial_upsample": True,
            "temporal_upsample": False,
        },
        "optimization": optimization(steps=30, learning_rate=3e-3, ema_decay=0.0),
        "logging": {"log_every": 10, "validate_every": 15, "checkpoint_every": 100},
        "cache_clips": 8,
    }
    path = tmp_path / "upscaler.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    seen: dict[str, list[float]] = {}
    for precision in ("fp32", "bf16"):
        console = Quiet()
        changes = [f"optimization.precision={precision}", f"output={tmp_path}/{precision}"]
        final = run_training(path, changes, console)
        assert final is not None
        assert load_upsampler(final / "upscaler.safetensors").initial_conv.weight.dtype == torch.float32
        seen[precision] = losses(console)
        assert sum(seen[precision][-5:]) < 0.9 * sum(seen[precision][:5])
    assert seen["bf16"] != seen["fp32"]
    # One rounding errs by 2^-8 / sqrt(3) rms, about 80 in a row by 2 %; a squared distance changes by twice that. Only
    # for the first step: later steps start from different weights.
    assert seen["bf16"][0] == pytest.approx(seen["fp32"][0], rel=0.04)


@pytest.mark.slow
def test_gan_gradient_reaches_the_decoder_and_leaves_the_discriminator_alone(tmp_path: Path) -> None:
    off = {"weight": 0.0}
    path = vae_config(tmp_path, l1=off, l2=off, wavelet=off, kl=off, adversary={"weight": 1.0, "width": 8, "layers": 2})
    task = make_task(load_config(path), ONE, lambda _: None)
    assert isinstance(task, VAETask)
    assert task.adversary is not None
    before, judge = tensors_of(task.vae), tensors_of(task.adversary)
    learn = task._teach_adversary
    task._teach_adversary = lambda *_: {}  # type: ignore[method-assign]
    task.update(0)
    changed = [name for name, tensor in tensors_of(task.vae).items() if not torch.equal(tensor, before[name])]
    assert any(name.startswith("decoder.conv_in") for name in changed)
    assert same(tensors_of(task.adversary), judge)
    task._teach_adversary = learn  # type: ignore[method-assign]
    task.update(1)
    assert not same(tensors_of(task.adversary), judge)


@pytest.mark.slow
def test_injected_noise_is_the_same_however_a_batch_is_cut_up(tmp_path: Path) -> None:
    model = deepcopy(VAE_MODEL)
    model["decoder_blocks"] = [["res_x", {"num_layers": 1, "inject_noise": True}], *VAE_MODEL["decoder_blocks"][1:]]
    losses: list[dict[str, float]] = []
    weights: list[Tensor] = []
    for accumulation in (1, 2, 4):
        changed = optimization(accumulation=accumulation, ema_decay=0.0)
        path = vae_config(tmp_path, model=model, optimization=changed, adversary={"weight": 0.0})
        task = make_task(load_config(path, ["crop_frames=5"]), ONE, lambda _: None)
        assert isinstance(task, VAETask)
        with torch.no_grad():  # at the start it is scaled by zero
            for name, parameter in task.vae.named_parameters():
                if "per_channel_scale" in name:
                    parameter.fill_(0.5)
        losses += [task.update(step) for step in range(2)][1:]
        weights.append(torch.cat([tensor.flatten() for tensor in tensors_of(task.vae).values()]))
    for other, tensor in zip(losses[1:], weights[1:], strict=True):
        assert other == pytest.approx(losses[0], rel=1e-4)
        torch.testing.assert_close(tensor, weights[0], atol=2e-4, rtol=0)


def test_a_caption_is_cut_into_tokens_once(
    transformer_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(load_config(transformer_config, [f"output={tmp_path}/run"]), ONE, lambda _: None)
    assert isinstance(task, TransformerTask)
    assert isinstance(task.text, TextEncoder)
    seen: list[str] = []
    widths: list[int] = []
    encode, model = task.text.tokenizer.encode, task.text.model.forward

    def counted(prompt: str) -> Any:
        seen.append(prompt)
        return encode(prompt)

    def wide(*arguments: Any, input_ids: Tensor, **others: Any) -> Any:
        widths.append(input_ids.shape[1])
        return model(*arguments, input_ids=input_ids, **others)

    monkeypatch.setattr(type(task.text.tokenizer), "encode", lambda _, prompt: counted(prompt))
    monkeypatch.setattr(task.text.model, "forward", wide)
    for step in range(6):
        task.update(step)
    assert len(seen) == len(set(seen)) > 1
    assert max(widths) == max(len(encode(prompt).ids) for prompt in seen)  # no padding beyond the longest


def test_uniform_log_variance_is_one_channel(tmp_path: Path) -> None:
    task = make_task(load_config(vae_config(tmp_path)), ONE, lambda _: None)
    assert isinstance(task, VAETask)
    assert task.vae.encoder.conv_out.conv.weight.shape[0] == VAE_MODEL["latent_channels"] + 1
    posterior = task.vae.encode(torch.rand(1, 3, 5, 16, 16))
    assert torch.equal(posterior.logvar, posterior.logvar[:, :1].expand_as(posterior.mean))


@pytest.mark.slow
def test_nan_stops_and_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = VAETask.update

    def poisoned(self: VAETask, step: int) -> dict[str, float]:
        return update(self, step) if step != 3 else {"loss": math.nan}

    monkeypatch.setattr(VAETask, "update", poisoned)
    with pytest.raises(
        TrainingError, match=r"loss that is not a number at step 3 \(samples 12 to 15 first\).*step_000002"
    ):
        run_training(vae_config(tmp_path), [], Quiet())
    assert latest_checkpoint(tmp_path / "vae") == tmp_path / "vae/checkpoints/step_000002"


@pytest.mark.slow
def test_a_nan_never_reaches_the_weights(tmp_path: Path) -> None:
    task = make_task(load_config(vae_config(tmp_path)), ONE, lambda _: None)
    assert isinstance(task, VAETask)
    before = tensors_of(task.vae)
    batch = task.source.samples(range(4), task.source.size(0), ONE.device)
    broken = type(batch)(batch.pixels * math.nan, batch.captions)
    task.source.samples = lambda *_: broken  # type: ignore[method-assign]
    assert math.isnan(task.update(0)["loss"])
    assert same(tensors_of(task.vae), before)


def test_collapse_is_noticed(tmp_path: Path) -> None:
    task = make_task(load_config(vae_config(tmp_path)), ONE, lambda _: None)
    assert isinstance(task, VAETask)
    conv = task.vae.encoder.conv_out.conv
    with torch.no_grad():
        conv.weight.mul_(1e-3)
        assert conv.bias is not None
        conv.bias.zero_()
        assert task.updater.average is not None
        task.updater.average.values = [p.detach().clone() for p in task.updater.parameters]
    with pytest.raises(TrainingError, match=r"collapsed; .* smaller kl.weight"):
        task.validate(1, None)


@pytest.mark.slow
def test_resume_with_another_config_says_what_differs(tmp_path: Path) -> None:
    path = vae_config(tmp_path)
    run_training(path, [], Quiet())
    console = Quiet()
    with pytest.raises(ConfigError, match=r"optimization\.weight_decay was 0\.0, is 0\.01; expected the same"):
        run_training(path, ["optimization.weight_decay=0.01"], console, resume=True)
    with pytest.raises(ConfigError, match=r"holds a run"):
        run_training(path, [], console)
    assert console.notes == []  # the error came before any preparation
    # A longer run, one of another rate, or one with less memory, is still the same run.
    less = ["optimization.accumulation=2"]
    run_training(
        path, ["optimization.steps=5", "logging.keep=1", "optimization.learning_rate=1e-4", *less], console, resume=True
    )
    assert [report.step for report in console.steps] == [5]
    assert [p.name for p in (tmp_path / "vae/checkpoints").iterdir()] == ["step_000005"]
    with pytest.raises(ConfigError, match=r"no checkpoint"):
        run_training(path, [f"output={tmp_path}/new"], Quiet(), resume=True)


def test_checkpoints_are_ordered_by_their_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(vae_config(tmp_path))
    monkeypatch.setattr(VAETask, "state", lambda _: {})
    monkeypatch.setattr(VAETask, "export", lambda *_, **__: None)
    task = VAETask.__new__(VAETask)
    for step in (999_998, 999_999, 1_000_000):
        loop.save_checkpoint(task, config, ONE, step)
    assert latest_checkpoint(config.output) == config.output / "checkpoints/step_1000000"
    kept = sorted(path.name for path in (config.output / "checkpoints").iterdir())
    assert kept == ["step_1000000", "step_999999"]


@pytest.mark.slow
def test_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save

    def full(value: Any, path: Path) -> None:
        if isinstance(value, dict) and value.get("step") == 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(value, path)

    monkeypatch.setattr(loop.torch, "save", full)
    with pytest.raises(OSError, match=r"No space left"):
        run_training(vae_config(tmp_path), [], Quiet())
    assert [p.name for p in (tmp_path / "vae/checkpoints").iterdir()] == ["step_000002"]
    torch.load(tmp_path / "vae/checkpoints/step_000002/state.pt", weights_only=True)


def test_a_vae_without_statistics_is_refused(vae: Path, tmp_path: Path) -> None:
    model = open_vae(vae)
    model.per_channel_statistics.mean.zero_()
    model.per_channel_statistics.std.fill_(1)
    save_vae(tmp_path / "vae.safetensors", tensors_of(model), model.config)
    with pytest.raises(CheckpointError, match=r"statistics were never measured"):
        open_vae(tmp_path / "vae.safetensors")


@pytest.mark.slow
def test_statistics_are_measured_after_the_last_checkpoint_with_a_bar(tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    there: list[bool] = []

    def progress(event: ProgressEvent) -> None:
        events.append(event)
        there.append((tmp_path / "vae/checkpoints/step_000002/state.pt").is_file())

    path = vae_config(tmp_path, optimization=optimization(steps=2), adversary={"weight": 0.0})
    final = run_config(load_config(path, []), notes=lambda _: None, progress=progress)
    assert final is not None
    assert {event.stage for event in events} == {"measure statistics"}
    assert [event.step for event in events] == [0, 4, 8]
    assert {event.total for event in events} == {8}
    assert all(there)
    measured, running = (
        load_file(folder / "vae.safetensors")["vae.per_channel_statistics.std-of-means"]
        for folder in (final, tmp_path / "vae/checkpoints/step_000002")
    )
    assert not torch.equal(measured, running)
    open_vae(tmp_path / "vae/checkpoints/step_000002/vae.safetensors")  # a transformer can be trained on either


@pytest.mark.slow
def test_a_learning_rate_is_found_and_what_was_encoded_is_kept(transformer_config: Path, tmp_path: Path) -> None:
    config = load_config(transformer_config, [f"output={tmp_path}/run", "optimization.accumulation=1"])
    events: list[ProgressEvent] = []
    found = find_learning_rate(config, notes=lambda _: None, progress=events.append)
    assert found is not None
    assert 1e-6 < found < 1e-1
    assert (tmp_path / "run/find_lr.html").is_file()
    assert latest_checkpoint(tmp_path / "run") is None
    assert not (tmp_path / "run/log.jsonl").exists()
    assert events[-1].step == events[-1].total


@pytest.mark.slow
def test_statistics_normalise_latents(vae: Path, tmp_path: Path) -> None:
    model = open_vae(vae)
    task = make_task(load_config(vae_config(tmp_path)), ONE, lambda _: None)
    assert isinstance(task, VAETask)
    pixels = task.source.samples(range(8), task.source.size(3), ONE.device).pixels[..., :16, :16]
    latent = model.normalize(model.encode(pixels).mode())
    torch.testing.assert_close(latent.mean(dim=(0, 2, 3, 4)), torch.zeros(8), atol=0.35, rtol=0)
    assert float(latent.std()) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimization.accumulation=3", "expected a multiple of 3; use 6"),
        ("perceptual.weight=1", "expected both or neither"),
        ("data.glyph_size=40", "expected a digit that fits"),
    ],
)
def test_settings_that_do_not_go_together(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_training(vae_config(tmp_path), [override], Quiet())


@pytest.mark.slow
def test_the_tokenizer_of_a_run_that_never_began_is_made_anew(transformer_config: Path) -> None:
    config = load_config(transformer_config)
    file = config.output / "tokenizer/spiece.model"
    make_task(config, ONE, lambda _: None)
    made = file.read_bytes()
    file.write_bytes(b"half of one, or one of other captions")
    make_task(config, ONE, lambda _: None)
    assert file.read_bytes() == made


def test_a_transformer_of_another_vae_is_refused(transformer_config: Path, tmp_path: Path) -> None:
    message = r"got a transformer of 16 channels; expected 8, as the VAE's latents have"
    other = ["model.in_channels=16", "model.out_channels=16"]
    with pytest.raises(ConfigError, match=message):
        run_training(transformer_config, other, Quiet())
    initial = tmp_path / "other.safetensors"
    model = LTXTransformer(architecture(TRANSFORMER_MODEL | {"in_channels": 16, "out_channels": 16}))
    save_checkpoint_file(initial, tensors_of(model), model.config, None)
    with pytest.raises(ConfigError, match=message):
        run_training(transformer_config, ["model=null", f"initial={initial}"], Quiet())


@pytest.mark.slow
def test_validation_leaves_pictures_prompts_and_curves(transformer_config: Path) -> None:
    run_training(transformer_config, ["optimization.steps=2", "logging.validate_every=2"], Quiet())
    output = Path(yaml.safe_load(transformer_config.read_text(encoding="utf-8"))["output"])
    found = {path.name for path in (output / "validation/step_000002").iterdir()}
    assert found == {"sheet.png", "grid.mp4", "prompts.txt"}
    assert (output / "curves.png").stat().st_size > 1000
    assert "validation_loss" in json.loads((output / "log.jsonl").read_text().splitlines()[-1])
