"""A budget that is changed on the way is shared by the rounds left."""

import numpy as np
import pytest

from cero_rl.scheduler import CeroScheduler, Evidence, make_scheduler
from cero_rl.scheduler.budgeted import BudgetedScheduler

POOL, ROUNDS, CAPACITY = 400, 100, 60
RATES = np.random.default_rng(0).beta(1, 1, POOL)


def one_round(scheduler: BudgetedScheduler) -> int | None:
    """Its rollouts."""
    wave = scheduler.open_round()
    if wave is None:
        return None
    tries = wave.rollouts.astype(np.int64)
    wins = np.random.default_rng([1, wave.round]).binomial(tries, RATES[wave.prompt_ids])
    scheduler.observe(Evidence(wave.prompt_ids, wins.astype(np.float64), tries))
    scheduler.close_round()
    return int(tries.sum())


def published(budget: int) -> CeroScheduler:
    return CeroScheduler(POOL, ROUNDS, budget, 1, 1, CAPACITY)


def play(budget: int, later: int) -> tuple[list[int], CeroScheduler]:
    """Rollouts of each round when the budget is changed in the middle; the run is cut and resumed
    a few rounds later."""
    scheduler, spent = published(budget), []
    while (rollouts := one_round(scheduler)) is not None:
        spent.append(rollouts)
        if scheduler.round == ROUNDS // 2:
            scheduler.set_budget(later)
        if scheduler.round == ROUNDS // 2 + 7:
            state = scheduler.state_dict()
            scheduler = published(budget)
            scheduler.load_state_dict(state)
    return spent, scheduler


@pytest.mark.covers("budget changed in the middle of a run")
def test_more_budget_is_spent() -> None:
    """Paced against the whole budget, a quarter of it stayed: 1,022 of 4,000."""
    spent, scheduler = play(2000, 3900)
    assert sum(spent) + scheduler.remaining_rollouts == 3900
    assert scheduler.remaining_rollouts < 0.05 * 3900


def test_less_budget_lasts() -> None:
    """Paced against the whole budget, it was gone after 17 of the 50 rounds left."""
    spent, _ = play(4000, 2400)
    assert max(np.flatnonzero(spent)) >= ROUNDS - 15


def test_the_same_budget_again_changes_little() -> None:
    spent, _ = play(4000, 4000)
    scheduler, wanted = published(4000), []
    while (rollouts := one_round(scheduler)) is not None:
        wanted.append(rollouts)
    assert abs(sum(spent) - sum(wanted)) <= 2 * CAPACITY


def test_in_the_middle_of_a_round_the_open_one_counts_among_those_left() -> None:
    scheduler = published(2000)
    wave = scheduler.open_round()
    assert wave is not None
    scheduler.set_budget(3000)
    state = scheduler.state_dict()
    assert (state["pace_rollouts"], state["pace_rounds"]) == (3000, ROUNDS)
    scheduler.close_round()
    scheduler.open_round()
    spent = 3000 - scheduler.remaining_rollouts
    scheduler.set_budget(2500)
    assert scheduler.state_dict()["pace_rollouts"] == 2500 - wave.total_rollouts
    assert scheduler.state_dict()["pace_rounds"] == ROUNDS - 1
    assert scheduler.remaining_rollouts == 2500 - spent


def test_a_last_round_that_is_open_may_still_be_given_less() -> None:
    scheduler = CeroScheduler(4, 1, 8, 2, 2, 8, spend_down=True)
    scheduler.open_round()
    scheduler.set_budget(8)
    scheduler.update(np.zeros(4), np.zeros(4))
    assert scheduler.open_round() is None


@pytest.mark.parametrize("later, groups", [(320, 6), (80, 1)])
def test_dapo_wants_an_equal_share_of_what_is_left(later: int, groups: int) -> None:
    scheduler = make_scheduler(
        "dapo",
        num_prompts=40,
        rounds=10,
        budget_rollouts=160,
        rollouts_per_unit=4,
        max_units_per_prompt=2,
        capacity_rollouts=160,
    )
    for _ in range(5):
        wave = scheduler.open_round()
        assert wave is not None
        assert wave.prompt_ids.size == 2
        # alive, so that the first wave suffices
        tries = wave.rollouts.astype(np.int64)
        scheduler.observe(Evidence(wave.prompt_ids, tries / 2.0, tries))
        scheduler.close_round()
    scheduler.set_budget(max(later, 80))
    wave = scheduler.open_round()
    assert (wave.prompt_ids.size if wave is not None else 1) == groups
