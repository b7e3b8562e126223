"""The plan of a pass that several processes divide is what the tensors of the one with most of them take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ltxkit.ltx_core.budget.work import TABLE_BYTES
from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.sharing import Counted, Sharing
from ltxkit.ltx_core.models.teams import Division
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.pipelines.condition import Conditions
from ltxkit.ltx_core.pipelines.division import describe_division, divisions_of, usual_divisions
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.placing.together import shared
from ltxkit.ltx_core.sampling.conditioning import LatentCondition, LatentItem, LatentReference
from ltxkit.ltx_core.sampling.guidance import NO_GUIDANCE, Guidance
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.samplers import EULER
from ltxkit.ltx_core.shapes import ScaleFactors

# As wide as the released models, but of fewer blocks, which all take the same.
CONFIGS = {
    name: TransformerConfig.of_size(layers=4, heads=32, head_dim=head_dim, channels=128, captions=4096)
    for name, head_dim in (("2b", 64), ("13b", 128))
}
GRID = (7, 16, 24)
TEXT_TOKENS = (900, 700)  # so that keys and values of the few blocks count
CFG, STG = Guidance(scale=(3.0,)), Guidance(stg_scale=(1.0,), skip_blocks=((0,),))
EARLY, LATE = (Guidance(scale=(3.0,), stg_scale=(1.0,), skip_blocks=((block,),)) for block in (0, 3))
# One step with all branches, one with the positive alone, which all processes divide: texts of both are kept.
CHANGING = Guidance(scale=(3.0, 1.0), guidance_timesteps=(1.0, 0.25))
SHOWN: tuple[LatentItem, ...] = (
    LatentCondition(torch.zeros(1, 128, 1, *GRID[1:]), 0),
    LatentCondition(torch.zeros(1, 128, 1, *GRID[1:]), 24, 0.5),
)
FOLLOWED: tuple[LatentItem, ...] = (LatentReference(torch.zeros(1, 128, *GRID)),)


@dataclass(frozen=True)
class Unheard(Counted):
    """A process of several, to which the others send numbers that do not matter."""

    place: int = 0

    @property
    def rank(self) -> int:
        return self.place

    def part(self, ranks: range) -> Sharing:
        return Unheard(count=len(ranks), place=self.place - ranks.start)


@pytest.fixture(scope="module")
def models() -> dict[str, LTXTransformer]:
    with torch.device("meta"):
        return {
            name: LTXTransformer(config).to(torch.bfloat16).requires_grad_(False) for name, config in CONFIGS.items()
        }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "guidance", "items", "fused", "processes"),
    [
        ("2b", NO_GUIDANCE, (), True, 8),
        ("2b", CFG, SHOWN, True, 2),
        ("2b", CFG, SHOWN, True, 4),
        ("2b", LATE, (), True, 2),
        ("2b", EARLY, (), False, 2),
        ("2b", EARLY, (), True, 3),
        ("2b", CHANGING, (), True, 2),
        ("2b", CHANGING, (), True, 8),
        ("13b", CFG, (), True, 4),
        ("13b", EARLY, (), True, 5),
        ("13b", EARLY, SHOWN, True, 8),
        ("13b", STG, SHOWN, True, 2),
        ("13b", NO_GUIDANCE, FOLLOWED, True, 4),
        ("13b", NO_GUIDANCE, (), True, 7),
    ],
)
def test_work_of_a_process_is_what_its_tensors_take(
    models: dict[str, LTXTransformer],
    meta_device: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    guidance: Guidance,
    items: tuple[LatentItem, ...],
    fused: bool,
    processes: int,
) -> None:
    """On a card, with the norm as one kernel or composed by torch; each team has one of these processes at least."""
    if fused:
        monkeypatch.setattr(F, "rms_norm", lambda x, *_, **__: torch.empty_like(x))
    monkeypatch.setattr("ltxkit.ltx_core.budget.stages.norms_are_one_kernel", lambda: fused)
    found = [
        _bytes(models[name], meta_device, guidance, items, Unheard(count=processes, place=place))
        for place in sorted({0, processes // 2, processes - 1})
    ]
    asked, counted = zip(*found, strict=True)
    assert len(set(asked)) == 1
    assert asked[0] == pytest.approx(max(counted), rel=0.08)


@pytest.mark.parametrize("teams", [True, False])
def test_more_processes_need_less_each(models: dict[str, LTXTransformer], meta_device: Any, teams: bool) -> None:
    """Whether their branches may be divided or not."""
    asked = [
        _bytes(models["13b"], meta_device, CFG, (), Unheard(count=processes, teams=teams))[0] for processes in (1, 2, 4)
    ]
    assert asked == sorted(asked, reverse=True)


def _bytes(
    model: LTXTransformer, meta_device: Any, guidance: Guidance, items: tuple[LatentItem, ...], process: Sharing
) -> tuple[int, int]:
    """What is asked for, and what is taken."""
    asked, place = list[int](), DevicePlacement("meta")

    def placed(module: nn.Module, *, memory_required: int = 0):
        asked.append(memory_required)
        return place(module)

    sigmas = torch.tensor([1.0, 0.25, 0.0]) if guidance is CHANGING else torch.tensor([1.0, 0.0])
    with meta_device(model) as counted, shared(model, process):
        sample(
            Pass(model, sigmas, guidance, EULER),
            LatentClip(torch.zeros(1, 128, *GRID), ScaleFactors(8, 32, 32), fps=24),
            Prompts(*(EncodedPrompt(torch.zeros(1, length, 4096)) for length in TEXT_TOKENS)),
            noise=SeededNoise(0),
            host=Host(placed),
            conditions=Conditions(items),
        )
    frames = GRID[0] + sum(
        GRID[0] if items is FOLLOWED else item.frame is not None and item.frame > 0 for item in items
    )
    # The table of comfy-kitchen's rotation, which meta has not.
    return asked[0] - frames * GRID[1] * GRID[2] * model.config.hidden_size * TABLE_BYTES, counted.peak


# --- what the plan reads ----------------------------------------------------------------------------------------------


def of(guidance: Guidance, model: LTXTransformer) -> Pass:
    return Pass(model, torch.tensor([1.0, 0.25, 0.0]), guidance, EULER)


def test_what_processes_compute(models: dict[str, LTXTransformer]) -> None:
    """Texts: 0 is the positive one."""
    model, both = models["2b"], frozenset({0, 1})
    assert divisions_of(of(CFG, model), 1) == (Division(2, 1, both),)
    assert divisions_of(of(CFG, model), 3) == (Division(2, 3, both),)
    assert divisions_of(of(CFG, model), 4) == (
        Division(1, 2, frozenset({1}), gathered=4),
        Division(1, 2, frozenset({0}), gathered=4),
    )
    assert divisions_of(of(CFG, model), 4, teams=False) == (Division(2, 4, both),)
    # Whoever computes the negative branch of the first step reads the positive text in the second, and keeps it.
    assert divisions_of(of(CHANGING, model), 2) == (
        Division(1, 1, frozenset({1}), gathered=2),
        Division(1, 2, both),
        Division(1, 1, frozenset({0}), gathered=2),
        Division(1, 2, frozenset({0})),
    )
    three = divisions_of(of(CFG, model), 4, {"positive": 3})
    assert {division.texts for division in three} == {frozenset({number}) for number in range(4)}
    assert usual_divisions(of(NO_GUIDANCE, model), 2, 4) == divisions_of(of(CFG, model), 4)
    assert usual_divisions(of(CFG, model), 1, 4) == (Division(1, 4, frozenset({0})),)


def test_a_text_is_kept_for_the_steps_that_come_back_to_it(models: dict[str, LTXTransformer]) -> None:
    back = Guidance(scale=(3.0, 1.0, 3.0), guidance_timesteps=(1.0, 0.5, 0.25))
    run_pass = Pass(models["2b"], torch.tensor([1.0, 0.5, 0.25, 0.0]), back, EULER)
    assert Division(1, 1, frozenset({0, 1}), gathered=2) in divisions_of(run_pass, 2)


def test_a_division_in_words(models: dict[str, LTXTransformer]) -> None:
    assert describe_division(of(CHANGING, models["2b"]), 4) == (
        "4 processes: 2 for negative, 2 for positive; in other steps all for positive."
    )
