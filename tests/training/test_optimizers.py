"""The optimizers by name and by import path: they train, resume to the last bit, and keep what the forecast says."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltxkit import cli
from ltxkit.ltx_core.errors import ConfigError, UnsupportedError
from ltxkit.ltx_core.training.config import Optimization, load_config
from ltxkit.ltx_core.training.distributed import World
from ltxkit.ltx_core.training.optimize import Updater
from ltxkit.ltx_core.training.optimizers import (
    OPTIMIZERS,
    check_available,
    optimizer_bytes,
    optimizer_class,
    rounded_stochastically,
)
from ltxkit.ltx_core.training.run import make_task
from ltxkit.nodes import train

PACKAGES = {
    "prodigy": "prodigyopt",
    "adamw8bit": "bitsandbytes",
    "adamw8bit-paged": "bitsandbytes",
    "adamw8bit-torchao": "torchao",
}
CPU = torch.device("cpu")
HERE = [name for name in OPTIMIZERS if not name.endswith("-paged")]  # what a CPU has
STEPS = 6


def named(name: str) -> Any:
    """A case, skipped where its package is not installed."""
    missing = name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"needs {PACKAGES.get(name)}"))


class Case:
    """A matrix with more than 4096 numbers, which is what 8-bit optimizers begin with, and a bias."""

    def __init__(self, name: str, **changes: Any) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(96, 64)
        if changes.get("weights") == "bf16":
            self.layer.to(torch.bfloat16)
        rate = 1.0 if name == "prodigy" else 1e-2
        settings = {"steps": 50, "batch_size": 1, "learning_rate": rate, "warmup": 0.0, "schedule": "constant"}
        self.updater = Updater([self.layer], Optimization(**(settings | {"optimizer": name} | changes)))

    def step(self, number: int) -> float:
        x = torch.randn(32, 96, generator=torch.Generator().manual_seed(number))
        loss = (self.layer(x.to(self.layer.weight.dtype)).float() - x[:, :64]).square().mean()
        loss.backward()
        self.updater.apply(number)
        return float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.layer.state_dict().items()}


def saved_and_read(state: dict[str, Any]) -> dict[str, Any]:
    """Through a file, as a checkpoint goes: nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize("name", [*map(named, HERE), "torch.optim.RMSprop"])
def test_it_trains_and_resumes_to_the_last_bit(name: str) -> None:
    whole = Case(name)
    losses = [whole.step(number) for number in range(STEPS)]
    if name != "prodigy":  # which finds its rate first
        assert losses[-1] < losses[0]
    first, second = Case(name), Case(name)
    for number in range(STEPS // 2):
        first.step(number)
    second.layer.load_state_dict(first.state())
    second.updater.load(saved_and_read(first.updater.state()))
    for number in range(STEPS // 2, STEPS):
        second.step(number)
    assert all(torch.equal(second.state()[key], tensor) for key, tensor in whole.state().items())


@pytest.mark.parametrize("name", [named(name) for name in HERE])
def test_what_it_keeps_is_what_the_forecast_says(name: str) -> None:
    case = Case(name)
    case.step(0)
    states = [state for optimizer in case.updater.optimizers for state in optimizer.state.values()]
    kept = 0
    for state in states:
        for key, value in state.items():
            if isinstance(value, Tensor) and not key.startswith("qmap"):  # one table for all weights
                kept += value.numel() * value.element_size()
    numbers = sum(p.numel() for p in case.layer.parameters())
    said = optimizer_bytes(name, numbers)
    assert said == pytest.approx(kept, rel=0.1, abs=0.25 * numbers)


def test_a_class_gets_its_arguments() -> None:
    case = Case("torch.optim.SGD", optimizer_arguments={"momentum": 0.5, "nesterov": True})
    (optimizer,) = case.updater.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.5
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("adamw9bit", ConfigError, "did you mean adamw8bit"),
        ("no.such.package.SGD", UnsupportedError, "do pip install no"),
        ("torch.optim.NoSuch", ConfigError, "no optimizer NoSuch"),
        ("os.path.join", ConfigError, "no optimizer join"),
        ("torch.optim.LBFGS", ConfigError, "does not take"),
    ],
)
def test_what_is_no_optimizer_is_refused(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Case(name)


def test_what_could_not_be_made_is_refused_before_anything_is_encoded() -> None:
    """`make_task` asks before it opens a file: there is no VAE of this name."""
    for name, message in (
        ("adamw8bit-paged", r"got optimizer adamw8bit-paged on a device of type cpu; .*use adamw8bit"),
        ("no.such.package.SGD", "do pip install no"),
    ):
        config = load_config("lora-2b", [f"optimization.optimizer={name}", "vae=nowhere", "initial=nowhere"])
        with pytest.raises(UnsupportedError, match=message):
            make_task(config, World(0, 1, CPU), lambda _: None)
    if importlib.util.find_spec("bitsandbytes") is not None:
        check_available("adamw8bit-paged", torch.device("cuda"))
        assert optimizer_class("adamw8bit-paged").__name__ == "PagedAdamW8bit"


def test_arguments_belong_to_a_class() -> None:
    with pytest.raises(ConfigError, match="expected them with an import path"):
        Case("adamw", optimizer_arguments={"momentum": 0.5})
    with pytest.raises(ConfigError, match="which it does not take"):
        Case("torch.optim.SGD", optimizer_arguments={"speed": 0.5})


@pytest.mark.parametrize(
    "setting",
    [
        "optimization.optimizer=torch.optim.SGD",
        "optimization={steps: 1, batch_size: 1, learning_rate: 1.0, optimizer: torch.optim.SGD}",
    ],
)
def test_settings_of_a_node_name_no_class(setting: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["train", "--config", "lora-2b", "--output", str(tmp_path / "run"), "--set", setting]
    assert cli.main([*common, "--named-optimizers"]) == 2
    assert "in the settings of a node" in capsys.readouterr().err
    cli.main(common)  # goes on to the files, which are missing
    assert "in the settings of a node" not in capsys.readouterr().err


def test_the_node_asks_for_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    started: list[list[str]] = []

    class Process:
        returncode = 0

        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(train.subprocess, "Popen", Process)
    train.train(tmp_path / "run", {}, ["optimization.optimizer=torch.optim.SGD"], 1, lambda _: None, lambda _: None)
    assert "--named-optimizers" in started[0]


# --- weights in bfloat16 ----------------------------------------------------------------------------------------------


def test_stochastic_rounding_keeps_the_mean() -> None:
    rng = torch.Generator().manual_seed(0)
    for value in (1.0 + 2**-10, -3.14159, 1e-20, 12345.678):
        rounded = rounded_stochastically(torch.full((40_000,), value), rng).double()
        near = torch.tensor(value, dtype=torch.float64)
        step = 2.0 ** (int(torch.log2(near.abs()).floor()) - 7)
        assert set((rounded.unique() - near).abs().lt(step).tolist()) == {True}
        # 4 standard deviations of the mean of 40,000 draws between two neighbours, at most half a step each.
        assert float((rounded.mean() - near).abs()) < 4 * 0.5 * step / 200
    exact = torch.tensor([0.0, 1.0, -2.5, float("inf"), -float("inf")])
    assert torch.equal(rounded_stochastically(exact, rng).float(), exact)
    assert bool(rounded_stochastically(torch.tensor([float("nan")]), rng).isnan())


def test_steps_below_half_of_the_last_place_still_count() -> None:
    """AdamW steps of 1e-4 on weights near 1, whose last place is 2^-8."""
    case = Case("adamw", weights="bf16", learning_rate=1e-4)
    with torch.no_grad():
        case.layer.weight.fill_(1.0)
    for number in range(40):
        case.layer.weight.grad = torch.ones_like(case.layer.weight)
        case.layer.bias.grad = torch.zeros_like(case.layer.bias)
        case.updater.apply(number)
    assert case.layer.weight.dtype == torch.bfloat16
    moved = 1 - float(case.layer.weight.detach().double().mean())
    assert moved == pytest.approx(40e-4, rel=0.1)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_half_weights_resume_to_the_last_bit(name: str) -> None:
    whole, first, second = (Case(name, weights="bf16") for _ in range(3))
    losses = [whole.step(number) for number in range(STEPS)]
    assert losses[-1] < losses[0]
    for number in range(3):
        first.step(number)
    second.layer.load_state_dict(first.state())
    second.updater.load(saved_and_read(first.updater.state()))
    for number in range(3, STEPS):
        second.step(number)
    assert all(torch.equal(second.state()[key], tensor) for key, tensor in whole.state().items())


def test_an_average_of_half_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="stands still"):
        Case("adamw", weights="bf16", ema_decay=0.9)
