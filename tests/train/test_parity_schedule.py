"""The parity probe on a schedule: when it runs, and what still finds a stale sampler between."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from step_cases import OneRank, PlainPolicy

from cero_rl.errors import ConfigError, EngineError
from cero_rl.learner.batch import make_batch
from cero_rl.learner.update import Learner, refuse_divergence
from cero_rl.train.weight_sync import WeightSync


def weights_of(rank: OneRank, policy: PlainPolicy) -> WeightSync:
    engine, prompts = rank.engine, rank.pool.tokens
    return WeightSync(cast(Any, policy), engine, prompts, rank.config, rank.group, rank.watchdog)


def test_every_third_sync_is_probed_from_the_first():
    rank = OneRank("rollout.parity_every_syncs=3")
    weights = weights_of(rank, PlainPolicy(rank.config))
    probed = ["parity/gap" in weights.push(version) for version in range(7)]
    assert probed == [True, False, False, True, False, False, True]


def test_between_probes_a_stale_sampler_is_found_by_its_own_rollouts():
    rank = OneRank("rollout.parity_every_syncs=9", "learner.baseline=posterior")
    policy = PlainPolicy(rank.config)
    learner = Learner(cast(Any, policy), None, rank.config, rank.group)
    weights_of(rank, policy).push(0)
    with torch.no_grad():
        for parameter in policy.causal_lm.parameters():  # moved, and never sent
            parameter += 0.05 * torch.randn(parameter.shape)
    step = rank.rounds.next_step()
    assert step is not None
    rollouts = rank.finish(step)
    critic = rank.progress.critic
    assert critic is not None
    predicted = critic.predict(rollouts.counts.reward_sums(rollouts.prompt_ids))
    batch = make_batch(rollouts, rank.scheduler.keep, rank.config, rank.group, predicted)
    update = learner.update(batch, [1e-4])
    with pytest.raises(EngineError, match="sampler and learner disagree"):
        refuse_divergence(update, 0, rank.config)


def test_rollouts_that_are_a_step_old_need_every_probe():
    with pytest.raises(ConfigError, match="parity_every_syncs=2 with overlap"):
        OneRank("rollout.parity_every_syncs=2", "rollout.overlap=true")
