"""One step of an allocation -> scored rollouts on this rank, and counts of all ranks.

Deal, sample, score, count, wave after wave; knows no learner. Counts are summed over ranks in exact
integers, so that every rank learns the same whatever the number of ranks. A scheduler may answer
them with a further wave; a prompt that comes again keeps its rank, so that its group is whole when
its advantage is computed. The first wave of a step can be begun while the learner still works on
the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from cero_rl.config import Config
from cero_rl.data.pool import Pool
from cero_rl.distributed.group import Group
from cero_rl.job import faults
from cero_rl.job.watchdog import Limit, Watchdog
from cero_rl.rewards.base import RewardCounts
from cero_rl.rewards.parts import PartSums
from cero_rl.rewards.scoring import score_together
from cero_rl.rewards.several import Judge
from cero_rl.rollout.counts import GroupCounts
from cero_rl.rollout.deal import deal_groups
from cero_rl.rollout.lengths import LengthTracker
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.rollout.shared_engine import Ahead, SharedEngine
from cero_rl.rollout.truncation import shaped, without_cut
from cero_rl.scheduler.sizes import Evidence
from cero_rl.types import Allocation, RolloutGroup, Step

Ids = npt.NDArray[np.int64]
Rewards = npt.NDArray[np.float32]  # of one group, nan where missing
Clock = Callable[[str], AbstractContextManager[None]]  # times a phase by its name
NextWave = Callable[[Evidence], Allocation | None]
SavedGroups = Callable[[Sequence[RolloutRequest]], list[RolloutGroup] | None]


def generation_limit(config: Config) -> Limit:
    """How long one wave of rollouts may take."""
    return Limit(config.rollout.generate_timeout_seconds, "rollout.generate_timeout_seconds")


@dataclass(frozen=True)
class Rollouts:
    """What a step's waves brought. Groups and rewards are this rank's, counts those of all."""

    step: Step
    groups: list[RolloutGroup]
    rewards: list[Rewards]
    waves: int
    prompt_ids: Ids  # [G] in the order of appearance
    requested: Ids  # [G] rollouts asked for in all waves
    counts: GroupCounts  # [G]
    reward_counts: RewardCounts  # this rank's
    reward_error: str | None  # this rank's first failure, in words
    penalty: float = 0.0  # this rank's soft overlong punishment, summed; it is in the rewards
    parts: PartSums = field(default_factory=PartSums)  # this rank's, of each reward function

    @property
    def evidence(self) -> Evidence:
        return self.counts.evidence(self.prompt_ids, self.requested)

    def oldest_version(self, default: int) -> int:
        """Of the weights that this rank's completions were sampled with."""
        versions = [c.policy_version for g in self.groups for c in g.completions]
        return min(versions, default=default)


@dataclass
class _Wave:
    """A wave dealt to ranks; the same on every rank but for `mine` and what comes of it."""

    rollouts: npt.NDArray[np.int32]  # [W]
    where: Ids  # [W] groups of the step
    mine: Ids  # [M] entries of this rank
    requests: list[RolloutRequest]  # [M]
    stream: int
    ahead: Ahead | None = None  # being generated
    groups: list[RolloutGroup] | None = None  # [M] generated


def _none() -> Ids:
    return np.zeros(0, dtype=np.int64)


@dataclass
class _Sampling:
    """A step under way: what its waves have brought so far. [G] fields are the same on every
    rank."""

    step: Step
    prompt_ids: Ids = field(default_factory=_none)  # [G] in the order of appearance
    owner: Ids = field(default_factory=_none)  # [G] rank
    requested: Ids = field(default_factory=_none)  # [G]
    counts: GroupCounts = field(default_factory=lambda: GroupCounts.zeros(0))
    groups: dict[int, RolloutGroup] = field(default_factory=dict)  # this rank's
    rewards: dict[int, Rewards] = field(default_factory=dict)
    reward_counts: RewardCounts = field(default_factory=RewardCounts)
    reward_error: str | None = None
    penalty: float = 0.0
    parts: PartSums = field(default_factory=PartSums)
    waves: int = 0

    def place(self, prompt_ids: Ids) -> Ids:
        """i64[W]: which group each prompt of a wave is; new prompts are appended."""
        new = prompt_ids[~np.isin(prompt_ids, self.prompt_ids)]
        self.prompt_ids = np.concatenate((self.prompt_ids, new))
        self.owner = np.concatenate((self.owner, np.full(new.shape, -1)))
        self.requested = np.concatenate((self.requested, np.zeros_like(new)))
        self.counts = self.counts.grown(len(new))
        order = np.argsort(self.prompt_ids, kind="stable")
        return order[np.searchsorted(self.prompt_ids, prompt_ids, sorter=order)]

    def take(self, position: int, group: RolloutGroup, rewards: Rewards) -> Rewards:
        """Add what a wave brought to one of this rank's groups; returns all its rewards so far."""
        if position in self.groups:
            before = self.groups[position]
            group = replace(group, completions=before.completions + group.completions)
            rewards = np.concatenate((self.rewards[position], rewards))
        self.groups[position] = group
        self.rewards[position] = rewards
        return rewards

    def rollouts(self) -> Rollouts:
        order = sorted(self.groups)
        return Rollouts(
            self.step,
            [self.groups[j] for j in order],
            [self.rewards[j] for j in order],
            self.waves,
            self.prompt_ids,
            self.requested,
            self.counts,
            self.reward_counts,
            self.reward_error,
            self.penalty,
            self.parts,
        )


class Collector:
    """Samples, scores and counts steps. `begin` enters no collective; `settle` and `finish` are
    collectives: every rank calls them with the same step (it may get no group of it)."""

    def __init__(
        self,
        pool: Pool,
        engine: SharedEngine,
        rewards: Judge,
        lengths: LengthTracker,
        next_wave: NextWave,
        config: Config,
        group: Group,
        watchdog: Watchdog,
    ) -> None:
        self._pool = pool
        self._engine = engine
        self._rewards = rewards
        self._lengths = lengths
        self._next_wave = next_wave
        self._config = config
        self._group = group
        self._watchdog = watchdog
        self._limit = generation_limit(config)
        self._begun: tuple[_Sampling, _Wave] | None = None
        self._saved: SavedGroups | None = None

    # --- ahead

    def begin(self, step: Step) -> None:
        """Start this rank's part of a step's first wave in the background."""
        sampling, wave = self._start(step)
        temperature = self._config.rollout.temperature
        wave.ahead = self._engine.begin(wave.requests, stream=wave.stream, temperature=temperature)
        self._begun = sampling, wave

    def settle(self) -> None:
        """Wait for what was begun, on all ranks. Weights may change afterwards."""
        if self._begun is not None:
            self._settle(self._begun[1])

    def ahead(self) -> list[RolloutGroup] | None:
        """This rank's groups of the step that was begun and settled (it may have none): what a
        checkpoint keeps. None where nothing was begun."""
        return self._begun[1].groups if self._begun is not None else None

    def resume_with(self, saved: SavedGroups) -> None:
        """Take the next step's first wave from `saved`, where it answers the same requests."""
        self._saved = saved

    def _settle(self, wave: _Wave) -> None:
        if wave.ahead is None:
            return
        with self._watchdog.phase("rollout", "generation ahead", self._limit):
            wave.groups = self._engine.finish(wave.ahead)
        wave.ahead = None

    # --- a step

    def finish(self, step: Step, clock: Clock) -> Rollouts:
        """Sample what is not sampled yet, score and count, wave after wave while the scheduler asks
        for more."""
        sampling, wave = self._begun or self._start(step)
        self._begun = None
        assert sampling.step is step
        while True:
            self._sample(sampling, wave, clock)
            more = None
            if step.is_whole_round:  # a cut round has one wave: its steps were planned together
                more = self._next_wave(
                    sampling.counts.evidence(sampling.prompt_ids, sampling.requested)
                )
            if more is None:
                return sampling.rollouts()
            wave = self._deal(sampling, more.prompt_ids, more.rollouts)

    def _start(self, step: Step) -> tuple[_Sampling, _Wave]:
        sampling = _Sampling(step)
        wave = self._deal(sampling, step.prompt_ids, step.rollouts)
        if self._saved is not None:
            wave.groups = self._saved(wave.requests)
            self._saved = None
        return sampling, wave

    def _deal(self, sampling: _Sampling, prompt_ids: Ids, rollouts: npt.NDArray[np.int32]) -> _Wave:
        where = sampling.place(prompt_ids)
        prompts = [self._pool.prompts[i] for i in prompt_ids]
        tokens = [self._pool.tokens[i] for i in prompt_ids]
        prompt_tokens = np.array([len(t) for t in tokens], dtype=np.float64)
        expected = prompt_tokens + rollouts * self._lengths.expected(prompt_ids)
        owner = deal_groups(expected, self._group.world_size, sampling.owner[where])
        sampling.owner[where] = owner
        mine = np.flatnonzero(owner == self._group.rank)
        requests = [
            RolloutRequest(
                int(prompt_ids[j]),
                tokens[j],
                int(rollouts[j]),
                stream_key=int(prompts[j].key, 16),
                first_draw=int(sampling.requested[where[j]]),
                task=prompts[j] if self._config.rollout.environment is not None else None,
            )
            for j in mine
        ]
        return _Wave(rollouts, where, mine, requests, stream=sampling.step.round + 1)

    def _sample(self, sampling: _Sampling, wave: _Wave, clock: Clock) -> None:
        """Generate and score one wave and sum its counts over ranks. A collective."""
        with clock("rollout"):
            self._settle(wave)
            groups = wave.groups if wave.groups is not None else self._generate(wave)
            faults.point("rollout.after")
        with clock("reward"), self._watchdog.phase("reward", "verifiers"):
            scores = score_together(groups, self._pool.prompts, self._rewards, self._group)
        counts = GroupCounts.zeros(len(wave.where))
        mask = self._config.learner.truncated == "mask"
        censor = self._config.truncated_are_censored
        for j, done, values, evidence in zip(wave.mine, groups, scores.values, scores.evidence):
            where = int(wave.where[j])
            trains = shaped(values, done, self._config)
            sampling.penalty += float(np.nansum(trains - values))
            so_far, group = sampling.take(where, done, trains), sampling.groups[where]
            so_far = without_cut(so_far, group, leave_out=mask)
            known = without_cut(evidence, done, leave_out=censor)
            censored = int((np.isnan(known) & ~np.isnan(values)).sum())
            counts.count(int(j), done, known, so_far, censored=censored)
        awaits = "all ranks' rollouts and rewards"
        with clock("reduce_counts"), self._watchdog.phase("counts", awaits):
            faults.point("counts.before")
            counts = counts.summed(self._group)
        sampling.counts.add(wave.where, counts)
        sampling.requested[wave.where] += wave.rollouts
        sampling.reward_counts += scores.counts
        sampling.parts.add(scores.sums)
        sampling.reward_error = sampling.reward_error or scores.first_error
        sampling.waves += 1

    def _generate(self, wave: _Wave) -> list[RolloutGroup]:
        with self._watchdog.phase("rollout", "generation", self._limit):
            faults.point("rollout.before")
            return self._engine.generate(
                wave.requests,
                stream=wave.stream,
                temperature=self._config.rollout.temperature,
            )
