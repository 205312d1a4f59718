"""The budget, the protocol, the saved state and the dual updates of CERO."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_sim import dense, know_rates, play

from cero_rl.scheduler import (
    CeroScheduler,
    StateDict,
    conjugate,
    supporting_exposure,
    utility_value,
)
from cero_rl.scheduler.state import STATE_VERSION


@st.composite
def settings_of_a_run(draw: st.DrawFn) -> dict:
    unit, most, pool, rounds = (draw(st.integers(1, top)) for top in (4, 3, 12, 12))
    capacity = draw(st.integers(1, pool * most))
    budget = draw(st.integers(1, rounds * capacity))
    return {
        "num_prompts": pool,
        "rounds": rounds,
        "budget_rollouts": budget * unit,
        "rollouts_per_unit": unit,
        "max_units_per_prompt": most,
        "capacity_rollouts": capacity * unit,
        "forgetting": draw(st.sampled_from([1.0, 0.9])),
        "step_size": draw(st.sampled_from([None, 0.9, 3.0])),
        "price_init": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "seed": draw(st.integers(0, 5)),
    }


def rates_of(config: dict, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).beta(0.5, 0.5, size=config["num_prompts"])


@settings(max_examples=150, deadline=None)
@given(config=settings_of_a_run(), spend_down=st.booleans(), seed=st.integers(0, 99))
def test_budget_capacity_and_clipping(config: dict, spend_down: bool, seed: int) -> None:
    scheduler = CeroScheduler(**config, spend_down=spend_down)
    rates, unit, rng = (
        rates_of(config, seed),
        config["rollouts_per_unit"],
        np.random.default_rng(seed),
    )
    budget, capacity, virtual, executed = (
        config["budget_rollouts"],
        config["capacity_rollouts"],
        0,
        0,
    )
    while (allocation := scheduler.next_round()) is not None:
        state = scheduler.state_dict()
        planned = int(np.sum(state["plan_units"])) * unit
        assert allocation.total_rollouts <= planned <= capacity
        assert (allocation.rollouts % unit == 0).all()
        assert (allocation.rollouts <= unit * config["max_units_per_prompt"]).all()
        np.testing.assert_array_equal(
            allocation.prompt_ids, np.asarray(state["plan_ids"])[: allocation.prompt_ids.shape[0]]
        )
        virtual, executed = virtual + planned, executed + allocation.total_rollouts
        assert scheduler.remaining_rollouts == budget - executed >= 0
        if spend_down:
            assert (
                scheduler.remaining_rollouts <= (config["rounds"] - scheduler.round - 1) * capacity
            )
        rollouts = dense(allocation, rates.shape[0])
        scheduler.update(rng.binomial(rollouts, rates), rollouts)
    assert virtual - executed == max(0, virtual - budget)
    assert scheduler.round <= config["rounds"]
    if spend_down:
        assert scheduler.remaining_rollouts == 0


def test_spend_down_waits_until_it_must() -> None:
    lazy = CeroScheduler(10, 10, 10 * 4 * 5, 4, 1, 4 * 10, price_init=1.0, step_size=1e-9)
    assert [h.sum() for h in play(lazy, np.full(10, 0.5), 0)] == [0] * 10
    assert lazy.remaining_rollouts == 200
    forced = CeroScheduler(
        10, 10, 10 * 4 * 5, 4, 1, 4 * 10, price_init=1.0, step_size=1e-9, spend_down=True
    )
    assert [h.sum() for h in play(forced, np.full(10, 0.5), 0)] == [0] * 5 + [40] * 5


def test_forced_rounds_rotate_over_the_pool() -> None:
    scheduler = CeroScheduler(40, 8, 8 * 10 * 4, 4, 1, 40, price_init=1.0, spend_down=True)
    know_rates(scheduler, np.full(40, 0.5))
    visits = np.sum([h > 0 for h in play(scheduler, np.full(40, 0.5), 0)], axis=0)
    assert visits.min() == visits.max() == 2


@settings(max_examples=60, deadline=None)
@given(
    config=settings_of_a_run(),
    seed=st.integers(0, 99),
    share=st.floats(0.0, 1.0),
    midway=st.booleans(),
)
def test_resume_equals_uninterrupted(config: dict, seed: int, share: float, midway: bool) -> None:
    rates = rates_of(config, seed)
    through = CeroScheduler(**config, spend_down=True)
    wanted = play(through, rates, seed)
    first = CeroScheduler(**config, spend_down=True)
    got = play(first, rates, seed, stop_round=int(share * config["rounds"]))
    pending = first.next_round() if midway else None
    resumed = CeroScheduler(**config, spend_down=True)
    resumed.load_state_dict(through_npz(first.state_dict()))
    if pending is not None:
        assert resumed.pending is not None
        np.testing.assert_array_equal(resumed.pending.prompt_ids, pending.prompt_ids)
        rollouts = dense(resumed.pending, rates.shape[0])
        got.append(rollouts)
        resumed.update(
            np.random.default_rng([seed, pending.round]).binomial(rollouts, rates), rollouts
        )
    got += play(resumed, rates, seed)
    np.testing.assert_array_equal(np.array(got), np.array(wanted))
    assert_same_state(resumed.state_dict(), through.state_dict())


def through_npz(state: StateDict) -> StateDict:
    file = io.BytesIO()
    np.savez(file, **state)  # pyright: ignore[reportArgumentType]
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        return dict(loaded)


def assert_same_state(got: StateDict, wanted: StateDict) -> None:
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(got[key], value, err_msg=key)


def test_counts_may_be_split_over_ranks_in_any_way() -> None:
    rates = np.random.default_rng(0).random(30)
    one, four = (CeroScheduler(30, 20, 20 * 40, 4, 2, 80, forgetting=0.95) for _ in range(2))
    rng = np.random.default_rng(1)
    while (allocation := one.next_round()) is not None:
        other = four.next_round()
        assert other is not None
        np.testing.assert_array_equal(allocation.prompt_ids, other.prompt_ids)
        np.testing.assert_array_equal(allocation.rollouts, other.rollouts)
        rollouts = dense(allocation, 30)
        wins = rng.binomial(rollouts, rates)
        one.update(wins.astype(np.float64), rollouts.astype(np.float64))
        rank_of = rng.integers(0, 4, allocation.prompt_ids.shape[0])
        parts = [
            np.where(np.isin(np.arange(30), allocation.prompt_ids[rank_of == rank]), 1, 0)
            for rank in range(4)
        ]
        four.update(sum(part * wins for part in parts), sum(part * rollouts for part in parts))
    assert_same_state(one.state_dict(), four.state_dict())


def test_dual_updates_follow_the_text() -> None:
    scheduler = CeroScheduler(20, 50, 50 * 24, 4, 2, 60, saturation=1.5, price_init=0.0, seed=3)
    rates, rng = np.random.default_rng(2).random(20), np.random.default_rng(4)
    slope, price, unit_budget, clipped = 4 * np.full(20, 1 / 6), 0.0, 300, False
    gamma, largest = 1 / np.sqrt(50), 1.5 * 20 / unit_budget
    while (allocation := scheduler.next_round()) is not None:
        state = scheduler.state_dict()
        plan = np.zeros(20)
        plan[state["plan_ids"]] = state["plan_units"]
        rollouts = dense(allocation, 20)
        clipped = clipped or rollouts.sum() < 4 * plan.sum()
        scheduler.update(rng.binomial(rollouts, rates), rollouts)
        exposure = supporting_exposure(largest * slope, 4 * largest * scheduler.value, 100.0)
        slope = np.clip(slope - gamma * (plan - exposure / 50) / 2, 0, 1)
        price = float(np.clip(price - gamma * (6 - plan.sum()) / 9, 0, 1))
        np.testing.assert_allclose(scheduler.slope, slope, atol=1e-12)
        assert scheduler.price == pytest.approx(price, abs=1e-12)
    # the duals learn from the plan as made, and this run has a round where that differs from what
    # was executed
    assert clipped


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), rounds=st.integers(2, 80), forgetting=st.sampled_from([1.0, 0.8]))
def test_pathwise_online_gradient_inequality_of_both_duals(
    seed: int, rounds: int, forgetting: float
) -> None:
    rng = np.random.default_rng(seed)
    pool, most, capacity = 10, int(rng.integers(1, 4)), int(rng.integers(1, 11))
    budget = int(rng.integers(1, rounds * capacity + 1))
    scheduler = CeroScheduler(
        pool, rounds, budget, 1, most, capacity, forgetting=forgetting, seed=seed
    )
    rates, cap, largest = rng.random(pool), rounds * most, scheduler.slope_max
    fair = budget / rounds
    grid = np.linspace(0.0, 1.0, 101)
    slope_losses, slope_grid_losses = np.zeros(pool), np.zeros((101, pool))
    price_loss, price_grid_loss, played = 0.0, np.zeros(101), 0
    while (allocation := scheduler.next_round()) is not None:
        state, slope, price = scheduler.state_dict(), scheduler.slope, scheduler.price
        plan = np.zeros(pool)
        plan[state["plan_ids"]] = state["plan_units"]
        rollouts = dense(allocation, pool)
        scheduler.update(rng.binomial(rollouts, rates), rollouts)
        c = scheduler.utility_rate()
        slope_losses += largest * slope * plan - conjugate(largest * slope, c, cap) / rounds
        slope_grid_losses += (
            largest * grid[:, None] * plan - conjugate(largest * grid[:, None], c, cap) / rounds
        )
        gradient = fair - plan.sum()
        price_loss, price_grid_loss, played = (
            price_loss + price * gradient,
            price_grid_loss + grid * gradient,
            played + 1,
        )
    # D * G * sqrt(K): slopes have diameter `largest` and gradients up to Nmax; the price has
    # diameter 1 here.
    assert (
        slope_losses - slope_grid_losses.min(axis=0) <= largest * most * np.sqrt(rounds) + 1e-9
    ).all()
    assert price_loss - price_grid_loss.min() <= max(fair, capacity - fair) * np.sqrt(rounds) + 1e-9


def test_protocol_misuse() -> None:
    scheduler = CeroScheduler(4, 2, 16, 2, 2, 8)
    zeros = np.zeros(4, dtype=np.int64)
    with pytest.raises(RuntimeError, match="update\\(\\) without an Allocation"):
        scheduler.update(zeros, zeros)
    allocation = scheduler.next_round()
    assert allocation is not None
    with pytest.raises(RuntimeError, match="open_round\\(\\) before close_round\\(\\)"):
        scheduler.next_round()
    counts = dense(allocation, 4)
    with pytest.raises(ValueError, match="round 0 allocated"):
        scheduler.update(zeros, counts + np.where(counts > 0, 1, 0))
    with pytest.raises(ValueError, match="did not allocate"):
        scheduler.update(zeros, counts + np.where(counts > 0, 0, 1))
    with pytest.raises(ValueError, match="successes of"):
        scheduler.update(counts + 1, counts)
    # a missing reward is allowed, and a failed update changed nothing
    scheduler.update(zeros, counts - 1 * (counts > 0))
    assert scheduler.round == 1
    np.testing.assert_array_equal(scheduler.posterior.b, 1 + counts - 1 * (counts > 0))


def test_refund_returns_to_the_budget() -> None:
    scheduler = CeroScheduler(4, 4, 16, 2, 2, 8, spend_down=True)
    allocation = scheduler.next_round()
    assert allocation is not None
    assert scheduler.remaining_rollouts == 8
    for bad in (-1, 9):
        with pytest.raises(ValueError, match="refund"):
            scheduler.refund(bad)
    scheduler.refund(3)
    scheduler.update(np.zeros(4), np.zeros(4))
    scheduler.refund(3)
    assert scheduler.remaining_rollouts == 14
    with pytest.raises(ValueError, match="refund"):
        scheduler.refund(3)
    play(scheduler, np.full(4, 0.5), 0)
    assert scheduler.remaining_rollouts == 0
    last = CeroScheduler(4, 1, 8, 2, 2, 8)
    assert last.next_round() is not None
    last.refund(8)
    last.update(np.zeros(4), np.zeros(4))
    assert last.next_round() is None  # no round is left to spend it in


@pytest.mark.parametrize(
    "change, message",
    [
        ({"budget_rollouts": 1001}, "nearest valid values: 1000 or 1008"),
        ({"budget_rollouts": 3}, "nearest valid values: 8$"),
        ({"capacity_rollouts": 81}, "capacity_rollouts = 81 is not a multiple .* 80 or 88"),
        (
            {"budget_rollouts": 1608},
            r"budget_rollouts <= rounds \* capacity_rollouts fails: 1608 > 20 \* 80 = 1600",
        ),
        (
            {"num_prompts": 9, "max_units_per_prompt": 1},
            r"capacity_rollouts <= num_prompts .* fails: 80 > 9 \* 1 \* 8 = 72",
        ),
        ({"rounds": 0}, "rounds = 0"),
        ({"rounds": 2.0}, "rounds = 2.0, wanted an integer"),
        ({"saturation": 0.0}, "saturation"),
        ({"step_size": -1.0}, "step_size"),
        ({"price_init": 1.5}, "price_init"),
    ],
)
def test_configuration_errors(change: dict, message: str) -> None:
    valid = {
        "num_prompts": 10,
        "rounds": 20,
        "budget_rollouts": 1000,
        "rollouts_per_unit": 8,
        "max_units_per_prompt": 2,
    }
    valid["capacity_rollouts"] = 80
    with pytest.raises(ValueError, match=message):
        CeroScheduler(**{**valid, **change})


@pytest.mark.covers("duals non-finite")
@pytest.mark.parametrize(
    ("field", "value"),
    [("slope", np.full(4, np.nan)), ("slope", np.full(4, 2.0)), ("price", float("nan"))],
)
def test_duals_that_are_no_prices_are_refused(field: str, value: object) -> None:
    scheduler = CeroScheduler(4, 2, 16, 2, 2, 8)
    with pytest.raises(ValueError, match="slope and price must lie in"):
        scheduler.load_state_dict({**scheduler.state_dict(), field: value})
    scheduler.next_round()
    with pytest.raises(ValueError, match="nan successes"):
        scheduler.update(np.full(4, np.nan), np.full(4, 2))


def test_state_errors_name_the_field() -> None:
    state = CeroScheduler(4, 2, 16, 2, 2, 8).state_dict()
    for other, field in (
        (CeroScheduler(5, 2, 16, 2, 2, 8), "num_prompts"),
        (CeroScheduler(4, 2, 16, 2, 2, 8, seed=1), "seed"),
        (CeroScheduler(4, 2, 16, 2, 2, 8, step_size=0.1), "step_size"),
        (CeroScheduler(4, 2, 16, 2, 2, 8, spend_down=True), "spend_down"),
    ):
        with pytest.raises(ValueError, match=f"^scheduler state field '{field}' is .*$"):
            other.load_state_dict(state)
    scheduler = CeroScheduler(4, 2, 16, 2, 2, 8)
    with pytest.raises(ValueError, match="'slope'"):
        scheduler.load_state_dict({**state, "slope": np.zeros(3)})
    with pytest.raises(ValueError, match="no field 'price'"):
        scheduler.load_state_dict({key: value for key, value in state.items() if key != "price"})


def test_a_state_of_another_version_is_refused_by_number() -> None:
    scheduler = CeroScheduler(4, 2, 16, 2, 2, 8)
    state = scheduler.state_dict()
    assert state["state_version"] == STATE_VERSION == 4
    with pytest.raises(ValueError, match=r"has version 3, this cero_rl reads version 4: finish"):
        scheduler.load_state_dict({**state, "state_version": 3})
    # whatever else differs: the version is what the message is about
    old = {"scheduler": "uniform", "state_version": np.asarray(2)}
    with pytest.raises(ValueError, match=r"has version 2, this cero_rl reads version 4"):
        scheduler.load_state_dict(old)
    with pytest.raises(ValueError, match="no field 'state_version'"):
        scheduler.load_state_dict({})


def test_readings_are_copies() -> None:
    scheduler = CeroScheduler(4, 2, 16, 2, 2, 8)
    scheduler.slope[:] = 0.0
    scheduler.value[:] = 0.0
    np.testing.assert_array_equal(scheduler.state_dict()["slope"], np.full(4, 4 / 6))
    np.testing.assert_allclose(scheduler.value, 1 / 6)
    np.testing.assert_allclose(scheduler.posterior_mean, 0.5)


def test_saturation_spreads_exposure() -> None:
    """The same pool: with little saturation the best prompts get it all, with more the rest get
    a share."""
    rates = np.linspace(0.02, 0.5, 40)
    spread = []
    for saturation in (0.2, 5.0):
        scheduler = CeroScheduler(
            40, 400, 400 * 8, 1, 1, 16, saturation=saturation, spend_down=True
        )
        know_rates(scheduler, rates)
        spread.append(np.sum(play(scheduler, rates, 0), axis=0).std())
    assert spread[0] > 1.5 * spread[1]
    assert utility_value(1.0, 0.0) == 0.0
