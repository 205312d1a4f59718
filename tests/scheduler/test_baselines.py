"""Uniform sampling: the same budget, every prompt in turn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_sim import play

from cero_rl.scheduler import BudgetSpec, CeroOptions, Shared, make_scheduler
from cero_rl.scheduler.sizes import NoOptions
from cero_rl.scheduler.uniform import UniformScheduler


def uniform(*sizes: int, forgetting: float = 1.0, seed: int = 0) -> UniformScheduler:
    shared = Shared(forgetting=forgetting, seed=seed)
    return UniformScheduler(BudgetSpec(*sizes), shared, NoOptions())


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    unit=st.integers(1, 4),
    most=st.integers(1, 4),
    pool=st.integers(1, 12),
    rounds=st.integers(1, 12),
)
def test_spends_exactly_and_evenly(
    data: st.DataObject, unit: int, most: int, pool: int, rounds: int
) -> None:
    capacity = data.draw(st.integers(1, pool * most))
    budget = data.draw(st.integers(1, rounds * capacity))
    scheduler = uniform(
        pool, rounds, budget * unit, unit, most, capacity * unit, seed=data.draw(st.integers(0, 9))
    )
    history = np.array(play(scheduler, np.full(pool, 0.5), 0))
    assert history.sum() == budget * unit
    assert scheduler.remaining_rollouts == 0
    assert (history.sum(axis=1) <= capacity * unit).all()
    visits = (history > 0).sum(axis=0)
    assert visits.max() - visits.min() <= 1
    short = (history > 0) & (history < unit * most)
    assert (short.sum(axis=1) <= 1).all()
    if capacity % most == 0:
        groups = (history > 0).sum(axis=1)
        assert groups.max() - groups.min() <= 1
        assert short.sum() == (budget % most > 0)


def test_epochs_are_reshuffled_and_the_cursor_is_carried() -> None:
    scheduler = uniform(10, 10, 10 * 6, 2, 1, 12)
    history = np.array(play(scheduler, np.full(10, 0.5), 0))
    assert (history.sum(axis=1) == 6).all()
    assert (np.sum(history > 0, axis=0) == 3).all()
    orders = [scheduler._shuffled(epoch).tolist() for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_a_round_across_an_epoch_never_repeats_a_prompt() -> None:
    for seed in range(20):
        scheduler = uniform(5, 20, 20 * 4, 1, 1, 4, seed=seed)
        visits = np.zeros(5)
        for history in play(scheduler, np.full(5, 0.5), 0):
            assert history.max() == 1
            visits += history
            assert visits.max() - visits.min() <= 1 + (visits.sum() % 5 > 0)
        assert (visits == 16).all()


def test_resume_in_the_middle() -> None:
    def fresh() -> UniformScheduler:
        return uniform(7, 11, 11 * 4 * 2, 2, 2, 12, forgetting=0.9, seed=4)

    rates = np.random.default_rng(0).random(7)
    wanted = play(fresh(), rates, 1)
    first = fresh()
    got = play(first, rates, 1, stop_round=5)
    resumed = fresh()
    resumed.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(np.array(got + play(resumed, rates, 1)), np.array(wanted))
    with pytest.raises(ValueError, match="damaged"):
        fresh().load_state_dict({**first.state_dict(), "order": np.zeros(7, dtype=np.int64)})


def test_make_scheduler() -> None:
    sizes = {
        "num_prompts": 8,
        "rounds": 4,
        "budget_rollouts": 64,
        "rollouts_per_unit": 4,
        "max_units_per_prompt": 1,
        "capacity_rollouts": 32,
    }
    cero = make_scheduler("cero", **sizes, cero=CeroOptions(spend_down=True))
    plain = make_scheduler("uniform", **sizes, saturation=2.0)
    for scheduler in (cero, plain):
        assert sum(h.sum() for h in play(scheduler, np.full(8, 0.5), 0)) == 64
        assert scheduler.posterior_mean.shape == scheduler.value.shape == (8,)
    with pytest.raises(ValueError, match="'scheduler' is 'uniform'"):
        cero.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="unknown scheduler 'grpo'"):
        make_scheduler("grpo", **sizes)
    with pytest.raises(ValueError, match="'uniform' has none of CERO's options"):
        make_scheduler("uniform", **sizes, cero=CeroOptions())
    with pytest.raises(ValueError, match="'cero' takes its options as a record of CeroOptions"):
        make_scheduler("cero", **sizes, options={"plan": "resolve"})
