"""Would an allocator pay on this pool? The signal that each allocator's rollouts bring, over
uniform's, on draws of the pool's success rates.

In: measured pass rates, a budget, allocators. Out: one Payoff per allocator, its figures as
intervals over draws (a draw is a set of success rates and the luck of every rollout). The signal of
a rollout is p(1-p) of its prompt: the expected squared advantage under a perfect baseline, and to
first order both the signal and the noise of a gradient. Nothing is said about its direction.

A policy that moves: with drift D every logit rises by D over the run and wanders with standard
deviation D around that, the same for every allocator. What training on a prompt does to that prompt
is left out on purpose: an allocator that learns faster would be charged for the signal it used up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.rivals.selection import OracleScheduler
from cero_rl.scheduler.simulation.measured import Measured
from cero_rl.scheduler.simulation.summary import t975
from cero_rl.scheduler.simulation.worlds import World, sigmoid
from cero_rl.scheduler.sizes import Evidence, Ids

SIGNAL_RATES = 0.02, 0.98  # a prompt with signal: one rollout in fifty goes the other way
GROUP = 8  # of the live share that is told
MOST_PROMPTS, MOST_ROUNDS = 1000, 200  # of one simulation
_FAIR_SHARES = 10.0  # that a prompt can have, if the run's own rounds allow it
# of the runs that docs/when.md is calibrated with: 51,200 rollouts, 400 steps, a small model
USUAL_DRIFT = 1.5


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one simulation. Where rounds of a long run are played together, a prompt may have more
    rollouts of one: enough for ten fair shares of the budget."""

    prompts: int
    rounds: int
    budget_rollouts: int
    most_rollouts: int  # of one prompt in a round

    def capacity_rollouts(self, unit: int, most: int) -> int:
        """Of a round, for groups of 1 to `most` units."""
        share = math.ceil(self.budget_rollouts / (self.rounds * unit)) * unit
        return min(share, self.prompts * most * unit)


# from the sizes, the pool and a seed, a fresh scheduler
Maker = Callable[[Sizes, Measured, int], BudgetedScheduler]


@dataclass(frozen=True, slots=True)
class Spending:
    """What one allocator did with one draw."""

    rollouts: Ids  # [P]
    in_signal: float  # share of the rollouts on prompts that had signal then
    signal: float  # mean p(1-p) of a rollout
    first_looks: float  # share of the rollouts that were a prompt's first group


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and where 95 % of draws lie."""

    mean: float
    low: float
    high: float

    def map(self, f: Callable[[float], float]) -> Interval:
        """For a function that rises."""
        return Interval(f(self.mean), f(self.low), f(self.high))


@dataclass(frozen=True, slots=True)
class Payoff:
    """One allocator over all draws."""

    label: str
    in_signal: Interval
    signal: Interval  # mean p(1-p) of a rollout
    gain: Interval  # that over uniform's, draw by draw: g
    first_looks: Interval


@dataclass(frozen=True, slots=True)
class Answer:
    live: Interval  # share of uniform groups of 8 whose rewards would differ, today
    with_signal: Interval  # share of the prompts, today
    rollouts_per_prompt: float
    sizes: Sizes
    draws: int
    payoffs: tuple[Payoff, ...]  # the first is uniform


class DriftWorld(World):
    """Logits that rise by `drift` over the run and wander by as much (standard deviation at its
    end)."""

    def __init__(self, rates: Floats, seed: int, drift: float, rounds: int) -> None:
        super().__init__(rates, np.full(rates.shape[0], -1, dtype=np.int8), seed)
        self._logit = np.log(rates) - np.log1p(-rates)
        self._rise, self._walk = drift / rounds, drift / math.sqrt(rounds)
        self._rng = np.random.default_rng([seed, 5])

    @property
    def static(self) -> bool:
        return not self._rise

    def finish_round(self, ids: Ids, signal: Floats) -> None:
        if self._rise:
            self._logit += self._rise
            self._logit += self._walk * self._rng.standard_normal(self._logit.shape[0])
            self.rates = sigmoid(self._logit)


def spend(scheduler: BudgetedScheduler, world: World) -> Spending:
    """Run a one-wave allocator to the end of its budget."""
    oracle = scheduler if isinstance(scheduler, OracleScheduler) else None
    rollouts = np.zeros(world.rates.shape[0], dtype=np.int64)
    in_signal = first = 0
    signal = 0.0
    low, high = SIGNAL_RATES
    while True:
        if oracle is not None:
            oracle.set_rates(world.rates)
        wave = scheduler.open_round()
        if wave is None:
            break
        ids, n = wave.prompt_ids, wave.rollouts.astype(np.int64)
        p = world.rates[ids]
        wins = np.zeros(0)
        if ids.size:
            wins = np.add.reduceat(world.draw(ids, n), np.cumsum(n) - n)
        in_signal += int(n[(p >= low) & (p <= high)].sum())
        first += int(n[rollouts[ids] == 0].sum())
        signal += float(n @ (p * (1.0 - p)))
        rollouts[ids] += n
        world.finish_round(ids, np.empty(0))
        scheduler.observe(Evidence(ids, wins, n))
        scheduler.close_round()
    total = max(int(rollouts.sum()), 1)
    return Spending(rollouts, in_signal / total, signal / total, first / total)


def sizes_of(prompts: int, rounds: int, budget: int) -> Sizes:
    """The sizes that a run of `rounds` on `prompts` is simulated with: at most 1,000 prompts and
    200 rounds, the same rollouts a prompt. Raises ValueError for a budget below 8 rollouts."""
    played = min(prompts, MOST_PROMPTS)
    kept = int(budget * (played / prompts)) // 8 * 8
    if kept < 8:
        raise ValueError(f"{budget} rollouts for {prompts} prompts are too few; wanted 8 or more")
    fewer = max(1, min(rounds, MOST_ROUNDS, kept // 8))
    share = math.ceil(budget / rounds / prompts)  # rollouts of a prompt in one round of the run
    reach = math.ceil(_FAIR_SHARES * kept / played / fewer)
    most = max(math.ceil(kept / fewer / played), min(share * math.ceil(rounds / fewer), reach))
    return Sizes(played, fewer, kept, most)


def answer(
    pool: Measured,
    makers: Sequence[tuple[str, Maker]],
    *,
    rounds: int,
    budget: int,
    draws: int,
    drift: float = 0.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Answer:
    """Every allocator on every draw; the first is the one that others are compared with. A function
    of its arguments. Raises ValueError for fewer than 2 draws and sizes that do not fit."""
    if draws < 2:
        raise ValueError(f"draws = {draws}, wanted at least 2: an interval needs two")
    sizes = sizes_of(pool.prompts, rounds, budget)
    seen: list[list[Spending]] = [[] for _ in makers]
    live, share = [], []
    for draw in range(draws):
        rng = np.random.default_rng([draw, 7])
        part = pool
        if sizes.prompts < pool.prompts:
            part = pool.part(np.sort(rng.permutation(pool.prompts)[: sizes.prompts]))
        p = part.draw(rng)
        live.append(float((1.0 - p**GROUP - (1.0 - p) ** GROUP).mean()))
        share.append(float(((p >= SIGNAL_RATES[0]) & (p <= SIGNAL_RATES[1])).mean()))
        for runs, (_, make) in zip(seen, makers):
            world = DriftWorld(p, draw, drift, sizes.rounds)
            runs.append(spend(make(sizes, part, draw), world))
            progress(sum(map(len, seen)), draws * len(makers))
    base = np.array([run.signal for run in seen[0]])
    payoffs = []
    for (label, _), runs in zip(makers, seen):
        signal = np.array([run.signal for run in runs])
        payoffs.append(
            Payoff(
                label,
                interval([run.in_signal for run in runs]),
                interval(signal),
                interval(np.log(signal / base)).map(math.exp),  # a ratio: never below 0
                interval([run.first_looks for run in runs]),
            )
        )
    return Answer(
        interval(live), interval(share), budget / pool.prompts, sizes, draws, tuple(payoffs)
    )


def interval(values: Sequence[float] | Floats) -> Interval:
    """Where the next draw lies with 95 %: mean +- t sd sqrt(1 + 1/draws)."""
    numbers = np.asarray(values, dtype=np.float64)
    mean, count = float(numbers.mean()), numbers.shape[0]
    half = t975(count - 1) * float(numbers.std(ddof=1)) * math.sqrt(1.0 + 1.0 / count)
    return Interval(mean, mean - half, mean + half)
