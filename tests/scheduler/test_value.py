"""What a rollout is worth: closed forms against draws from the posterior."""

import numpy as np
import pytest

from cero_rl.scheduler import CeroScheduler, graded_variance, hit_utility, live_probability
from cero_rl.scheduler.posterior import expected_variance
from cero_rl.scheduler.value import value_function


@pytest.mark.parametrize("counts", [(1.0, 1.0), (0.3, 4.0), (9.0, 2.5)])
def test_group_probabilities_by_monte_carlo(counts: tuple[float, float]) -> None:
    a, b = np.array([counts[0]]), np.array([counts[1]])
    rates, group = np.random.default_rng(0).beta(*counts, size=400_000), 6
    for worth, chance in (
        (hit_utility(a, b, group), 1.0 - (1.0 - rates) ** group),
        (live_probability(a, b, group), 1.0 - rates**group - (1.0 - rates) ** group),
    ):
        assert abs(4.0 * worth[0] - chance.mean()) < 4.0 * chance.std() / np.sqrt(chance.size)
    assert live_probability(a, b, 1)[0] == pytest.approx(0.0, abs=1e-15)
    # Two rollouts differ with probability 2 p (1 - p): then `live` is half of the variance.
    assert live_probability(a, b, 2)[0] == pytest.approx(
        0.5 * expected_variance(a, b)[0], rel=1e-12
    )


def test_graded_variance_is_the_binary_one_for_binary_rewards() -> None:
    a, b = np.array([1.0, 4.0, 2.5]), np.array([1.0, 2.0, 7.5])
    np.testing.assert_allclose(graded_variance(a, b, a), expected_variance(a, b), rtol=1e-14)


def test_graded_variance_is_the_expectation_under_a_dirichlet() -> None:
    """Rewards on the grid 0, .3, 1: the base puts 1 each on 0 and 1, and the evidence its counts on
    the three."""
    levels, counts = np.array([0.0, 0.3, 1.0]), np.array([1 + 2, 5, 1 + 1])
    laws = np.random.default_rng(0).dirichlet(counts, size=300_000)
    variances = laws @ levels**2 - (laws @ levels) ** 2
    a, total, squares = (counts * levels).sum(), counts.sum(), (counts * levels**2).sum()
    got = graded_variance(np.array([a]), np.array([total - a]), np.array([squares]))[0]
    assert abs(got - variances.mean()) < 4.0 * variances.std() / np.sqrt(variances.size)


def test_scheduler_with_graded_rewards() -> None:
    scheduler = CeroScheduler(2, 4, 32, 4, 1, 8, value="graded", prior=(1.0, 1.0), price_init=0.0)
    allocation = scheduler.next_round()
    assert allocation is not None
    with pytest.raises(ValueError, match="squares"):
        scheduler.update([2.0, 2.0], [4, 4])
    # Both prompts have mean 1/2; the rewards of the first are all 1/2, those of the second 0 and 1.
    scheduler.update([2.0, 2.0], [4, 4], squares=[1.0, 2.0])
    np.testing.assert_allclose(scheduler.value, [(2 / 6 - 0.25) * 6 / 7, 0.25 * 6 / 7])
    copy = CeroScheduler(2, 4, 32, 4, 1, 8, value="graded", prior=(1.0, 1.0), price_init=0.0)
    copy.load_state_dict(scheduler.state_dict())
    np.testing.assert_array_equal(copy.value, scheduler.value)


def test_plug_in_function_and_unknown_name() -> None:
    def lower_half(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return 0.25 * a / (a + b)

    scheduler = CeroScheduler(3, 4, 32, 4, 1, 8, value=lower_half)
    np.testing.assert_allclose(scheduler.value, 0.125)
    assert str(scheduler.state_dict()["value_name"]).endswith("lower_half")
    with pytest.raises(ValueError, match="value = 'entropy'"):
        value_function("entropy", 4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="'value_name'"):
        CeroScheduler(3, 4, 32, 4, 1, 8, value="hit").load_state_dict(scheduler.state_dict())
