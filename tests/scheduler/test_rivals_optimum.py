"""Each rule's optimisation against brute force on tiny cases, in independently written
objectives."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rivals_sim import build

from cero_rl.scheduler import greedy_integer, utility_value
from cero_rl.scheduler.rivals.common import best, exact_greedy


def all_plans(prompts: int, lowest: int, highest: int, total: int):
    for sizes in itertools.product(range(lowest, highest + 1), repeat=prompts):
        if sum(sizes) == total:
            yield np.array(sizes)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), prompts=st.integers(1, 4), levels=st.integers(0, 4))
def test_exact_greedy_buys_the_best_units(data: st.DataObject, prompts: int, levels: int) -> None:
    values = data.draw(
        st.lists(
            st.lists(st.integers(0, 5), min_size=levels, max_size=levels),
            min_size=prompts,
            max_size=prompts,
        )
    )
    gains = -np.sort(-np.array(values, dtype=np.float64).reshape(prompts, levels), axis=1)
    budget = data.draw(st.integers(0, prompts * levels + 2))
    rank = np.array(data.draw(st.permutations(range(prompts))))
    units = exact_greedy(gains, budget, rank)
    worth = lambda plan: sum(gains[i, :n].sum() for i, n in enumerate(plan))
    assert units.sum() == min(budget, prompts * levels)
    assert (units <= levels).all()
    assert worth(units) == max(
        worth(plan) for plan in all_plans(prompts, 0, levels, int(units.sum()))
    )


def test_exact_greedy_spreads_ties_by_level_then_rank() -> None:
    assert exact_greedy(np.zeros((3, 4)), 5, np.array([2, 0, 1])).tolist() == [1, 2, 2]
    assert best(np.array([1.0, 3.0, 3.0, 0.0]), np.array([0, 3, 1, 2]), 3).tolist() == [2, 1, 0]


def plan_of(name: str, rates: list[float], total: int, **options):
    """The first plan of a batch rule whose posterior is certain of `rates`."""
    pool = len(rates)
    scheduler = build(
        name,
        pool=pool,
        rounds=1,
        budget=total,
        unit=1,
        most=9,
        capacity=total,
        forgetting=1.0,
        options={"group_rollouts": total // pool, **options},
    )
    state = scheduler.state_dict()
    strength = 1e9
    state["posterior_a"], state["posterior_b"] = (
        strength * np.array(rates),
        strength * (1.0 - np.array(rates)),
    )
    scheduler.load_state_dict(state)
    allocation = scheduler.next_round()
    assert allocation is not None
    sizes = np.zeros(pool, dtype=np.int64)
    sizes[allocation.prompt_ids] = allocation.rollouts
    return sizes


RATE_SETS = ([0.1, 0.5, 0.9], [0.02, 0.3, 0.6], [0.5, 0.5, 0.01], [0.95, 0.2, 0.4])


@pytest.mark.parametrize("rates", RATE_SETS)
@pytest.mark.parametrize("total", [12, 15])
def test_knapsack(rates: list[float], total: int) -> None:
    p = np.array(rates)
    worth = lambda n: ((1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2).sum()
    got = plan_of("knapsack", rates, total)
    assert worth(got) == pytest.approx(max(worth(n) for n in all_plans(3, 2, 9, total)), rel=1e-6)


@pytest.mark.parametrize("rates", RATE_SETS)
@pytest.mark.parametrize("objective", ["dr_grpo", "rloo"])
def test_vip(rates: list[float], objective: str) -> None:
    p = np.array(rates)
    variance = (
        (lambda n: p * (1 - p) * (n - 1) / n**2)
        if objective == "dr_grpo"
        else (lambda n: p * (1 - p) / (n - 1))
    )
    got = plan_of("vip", rates, 15, objective=objective)
    assert variance(got).sum() == pytest.approx(
        min(variance(n).sum() for n in all_plans(3, 3, 9, 15)), rel=1e-6
    )


@pytest.mark.parametrize("rates", RATE_SETS)
def test_gvm_is_proportional(rates: list[float]) -> None:
    p = np.array(rates)
    squared = 1 / (p + 1e-3 / p)
    got = plan_of("gvm_p", rates, 15)
    assert (squared / got).sum() == pytest.approx(
        min((squared / n).sum() for n in all_plans(3, 2, 9, 15)), rel=1e-6
    )
    share = np.sqrt(squared) / np.sqrt(squared).sum() * 15
    inside = (got > 2) & (got < 9) & (share > 2) & (share < 9)
    assert (np.abs(got - share)[inside] <= 2.0).all()


@pytest.mark.parametrize("rates", RATE_SETS)
def test_hit_utility(rates: list[float]) -> None:
    worth = lambda n: (1 - (1 - np.array(rates)) ** n).sum()  # a certain posterior: misses multiply
    got = plan_of("hit_utility", rates, 12)
    assert worth(got) == pytest.approx(max(worth(n) for n in all_plans(3, 2, 9, 12)), rel=1e-6)


def test_hit_utility_integrates_over_the_posterior() -> None:
    """Under Beta(1, 1) the chance that n rollouts all fail is 1/(n+1)."""
    from cero_rl.scheduler.rivals.batch_rules import hit_gains

    gains = hit_gains(np.ones(1), np.ones(1), np.array([2.0, 4.0, 6.0]), 2)
    assert gains[0] == pytest.approx([1 - 1 / 3, 1 / 3 - 1 / 5, 1 / 5 - 1 / 7])


def test_greedy_maximises_the_round() -> None:
    scheduler = build(
        "greedy", pool=4, rounds=2, budget=12, unit=1, most=3, capacity=6, forgetting=1.0
    )
    state = scheduler.state_dict()
    rates = np.array([0.5, 0.2, 0.05, 0.4])
    state["posterior_a"], state["posterior_b"] = 1e9 * rates, 1e9 * (1 - rates)
    state["exposure"] = np.array([4, 0, 1, 2])
    scheduler.load_state_dict(state)
    allocation = scheduler.next_round()
    assert allocation is not None
    got = np.zeros(4, dtype=np.int64)
    got[allocation.prompt_ids] = allocation.rollouts
    c, z = 4 * rates * (1 - rates) * 4 / 12, state["exposure"]
    worth = lambda n: utility_value(c, z + n).sum()
    assert worth(got) == pytest.approx(max(worth(n) for n in all_plans(4, 0, 3, 6)), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_oracle_ends_in_the_integer_optimum(seed: int) -> None:
    rates = np.random.default_rng(seed).random(9)
    scheduler = build("oracle", pool=9, rounds=8, budget=72, unit=1, most=3, capacity=18, seed=seed)
    scheduler.set_rates(rates)  # type: ignore[attr-defined]
    exposure = np.zeros(9, dtype=np.int64)
    while (allocation := scheduler.next_round()) is not None:
        exposure[allocation.prompt_ids] += allocation.rollouts
        trials = np.zeros(9, dtype=np.int64)
        trials[allocation.prompt_ids] = allocation.rollouts
        scheduler.update(np.zeros(9), trials)
    c = 4 * rates * (1 - rates) * 9 / 72
    optimum = utility_value(c, greedy_integer(c, 72, 24)).sum()
    assert utility_value(c, exposure).sum() == pytest.approx(optimum, abs=1e-12)
