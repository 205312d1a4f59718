"""Why a round's prompts were chosen, as it is written down: the slopes before the round served
them, and what a reserve put first; the same from a saved state."""

from __future__ import annotations

import numpy as np
import pytest
from scheduler_sim import answer

from cero_rl.scheduler import CeroScheduler
from cero_rl.scheduler.reasons import Reasons

POOL = 40


def build(**options) -> CeroScheduler:
    return CeroScheduler(POOL, 12, 12 * 48, 4, 2, 64, seed=3, **options)


@pytest.mark.parametrize("plan", ["duals", "resolve", "thompson"])
def test_slopes_are_those_that_the_round_was_planned_by(plan: str) -> None:
    scheduler = build(plan=plan, spend_down=True)
    rng = np.random.default_rng(0)
    for _ in range(6):
        before = scheduler.exposure
        if plan == "duals":
            wanted = scheduler.slope
        else:
            rate = 4.0 * scheduler.slope_max * scheduler.value
            wanted = scheduler.utility.slope(rate, before) / scheduler.slope_max
        allocation = scheduler.open_round()
        assert allocation is not None
        found = scheduler.reasons()
        np.testing.assert_allclose(found.slope, wanted, rtol=1e-12)
        resumed = build(plan=plan, spend_down=True)
        resumed.load_state_dict(scheduler.state_dict())
        np.testing.assert_array_equal(resumed.reasons().slope, found.slope)
        assert found.reserved == {}
        answer(scheduler, rng.binomial(allocation.rollouts, 0.4))


def test_under_the_price_nobody_is_chosen_who_need_not_be() -> None:
    scheduler = build(price_init=0.5)
    rng = np.random.default_rng(1)
    while (allocation := scheduler.open_round()) is not None:
        found = scheduler.reasons()
        assert found.slope is not None
        assert (found.slope[allocation.prompt_ids] > scheduler.price).all()
        answer(scheduler, rng.binomial(allocation.rollouts, 0.4))


def test_what_a_reserve_put_first_is_named() -> None:
    cells = np.arange(POOL) % 2
    scheduler = build(
        explore_share=0.2, probe_share=0.1, cells=cells, direction="first_looks", spend_down=True
    )
    assert scheduler.reserve is not None
    rng, named = np.random.default_rng(2), set()
    for _ in range(8):
        looks = scheduler.reserve.looks.rounds.copy()
        allocation = scheduler.open_round()
        assert allocation is not None
        found = scheduler.reasons().reserved
        probes, floor = found["probe"], found["floor"]
        assert scheduler.reserve.probes[probes].all()
        chosen_probes = allocation.prompt_ids[scheduler.reserve.probes[allocation.prompt_ids]]
        assert set(chosen_probes) == set(probes), "a probe has no other way into a round"
        others = np.flatnonzero(~scheduler.reserve.probes)
        left = np.setdiff1d(others, floor)
        assert looks[floor].max(initial=-1) <= looks[left].min(), "the longest ago come first"
        named |= set(floor.tolist())
        answer(scheduler, rng.binomial(allocation.rollouts, 0.4))
    assert len(named) > 4


def test_a_line_holds_its_own_groups() -> None:
    slope = np.arange(10) / 8.0
    reasons = Reasons(slope, {"floor": np.array([7, 2]), "probe": np.array([9])})
    assert reasons.entry(np.array([2, 5, 7])) == {"slope": [0.25, 0.625, 0.875], "floor": [2, 7]}
    assert Reasons().entry(np.array([1])) == {}
