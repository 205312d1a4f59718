"""Shared by the rivals' tests: sizes that suit every scheduler, and rounds with several waves
played against known rates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler import Observed, Scheduler, make_scheduler
from cero_rl.scheduler.registry import SCHEDULER_NAMES, OptionValue
from cero_rl.scheduler.rivals import RIVALS

Wave = tuple[list[int], list[int]]
SIZED = tuple(name for name in SCHEDULER_NAMES if name in RIVALS and RIVALS[name][0].sizes_vary)


def build(
    name: str,
    *,
    pool: int = 12,
    rounds: int = 6,
    budget: int = 240,
    unit: int = 2,
    most: int = 8,
    capacity: int = 80,
    seed: int = 0,
    forgetting: float = 0.9,
    options: dict[str, OptionValue] | None = None,
    keep: str | None = None,
) -> Scheduler:
    return make_scheduler(
        name,  # pyright: ignore[reportArgumentType]
        num_prompts=pool,
        rounds=rounds,
        budget_rollouts=budget,
        rollouts_per_unit=unit,
        max_units_per_prompt=most,
        capacity_rollouts=capacity,
        forgetting=forgetting,
        spend_down=True,
        options=options,
        keep_rule=keep,  # pyright: ignore[reportArgumentType]
        seed=seed,
    )


class Table:
    """Rewards fixed in advance: outcome m of prompt i depends on (seed, i, m) only."""

    def __init__(self, rates: npt.NDArray[np.float64], seed: int) -> None:
        self.rates = rates
        self.luck = np.random.default_rng(seed).random((rates.shape[0], 4096))
        self.drawn = np.zeros(rates.shape[0], dtype=np.int64)

    def wins(self, prompt: int, count: int) -> int:
        first = int(self.drawn[prompt])
        self.drawn[prompt] += count
        return int((self.luck[prompt, first : first + count] < self.rates[prompt]).sum())


def play_round(scheduler: Scheduler, table: Table, waves: int | None = None) -> list[Wave] | None:
    """One round with all its waves (or the first `waves`, then no update); None at the end of the
    run."""
    pool = table.rates.shape[0]
    wave, played = scheduler.next_round(), []
    if wave is None:
        return None
    successes, trials = np.zeros(pool), np.zeros(pool, dtype=np.int64)
    while wave is not None:
        played.append((wave.prompt_ids.tolist(), wave.rollouts.tolist()))
        for prompt, count in zip(*played[-1]):
            successes[prompt] += table.wins(prompt, count)
            trials[prompt] += count
        if waves is not None and len(played) == waves:
            return played
        wave = scheduler.next_round(Observed(successes.copy(), trials.copy()))
    scheduler.update(successes, trials)
    return played


def play_all(scheduler: Scheduler, table: Table) -> list[list[Wave]]:
    rounds = []
    while (waves := play_round(scheduler, table)) is not None:
        rounds.append(waves)
    return rounds


def observe(scheduler: Scheduler, wins: dict[int, int]) -> Observed:
    """The pending allocation answered: `wins` successes for the prompts named, 0 for the others."""
    pending = scheduler.pending
    assert pending is not None
    pool = scheduler.value.shape[0]
    successes, trials = np.zeros(pool), np.zeros(pool, dtype=np.int64)
    trials[pending.prompt_ids] = pending.rollouts
    for prompt, count in wins.items():
        successes[prompt] = count
    return Observed(successes, trials)
