"""Evidence in parts: the groups of a round alone, step by step inside a round, and a budget that
changes on the way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_sim import dense, play

from cero_rl.scheduler import CeroScheduler, StateDict


def same_state(got: StateDict, wanted: StateDict) -> None:
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(got[key], value, err_msg=key)


def fresh(**options) -> CeroScheduler:
    return CeroScheduler(30, 12, 12 * 40, 4, 2, 60, forgetting=0.95, seed=3, **options)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), missing=st.booleans(), forgetting=st.sampled_from([1.0, 0.9]))
def test_groups_alone_are_the_same_as_the_whole_pool(
    seed: int, missing: bool, forgetting: float
) -> None:
    rng = np.random.default_rng(seed)
    one, other = (
        CeroScheduler(20, 8, 8 * 24, 4, 2, 32, forgetting=forgetting, seed=seed) for _ in range(2)
    )
    while (allocation := one.next_round()) is not None:
        other.next_round()
        sizes = allocation.rollouts - (missing & (rng.random(allocation.rollouts.shape) < 0.3))
        wins = rng.integers(0, sizes + 1)
        all_wins, all_sizes = np.zeros(20), np.zeros(20)
        all_wins[allocation.prompt_ids], all_sizes[allocation.prompt_ids] = wins, sizes
        one.update(all_wins, all_sizes)
        order = rng.permutation(sizes.shape[0])
        order = order[sizes[order] > 0]  # a group without any reward need not be named
        other.update_groups(allocation.prompt_ids[order], wins[order], sizes[order])
        same_state(other.state_dict(), one.state_dict())


def test_bad_groups_change_nothing() -> None:
    scheduler = fresh()
    allocation = scheduler.next_round()
    assert allocation is not None
    before = scheduler.state_dict()
    ids, sizes = allocation.prompt_ids, allocation.rollouts
    absent = np.setdiff1d(np.arange(30), ids)[:1]
    for bad_ids, wins, tries, message in (
        (np.concatenate((ids[:1], ids[:1])), [0, 0], [1, 1], "distinct prompts"),
        (absent, [0], [1], "distinct prompts"),
        (ids[:1], [3], [2], f"prompt {ids[0]}: 3 successes of 2 trials"),
        (ids[:1], [0], [sizes[0] + 1], "round 0 allocated"),
        (ids[:1], [0.0], [0.5], "whole numbers"),
        (ids[:2], [0], [1], "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            scheduler.update_groups(bad_ids, wins, tries)
        same_state(scheduler.state_dict(), before)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), cuts=st.integers(1, 5))
def test_partial_updates_end_where_one_update_ends(seed: int, cuts: int) -> None:
    """The posterior exactly; the duals to second order in the step, because each part sees what
    the parts before it did."""
    rng = np.random.default_rng(seed)
    whole, parts = fresh(step_size=1e-3), fresh(step_size=1e-3)
    allocation = whole.next_round()
    assert allocation is not None
    parts.next_round()
    ids, sizes, count = allocation.prompt_ids, allocation.rollouts, allocation.prompt_ids.shape[0]
    wins = rng.integers(0, sizes + 1)
    whole.update_groups(ids, wins, sizes)
    bounds = np.sort(rng.integers(0, count + 1, cuts))
    for first, last in zip([0, *bounds], bounds):
        parts.update_partial(ids[first:last], wins[first:last], sizes[first:last])
        assert parts.answered_groups == last
    left = np.arange(bounds[-1], count)
    parts.update_groups(ids[left], wins[left], sizes[left])
    np.testing.assert_array_equal(parts.posterior.a, whole.posterior.a)
    np.testing.assert_array_equal(parts.value, whole.value)
    np.testing.assert_allclose(parts.slope, whole.slope, atol=1e-4)
    assert parts.price == pytest.approx(whole.price, abs=1e-9)
    assert parts.round == 1


def test_evidence_counts_once_and_survives_a_resume_in_the_middle() -> None:
    scheduler = fresh()
    allocation = scheduler.next_round()
    assert allocation is not None
    ids, sizes = allocation.prompt_ids, allocation.rollouts
    wins = sizes // 2
    scheduler.update_partial(ids[:3], wins[:3], sizes[:3])
    with pytest.raises(ValueError, match="exactly once"):
        scheduler.update_partial(ids[:3], wins[:3], sizes[:3])
    with pytest.raises(ValueError, match="exactly once"):
        scheduler.update_partial(ids[4:5], wins[4:5], sizes[4:5])
    counts = dense(allocation, 30)
    with pytest.raises(ValueError, match="taken in already"):
        scheduler.update(counts // 2, counts)
    with pytest.raises(ValueError, match="not answered yet"):
        scheduler.update_groups(ids[:1], wins[:1], sizes[:1])
    resumed = fresh()
    resumed.load_state_dict(scheduler.state_dict())
    for each in (scheduler, resumed):
        counts[ids[:3]] = 0
        each.update(counts // 2, counts)
    same_state(resumed.state_dict(), scheduler.state_dict())
    assert scheduler.answered_groups == 0


def test_the_budget_can_change_on_the_way() -> None:
    rates = np.random.default_rng(0).random(30)
    scheduler = CeroScheduler(30, 12, 12 * 40, 4, 2, 60, spend_down=True, seed=3)
    first = play(scheduler, rates, 0, stop_round=4)
    spent = int(np.sum(first))
    with pytest.raises(ValueError, match=rf"set_budget\({spent - 4}\)"):
        scheduler.set_budget(spent - 4)
    with pytest.raises(ValueError, match="8 rounds left"):
        scheduler.set_budget(spent + 8 * 60 + 4)
    with pytest.raises(ValueError, match="multiple of rollouts_per_unit"):
        scheduler.set_budget(601)
    scheduler.next_round()
    scheduler.set_budget(12 * 44)
    # the configuration still says 480
    resumed = CeroScheduler(30, 12, 12 * 40, 4, 2, 60, spend_down=True, seed=3)
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.spec.budget_rollouts == 528
    histories = []
    for each in (scheduler, resumed):
        assert each.pending is not None
        counts = dense(each.pending, 30)
        each.update(counts // 2, counts)
        rest = play(each, rates, 0)
        assert spent + counts.sum() + np.sum(rest) == 528
        assert each.remaining_rollouts == 0
        histories.append(np.array(rest))
    np.testing.assert_array_equal(*histories)
    assert scheduler.slope_max == pytest.approx(30 / (528 / 4))


def test_lowering_the_budget_to_what_is_spent_ends_the_run() -> None:
    scheduler = CeroScheduler(4, 4, 16, 2, 2, 8, spend_down=True)
    assert scheduler.next_round() is not None
    scheduler.set_budget(16 - scheduler.remaining_rollouts)
    scheduler.update(np.zeros(4), np.zeros(4))
    assert scheduler.next_round() is None
