"""Dealing, scoring and saving a round: what both adapters stand on. Needs no other trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cero_rl.adapters.rounds import (
    AdvantageRule,
    close_round,
    deal_slots,
    load_state,
    open_round,
    pool_fingerprint,
    published_cero,
    save_state,
    score_round,
)
from cero_rl.errors import CheckpointError, RewardError
from cero_rl.scheduler import CeroScheduler
from cero_rl.scheduler.ledger import Ledger
from cero_rl.types import Allocation


@given(rollouts=st.integers(1, 200), processes=st.integers(1, 9), chunks=st.integers(1, 8))
def test_slots_hold_every_rollout_once_and_evenly(
    rollouts: int, processes: int, chunks: int
) -> None:
    slots = deal_slots(rollouts, processes, chunks)
    real = (slots >= 0).sum(axis=1)
    np.testing.assert_array_equal(slots[slots >= 0], np.arange(rollouts))
    assert slots.shape[1] % chunks == 0
    assert slots.shape[1] < -(-rollouts // processes) + chunks
    assert real.max() - real.min() <= 1
    assert all((row[:count] >= 0).all() for row, count in zip(slots, real)), "empty slots come last"


def test_no_rollouts_is_an_error() -> None:
    with pytest.raises(ValueError, match="wanted three integers"):
        deal_slots(0, 1, 1)


def test_missing_rewards_and_a_separate_signal() -> None:
    allocation = Allocation(0, np.array([4, 1]), np.array([3, 2], dtype=np.int32))
    rewards = np.array([1.0, np.nan, 0.0, 2.0, 2.0], dtype=np.float32)
    result = score_round(allocation, rewards, 6, AdvantageRule("rloo"))
    np.testing.assert_allclose(result.advantages, [1.0, 0.0, -1.0, 0.0, 0.0])
    assert result.trials.tolist() == [0, 2, 0, 0, 2, 0]
    assert result.successes.tolist() == [0, 2, 0, 0, 1, 0]
    assert result.live.tolist() == [True, False]
    signal = np.array([0.0, 1.0, np.nan, 0.0, 0.0], dtype=np.float32)
    other = score_round(allocation, rewards, 6, AdvantageRule("rloo"), signal)
    assert other.trials.tolist() == [0, 2, 0, 0, 2, 0]
    assert other.successes.tolist() == [0, 0, 0, 0, 1, 0]
    with pytest.raises(ValueError, match=r"rewards: got shape \(4,\), wanted \(5,\)"):
        score_round(allocation, rewards[:4], 6, AdvantageRule("rloo"))


@pytest.mark.covers("infinite reward under another trainer")
@pytest.mark.parametrize("odd", [np.inf, -np.inf])
def test_an_infinite_reward_is_refused_before_its_group_is_nan(odd: float) -> None:
    allocation = Allocation(2, np.array([4, 1]), np.array([3, 2], dtype=np.int32))
    rewards = np.array([1.0, np.nan, 0.0, odd, 2.0], dtype=np.float32)
    with pytest.raises(RewardError, match=f"got {odd:g} for rollout 3 of round 2; wanted a finite"):
        score_round(allocation, rewards, 6, AdvantageRule("std"))


def make() -> CeroScheduler:
    return CeroScheduler(6, 4, 16, 2, 1, 8, spend_down=True)


def test_state_comes_back_in_the_middle_of_a_round(tmp_path: Path) -> None:
    scheduler, ledger, pool = make(), Ledger(16), pool_fingerprint(["a", "b"])
    first = open_round(scheduler)
    assert first is not None
    ledger.book(4)
    save_state(tmp_path / "x" / "state.npz", scheduler, ledger, pool)
    again, other = make(), Ledger(16)
    load_state(tmp_path / "x" / "state.npz", again, other, pool)
    resumed = open_round(again)
    assert resumed is not None
    np.testing.assert_array_equal(resumed.prompt_ids, first.prompt_ids)
    assert other.spent_rollouts == 4
    with pytest.raises(CheckpointError, match="its pool is"):
        load_state(tmp_path / "x" / "state.npz", make(), Ledger(16), pool_fingerprint(["b", "a"]))
    with pytest.raises(CheckpointError, match="not found"):
        load_state(tmp_path / "nowhere.npz", make(), Ledger(16), pool)
    with pytest.raises(ValueError, match="'seed'"):
        load_state(
            tmp_path / "x" / "state.npz",
            CeroScheduler(6, 4, 16, 2, 1, 8, spend_down=True, seed=1),
            Ledger(16),
            pool,
        )


def test_a_scored_round_is_learned_from_and_closed() -> None:
    scheduler, other = make(), make()
    allocation = open_round(scheduler)
    assert allocation is not None
    rewards = np.ones(allocation.total_rollouts, dtype=np.float32)
    rewards[0] = np.nan
    result = score_round(allocation, rewards, 6, AdvantageRule("rloo"))
    close_round(scheduler, result)
    assert scheduler.pending is None
    other.next_round()
    other.update(result.successes, result.trials)
    np.testing.assert_array_equal(scheduler.posterior.a, other.posterior.a)
    np.testing.assert_array_equal(scheduler.slope, other.slope)


def test_only_allocators_of_ceros_kind_get_its_published_options() -> None:
    options = published_cero("fixed_price", 16, 3.0)
    assert options is not None
    assert (options.step_size, options.spend_down) == (0.75, True)
    assert published_cero("uniform", 16, 3.0) is None
    with pytest.raises(ValueError, match="unknown scheduler 'grpo'"):
        published_cero("grpo", 16, 3.0)


def test_rounds_that_execute_nothing_are_closed_on_the_way() -> None:
    scheduler = CeroScheduler(6, 8, 16, 2, 1, 8, price_init=1.0, spend_down=True)
    allocation = open_round(scheduler)
    assert allocation is not None
    assert allocation.total_rollouts > 0
    assert allocation.round == scheduler.round > 0
