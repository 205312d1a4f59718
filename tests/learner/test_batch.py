"""Scored groups into the batch that trains: what is left out, and advantages of what is kept."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from step_cases import config_of, made_group, made_rollouts
from torch.utils._python_dispatch import TorchDispatchMode

from cero_rl.config import Config
from cero_rl.config.scheduler import NAMES
from cero_rl.distributed.group import Group
from cero_rl.learner.batch import (
    Keep,
    TrainingBatch,
    kept_rewards,
    make_batch,
    share_with_signal,
)
from cero_rl.learner.packing import build_step_plan
from cero_rl.ops import reference
from cero_rl.rollout.collector import Rollouts
from cero_rl.scheduler.critic import Prediction
from cero_rl.scheduler.rivals.keep import KeepRule
from cero_rl.scheduler.sizes import Samples
from cero_rl.train.scheduler import build_scheduler

nan = float("nan")
KEEP_RULES = ("pods", "gfpo", "gfpo_efficiency")


@pytest.fixture(scope="module")
def config() -> Config:
    return config_of()


def keep_all(samples: Samples) -> np.ndarray:
    return np.ones(samples.rewards.shape, dtype=bool)


def rollouts_of(*groups: tuple[list[int], list[float]]) -> Rollouts:
    """Groups of prompts 4, 5, ...: response lengths and rewards of each."""
    return made_rollouts(
        [made_group(4 + j, lengths) for j, (lengths, _) in enumerate(groups)],
        [rewards for _, rewards in groups],
    )


def made_batch(rollouts: Rollouts, keep: Keep, config: Config) -> TrainingBatch:
    return make_batch(rollouts, keep, config, Group.alone())


def by_group(batch: TrainingBatch) -> list[tuple[int, list[float], list[float]]]:
    """(prompt, rewards, advantages) of each group."""
    edges = batch.packed.group_offsets.tolist()
    return [
        (prompt, batch.packed.rewards[a:b].tolist(), batch.advantages[a:b].tolist())
        for prompt, (a, b) in zip(batch.packed.prompt_ids.tolist(), pairwise(edges))
    ]


def response_lengths(batch: TrainingBatch) -> list[int]:
    edges = batch.packed.cu_seqlens.tolist()
    return [int(batch.packed.loss_mask[a:b].sum()) for a, b in pairwise(edges)]


def test_everything_with_a_reward_trains(config: Config):
    batch = made_batch(
        rollouts_of(([1, 2, 3, 4], [1, nan, 0, 0.5]), ([5, 6], [1, 1])), keep_all, config
    )
    assert response_lengths(batch) == [1, 3, 4, 5, 6]
    (first, rewards, advantages), (second, *_) = by_group(batch)
    assert (first, second) == (4, 5)
    assert rewards == [1, 0, 0.5]
    assert advantages == pytest.approx([1, -1, 0], abs=1e-5)  # over the standard deviation, 0.5
    assert batch.signal.tolist() == [True] * 3 + [False] * 2
    assert by_group(batch)[1][2] == [0, 0]


def test_missing_rewards_are_no_samples_of_the_keep_rule(config: Config):
    asked: list[Samples] = []

    def keep(samples: Samples) -> np.ndarray:
        asked.append(samples)
        return samples.lengths != 3

    groups = ([1, 2, 3], [1, nan, 0]), ([4], [nan]), ([3, 5, 6], [0.5, nan, 0])
    batch = made_batch(rollouts_of(*groups), keep, config)
    assert len(asked) == 1
    assert asked[0].prompt_ids.tolist() == [4, 5, 6]
    assert asked[0].rewards.tolist() == [1, 0, 0.5, 0]
    assert asked[0].lengths.tolist() == [1, 3, 3, 6]
    assert asked[0].offsets.tolist() == [0, 2, 2, 4]
    assert [(prompt, rewards) for prompt, rewards, _ in by_group(batch)] == [
        (4, [1]),
        (5, []),
        (6, [0]),
    ]
    assert response_lengths(batch) == [1, 6]


def test_advantages_can_be_measured_by_all_rollouts_of_a_prompt():
    """Reinforce-Ada's third part: one right answer in eight is worth more than one in two."""
    config = config_of("learner.advantage_over=all", "learner.advantage=std")
    groups = ([1] * 9, [1, 0, nan, 0, 0, 0, 0, 0, 0]), ([1, 1], [0, 0]), ([1, 1], [nan, nan])
    keep = lambda samples: np.array([True, False, True] + [False] * 5 + [True, True])
    batch = made_batch(rollouts_of(*groups), keep, config)
    known = np.array([1, 0, 0, 0, 0, 0, 0, 0], dtype=np.float32)
    everyone = (known - known.mean()) / (known.std(ddof=1) + 1e-6)
    (_, rewards, advantages), (_, _, dead), (_, nothing, _) = by_group(batch)
    assert rewards == [1, 0]
    assert advantages == pytest.approx(everyone[[0, 2]].tolist(), abs=1e-5)
    assert advantages[0] > 2 > 0.4 > -advantages[1]
    assert dead == [0, 0]
    assert nothing == []
    assert batch.signal.tolist() == [True, True, False, False]
    # all right of those that train, and still with an advantage: the prompt is live
    alone = made_batch(rollouts_of(([1, 1], [1, 0])), lambda s: s.rewards == 1, config)
    assert alone.signal.tolist() == [True]
    assert alone.advantages.tolist() == pytest.approx([0.7071], abs=1e-4)


def test_a_rule_is_told_what_was_asked_for(config: Config):
    seen = []
    rollouts = rollouts_of(([1, 2, 3], [1, nan, nan]), ([4, 5], [0, 1]))

    def keep(samples: Samples) -> np.ndarray:
        seen.append(samples)
        return keep_all(samples)

    made_batch(rollouts, keep, config)
    assert seen[0].asked.tolist() == rollouts.requested.tolist() == [3, 2]
    assert np.diff(seen[0].offsets).tolist() == [1, 2]


def test_rewards_themselves_are_not_touched(config: Config):
    rollouts = rollouts_of(([1, 2], [1, 0]))
    made_batch(rollouts, lambda samples: np.array([True, False]), config)
    assert rollouts.rewards[0].tolist() == [1, 0]


def test_the_rule_of_the_configuration_leaves_out_the_long(config: Config):
    scheduler = build_scheduler(config_of("scheduler.keep_rule=gfpo"), 48)
    rollouts = rollouts_of(([9, 2, 5, 3, 1], [1, nan, 1, 0, 0]), ([7, 1, 6], [0, 1, 1]))
    batch = made_batch(rollouts, scheduler.keep, config)
    # half of the four known, rounded up; of three, two
    assert response_lengths(batch) == [3, 1, 1, 6]
    assert [rewards for _, rewards, _ in by_group(batch)] == [[0, 0], [1, 1]]


def test_advantages_come_after_keeping(config: Config):
    rule = KeepRule("pods", 0.5)
    rollouts = rollouts_of(([1] * 6, [0, 0, 0, 1, 0, 0]), ([2] * 4, [1, 1, 1, 1]))
    assert made_batch(rollouts, keep_all, config).advantages[3] == pytest.approx(2.0412, abs=1e-3)
    batch = made_batch(rollouts, lambda samples: rule.mask(samples), config)
    (_, rewards, advantages), (_, dead, zeros) = by_group(batch)
    assert sorted(rewards) == [0, 0, 1]
    wanted = {1: 2 / 3**0.5, 0: -1 / 3**0.5}  # mean 1/3, standard deviation 1/sqrt(3)
    assert advantages == pytest.approx([wanted[int(r)] for r in rewards], abs=1e-5)
    assert (dead, zeros) == ([1, 1], [0, 0])
    assert batch.signal.tolist() == [True] * 3 + [False] * 2


def test_a_group_whose_kept_rewards_are_equal_is_dead(config: Config):
    rollouts = rollouts_of(([1, 2, 3], [1, 1, 0]))
    assert made_batch(rollouts, keep_all, config).signal.tolist() == [True] * 3
    batch = made_batch(rollouts, lambda samples: samples.rewards == 1, config)
    assert batch.signal.tolist() == [False, False]
    assert batch.advantages.tolist() == [0, 0]


@pytest.mark.parametrize("norm", ["std", "center", "rloo", "maxrl"])
def test_a_lone_rollout_has_no_advantage(norm: str):
    config = config_of(f"learner.advantage={norm}")
    groups = ([3], [1]), ([1, 2], [nan, 0.5]), ([1, 1, 1], [0, 1, 1])
    alone = made_batch(rollouts_of(*groups[:2]), keep_all, config)
    assert alone.advantages.tolist() == [0, 0]
    assert alone.signal.tolist() == [False, False]
    kept = made_batch(rollouts_of(*groups), lambda samples: samples.rewards != 1, config)
    assert kept.advantages.tolist() == [0, 0]
    assert not kept.signal.any()


@pytest.mark.parametrize("norm", ["std", "center", "rloo", "maxrl"])
def test_advantages_are_those_of_the_configuration(norm: str):
    config = config_of(f"learner.advantage={norm}", "learner.advantage_eps=0.01")
    groups = ([1, 2, 3, 4], [1, nan, 0, 0.25]), ([1, 1], [0, 1]), ([2, 2], [0, 0])
    batch = made_batch(rollouts_of(*groups), keep_all, config)
    wanted, *_, live = reference.group_advantage(
        batch.packed.rewards, batch.packed.group_offsets, norm=norm, eps=0.01
    )
    assert torch.allclose(batch.advantages.double(), wanted, atol=1e-6)
    assert live.tolist() == [True, True, False]
    assert batch.signal.tolist() == [True] * 5 + [False] * 2


PREDICTED = Prediction(
    prompt_ids=np.array([6, 4, 5]),
    mean=np.array([0.9, 0.5, 0.0]),
    strength=np.array([2.0, 1.0, 1.0]),
    prior=np.zeros(3),
    seen=np.zeros(3),
    by_half_life=np.zeros((1, 3)),
)


def test_a_critic_makes_groups_of_one_and_of_equals_teach():
    config = config_of("learner.baseline=posterior", "learner.advantage=center")
    groups = ([1, 1, 1], [1, nan, 0]), ([2], [1]), ([1, 1], [1, 1])
    batch = make_batch(rollouts_of(*groups), keep_all, config, Group.alone(), PREDICTED)
    wanted = [1 - 0.5 / 2, 0 - 1.5 / 2, 1 - 0.0, 1 - 2.8 / 3, 1 - 2.8 / 3]
    assert batch.advantages.tolist() == pytest.approx(wanted, abs=1e-6)
    assert batch.signal.tolist() == [True] * 5
    config = config_of("learner.baseline=posterior", "learner.min_advantage=0.1")
    batch = make_batch(rollouts_of(*groups), keep_all, config, Group.alone(), PREDICTED)
    assert batch.signal.tolist() == [True] * 3 + [False] * 2
    assert share_with_signal(batch, Group.alone()) == pytest.approx(0.6)
    squares = np.square(wanted).mean()
    assert batch.advantages.tolist() == pytest.approx(wanted / np.sqrt(squares), abs=1e-6)


def test_a_critic_measures_rewards_of_another_range():
    config = config_of("learner.baseline=posterior", "learner.advantage=center")
    groups = ([1, 1, 1], [1, nan, 0]), ([2], [0.25]), ([1, 1], [1, 0.5])
    plain = make_batch(rollouts_of(*groups), keep_all, config, Group.alone(), PREDICTED)
    wide = config_of(
        "learner.baseline=posterior", "learner.advantage=center", "reward.range=[-3, 1]"
    )
    scaled = [(lengths, [4 * r - 3 for r in rewards]) for lengths, rewards in groups]
    batch = make_batch(rollouts_of(*scaled), keep_all, wide, Group.alone(), PREDICTED)
    assert batch.advantages.tolist() == pytest.approx((4 * plain.advantages).tolist())
    assert batch.signal.tolist() == plain.signal.tolist()


def test_right_answers_can_weigh_less_than_wrong_ones():
    groups = ([1, 1, 1], [1, 0, 0]), ([1, 1], [0.5, 1])
    plain = made_batch(rollouts_of(*groups), keep_all, config_of("learner.advantage=center"))
    light = config_of("learner.advantage=center", "learner.positive_weight=0.1")
    weighted = made_batch(rollouts_of(*groups), keep_all, light)
    assert plain.advantages.tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3, -0.25, 0.25])
    assert weighted.advantages.tolist() == pytest.approx([2 / 30, -1 / 3, -1 / 3, -0.25, 0.025])
    assert weighted.signal.tolist() == plain.signal.tolist()
    for given in (light, config_of("learner.advantage=center")):
        told = make_batch(rollouts_of(*groups), keep_all, given, Group.alone(), None, 0.5)
        assert told.advantages.tolist() == pytest.approx([1 / 3, -1 / 3, -1 / 3, -0.25, 0.125])


@pytest.mark.parametrize("baseline", ["group", "posterior"])
def test_the_root_mean_square_is_that_of_all_ranks(baseline: str):
    config = config_of(f"learner.baseline={baseline}", "learner.advantage=batch_std")
    predicted = PREDICTED if baseline == "posterior" else None
    shares = [([1, 1, 1], [1, 0, 0]), ([2], [1])], [([1, 1], [1, 0])], []
    everything = rollouts_of(([1, 1, 1], [1, 0, 0]), ([2], [1]), ([1, 1], [1, 0]))
    alone = make_batch(everything, keep_all, config, Group.alone(), predicted)
    assert float((alone.advantages**2).mean()) == pytest.approx(1.0, rel=1e-5)

    def sent(group: Group) -> list[list[float]]:
        """What each rank adds to the sum, or with a group that answers its sum, its advantages."""
        found, first = [], 4
        for share in shares:
            groups = [made_group(first + j, lengths) for j, (lengths, _) in enumerate(share)]
            rollouts = made_rollouts(groups, [rewards for _, rewards in share])
            first += len(share)
            batch = make_batch(rollouts, keep_all, config, group, predicted)
            found.append(batch.advantages.tolist())
        return found

    class Sum(Group):
        device = torch.device("cpu")

        def __init__(self) -> None:
            self.added: list[list[float]] = []
            self.total: list[float] | None = None

        def all_sum(self, values):
            self.added.append(list(values))
            return list(values) if self.total is None else self.total

    group = Sum()
    sent(group)
    group.total = np.sum(group.added, axis=0).tolist()
    together = [a for rank in sent(group) for a in rank]
    assert together == pytest.approx(alone.advantages.tolist(), rel=1e-5)


class Calls(TorchDispatchMode):
    """How often each of this project's operators ran."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "cero":
            self.of[func._schema.name.removeprefix("cero::")] += 1
        return func(*args, **(kwargs or {}))


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
        ],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("overrides", "fused"),
    [
        ([], True),
        (["learner.advantage=std", "learner.advantage_ddof=0"], True),
        (["learner.advantage=maxrl", "learner.group_weight=sqrt_size"], True),
        (["learner.advantage=whiten"], False),
        (["learner.advantage=batch_std"], False),
        (["learner.positive_weight=0.5"], False),
        (["learner.advantage_over=all"], False),
        (["learner.baseline=posterior"], False),
    ],
    ids=lambda value: "-".join(value) or "default" if isinstance(value, list) else "",
)
def test_a_step_asks_the_operators_once_however_many_micro_batches(
    overrides: list[str], fused: bool, device: str
) -> None:
    """Advantages and their spread over the tokens in one fused call, or in one call each where
    something stands between them; micro-batches are cut from the result."""
    small = ["learner.max_micro_batch_tokens=16", "learner.shared_prefix=false"]
    config, group = config_of(*overrides, *small), Group.alone(device)
    predicted = PREDICTED if "learner.baseline=posterior" in overrides else None
    groups = [([3, 8, 5, 2], [0, 1, 0, 1]), ([7, 1], [1, 0]), ([4, 6, 8], [0, nan, 1])]
    with Calls() as calls:
        batch = make_batch(rollouts_of(*groups), keep_all, config, group, predicted)
        plan = build_step_plan(
            batch.packed,
            batch.advantages,
            batch.signal,
            config=config.learner,
            max_response_tokens=16,
            head_chunk_tokens=64,
            group=group,
            token_adv=batch.token_adv,
        )
    assert len(plan.micro_batches) > 3
    assert calls.of["group_advantage_tokens"] <= 1
    assert calls.of["token_advantage"] == (0 if fused else 1)
    assert calls.of["group_advantage"] == 0
    assert (batch.token_adv is not None) == fused
    for micro in plan.micro_batches:
        adv = torch.repeat_interleave(
            batch.advantages[micro.seq_rollout.cpu().long()], torch.diff(micro.cu_seqlens).cpu()
        )
        assert torch.equal(micro.token_adv.cpu(), torch.where(micro.loss_mask.cpu(), adv, 0.0))


@pytest.mark.parametrize("keep_rule", [None, *KEEP_RULES])
def test_a_rank_with_no_groups_or_no_rewards_is_no_trouble(keep_rule: str | None):
    rule = [] if keep_rule is None else [f"scheduler.keep_rule={keep_rule}"]
    for name in NAMES:
        config = config_of(f"scheduler.name={name}", *rule)
        scheduler = build_scheduler(config, 48)
        nothing = made_batch(rollouts_of(), scheduler.keep, config)
        assert nothing.packed.num_rollouts == 0
        assert nothing.advantages.shape == nothing.signal.shape == (0,)
        groups = ([2, 3], [nan, nan]), ([], []), ([1, 2, 1, 1], [1, 0, 0, 1])
        missing = made_batch(rollouts_of(*groups), scheduler.keep, config)
        assert missing.signal.shape == missing.advantages.shape
        assert missing.packed.group_offsets.tolist()[:3] == [0, 0, 0]


def test_what_is_kept_never_brings_a_missing_reward_back():
    rollouts = rollouts_of(([1, 2, 3], [nan, 1, 0]), ([4], [nan]))
    kept = kept_rewards(rollouts.groups, rollouts.rewards, keep_all)
    np.testing.assert_array_equal(np.concatenate(kept), [nan, 1, 0, nan])
    none = kept_rewards(rollouts.groups, rollouts.rewards, lambda samples: samples.lengths < 0)
    assert np.isnan(np.concatenate(none)).all()
