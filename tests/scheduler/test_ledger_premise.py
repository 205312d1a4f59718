"""The budget ledger and the premise check."""

import numpy as np
import pytest
from scipy import stats

from cero_rl.scheduler.ledger import Ledger
from cero_rl.scheduler.premise import observed_variance, rank_correlation
from cero_rl.train.evaluate import pass_at_k


def test_ledger_books_and_refuses_overdraft():
    ledger = Ledger(100)
    ledger.book(60, failed=4)
    assert (ledger.spent_rollouts, ledger.remaining_rollouts, ledger.refunded_rollouts) == (
        60,
        40,
        4,
    )
    assert Ledger(**ledger.state()) == ledger
    assert ledger.leftover() == (
        "40 rollouts of the budget were not spent: 4 failed on the way, and the rounds left had no "
        "room for all of them (scheduler.capacity_rollouts)"
    )
    assert "no round asked for them" in str(Ledger(100).leftover())
    assert Ledger(100, 100, 4).leftover() is None
    with pytest.raises(ValueError, match="booking 41"):
        ledger.book(41)


def test_rank_correlation_equals_scipy_with_ties():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 6, 80).astype(float), rng.integers(0, 4, 80).astype(float)
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5.0)))


def test_observed_variance_is_the_unbiased_one():
    rewards = np.array([1.0, 0.0, 1.0, 1.0])
    assert observed_variance(np.array([3.0]), np.array([4]))[0] == pytest.approx(
        rewards.var(ddof=1)
    )
    graded = np.array([0.25, 0.5, 0.5, 1.0])
    sums = np.array([graded.sum()]), np.array([4]), np.array([(graded**2).sum()])
    assert observed_variance(*sums)[0] == pytest.approx(graded.var(ddof=1))
    assert observed_variance(sums[0], sums[1])[0] > 2 * graded.var(ddof=1), "a bound only"


def test_pass_at_k_is_unbiased():
    rng, n, k, p = np.random.default_rng(2), 6, 3, 0.3
    successes = rng.binomial(n, p, 200_000)
    estimate = pass_at_k(successes, np.full(successes.shape, n), k)
    assert estimate == pytest.approx(1 - (1 - p) ** k, abs=4e-3)
    assert np.isnan(pass_at_k(np.array([1]), np.array([2]), 3))
