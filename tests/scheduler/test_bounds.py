"""What the papers prove, checked run by run: regret on the surrogate, static and drifting, with
learnt and with known rates."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_sim import answer

from cero_rl.scheduler import CeroScheduler, utility_value, water_filling


class Knows(CeroScheduler):
    """CERO with the worth given by the test instead of by the posterior."""

    truth = np.zeros(0)

    def _revalue(self, ids) -> None:
        self._value[:] = self.truth if self.truth.size else 0.25


def static_bound(
    saturation: float, most: int, largest: float, pool: int, fair: float, rounds: int, error: float
) -> float:
    """Reg/M; fair = B/(K M) units, largest = max(B/K, C - B/K), error = mean |predicted - true
    worth|."""
    return min(
        1.0,
        saturation * (most + largest / pool) / fair / np.sqrt(rounds)
        + 8.0 * saturation * most / fair * error,
    )


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 9999),
    saturation=st.sampled_from([0.3, 1.0]),
    most=st.integers(1, 2),
    forgetting=st.sampled_from([1.0, 0.97]),
)
def test_static_bound_with_learnt_rates(
    seed: int, saturation: float, most: int, forgetting: float
) -> None:
    rng = np.random.default_rng(seed)
    pool, rounds, unit = 12, 300, 8
    capacity = int(rng.integers(pool // 2, pool * most + 1))
    budget = int(rng.integers(rounds * capacity // 2, rounds * capacity + 1))
    scheduler = CeroScheduler(
        pool,
        rounds,
        budget * unit,
        unit,
        most,
        capacity * unit,
        saturation=saturation,
        forgetting=forgetting,
        seed=seed,
    )
    rates = rng.beta(0.7, 0.7, pool)
    worth, exposure, error = rates * (1.0 - rates), np.zeros(pool), 0.0
    while (allocation := scheduler.next_round()) is not None:
        exposure[allocation.prompt_ids] += allocation.rollouts / unit
        answer(scheduler, rng.binomial(allocation.rollouts, rates[allocation.prompt_ids]))
        error += float(np.abs(scheduler.value - worth).mean()) / rounds
    c = 4.0 * scheduler.slope_max * worth
    best = utility_value(c, water_filling(c, budget, rounds * most)).mean()
    regret = best - utility_value(c, exposure).mean()
    fair = budget / rounds
    assert (
        regret
        <= static_bound(
            saturation, most, max(fair, capacity - fair), pool, fair / pool, rounds, error
        )
        + 1e-9
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("speed", [0.0, 1e-4, 1e-3])
def test_drifting_bound_along_the_path(seed: int, speed: float) -> None:
    """Value is counted along the path of true rates; the bound must hold against every feasible
    plan, so against each of these."""
    rng = np.random.default_rng(seed)
    pool, rounds, saturation = 12, 900, 0.5
    scheduler = Knows(pool, rounds, rounds * 6, 1, 1, 8, saturation=saturation, seed=seed)
    worth = rng.uniform(0.0, 0.25, pool)
    path = [worth]
    for _ in range(rounds):
        path.append(np.clip(path[-1] + speed * rng.choice([-1.0, 1.0], pool), 0.0, 0.25))
    steps = float(sum(np.abs(after - before).max() for before, after in pairwise(path)))
    plans = []
    for round_index in range(rounds):
        allocation = scheduler.next_round()
        if allocation is None:
            break
        plan = np.zeros(pool)
        plan[allocation.prompt_ids] = allocation.rollouts
        plans.append(plan)
        scheduler.truth = path[round_index]  # the worth of the round that was just played
        scheduler.update(np.zeros(pool), np.zeros(pool, dtype=np.int64))

    def path_value(plan_of_round) -> float:
        exposure, value = np.zeros(pool), 0.0
        for round_index, plan in enumerate(plan_of_round):
            c = 4.0 * scheduler.slope_max * path[round_index]
            value += float((utility_value(c, exposure + plan) - utility_value(c, exposure)).mean())
            exposure += plan
        return value

    got = path_value(plans)
    rivals = [
        water_filling(4.0 * scheduler.slope_max * path[at], rounds * 6, rounds) / rounds
        for at in (0, rounds // 2, rounds - 1)
    ]
    rivals.append(
        water_filling(4.0 * scheduler.slope_max * np.mean(path, axis=0), rounds * 6, rounds)
        / rounds
    )
    bound = static_bound(saturation, 1, 6.0, pool, 0.5, rounds, 0.0) + min(
        saturation, 4.0 * saturation * (1.0 + 1.0 / 0.5) * steps
    )
    for rival in rivals:
        assert path_value([rival] * rounds) - got <= bound + 1e-9


def test_the_paths_value_is_the_utility_where_nothing_drifts() -> None:
    c, plans = np.array([0.3, 0.1]), np.random.default_rng(0).integers(0, 3, (20, 2))
    before = np.cumsum(plans, axis=0) - plans
    steps = (utility_value(c, before + plans) - utility_value(c, before)).sum()
    assert steps == pytest.approx(float(utility_value(c, plans.sum(axis=0)).sum()), abs=1e-12)


def surrogate(seed: int, switch: float, forgetting: float) -> float:
    """Path value per prompt; each round a share `switch` of the prompts gets a new rate."""
    pool, rounds = 60, 240
    rng = np.random.default_rng(seed)
    rates, exposure, value = rng.beta(0.4, 0.6, pool), np.zeros(pool), 0.0
    scheduler = CeroScheduler(
        pool,
        rounds,
        rounds * 32,
        4,
        1,
        32,
        step_size=5 / np.sqrt(rounds),
        cap_shares=4.0,
        forgetting=forgetting,
        spend_down=True,
    )
    while (allocation := scheduler.next_round()) is not None:
        ids, luck = allocation.prompt_ids, rng.random((pool, 4))
        c = 4.0 * scheduler.slope_max * (rates * (1.0 - rates))[ids]
        value += float(
            (utility_value(c, exposure[ids] + 1) - utility_value(c, exposure[ids])).sum()
        )
        exposure[ids] += 1
        answer(scheduler, (luck[ids] < rates[ids, None]).sum(axis=1))
        rates = np.where(rng.random(pool) < switch, rng.beta(0.4, 0.6, pool), rates)
    return value / pool


def test_forgetting_wins_under_drift_and_loses_when_static() -> None:
    for switch, sign in ((0.02, 1.0), (0.0, -1.0)):
        gain = np.array(
            [surrogate(seed, switch, 0.95) - surrogate(seed, switch, 1.0) for seed in range(8)]
        )
        assert sign * gain.mean() > 2.365 * gain.std(ddof=1) / np.sqrt(8)  # Student's t, 95 %
