"""Wear by prompt: U(w z)/w in every place where the utility is used, against the plain definition,
and what it does to a run."""

from __future__ import annotations

import numpy as np
import pytest
from scheduler_sim import know_rates, play
from scipy.optimize import minimize

from cero_rl.scheduler import CeroScheduler, water_filling
from cero_rl.scheduler.rules import beta_draws, thompson_score
from cero_rl.scheduler.utility import UTILITIES

C, WEAR = np.array([0.05, 0.3, 0.3, 1.2]), np.array([1.0, 1.0, 4.0, 0.25])


@pytest.mark.parametrize("family", list(UTILITIES.values()), ids=lambda family: family.name)
def test_a_worn_utility_is_the_plain_one_at_w_z(family) -> None:
    z, theta = np.linspace(0.0, 9.0, 19)[:, None], np.array([0.01, 0.05, 0.2])[:, None]
    np.testing.assert_allclose(
        family.value(WEAR * C, z) / WEAR, family.value(C, WEAR * z) / WEAR, rtol=1e-14
    )
    np.testing.assert_allclose(
        family.slope(WEAR * C, z) / WEAR, family.slope(C, WEAR * z), rtol=1e-13
    )
    np.testing.assert_allclose(family.slope(WEAR * C, 0.0) / WEAR, C)
    supporting = family.supporting_exposure(WEAR * theta, WEAR * C, 1e9)
    inside = supporting > 0.0
    slope = family.slope(C, WEAR * supporting)
    np.testing.assert_allclose(slope[inside], np.broadcast_to(theta, slope.shape)[inside])


@pytest.mark.parametrize("family", list(UTILITIES.values()), ids=lambda family: family.name)
def test_water_filling_with_wear_is_the_optimum(family) -> None:
    start, budget = np.array([0.0, 1.0, 0.5, 2.0]), 6.0

    def loss(z: np.ndarray) -> float:
        return -float((family.value(C, WEAR * (start + z)) / WEAR).sum())

    best = minimize(
        loss,
        np.full(4, budget / 4),
        bounds=[(0.0, 5.0)] * 4,
        constraints={"type": "eq", "fun": lambda z: z.sum() - budget},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    got = water_filling(C, budget, 5.0, family, start, WEAR)
    assert got.sum() == pytest.approx(budget)
    assert loss(got) <= best.fun + 1e-9
    np.testing.assert_allclose(got, best.x, atol=2e-3)


def test_thompson_scores_are_slopes_of_the_worn_utility() -> None:
    family, counts = UTILITIES["exponential"], np.full(4, 3.0)
    exposure = np.array([0, 1, 2, 3])
    draw = beta_draws(np.random.default_rng(0), counts, counts)
    got = thompson_score(counts, counts, exposure, 0.5, family, np.random.default_rng(0), WEAR)
    wanted = family.slope(0.5 * 4.0 * draw * (1.0 - draw), WEAR * exposure) / 0.5
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


def build(**options) -> CeroScheduler:
    return CeroScheduler(40, 60, 60 * 40, 4, 1, 40, spend_down=True, seed=1, **options)


@pytest.mark.parametrize("plan", ["duals", "resolve", "thompson"])
def test_prompts_that_wear_out_get_less_once_they_were_served(plan) -> None:
    wear = np.where(np.arange(40) < 20, 1.0, 4.0)
    options = {"plan": plan, "step_size": 0.6, "cap_shares": 4.0, "wear": wear}
    scheduler = build(**options)
    know_rates(scheduler, np.full(40, 0.5))
    np.testing.assert_array_equal(scheduler.value[:20], scheduler.value[20:])
    history = np.array(play(scheduler, np.full(40, 0.5), 0))
    assert history.sum() == 2400
    early, total = history[:2].sum(axis=0), history.sum(axis=0)
    if plan != "resolve":  # which serves the largest deficits first
        assert early[20:].sum() > 0.2 * early.sum()  # the first look is worth as much
    assert total[20:].sum() < 0.4 * total.sum()


@pytest.mark.parametrize("plan", ["duals", "resolve", "thompson"])
def test_wear_of_one_changes_nothing(plan) -> None:
    rates = np.random.default_rng(0).random(40)
    np.testing.assert_array_equal(
        play(build(plan=plan, wear=np.ones(40)), rates, 0), play(build(plan=plan), rates, 0)
    )


def test_wear_is_checked_and_part_of_the_saved_identity() -> None:
    for bad in (np.ones(3), np.zeros(40), np.full(40, np.nan), np.full(40, 200.0)):
        with pytest.raises(ValueError, match=r"wear: wanted 40 numbers in \[0.01, 100\]"):
            build(wear=bad)
    worn = build(wear=np.full(40, 2.0))
    build(wear=np.full(40, 2.0)).load_state_dict(worn.state_dict())
    for state, scheduler in (
        (worn.state_dict(), build()),
        (build().state_dict(), worn),
        (build(wear=np.full(40, 3.0)).state_dict(), worn),
    ):
        with pytest.raises(ValueError, match="field 'wear'"):
            scheduler.load_state_dict(state)
    with pytest.raises(ValueError, match="cannot be exchanged"):
        worn.set_pool(np.arange(40))
