"""How several processes divide the steps of a pass: what one of them has to hold in memory, and in words."""

from __future__ import annotations

from collections.abc import Mapping

from ..models.branches import BranchStructure
from ..models.teams import Division, largest_division, teams_for
from .passes import Pass


def division_of(run_pass: Pass, processes: int, texts: Mapping[str, int] | None = None) -> Division:
    """The largest part of any step that one process computes.

    texts: how many prompts there are of a name; one, unless it says more.
    """
    config = run_pass.transformer.config
    divisions = (
        largest_division(structure, config.num_layers, processes, config.num_attention_heads)
        for structure in _structures(run_pass, texts or {})
    )
    return max(divisions, key=lambda division: division.branches / division.members)


def usual_division(run_pass: Pass, branches: int, processes: int) -> Division:
    """The same for another number of branches than the recipe of a pass has: negative, positive, perturbed."""
    config = run_pass.transformer.config
    mode, perturbed = run_pass.guidance.stg_mode, frozenset({config.num_layers // 2})
    every: BranchStructure = ((0, frozenset(), mode), (1, frozenset(), mode), (1, perturbed, mode))
    structure = every[1:2] if branches == 1 else every[:branches]
    return largest_division(structure, config.num_layers, processes, config.num_attention_heads)


def describe_division(run_pass: Pass, processes: int) -> str:
    """Which processes compute which branches, of every kind of step that the pass has."""
    config, kinds = run_pass.transformer.config, list[str]()
    for structure, names in _structures(run_pass, {}).items():
        teams = teams_for(structure, config.num_layers, processes, config.num_attention_heads)
        kinds.append(
            ", ".join(
                f"{len(team.ranks) if len(teams) > 1 else 'all'} for {' + '.join(names[of] for of in team.branches)}"
                for team in teams
            )
        )
    return f"{processes} processes: {'; in other steps '.join(dict.fromkeys(kinds))}."


def _structures(run_pass: Pass, texts: Mapping[str, int]) -> dict[BranchStructure, list[str]]:
    """Of every kind of step in the order of the steps, with the names of the branches."""
    found: dict[BranchStructure, list[str]] = {}
    for step in run_pass.steps:
        named = [(branch, number) for branch in step.branches for number in range(texts.get(branch.text, 1))]
        numbers: dict[tuple[str, int], int] = {}
        structure: BranchStructure = tuple(
            (numbers.setdefault((branch.text, number), len(numbers)), branch.skip_blocks, run_pass.guidance.stg_mode)
            for branch, number in named
        )
        found.setdefault(structure, ["perturbed" if branch.skip_blocks else branch.text for branch, _ in named])
    return found
