"""Water-filling, exact greedy and brute force agree."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cero_rl.scheduler import (
    HYPERBOLIC,
    LOGARITHMIC,
    Utility,
    greedy_integer,
    utility_slope,
    utility_value,
    water_filling,
)

slopes = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 3.0)), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(c=slopes, budget=st.integers(0, 60), cap=st.integers(0, 9))
def test_water_filling_meets_its_optimality_conditions(
    c: list[float], budget: int, cap: int
) -> None:
    rate = np.array(c)
    z = water_filling(rate, budget, cap)
    assert ((z >= 0) & (z <= cap)).all()
    assert not z[rate == 0].any()
    assert z.sum() == pytest.approx(min(budget, cap * np.count_nonzero(rate)), abs=1e-9)
    can_grow, can_shrink = (z < cap) & (rate > 0), z > 0
    if can_grow.any() and can_shrink.any():
        assert utility_slope(rate, z)[can_grow].max() <= utility_slope(rate, z)[
            can_shrink
        ].min() * (1 + 1e-9)


@settings(max_examples=150, deadline=None)
@given(c=slopes, budget=st.integers(0, 60), cap=st.integers(0, 9))
def test_greedy_equals_water_filling_to_rounding(c: list[float], budget: int, cap: int) -> None:
    rate = np.array(c)
    filled, bought = water_filling(rate, budget, cap), greedy_integer(rate, budget, cap)
    best, integral = utility_value(rate, filled).sum(), utility_value(rate, bought).sum()
    assert integral <= best + 1e-9
    assert integral >= utility_value(rate, np.floor(filled + 1e-9)).sum() - 1e-9
    assert bought.sum() == min(budget, cap * np.count_nonzero(rate))
    assert bought.max() <= cap


def test_equal_prompts_agree_within_one_unit() -> None:
    rate = np.full(7, 0.4)
    assert np.abs(greedy_integer(rate, 24, 10) - water_filling(rate, 24, 10)).max() < 1


@settings(max_examples=60, deadline=None)
@given(
    c=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=4),
    budget=st.integers(0, 7),
    cap=st.integers(1, 3),
)
def test_greedy_is_exact(c: list[float], budget: int, cap: int) -> None:
    rate = np.array(c)
    plans = np.array(
        [plan for plan in itertools.product(range(cap + 1), repeat=len(c)) if sum(plan) <= budget]
    )
    wanted = utility_value(rate, plans).sum(axis=1).max()
    assert utility_value(rate, greedy_integer(rate, budget, cap)).sum() == pytest.approx(
        wanted, abs=1e-12
    )


def test_bad_inputs() -> None:
    for solver in (water_filling, greedy_integer):
        for c, budget in (([-1.0], 3), ([np.inf], 3), ([1.0], -3), ([[1.0]], 3)):
            with pytest.raises(ValueError, match="must be"):
                solver(c, budget, 2)


@settings(max_examples=80, deadline=None)
@given(
    c=slopes,
    budget=st.integers(0, 40),
    cap=st.integers(1, 9),
    family=st.sampled_from([LOGARITHMIC, HYPERBOLIC]),
)
def test_every_family_agrees_with_its_greedy(
    c: list[float], budget: int, cap: int, family: Utility
) -> None:
    rate = np.array(c)
    filled, bought = (
        water_filling(rate, budget, cap, family),
        greedy_integer(rate, budget, cap, family),
    )
    assert filled.sum() == pytest.approx(min(budget, cap * np.count_nonzero(rate)), abs=1e-9)
    assert bought.sum() == min(budget, cap * np.count_nonzero(rate))
    best, integral = family.value(rate, filled).sum(), family.value(rate, bought).sum()
    assert integral <= best + 1e-9
    assert integral >= family.value(rate, np.floor(filled + 1e-9)).sum() - 1e-9
    can_grow, can_shrink = (filled < cap) & (rate > 0), filled > 0
    if can_grow.any() and can_shrink.any():
        assert family.slope(rate, filled)[can_grow].max() <= family.slope(rate, filled)[
            can_shrink
        ].min() * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(
    c=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=4),
    budget=st.integers(0, 7),
    family=st.sampled_from([LOGARITHMIC, HYPERBOLIC]),
)
def test_every_familys_greedy_is_exact(c: list[float], budget: int, family: Utility) -> None:
    rate = np.array(c)
    plans = np.array(
        [plan for plan in itertools.product(range(4), repeat=len(c)) if sum(plan) <= budget]
    )
    wanted = family.value(rate, plans).sum(axis=1).max()
    assert family.value(rate, greedy_integer(rate, budget, 3, family)).sum() == pytest.approx(
        wanted, abs=1e-12
    )
