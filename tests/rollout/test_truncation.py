"""Rollouts that the length limit cut: what trains, what the scheduler is told, and that censored
evidence leaves the posterior where the uncut rollouts would have put it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from step_cases import OneRank, config_of, made_group, made_rollouts, whole_round

from cero_rl.distributed.group import Group
from cero_rl.learner.batch import make_batch
from cero_rl.metrics.step import rollout_numbers
from cero_rl.rewards.base import RewardItem
from cero_rl.rewards.plugin import load_plugin
from cero_rl.rollout.collector import Rollouts
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.rollout.truncation import overlong, shaped
from cero_rl.scheduler.posterior import BetaPosterior
from cero_rl.types import RolloutGroup

CUT_SHARE = 0.4
PROMPTS, ROLLOUTS = list(range(24)), 16
nan = float("nan")


class Cutting:
    """An engine whose completions are cut by a coin that knows nothing of them, before they say
    their answer."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._rng = np.random.default_rng(3)

    def generate(self, requests: Sequence[RolloutRequest], **settings: Any) -> list[RolloutGroup]:
        groups = self._engine.generate(requests, **settings)
        return [
            replace(
                group,
                completions=tuple(
                    replace(c, text="", finish_reason="length")
                    if self._rng.random() < CUT_SHARE
                    else c
                    for c in group.completions
                ),
            )
            for group in groups
        ]


def pooled_mean(rollouts: Rollouts) -> float:
    """Mean of one posterior that all prompts' evidence was added to."""
    evidence = rollouts.evidence
    posterior = BetaPosterior(1)
    posterior.update([float(evidence.successes.sum())], [int(evidence.trials.sum())])
    return float(posterior.mean()[0])


def test_censored_evidence_does_not_move_the_posterior() -> None:
    step = [PROMPTS, [ROLLOUTS] * len(PROMPTS)]
    means, made = {}, {}
    for kind in ("uncut", "counted", "censored"):
        rank = OneRank(f"scheduler.truncated={'auto' if kind == 'uncut' else kind}", waves=False)
        if kind != "uncut":
            rank.collect_with(Cutting(rank.engine.engine))
        made[kind] = rank.finish(whole_round(*step))
        means[kind] = pooled_mean(made[kind])
    total = len(PROMPTS) * ROLLOUTS
    cut = int(made["censored"].counts.truncated.sum())
    assert 0.3 < cut / total < 0.5
    assert made["counted"].counts.censored.sum() == 0
    assert made["censored"].counts.censored.sum() == cut
    assert made["censored"].evidence.trials.sum() == total - cut
    assert made["censored"].counts.missing == 0, "cut is not unjudged"
    error = (means["uncut"] * (1 - means["uncut"]) / (total - cut)) ** 0.5
    assert abs(means["censored"] - means["uncut"]) < 3 * error
    biased = (1 - cut / total) * means["uncut"]
    assert abs(means["counted"] - biased) < 3 * error
    assert means["uncut"] - means["counted"] > 5 * error


def test_right_answers_that_were_cut_are_censored_too() -> None:
    """Leaving out only those that failed would push the posterior up."""
    rank = OneRank("scheduler.truncated=censored", "rollout.max_response_tokens=1", waves=False)
    rollouts = rank.finish(whole_round([0, 1], [4, 4]))
    cut = sum(c.finish_reason == "length" for g in rollouts.groups for c in g.completions)
    assert cut > 0
    assert rollouts.evidence.trials.sum() == 8 - cut


@pytest.mark.parametrize(
    ("learner", "scheduler", "censored"),
    [
        ("train", "auto", False),
        ("mask", "auto", True),
        ("mask", "counted", False),
        ("train", "censored", True),
    ],
)
def test_what_auto_means(learner: str, scheduler: str, censored: bool) -> None:
    config = config_of(f"learner.truncated={learner}", f"scheduler.truncated={scheduler}")
    assert config.truncated_are_censored is censored


@pytest.mark.parametrize("over", ["kept", "all"])
def test_masked_rollouts_leave_loss_and_denominator(over: str) -> None:
    """advantage_over all: the others are still measured against them."""
    rollouts = made_rollouts(
        [made_group(4, [2, 3, 4, 5], cut=[1, 3]), made_group(5, [2, 2], cut=[0, 1])],
        [[1, 0, 0, 0], [1, 0]],
    )
    keep = lambda samples: np.ones(samples.rewards.shape, dtype=bool)
    given = ["learner.truncated=mask", "learner.advantage=center", f"learner.advantage_over={over}"]
    batch = make_batch(rollouts, keep, config_of(*given), Group.alone())
    assert batch.packed.group_offsets.tolist() == [0, 2, 2]
    assert np.diff(batch.packed.cu_seqlens.numpy()).tolist() == [5, 7]
    mean = 0.5 if over == "kept" else 0.25
    assert batch.advantages.tolist() == pytest.approx([1 - mean, -mean])


def test_soft_punishment_of_dapo() -> None:
    """Against equation 13 of arXiv 2503.14476, length by length."""
    limit, buffer = 20, 8
    lengths = np.arange(1, 25)
    wanted = []
    for n in lengths.tolist():
        if n <= limit - buffer:
            wanted.append(0.0)
        elif n <= limit:
            wanted.append(((limit - buffer) - n) / buffer)
        else:
            wanted.append(-1.0)
    assert overlong(lengths, limit, buffer).tolist() == wanted


def test_the_punishment_trains_and_is_no_evidence() -> None:
    settings = ["rollout.max_response_tokens=8", "reward.overlong_buffer_tokens=4"]
    config = config_of(*settings, "reward.overlong_penalty=2")
    group = made_group(0, [4, 6, 8, 2])
    rewards = np.array([1, 1, nan, 0], dtype=np.float32)
    assert shaped(rewards, group, config).tolist() == pytest.approx([1, 0, nan, 0], nan_ok=True)
    rank = OneRank("reward.overlong_buffer_tokens=12", waves=False)
    rollouts = rank.finish(whole_round([0, 1, 2], [8, 8, 8]))
    plain = OneRank(waves=False).finish(whole_round([0, 1, 2], [8, 8, 8]))
    assert rollouts.evidence.successes.tolist() == plain.evidence.successes.tolist()
    limit = rank.config.rollout.max_response_tokens
    sums = 0.0
    for group, after, before in zip(rollouts.groups, rollouts.rewards, plain.rewards):
        for c, r, p in zip(group.completions, after.tolist(), before.tolist()):
            punished = min(max(len(c.token_ids) - (limit - 12), 0) / 12, 1.0)
            sums += punished
            assert r == pytest.approx(p - punished, abs=1e-6)
    assert sums > 0
    numbers = rollout_numbers(rollouts, rank.pool, Group.alone())
    assert numbers["reward/overlong_mean"] == pytest.approx(-sums / 24)
    flat = np.concatenate(rollouts.rewards).astype(np.float64)
    assert numbers["reward"] == pytest.approx(flat.mean())
    assert numbers["reward_std"] == pytest.approx(flat.std())


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("prompts, completions, finish_reasons", "[float(f == 'length') for f in finish_reasons]"),
        ("queries, labels, finish_reasons", "[float(f == 'length') for f in finish_reasons]"),
        (
            "data_source, solution_str, ground_truth, extra_info",
            "float(extra_info['finish_reason'] == 'length')",
        ),
    ],
)
def test_rewards_are_told_what_was_cut(signature: str, body: str, tmp_path: Any) -> None:
    path = tmp_path / "reward.py"
    path.write_text(f"def score({signature}):\n    return {body}\n")
    items = [RewardItem("q", "a", "a", "s", {}, reason) for reason in ("stop", "length")]
    assert load_plugin(f"{path}:score").score(items) == [0.0, 1.0]


@pytest.mark.covers("objective settings that contradict each other")
def test_a_buffer_longer_than_the_limit_is_refused() -> None:
    with pytest.raises(Exception, match=r"overlong_buffer_tokens: got 9 with rollout\.max_resp"):
        config_of("rollout.max_response_tokens=8", "reward.overlong_buffer_tokens=9")
