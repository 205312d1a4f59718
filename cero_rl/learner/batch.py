"""Scored groups -> the batch that trains, with its advantages; what a keep rule leaves out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cero_rl.config import Config
from cero_rl.learner.packing import pack_rollouts
from cero_rl.ops import group_advantage
from cero_rl.rollout.collector import Rollouts
from cero_rl.scheduler.sizes import Samples
from cero_rl.types import RolloutBatch, RolloutGroup

Keep = Callable[[Samples], npt.NDArray[np.bool_]]
Rewards = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TrainingBatch:
    """This rank's part of what one optimizer step learns from."""

    packed: RolloutBatch  # rollouts with a reward that the scheduler keeps
    advantages: Tensor  # f32[R]
    live: Tensor  # bool[G] groups whose rewards differ, of those that advantages are measured by


def make_batch(rollouts: Rollouts, keep: Keep, config: Config) -> TrainingBatch:
    """Pack what trains; group advantages by the native op. No collective."""
    asked = dict(zip(rollouts.prompt_ids.tolist(), rollouts.requested.tolist()))
    own = np.array([asked[g.prompt_id] for g in rollouts.groups], dtype=np.int64)
    kept = kept_rewards(rollouts.groups, rollouts.rewards, keep, own)
    packed = pack_rollouts(rollouts.groups, kept)
    measured = packed
    if config.learner.advantage_over == "all":
        measured = pack_rollouts(rollouts.groups, rollouts.rewards)
    stats = group_advantage(
        measured.rewards,
        measured.group_offsets,
        norm=config.learner.advantage,
        eps=config.learner.advantage_eps,
    )
    advantages = stats.adv
    if measured is not packed:
        trains = [~np.isnan(k[~np.isnan(r)]) for k, r in zip(kept, rollouts.rewards)]
        advantages = advantages[torch.from_numpy(np.concatenate([np.zeros(0, bool), *trains]))]
    return TrainingBatch(packed, advantages, stats.live)


def kept_rewards(
    groups: Sequence[RolloutGroup],
    rewards: Sequence[Rewards],
    keep: Keep,
    asked: npt.NDArray[np.int64] | None = None,
) -> list[Rewards]:
    """The rewards with nan where the scheduler keeps a rollout out of training. asked i64[G]:
    rollouts that the round gave each group, those without a reward included."""
    known = [~np.isnan(r) for r in rewards]
    lengths = [
        len(c.token_ids)
        for g, k in zip(groups, known)
        for c, there in zip(g.completions, k)
        if there
    ]
    offsets = np.cumsum([0, *(int(k.sum()) for k in known)])
    flat = np.zeros(0)
    if rewards:
        flat = np.concatenate([r[k] for r, k in zip(rewards, known)]).astype(np.float64)
    ids = np.array([g.prompt_id for g in groups], dtype=np.int64)
    lengths = np.array(lengths, dtype=np.int64)
    samples = Samples(ids, flat, offsets.astype(np.int64), lengths, asked)
    mask = keep(samples)
    kept = []
    for values, there, (first, last) in zip(rewards, known, pairwise(offsets)):
        trained = values.copy()
        trained[np.flatnonzero(there)[~mask[first:last]]] = np.nan
        kept.append(trained)
    return kept
