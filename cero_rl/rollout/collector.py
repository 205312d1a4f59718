"""One slice of an allocation -> scored, packed rollouts on this rank, and the evidence of all
ranks.

In: the prompts and group sizes of the slice (the same on every rank). Out: `Collected`: this
rank's batch with its advantages, and per-group counts summed over ranks in exact integers, so
that every rank learns the same whatever the number of ranks. A scheduler may answer the counts
with a further wave of rollouts; a prompt that comes again keeps its rank, so that its group is
whole when its advantage is computed. The first wave of a slice can be begun while the learner
still works on the slice before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cero_rl.config import Config
from cero_rl.data.pool import Pool
from cero_rl.distributed.group import Group
from cero_rl.job import faults
from cero_rl.learner.batch import _kept
from cero_rl.learner.packing import pack_rollouts
from cero_rl.ops import group_advantage
from cero_rl.rewards.base import RewardCounts
from cero_rl.rewards.pool import RewardPool
from cero_rl.rollout.deal import deal_groups
from cero_rl.rollout.lengths import LengthTracker
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.rollout.shared_engine import Ahead, InStep, score_in_step
from cero_rl.scheduler import Observed
from cero_rl.scheduler.protocol import Keep, NextWave
from cero_rl.scheduler.sizes import Evidence
from cero_rl.types import RolloutBatch, RolloutGroup

# graded rewards cross ranks as integers: sums are exact and do not depend on the order of ranks
_FIXED_POINT = 2**20


@dataclass(frozen=True)
class Collected:
    groups: list[RolloutGroup]  # this rank's
    rewards: list[npt.NDArray[np.float32]]  # this rank's, nan where missing
    waves: int
    batch: RolloutBatch  # what trains: rollouts with a reward that the scheduler keeps
    advantages: Tensor  # f32[R]
    live: Tensor  # bool[G of this rank]
    evidence: Evidence
    reward_counts: RewardCounts  # this rank's
    reward_error: str | None  # this rank's first failure, in words
    rollout_seconds: float  # the loop stood still for it; generation ahead hides its own time
    reward_seconds: float
    advantage_seconds: float
    reduce_seconds: float  # the all-reduce of counts, waiting for the slowest rank included


@dataclass
class _Round:
    """What the waves of a slice have brought so far; grows by `add`. Global fields are the same
    on every rank."""

    # [G] in order of appearance
    prompt_ids: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    # [G] rank
    owner: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    # [G]
    requested: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    # [7, G]
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((7, 0), dtype=np.int64))
    live: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))  # [G]
    groups: dict[int, RolloutGroup] = field(default_factory=dict)  # this rank's, by position
    rewards: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    reward_counts: RewardCounts = field(default_factory=RewardCounts)
    reward_error: str | None = None
    waves: int = 0
    rollout_seconds: float = 0.0
    reward_seconds: float = 0.0
    reduce_seconds: float = 0.0

    def positions(self, prompt_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where each prompt of a wave stands; new prompts are appended."""
        new = prompt_ids[~np.isin(prompt_ids, self.prompt_ids)]
        self.prompt_ids = np.concatenate((self.prompt_ids, new))
        self.owner = np.concatenate((self.owner, np.full(new.shape, -1)))
        self.requested = np.concatenate((self.requested, np.zeros_like(new)))
        self.counts = np.concatenate((self.counts, np.zeros((7, len(new)), dtype=np.int64)), axis=1)
        self.live = np.concatenate((self.live, np.zeros(new.shape, dtype=bool)))
        order = np.argsort(self.prompt_ids, kind="stable")
        return order[np.searchsorted(self.prompt_ids, prompt_ids, sorter=order)]

    def take(self, position: int, group: RolloutGroup, rewards: npt.NDArray[np.float32]) -> None:
        if position in self.groups:
            group = replace(
                group, completions=self.groups[position].completions + group.completions
            )
            rewards = np.concatenate((self.rewards[position], rewards))
        self.groups[position], self.rewards[position] = group, rewards

    def observed(self, num_prompts: int) -> Observed:
        successes, trials = np.zeros(num_prompts), np.zeros(num_prompts, dtype=np.int64)
        successes[self.prompt_ids] = self.counts[3] / _FIXED_POINT
        trials[self.prompt_ids] = self.counts[1]
        return Observed(successes, trials)

    def evidence(self) -> Evidence:
        generated, trials, wins, successes, squares, response_tokens, truncated = self.counts
        return Evidence(
            self.prompt_ids,
            generated,
            trials,
            wins,
            successes / _FIXED_POINT,
            squares / _FIXED_POINT,
            response_tokens,
            truncated,
            self.live,
            requested=int(self.requested.sum()),
        )


@dataclass
class Wave:
    """A wave of a slice, dealt to ranks; the same on every rank but for `mine` and what comes of
    it."""

    prompt_ids: npt.NDArray[np.int64]  # [W]
    rollouts: npt.NDArray[np.int32]  # [W]
    where: npt.NDArray[np.int64]  # [W] positions in the slice
    mine: npt.NDArray[np.int64]  # [M] entries of this rank
    requests: list[RolloutRequest]  # [M]
    stream: int
    ahead: Ahead | None = None  # being generated
    groups: list[RolloutGroup] | None = None  # [M] generated


@dataclass
class Begun:
    """A slice whose first wave is dealt, and perhaps under way."""

    state: _Round
    wave: Wave


class Collector:
    """Samples, scores, packs and counts slices. `begin`, `generate_ahead` and `settle` enter no
    collective; `finish` is one."""

    def __init__(
        self,
        pool: Pool,
        engine: InStep,
        rewards: RewardPool,
        lengths: LengthTracker,
        config: Config,
        group: Group,
        phase: Callable[[str, str, float | None], AbstractContextManager[None]],
    ) -> None:
        self._pool, self._engine, self._rewards, self._lengths = pool, engine, rewards, lengths
        self._config, self._group, self._phase = config, group, phase

    def begin(
        self, prompt_ids: npt.NDArray[np.int64], rollouts: npt.NDArray[np.int32], stream: int
    ) -> Begun:
        state = _Round()
        return Begun(state, self._deal(state, prompt_ids, rollouts, stream))

    def _deal(
        self,
        state: _Round,
        prompt_ids: npt.NDArray[np.int64],
        rollouts: npt.NDArray[np.int32],
        stream: int,
    ) -> Wave:
        where, pool = state.positions(prompt_ids), self._pool
        prompt_tokens = np.array([len(pool.tokens[i]) for i in prompt_ids], dtype=np.float64)
        expected = prompt_tokens + rollouts * self._lengths.expected(prompt_ids)
        state.owner[where] = deal_groups(expected, self._group.world_size, state.owner[where])
        mine = np.flatnonzero(state.owner[where] == self._group.rank)
        requests = [
            RolloutRequest(
                int(prompt_ids[j]),
                pool.tokens[prompt_ids[j]],
                int(rollouts[j]),
                stream_key=int(pool.prompts[prompt_ids[j]].key, 16),
                first_draw=int(state.requested[where[j]]),
            )
            for j in mine
        ]
        return Wave(prompt_ids, rollouts, where, mine, requests, stream)

    def generate_ahead(self, begun: Begun) -> None:
        """Start this rank's part of the first wave in the background."""
        begun.wave.ahead = self._engine.begin(
            begun.wave.requests,
            stream=begun.wave.stream,
            temperature=self._config.rollout.temperature,
        )

    def settle(self, begun: Begun) -> float:
        """Wait for what was begun, on all ranks; returns how long this rank waited. Weights may
        change afterwards."""
        if (ahead := begun.wave.ahead) is None:
            return 0.0
        started = time.perf_counter()
        with self._phase(
            "rollout", "generation ahead", self._config.rollout.generate_timeout_seconds
        ):
            begun.wave.groups, begun.wave.ahead = self._engine.finish(ahead), None
        return time.perf_counter() - started

    def finish(self, begun: Begun, *, next_wave: NextWave | None, keep: Keep) -> Collected:
        """Sample what is not sampled yet, score, pack and count, wave after wave while
        `next_wave` asks for more (None: one wave).

        A collective: every rank calls it with the same slice (it may get no group of it).
        """
        state, wave, config = begun.state, begun.wave, self._config
        while True:
            self._sample(state, wave)
            more = next_wave(state.observed(len(self._pool))) if next_wave is not None else None
            if more is None:
                break
            wave = self._deal(state, more.prompt_ids, more.rollouts, wave.stream)
        order = sorted(state.groups)
        groups, values = [state.groups[j] for j in order], [state.rewards[j] for j in order]
        batch = pack_rollouts(groups, _kept(groups, values, keep))
        packed = time.perf_counter()
        stats = group_advantage(
            batch.rewards,
            batch.group_offsets,
            norm=config.learner.advantage,
            eps=config.learner.advantage_eps,
            success_threshold=config.reward.success_threshold,
        )
        advantage_seconds = time.perf_counter() - packed
        return Collected(
            groups,
            values,
            state.waves,
            batch,
            stats.adv,
            stats.live,
            state.evidence(),
            state.reward_counts,
            state.reward_error,
            rollout_seconds=state.rollout_seconds,
            reward_seconds=state.reward_seconds,
            advantage_seconds=advantage_seconds,
            reduce_seconds=state.reduce_seconds,
        )

    def _sample(self, state: _Round, wave: Wave) -> None:
        """Generate and score one wave and sum its counts over ranks. A collective."""
        started = time.perf_counter()
        if wave.ahead is not None:
            self.settle(Begun(state, wave))
        if wave.groups is None:
            with self._phase(
                "rollout", "generation", self._config.rollout.generate_timeout_seconds
            ):
                faults.point("rollout.before")
                wave.groups = self._engine.generate(
                    wave.requests, stream=wave.stream, temperature=self._config.rollout.temperature
                )
        faults.point("rollout.after")
        sampled = time.perf_counter()
        with self._phase("reward", "verifiers", None):
            scores = score_in_step(wave.groups, self._pool.prompts, self._rewards, self._group)
        scored = time.perf_counter()
        counts = np.zeros((8, len(wave.prompt_ids)), dtype=np.int64)
        threshold = np.float32(self._config.reward.success_threshold)
        for j, done, values in zip(wave.mine, wave.groups, scores.values):
            state.take(int(wave.where[j]), done, values)
            known, so_far = values[~np.isnan(values)], state.rewards[int(wave.where[j])]
            so_far = so_far[~np.isnan(so_far)]
            counts[:, j] = (
                len(done.completions),
                known.size,
                (known > threshold).sum(),
                np.rint(known.astype(np.float64) * _FIXED_POINT).sum(),
                # down: never more than the sum itself
                np.floor(known.astype(np.float64) ** 2 * _FIXED_POINT).sum(),
                sum(len(c.token_ids) for c in done.completions),
                sum(c.finish_reason == "length" for c in done.completions),
                bool(so_far.size) and so_far.min() != so_far.max(),
            )
        counted = time.perf_counter()
        with self._phase("counts", "all ranks' rollouts and rewards", None):
            faults.point("counts.before")
            counts = self._group.sum_counts(counts)
        state.counts[:, wave.where] += counts[:7]
        state.live[wave.where] = counts[7].astype(bool)
        state.requested[wave.where] += wave.rollouts
        state.reward_counts += scores.counts
        state.reward_error = state.reward_error or scores.first_error
        state.waves += 1
        state.rollout_seconds += sampled - started
        state.reward_seconds += scored - sampled
        state.reduce_seconds += time.perf_counter() - counted
