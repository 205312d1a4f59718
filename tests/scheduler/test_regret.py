"""Regret against the offline optimum with known rates: the paper's bound, and the fall like
1/sqrt(K) or faster."""

import numpy as np
import pytest
from scheduler_sim import answer, know_rates

from cero_rl.scheduler import CeroScheduler, utility_value, water_filling

ROUNDS = np.array([16, 64, 256, 1024, 4096, 16384])


def regret(
    rounds: int, saturation: float, spend_down: bool, fair: int = 12, most: int = 2
) -> tuple[float, float]:
    """Regret per prompt, and the bound of the paper for it; `fair` units a round on average, at
    most 24, for 24 prompts."""
    pool, capacity = 24, 24
    scheduler = CeroScheduler(
        pool, rounds, rounds * fair, 1, most, capacity, saturation=saturation, spend_down=spend_down
    )
    rates = np.linspace(0.01, 0.5, pool)
    know_rates(scheduler, rates)
    c = scheduler.utility_rate()
    # what these rollouts say cannot move a posterior that is certain
    while (allocation := scheduler.next_round()) is not None:
        answer(scheduler, np.zeros(allocation.prompt_ids.shape))
    got = utility_value(c, scheduler.exposure).mean()
    best = utility_value(c, water_filling(c, rounds * fair, rounds * most)).mean()
    bound = (
        saturation * (most + max(fair, capacity - fair) / pool) / (fair / pool) / np.sqrt(rounds)
    )
    return best - got, min(1.0, bound)


@pytest.mark.parametrize("saturation", [1.0, 3.0])
@pytest.mark.parametrize("spend_down", [False, True])
def test_regret_falls_like_one_over_sqrt_rounds(saturation: float, spend_down: bool) -> None:
    horizons = ROUNDS if saturation == 1.0 else ROUNDS[:-1]
    regrets, bounds = np.array(
        [regret(int(rounds), saturation, spend_down) for rounds in horizons]
    ).T
    assert (regrets >= -1e-9).all()
    assert (regrets <= bounds).all()
    assert (regrets * np.sqrt(horizons) <= 0.1 * saturation).all()
    # 16 rounds are too few for the price to leave its start: there the run is a round robin, and
    # better than the trend.
    trend = np.polyfit(np.log(horizons[1:]), np.log(regrets[1:]), 1)[0]
    assert trend <= -0.45


@pytest.mark.parametrize("saturation", [1.0, 3.0])
def test_with_room_for_the_price_the_fall_begins_at_16_rounds(saturation: float) -> None:
    horizons = ROUNDS if saturation == 1.0 else ROUNDS[:-1]
    regrets, bounds = np.array(
        [regret(int(rounds), saturation, False, fair=6, most=1) for rounds in horizons]
    ).T
    assert (regrets >= -1e-9).all()
    assert (regrets <= bounds).all()
    assert (regrets * np.sqrt(horizons) <= 0.2 * saturation).all()
    assert np.polyfit(np.log(horizons), np.log(regrets), 1)[0] <= -0.45
