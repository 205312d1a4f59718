"""Counting, forgetting, fractional rewards, and what `value` predicts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cero_rl.scheduler import BetaPosterior


def test_counts_and_value() -> None:
    posterior = BetaPosterior(3)
    np.testing.assert_allclose(posterior.value(), 1.0 / 6.0)
    posterior.update(np.array([0, 3, 8]), np.array([0, 8, 8]))
    np.testing.assert_array_equal(posterior.a, [1, 4, 9])
    np.testing.assert_array_equal(posterior.b, [1, 6, 1])
    np.testing.assert_allclose(posterior.mean(), [0.5, 0.4, 0.9])
    np.testing.assert_allclose(posterior.value(), [1 / 6, 24 / 110, 9 / 110])


def test_fractional_rewards_and_float_counts() -> None:
    posterior = BetaPosterior(2, prior=(2.0, 1.0))
    posterior.update(np.array([0.25, 2.5], dtype=np.float32), np.array([1.0, 4.0]))
    np.testing.assert_allclose(posterior.a, [2.25, 4.5])
    np.testing.assert_allclose(posterior.b, [1.75, 2.5])


@given(rho=st.floats(0.05, 1.0), prior=st.tuples(st.floats(0.1, 5.0), st.floats(0.1, 5.0)))
def test_forgetting_goes_toward_the_prior(rho: float, prior: tuple[float, float]) -> None:
    posterior = BetaPosterior(1, prior, rho)
    wanted_a, wanted_b = prior
    for wins, tries in ((3, 4), (0, 0), (1, 5)):
        posterior.update(np.array([wins]), np.array([tries]))
        wanted_a = prior[0] + rho * (wanted_a - prior[0]) + wins
        wanted_b = prior[1] + rho * (wanted_b - prior[1]) + tries - wins
    assert posterior.a[0] == pytest.approx(wanted_a)
    assert posterior.b[0] == pytest.approx(wanted_b)
    if rho < 0.9:
        for _ in range(400):
            posterior.update(np.zeros(1), np.zeros(1, dtype=np.int64))
        assert (posterior.a[0], posterior.b[0]) == pytest.approx(prior)


@pytest.mark.parametrize("group", [2, 5])
@pytest.mark.parametrize("counts", [(0, 0), (3, 8), (8, 8)])
def test_value_is_the_expected_variance_of_the_next_group(
    group: int, counts: tuple[int, int]
) -> None:
    posterior = BetaPosterior(1)
    posterior.update(np.array([counts[0]]), np.array([counts[1]]))
    rng = np.random.default_rng(7)
    rates = rng.beta(posterior.a[0], posterior.b[0], size=200_000)
    variances = (rng.random((200_000, group)) < rates[:, None]).var(axis=1, ddof=1)
    standard_error = variances.std() / np.sqrt(200_000)
    assert abs(variances.mean() - posterior.value()[0]) < 4.0 * standard_error


@pytest.mark.parametrize(
    "wins, tries, message",
    [
        ([1, 0], [0, 0], "prompt 0: 1 successes of 0 trials"),
        ([0, -1], [0, 3], "prompt 1"),
        ([0, np.nan], [0, 3], "prompt 1"),
        ([0, 0], [0, 1.5], "whole numbers"),
        ([0, 0], [0, np.inf], "whole numbers"),
        ([0, 0, 0], [0, 0, 0], "shape"),
        (["a", "b"], [1, 1], "dtype"),
    ],
)
def test_bad_counts(wins: list, tries: list, message: str) -> None:
    posterior = BetaPosterior(2)
    with pytest.raises(ValueError, match=message):
        posterior.update(np.array(wins), np.array(tries))
    np.testing.assert_array_equal(posterior.a, [1, 1])


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="prior"):
        BetaPosterior(2, prior=(0.0, 1.0))
    for rho in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="forgetting"):
            BetaPosterior(2, forgetting=rho)
