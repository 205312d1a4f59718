"""A run whose rewards stay away: when that is too much."""

from __future__ import annotations

import pytest

from cero_rl.config.reward import RewardConfig
from cero_rl.rewards.missing import MissingRewards, first_reason


def verdicts(steps: list[tuple[int, int]], *, last: int = -1, **settings: float) -> list[bool]:
    config = RewardConfig.model_validate({"missing_window_rollouts": 100, **settings})
    missing = MissingRewards()
    found = []
    for index, (rollouts, without) in enumerate(steps):
        missing.add(rollouts, without, config)
        missing = MissingRewards(missing.state())  # as through a checkpoint
        found.append(missing.too_many(config, last=index == last) is not None)
    return found


def test_the_window_must_be_full_except_at_the_end():
    assert verdicts([(50, 50), (50, 50)]) == [False, True]
    assert verdicts([(50, 50)], last=0) == [True]
    assert verdicts([(400, 400)]) == [True]


def test_old_steps_leave_and_a_bad_spell_that_is_over_is_forgiven():
    assert verdicts([(100, 50), (100, 0), (100, 0)]) == [False, False, False]
    assert verdicts([(60, 60), (60, 0), (60, 60), (60, 60)]) == [False, False, False, True]


@pytest.mark.parametrize(("rate", "ends"), [(0.0, True), (0.1, False), (1.0, False)])
def test_the_limit_is_a_share_and_at_it_is_not_beyond(rate: float, ends: bool):
    assert verdicts([(100, 10)], max_missing_rate=rate) == [ends]
    assert verdicts([(100, 0)], max_missing_rate=rate) == [False]


def test_a_rate_that_no_binary_fraction_is_has_the_same_border():
    """29 of 100 were more than 0.29 * 100 = 28.999999999999996."""
    for percent in range(1, 100):
        assert verdicts([(100, percent)], max_missing_rate=percent / 100) == [False]
        assert verdicts([(100, percent)], max_missing_rate=(percent - 1) / 100) == [True]


def test_a_run_that_ended_for_its_window_begins_another():
    config = RewardConfig(missing_window_rollouts=128)
    missing = MissingRewards([[32, 32]] * 4)
    assert missing.too_many(config, last=False)
    missing.forget()
    missing.add(32, 0, config)  # mended
    assert missing.too_many(config, last=True) is None


def test_the_words_are_those_of_the_first_rank_that_has_some():
    assert first_reason([None, "KeyError: 'x'", "other"]) == "the first: KeyError: 'x'"
    assert "reward.timeout_seconds" in first_reason([None, None])
