"""Completions -> rewards: one flat call to the reward pool, answered group by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cero_rl.data.prompts import Prompt
from cero_rl.distributed.group import Group
from cero_rl.errors import RewardError
from cero_rl.job import faults
from cero_rl.rewards.base import RewardCounts, RewardItem
from cero_rl.rewards.pool import RewardPool
from cero_rl.types import RolloutGroup


@dataclass(frozen=True)
class Scores:
    """Rewards f32[n] of each group, nan where missing; how many were missing and why; the first
    failure in words."""

    values: list[npt.NDArray[np.float32]]
    counts: RewardCounts
    first_error: str | None


def score_together(
    groups: Sequence[RolloutGroup], prompts: Sequence[Prompt], rewards: RewardPool, group: Group
) -> Scores:
    """This rank's scores. A reward function that breaks its contract on one rank is a RewardError
    on all. A collective."""

    def action() -> Scores:
        faults.point("reward.before")
        return score_groups(groups, prompts, rewards)

    return group.together("reward", action, RewardError)


def score_groups(
    groups: Sequence[RolloutGroup], prompts: Sequence[Prompt], rewards: RewardPool
) -> Scores:
    items = []
    for group in groups:
        p = prompts[group.prompt_id]
        items.extend(
            RewardItem(p.content, c.text, p.reference, p.source, p.columns)
            for c in group.completions
        )
    result = rewards.score(items)
    edges = np.cumsum([0, *(len(group.completions) for group in groups)])
    return Scores(
        [result.values[first:last] for first, last in pairwise(edges)],
        result.counts,
        result.first_error,
    )
