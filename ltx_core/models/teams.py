"""The branches of a step in several processes: teams, each with some of the branches.

Branches exchange nothing before their velocities are combined, and so teams do not wait for each other in between.
Within a team the tokens are divided (`sharing`), which costs exchanges in every block. But branches that fork late do
their common work twice when they are apart, and teams are seldom equally busy: which way is best depends on the
branches of the step, and is decided for each by what the busiest team computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .branches import BranchStructure, plan_forward
from .sharing import Sharing

EXCHANGES = 0.2
"""What exchanging all tokens is taken to add to a forward; of s processes, each exchanges all but its own s-th.
Assumed, not measured: it decides only between divisions that are about as good."""

ATTENTION = 4 / 14
"""Of the products of a block, the share of self-attention, which branches have in common until they read their texts: 4
matrices of d x d; reading the text has 2, and the feed-forward 8."""

MOST = 5  # branches for which divisions are compared; more, which only several prompts make, are divided by tokens


@dataclass(frozen=True)
class Team:
    """branches: their numbers. ranks: the processes that compute them, and divide the tokens among them."""

    branches: tuple[int, ...]
    ranks: range


@dataclass(frozen=True)
class Division:
    """The part of a forward that a process computes: of some branches, a share of the tokens.

    members: the processes of its team. texts: the numbers of those whose keys and values it keeps, from this and other
    kinds of steps; None: all. gathered: velocities that it receives from all teams; 0 for one team. lanes: most
    branches that exchange queries, keys and values of their own in a block; 0: all of them.
    """

    branches: int
    members: int = 1
    texts: frozenset[int] | None = None
    gathered: int = 0
    lanes: int = 0


@cache
def teams_for(structure: BranchStructure, num_blocks: int, processes: int, heads: int) -> tuple[Team, ...]:
    """How so many processes, not more than there are heads, divide the branches of a step: the division whose busiest
    team has least to do, with as few teams as that takes."""
    numbers = range(len(structure))
    divisions = [[tuple(numbers)]] if len(structure) > MOST else sorted(_partitions(len(structure)), key=len)
    best: list[tuple[tuple[int, ...], int]] = []
    least = float("inf")
    for parts in divisions:
        if len(parts) > processes:
            continue
        costs = [_cost(structure, part, num_blocks) for part in parts]
        sizes = _sizes(costs, processes, heads)
        busiest = max(
            cost / size * (1 + EXCHANGES * (size - 1) / size) for cost, size in zip(costs, sizes, strict=True)
        )
        if busiest < least * (1 - 1e-9):
            least, best = busiest, list(zip(parts, sizes, strict=True))
    teams: list[Team] = []
    for branches, size in best:
        start = teams[-1].ranks.stop if teams else 0
        teams.append(Team(branches, range(start, start + size)))
    return tuple(teams)


def _partitions(count: int) -> Iterator[list[tuple[int, ...]]]:
    """The numbers below `count` in groups, in every possible way."""
    if count == 0:
        yield []
        return
    for smaller in _partitions(count - 1):
        for place in range(len(smaller)):
            yield [*smaller[:place], (*smaller[place], count - 1), *smaller[place + 1 :]]
        yield [*smaller, (count - 1,)]


def _cost(structure: BranchStructure, branches: tuple[int, ...], num_blocks: int) -> float:
    """Forwards that these branches take together, with their common work done once."""
    plan = plan_forward(tuple(structure[number] for number in branches), num_blocks)
    work = sum(len(block.computed) * ATTENTION + len(block.readers) * (1 - ATTENTION) for block in plan.blocks)
    return work / num_blocks


def _sizes(costs: list[float], processes: int, heads: int) -> list[int]:
    """Processes of each team: each further one goes to the team that has most to do."""
    sizes = [1] * len(costs)
    for _ in range(processes - len(costs)):
        open_teams = [number for number, size in enumerate(sizes) if size < heads]
        if not open_teams:
            break
        sizes[max(open_teams, key=lambda number: costs[number] / sizes[number])] += 1
    return sizes


def collected(velocities: tuple[Tensor, ...], sharing: Sharing, teams: tuple[Team, ...]) -> tuple[Tensor, ...]:
    """Those of this process's team, each (b n c) -> those of all branches, in every process."""
    most = max(len(team.branches) for team in teams)
    sent = velocities[0].new_zeros(most, *velocities[0].shape)  # all_gather wants one size
    torch.stack(velocities, out=sent[: len(velocities)])
    received = sharing.gather(sent)
    found = {branch: received[team.ranks.start][place] for team in teams for place, branch in enumerate(team.branches)}
    return tuple(found[branch] for branch in sorted(found))
