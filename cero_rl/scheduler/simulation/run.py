"""One scheduler against one world, until its budget or its rounds are used up; what came of it.

In: a Scheduler and a World. Out: an Outcome, its curves on a common grid of the budget spent.
Values are those of the surrogate objective U = 1 - exp(-4 saturation q z / R), z in rollouts, R the
fair share, q the TRUE p(1-p), counted along the path: a round adds U(q_now, z + n) - U(q_now, z).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.offline import water_filling
from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.rivals.selection import OracleScheduler
from cero_rl.scheduler.simulation.worlds import KINDS, LearningWorld, World
from cero_rl.scheduler.sizes import Evidence, Ids, Samples

GRID = np.linspace(0.0, 1.0, 21)  # share of the budget
BIN_EDGES = np.array([0.05, 0.25, 0.75, 0.95])  # of the true success rate when sampled


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. Lifts are shares of the rollouts over shares of the pool: 1 is what uniform sampling
    gives."""

    spent_rollouts: int
    budget_rollouts: int
    rounds: int  # with at least one rollout
    groups: int
    live_groups: int  # rewards differ
    live_rollouts: int  # in live groups
    trained_rollouts: int  # after keep()
    value: float  # surrogate, a prompt
    optimum: float  # offline, a prompt; nan unless the world is static
    curve_optimum: Floats  # [21] offline optimum of that share of the budget; nan unless static
    ability_start: float
    ability: float
    kind_lift: Floats  # [4] by KINDS; nan where the pool has none
    bin_lift: Floats  # [5] by success rate when sampled: -.05 -.25 -.75 -.95 -1
    late_lift: float  # of prompts that came into reach late, since they did; nan without any
    curve_value: Floats  # [21] over GRID; nan beyond what was spent
    curve_ability: Floats  # [21]


class _Ledger:
    """Counts and curves while a run goes on."""

    def __init__(self, world: World, budget: int, saturation: float) -> None:
        pool = world.rates.shape[0]
        self.rate = 4.0 * saturation * pool / budget  # per rollout and unit of worth
        self.exposure: Ids = np.zeros(pool, dtype=np.int64)
        self.kinds, self.bins, self.bin_prompts = np.zeros(len(KINDS)), np.zeros(5), np.zeros(5)
        self.spent = self.groups = self.live = self.live_rollouts = self.trained = self.rounds = 0
        self.late = self.late_even = 0.0  # rollouts of late prompts, theirs of even shares
        self.value = 0.0
        self.curve = [(0.0, 0.0, world.ability())]

    def round(
        self, world: World, ids: Ids, rollouts: Ids, live: npt.NDArray[np.bool_], trained: int
    ) -> None:
        p, before = world.rates[ids], self.exposure[ids]
        c = self.rate * p * (1.0 - p)
        self.value += (
            float((np.exp(-c * before) * -np.expm1(-c * rollouts)).sum()) / self.exposure.shape[0]
        )
        self.exposure[ids] += rollouts
        kind = world.kind[ids]
        known = kind >= 0
        self.kinds += np.bincount(kind[known], weights=rollouts[known], minlength=len(KINDS))
        self.bins += np.bincount(
            np.searchsorted(BIN_EDGES, p, side="right"), weights=rollouts, minlength=5
        )
        self.bin_prompts += np.bincount(
            np.searchsorted(BIN_EDGES, world.rates, side="right"), minlength=5
        )
        if isinstance(world, LearningWorld):
            opened = world.opened_late
            self.late += float(rollouts[opened[ids]].sum())
            self.late_even += float(rollouts.sum()) * float(opened.mean())
        self.spent += int(rollouts.sum())
        self.groups += ids.shape[0]
        self.live += int(live.sum())
        self.live_rollouts += int(rollouts[live].sum())
        self.trained += trained
        self.rounds += 1


def simulate(
    scheduler: BudgetedScheduler,
    world: World,
    *,
    saturation: float = 1.0,
    optimum: Floats | None = None,
) -> Outcome:
    """Run to the end. optimum f64[21] over GRID (see `optimum_curve`): for regret."""
    oracle = scheduler if isinstance(scheduler, OracleScheduler) else None
    budget, pool = scheduler.remaining_rollouts, world.rates.shape[0]
    book = _Ledger(world, budget, saturation)
    while True:
        if oracle is not None:
            oracle.set_rates(world.rates)
        wave = scheduler.open_round()
        if wave is None:
            break
        successes, trials = np.zeros(pool), np.zeros(pool, dtype=np.int64)
        order, rewards, lengths = [], [], []
        while wave is not None and wave.prompt_ids.size:
            size = wave.rollouts.astype(np.int64)
            got = world.draw(wave.prompt_ids, size)
            successes[wave.prompt_ids] += np.add.reduceat(got, np.cumsum(size) - size)
            trials[wave.prompt_ids] += size
            if not scheduler.keeps_all:
                order.append(np.repeat(wave.prompt_ids, size))
                rewards.append(got)
                lengths.append(world.lengths(wave.prompt_ids, size))
            wave = scheduler.next_wave(_seen(scheduler, successes, trials))
        evidence = _seen(scheduler, successes, trials)
        ids, wins, tries = evidence.prompt_ids, evidence.successes, evidence.trials
        signal = np.empty(0)
        if ids.size:
            live = (wins > 0.0) & (wins < tries)
            if scheduler.keeps_all:
                signal, trained = wins * (tries - wins) / tries, int(tries.sum())
            else:
                samples = _ragged(
                    ids,
                    np.concatenate(order),
                    np.concatenate(rewards),
                    np.concatenate(lengths),
                    pool,
                )
                signal, trained = _signal(samples, scheduler.keep(samples))
            book.round(world, ids, tries, live, trained)
        world.finish_round(ids, signal)
        scheduler.observe(evidence)
        scheduler.close_round()
        book.curve.append((book.spent / budget, book.value, world.ability()))
    return _outcome(book, world, budget, optimum)


def _seen(scheduler: BudgetedScheduler, successes: Floats, trials: Ids) -> Evidence:
    """The open round so far, from counts [P]."""
    assert scheduler.pending is not None
    ids = scheduler.pending.prompt_ids
    return Evidence(ids, successes[ids], trials[ids])


def _ragged(ids: Ids, prompt: Ids, rewards: Floats, lengths: Ids, pool: int) -> Samples:
    """The round's rollouts group by group, in the order of ids; within a group in the order they
    were sampled."""
    position = np.empty(pool, dtype=np.int64)
    position[ids] = np.arange(ids.shape[0])
    group = position[prompt]
    order = np.argsort(group, kind="stable")
    offsets = np.concatenate(
        (np.zeros(1, dtype=np.int64), np.cumsum(np.bincount(group, minlength=ids.shape[0])))
    )
    return Samples(ids, rewards[order], offsets, lengths[order])


def _signal(samples: Samples, mask: npt.NDArray[np.bool_]) -> tuple[Floats, int]:
    """f64[G] sum of squared centred advantages of what is kept, and how many rollouts that is."""
    count = samples.prompt_ids.shape[0]
    group = np.repeat(np.arange(count), np.diff(samples.offsets))[mask]
    kept = np.bincount(group, minlength=count)
    wins = np.bincount(group, weights=samples.rewards[mask], minlength=count)
    return wins * (kept - wins) / np.maximum(kept, 1), int(mask.sum())


def optimum_curve(world: World, budget: int, saturation: float = 1.0) -> Floats:
    """f64[21] over GRID: the best surrogate value a prompt that a share of the budget can buy,
    rates known and static."""
    pool = world.rates.shape[0]
    rate = (4.0 * saturation * pool / budget) * world.rates * (1.0 - world.rates)
    best = [
        (-np.expm1(-rate * water_filling(rate, share * budget, float(budget)))).mean()
        for share in GRID
    ]
    return np.array(best)


def _outcome(book: _Ledger, world: World, budget: int, optimum: Floats | None) -> Outcome:
    spent, value, ability = np.array(book.curve).T
    beyond = spent[-1] + 1e-9 < GRID
    curves = [np.where(beyond, np.nan, np.interp(GRID, spent, line)) for line in (value, ability)]
    prompts = np.bincount(world.kind[world.kind >= 0], minlength=len(KINDS))
    return Outcome(
        spent_rollouts=book.spent,
        budget_rollouts=budget,
        rounds=book.rounds,
        groups=book.groups,
        live_groups=book.live,
        live_rollouts=book.live_rollouts,
        trained_rollouts=book.trained,
        value=book.value,
        optimum=float("nan") if optimum is None else float(optimum[-1]),
        curve_optimum=np.full(GRID.shape, np.nan) if optimum is None else optimum,
        ability_start=book.curve[0][2],
        ability=world.ability(),
        kind_lift=_lift(book.kinds, prompts),
        bin_lift=_lift(book.bins, book.bin_prompts),
        late_lift=book.late / book.late_even if book.late_even else float("nan"),
        curve_value=curves[0],
        curve_ability=curves[1],
    )


def _lift(rollouts: Floats, prompts: npt.NDArray[np.generic]) -> Floats:
    have = np.asarray(prompts, dtype=np.float64)
    shares = have / max(have.sum(), 1.0)
    used = rollouts / max(rollouts.sum(), 1.0)
    return np.where(shares > 0.0, used / np.where(shares > 0.0, shares, 1.0), np.nan)
