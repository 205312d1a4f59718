"""Steps of equal signal: squared advantages by hand and by enumeration, and where a round is
cut."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cero_rl.scheduler.critic import (
    CriticOptions,
    GroupSums,
    PosteriorCritic,
    Prediction,
    leave_one_out,
)
from cero_rl.scheduler.live_signal import RECENT, LiveSignal, squared_advantages


def sums_of(*groups: list[float]) -> GroupSums:
    """Of groups of rewards; prompts are numbered."""
    return GroupSums(
        np.arange(len(groups)),
        np.array([sum(g) for g in groups], dtype=np.float64),
        np.array([sum(r * r for r in g) for g in groups], dtype=np.float64),
        np.array([len(g) for g in groups]),
    )


def predicted_of(mean: list[float], strength: list[float]) -> Prediction:
    m, k = np.array(mean), np.array(strength)
    return Prediction(np.arange(len(mean)), m, k, m, k, m[None])


# --- what is found


def test_squared_advantages_against_the_groups_mean_by_hand():
    # (1 - 1/4)^2 + 3 (1/4)^2 = 3/4; nothing of equal rewards, of one reward, of none
    assert squared_advantages(sums_of([1, 0, 0, 0]), None) == pytest.approx(0.75)
    assert squared_advantages(sums_of([1, 1, 1, 1], [0, 0], [1], []), None) == 0.0
    assert squared_advantages(sums_of([0.5, 0.25], [1, 0]), None) == pytest.approx(0.53125)


def test_squared_advantages_against_the_critic_by_hand():
    # a group of one: (1 - .3)^2 + (0 - .3)^2 of another, nothing of a group without a reward
    groups = sums_of([1], [0], [])
    assert squared_advantages(groups, predicted_of([0.3] * 3, [2.0] * 3)) == pytest.approx(0.58)
    # two right ones, expected .5 with strength 1: b = (.5 + 1) / 2 = 3/4 each
    assert squared_advantages(sums_of([1, 1]), predicted_of([0.5], [1.0])) == pytest.approx(0.125)


@pytest.mark.parametrize("strength", [0.25, 2.0, 64.0])
def test_they_are_those_of_the_leave_one_out_baseline(strength: float):
    rng = np.random.default_rng(0)
    groups = [rng.random(n).tolist() for n in (1, 2, 5, 8)]
    mean = [0.1, 0.9, 0.4, 0.6]
    flat = np.concatenate(groups)
    offsets = np.cumsum([0, *map(len, groups)])
    baseline = leave_one_out(flat, offsets, np.array(mean), np.full(4, strength))
    found = squared_advantages(sums_of(*groups), predicted_of(mean, [strength] * 4))
    assert found == pytest.approx(((flat - baseline) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize(("rate", "size"), [(0.3, 2), (0.8, 5)])
def test_a_group_holds_its_rollouts_less_one_times_the_variance(rate: float, size: int):
    mean = 0.0
    for rewards in product([0.0, 1.0], repeat=size):
        chance = np.prod([rate if r else 1 - rate for r in rewards])
        mean += chance * squared_advantages(sums_of(list(rewards)), None)
    assert mean == pytest.approx((size - 1) * rate * (1 - rate))


# --- where a round is cut


def cut(signal: LiveSignal, worth: list[float], rollouts: list[int]) -> list[int]:
    """Groups of every step of a round whose expectations do not change."""
    counts, left = [], list(zip(worth, rollouts))
    while left:
        w, n = map(np.array, zip(*left))
        counts.append(signal.next_groups(w.astype(np.float64), n.astype(np.int64)))
        left = left[counts[-1] :]
    return counts


def test_a_round_is_cut_into_steps_of_equal_signal_by_hand():
    # 8 groups of 4 with .25 a rollout: 1 each, 8 together
    even = ([0.25] * 8, [4] * 8)
    assert cut(LiveSignal(2.0), *even) == [2, 2, 2, 2]
    assert cut(LiveSignal(3.0), *even) == [3, 3, 2], "8 / 3 is nearest to 3 steps"
    assert cut(LiveSignal(7.0), *even) == [8], "one step of 8 is nearer than two of 4"
    assert cut(LiveSignal(100.0), *even) == [8]
    assert cut(LiveSignal(0.01), *even) == [1] * 8, "whole groups"


def test_richer_groups_make_shorter_steps():
    worth, rollouts = [0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625, 0.0625, 0.0625], [1] * 8
    assert cut(LiveSignal(0.25), worth, rollouts) == [1, 1, 2, 4]


def test_no_step_is_of_more_rollouts_than_the_most():
    dead = [0.0] * 6, [4] * 6
    assert cut(LiveSignal(1.0), *dead) == [6]
    assert cut(LiveSignal(1.0, 8), *dead) == [2, 2, 2]
    assert cut(LiveSignal(1.0, 3), *dead) == [1] * 6, "a larger group goes alone"
    # the cap asks for 3 steps, and the rest is split evenly by signal
    assert cut(LiveSignal(100.0, 10), [0.1] * 6, [4] * 6) == [2, 2, 2]


@given(
    st.lists(st.tuples(st.floats(0, 0.25), st.integers(1, 9)), min_size=1, max_size=40),
    st.floats(0.01, 10),
    st.none() | st.integers(1, 40),
)
def test_every_group_is_in_one_step(
    groups: list[tuple[float, int]], amount: float, most: int | None
):
    worth, rollouts = [w for w, _ in groups], [n for _, n in groups]
    counts = cut(LiveSignal(amount, most), worth, rollouts)
    assert sum(counts) == len(groups)
    first = 0
    for count in counts:
        assert most is None or sum(rollouts[first : first + count]) <= most or count == 1
        first += count


# --- what was found calibrates what is expected


def test_a_pool_that_teaches_half_of_what_is_thought_gets_steps_of_twice_the_rollouts():
    signal = LiveSignal(4.0)
    even = ([0.25] * 64, [1] * 64)
    assert signal.calibration == 1.0
    assert cut(signal, *even)[0] == 16
    for _ in range(400):
        numbers = signal.observe(4.0, 2.0)
    assert signal.calibration == pytest.approx(0.5, rel=1e-3)
    assert numbers == {"signal/expected": pytest.approx(2.0, rel=1e-3), "signal/found": 2.0}
    assert cut(signal, *even) == [32, 32]


def test_the_past_counts_half_after_the_half_life():
    signal = LiveSignal(1.0)
    for _ in range(int(RECENT)):
        signal.observe(0.0, 0.0)
    assert signal.state_dict() == {
        "expected": pytest.approx(0.5),
        "found": pytest.approx(0.5),
    }


def test_its_state_travels_and_a_damaged_one_is_refused():
    signal, other = LiveSignal(4.0), LiveSignal(4.0)
    signal.observe(3.0, 1.5)
    other.load_state_dict(signal.state_dict())
    assert other.state_dict() == signal.state_dict()
    with pytest.raises(ValueError, match="live signal: expected -1 and found 1"):
        other.load_state_dict({"expected": -1.0, "found": 1.0})
    with pytest.raises(ValueError, match="no field 'found'"):
        other.load_state_dict({"expected": 1.0})
    with pytest.raises(ValueError, match="per_step = 0, wanted a number above 0"):
        LiveSignal(0.0)


def test_against_a_critic_without_a_clue_a_prompt_never_seen_holds_its_whole_uncertainty():
    """E (r - m)^2 = m (1 - m) of groups of one, whatever rates hide behind m."""
    rng = np.random.default_rng(1)
    rates, critic = rng.beta(1, 1, 4000), PosteriorCritic(4000, CriticOptions())
    wins = rng.binomial(1, rates).astype(np.float64)
    groups = GroupSums(np.arange(4000), wins, wins.copy(), np.ones(4000, dtype=np.int64))
    found = squared_advantages(groups, critic.predict(groups))
    assert found / 4000 == pytest.approx(0.25, abs=0.01)
