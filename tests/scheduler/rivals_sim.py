"""Shared by the rivals' tests: sizes that suit every scheduler, and rounds with several waves
played against known rates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler import ALLOCATORS, CeroOptions, Evidence, make_scheduler
from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.registry import OptionValue, allocator
from cero_rl.scheduler.rivals.common import RivalScheduler

Wave = tuple[list[int], list[int]]
SIZED = tuple(
    name
    for name, each in ALLOCATORS.items()
    if issubclass(each.kind, RivalScheduler) and each.kind.sizes_vary
)


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
) -> BudgetedScheduler:
    return make_scheduler(
        name,
        num_prompts=pool,
        rounds=rounds,
        budget_rollouts=budget,
        rollouts_per_unit=unit,
        max_units_per_prompt=most,
        capacity_rollouts=capacity,
        forgetting=forgetting,
        cero=CeroOptions(spend_down=True) if allocator(name).is_cero else None,
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


def seen(
    scheduler: BudgetedScheduler, successes: npt.NDArray[np.float64], trials: npt.NDArray[np.int64]
) -> Evidence:
    """All groups of the open round, from counts [P]."""
    assert scheduler.pending is not None
    ids = scheduler.pending.prompt_ids
    return Evidence(ids, successes[ids], trials[ids])


def play_round(
    scheduler: BudgetedScheduler, table: Table, waves: int | None = None
) -> list[Wave] | None:
    """One round with all its waves (or the first `waves`, then it stays open); None at the end of
    the run."""
    pool = table.rates.shape[0]
    wave = scheduler.open_round()
    if wave is None:
        return None
    played = []
    successes, trials = np.zeros(pool), np.zeros(pool, dtype=np.int64)
    while wave is not None:
        played.append((wave.prompt_ids.tolist(), wave.rollouts.tolist()))
        for prompt, count in zip(*played[-1]):
            successes[prompt] += table.wins(prompt, count)
            trials[prompt] += count
        if waves is not None and len(played) == waves:
            return played
        wave = scheduler.next_wave(seen(scheduler, successes, trials))
    scheduler.observe(seen(scheduler, successes, trials))
    scheduler.close_round()
    return played


def play_all(scheduler: BudgetedScheduler, table: Table) -> list[list[Wave]]:
    rounds = []
    while (waves := play_round(scheduler, table)) is not None:
        rounds.append(waves)
    return rounds


def answered(scheduler: BudgetedScheduler, wins: dict[int, int]) -> Evidence:
    """The pending allocation answered: `wins` successes for the prompts named, 0 for the others."""
    assert scheduler.pending is not None
    ids, trials = scheduler.pending.prompt_ids, scheduler.pending.rollouts.astype(np.int64)
    assert set(wins) <= set(ids.tolist())
    successes = np.array([wins.get(prompt, 0) for prompt in ids.tolist()], dtype=np.float64)
    return Evidence(ids, successes, trials)
