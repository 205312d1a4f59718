"""The worth that matches an estimator: closed forms against numerical integration, what the
estimator really gives a group, and fixed weights on top."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scheduler_sim import play
from scipy.integrate import quad
from scipy.special import betaln
from scipy.stats import binom

from cero_rl.scheduler import (
    CeroOptions,
    CeroScheduler,
    expected_deviation,
    maxrl_worth,
    pass_at_k_worth,
)
from cero_rl.scheduler.posterior import expected_variance
from cero_rl.scheduler.value import value_function

COUNTS = [(1.0, 1.0), (0.02, 3.0), (9.0, 2.5), (0.5, 0.5), (130.0, 4.0), (40.0, 6000.0)]
P = np.linspace(0.0, 1.0, 200_001)


def expectation(f: Callable[[float], float], a: float, b: float) -> float:
    """E[f(p)] under Beta(a, b), by quadrature in t with p = t^4 / (t^4 + (1-t)^4), which leaves no
    singularity at the ends."""

    def integrand(t: float) -> float:
        left, right = t**4, (1.0 - t) ** 4
        p, q = left / (left + right), right / (left + right)
        if p == 0.0 or q == 0.0:
            return 0.0
        slope = 4.0 * (t * (1.0 - t)) ** 3 / (left + right) ** 2
        log_density = (a - 1.0) * np.log(p) + (b - 1.0) * np.log(q) - betaln(a, b)
        return f(p) * float(np.exp(log_density)) * slope

    mean = a / (a + b)
    middle = mean**0.25 / (mean**0.25 + (1.0 - mean) ** 0.25)
    return quad(integrand, 0.0, 1.0, points=[middle], limit=500, epsabs=1e-14, epsrel=1e-12)[0]


def one(value: np.ndarray) -> float:
    return float(value[0])


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_closed_forms_are_the_integrals(counts: tuple[float, float]) -> None:
    a, b = (np.array([count]) for count in counts)
    got = one(expected_deviation(a, b))
    assert got == pytest.approx(
        expectation(lambda p: 0.5 * (p * (1 - p)) ** 0.5, *counts), rel=1e-8
    )
    for n in (2, 4, 8, 16):
        largest = np.max(1.0 - (1.0 - P) ** n - P)
        wanted = expectation(lambda p, n=n: 1.0 - (1.0 - p) ** n - p, *counts) / (4.0 * largest)
        assert one(maxrl_worth(a, b, n)) == pytest.approx(wanted, rel=1e-7)
    for k in (1, 2, 4, 32):
        largest = np.max(k * P * (1.0 - P) ** k)
        wanted = expectation(lambda p, k=k: k * p * (1.0 - p) ** k, *counts) / (4.0 * largest)
        assert one(pass_at_k_worth(a, b, k)) == pytest.approx(wanted, rel=1e-7)


def test_deviation_over_the_whole_range_of_counts() -> None:
    from math import exp, lgamma

    for a in np.geomspace(1e-2, 1e4, 25):
        for b in np.geomspace(1e-2, 1e4, 25):
            logs = lgamma(a + 0.5) - lgamma(a) + lgamma(b + 0.5) - lgamma(b)
            wanted = 0.5 * exp(logs) / (a + b)
            assert one(expected_deviation(np.array([a]), np.array([b]))) == pytest.approx(
                wanted, rel=2e-9
            )


def test_all_lie_in_a_quarter_and_reach_it() -> None:
    sure = 1e7
    p = np.linspace(1e-4, 1 - 1e-4, 4001)
    a, b = sure * p, sure * (1.0 - p)
    for name, group, k in (
        ("deviation", 8, 1),
        ("maxrl", 2, 1),
        ("maxrl", 16, 1),
        ("pass_at_k", 8, 1),
        ("pass_at_k", 8, 16),
    ):
        worth = value_function(name, group, k)(a, b)  # pyright: ignore[reportArgumentType]
        assert worth.min() >= 0.0
        assert worth.max() <= 0.25 + 1e-12
        assert worth.max() == pytest.approx(0.25, rel=1e-3)


def test_special_cases_are_the_variance() -> None:
    a, b = np.array([0.3, 2.0, 7.0]), np.array([5.0, 2.0, 0.4])
    np.testing.assert_allclose(maxrl_worth(a, b, 2), expected_variance(a, b), rtol=1e-12)
    np.testing.assert_allclose(pass_at_k_worth(a, b, 1), expected_variance(a, b), rtol=1e-12)
    np.testing.assert_array_equal(maxrl_worth(a, b, 1), 0.0)


@pytest.mark.parametrize("p", [0.03, 0.3, 0.5, 0.9])
def test_they_are_the_mass_of_the_estimators_advantages(p: float) -> None:
    """Coefficient of the right answers of a group of n: sum of their advantages over n. Centred:
    p(1-p) (n-1)/n; over the mean: pass@n - p; over the deviation: near its limit for large n."""
    n = 64
    right = np.arange(n + 1)
    chance, share = binom.pmf(right, n, p), right / n
    spread = np.sqrt(share * (1.0 - share))
    centred = float(chance @ (share * (1.0 - share)))
    assert centred == pytest.approx(p * (1 - p) * (n - 1) / n)
    over_mean = float(chance @ np.where(right > 0, 1.0 - share, 0.0))
    sure = np.array([1e9 * p]), np.array([1e9 * (1 - p)])
    largest = np.max(1.0 - (1.0 - P) ** n - P)
    assert one(maxrl_worth(*sure, n)) == pytest.approx(over_mean / (4.0 * largest), rel=1e-5)
    assert 0.5 * float(chance @ spread) == pytest.approx(one(expected_deviation(*sure)), rel=0.25)


# --- fixed weights


def build(**options) -> CeroScheduler:
    return CeroScheduler(60, 20, 20 * 40, 4, 1, 40, spend_down=True, seed=1, **options)


@pytest.mark.parametrize("plan", ["duals", "resolve", "thompson"])
def test_weights_multiply_the_worth_and_move_the_budget(plan) -> None:
    weights = np.where(np.arange(60) < 20, 1.0, 0.2)
    plain, weighted = build(plan=plan), build(plan=plan, weights=weights)
    np.testing.assert_array_equal(weighted.value, plain.value * weights)
    share = [
        np.sum(play(each, np.full(60, 0.5), 0), axis=0)[:20].sum() / 800
        for each in (plain, weighted)
    ]
    assert share[1] > share[0] + 0.1


def test_weights_of_one_change_nothing() -> None:
    rates = np.random.default_rng(0).random(60)
    ones, none = build(weights=np.ones(60), value="deviation"), build(value="deviation")
    np.testing.assert_array_equal(play(ones, rates, 0), play(none, rates, 0))


def test_weights_and_k_are_part_of_the_saved_identity() -> None:
    weights = np.linspace(0.0, 1.0, 60)
    same, other = build(weights=weights), build(weights=weights[::-1])
    same.load_state_dict(build(weights=weights).state_dict())
    for one_, two in (
        (other.state_dict(), same),
        (build().state_dict(), same),
        (same.state_dict(), build()),
    ):
        with pytest.raises(ValueError, match="field 'weights'"):
            two.load_state_dict(one_)
    with pytest.raises(ValueError, match="'value_name' is 'pass_at_2'"):
        build(value="pass_at_k", pass_k=3).load_state_dict(
            build(value="pass_at_k", pass_k=2).state_dict()
        )
    with pytest.raises(ValueError, match="cannot be exchanged"):
        same.set_pool(np.arange(60))


@pytest.mark.parametrize(
    "weights", [np.ones(3), np.full(60, 1.5), np.full(60, np.nan), np.full(60, -0.1)], ids=str
)
def test_bad_weights(weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"weights: wanted 60 numbers in \[0, 1\]"):
        build(weights=weights)


def test_bad_k() -> None:
    with pytest.raises(ValueError, match="pass_k = 0"):
        CeroOptions(value="pass_at_k", pass_k=0)
