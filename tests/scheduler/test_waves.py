"""Several waves in a round: one budget, one Allocation to answer, the same protocol."""

import numpy as np
import pytest

from cero_rl.scheduler import BudgetSpec, CeroScheduler, Evidence, Shared
from cero_rl.scheduler.budgeted import BudgetedScheduler


class TwoWaves(BudgetedScheduler):
    """Prompts 0, 1, 2 one unit each; then two more units for 1 and one for a prompt never seen."""

    name = "two_waves"

    def _choose(self, units_left, rounds_left):
        return np.arange(3), np.ones(3, dtype=np.int64)

    def _choose_more(self, so_far, units_left):
        if so_far.trials.sum() > 6:
            return None
        return np.array([1, 4]), np.array([2, 1])


def scheduler(budget_rollouts: int = 24) -> TwoWaves:
    return TwoWaves(BudgetSpec(5, 4, budget_rollouts, 2, 3, 30), Shared())


def failed(plan: BudgetedScheduler) -> Evidence:
    """All groups of the open round, every rollout wrong."""
    assert plan.pending is not None
    ids, rollouts = plan.pending.prompt_ids, plan.pending.rollouts
    return Evidence(ids, np.zeros(ids.shape[0]), rollouts.astype(np.int64))


def test_a_wave_adds_to_the_open_round():
    plan = scheduler()
    assert plan.open_round() is not None
    second = plan.next_wave(failed(plan))
    assert second is not None
    assert second.prompt_ids.tolist() == [1, 4]
    assert second.rollouts.tolist() == [4, 2]
    assert plan.pending is not None
    assert plan.pending.prompt_ids.tolist() == [0, 1, 2, 4]
    assert plan.pending.rollouts.tolist() == [2, 6, 2, 2]
    assert plan.next_wave(failed(plan)) is None
    assert plan.remaining_rollouts == 24 - 12
    plan.observe(failed(plan))
    plan.close_round()
    assert plan.round == 1
    assert plan.posterior.b.tolist() == [3.0, 7.0, 3.0, 1.0, 3.0]


def test_vectors_over_the_pool_answer_all_waves_too():
    plan, other = scheduler(), scheduler()
    for each in (plan, other):
        each.next_round()
        each.next_wave(failed(each))
    plan.update(np.zeros(5), np.array([2, 6, 2, 0, 2]))
    other.observe(failed(other))
    other.close_round()
    np.testing.assert_array_equal(plan.posterior.b, other.posterior.b)


def test_a_wave_is_clipped_by_the_budget_and_can_be_refunded():
    plan = scheduler(budget_rollouts=10)
    plan.open_round()
    wave = plan.next_wave(failed(plan))
    assert wave is not None
    assert wave.prompt_ids.tolist() == [1]
    assert wave.rollouts.tolist() == [4]
    assert plan.remaining_rollouts == 0
    plan.refund(10)
    with pytest.raises(ValueError, match="refund"):
        plan.refund(1)


def test_state_in_the_middle_of_the_waves_round_trips():
    plan, copy = scheduler(), scheduler()
    plan.open_round()
    plan.next_wave(failed(plan))
    copy.load_state_dict(plan.state_dict())
    assert copy.pending is not None
    assert plan.pending is not None
    assert copy.pending.prompt_ids.tolist() == plan.pending.prompt_ids.tolist()
    assert copy.pending.rollouts.tolist() == plan.pending.rollouts.tolist()
    copy.observe(failed(copy))
    copy.close_round()


def test_waves_need_an_open_round_that_was_not_observed():
    plan = scheduler()
    nothing = Evidence(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64))
    with pytest.raises(RuntimeError, match="open round"):
        plan.next_wave(nothing)
    plan.open_round()
    for ids in ([], [0, 1], [1, 0, 2], [0, 1, 2, 4]):
        with pytest.raises(ValueError, match="all groups of the open round, in its order"):
            plan.next_wave(
                Evidence(
                    np.array(ids, dtype=np.int64), np.zeros(len(ids)), np.ones(len(ids), np.int64)
                )
            )
    evidence = failed(plan)
    plan.observe(evidence)
    with pytest.raises(RuntimeError, match="after observe"):
        plan.next_wave(evidence)


def test_most_schedulers_have_one_wave():
    cero = CeroScheduler(5, 4, 24, 2, 3, 30)
    cero.open_round()
    assert cero.next_wave(failed(cero)) is None
