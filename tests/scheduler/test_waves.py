"""Several waves in a round: one budget, one Allocation to answer, the same protocol."""

import numpy as np
import pytest

from cero_rl.scheduler import BudgetSpec, CeroScheduler, Observed
from cero_rl.scheduler.budgeted import BudgetedScheduler


class TwoWaves(BudgetedScheduler):
    """Prompts 0, 1, 2 one unit each; then two more units for 1 and one for a prompt never seen."""

    name = "two_waves"

    def _choose(self, units_left, rounds_left):
        return np.arange(3), np.ones(3, dtype=np.int64)

    def _choose_more(self, observed, units_left):
        if observed.trials.sum() > 6:
            return None
        return np.array([1, 4]), np.array([2, 1])


def scheduler(budget_rollouts: int = 24) -> TwoWaves:
    return TwoWaves(BudgetSpec(5, 4, budget_rollouts, 2, 3, 30), (1.0, 1.0), 1.0, 0)


def counts(ids: np.ndarray, rollouts: np.ndarray) -> np.ndarray:
    trials = np.zeros(5, dtype=np.int64)
    np.add.at(trials, ids, rollouts)
    return trials


def test_a_wave_adds_to_the_open_round():
    plan = scheduler()
    first = plan.next_round()
    assert first is not None
    trials = counts(first.prompt_ids, first.rollouts)
    second = plan.next_round(Observed(np.zeros(5), trials))
    assert second is not None
    assert second.prompt_ids.tolist() == [1, 4]
    assert second.rollouts.tolist() == [4, 2]
    assert plan.pending is not None
    assert plan.pending.prompt_ids.tolist() == [0, 1, 2, 4]
    assert plan.pending.rollouts.tolist() == [2, 6, 2, 2]
    trials += counts(second.prompt_ids, second.rollouts)
    assert plan.next_round(Observed(np.zeros(5), trials)) is None
    assert plan.remaining_rollouts == 24 - 12
    plan.update(np.zeros(5), trials)
    assert plan.round == 1


def test_a_wave_is_clipped_by_the_budget_and_can_be_refunded():
    plan = scheduler(budget_rollouts=10)
    plan.next_round()
    wave = plan.next_round(Observed(np.zeros(5), counts(np.arange(3), np.array([2, 2, 2]))))
    assert wave is not None
    assert wave.prompt_ids.tolist() == [1]
    assert wave.rollouts.tolist() == [4]
    assert plan.remaining_rollouts == 0
    plan.refund(10)
    with pytest.raises(ValueError, match="refund"):
        plan.refund(1)


def test_state_in_the_middle_of_the_waves_round_trips():
    plan, copy = scheduler(), scheduler()
    plan.next_round()
    observed = Observed(np.zeros(5), counts(np.arange(3), np.array([2, 2, 2])))
    plan.next_round(observed)
    copy.load_state_dict(plan.state_dict())
    assert copy.pending is not None
    assert plan.pending is not None
    assert copy.pending.rollouts.tolist() == plan.pending.rollouts.tolist()
    copy.update(np.zeros(5), counts(copy.pending.prompt_ids, copy.pending.rollouts))


def test_waves_need_an_open_round_and_most_schedulers_have_one_wave():
    observed = Observed(np.zeros(5), np.zeros(5, dtype=np.int64))
    with pytest.raises(RuntimeError, match="open round"):
        scheduler().next_round(observed)
    cero = CeroScheduler(5, 4, 24, 2, 3, 30)
    cero.next_round()
    assert cero.next_round(observed) is None
