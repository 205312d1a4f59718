"""Evidence in parts: the groups of a round alone, piece by piece inside a round, refunds and tokens
that come with it, and a budget that changes on the way."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_sim import answer, dense, play

from cero_rl.scheduler import CeroScheduler, Evidence, StateDict, make_scheduler
from cero_rl.scheduler.budgeted import BudgetedScheduler

BOTH = pytest.mark.parametrize("streaming", [False, True], ids=["waiting", "streaming"])


def same_state(got: StateDict, wanted: StateDict) -> None:
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(got[key], value, err_msg=key)


def fresh(**options) -> CeroScheduler:
    return CeroScheduler(30, 12, 12 * 40, 4, 2, 60, forgetting=0.95, seed=3, **options)


def opened(scheduler: BudgetedScheduler) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
    """Prompts, rollouts and, half of them right, successes [G] of a round that it opens."""
    allocation = scheduler.open_round()
    assert allocation is not None
    sizes = allocation.rollouts.astype(np.int64)
    return allocation.prompt_ids, sizes, sizes / 2.0


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    missing=st.booleans(),
    forgetting=st.sampled_from([1.0, 0.9]),
    streaming=st.booleans(),
)
def test_groups_alone_are_the_same_as_the_whole_pool(
    seed: int, missing: bool, forgetting: float, streaming: bool
) -> None:
    rng = np.random.default_rng(seed)
    one, other, short = (
        CeroScheduler(
            20, 8, 8 * 24, 4, 2, 32, forgetting=forgetting, seed=seed, streaming=streaming
        )
        for _ in range(3)
    )
    while (allocation := one.next_round()) is not None:
        other.next_round()
        short.next_round()
        ids, groups = allocation.prompt_ids, allocation.prompt_ids.shape[0]
        tries = allocation.rollouts.astype(np.int64)
        if missing:
            tries -= rng.random(groups) < 0.3
            tries[rng.random(groups) < 0.2] = 0
            tries[groups - int(rng.integers(0, groups // 2 + 1)) :] = 0
        wins = rng.integers(0, tries + 1)
        all_wins, all_tries = np.zeros(20), np.zeros(20)
        all_wins[ids], all_tries[ids] = wins, tries
        one.update(all_wins, all_tries)
        answer(other, wins, tries)
        same_state(other.state_dict(), one.state_dict())
        # trailing groups without any reward need not be named
        named = int(np.flatnonzero(tries).max(initial=-1)) + 1
        short.observe(Evidence(ids[:named], wins[:named], tries[:named]))
        assert short.answered_groups == named
        short.close_round()
        if not streaming:  # else the duals see one part more
            same_state(short.state_dict(), one.state_dict())
        np.testing.assert_array_equal(short.posterior.a, one.posterior.a)
        np.testing.assert_array_equal(short.posterior.b, one.posterior.b)
        short.load_state_dict(one.state_dict())  # the three open the next round alike


def test_a_round_without_any_evidence_is_a_round() -> None:
    one, other = fresh(), fresh()
    for each in (one, other):
        each.open_round()
    one.update(np.zeros(30), np.zeros(30))
    other.close_round()
    same_state(other.state_dict(), one.state_dict())
    assert other.round == 1


@BOTH
def test_bad_groups_change_nothing(streaming: bool) -> None:
    scheduler = fresh(streaming=streaming)
    ids, sizes, _ = opened(scheduler)
    before = scheduler.state_dict()
    absent = np.setdiff1d(np.arange(30), ids)[:1]
    for bad_ids, wins, tries, message in (
        (np.concatenate((ids[:1], ids[:1])), [0, 0], [1, 1], "exactly once"),
        (absent, [0], [1], "wanted groups 0.. of round 0"),
        (ids[1:2], [0], [1], "in its order"),
        (ids[[1, 0]], [0, 0], [1, 1], "in its order"),
        (np.concatenate((ids, absent)), [0] * (ids.size + 1), [0] * (ids.size + 1), "exactly once"),
        (ids[:1], [3], [2], f"prompt {ids[0]}: 3 successes of 2 trials"),
        (ids[:1], [0], [sizes[0] + 1], "round 0 allocated"),
        (ids[:1], [0.0], [0.5], "whole numbers"),
        (ids[:2], [0], [1], "shape"),
        (ids[:2], [0, np.nan], [1, 1], f"prompt {ids[1]}: nan successes"),
    ):
        with pytest.raises(ValueError, match=message):
            scheduler.observe(Evidence(bad_ids, np.array(wins), np.array(tries)))
        same_state(scheduler.state_dict(), before)


def test_evidence_needs_an_open_round() -> None:
    scheduler = fresh()
    nothing = Evidence(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64))
    with pytest.raises(RuntimeError, match=r"observe\(\) without an Allocation"):
        scheduler.observe(nothing)
    with pytest.raises(RuntimeError, match=r"close_round\(\) without an Allocation"):
        scheduler.close_round()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), cuts=st.integers(1, 5), streaming=st.booleans())
def test_parts_end_where_one_update_ends(seed: int, cuts: int, streaming: bool) -> None:
    """Waiting: exactly. Streaming: the posterior exactly; the duals to second order in the step,
    because each part sees what the parts before it did."""
    rng = np.random.default_rng(seed)
    whole, parts = fresh(step_size=1e-3), fresh(step_size=1e-3, streaming=streaming)
    ids, sizes, _ = opened(whole)
    opened(parts)
    count = ids.shape[0]
    wins = rng.integers(0, sizes + 1)
    answer(whole, wins)
    bounds = np.sort(rng.integers(0, count + 1, cuts))
    for first, last in zip([0, *bounds], [*bounds, count]):
        part = slice(first, last)
        parts.observe(Evidence(ids[part], wins[part], sizes[part]))
        assert parts.answered_groups == last
    parts.close_round()
    if not streaming:
        same_state(parts.state_dict(), whole.state_dict())
    np.testing.assert_array_equal(parts.posterior.a, whole.posterior.a)
    np.testing.assert_array_equal(parts.posterior.b, whole.posterior.b)
    np.testing.assert_array_equal(parts.value, whole.value)
    np.testing.assert_allclose(parts.slope, whole.slope, atol=1e-4)
    assert parts.price == pytest.approx(whole.price, abs=1e-9)
    assert parts.round == 1
    assert parts.answered_groups == 0


@BOTH
def test_a_streaming_scheduler_learns_at_once_and_another_when_the_round_closes(
    streaming: bool,
) -> None:
    scheduler = fresh(streaming=streaming, price_init=0.3)
    ids, sizes, wins = opened(scheduler)
    before, slope, price = scheduler.posterior_mean, scheduler.slope, scheduler.price
    wins[:3] = 0.0
    scheduler.observe(Evidence(ids[:3], wins[:3], sizes[:3]))
    learnt = scheduler.posterior_mean < before
    assert np.flatnonzero(learnt).tolist() == (sorted(ids[:3].tolist()) if streaming else [])
    assert np.array_equal(scheduler.slope, slope) != streaming
    assert (scheduler.price == price) != streaming
    scheduler.close_round()
    assert (scheduler.posterior_mean < before)[ids[:3]].all()
    assert not np.array_equal(scheduler.slope, slope)


@BOTH
def test_evidence_counts_once_and_survives_a_resume_in_the_middle(streaming: bool) -> None:
    scheduler = fresh(streaming=streaming)
    ids, sizes, wins = opened(scheduler)
    scheduler.observe(Evidence(ids[:3], wins[:3], sizes[:3]))
    for first, last in ((0, 3), (4, 5), (0, 1)):
        with pytest.raises(ValueError, match="exactly once"):
            scheduler.observe(Evidence(ids[first:last], wins[first:last], sizes[first:last]))
    assert scheduler.pending is not None
    counts = dense(scheduler.pending, 30)
    with pytest.raises(ValueError, match="taken in already"):
        scheduler.update(counts // 2, counts)
    resumed = fresh(streaming=streaming)
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.answered_groups == 3
    for each in (scheduler, resumed):
        each.observe(Evidence(ids[3:5], wins[3:5], sizes[3:5]))
        assert each.answered_groups == 5
    same_state(resumed.state_dict(), scheduler.state_dict())
    counts[ids[:5]] = 0
    for each in (scheduler, resumed):
        each.update(counts // 2, counts)
    same_state(resumed.state_dict(), scheduler.state_dict())
    assert scheduler.answered_groups == 0


@BOTH
def test_squares_of_graded_rewards_come_in_parts_and_survive_a_resume(streaming: bool) -> None:
    options = {"value": "graded", "streaming": streaming}
    whole, parts, resumed = (fresh(**options) for _ in range(3))
    ids, sizes, wins = opened(whole)
    squares = 0.75 * wins
    opened(parts)
    whole.observe(Evidence(ids, wins, sizes, squares))
    whole.close_round()
    before = parts.state_dict()
    for wrong in (None, 2.0 * wins[:2], squares[:1]):
        with pytest.raises(ValueError, match="squares"):
            parts.observe(Evidence(ids[:2], wins[:2], sizes[:2], wrong))
        same_state(parts.state_dict(), before)
    parts.observe(Evidence(ids[:2], wins[:2], sizes[:2], squares[:2]))
    resumed.load_state_dict(parts.state_dict())
    for each in (parts, resumed):
        each.observe(Evidence(ids[2:], wins[2:], sizes[2:], squares[2:]))
        each.close_round()
        np.testing.assert_array_equal(each.state_dict()["squares"], whole.state_dict()["squares"])
        np.testing.assert_array_equal(each.value, whole.value)
    same_state(resumed.state_dict(), parts.state_dict())


@BOTH
def test_nothing_is_counted_twice_or_lost(streaming: bool) -> None:
    """Without forgetting the posterior holds every rollout with a reward once."""
    scheduler = CeroScheduler(30, 12, 12 * 40, 4, 2, 60, streaming=streaming)
    for first in range(1, 4):
        ids, sizes, wins = opened(scheduler)
        before = scheduler.posterior.a + scheduler.posterior.b
        for part in (slice(first), slice(first, first + 2), slice(first + 2, None)):
            scheduler.observe(Evidence(ids[part], wins[part], sizes[part]))
        scheduler.close_round()
        wanted = before.copy()
        wanted[ids] += sizes
        np.testing.assert_array_equal(scheduler.posterior.a + scheduler.posterior.b, wanted)


@BOTH
def test_rollouts_that_failed_go_back_to_the_budget(streaming: bool) -> None:
    scheduler = fresh(streaming=streaming, spend_down=True)
    ids, sizes, wins = opened(scheduler)
    left, before = scheduler.remaining_rollouts, scheduler.state_dict()
    for wrong in (-1, int(sizes.sum()) + 1):
        with pytest.raises(ValueError, match="refund"):
            scheduler.observe(Evidence(ids[:2], wins[:2], sizes[:2], failed_rollouts=wrong))
        same_state(scheduler.state_dict(), before)
    # prompt ids[0] lost three of its rollouts and ids[2] all of them
    tries = sizes.copy()
    tries[0] -= 3
    tries[2] = 0
    wins[[0, 2]] = 0.0
    scheduler.observe(Evidence(ids[:2], wins[:2], tries[:2], failed_rollouts=3))
    assert scheduler.remaining_rollouts == left + 3
    lost = int(sizes[2])
    scheduler.observe(Evidence(ids[2:], wins[2:], tries[2:], failed_rollouts=lost))
    assert scheduler.remaining_rollouts == left + 3 + lost
    scheduler.close_round()
    spent = int(np.sum(play(scheduler, np.full(30, 0.5), 0)))
    # what comes back is spent later, to the last rollout
    assert scheduler.remaining_rollouts == 0
    assert int(sizes.sum()) - lost - 3 + spent == 480


def test_response_tokens_are_spent_by_who_has_a_budget_of_them() -> None:
    scheduler = fresh(budget_tokens=1000)
    ids, sizes, wins = opened(scheduler)
    scheduler.observe(Evidence(ids[:2], wins[:2], sizes[:2], response_tokens=300))
    scheduler.observe(Evidence(ids[2:], wins[2:], sizes[2:], response_tokens=500))
    assert scheduler.metrics()["budget/remaining_tokens"] == 200
    resumed = fresh(budget_tokens=1000)
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.metrics()["budget/remaining_tokens"] == 200
    scheduler.close_round()
    ids, sizes, wins = opened(scheduler)
    scheduler.observe(Evidence(ids, wins, sizes, response_tokens=250))
    scheduler.close_round()
    assert scheduler.remaining_rollouts > 0
    assert scheduler.open_round() is None
    # without that limit the number is not looked at
    plain = fresh()
    ids, sizes, wins = opened(plain)
    plain.observe(Evidence(ids, wins, sizes, response_tokens=10**9))
    plain.close_round()
    assert "budget/remaining_tokens" not in plain.metrics()
    assert plain.open_round() is not None


def test_evidence_with_impossible_tokens_changes_nothing() -> None:
    scheduler = fresh(budget_tokens=1000)
    ids, sizes, wins = opened(scheduler)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="response_tokens = -1"):
        scheduler.observe(
            Evidence(ids[:2], wins[:2], sizes[:2], failed_rollouts=1, response_tokens=-1)
        )
    same_state(scheduler.state_dict(), before)


def test_expected_tokens_are_asked_for_only_by_who_prices_them() -> None:
    asked = []

    def expected() -> npt.NDArray[np.float64]:
        asked.append(True)
        return np.linspace(10.0, 40.0, 30)

    uniform = make_scheduler(
        "uniform",
        num_prompts=30,
        rounds=12,
        budget_rollouts=480,
        rollouts_per_unit=4,
        max_units_per_prompt=2,
        capacity_rollouts=60,
    )
    for scheduler, wanted in (
        (fresh(), 0),
        (uniform, 0),
        (fresh(token_costs=True), 1),
        (fresh(budget_tokens=1000), 2),
    ):
        scheduler.open_round(expected)
        assert len(asked) == wanted
    costed, told = fresh(token_costs=True), fresh(token_costs=True)
    told.set_expected_tokens(expected())
    told.open_round()
    costed.open_round(expected)
    same_state(costed.state_dict(), told.state_dict())


@BOTH
def test_the_budget_can_change_on_the_way(streaming: bool) -> None:
    def planned() -> CeroScheduler:
        return CeroScheduler(
            30, 12, 12 * 40, 4, 2, 60, spend_down=True, seed=3, streaming=streaming
        )

    rates = np.random.default_rng(0).random(30)
    scheduler = planned()
    first = play(scheduler, rates, 0, stop_round=4)
    spent = int(np.sum(first))
    with pytest.raises(ValueError, match=rf"set_budget\({spent - 4}\)"):
        scheduler.set_budget(spent - 4)
    with pytest.raises(ValueError, match="8 rounds left"):
        scheduler.set_budget(spent + 8 * 60 + 4)
    with pytest.raises(ValueError, match="multiple of rollouts_per_unit"):
        scheduler.set_budget(601)
    ids, sizes, wins = opened(scheduler)
    scheduler.observe(Evidence(ids[:2], wins[:2], sizes[:2]))
    scheduler.set_budget(12 * 44)
    # the configuration still says 480
    resumed = planned()
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.spec.budget_rollouts == 528
    histories = []
    for each in (scheduler, resumed):
        assert each.answered_groups == 2
        each.observe(Evidence(ids[2:], wins[2:], sizes[2:]))
        each.close_round()
        rest = play(each, rates, 0)
        assert spent + sizes.sum() + np.sum(rest) == 528
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


def test_streaming_switched_on_in_the_middle_of_a_round_learns_from_all_of_it() -> None:
    waiting, streaming = fresh(step_size=1e-3), fresh(step_size=1e-3, streaming=True)
    allocation = waiting.open_round()
    assert allocation is not None
    ids, sizes = allocation.prompt_ids, allocation.rollouts.astype(np.int64)
    first = Evidence(ids[:4], sizes[:4] / 2, sizes[:4])
    rest = Evidence(ids[4:], sizes[4:] / 2, sizes[4:])
    waiting.observe(first)
    streaming.load_state_dict(waiting.state_dict())
    for each in (waiting, streaming):
        each.observe(rest)
        each.close_round()
    np.testing.assert_array_equal(streaming.posterior.a, waiting.posterior.a)
    assert streaming.price == pytest.approx(waiting.price, abs=1e-9)
    np.testing.assert_allclose(streaming.slope, waiting.slope, atol=1e-12)
