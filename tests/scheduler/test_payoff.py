"""Whether an allocator pays, against sums by hand: what oracle and uniform get from tiny pools, and
draws of success rates against the rates that were measured."""

import numpy as np
import pytest

from cero_rl.commands.simulate_payoff import MAKERS, ORACLE, PLUS, UNIFORM
from cero_rl.scheduler import make_scheduler
from cero_rl.scheduler.simulation.measured import Measured
from cero_rl.scheduler.simulation.payoff import (
    DriftWorld,
    Sizes,
    answer,
    interval,
    sizes_of,
    spend,
)
from cero_rl.scheduler.simulation.worlds import World

MAKE = dict(MAKERS)


def still(*rates: float) -> World:
    return World(np.array(rates), np.full(len(rates), -1, dtype=np.int8), 0)


def unknown(prompts: int) -> Measured:
    return Measured(np.zeros(prompts), np.ones(prompts))


def test_one_prompt_with_signal_by_hand() -> None:
    """Of four prompts one has p = .5, the others 0, 0 and 1: 64 rollouts in 8 rounds, groups of
    8."""
    sizes = Sizes(4, 8, 64, 8)
    run = spend(MAKE[ORACLE](sizes, unknown(4), 0), still(0.5, 0.0, 0.0, 1.0))
    assert run.rollouts.tolist() == [64, 0, 0, 0]
    assert (run.signal, run.in_signal, run.first_looks) == (0.25, 1.0, 8 / 64)
    run = spend(MAKE[UNIFORM](sizes, unknown(4), 0), still(0.5, 0.0, 0.0, 1.0))
    assert run.rollouts.tolist() == [16, 16, 16, 16]
    assert (run.signal, run.in_signal, run.first_looks) == (0.0625, 0.25, 0.5)


def test_two_prompts_with_signal_by_hand() -> None:
    """At the optimum c1 exp(-c1 z1) = c2 exp(-c2 z2) with z1 + z2 = B, c = 4 saturation q P / B:
    z1 = 18.9 and z2 = 41.1 for q = .25 and .09."""
    scheduler = make_scheduler(
        "oracle",
        num_prompts=3,
        rounds=10,
        budget_rollouts=60,
        rollouts_per_unit=1,
        max_units_per_prompt=6,
        capacity_rollouts=6,
        saturation=5.0,
    )
    run = spend(scheduler, still(0.5, 0.9, 0.0))
    first, second = 5.0 * 4 * 0.25 * 3 / 60, 5.0 * 4 * 0.09 * 3 / 60
    exact = (np.log(first / second) + second * 60) / (first + second)
    assert run.rollouts.tolist() == [round(exact), 60 - round(exact), 0] == [19, 41, 0]
    assert run.signal == pytest.approx((19 * 0.25 + 41 * 0.09) / 60)


def true_rates(prompts: int, rng: np.random.Generator) -> np.ndarray:
    """A third hopeless, a sixth solved, the rest spread."""
    kind = rng.random(prompts)
    return np.where(kind < 1 / 3, 0.001, np.where(kind < 1 / 2, 0.999, rng.beta(1.5, 1.5, prompts)))


def test_draws_agree_with_what_was_measured() -> None:
    """Shares of the pool (95 %) and prompts (90 %) lie where they are said to lie."""
    pools = 12
    inside = {"live": 0, "signal": 0}
    prompts = 0.0
    for pool in range(pools):
        rng = np.random.default_rng(pool)
        p = true_rates(400, rng)
        measured = Measured(rng.binomial(16, p).astype(float), np.full(400, 16.0))
        draws = np.array([measured.draw(rng) for _ in range(39)])
        for name, share in (
            ("live", lambda q: (1 - q**8 - (1 - q) ** 8).mean(axis=-1)),
            ("signal", lambda q: (q * (1 - q)).mean(axis=-1)),
        ):
            found = interval(share(draws))
            inside[name] += found.low <= share(p) <= found.high
        low, high = np.sort(draws, axis=0)[[1, -2]]  # 36 of 40 times
        spread = (p > 0.1) & (p < 0.9)
        prompts += ((low <= p) & (p <= high))[spread].mean() / pools
    assert min(inside.values()) >= 10, inside  # less is one in 50
    assert 0.83 < prompts < 0.95


def test_zero_of_sixteen_means_what_the_pool_says() -> None:
    """The same count is hopeless beside hopeless prompts, and hard beside hard ones; with cells the
    cell decides."""
    rng = np.random.default_rng(0)
    hopeless, hard = np.full(200, 0.0), rng.binomial(16, 0.08, 200).astype(float)
    none = np.flatnonzero(hard == 0)
    both = Measured(np.concatenate((hopeless, hard)), np.full(400, 16.0), np.repeat([0, 1], 200))

    def mean(pool: Measured, ids: np.ndarray) -> float:
        return float(np.mean([pool.draw(rng)[ids].mean() for _ in range(10)]))

    alone = mean(Measured(hopeless, np.full(200, 16.0)), np.arange(200))
    beside = mean(Measured(hard, np.full(200, 16.0)), none)
    assert alone < 0.01 < 0.03 < beside < 0.1
    assert mean(both, np.arange(200)) < 0.012
    assert mean(both, 200 + none) > 0.02


def test_the_gain_of_an_allocator_lies_in_its_interval() -> None:
    makers = [(label, MAKE[label]) for label in (UNIFORM, PLUS)]
    inside = 0
    for pool in range(6):
        rng = np.random.default_rng([pool, 1])
        p = np.clip(true_rates(150, rng), 1e-3, 1 - 1e-3)
        measured = Measured(rng.binomial(16, p).astype(float), np.full(150, 16.0))
        found = answer(measured, makers, rounds=20, budget=2400, draws=4)
        uniform, plus = (
            spend(make(found.sizes, measured, 9), DriftWorld(p, 9, 0.0, 20)) for _, make in makers
        )
        gain = found.payoffs[1].gain
        inside += gain.low <= plus.signal / uniform.signal <= gain.high
        assert found.payoffs[0].gain.low == found.payoffs[0].gain.high == 1.0
        assert 1.1 < gain.mean < 3.0
    assert inside >= 5


def test_an_answer_repeats_and_cells_travel_with_their_prompts() -> None:
    pool = Measured(np.arange(40.0) % 5, np.full(40, 4.0), np.arange(40) // 10)
    part = pool.part(np.array([3, 25, 39]))
    assert part.cells is not None
    assert part.cells.tolist() == [0, 1, 2]
    assert part.successes.tolist() == [3.0, 0.0, 4.0]
    ask = lambda: answer(pool, MAKERS, rounds=10, budget=320, draws=2, drift=1.0)
    assert ask() == ask()


def test_drift() -> None:
    """Rates stand still without it; with it they rise by it and spread by it, whoever asks."""
    rates = np.full(4000, 0.3)
    world, other = DriftWorld(rates, 3, 0.0, 10), DriftWorld(rates, 3, 1.0, 10)
    for _ in range(10):
        world.finish_round(np.array([1]), np.zeros(1))
        other.finish_round(np.array([], dtype=np.int64), np.zeros(0))
    assert np.array_equal(world.rates, rates)
    moved = np.log(other.rates / (1 - other.rates)) - np.log(0.3 / 0.7)
    assert moved.mean() == pytest.approx(1.0, abs=0.08)
    assert moved.std() == pytest.approx(1.0, abs=0.05)


def test_sizes_of_a_simulation() -> None:
    assert sizes_of(4000, 400, 51200) == Sizes(1000, 200, 12800, 1)
    assert sizes_of(100, 50, 800) == Sizes(100, 50, 800, 1)
    assert sizes_of(10, 2, 800) == Sizes(10, 2, 800, 40)  # rounds larger than the pool
    assert sizes_of(1000, 1000, 80_000) == Sizes(1000, 200, 80_000, 4)
    with pytest.raises(ValueError, match="7 rollouts for 3 prompts are too few"):
        sizes_of(3, 1, 7)


@pytest.mark.parametrize(
    "wins, trials, message",
    [
        ([0.0], [0.0], "no prompt has a measured pass rate"),
        ([3.0, 1.0], [2.0, 4.0], "wanted 0 <= successes <= trials"),
    ],
)
def test_counts_that_are_none(wins: list[float], trials: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Measured(np.array(wins), np.array(trials))


def test_one_draw_has_no_interval() -> None:
    with pytest.raises(ValueError, match="draws = 1, wanted at least 2"):
        answer(unknown(8), MAKERS, rounds=1, budget=64, draws=1)
