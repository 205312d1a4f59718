"""Shared by the scheduler tests: a pool with known success rates that plays a scheduler's
rounds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler import CeroScheduler, Evidence
from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.types import Allocation


def dense(allocation: Allocation, num_prompts: int) -> npt.NDArray[np.int64]:
    """i64[P] rollouts per prompt."""
    rollouts = np.zeros(num_prompts, dtype=np.int64)
    rollouts[allocation.prompt_ids] = allocation.rollouts
    return rollouts


def play(
    scheduler: BudgetedScheduler,
    rates: npt.NDArray[np.float64],
    seed: int,
    stop_round: int | None = None,
) -> list[npt.NDArray[np.int64]]:
    """Run to the end (or to `stop_round`); returns each round's rollouts i64[P]. Rewards depend on
    (seed, round) only."""
    history = []
    while scheduler.round != stop_round and (allocation := scheduler.next_round()) is not None:
        rollouts = dense(allocation, rates.shape[0])
        history.append(rollouts)
        scheduler.update(
            np.random.default_rng([seed, allocation.round]).binomial(rollouts, rates), rollouts
        )
    return history


def answer(
    scheduler: BudgetedScheduler, successes: npt.NDArray, trials: npt.NDArray | None = None
) -> None:
    """End the open round with the counts [G] of all its groups; trials None: every rollout has a
    reward."""
    assert scheduler.pending is not None
    tries = scheduler.pending.rollouts if trials is None else trials
    scheduler.observe(Evidence(scheduler.pending.prompt_ids, successes, tries.astype(np.int64)))
    scheduler.close_round()


def know_rates(
    scheduler: CeroScheduler, rates: npt.NDArray[np.float64], strength: float = 1e12
) -> None:
    """Make the posterior certain of `rates`, through the public state, so that worth never
    moves."""
    state = scheduler.state_dict()
    state["posterior_a"], state["posterior_b"] = strength * rates, strength * (1.0 - rates)
    state["slope"] = 4.0 * rates * (1.0 - rates)
    scheduler.load_state_dict(state)
