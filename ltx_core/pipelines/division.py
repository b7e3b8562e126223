"""How several processes divide the steps of a pass: what one of them has to hold in memory, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..config import TransformerConfig
from ..models.branches import BranchStructure, plan_forward
from ..models.teams import Division, Team, teams_for
from .passes import Pass


@dataclass(frozen=True)
class _Kind:
    """A kind of step, by its branches.

    names: of the branches. texts: the number of the text that each reads: the positive ones of a pass come first.
    """

    structure: BranchStructure
    names: tuple[str, ...]
    texts: tuple[int, ...]


def divisions_of(
    run_pass: Pass, processes: int, texts: Mapping[str, int] | None = None, *, teams: bool = True
) -> tuple[Division, ...]:
    """What each process computes in each kind of step; equal parts once.

    texts: how many prompts there are of a name; one, unless it says more. teams: see `Sharing`.
    """
    return _divisions(run_pass.transformer.config, _kinds(run_pass, texts or {}), processes, teams=teams)


def usual_divisions(run_pass: Pass, branches: int, processes: int) -> tuple[Division, ...]:
    """The same for another number of branches than the recipe of a pass has: negative, positive, perturbed."""
    config = run_pass.transformer.config
    mode, perturbed = run_pass.guidance.stg_mode, frozenset({config.num_layers // 2})
    every: BranchStructure = ((0, frozenset(), mode), (1, frozenset(), mode), (1, perturbed, mode))
    kind = _Kind(every[:branches], ("negative", "positive", "perturbed")[:branches], (1, 0, 0)[:branches])
    if branches == 1:
        kind = _Kind(every[1:2], ("positive",), (0,))
    return _divisions(config, [kind], processes)


def _divisions(
    config: TransformerConfig, kinds: Sequence[_Kind], processes: int, *, teams: bool = True
) -> tuple[Division, ...]:
    """kinds: of the steps, in their order: a text's keys and values are kept from the first step on that reads it."""
    divided = {kind: _teams(config, kind, processes, teams=teams) for kind in kinds}
    found: dict[Division, None] = {}
    for rank in range(processes):
        texts = frozenset[int]()
        for kind in kinds:
            of_kind = divided[kind]
            team = next(team for team in of_kind if rank in team.ranks)
            texts |= {kind.texts[of] for of in team.branches}
            most = max(len(each.branches) for each in of_kind)
            gathered = processes * most if len(of_kind) > 1 else 0
            branches = tuple(kind.structure[of] for of in team.branches)
            lanes = max(len(block.valued) for block in plan_forward(branches, config.num_layers).blocks)
            lanes = 0 if lanes == len(branches) else lanes
            found[Division(len(branches), len(team.ranks), texts, gathered, lanes)] = None
    return tuple(found)


def _teams(config: TransformerConfig, kind: _Kind, processes: int, *, teams: bool) -> tuple[Team, ...]:
    if not teams:
        return (Team(tuple(range(len(kind.structure))), range(processes)),)
    return teams_for(kind.structure, config.num_layers, processes, config.num_attention_heads)


def describe_division(run_pass: Pass, processes: int) -> str:
    """Which processes compute which branches, of every kind of step that the pass has."""
    said = list[str]()
    for kind in dict.fromkeys(_kinds(run_pass, {})):
        teams = _teams(run_pass.transformer.config, kind, processes, teams=True)
        said.append(
            ", ".join(
                f"{len(team.ranks) if len(teams) > 1 else 'all'} for "
                f"{' + '.join(kind.names[of] for of in team.branches)}"
                for team in teams
            )
        )
    return f"{processes} processes: {'; in other steps '.join(dict.fromkeys(said))}."


def _kinds(run_pass: Pass, counts: Mapping[str, int]) -> list[_Kind]:
    """The kinds of steps in the order of the steps, one for neighbours that are equal. counts: of prompts by name, one
    where it says nothing."""
    first = {"positive": 0, "negative": counts.get("positive", 1)}
    found: list[_Kind] = []
    for step in run_pass.steps:
        named = [(branch, number) for branch in step.branches for number in range(counts.get(branch.text, 1))]
        texts = tuple(first[branch.text] + number for branch, number in named)
        numbers: dict[int, int] = {}
        structure: BranchStructure = tuple(
            (numbers.setdefault(text, len(numbers)), branch.skip_blocks, run_pass.guidance.stg_mode)
            for (branch, _), text in zip(named, texts, strict=True)
        )
        names = tuple("perturbed" if branch.skip_blocks else branch.text for branch, _ in named)
        found.append(_Kind(structure, names, texts))
    return [kind for kind, _ in groupby(found)]
