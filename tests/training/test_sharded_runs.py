"""A VAE and an upscaler whose weights are split among processes (FSDP2) are trained as in one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ltxkit.ltx_core.budget.plan import Card
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.run_log import read_log
from ltxkit.ltx_core.training import logs, loop
from ltxkit.ltx_core.training.config import load_config
from ltxkit.ltx_core.training.distributed import World
from ltxkit.ltx_core.training.plans import plan_training
from ltxkit.ltx_core.training.run import make_task, run_training

ONE = World(0, 1, torch.device("cpu"))
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
    "mid_channels": 32,
    "num_blocks_per_stage": 1,
    "spatial_upsample": True,
    "temporal_upsample": False,
}
# Each run has its own port: a process that is early for the next run must not find the store of this one.
ONE_OF_TWO = """
import json, os, sys
from ltxkit.ltx_core.training.config import load_config
from ltxkit.ltx_core.training import loop, logs, run
logs.draw_curves = loop.draw_rate = lambda *_: None
made = run.make_task
def noted(config, here, *others):
    task = made(config, here, *others)
    if here.first:
        needs = task.needs
        numbers = needs.weights, needs.gradients, needs.optimizer, needs.activations
        (config.output / "needs.json").write_text(json.dumps(numbers))
    return task
run.make_task = noted
for path, overrides, resume, port in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    config = load_config(path, overrides)
    config.output.mkdir(parents=True, exist_ok=True)
    run.run_training(config, resume=resume)
"""


def in_two_processes(runs: list[tuple[Path, list[str], bool]]) -> None:
    sockets = [socket.socket() for _ in runs]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    arguments = [
        [str(path), overrides, resume, free.getsockname()[1]]
        for (path, overrides, resume), free in zip(runs, sockets, strict=True)
    ]
    for free in sockets:
        free.close()
    command = [sys.executable, "-c", ONE_OF_TWO, json.dumps(arguments)]
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE) for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], [error[-3000:] for error in errors]


def written(folder: Path, name: str, tree: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(deepcopy(tree)), encoding="utf-8")  # one value of two keys would become an alias
    return path


def configs(folder: Path) -> dict[str, Path]:
    common = {
        "optimization": {
            **{"steps": 4, "batch_size": 4, "accumulation": 2, "learning_rate": 1e-3, "warmup_steps": 0},
            **{"schedule": "constant", "ema_decay": 0.9, "weight_decay": 0.01},
        },
        # A validation within the run must leave no trace of the averaged weights.
        "logging": {"log_every": 1, "validate_every": 1, "checkpoint_every": 2, "keep": 5, "keep_best": False},
    }
    vae = {
        **{"task": "vae", "data": DATA, "model": VAE, "kl": {"weight": 1e-4, "start": 1, "ramp": 2}, **common},
        "adversary": {"weight": 0.1, "start": 1, "width": 8, "layers": 2},
        "statistics_clips": 6,
    }
    made = {"vae": written(folder, "vae", vae | {"output": str(folder / "vae")})}
    make_task(load_config(made["vae"], ["adversary.weight=0"]), ONE, lambda _: None).export(folder)
    upscaler = {"task": "upscaler", "vae": str(folder / "vae.safetensors"), "data": DATA, "model": UPSCALER, **common}
    made["upscaler"] = written(folder, "upscaler", upscaler | {"output": str(folder / "upscaler"), "cache_clips": 8})
    return made


def numbers(output: Path) -> list[dict[str, float]]:
    """All that is logged but times."""
    timed = ("_per_second", "seconds_left", "time")
    return [{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in read_log(output / "log.jsonl")]


@pytest.mark.slow
def test_two_processes_that_share_the_weights_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With discriminator, averages, accumulation, validations, statistics; interrupted and resumed."""
    monkeypatch.setattr(logs, "draw_curves", lambda *_: None)
    monkeypatch.setattr(loop, "draw_rate", lambda *_: None)
    sharded = "optimization.sharding=fsdp"
    paths = configs(tmp_path)
    runs: list[tuple[Path, list[str], bool]] = []
    for name, path in paths.items():
        mine = [sharded, f"output={tmp_path}/{name}-two"]
        runs += [(path, [*mine, "optimization.steps=2"], False), (path, mine, True)]
    frozen = [sharded, f"output={tmp_path}/frozen-two", "freeze_encoder=true", "optimization.steps=2"]
    runs.append((paths["vae"], frozen, False))
    in_two_processes(runs)

    for name, path, changes in (
        ("vae", paths["vae"], []),
        ("upscaler", paths["upscaler"], []),
        ("frozen", paths["vae"], frozen[2:]),
    ):
        one, two = tmp_path / f"{name}-one", tmp_path / f"{name}-two"
        final = run_training(load_config(path, [*changes, f"output={one}"]))
        assert final is not None
        expected, got = numbers(one), numbers(two)
        assert len(got) == len(expected)
        for entry, other in zip(expected, got, strict=True):
            assert other == pytest.approx(entry, rel=1e-4, abs=1e-5), name
        assert {file.name for file in (two / "final").iterdir()} == {file.name for file in final.iterdir()}
        file = next(file.name for file in final.glob("*.safetensors"))
        whole, split = load_file(final / file), load_file(two / "final" / file)
        assert whole.keys() == split.keys()
        for key, tensor in whole.items():
            torch.testing.assert_close(split[key], tensor, atol=1e-4, rtol=1e-4, msg=lambda text, key=key: key + text)
        plan = plan_training(load_config(path, [*changes, sharded]), Card("main", 2**40, 2**40), processes=2).step
        needs = json.loads((two / "needs.json").read_text())
        assert [plan.weights, plan.gradients, plan.optimizer] == pytest.approx(needs[:3], rel=0.1)
        assert plan.activations == pytest.approx(needs[3], rel=0.1)
    # A run of two goes on in one process.
    again = tmp_path / "vae-two"
    assert run_training(load_config(paths["vae"], [sharded, f"output={again}", "optimization.steps=5"]), resume=True)
    straight = tmp_path / "straight"
    run_training(load_config(paths["vae"], [f"output={straight}", "optimization.steps=5"]))
    assert numbers(again)[-1] == pytest.approx(numbers(straight)[-1], rel=1e-3, abs=1e-4)


def test_shards_are_for_adamw(tmp_path: Path) -> None:
    path = configs(tmp_path)["vae"]
    with pytest.raises(ConfigError, match="expected adamw: muon needs whole matrices"):
        make_task(load_config(path, ["optimization.sharding=fsdp", "optimization.optimizer=muon"]), ONE, print)
