"""Completions -> rewards: one flat call to the reward pool, answered group by group. Episodes bring
the reward of their environment, where it has one."""

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
from cero_rl.rewards.parts import PartSums, scale_of_episodes
from cero_rl.rewards.pool import in_range
from cero_rl.rewards.several import Judge
from cero_rl.types import Episode, RolloutGroup


@dataclass(frozen=True)
class Scores:
    """Rewards that train f32[n] of each group, nan where missing, and what they are to the
    posterior and the evaluation, in [0, 1]; how many were missing and why; the first failure in
    words; what is logged of each function."""

    values: list[npt.NDArray[np.float32]]
    evidence: list[npt.NDArray[np.float32]]
    counts: RewardCounts
    first_error: str | None
    sums: PartSums


def score_together(
    groups: Sequence[RolloutGroup], prompts: Sequence[Prompt], rewards: Judge, group: Group
) -> Scores:
    """This rank's scores. A reward function that breaks its contract on one rank is a RewardError
    on all. A collective."""

    def action() -> Scores:
        faults.point("reward.before")
        return score_groups(groups, prompts, rewards)

    return group.together("reward", action, RewardError)


def score_groups(
    groups: Sequence[RolloutGroup], prompts: Sequence[Prompt], rewards: Judge
) -> Scores:
    items, asked, place = [], [], 0
    values = np.full(sum(len(g.completions) for g in groups), np.nan, dtype=np.float32)
    scale = scale_of_episodes(rewards.config)
    counts, first_error = RewardCounts(), None
    for position, group in enumerate(groups):
        p = prompts[group.prompt_id]
        for completion in group.completions:
            episode, text = completion.episode, completion.text
            if episode is None or episode.reward is None:
                text = text if episode is None else episode.last_reply
                reason = completion.finish_reason
                items.append(
                    RewardItem(p.content, text, p.reference, p.source, p.columns, reason, position)
                )
                asked.append(place)
            else:
                values[place] = in_range(episode.reward, "rollout.environment", scale.limits)
                counts += _count_of(episode)
                first_error = first_error or episode.failure or None
            place += 1
    result = rewards.score(items)
    evidence = scale.evidence(values)
    values[asked], evidence[asked] = result.values, result.evidence
    edges = np.cumsum([0, *(len(group.completions) for group in groups)])
    return Scores(
        [values[first:last] for first, last in pairwise(edges)],
        [evidence[first:last] for first, last in pairwise(edges)],
        counts + result.counts,
        first_error or result.first_error,
        result.sums,
    )


def _count_of(episode: Episode) -> RewardCounts:
    if not episode.failure:
        return RewardCounts(scored=1)
    return RewardCounts(timeouts=1) if episode.timed_out else RewardCounts(errors=1)
