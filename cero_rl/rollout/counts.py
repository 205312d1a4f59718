"""What a wave or a step brought, group by group, in exact integers: sums over ranks do not depend
on their order."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from cero_rl.distributed.group import Group
from cero_rl.scheduler.critic import GroupSums
from cero_rl.scheduler.sizes import Evidence
from cero_rl.types import RolloutGroup

FIXED_POINT = 2**20  # graded rewards in [0, 1] are counted in units of 1 / FIXED_POINT
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroupCounts:
    """i64[G] each. Rollouts whose reward is missing, or no evidence because they were cut, are in
    no sum of rewards."""

    generated: Ids  # completions delivered
    trials: Ids  # completions with a reward
    successes: Ids  # sum of rewards, fixed point
    squares: Ids  # sum of their squares, fixed point; never more than `successes`
    response_tokens: Ids  # behind the prompt, those of an environment included
    environment_tokens: Ids  # of them, what an environment answered
    turns: Ids  # answers of the policy; one a completion without an environment
    truncated: Ids  # completions cut at the length limit
    censored: Ids  # of them, with a reward that is no evidence
    live: Ids  # 1 where the rewards of the group so far differ

    @classmethod
    def zeros(cls, groups: int) -> GroupCounts:
        return cls(*np.zeros((len(fields(cls)), groups), dtype=np.int64))

    def count(
        self,
        group: int,
        wave: RolloutGroup,
        rewards: npt.NDArray[np.float32],
        so_far: npt.NDArray[np.float32],
        *,
        censored: int = 0,
    ) -> None:
        """Write down what a wave brought to one group: its rewards f32[n], nan where missing or
        `censored`, and all rewards of the group so far that train, this wave's included."""
        known = rewards[~np.isnan(rewards)]
        graded = known.astype(np.float64)
        all_known = so_far[~np.isnan(so_far)]
        self.generated[group] = len(wave.completions)
        self.trials[group] = known.size
        self.successes[group] = np.rint(graded * FIXED_POINT).sum()
        self.squares[group] = np.floor(graded**2 * FIXED_POINT).sum()
        self.response_tokens[group] = sum(len(c.token_ids) for c in wave.completions)
        self.environment_tokens[group] = sum(
            int((~c.sampled).sum()) for c in wave.completions if c.sampled is not None
        )
        self.turns[group] = sum(c.episode.turns if c.episode else 1 for c in wave.completions)
        self.truncated[group] = sum(c.finish_reason == "length" for c in wave.completions)
        self.censored[group] = censored
        self.live[group] = bool(all_known.size) and all_known.min() != all_known.max()

    @property
    def missing(self) -> int:
        """Rollouts of all groups that should have a reward and have none."""
        return int((self.generated - self.trials - self.censored).sum())

    def summed(self, group: Group) -> GroupCounts:
        """Over all ranks. A collective."""
        return GroupCounts(*group.sum_counts(np.stack(_arrays(self))))

    def grown(self, groups: int) -> GroupCounts:
        """With `groups` more, that have brought nothing yet."""
        return GroupCounts(*np.pad(np.stack(_arrays(self)), ((0, 0), (0, groups))))

    def add(self, where: Ids, wave: GroupCounts) -> None:
        """Add a wave's counts [W] to the groups `where` i64[W]; `live` is that of the wave, which
        knows all rewards so far."""
        self.live[where] = 0
        for total, more in zip(_arrays(self), _arrays(wave)):
            total[where] += more

    def evidence(self, prompt_ids: Ids, requested: Ids) -> Evidence:
        """What the scheduler is told. prompt_ids, requested i64[G]: rollouts asked for."""
        return Evidence(
            prompt_ids,
            self.successes / FIXED_POINT,
            self.trials,
            self.squares / FIXED_POINT,
            failed_rollouts=int((requested - self.generated).sum()),
            response_tokens=int(self.response_tokens.sum()),
            generated=self.generated,
        )

    def reward_sums(self, prompt_ids: Ids) -> GroupSums:
        """What the critic is told. prompt_ids i64[G]."""
        sums, squares = self.successes / FIXED_POINT, self.squares / FIXED_POINT
        return GroupSums(prompt_ids, sums, squares, self.trials)


def _arrays(counts: GroupCounts) -> tuple[Ids, ...]:
    return (
        counts.generated,
        counts.trials,
        counts.successes,
        counts.squares,
        counts.response_tokens,
        counts.environment_tokens,
        counts.turns,
        counts.truncated,
        counts.censored,
        counts.live,
    )
