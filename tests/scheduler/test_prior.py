"""Fitted priors recover what drew the rates; priors per prompt and their errors."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import betaln

from cero_rl.scheduler import BetaPosterior, fit_beta_prior, prior_from_pass_rate


def draw(a: float, b: float, prompts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    tries = rng.integers(0, 30, prompts)
    return rng.binomial(tries, rng.beta(a, b, prompts)), tries


@pytest.mark.parametrize("wanted", [(0.4, 0.8), (1.0, 1.0), (3.0, 9.0)])
@pytest.mark.parametrize("method", ["moments", "ml"])
def test_fit_recovers_the_prior(wanted: tuple[float, float], method) -> None:
    wins, tries = draw(*wanted, 20_000, 1)
    assert fit_beta_prior(wins, tries, method) == pytest.approx(wanted, rel=0.06)


@pytest.mark.parametrize("seed", range(5))
def test_maximum_likelihood_is_the_maximum(seed: int) -> None:
    wins, tries = draw(0.5, 2.0, 60, seed)

    def loss(log_counts: np.ndarray) -> float:
        a, b = np.exp(log_counts)
        return -float((betaln(a + wins, b + tries - wins) - betaln(a, b)).sum())

    best = minimize(
        loss,
        [0.0, 0.0],
        method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-13, "maxiter": 10_000},
    )
    fitted = fit_beta_prior(wins, tries, "ml")
    assert fitted == pytest.approx(tuple(np.exp(best.x)), rel=1e-4)
    assert loss(np.log(fitted)) <= best.fun + 1e-9


def test_degenerate_pools_stay_finite_and_positive() -> None:
    eights = np.full(10, 8)
    for wins in (np.zeros(10), eights, np.full(10, 4), np.array([0, 8] * 5)):
        for method in ("moments", "ml"):
            a, b = fit_beta_prior(wins.astype(np.int64), eights, method)
            assert 0.0 < a <= 1e6
            assert 0.0 < b <= 1e6


def test_fractional_rewards_fit_by_moments_only() -> None:
    wins, tries = np.array([0.5, 2.25, 3.0]), np.array([4, 4, 4])
    a, b = fit_beta_prior(wins, tries)
    assert a / (a + b) == pytest.approx(5.75 / 12)
    with pytest.raises(ValueError, match="whole successes"):
        fit_beta_prior(wins, tries, "ml")
    with pytest.raises(ValueError, match="at least 2 prompts"):
        fit_beta_prior([1, 0], [2, 0])
    with pytest.raises(ValueError, match="method = 'map'"):
        fit_beta_prior([1, 0], [2, 2], "map")  # pyright: ignore[reportArgumentType]


def test_priors_per_prompt() -> None:
    a, b = prior_from_pass_rate([0.25, np.nan, 1.0], strength=8.0)
    np.testing.assert_array_equal(a, [3.0, 1.0, 9.0])
    np.testing.assert_array_equal(b, [7.0, 1.0, 1.0])
    posterior = BetaPosterior(3, (a, b), forgetting=0.5)
    posterior.update([2, 0, 0], [4, 0, 4])
    posterior.update([0, 0, 0], [0, 0, 0])
    np.testing.assert_array_equal(posterior.a, [4.0, 1.0, 9.0])
    np.testing.assert_array_equal(posterior.b, [8.0, 1.0, 3.0])
    np.testing.assert_array_equal(posterior.evidence(), [[1.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
    posterior.set_prior((2.0, 5.0))
    np.testing.assert_array_equal(posterior.a, [3.0, 2.0, 2.0])
    np.testing.assert_array_equal(posterior.b, [6.0, 5.0, 7.0])


def test_bad_priors() -> None:
    for prior, message in (
        (([1.0, 2.0], 1.0), "shape"),
        (([1.0, -1.0, 2.0], 1.0), "positive finite"),
        ((1.0, np.inf), "positive finite"),
    ):
        with pytest.raises(ValueError, match=message):
            BetaPosterior(3, prior)
    for rates, strength, base, message in (
        ([1.5], 4.0, (1.0, 1.0), "pass_rate"),
        ([0.5], -1.0, (1.0, 1.0), "strength"),
        ([0.5], 1.0, (0.0, 1.0), "base"),
    ):
        with pytest.raises(ValueError, match=message):
            prior_from_pass_rate(rates, strength, base)
