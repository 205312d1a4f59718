"""What a round sets aside: probes that never train, and a floor of exploration that reaches every
prompt in time."""

from __future__ import annotations

import numpy as np
import pytest
from scheduler_sim import play

from cero_rl.scheduler import CeroScheduler, Samples
from cero_rl.scheduler.reserve import LastLooks, Reserve, draw_probes, share_of_round

POOL = 96


def build(**options) -> CeroScheduler:
    return CeroScheduler(POOL, 60, 60 * 48, 4, 1, 48, spend_down=True, seed=2, **options)


PROBING = {"cells": np.arange(POOL) % 4, "direction": "first_looks", "probe_share": 0.1}


def test_probes_are_drawn_from_every_cell() -> None:
    labels = np.repeat([0, 1, 2, 3], [200, 40, 8, 3])
    probes = draw_probes(labels, 0.1, [5])
    assert np.bincount(labels[probes], minlength=4).tolist() == [20, 4, 1, 0]
    np.testing.assert_array_equal(draw_probes(labels, 0.1, [5]), probes)
    assert (draw_probes(labels, 0.1, [6]) != probes).any()


def test_shares_of_rounds_sum_up() -> None:
    for share, fair in ((0.03, 13.0), (0.1, 7.3), (0.5, 1.0)):
        units = [share_of_round(share, fair, k) for k in range(200)]
        assert min(units) >= 0
        assert max(units) - min(units) <= 1
        assert abs(sum(units) - 200 * share * fair) < 1.0


@pytest.mark.parametrize("plan", ["duals", "resolve", "thompson"])
def test_probes_get_their_share_in_turn_and_never_train(plan) -> None:
    scheduler = build(plan=plan, **PROBING)
    history = np.array(play(scheduler, np.full(POOL, 0.5), 0))
    assert scheduler.reserve is not None
    probes = scheduler.reserve.probes
    assert probes.sum() == 8
    looks = history[:, probes].sum(axis=0)
    assert history.sum() == 2880
    assert abs(int(looks.sum()) - 288) <= 4
    assert looks.max() - looks.min() <= 4  # one after another
    assert not scheduler.keeps_all
    ids = np.array([int(np.flatnonzero(probes)[0]), int(np.flatnonzero(~probes)[0])])
    samples = Samples(ids, np.zeros(5), np.array([0, 3, 5]), np.ones(5, dtype=np.int64))
    assert scheduler.keep(samples).tolist() == [False] * 3 + [True] * 2
    assert build().keeps_all


@pytest.mark.parametrize("plan", ["duals", "resolve", "thompson"])
def test_the_floor_reaches_every_prompt_and_costs_its_share(plan) -> None:
    """Rates at which half of the pool is worthless: without the floor it is left alone."""
    rates = np.where(np.arange(POOL) % 2, 0.5, 0.0)
    options = {"plan": plan, "step_size": 0.6, "cap_shares": 4.0}
    free, floored = build(**options), build(explore_share=0.25, **options)
    gaps = []
    for scheduler in (free, floored):
        history = np.array(play(scheduler, rates, 0))
        assert history.sum() == 2880
        rounds = [np.flatnonzero(np.append(np.insert(h, 0, 1), 1)) for h in history.T]
        gaps.append(max(int(np.diff(each).max()) for each in rounds))
    # 96 prompts, 3 groups of 12 a round: at the latest every 32 rounds
    assert gaps[1] <= 33
    if plan != "resolve":  # which is even by itself
        assert gaps[0] > 33


def test_starved_prompts_are_counted() -> None:
    reserve = LastLooks(10)
    assert reserve.starved_share(5, 3.0) == 0.0
    assert reserve.starved_share(6, 3.0) == 1.0
    reserve.served(np.arange(4), 5)
    assert reserve.starved_share(11, 3.0) == pytest.approx(0.6)
    assert reserve.starved_share(12, 3.0) == 1.0
    scheduler = build(explore_share=0.25)
    play(scheduler, np.full(POOL, 0.5), 0, stop_round=30)
    assert 0.0 <= scheduler.metrics()["cero/starved_share"] <= 1.0


def test_the_oldest_come_first_and_groups_fit_what_is_left() -> None:
    reserve = Reserve(np.zeros(6, dtype=np.int64), 0.0, 0.5, 0)
    for round_, ids in enumerate(([3, 1], [0, 2], [4])):
        reserve.looks.served(np.array(ids), round_)
    ties = np.array([5, 4, 3, 2, 1, 0])
    ids, units = reserve.due(3, 10.0, 2, ties, 100)
    assert ids.tolist() == [5, 3, 1]  # never, then round 0, ties by rank
    assert units.tolist() == [2, 2, 1]
    assert reserve.due(3, 10.0, 2, ties, 3)[1].tolist() == [2, 1]
    assert reserve.due(3, 10.0, 2, ties, 0)[0].shape == (0,)


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize(
    "options",
    [{}, {"proximal": 0.05}, {"plan": "resolve"}, {"explore_units": 1, "plan": "thompson"}],
    ids=str,
)
def test_capacity_and_budget_hold_with_ragged_groups(options: dict, share: float) -> None:
    scheduler = CeroScheduler(
        POOL, 40, 40 * 40, 1, 6, 64, spend_down=True, explore_share=share, **PROBING, **options
    )
    history = np.array(play(scheduler, np.random.default_rng(0).random(POOL), 0))
    assert history.sum(axis=1).max() <= 64
    assert history.max() <= 6
    assert history.sum() <= 1600
    if "explore_units" not in options:
        assert history.sum() == 1600


def test_without_a_floor_starved_prompts_are_counted_too() -> None:
    """A tuned price leaves what it has judged dead alone; the share is kept over a save, and a
    state of before it was kept counts from the resume on."""
    rates = np.where(np.arange(POOL) % 2, 0.5, 0.0)
    options = {"step_size": 0.6, "cap_shares": 4.0}
    scheduler = build(**options)
    play(scheduler, rates, 0, stop_round=30)
    share = scheduler.metrics()["cero/starved_share"]
    state = scheduler.state_dict()
    again, older = build(**options), build(**options)
    again.load_state_dict(state)
    assert again.metrics()["cero/starved_share"] == share
    older.load_state_dict({key: value for key, value in state.items() if key != "last_looks"})
    assert older.metrics()["cero/starved_share"] == 0.0
    floored = build(**options, explore_share=0.25)
    play(floored, rates, 0, stop_round=30)
    assert share > 0.0
    assert floored.metrics()["cero/starved_share"] < share
