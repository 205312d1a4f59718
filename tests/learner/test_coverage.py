"""The factor of right answers under an entropy target: by hand, on a policy whose entropy answers,
and through a checkpoint."""

from __future__ import annotations

import pytest

from cero_rl.learner.coverage import RATE, SHARE, SMOOTHING, EntropyControl


def test_it_is_1_where_there_is_entropy_enough():
    control = EntropyControl(0.3, 0.2)
    assert control.positive_weight == 1.0
    for _ in range(50):
        control.observe(0.9, 1.0)
        assert control.positive_weight == 1.0
    assert control.metrics() == {"coverage/positive_weight": 1.0, "coverage/entropy_target": 0.3}


def test_one_step_by_hand():
    control = EntropyControl(0.5, 0.1)
    control.observe(0.25, 0.5)
    error = (SMOOTHING * 0.5 + (1 - SMOOTHING) * 0.25) / 0.5 - 1
    assert error == pytest.approx(-0.1)
    assert control.positive_weight == pytest.approx(1 + SHARE * error + RATE * 0.5 * error)


def test_it_stays_between_the_least_and_1_and_turns_at_once():
    control = EntropyControl(0.5, 0.4)
    for _ in range(500):
        control.observe(0.0, 1.0)
    assert control.positive_weight == 0.4
    for _ in range(40):
        control.observe(1.5, 1.0)
    assert control.positive_weight == 1.0, "what was summed up while it was at its bound is gone"


def test_an_update_that_moved_nothing_is_not_summed_up():
    control = EntropyControl(0.5, 0.1)
    for _ in range(200):
        control.observe(0.4, 0.0)
    assert control.positive_weight == pytest.approx(0.6), "the error alone"


@pytest.mark.parametrize("balance", [0.3, 0.6, 0.85])
def test_it_holds_the_target_on_a_policy_whose_entropy_adds_up_what_the_factor_does(balance: float):
    """Falls by .01 an update at full weight (as the study's fastest arm); stands at `balance`."""
    control, entropy, seen = EntropyControl(0.35, 0.1), 0.9, []
    for _ in range(1200):
        entropy -= 0.01 * (control.positive_weight - balance) / (1 - balance)
        control.observe(entropy, 1.0)
        seen.append(entropy)
    assert min(seen) > 0.35 * 2 / 3, "never more than a third below"
    assert seen[-200:] == pytest.approx([0.35] * 200, rel=0.02)
    assert control.positive_weight == pytest.approx(balance, abs=0.02)


def test_its_state_travels_and_a_damaged_one_is_refused():
    control, other = EntropyControl(0.5, 0.4), EntropyControl(0.5, 0.4)
    for _ in range(9):
        control.observe(0.3, 0.7)
    other.load_state_dict(control.state_dict())
    assert other.state_dict() == control.state_dict()
    assert other.positive_weight == control.positive_weight < 1.0
    with pytest.raises(ValueError, match=r"entropy 0.5 and factor 0.3, wanted .* \[0.4, 1\]"):
        other.load_state_dict({"entropy": 0.5, "sum": 0.3})
    with pytest.raises(ValueError, match="no field 'sum'"):
        other.load_state_dict({"entropy": 0.5})
