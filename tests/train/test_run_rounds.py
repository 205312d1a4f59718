"""Rounds: an allocation cut into steps, booked, closed and resumed, with the real schedulers and
the real sampler on one rank."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_cases import OneRank, Short, tokens_of

from cero_rl.checkpoint.commit import RunState
from cero_rl.rollout.collector import Rollouts
from cero_rl.train.rounds import cuts
from cero_rl.types import Step

CUT = "learner.rollouts_per_step=12"  # of a round's 32: one group of 8, or three of 4
SCHEDULERS = [
    ("scheduler.name=uniform",),
    ("scheduler.name=cero",),
    ("scheduler.name=cero", "scheduler.streaming=true"),
    ("scheduler.name=thompson",),
    ("scheduler.name=greso",),
]
MIXED = ("scheduler.name=random_matched", "scheduler.max_units_per_prompt=1", CUT)  # groups of 4


def take(rank: OneRank, step: Step) -> Rollouts:
    """One turn of the loop, without a learner."""
    rollouts = rank.finish(step)
    rank.rounds.observe(rollouts)
    rank.rounds.close_if_last(step)
    return rollouts


def steps(rank: OneRank) -> Iterator[tuple[Step, Rollouts]]:
    while (step := rank.rounds.next_step()) is not None:
        yield step, take(rank, step)


def seen(step: Step, rollouts: Rollouts) -> tuple[Any, ...]:
    """Everything that can be told of a step."""
    place = (step.round, step.first, step.last)
    return place, step.prompt_ids.tolist(), step.rollouts.tolist(), tokens_of(rollouts)


# --- cuts


@given(st.lists(st.integers(1, 12), max_size=30), st.integers(1, 40))
def test_cuts_are_full_whole_groups_in_order(sizes: list[int], per_step: int):
    rollouts = np.array(sizes, dtype=np.int32)
    bounds = cuts(rollouts, per_step)
    assert [i for first, last in bounds for i in range(first, last)] == list(range(len(sizes)))
    for first, last in bounds:
        assert sum(sizes[first:last]) <= per_step or last - first == 1
        if last < len(sizes):
            assert sum(sizes[first : last + 1]) > per_step, "one more group had room"


def test_cuts_of_nothing_and_no_cuts():
    nobody = np.zeros(0, dtype=np.int32)
    assert cuts(nobody, 8) == cuts(nobody, None) == [(0, 0)]
    assert cuts(np.array([4, 8, 4], dtype=np.int32), None) == [(0, 3)]
    assert cuts(np.array([4, 8, 4, 1], dtype=np.int32), 5) == [(0, 1), (1, 2), (2, 4)]


# --- steps


@pytest.mark.parametrize("settings", [*((*each, CUT) for each in SCHEDULERS), SCHEDULERS[0]])
def test_every_group_is_in_exactly_one_step(settings: tuple[str, ...]):
    rank = OneRank(*settings)
    groups: dict[int, list[int]] = {}
    planned: dict[int, list[int]] = {}
    for step, rollouts in steps(rank):
        groups.setdefault(step.round, []).extend(rollouts.prompt_ids.tolist())
        planned[step.round] = step.allocation.prompt_ids.tolist()
        assert rollouts.counts.generated.tolist() == step.rollouts.tolist()
        assert step.is_whole_round == (CUT not in settings)
    assert groups == planned
    assert sorted(groups) == list(range(4))
    assert rank.progress.ledger.spent_rollouts == 128
    assert rank.scheduler.pending is None


def test_a_step_is_full_and_the_last_of_a_round_ends_it():
    rank = OneRank(*MIXED)
    ends = []
    for step, _ in steps(rank):
        assert step.rollouts.sum() == 12 or step.ends_round
        ends.append(step.ends_round)
    assert ends == [False, False, True] * 4


def test_a_step_that_was_peeked_at_is_the_next():
    rank = OneRank(*MIXED)
    first = rank.rounds.peek()
    assert first is not None
    assert rank.rounds.peek() is first
    assert rank.rounds.next_step() is first
    take(rank, first)
    ahead = rank.rounds.peek()
    assert ahead is not None
    assert (ahead.round, ahead.first) == (0, first.last)
    assert rank.rounds.next_step() is ahead


def test_peeking_goes_over_the_edge_of_a_round_and_ends_with_the_run():
    plain = [seen(*turn) for turn in steps(OneRank(*MIXED))]
    rank = OneRank(*MIXED)
    turns = []
    while (step := rank.rounds.next_step()) is not None:
        turns.append(seen(step, take(rank, step)))
        rank.rounds.peek()
    assert turns == plain
    assert rank.rounds.peek() is None
    assert rank.rounds.next_step() is None


def test_evidence_reaches_ledger_lengths_and_scheduler():
    rank = OneRank("scheduler.name=uniform", CUT)
    wins, losses = np.zeros(len(rank.pool)), np.zeros(len(rank.pool))
    tokens = np.zeros(len(rank.pool), dtype=np.int64)
    spent = 0
    for step, rollouts in steps(rank):
        evidence = rollouts.evidence
        wins[evidence.prompt_ids] += evidence.successes
        losses[evidence.prompt_ids] += evidence.trials - evidence.successes
        tokens[evidence.prompt_ids] += rollouts.counts.response_tokens
        spent += int(step.rollouts.sum())
        assert rank.progress.ledger.spent_rollouts == spent
        if step.ends_round:
            known = rank.scheduler.evidence()
            assert np.allclose(known[0], wins)
            assert np.allclose(known[1], losses)
        else:
            assert rank.scheduler.answered_groups == step.last
    assert rank.progress.lengths.tokens.tolist() == tokens.tolist()
    assert rank.progress.lengths.samples.sum() == spent == 128
    assert rank.progress.ledger.refunded_rollouts == 0


def test_a_streaming_scheduler_has_learned_before_the_round_is_over():
    rank = OneRank("scheduler.name=cero", "scheduler.streaming=true", CUT)
    step = rank.rounds.next_step()
    assert step is not None
    rollouts = take(rank, step)
    wins, losses = rank.scheduler.evidence()
    assert rank.scheduler.pending is not None
    assert wins.sum() + losses.sum() == rollouts.counts.trials.sum()


def test_the_scheduler_is_timed():
    rank = OneRank(*MIXED)
    step = rank.rounds.next_step()
    assert step is not None
    assert set(rank.clocks.take()) == {"scheduler"}
    rollouts = rank.finish(step)
    rank.clocks.take()
    rank.rounds.observe(rollouts)
    assert set(rank.clocks.take()) == {"scheduler"}
    assert rank.rounds.peek() is not None
    assert not rank.clocks.take(), "the round is still open"


def test_lengths_are_asked_for_by_a_scheduler_that_prices_tokens():
    rank = OneRank("scheduler.name=cero", "scheduler.token_costs=true")
    step = rank.rounds.next_step()
    assert step is not None
    state = rank.scheduler.state_dict()
    assert state["tokens_expected"].tolist() == [6.0] * 48, "half of what an answer may have"
    rollouts = take(rank, step)
    assert rank.scheduler.state_dict()["tokens_spent"] == rollouts.counts.response_tokens.sum()
    assert rank.rounds.next_step() is not None
    state = rank.scheduler.state_dict()
    assert state["tokens_expected"].tolist() == rank.progress.lengths.expected_of_all().tolist()


def test_a_round_that_asks_for_nothing_is_closed_on_the_way():
    costly = ("scheduler.name=cero", "scheduler.price_init=1", "scheduler.spend_down=false")
    rank = OneRank(*costly)
    turns = list(steps(rank))
    assert 0 < len(turns) < 4
    assert turns[0][0].round > 0, "the first round is too dear"
    assert rank.scheduler.round == 4
    spent = sum(int(step.rollouts.sum()) for step, _ in turns)
    assert rank.progress.ledger.spent_rollouts == spent < 128
    assert rank.progress.ledger.remaining_rollouts == rank.scheduler.remaining_rollouts


# --- steps of equal signal

SIGNAL = "learner.live_signal_per_step=1.0"
SIGNALS = [
    ("scheduler.name=uniform", SIGNAL),
    ("scheduler.name=uniform", SIGNAL, "learner.rollouts_per_step=12"),
    ("scheduler.name=cero", "scheduler.streaming=true", SIGNAL),
    (
        "scheduler.name=cero",
        "scheduler.max_units_per_prompt=1",
        "learner.baseline=posterior",
        SIGNAL,
    ),
]


@pytest.mark.parametrize("settings", SIGNALS)
def test_steps_of_equal_signal_spend_the_budget_in_whole_groups(settings: tuple[str, ...]):
    rank = OneRank(*settings)
    turns = []
    while (step := rank.rounds.next_step()) is not None:
        rollouts = rank.finish(step)
        numbers = rank.rounds.observe(rollouts)
        rank.rounds.close_if_last(step)
        turns.append((step, numbers))
        assert set(numbers) == {"signal/found", "signal/expected"}
        sums, trials = rollouts.evidence.successes, rollouts.evidence.trials
        if rank.progress.critic is None:
            assert numbers["signal/found"] == pytest.approx((sums - sums**2 / trials).sum())
    for (before, _), (after, _) in pairwise(turns):
        same_round = after.round == before.round
        assert after.first == (before.last if same_round else 0)
        assert same_round or before.ends_round
    assert len(turns) > 4, "a round is more than one step"
    sizes = [int(step.rollouts.sum()) for step, _ in turns]
    assert sum(sizes) == rank.progress.ledger.spent_rollouts == 128
    assert rank.scheduler.pending is None
    if "learner.rollouts_per_step=12" in settings:
        assert max(sizes) <= 12


def test_a_step_holds_more_rollouts_where_less_was_found_than_expected():
    rank = OneRank(*MIXED[:2], "learner.live_signal_per_step=2.0")  # 8 groups of 4, 1/6 a rollout
    sizes = []
    for found in (4.0, 2.0, 1.0):  # where 2 was expected
        rank.begin()
        assert rank.progress.live_signal is not None
        for _ in range(400):
            rank.progress.live_signal.observe(2.0, found)
        step = rank.rounds.next_step()
        assert step is not None
        sizes.append(int(step.rollouts.sum()))
    assert sizes == [8, 12, 32], "a fifth, a third and the whole of the round, in whole groups"


# --- resumed


def travelled(state: RunState) -> RunState:
    """As a checkpoint keeps it: nothing is shared with the run that wrote it."""
    return RunState(dict(state.scalars), {k: v.copy() for k, v in state.arrays.items()})


@pytest.mark.parametrize(
    "settings", [*((*each, CUT) for each in SCHEDULERS), MIXED, SIGNALS[0], SIGNALS[2], SIGNALS[3]]
)
def test_a_run_resumed_anywhere_goes_on_with_the_same_steps(settings: tuple[str, ...]):
    rank = OneRank(*settings, "scheduler.rounds=2", "budget.total_rollouts=64")
    whole, states = [], []
    for turn in steps(rank):
        whole.append(seen(*turn))
        states.append(travelled(rank.progress.state(rank.scheduler, {})))
    assert len(whole) > 3
    for done in (1, len(whole) // 2, len(whole) - 1):  # in a round, near its end, in the next
        rank.begin()
        rank.progress.restore(states[done - 1], rank.scheduler)
        assert [seen(*turn) for turn in steps(rank)] == whole[done:]
        assert rank.progress.ledger.spent_rollouts == 64


def test_a_run_resumed_in_the_middle_of_a_round_begins_with_the_next_cut():
    rank = OneRank(*MIXED)
    step = rank.rounds.next_step()
    assert step is not None
    take(rank, step)
    state = travelled(rank.progress.state(rank.scheduler, {}))
    rank.begin()
    rank.progress.restore(state, rank.scheduler)
    resumed = rank.rounds.next_step()
    assert resumed is not None
    assert (resumed.round, resumed.first, resumed.last) == (0, 3, 6)
    assert resumed.allocation.prompt_ids.tolist() == step.allocation.prompt_ids.tolist()


def test_a_step_that_was_ahead_at_the_save_comes_again():
    rank = OneRank(*MIXED)
    for _, _ in zip(range(3), steps(rank)):
        ahead = rank.rounds.peek()  # the last time: of the next round, which is open now
    assert ahead is not None
    assert ahead.round == 1
    state = travelled(rank.progress.state(rank.scheduler, {}))
    rank.begin()
    rank.progress.restore(state, rank.scheduler)
    again = rank.rounds.next_step()
    assert again is not None
    assert (again.round, again.first, again.last) == (ahead.round, ahead.first, ahead.last)
    assert again.prompt_ids.tolist() == ahead.prompt_ids.tolist()


# --- the budget


def test_failed_rollouts_come_back_to_the_budget_and_are_spent_later():
    rank = OneRank("scheduler.name=uniform", "scheduler.capacity_rollouts=48")
    step = rank.rounds.next_step()
    assert step is not None
    rank.collect_with(Short(rank.engine.engine))
    take(rank, step)
    ledger = rank.progress.ledger
    failed = len(step.prompt_ids)
    assert (ledger.spent_rollouts, ledger.refunded_rollouts) == (32 - failed, failed)
    assert rank.scheduler.remaining_rollouts == ledger.remaining_rollouts == 96 + failed
    rank.collect_with(rank.engine.engine)
    later = sum(int(step.rollouts.sum()) for step, _ in steps(rank))
    assert later == 96 + failed
    assert (ledger.spent_rollouts, ledger.remaining_rollouts) == (128, 0)
    assert ledger.refunded_rollouts == failed
    assert rank.scheduler.remaining_rollouts == 0


def test_what_fails_in_the_last_round_stays_unspent():
    rank = OneRank("scheduler.name=uniform", "scheduler.rounds=1", "budget.total_rollouts=32")
    rank.collect_with(Short(rank.engine.engine))
    turns = list(steps(rank))
    assert len(turns) == 1
    assert rank.progress.ledger.remaining_rollouts == turns[0][1].evidence.failed_rollouts == 4


def test_books_of_ledger_and_scheduler_agree_when_every_group_fails_in_part():
    rank = OneRank(*MIXED, "scheduler.capacity_rollouts=48")
    rank.collect_with(Short(rank.engine.engine))
    ledger = rank.progress.ledger
    generated = 0
    for step, rollouts in steps(rank):
        generated += int(rollouts.counts.generated.sum())
        open_groups = step.allocation.rollouts[step.last :].sum()
        assert rank.scheduler.remaining_rollouts + open_groups == ledger.remaining_rollouts
    assert ledger.spent_rollouts == generated < 128
    assert ledger.refunded_rollouts == generated // 3, "one of the four of every group"
