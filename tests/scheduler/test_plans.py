"""The round problems beyond the linear one, and that no plan depends on the order of the
prompts."""

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_sim import dense

from cero_rl.scheduler import (
    EXPONENTIAL,
    UTILITIES,
    CeroScheduler,
    proximal_plan,
    ranked_plan,
    utility_of,
    water_filling,
)
from cero_rl.scheduler.plan import _kth_largest
from cero_rl.scheduler.rules import beta_draws, fair_units, resolve_plan, thompson_score


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    pool=st.integers(1, 4),
    curvature=st.sampled_from([1e-9, 0.01, 0.1, 1.0]),
    seed=st.integers(0, 9999),
)
def test_proximal_plan_is_the_integer_optimum(
    data: st.DataObject, pool: int, curvature: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    margin = rng.choice([rng.uniform(-1, 1, pool), rng.choice([-0.5, 0.0, 0.5], pool)])
    target, caps = rng.uniform(0.0, 3.0, pool), rng.integers(1, 4, pool)
    capacity = data.draw(st.integers(1, int(caps.sum())))
    forced = data.draw(st.integers(0, capacity))
    ids, units = proximal_plan(
        margin, target, curvature, rng.permutation(pool), caps, capacity, forced
    )
    plan = np.zeros(pool)
    plan[ids] = units
    assert len(set(ids.tolist())) == ids.shape[0]
    assert (units >= 1).all()
    assert (plan <= caps).all()
    assert forced <= plan.sum() <= capacity

    def objective(n: np.ndarray) -> np.ndarray:
        return (margin * n - 0.5 * curvature * (n - target) ** 2).sum(axis=-1)

    every = np.array(
        [
            n
            for n in itertools.product(*(range(cap + 1) for cap in caps))
            if forced <= sum(n) <= capacity
        ]
    )
    assert float(objective(plan)) == pytest.approx(float(objective(every).max()), abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(
    pool=st.integers(1, 60),
    most=st.integers(1, 8),
    share=st.floats(0.0, 1.0),
    forced=st.booleans(),
    steps=st.sampled_from([3, 10**9]),
    seed=st.integers(0, 9999),
)
def test_proximal_plan_buys_the_largest_gains(
    pool: int, most: int, share: float, forced: bool, steps: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    margin, tie_rank = rng.integers(-steps, steps + 1, pool) / steps, rng.permutation(pool)
    target, capacity = np.full(pool, 1.5), max(1, int(share * pool * most))
    ids, units = proximal_plan(
        margin, target, 0.25, tie_rank, most, capacity, capacity if forced else 0
    )
    first = margin + 0.25 * (target - 0.5)
    heap = [(-first[i], tie_rank[i], 0, i) for i in range(pool)]
    heapq.heapify(heap)
    wanted: dict[int, int] = {}
    while heap and sum(wanted.values()) < capacity and (forced or heap[0][0] < 0.0):
        _, rank, level, prompt = heapq.heappop(heap)
        wanted[prompt] = level + 1
        if level + 1 < most:
            heapq.heappush(heap, (0.25 * (level + 1) - first[prompt], rank, level + 1, prompt))
    assert dict(zip(ids.tolist(), units.tolist())) == wanted
    np.testing.assert_array_equal(ids, ids[np.lexsort((tie_rank[ids], -first[ids]))])


def test_proximal_plan_spreads_and_the_linear_one_does_not() -> None:
    margin, target = np.array([0.5, 0.45, 0.4]), np.full(3, 1.0)
    ids, units = proximal_plan(margin, target, 0.2, np.arange(3), 4, 6)
    assert (ids.tolist(), units.tolist()) == ([0, 1, 2], [2, 2, 2])
    assert ranked_plan(margin, 0.0, np.arange(3), 4, 6)[1].tolist() == [4, 2]


@settings(max_examples=80, deadline=None)
@given(pool=st.integers(1, 8), seed=st.integers(0, 9999), forced=st.booleans())
def test_ranked_plan_with_a_cap_per_prompt(pool: int, seed: int, forced: bool) -> None:
    rng = np.random.default_rng(seed)
    slope, price, caps = (
        rng.choice([0.1, 0.3, 0.6], pool),
        float(rng.choice([0.0, 0.3, 0.7])),
        rng.integers(1, 4, pool),
    )
    capacity = int(rng.integers(1, caps.sum() + 1))
    ids, units = ranked_plan(
        slope, price, rng.permutation(pool), caps, capacity, capacity if forced else 0
    )
    order = np.argsort(-slope, kind="stable")
    best, left = 0.0, capacity
    for prompt in order:  # fractional knapsack with unit weights: greedy is optimal
        take = min(int(caps[prompt]), left) if forced or slope[prompt] > price else 0
        best, left = best + take * (slope[prompt] - price), left - take
    assert float(((slope - price)[ids] * units).sum()) == pytest.approx(best, abs=1e-12)
    assert (units <= caps[ids]).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    levels=st.sampled_from([2, 50, 10**9]),
    share=st.floats(0.0, 1.0),
    order=st.sampled_from([-1, 0, 1]),
)
def test_partial_selection_is_exact_also_where_the_guess_fails(
    seed: int, levels: int, share: float, order: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, 70_000) / levels
    if order:  # sorted input: a strided sample is as far from random as it can be
        values = np.sort(values)[::order]
        values[:: values.shape[0] // 16384] = rng.choice([0.0, 1.0])
    count = max(1, int(share * values.shape[0]))
    assert _kth_largest(values, count) == np.sort(values)[values.shape[0] - count]


def test_selection_among_a_million_ties_follows_the_tie_rank() -> None:
    slope, rng = np.full(200_000, 0.5), np.random.default_rng(0)
    slope[:10] = 0.9
    tie_rank = rng.permutation(200_000)
    ids, units = ranked_plan(slope, 0.1, tie_rank, 2, 2001)
    assert units.sum() == 2001
    np.testing.assert_array_equal(ids, np.lexsort((tie_rank, -slope))[:1001])


def test_resolve_serves_the_largest_deficits() -> None:
    c, exposure = np.array([0.5, 0.5, 0.01, 0.0]), np.array([4, 0, 0, 0])
    ids, units = resolve_plan(
        c, exposure, EXPONENTIAL, np.arange(4), 1, units_left=4, rounds_left=4, capacity_units=2
    )
    assert (ids.tolist(), units.tolist()) == ([1], [1])
    deficit = water_filling(c, 4, 4, start=exposure)
    assert deficit.argmax() == 1
    assert deficit.sum() == pytest.approx(4.0)


@settings(max_examples=60, deadline=None)
@given(
    pool=st.integers(1, 40),
    most=st.integers(1, 8),
    share=st.floats(0.0, 1.0),
    rounds=st.integers(1, 9),
    levels=st.sampled_from([4, 10**9]),
    seed=st.integers(0, 9999),
)
def test_resolve_is_the_linear_plan_of_the_deficits(
    pool: int, most: int, share: float, rounds: int, levels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    c, exposure = rng.integers(0, levels + 1, pool) / levels, rng.integers(0, 5, pool)
    tie_rank, left = rng.permutation(pool), max(1, int(share * pool * most * rounds))
    caps = rng.integers(1, most + 1, pool) if seed % 2 else most
    room = int(rng.integers(1, pool * most + 1))
    got = resolve_plan(c, exposure, EXPONENTIAL, tie_rank, caps, left, rounds, room)
    deficit = water_filling(c, left, rounds * int(np.max(caps)), start=exposure)
    wanted = np.minimum(np.maximum(np.ceil(deficit - 1e-9), 1.0), caps).astype(np.int64)
    plan = ranked_plan(deficit, 0.0, tie_rank, wanted, fair_units(left, rounds, room))
    for have, want in zip(got, plan):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.01, 0.01), (0.01, 3.0), (7.5, 2.25)])
def test_beta_draws_follow_the_law(a: float, b: float) -> None:
    from scipy import stats

    count = 400_000
    got = beta_draws(np.random.default_rng(5), np.full(count, a), np.full(count, b))
    assert ((got >= 0.0) & (got <= 1.0)).all()
    points = np.array([1e-200, 1e-20, 1e-3, 0.1, 0.5, 0.8, 0.99, 1.0 - 1e-9])
    law = stats.beta(a, b).cdf(points)
    share = (got[:, None] <= points).mean(axis=0)
    assert (np.abs(share - law) <= 4.5 * np.sqrt(law * (1.0 - law) / count) + 1e-12).all()


@pytest.mark.parametrize("family", list(UTILITIES))
def test_water_filling_from_a_start_finishes_what_was_begun(family: str) -> None:
    utility, c = utility_of(family), np.array([0.9, 0.3, 0.05, 0.0])
    whole = water_filling(c, 20.0, 50.0, utility)
    part = np.floor(0.5 * whole)
    np.testing.assert_allclose(
        part + water_filling(c, 20.0 - part.sum(), 50.0, utility, start=part), whole, atol=1e-9
    )


def test_thompson_score_is_a_draw_of_the_utility_slope() -> None:
    a, b, exposure = np.full(100_000, 3.0), np.full(100_000, 5.0), np.full(100_000, 2)
    score = thompson_score(a, b, exposure, 1e-9, EXPONENTIAL, np.random.default_rng(0))
    wanted = 4.0 * 3.0 * 5.0 / (8.0 * 9.0)
    assert score.mean() == pytest.approx(wanted, abs=4 * score.std() / np.sqrt(100_000))
    assert ((score >= 0.0) & (score <= 1.0)).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"forgetting": 0.9, "spend_down": True},
        {"plan": "resolve"},
        {"proximal": 0.05, "spend_down": True},
        {"explore_units": 1},
        {"utility": "hyperbolic", "value": "live", "refit_prior_every": 3},
    ],
)
def test_permuting_prompts_with_their_tie_ranks_permutes_every_plan(options: dict) -> None:
    pool, rounds = 40, 25
    one, other = (
        CeroScheduler(pool, rounds, rounds * 24, 2, 3, 30, seed=1, step_size=0.4, **options)
        for _ in range(2)
    )
    # prompt i of `other` is prompt shuffle[i] of `one`
    shuffle = np.random.default_rng(5).permutation(pool)
    other._tie_rank = one._tie_rank[shuffle]
    rates, rng = np.random.default_rng(6).random(pool), np.random.default_rng(7)
    while (allocation := one.next_round()) is not None:
        mirrored = other.next_round()
        assert mirrored is not None
        np.testing.assert_array_equal(shuffle[mirrored.prompt_ids], allocation.prompt_ids)
        np.testing.assert_array_equal(mirrored.rollouts, allocation.rollouts)
        rollouts = dense(allocation, pool)
        wins = rng.binomial(rollouts, rates)
        one.update(wins, rollouts)
        other.update(wins[shuffle], rollouts[shuffle])
    assert other.next_round() is None
