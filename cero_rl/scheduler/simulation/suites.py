"""What is simulated: entries (a scheduler with its sizes and options), cases (a pool, a budget,
entries) and the named suites.

All entries of a case have the same budget and number of rounds. A group of 8 rollouts is the
measure: rules that give whole groups have units of 8, rules that size groups have units of 2 and up
to 64 of them (Knapsack: 128 rollouts, as published).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.options import CeroOptions
from cero_rl.scheduler.registry import OptionValue, allocator, make_scheduler
from cero_rl.scheduler.rivals.keep import KeepName
from cero_rl.scheduler.simulation.replay import Recorded
from cero_rl.scheduler.simulation.worlds import PoolSpec

Options = tuple[tuple[str, OptionValue], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a table."""

    label: str
    scheduler: str
    unit: int = 8
    most: int = 1
    slack: float = 1.0  # capacity of a round over the equal share of the budget
    forgetting: float = 1.0
    step_scale: float = 1.0
    options: Options = ()
    keep: KeepName | None = None
    saturation: float = 1.0
    cero: Options = ()  # of CeroOptions, beside the step and spend_down

    def build(self, prompts: int, rounds: int, budget: int, seed: int) -> BudgetedScheduler:
        """Raises ValueError where the sizes do not fit."""
        share = math.ceil(budget * self.slack / (rounds * self.unit)) * self.unit
        capacity = min(share, prompts * self.most * self.unit)
        cero = None
        if allocator(self.scheduler).is_cero:
            step = self.step_scale / math.sqrt(rounds)
            cero = replace(CeroOptions(step_size=step, spend_down=True), **dict(self.cero))
        return make_scheduler(
            self.scheduler,
            num_prompts=prompts,
            rounds=rounds,
            budget_rollouts=budget,
            rollouts_per_unit=self.unit,
            max_units_per_prompt=self.most,
            capacity_rollouts=capacity,
            saturation=self.saturation,
            forgetting=self.forgetting,
            cero=cero,
            options=dict(self.options),
            keep_rule=self.keep,
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class Case:
    """A pool and a budget that all entries share. The first entry is the one the others are
    compared with."""

    pool: PoolSpec
    rounds: int
    budget_rollouts: int
    entries: tuple[Entry, ...]
    recorded: Recorded | None = None  # replay these rates instead of building the pool


@dataclass(frozen=True, slots=True)
class Suite:
    name: str
    about: str
    cases: tuple[Case, ...]


UNIFORM = Entry("uniform", "uniform")
ORACLE = Entry("oracle (knows p)", "oracle")
CERO = Entry("cero, as published", "cero")
CERO_TUNED = Entry("cero, step x3", "cero", step_scale=3.0)
THOMPSON = Entry("thompson, rho .98", "thompson", forgetting=0.98)


def _fine(
    label: str, scheduler: str, *options: tuple[str, OptionValue], slack: float = 1.0
) -> Entry:
    return Entry(label, scheduler, unit=2, most=64, slack=slack, forgetting=0.98, options=options)


_VIGOR = _fine("vigor", "vigor", slack=2.0)
RIVAL_ENTRIES: tuple[Entry, ...] = (
    UNIFORM,
    Entry("random matched", "random_matched"),
    Entry("fixed price", "fixed_price"),
    Entry("preset, falling", "preset", slack=2.0, options=(("shape", "falling"),)),
    CERO,
    CERO_TUNED,
    Entry("greedy, rho .98", "greedy", forgetting=0.98),
    THOMPSON,
    Entry(
        "thompson, first 4",
        "thompson",
        unit=2,
        most=4,
        forgetting=0.98,
        options=(("first_rollouts", 4),),
    ),
    Entry("greso", "greso"),
    _fine("knapsack", "knapsack"),
    _fine("vip, dr_grpo", "vip", ("objective", "dr_grpo")),
    _fine("vip, rloo", "vip", ("objective", "rloo")),
    _fine("gvm_p", "gvm_p"),
    _fine("hit utility", "hit_utility"),
    _fine("hora", "hora", slack=2.0),
    Entry("dapo", "dapo", slack=3.0),
    _fine("reinforce_ada", "reinforce_ada", slack=2.0),
    _fine("speed_rl", "speed_rl", slack=2.0),
    _fine("pilot_commit", "pilot_commit", slack=2.0),
    _VIGOR,
    _fine("aero", "aero", slack=2.0),
    Entry("uniform 16, pods 8", "uniform", unit=16, keep="pods"),
    Entry("uniform 16, gfpo 8", "uniform", unit=16, keep="gfpo"),
    ORACLE,
)

ALIKE = PoolSpec("alike", dynamics="learning")
UNFILTERED = PoolSpec("unfiltered", shares=(0.60, 0.15, 0.10, 0.15), dynamics="learning")
# half of the skills come into reach between a quarter and a half of the run
LATE = PoolSpec("late", shares=(0.30, 0.10, 0.0, 0.60), dynamics="learning", late=0.5)
_ROUNDS, _BUDGET = 160, 160 * 512


def _cero_entries() -> tuple[Entry, ...]:
    steps = [
        Entry(f"cero, step x{scale:g}", "cero", step_scale=scale)
        for scale in (1.0, 2.0, 3.0, 5.0, 10.0, 30.0)
    ]
    rhos = [
        Entry(f"cero, step x{x:g}, rho {r:g}", "cero", step_scale=x, forgetting=r)
        for x, r in ((3, 0.995), (3, 0.98), (3, 0.95), (5, 0.98))
    ]
    sizes = (
        Entry("cero, rho 0.98", "cero", forgetting=0.98),
        Entry("cero, capacity x2", "cero", slack=2.0),
        Entry("cero, groups of 4", "cero", unit=4),
        Entry("cero, groups of 4, step x3", "cero", unit=4, step_scale=3.0),
        Entry("cero, groups of 16, step x3", "cero", unit=16, step_scale=3.0),
    )
    return (UNIFORM, *steps, *rhos, *sizes, THOMPSON, ORACLE)


def plus(label: str, rounds: int, *options: tuple[str, OptionValue]) -> Entry:
    """The allocator of the preset cero_plus, with groups instead of a critic."""
    return Entry(
        label,
        "cero",
        unit=2,
        most=64,
        saturation=0.05,
        forgetting=1.0 - 0.8 / rounds,
        cero=(("plan", "resolve"), ("refit_prior_every", 1), *options),
    )


def _late_entries(rounds: int) -> tuple[Entry, ...]:
    """CERO and the allocator of CERO+, with floors of exploration and with reversion."""
    shares = (0.02, 0.05, 0.1, 0.2)
    floor = lambda share: ("explore_share", share)
    return (
        *(
            replace(CERO_TUNED, label=f"cero, step x3, floor {x:g}", cero=(floor(x),))
            for x in shares
        ),
        *(
            replace(CERO_TUNED, label=f"cero, step x3, rho {rho:g}", forgetting=rho)
            for rho in (0.995, 0.98, 0.95)
        ),
        plus("cero+ (groups)", rounds),
        *(plus(f"cero+ (groups), floor {x:g}", rounds, floor(x)) for x in shares),
        *(
            replace(plus(f"cero+ (groups), rho {rho:g}", rounds), forgetting=rho)
            for rho in (0.98, 0.95)
        ),
    )


def _drift_entries() -> tuple[Entry, ...]:
    rhos = (1.0, 0.99, 0.95)
    cero = [
        Entry(f"cero, step x3, rho {rho:g}", "cero", step_scale=3.0, forgetting=rho) for rho in rhos
    ]
    draws = [Entry(f"thompson, rho {rho:g}", "thompson", forgetting=rho) for rho in rhos]
    return (UNIFORM, CERO, *cero, *draws, ORACLE)


def make_suites(
    prompts: int = 2400, rounds: int = _ROUNDS, budget: int = _BUDGET
) -> dict[str, Suite]:
    """The named suites at these sizes. Raises ValueError where a pool is impossible."""
    sized = lambda pool: replace(pool, prompts=prompts, skills=min(pool.skills, prompts))
    case = lambda pool, entries: Case(sized(pool), rounds, budget, entries)
    static = replace(UNFILTERED, dynamics="static")
    drift = lambda step: replace(
        ALIKE, name=f"alike, {step:g} logits a round", dynamics="drift", drift=step
    )
    still = replace(ALIKE, dynamics="static")
    cero, drifting, floors = _cero_entries(), _drift_entries(), _late_entries(rounds)
    suites = (
        Suite(
            "rivals",
            "all allocators: an unfiltered pool, one where most prompts teach, and static rates",
            tuple(case(pool, RIVAL_ENTRIES) for pool in (UNFILTERED, ALIKE, static)),
        ),
        Suite(
            "cero",
            "CERO's own settings: step scale, forgetting, group size, capacity",
            tuple(case(pool, cero) for pool in (UNFILTERED, static)),
        ),
        Suite(
            "drift",
            "forgetting where rates stand still, drift slowly and drift fast",
            tuple(case(pool, drifting) for pool in (still, drift(0.03), drift(0.15))),
        ),
        Suite(
            "late",
            "starvation: half of the skills come into reach late; and the same with none late",
            (
                case(replace(LATE, opening=(rounds // 4, rounds // 2)), (*RIVAL_ENTRIES, *floors)),
                case(
                    replace(LATE, name="none late", late=0.0),
                    (UNIFORM, CERO, CERO_TUNED, *floors, ORACLE),
                ),
            ),
        ),
        Suite(
            "smoke",
            "a few allocators, one pool",
            (case(UNFILTERED, (UNIFORM, CERO, THOMPSON, _VIGOR, ORACLE)),),
        ),
    )
    return {suite.name: suite for suite in suites}


def replay_suite(recorded: Recorded, rounds: int | None = None, budget: int | None = None) -> Suite:
    """All allocators on recorded rates; by default with the recorded run's rounds and rollouts
    (down to a multiple of 16). Where the run gave a prompt more of a round than an entry's largest
    group, that group grows."""
    kept = budget if budget is not None else max(recorded.rollouts // 16, 1) * 16
    played, prompts = recorded.rates.shape
    played = rounds or played
    pool = PoolSpec("replay", prompts=prompts, skills=1)
    entries = [
        replace(entry, most=max(entry.most, math.ceil(kept / (played * prompts * entry.unit))))
        for entry in RIVAL_ENTRIES
    ]
    case = Case(pool, played, kept, tuple(entries), recorded)
    return Suite("replay", "all allocators on the pass rates of a recorded run", (case,))
