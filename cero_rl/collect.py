"""One slice of an allocation -> scored, packed rollouts on this rank, and the evidence of all ranks.

In: the prompts and group sizes of the slice (the same on every rank). Out: `Collected`: this rank's batch with its advantages, and
per-group counts summed over ranks in exact integers, so that every rank learns the same whatever the number of ranks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cero_rl.config import Config
from cero_rl.engine.runtime import Group
from cero_rl.learner.packing import pack_rollouts
from cero_rl.ops import group_advantage
from cero_rl.rewards.base import RewardCounts
from cero_rl.rewards.pool import RewardPool
from cero_rl.rollout.deal import deal_groups
from cero_rl.rollout.protocol import RolloutEngine, RolloutRequest
from cero_rl.rollout.scoring import score_groups
from cero_rl.session import Pool
from cero_rl.types import RolloutBatch, RolloutGroup

_FIXED_POINT = 2**20  # graded rewards cross ranks as integers: sums are exact and do not depend on the order of ranks


@dataclass(frozen=True)
class Evidence:
    """Per group of the slice, summed over ranks. Rollouts whose reward is missing are in `generated` only."""

    prompt_ids: npt.NDArray[np.int64]  # [G]
    generated: npt.NDArray[np.int64]  # [G] completions delivered
    trials: npt.NDArray[np.int64]  # [G] completions with a reward
    wins: npt.NDArray[np.int64]  # [G] rewards above the success threshold
    successes: npt.NDArray[np.float64]  # [G] sum of rewards in [0, 1]
    live: npt.NDArray[np.bool_]  # [G] groups whose rewards differ
    response_tokens: npt.NDArray[np.int64]  # [G]
    truncated: npt.NDArray[np.int64]  # [G] completions cut at the length limit


def evidence_entry(step: int, round_index: int, evidence: Evidence) -> dict[str, Any]:
    """One line of evidence.jsonl: what was allocated and what came of it, enough to replay the scheduler."""
    return {
        "step": step,
        "round": round_index,
        "prompt_ids": evidence.prompt_ids.tolist(),
        "generated": evidence.generated.tolist(),
        "trials": evidence.trials.tolist(),
        "successes": evidence.successes.tolist(),
    }


@dataclass(frozen=True)
class Collected:
    groups: list[RolloutGroup]  # this rank's
    rewards: list[npt.NDArray[np.float32]]  # this rank's, nan where missing
    batch: RolloutBatch
    advantages: Tensor  # f32[R]
    live: Tensor  # bool[G of this rank]
    evidence: Evidence
    reward_counts: RewardCounts  # this rank's
    reward_error: str | None  # this rank's first failure, in words
    rollout_seconds: float
    reward_seconds: float
    advantage_seconds: float
    reduce_seconds: float  # the all-reduce of counts, waiting for the slowest rank included


class LengthTracker:
    """Expected response tokens of a prompt: its own mean so far, the pool's mean before that. The same on every rank."""

    def __init__(self, num_prompts: int, first_guess_tokens: float) -> None:
        self.tokens = np.zeros(num_prompts, dtype=np.int64)
        self.samples = np.zeros(num_prompts, dtype=np.int64)
        self._first_guess = first_guess_tokens

    def expected(self, prompt_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        known = self.samples.sum()
        typical = self.tokens.sum() / known if known else self._first_guess
        tokens, samples = self.tokens[prompt_ids], self.samples[prompt_ids]
        return np.where(samples > 0, tokens / np.maximum(samples, 1), typical)

    def update(self, evidence: Evidence) -> None:
        np.add.at(self.tokens, evidence.prompt_ids, evidence.response_tokens)
        np.add.at(self.samples, evidence.prompt_ids, evidence.generated)


def collect(
    prompt_ids: npt.NDArray[np.int64],
    rollouts: npt.NDArray[np.int32],
    *,
    stream: int,
    pool: Pool,
    engine: RolloutEngine,
    rewards: RewardPool,
    lengths: LengthTracker,
    config: Config,
    group: Group,
) -> Collected:
    """Sample, score, pack and count. A collective: every rank calls it with the same slice (it may get no group of it)."""
    prompt_tokens = np.array([len(pool.tokens[i]) for i in prompt_ids], dtype=np.float64)
    expected = prompt_tokens + rollouts * lengths.expected(prompt_ids)
    mine = deal_groups(expected, group.world_size)[group.rank]
    requests = [
        RolloutRequest(int(i), pool.tokens[i], int(n), stream_key=int(pool.prompts[i].key, 16))
        for i, n in zip(prompt_ids[mine], rollouts[mine])
    ]
    started = time.perf_counter()
    groups = engine.generate(requests, stream=stream, temperature=config.rollout.temperature)
    sampled = time.perf_counter()
    scores = score_groups(groups, pool.prompts, rewards)
    values = scores.values
    scored = time.perf_counter()

    batch = pack_rollouts(groups, values)
    packed = time.perf_counter()
    stats = group_advantage(
        batch.rewards,
        batch.group_offsets,
        norm=config.learner.advantage,
        eps=config.learner.advantage_eps,
        success_threshold=config.reward.success_threshold,
    )
    advantage_seconds = time.perf_counter() - packed
    counts = np.zeros((7, len(prompt_ids)), dtype=np.int64)
    for position, done, value, wins, live in zip(mine, groups, values, stats.wins.tolist(), stats.live.tolist()):
        known = value[~np.isnan(value)]
        counts[:, position] = (
            len(done.completions),
            known.size,
            wins,
            np.rint(known.astype(np.float64) * _FIXED_POINT).sum(),
            live,
            sum(len(c.token_ids) for c in done.completions),
            sum(c.finish_reason == "length" for c in done.completions),
        )
    counted = time.perf_counter()
    generated, trials, wins, successes, live, response_tokens, truncated = group.sum_counts(counts)
    reduce_seconds = time.perf_counter() - counted
    evidence = Evidence(prompt_ids, generated, trials, wins, successes / _FIXED_POINT, live.astype(bool), response_tokens, truncated)
    return Collected(
        groups,
        values,
        batch,
        stats.adv,
        stats.live,
        evidence,
        scores.counts,
        scores.first_error,
        rollout_seconds=sampled - started,
        reward_seconds=scored - sampled,
        advantage_seconds=advantage_seconds,
        reduce_seconds=reduce_seconds,
    )
