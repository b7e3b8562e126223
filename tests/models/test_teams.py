"""Which processes compute which branches of a step. That the velocities are those of one process:
`test_sharing.py`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.models.branches import Branch, BranchStructure
from ltxkit.ltx_core.models.sharing import Sharing
from ltxkit.ltx_core.models.teams import teams_for
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing.together import shared

NEGATIVE, POSITIVE = (0, frozenset[int](), "attention_values"), (1, frozenset[int](), "attention_values")
Processes = Callable[..., list[Any]]


def perturbed(*blocks: int) -> Any:
    return (1, frozenset(blocks), "attention_values")


GUIDED: BranchStructure = (NEGATIVE, POSITIVE)
LATE, EARLY = (NEGATIVE, POSITIVE, perturbed(20)), (NEGATIVE, POSITIVE, perturbed(0))


@pytest.mark.parametrize(
    ("structure", "processes", "expected"),
    [
        ((POSITIVE,), 4, [((0,), 4)]),
        (GUIDED, 1, [((0, 1), 1)]),
        (GUIDED, 2, [((0,), 1), ((1,), 1)]),
        (GUIDED, 3, [((0, 1), 3)]),  # two thirds of a forward each, against a whole one
        (GUIDED, 4, [((0,), 2), ((1,), 2)]),
        (EARLY, 3, [((0,), 1), ((1,), 1), ((2,), 1)]),  # nothing in common
        (LATE, 2, [((0, 1, 2), 2)]),
        (LATE, 3, [((0, 1, 2), 3)]),  # what is common would be done twice
        ((POSITIVE, perturbed(20)), 2, [((0, 1), 2)]),
        ((POSITIVE, perturbed(0)), 2, [((0,), 1), ((1,), 1)]),
        (tuple((text, frozenset(), "attention_values") for text in range(6)), 6, [(tuple(range(6)), 6)]),
    ],
)
def test_the_busiest_team_has_least_to_do(
    structure: BranchStructure, processes: int, expected: list[tuple[tuple[int, ...], int]]
) -> None:
    teams = teams_for(structure, 28, processes, 32)
    assert [(team.branches, len(team.ranks)) for team in teams] == expected
    ranks = [rank for team in teams for rank in team.ranks]
    assert ranks == list(range(processes))


@pytest.mark.parametrize("processes", range(1, 9))
@pytest.mark.parametrize("structure", [GUIDED, LATE, EARLY])
def test_every_branch_has_a_team_and_no_team_more_members_than_heads(
    structure: BranchStructure, processes: int
) -> None:
    teams = teams_for(structure, 28, processes, 8)
    assert sorted(branch for team in teams for branch in team.branches) == list(range(len(structure)))
    assert sum(len(team.ranks) for team in teams) == processes
    assert all(1 <= len(team.ranks) <= 8 for team in teams)


def test_each_process_computes_its_own_branch(in_processes: Processes) -> None:
    """And nothing is exchanged but the velocities, and only its text is read."""
    torch.manual_seed(0)
    config = TransformerConfig.of_size(layers=2, heads=4, head_dim=6, channels=6, captions=10)
    model = LTXTransformer(config).eval().requires_grad_(False)

    def work(sharing: Sharing) -> tuple[list[int], list[int], tuple[Tensor, ...]]:
        mine, lanes = copy.deepcopy(model), list[int]()
        mine.transformer_blocks[1].register_forward_hook(lambda _, x, __: lanes.append(len(x[0])))
        sharing.__dict__["exchange"] = None  # there are no exchanges
        generator = torch.Generator().manual_seed(3)
        texts = [mine.prepare_text([torch.randn(5, 10, generator=generator)]) for _ in range(2)]
        x, positions = torch.randn(1, 9, 6, generator=generator), torch.rand(1, 3, 9, generator=generator)
        with shared(mine, sharing):
            branches = [Branch(text) for text in texts]
            found = mine(x, torch.full((1, 1, 1), 0.5), mine.prepare_positions(positions), branches)
        return lanes, [len(text.cache) for text in texts], found

    first, second = in_processes(2, work)
    assert first[0] == second[0] == [1]
    assert (first[1], second[1]) == ([2, 0], [0, 2])
    for one, other in zip(first[2], second[2], strict=True):
        assert torch.equal(one, other)
