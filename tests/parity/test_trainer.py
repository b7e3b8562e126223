"""Noise levels, losses and settings against Lightricks' trainers (recorded; see trainer/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltxkit.ltx_core.training.config import Noising, TransformerTraining, load_config
from ltxkit.ltx_core.training.flow import LOWEST, Flow, draw, sigma_of_normal
from ltxkit.ltx_core.training.schedule import learning_rate

RECORD = json.loads((Path(__file__).parent / "trainer/trainer.json").read_text(encoding="utf-8"))
PRESET = "lora-2b-official"


def preset() -> TransformerTraining:
    config = load_config(PRESET)
    assert isinstance(config, TransformerTraining)
    return config


@pytest.mark.parametrize("tokens", [64, 1024, 2688, 4096, 6144])
def test_the_levels_of_the_preset_are_the_trainer_s(tokens: int) -> None:
    draws = torch.tensor(RECORD["draws"])
    ours = sigma_of_normal(draws, preset().noising, tokens)
    torch.testing.assert_close(ours, torch.tensor(RECORD["LTX-Video-Trainer"][str(tokens)]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tokens", [64, 1024, 2688, 4096, 6144])
def test_our_own_levels_are_those_of_the_later_trainer(tokens: int) -> None:
    draws = torch.tensor(RECORD["draws"])
    ours, theirs = sigma_of_normal(draws, Noising(), tokens), torch.tensor(RECORD["LTX-2"][str(tokens)])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)  # its percentiles have five figures
    assert float(ours.min()) >= LOWEST


def test_of_many_levels_hardly_one_is_1_and_none_is_heaped_up() -> None:
    rng, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    drawn = draw(rng, noise, (200_000, 1, 1), Noising(shift=1.86), text_dropout=0.0, first_frame=0.0).sigma
    assert float((drawn == 1).float().mean()) == pytest.approx(0.9 * 0.001, rel=0.3)
    assert float((drawn <= LOWEST).float().mean()) < 1e-4
    assert float(drawn.min()) >= LOWEST


class Predicts(nn.Module):
    """In place of a transformer: what it predicts is given."""

    def __init__(self, velocity: Tensor) -> None:
        super().__init__()
        self.velocity = velocity

    def prepare_text(self, runs: list[Tensor]) -> Any:
        return runs

    def prepare_positions(self, positions: Tensor) -> Tensor:
        return positions

    def forward(self, *_: Any) -> tuple[Tensor]:
        return (self.velocity,)


@pytest.mark.parametrize("case", RECORD["losses"], ids=lambda case: f"given={case['given']}")
def test_the_loss_is_the_trainer_s(case: dict[str, Any]) -> None:
    predicted, x0, noise = (torch.tensor(case[name]) for name in ("predicted", "x0", "noise"))
    sigma = torch.full((2, 12, 1), 0.4)
    sigma[:, : case["given"]] = 0
    flow = Flow(Predicts(predicted), None)  # pyright: ignore[reportArgumentType]
    losses = flow(x0, noise, sigma, torch.zeros(1, 3, 12), [torch.zeros(2, 4)] * 2)
    assert float(losses.mean()) == pytest.approx(case["loss"], rel=1e-5)


def test_the_preset_has_the_trainer_s_settings() -> None:
    """configs/ltxv_2b_lora.yaml, and AdamW and LinearLR as its trainer.py makes them."""
    config = preset()
    assert config.lora is not None
    assert (config.lora.rank, config.lora.alpha) == (32, 32)
    assert set(config.lora.targets) == {"to_q", "to_k", "to_v", "to_out.0"}
    assert (config.first_frame, config.text_dropout, config.noising.uniform) == (0.1, 0.0, 0.0)
    optimization = config.optimization
    default = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=optimization.learning_rate)
    (group,) = default.param_groups
    assert (group["betas"], group["weight_decay"]) == (optimization.betas, optimization.weight_decay)
    schedule = torch.optim.lr_scheduler.LinearLR(default, 1.0, 0.1, total_iters=optimization.steps)
    theirs: list[Any] = []
    for _ in range(optimization.steps):
        theirs += schedule.get_last_lr()
        default.step()
        schedule.step()
    ours = [learning_rate(optimization, step) for step in range(optimization.steps)]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=0, rtol=1e-3)
