"""The ranked plan solves the round problem, and breaks ties by the seed."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_sim import dense
from scipy.optimize import linprog

from cero_rl.scheduler import CeroScheduler, ranked_plan


@settings(max_examples=80, deadline=None)
@given(data=st.data(), pool=st.integers(1, 12), most=st.integers(1, 5), seed=st.integers(0, 99))
def test_plan_is_the_optimum_of_the_linear_program(
    data: st.DataObject, pool: int, most: int, seed: int
) -> None:
    capacity = data.draw(st.integers(1, pool * most))
    forced = data.draw(st.integers(0, capacity))
    slope = np.array(
        data.draw(
            st.lists(st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.7, 1.0]), min_size=pool, max_size=pool)
        )
    )
    price = data.draw(st.sampled_from([0.0, 0.2, 0.4, 1.0]))
    tie_rank = np.random.default_rng(seed).permutation(pool)
    ids, units = ranked_plan(slope, price, tie_rank, most, capacity, forced)
    assert len(set(ids.tolist())) == ids.shape[0]
    assert units.shape == ids.shape
    assert ((units >= 1) & (units <= most)).all()
    assert (units[:-1] == most).all()
    assert forced <= units.sum() <= capacity
    assert sorted(ids.tolist(), key=lambda i: (-slope[i], tie_rank[i])) == ids.tolist()
    ones = np.ones(pool)
    solved = linprog(
        price - slope,
        A_ub=np.stack([ones, -ones]),
        b_ub=[capacity, -forced],
        bounds=[(0, most)] * pool,
    )
    assert float(((slope - price)[ids] * units).sum()) == pytest.approx(-solved.fun, abs=1e-9)


def test_a_zero_margin_is_not_served() -> None:
    ids, units = ranked_plan(np.array([0.5, 0.6, 0.4]), 0.5, np.arange(3), 2, 6)
    assert (ids.tolist(), units.tolist()) == ([1], [2])
    assert ranked_plan(np.full(3, 0.5), 0.5, np.arange(3), 2, 6)[0].shape == (0,)


def test_plan_by_brute_force() -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        slope, price, capacity = rng.random(4), rng.random(), int(rng.integers(1, 9))
        ids, units = ranked_plan(slope, price, np.arange(4), 2, capacity)
        best = max(
            float(((slope - price) * plan).sum())
            for plan in itertools.product(range(3), repeat=4)
            if sum(plan) <= capacity
        )
        assert float(((slope - price)[ids] * units).sum()) == pytest.approx(best, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    pool=st.integers(1, 60),
    count=st.integers(1, 60),
    levels=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_partial_selection_equals_a_full_sort(
    pool: int, count: int, levels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    slope, tie_rank = (1 + rng.integers(0, levels, pool)) / levels, rng.permutation(pool)
    count = min(count, pool)
    ids, _ = ranked_plan(slope, 0.0, tie_rank, 1, count)
    np.testing.assert_array_equal(ids, np.lexsort((tie_rank, -slope))[:count])


def test_ties_follow_the_seed() -> None:
    def first_round(seed: int) -> list[int]:
        scheduler = CeroScheduler(50, 10, 400, 4, 2, 40, seed=seed)
        allocation = scheduler.next_round()
        assert allocation is not None
        assert dense(allocation, 50).sum() == 40
        return allocation.prompt_ids.tolist()

    assert first_round(1) == first_round(1)
    assert first_round(1) != first_round(2)
