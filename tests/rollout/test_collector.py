"""A step from its allocation to counts on one rank, with the real engine and the real rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from step_cases import OneRank, Short, tokens_of, whole_round

from cero_rl.checkpoint.rollout_store import pack_groups, unpack_groups
from cero_rl.config.scheduler import WAVE_SCHEDULERS
from cero_rl.errors import EngineError
from cero_rl.models.load import load_model
from cero_rl.rewards.base import RewardCounts, RewardItem
from cero_rl.rewards.several import Judge, Judged
from cero_rl.rollout.collector import Rollouts
from cero_rl.rollout.counts import FIXED_POINT
from cero_rl.types import Step

# 16 prompts a round, of every kind
SIZED = (
    "scheduler.rollouts_per_unit=2",
    "scheduler.max_units_per_prompt=8",
    "scheduler.rounds=2",
    "budget.total_rollouts=256",
)
STEP = ([33, 0, 7, 1, 2], [4, 8, 2, 1, 4])  # prompts of every kind, groups of every size


@pytest.fixture(scope="module")
def rank() -> OneRank:
    return OneRank(waves=False)


@pytest.fixture(autouse=True)
def _fresh(rank: OneRank) -> None:
    rank.begin()


class Broken:
    """An engine that dies."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def generate(self, requests: Sequence[Any], **settings: Any) -> Any:
        raise self._error


class Moody(Judge):
    """The real rewards, but the first completion of every call cannot be judged: the third call
    runs out of time on it."""

    calls = 0

    def score(self, items: Sequence[RewardItem]) -> Judged:
        self.calls += 1
        judged = super().score(items)
        for values in (judged.values, judged.evidence):
            values[0] = np.nan
        late = int(self.calls == 3)
        words = None if late else f"failure {self.calls}"
        counts = RewardCounts(len(items) - 1, late, 1 - late)
        return replace(judged, counts=counts, first_error=words)


def whole_allocation(rank: OneRank) -> Step:
    """The step of the scheduler's next round."""
    allocation = rank.scheduler.open_round()
    assert allocation is not None
    return Step(allocation, 0, len(allocation.prompt_ids))


def check_counts(rollouts: Rollouts) -> None:
    """The counts must be what this rank's groups and rewards say (it is the only rank)."""
    counts = rollouts.counts
    assert [g.prompt_id for g in rollouts.groups] == rollouts.prompt_ids.tolist()
    for j, (group, rewards) in enumerate(zip(rollouts.groups, rollouts.rewards)):
        known = rewards[~np.isnan(rewards)].astype(np.float64)
        assert counts.generated[j] == len(group.completions) == len(rewards)
        assert counts.trials[j] == known.size
        assert counts.successes[j] == known.sum() * FIXED_POINT
        assert counts.squares[j] == (known**2).sum() * FIXED_POINT
        assert counts.response_tokens[j] == sum(len(c.token_ids) for c in group.completions)
        assert counts.truncated[j] == sum(c.finish_reason == "length" for c in group.completions)
        assert counts.live[j] == (len(set(known.tolist())) > 1)


# --- one wave


def test_a_step_is_sampled_scored_and_counted(rank: OneRank):
    step = whole_round(*STEP)
    rollouts = rank.finish(step)
    assert rollouts.step is step
    assert rollouts.waves == 1
    assert rollouts.prompt_ids.tolist() == STEP[0]
    assert rollouts.requested.tolist() == rollouts.counts.generated.tolist() == STEP[1]
    check_counts(rollouts)
    for group, rewards in zip(rollouts.groups, rollouts.rewards):
        answer = rank.pool.prompts[group.prompt_id].answer
        assert rewards.tolist() == [float(c.text == answer) for c in group.completions]
        assert np.array_equal(group.prompt_tokens, rank.pool.tokens[group.prompt_id])
    assert 0 < rollouts.counts.live.sum() < 5, "groups with signal and without"
    evidence = rollouts.evidence
    assert evidence.prompt_ids.tolist() == STEP[0]
    assert evidence.successes.tolist() == [r.sum() for r in rollouts.rewards]
    assert evidence.trials.tolist() == STEP[1]
    assert evidence.failed_rollouts == 0
    assert evidence.response_tokens == rollouts.counts.response_tokens.sum()
    assert rollouts.reward_counts == RewardCounts(scored=19)
    assert rollouts.reward_error is None


def test_its_phases_are_timed(rank: OneRank):
    rank.clocks.take()
    rank.finish(whole_round(*STEP))
    assert set(rank.clocks.take()) == {"rollout", "reward", "reduce_counts"}


def test_the_same_step_gives_the_same_tokens_and_another_round_others(rank: OneRank):
    first = tokens_of(rank.finish(whole_round(*STEP)))
    assert tokens_of(rank.finish(whole_round(*STEP))) == first
    other = tokens_of(rank.finish(whole_round(*STEP, index=1)))
    assert other.keys() == first.keys()
    assert other != first


def test_tokens_do_not_depend_on_the_neighbours(rank: OneRank):
    together = tokens_of(rank.finish(whole_round(*STEP)))
    alone = tokens_of(rank.finish(whole_round([7], [2])))
    assert alone[7] == together[7]


def test_a_part_of_a_round_has_its_own_groups_in_their_order(rank: OneRank):
    whole = whole_round(*STEP)
    part = rank.finish(Step(whole.allocation, 1, 4))
    assert part.prompt_ids.tolist() == [0, 7, 1]
    assert part.evidence.trials.tolist() == [8, 2, 1]
    everything = tokens_of(rank.finish(whole))
    assert tokens_of(part) == {i: everything[i] for i in (0, 7, 1)}


def test_an_answer_that_is_cut_is_counted():
    cut = OneRank("rollout.max_response_tokens=3", waves=False)
    rollouts = cut.finish(whole_round([0, 2], [4, 4]))
    assert rollouts.counts.truncated.tolist() == [4, 0]
    assert rollouts.counts.response_tokens.tolist() == [12, 8]
    check_counts(rollouts)


# --- several waves


@pytest.mark.parametrize("name", WAVE_SCHEDULERS)
def test_waves_of_a_prompt_become_one_group_of_continued_draws(name: str):
    rank = OneRank(f"scheduler.name={name}", "scheduler.capacity_rollouts=256", *SIZED)
    step = whole_allocation(rank)
    rollouts = rank.finish(step)
    pending = rank.scheduler.pending
    assert pending is not None
    assert rollouts.waves > 1
    assert pending.total_rollouts > step.allocation.total_rollouts
    assert len(set(rollouts.prompt_ids.tolist())) == len(rollouts.prompt_ids)
    assert rollouts.prompt_ids.tolist() == pending.prompt_ids.tolist()
    assert rollouts.requested.tolist() == pending.rollouts.tolist()
    check_counts(rollouts)

    alone = OneRank(waves=False)
    at_once = alone.finish(whole_round(pending.prompt_ids.tolist(), pending.rollouts.tolist()))
    assert at_once.waves == 1
    assert tokens_of(rollouts) == tokens_of(at_once)
    for merged, single in zip(rollouts.rewards, at_once.rewards):
        assert merged.tolist() == single.tolist()
    assert rollouts.counts.live.tolist() == at_once.counts.live.tolist()

    rank.scheduler.observe(rollouts.evidence)
    rank.scheduler.close_round()
    wins, losses = rank.scheduler.evidence()
    assert wins.sum() + losses.sum() == rollouts.counts.trials.sum()


def test_log_probabilities_of_waves_are_those_of_one_wave():
    rank = OneRank("scheduler.name=reinforce_ada", *SIZED)
    merged = rank.finish(whole_allocation(rank))
    assert merged.waves > 1
    at_once = OneRank(waves=False).finish(
        whole_round(merged.prompt_ids.tolist(), merged.requested.tolist())
    )
    for own, other in zip(merged.groups, at_once.groups):
        for left, right in zip(own.completions, other.completions, strict=True):
            np.testing.assert_allclose(left.logp_behavior, right.logp_behavior, atol=1e-5)


def test_a_cut_round_asks_for_no_wave():
    rank = OneRank("scheduler.name=reinforce_ada", *SIZED)
    step = whole_allocation(rank)
    middle = len(step.prompt_ids) // 2
    parts = [Step(step.allocation, 0, middle), Step(step.allocation, middle, step.last)]
    assert [rank.finish(part).waves for part in parts] == [1, 1]
    assert rank.scheduler.pending is step.allocation
    assert rank.finish(step).waves > 1, "the whole round does"


def test_missing_rewards_of_all_waves_are_kept_and_the_first_is_told():
    rank = OneRank("scheduler.name=reinforce_ada", *SIZED)
    rank.rewards = Moody(rank.config.reward)
    rank.collect_with(rank.engine.engine)
    rollouts = rank.finish(whole_allocation(rank))
    waves = rollouts.waves
    assert waves >= 3
    check_counts(rollouts)
    total = int(rollouts.counts.generated.sum())
    assert rollouts.counts.trials.sum() == total - waves
    assert rollouts.reward_counts == RewardCounts(total - waves, 1, waves - 1)
    assert rollouts.reward_error == "failure 1"
    assert rollouts.evidence.failed_rollouts == 0, "generated and paid for"


# --- ahead


def test_generation_ahead_changes_no_token(rank: OneRank):
    wanted = tokens_of(rank.finish(whole_round(*STEP)))
    assert rank.collector.ahead() is None
    step = whole_round(*STEP)
    rank.collector.begin(step)
    rank.collector.settle()
    ahead = rank.collector.ahead()
    assert ahead is not None
    assert [g.prompt_id for g in ahead] == STEP[0]
    rank.collector.settle()  # nothing is left to wait for
    rollouts = rank.finish(step)
    assert tokens_of(rollouts) == wanted
    check_counts(rollouts)
    assert rank.collector.ahead() is None


def test_a_step_that_was_begun_can_be_finished_at_once(rank: OneRank):
    wanted = tokens_of(rank.finish(whole_round(*STEP)))
    step = whole_round(*STEP)
    rank.collector.begin(step)
    assert tokens_of(rank.finish(step)) == wanted


def test_settling_nothing_is_nothing(rank: OneRank):
    rank.collector.settle()
    assert rank.collector.ahead() is None


def test_what_was_settled_keeps_the_weights_it_came_from():
    rank = OneRank(waves=False)
    wanted = tokens_of(rank.finish(whole_round(*STEP)))
    step = whole_round(*STEP)
    rank.collector.begin(step)
    rank.collector.settle()
    model = load_model(rank.config.model.path, rank.config.model.dtype, "sdpa")
    rank.engine.load_weights(((name, p.data * 0.5) for name, p in model.named_parameters()), 1)
    rollouts = rank.finish(step)
    assert tokens_of(rollouts) == wanted
    assert rollouts.oldest_version(1) == 0
    fresh = rank.finish(whole_round(*STEP))
    assert tokens_of(fresh) != wanted
    assert fresh.oldest_version(1) == 1


# --- resumed


def settled(rank: OneRank, step: Step) -> dict[str, Any]:
    """What a checkpoint keeps of a step that was begun."""
    rank.collector.begin(step)
    rank.collector.settle()
    ahead = rank.collector.ahead()
    assert ahead is not None
    return pack_groups(ahead)


def test_a_resumed_step_takes_the_saved_groups(rank: OneRank):
    step = whole_round(*STEP)
    own = settled(rank, step)
    wanted = tokens_of(rank.finish(step))
    rank.begin()
    rank.collect_with(Broken(RuntimeError("asked for nothing")))
    rank.collector.resume_with(lambda requests: unpack_groups(own, requests))
    rollouts = rank.finish(whole_round(*STEP))
    assert tokens_of(rollouts) == wanted
    check_counts(rollouts)


@pytest.mark.parametrize("other", [([33, 0, 7, 1], [4, 8, 2, 1]), ([7, 0], [2, 8])])
def test_saved_groups_of_other_requests_are_left_alone(rank: OneRank, other):
    own = settled(rank, whole_round(*STEP))
    rank.begin()
    rank.collector.resume_with(lambda requests: unpack_groups(own, requests))
    resumed = tokens_of(rank.finish(whole_round(*other, index=1)))
    rank.begin()
    assert tokens_of(rank.finish(whole_round(*other, index=1))) == resumed


def test_a_checkpoint_without_groups_is_sampled_anew(rank: OneRank):
    rank.collector.resume_with(lambda requests: unpack_groups({}, requests))
    resumed = tokens_of(rank.finish(whole_round(*STEP)))
    rank.begin()
    assert tokens_of(rank.finish(whole_round(*STEP))) == resumed


def test_saved_groups_serve_one_step(rank: OneRank):
    own = settled(rank, whole_round(*STEP))
    rank.begin()
    asked = []

    def saved(requests: Sequence[Any]) -> Any:
        asked.append(len(requests))
        return unpack_groups(own, requests)

    rank.collector.resume_with(saved)
    first = tokens_of(rank.finish(whole_round(*STEP)))
    second = tokens_of(rank.finish(whole_round(*STEP, index=1)))
    assert asked == [5]
    assert first != second


# --- failures


def test_an_engine_that_dies_is_one_line(rank: OneRank):
    rank.collect_with(Broken(RuntimeError("CUDA error: lost\nand a page of advice")))
    with pytest.raises(EngineError) as caught:
        rank.finish(whole_round(*STEP))
    assert str(caught.value) == "rollout: rank 0: RuntimeError: CUDA error: lost"
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_engines_own_words_are_kept(rank: OneRank):
    rank.collect_with(Broken(EngineError("the server is gone; start it again")))
    with pytest.raises(EngineError, match=r"^rollout: rank 0: the server is gone; start it again$"):
        rank.finish(whole_round(*STEP))


def test_an_engine_that_dies_ahead_is_met_where_it_is_waited_for(rank: OneRank):
    rank.collect_with(Broken(RuntimeError("lost")))
    rank.collector.begin(whole_round(*STEP))
    with pytest.raises(EngineError, match=r"^rollout: rank 0: RuntimeError: lost$"):
        rank.collector.settle()


def test_a_bug_is_no_engine_error(rank: OneRank):
    rank.collect_with(Broken(KeyError("typo")))
    with pytest.raises(KeyError):
        rank.finish(whole_round(*STEP))


def test_a_group_that_comes_back_short_failed_in_part(rank: OneRank):
    wanted = tokens_of(rank.finish(whole_round(*STEP)))
    rank.collect_with(Short(rank.engine.engine))
    rollouts = rank.finish(whole_round(*STEP))
    assert rollouts.requested.tolist() == STEP[1]
    assert rollouts.counts.generated.tolist() == [n - 1 for n in STEP[1]]
    assert rollouts.evidence.failed_rollouts == 5
    assert tokens_of(rollouts) == {i: tokens[:-1] for i, tokens in wanted.items()}
    check_counts(rollouts)  # prompt 1 has nothing left


def test_a_step_that_comes_back_empty_failed_whole(rank: OneRank):
    rank.collect_with(Short(rank.engine.engine, lost=8))
    rollouts = rank.finish(whole_round(*STEP))
    assert rollouts.counts.generated.sum() == 0
    assert rollouts.evidence.failed_rollouts == 19
    assert rollouts.oldest_version(3) == 3
    check_counts(rollouts)


def test_draws_that_failed_are_not_drawn_again():
    rank = OneRank("scheduler.name=reinforce_ada", *SIZED)
    rank.collect_with(Short(rank.engine.engine))
    rollouts = rank.finish(whole_allocation(rank))
    assert rollouts.waves > 1
    assert rollouts.evidence.failed_rollouts == (rollouts.requested // 4).sum()  # one of each wave
    sizes = rollouts.requested.tolist()
    at_once = tokens_of(
        OneRank(waves=False).finish(whole_round(rollouts.prompt_ids.tolist(), sizes))
    )
    for prompt, tokens in tokens_of(rollouts).items():
        delivered = [drawn for draw, drawn in enumerate(at_once[prompt]) if draw % 4 != 3]
        assert tokens == delivered
