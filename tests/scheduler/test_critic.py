"""The posterior as a critic: exact formulas, bias and variance by enumeration, and what it reads
off worlds whose truth is known."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from cero_rl.scheduler.critic import (
    CriticOptions,
    GroupSums,
    PosteriorCritic,
    leave_one_out,
)

RNG = np.random.default_rng


def sums_of(ids: np.ndarray, rewards: list[np.ndarray]) -> GroupSums:
    return GroupSums(
        np.asarray(ids, dtype=np.int64),
        np.array([r.sum() for r in rewards], dtype=np.float64),
        np.array([(r**2).sum() for r in rewards], dtype=np.float64),
        np.array([len(r) for r in rewards], dtype=np.int64),
    )


def draw(rates: np.ndarray, ids: np.ndarray, size: int, rng: np.random.Generator) -> GroupSums:
    wins = rng.binomial(size, rates[ids]).astype(np.float64)
    return GroupSums(ids.astype(np.int64), wins, wins.copy(), np.full(ids.shape, size))


def baselines(rewards: list[float], mean: float, strength: float) -> np.ndarray:
    offsets = np.array([0, len(rewards)])
    return leave_one_out(np.array(rewards), offsets, np.array([mean]), np.array([strength]))


# --- the baseline


def test_a_baseline_is_the_shrunk_mean_of_the_others():
    rewards = RNG(0).random(11)
    offsets, mean, strength = np.array([0, 4, 5, 5, 11]), np.array([0.2, 0.9, 0.4, 0.6]), 1.7
    found = leave_one_out(rewards, offsets, mean, np.full(4, strength))
    for group, (first, last) in enumerate(pairwise(offsets)):
        for j in range(first, last):
            others = np.delete(rewards[first:last], j - first)
            wanted = (strength * mean[group] + others.sum()) / (strength + others.size)
            assert found[j] == pytest.approx(wanted, rel=1e-12)


def test_its_two_ends_are_rloo_and_spo():
    assert baselines([1, 0, 0, 1], 0.3, 1e-12) == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1 / 3])
    assert baselines([1, 0, 0, 1], 0.3, 1e12) == pytest.approx([0.3] * 4)
    assert baselines([1], 0.3, 2.0) == pytest.approx([0.3])


def estimates(rate: float, size: int, mean: float, strength: float) -> tuple[float, float]:
    """Mean and variance of the policy gradient's estimate by enumeration of all groups, for a
    policy that is right with sigmoid(theta): its score is r - rate, its gradient rate (1-rate)."""
    first = second = 0.0
    for rewards in product((0.0, 1.0), repeat=size):
        chance = float(np.prod([rate if r else 1 - rate for r in rewards]))
        scores = np.array(rewards) - rate
        found = float((np.array(rewards) - baselines(list(rewards), mean, strength)) @ scores)
        first += chance * found / size
        second += chance * (found / size) ** 2
    return first, second - first**2


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("rate", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("mean", [0.0, 0.37, 1.0])
def test_the_gradient_is_unbiased_whatever_is_believed(size: int, rate: float, mean: float):
    for strength in (0.3, 2.0, 50.0):
        found, _ = estimates(rate, size, mean, strength)
        assert found == pytest.approx(rate * (1 - rate), rel=1e-10)


@pytest.mark.parametrize("size", [2, 4])
def test_a_right_belief_takes_variance_away(size: int):
    for rate in (0.1, 0.5, 0.8):
        rloo, shrunk = (estimates(rate, size, rate, k)[1] for k in (1e-9, 4.0))
        assert shrunk < 0.95 * rloo


# --- what is predicted


def test_a_prediction_does_not_see_the_group_it_is_for():
    critic = PosteriorCritic(40, CriticOptions(), np.arange(40) % 3)
    rng, rates = RNG(1), RNG(2).random(40)
    for _ in range(5):
        groups = draw(rates, rng.permutation(40)[:20], 3, rng)
        critic.observe(groups, critic.predict(groups))
        critic.advance(1.0)
    groups = draw(rates, rng.permutation(40)[:20], 3, rng)
    before = critic.predict(groups)
    for j in range(20):
        other = groups.sums.copy()
        other[j] = 3.0 - other[j]
        changed = critic.predict(GroupSums(groups.prompt_ids, other, other.copy(), groups.counts))
        assert changed.mean[j] == before.mean[j]
        assert changed.strength[j] == before.strength[j]


def test_an_unseen_prompt_is_predicted_by_its_cell():
    cells = np.repeat([0, 1], 50)
    rates = np.repeat([0.1, 0.8], 50)
    critic, rng = PosteriorCritic(100, CriticOptions(), cells), RNG(3)
    groups = draw(rates, np.r_[0:40, 50:90], 4, rng)
    critic.observe(groups, critic.predict(groups))
    nobody = GroupSums(np.array([45, 95]), np.zeros(2), np.zeros(2), np.zeros(2, np.int64))
    low, high = critic.predict(nobody).mean
    assert low == pytest.approx(0.1, abs=0.06)
    assert high == pytest.approx(0.8, abs=0.06)


def test_the_first_step_already_has_a_baseline_from_its_other_groups():
    critic = PosteriorCritic(400, CriticOptions())
    groups = draw(np.full(400, 0.1), np.arange(200), 1, RNG(4))
    assert critic.predict(groups).mean == pytest.approx(0.1, abs=0.06)


@pytest.mark.parametrize(("a", "b"), [(0.4, 0.8), (1.0, 1.0), (6.0, 3.0)])
def test_the_strength_of_a_prior_is_that_of_the_pool(a: float, b: float):
    """Rates drawn from Beta(a, b): a prior is worth a + b rollouts."""
    rng = RNG(5)
    rates = rng.beta(a, b, 60_000)
    critic = PosteriorCritic(60_000, CriticOptions())
    for first in range(0, 60_000, 5_000):
        groups = draw(rates, np.arange(first, first + 5_000), 4, rng)
        critic.observe(groups, critic.predict(groups))
    assert critic.prior_strength == pytest.approx(a + b, rel=0.1)


def test_graded_rewards_have_the_same_strength_from_their_variances():
    rng = RNG(6)
    means = rng.uniform(0.2, 0.8, 20_000)  # variance between prompts .03
    noise = rng.uniform(-0.2, 0.2, (20_000, 3))  # and within .04 / 3
    critic = PosteriorCritic(20_000, CriticOptions())
    for first in range(0, 20_000, 2_000):
        rows = np.arange(first, first + 2_000)
        groups = sums_of(rows, list(means[rows, None] + noise[rows]))
        critic.observe(groups, critic.predict(groups))
    assert critic.prior_strength == pytest.approx((0.04 / 3) / 0.03, rel=0.1)


def walk(drift: float, steps: int = 300) -> PosteriorCritic:
    """A pool whose prompts are visited every 8 updates; rates are drawn anew with probability
    `drift` an update."""
    rng = RNG(7)
    rates = rng.beta(1, 1, 320)
    critic = PosteriorCritic(320, CriticOptions())
    for step in range(steps):
        new = rng.random(320) < drift
        rates[new] = rng.beta(1, 1, int(new.sum()))
        groups = draw(rates, np.arange(step % 8, 320, 8), 2, rng)
        critic.observe(groups, critic.predict(groups))
        critic.advance(1.0)
    return critic


def test_forgetting_follows_the_drift():
    at_rest, slow, fast = (
        walk(drift).metrics_now()["baseline/half_life"] for drift in (0, 0.01, 0.08)
    )
    assert at_rest >= 512
    assert 32 <= slow <= 128
    assert fast == 8


def test_what_it_knows_is_told():
    assert walk(0.0).metrics_now()["baseline/explained"] > 0.85
    assert walk(0.5).metrics_now()["baseline/explained"] < 0.2


def test_a_policy_that_stands_still_forgets_nothing():
    critic = PosteriorCritic(4, CriticOptions(half_life=1.0))
    groups = sums_of(np.arange(4), [np.ones(2)] * 4)
    critic.observe(groups, critic.predict(groups))
    critic.advance(0.0)
    assert critic.predict(groups).seen.tolist() == [2.0] * 4
    critic.advance(1.0)
    assert critic.predict(groups).seen.tolist() == [1.0] * 4


def test_groups_without_a_reward_change_nothing():
    critic, again = (PosteriorCritic(6, CriticOptions()) for _ in range(2))
    groups = sums_of(np.arange(3), [np.array([1.0, 0.0]), np.ones(1), np.zeros(2)])
    more = sums_of(np.arange(4), [np.array([1.0, 0.0]), np.ones(1), np.zeros(2), np.zeros(0)])
    critic.observe(groups, critic.predict(groups))
    again.observe(more, again.predict(more))
    for name, value in critic.state_dict().items():
        assert np.array_equal(value, again.state_dict()[name]), name


def test_given_numbers_are_used_as_given():
    critic = PosteriorCritic(8, CriticOptions(strength=3.0, half_life=5.0))
    groups = sums_of(np.arange(8), [np.ones(2)] * 8)
    critic.observe(groups, critic.predict(groups))
    critic.advance(5.0)
    predicted = critic.predict(groups)
    assert predicted.strength.tolist() == [3.0] * 8
    assert predicted.seen == pytest.approx([1.0] * 8)
    assert predicted.mean == pytest.approx((3.0 * predicted.prior + 1.0) / 4.0)


# --- state


def test_a_state_goes_on_bit_for_bit():
    through, cut = walk(0.01), walk(0.01, steps=150)
    resumed = PosteriorCritic(320, CriticOptions())
    resumed.load_state_dict({k: np.array(v) for k, v in cut.state_dict().items()})
    assert all(np.array_equal(v, resumed.state_dict()[k]) for k, v in cut.state_dict().items())
    assert through.state_dict().keys() == resumed.state_dict().keys()


@pytest.mark.parametrize(
    ("pool", "cells", "options"),
    [
        (321, None, CriticOptions()),
        (320, np.arange(320) % 2, CriticOptions()),
        (320, None, CriticOptions(half_life=8.0)),
    ],
)
def test_another_critics_state_is_refused(
    pool: int, cells: np.ndarray | None, options: CriticOptions
):
    with pytest.raises(ValueError, match="shape"):
        PosteriorCritic(pool, options, cells).load_state_dict(walk(0.0, steps=2).state_dict())


@pytest.mark.parametrize(
    "bad", [{"strength": 0.0}, {"half_life": -1.0}, {"strength": float("nan")}]
)
def test_options_out_of_range_are_refused(bad: dict[str, float]):
    with pytest.raises(ValueError, match="wanted a number above 0"):
        CriticOptions(**bad)
    with pytest.raises(ValueError, match="cells"):
        PosteriorCritic(4, CriticOptions(), np.zeros(3, np.int64))
