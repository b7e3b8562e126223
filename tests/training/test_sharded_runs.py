"""Weights split among processes (FSDP2) and clips divided among them (sequence parallel): trained as in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ltxkit.ltx_core.budget.plan import Card
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.media import write_image
from ltxkit.ltx_core.run_log import read_log
from ltxkit.ltx_core.training import agreement, logs, loop
from ltxkit.ltx_core.training.config import Data, HoldOut, Training, load_config
from ltxkit.ltx_core.training.distributed import World
from ltxkit.ltx_core.training.folder import VideoFolder
from ltxkit.ltx_core.training.plans import plan_training
from ltxkit.ltx_core.training.run import make_task, run_training
from ltxkit.ltx_core.training.sources import open_sources

ONE = World(0, 1, torch.device("cpu"))
MAIN = Card("main memory", 2**40, 2**40, is_main_memory=True)
DATA = {"kind": "digits", "sizes": [[5, 16, 16]], "glyph_size": 12, "validation_clips": 2}
# A frozen scalar (of the timestep), embedders of it, tables, shortcuts, injected noise: all kinds of weights.
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 6,
    "patch_size": 4,
    "encoder_base_channels": 8,
    "decoder_base_channels": 8,
    "encoder_blocks": [["res_x", 1], ["compress_all_res", {"multiplier": 2}], ["res_x_y", {"multiplier": 2}]],
    "decoder_blocks": [
        ["res_x_y", {"multiplier": 2}],
        ["compress_all", {"multiplier": 2, "residual": True}],
        ["res_x", {"num_layers": 1, "inject_noise": True}],
    ],
    "timestep_conditioning": True,
    "causal_decoder": False,
    "spatial_padding_mode": "zeros",
}
UPSCALER = {
    "dims": 3,
    "in_channels": 6,
    "mid_channels": 64,  # two in each group of a norm: the bias before a group of one has no gradient but rounding
    "num_blocks_per_stage": 1,
    "spatial_upsample": True,
    "temporal_upsample": False,
}
TRANSFORMER = {
    "in_channels": 6,
    "out_channels": 6,
    "num_layers": 2,
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "cross_attention_dim": 24,
    "caption_channels": 16,
    "norm_eps": 1e-6,
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "timestep_scale_multiplier": 1000.0,
    "causal_temporal_positioning": True,
}
ONE_OF_SEVERAL = """
import gc, json, os, shutil, sys, weakref
from pathlib import Path
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.training.config import load_config
from ltxkit.ltx_core.training.distributed import local
from ltxkit.ltx_core.training import loop, logs, run
logs.draw_curves = loop.draw_rate = lambda *_: None
made = run.make_task
def held(task):
    parts = [task.objective, getattr(task, "judge", None), None if hasattr(task, "encoder") else task.vae]
    found = [t for part in parts if part is not None for t in (*part.parameters(), *part.buffers())]
    for updater in (task.updater, getattr(task, "judge_updater", task.updater)):
        found += [v for each in updater.optimizers for state in each.state.values() for v in state.values()]
        found += [] if updater.average is None else updater.average.values
    caches = [getattr(getattr(task, name, None), "_kept", {}) for name in ("latents", "validation")]
    return found + [clips.latents for kept in caches for clips in kept.values()]
class Storages(TorchDispatchMode):
    # The bytes of all storages that operators have seen and that are alive, at the peak: FSDP2 resizes them.
    def __init__(self, tensors):
        super().__init__()
        self.alive, self.most = {}, 0
        tree_map_only(Tensor, self.note, tensors)
    def note(self, tensor):
        storage = local(tensor).untyped_storage()
        self.alive.setdefault(id(storage), weakref.ref(storage, lambda _, key=id(storage): self.alive.pop(key, None)))
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.note, (args, kwargs, out))
        there = [reference() for reference in list(self.alive.values())]
        self.most = max(self.most, sum(storage.nbytes() for storage in there if storage is not None))
        return out
def noted(config, here, *others):
    task = made(config, here, *others)
    update = task.update
    def measured(step):
        if step != 1:
            return update(step)
        gc.collect()
        with Storages(held(task)) as seen:
            numbers = update(step)
        if here.first:
            (config.output / "peak.json").write_text(json.dumps(seen.most))
        return numbers
    task.update = measured
    if here.first:
        needs = task.needs
        config.output.mkdir(parents=True, exist_ok=True)
        numbers = needs.weights, needs.gradients, needs.optimizer, needs.activations
        (config.output / "needs.json").write_text(json.dumps(numbers))
    return task
run.make_task = noted
for path, overrides, resume, port in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    mine = [each.replace("{rank}", os.environ["RANK"]) for each in overrides]
    config = load_config(path, mine)
    try:
        run.run_training(config, resume=resume)
    except ConfigError as error:
        with Path("refused.txt").open("a") as file:
            file.write(f"{error}\\n")
        if os.environ["RANK"] == "1" and not Path("run/checkpoints").exists():
            shutil.copytree("../first/run/checkpoints", "run/checkpoints")
"""


Runs = list[tuple[Path, list[str], bool]]
InProcesses = Callable[..., None]


@pytest.fixture
def in_processes(in_gloo_processes: Callable[..., None]) -> InProcesses:
    """in_processes(size, runs, disks=None): see `in_gloo_processes`."""
    return partial(in_gloo_processes, ONE_OF_SEVERAL)


def written(folder: Path, name: str, tree: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(deepcopy(tree)), encoding="utf-8")  # one value of two keys would become an alias
    return path


def configs(folder: Path) -> dict[str, Path]:
    common = {
        "optimization": {
            "steps": 4,
            "batch_size": 4,
            "accumulation": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "schedule": "constant",
            "ema_decay": 0.9,
            "weight_decay": 0.01,
        },
        # A validation within the run must leave no trace of the averaged weights.
        "logging": {"log_every": 1, "validate_every": 1, "checkpoint_every": 2, "keep": 5, "keep_best": False},
    }
    vae = {
        "task": "vae",
        "data": DATA,
        "model": VAE,
        "kl": {"weight": 1e-4, "start": 1, "ramp": 2},
        **common,
        "adversary": {"weight": 0.1, "start": 1, "width": 8, "layers": 2},
        "statistics_clips": 6,
    }
    made = {"vae": written(folder, "vae", vae | {"output": str(folder / "vae")})}
    make_task(load_config(made["vae"], ["adversary.weight=0"]), ONE, lambda _: None).export(folder)
    upscaler = {"task": "upscaler", "vae": str(folder / "vae.safetensors"), "data": DATA, "model": UPSCALER, **common}
    made["upscaler"] = written(folder, "upscaler", upscaler | {"output": str(folder / "upscaler"), "cache_clips": 8})
    transformer = {"task": "transformer", "vae": str(folder / "vae.safetensors"), "data": DATA, "model": TRANSFORMER}
    transformer |= {"text": {"width": 16, "layers": 1, "heads": 2, "vocabulary": 64}, **common}
    transformer |= {"first_frame": 0.5, "cache_clips": 8, "validation_samples": 4}  # levels by token
    made["transformer"] = written(folder, "transformer", transformer | {"output": str(folder / "transformer")})
    return made


def run_alike(config: Training, several: Path) -> None:
    """Run a config in this process, and compare with the run of several processes in a folder."""
    final = run_training(config)
    assert final is not None
    expected, got = numbers(config.output), numbers(several)
    assert len(got) == len(expected)
    for entry, other in zip(expected, got, strict=True):
        assert other == pytest.approx(entry, rel=1e-4, abs=1e-5)
    assert {file.name for file in (several / "final").iterdir()} == {file.name for file in final.iterdir()}
    file = next(file.name for file in final.glob("*.safetensors"))
    whole, split = load_file(final / file), load_file(several / "final" / file)
    assert whole.keys() == split.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(split[key], tensor, atol=1e-4, rtol=1e-4, msg=lambda text, key=key: key + text)


def numbers(output: Path) -> list[dict[str, float]]:
    """All that is logged but times."""
    timed = ("_per_second", "seconds_left", "time")
    return [{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in read_log(output / "log.jsonl")]


def wide_transformers(paths: dict[str, Path], sharded: str) -> dict[str, tuple[Path, list[str]]]:
    """Runs of two steps in which weights take most of the memory; the pieces of a batch, and long clips too."""
    path = paths["transformer"]
    heads = ["model.num_layers=6", "model.num_attention_heads=8", "model.attention_head_dim=32"]
    wide = [sharded, *heads, "model.cross_attention_dim=256", "optimization.steps=2", "logging.validate_every=100"]
    whole = [*wide, "optimization.accumulation=1", "optimization.batch_size=2"]
    return {
        "whole": (path, whole),
        "pieces": (path, wide),
        "checkpointed": (path, [*whole, "optimization.gradient_checkpointing=true", "data.sizes=[[9,32,32]]"]),
    }


@pytest.mark.slow
def test_two_processes_that_share_the_weights_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_processes: InProcesses
) -> None:
    """With discriminator, averages, accumulation, validations, statistics; interrupted and resumed."""
    monkeypatch.setattr(logs, "draw_curves", lambda *_: None)
    monkeypatch.setattr(loop, "draw_rate", lambda *_: None)
    sharded = "optimization.sharding=fsdp"
    paths = configs(tmp_path)
    runs: Runs = []
    for name in ("vae", "upscaler"):
        path = paths[name]
        mine = [sharded, f"output={tmp_path}/{name}-two"]
        runs += [(path, [*mine, "optimization.steps=2"], False), (path, mine, True)]
    frozen = [sharded, f"output={tmp_path}/frozen-two", "freeze_encoder=true", "optimization.steps=2"]
    runs.append((paths["vae"], frozen, False))
    planned = {name: (paths[name], [sharded]) for name in ("vae", "upscaler")} | wide_transformers(paths, sharded)
    runs += [(path, [*mine, f"output={tmp_path}/{name}-two"], False) for name, (path, mine) in planned.items()][2:]
    in_processes(2, runs)
    for name, (path, mine) in planned.items():
        plan = plan_training(load_config(path, mine), MAIN, processes=2).stage("train")
        assert plan.peak == pytest.approx(json.loads((tmp_path / f"{name}-two/peak.json").read_text()), rel=0.1), name

    for name, path, changes in (
        ("vae", paths["vae"], []),
        ("upscaler", paths["upscaler"], []),
        ("frozen", paths["vae"], frozen[2:]),
    ):
        two = tmp_path / f"{name}-two"
        run_alike(load_config(path, [*changes, f"output={tmp_path}/{name}-one"]), two)
        plan = plan_training(load_config(path, [*changes, sharded]), MAIN, processes=2).step
        needs = json.loads((two / "needs.json").read_text())
        assert [plan.gradients, plan.optimizer, plan.activations] == pytest.approx(needs[1:], rel=0.1)
        if name != "upscaler":  # beside which a process has the whole VAE
            assert plan.weights == pytest.approx(needs[0], rel=0.1)
    # A run of two goes on in one process.
    again = tmp_path / "vae-two"
    assert run_training(load_config(paths["vae"], [sharded, f"output={again}", "optimization.steps=5"]), resume=True)
    straight = tmp_path / "straight"
    run_training(load_config(paths["vae"], [f"output={straight}", "optimization.steps=5"]))
    assert numbers(again)[-1] == pytest.approx(numbers(straight)[-1], rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_processes_that_divide_each_clip_are_one(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_processes: InProcesses
) -> None:
    """Two with weights that are split too, three of a LoRA's kind: blocks that are computed twice. Three heads do
    not divide evenly between two."""
    monkeypatch.setattr(logs, "draw_curves", lambda *_: None)
    monkeypatch.setattr(loop, "draw_rate", lambda *_: None)
    path = configs(tmp_path)["transformer"]
    changes = ["optimization.sharding=fsdp"] if size == 2 else ["optimization.gradient_checkpointing=true"]
    several = tmp_path / "several"
    divided = [*changes, f"optimization.sequence_parallel={size}", f"output={several}"]
    in_processes(size, [(path, [*divided, "optimization.steps=2"], False), (path, divided, True)])
    run_alike(load_config(path), several)


def test_groups_share_the_batch() -> None:
    """Of four processes two and two: each pair has the same clips, and both pairs all of them."""
    worlds = [World(rank, 4, ONE.device, 2) for rank in range(4)]
    pieces = [[(piece.indices, piece.rows) for piece in each.pieces(3, 8, 2)] for each in worlds]
    assert pieces[0] == pieces[1]
    assert pieces[2] == pieces[3]
    assert sorted(number for indices, _ in (*pieces[0], *pieces[2]) for number in indices) == list(range(24, 32))
    with pytest.raises(ConfigError, match=r"got batch_size 2 for 4 processes, 2 for each clip, .* use 4"):
        worlds[0].share(2, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["sequence_parallel=0"], "expected"),
        (["sequence_parallel=2", "compile=true"], "exchanges between processes are not compiled"),
        (["sequence_parallel=3"], "got optimization.sequence_parallel 3 in 4 processes; expected a divisor"),
        (["sequence_parallel=4"], "for a model with 3 heads of attention"),
    ],
)
def test_clips_that_cannot_be_divided_are_refused(changes: list[str], said: str, tmp_path: Path) -> None:
    path = configs(tmp_path)["transformer"]
    with pytest.raises(ConfigError, match=said):
        plan_training(load_config(path, [f"optimization.{each}" for each in changes]), MAIN, processes=4)


def test_only_clips_of_a_transformer_are_divided(tmp_path: Path) -> None:
    path = configs(tmp_path)["vae"]
    with pytest.raises(ConfigError, match="for task vae; expected 1"):
        make_task(load_config(path, ["optimization.sequence_parallel=2"]), World(0, 2, ONE.device, 2), print)
    with pytest.raises(ConfigError, match=r"sequence_parallel 2 in 1 process; .* torchrun --nproc-per-node 2"):
        run_training(load_config(configs(tmp_path)["transformer"], ["optimization.sequence_parallel=2"]))


def test_a_plan_counts_the_share_of_a_process(tmp_path: Path) -> None:
    path = configs(tmp_path)["transformer"]
    large = ["data.sizes=[[33,64,64]]", "optimization.batch_size=4", "optimization.accumulation=1"]
    whole = plan_training(load_config(path, large), MAIN, processes=2)  # two clips in each
    divided = plan_training(load_config(path, [*large, "optimization.sequence_parallel=2"]), MAIN, processes=2)
    assert whole.step.activations is not None
    assert divided.step.activations == pytest.approx(whole.step.activations, rel=0.25)  # a half of four clips
    assert divided.step.weights == whole.step.weights
    assert "each clip divided among 2" in str(divided)


@pytest.mark.slow
def test_machines_may_have_disks_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_processes: InProcesses
) -> None:
    """Two processes in two folders: the first writes, and a run goes on only where both have its checkpoint."""
    monkeypatch.setattr(logs, "draw_curves", lambda *_: None)
    monkeypatch.setattr(loop, "draw_rate", lambda *_: None)
    path = configs(tmp_path)["transformer"]
    disks = [tmp_path / "first", tmp_path / "second"]
    for disk in disks:
        disk.mkdir()
    # What an earlier run has left on the second must not be taken for the tokenizer of this one.
    (disks[1] / "run/tokenizer").mkdir(parents=True)
    (disks[1] / "run/tokenizer/spiece.model").write_bytes(b"of another run")
    begun = (path, ["output=run", "optimization.steps=2"], False)
    again, other = (path, ["output=run"], True), (path, ["output=run", "seed={rank}"], True)
    in_processes(2, [begun, again, other, again], disks)  # which copies the checkpoints once they are missed
    assert {file.name for file in (disks[1] / "run").iterdir()} == {"tokenizer", "checkpoints"}
    for disk in disks:
        missing, different = (disk / "refused.txt").read_text().splitlines()
        assert "of process 0, and no checkpoint in that of process 1; expected the same in all processes" in missing
        assert "got seed 0 in process 0 and 1 in process 1; expected one config" in different
    run_alike(load_config(path), disks[0] / "run")


def test_other_clips_of_another_machine_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[VideoFolder] = []
    for names in ("ab", "abc"):
        folder = tmp_path / names
        folder.mkdir()
        for name in names:
            write_image(folder / f"{name}.png", torch.full((1, 16, 16, 3), 0.5))
            (folder / f"{name}.txt").write_text("a square")
        data = Data(kind="folder", path=folder, sizes=((1, 16, 16),))
        source, _ = open_sources(data, 0, lambda _: None, HoldOut())
        assert isinstance(source, VideoFolder)
        sources.append(source)
    said = [agreement._clips(source) for source in sources]
    monkeypatch.setattr(World, "values", lambda *_: [[said[0]], [said[1]]])
    with pytest.raises(ConfigError, match=r"got 3 clips in process 1 that are not the 2 of process 0 \(c.png\)"):
        agreement.check_clips(sources[:1], World(0, 2, ONE.device))
    monkeypatch.setattr(World, "values", lambda *_: [[said[0]], [said[0]]])
    agreement.check_clips(sources[:1], World(0, 2, ONE.device))


def test_shards_are_for_adamw(tmp_path: Path) -> None:
    path = configs(tmp_path)["vae"]
    with pytest.raises(ConfigError, match="expected adamw: muon needs whole matrices"):
        make_task(load_config(path, ["optimization.sharding=fsdp", "optimization.optimizer=muon"]), ONE, print)
