"""From runs to a table: means over paired seeds with 95 % t intervals, and paired differences to a
case's first entry.

In: a CaseResult. Out: one Row per entry. Denominators: seeds for means, groups for live_share,
generated rollouts for live_rollouts and trained, the budget for spent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.simulation.run import Outcome
from cero_rl.scheduler.simulation.study import CaseResult
from cero_rl.scheduler.simulation.suites import Entry

# 97.5 % quantile of Student's t for 1..30 degrees of freedom
_T975 = (
    12.7062,
    4.3027,
    3.1824,
    2.7764,
    2.5706,
    2.4469,
    2.3646,
    2.3060,
    2.2622,
    2.2281,
    2.2010,
    2.1788,
    2.1604,
    2.1448,
    2.1314,
    2.1199,
    2.1098,
    2.1009,
    2.0930,
    2.0860,
    2.0796,
    2.0739,
    2.0687,
    2.0639,
    2.0595,
    2.0555,
    2.0518,
    2.0484,
    2.0452,
    2.0423,
)


def t975(degrees: int) -> float:
    """97.5 % quantile of Student's t with `degrees` >= 1 degrees of freedom, to 4 digits (beyond
    30: Cornish-Fisher)."""
    if degrees <= len(_T975):
        return _T975[degrees - 1]
    z, n = 1.959964, float(degrees)
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)


@dataclass(frozen=True, slots=True)
class Estimate:
    """mean +- half_width, a 95 % t interval over the seeds where the number exists; nan without two
    of them."""

    mean: float
    half_width: float

    @property
    def clear(self) -> bool:
        """Does the interval leave out 0?"""
        return abs(self.mean) > self.half_width


def estimate(values: npt.ArrayLike) -> Estimate:
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    if numbers.size < 2:
        return Estimate(math.nan, math.nan)
    return Estimate(
        float(numbers.mean()),
        t975(numbers.size - 1) * float(numbers.std(ddof=1)) / math.sqrt(numbers.size),
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One entry. Shares in [0, 1]; values and abilities a prompt; `gain` and `live_gain` are paired
    with the first entry."""

    entry: Entry
    spent: Estimate  # of the budget
    rounds: Estimate  # with rollouts
    live_share: Estimate  # live groups over groups
    live_rollouts: Estimate  # rollouts in live groups over rollouts
    trained: Estimate  # rollouts kept over rollouts
    value: Estimate  # surrogate
    regret: Estimate  # offline optimum less value; nan unless static
    ability: Estimate
    gain: Estimate  # ability less the first entry's
    live_gain: Estimate  # live_rollouts less the first entry's
    value_gain: Estimate  # value less the first entry's
    kind_lift: tuple[Estimate, ...]  # by KINDS
    bin_lift: tuple[Estimate, ...]  # by success rate
    late_lift: Estimate  # of prompts that came into reach late, since they did
    curve_ability: Floats  # [21] means over GRID
    curve_regret: Floats  # [21] mean regret of the budget share spent so far; nan unless static
    curve_value: Floats  # [21]


def summarise(result: CaseResult) -> tuple[Row, ...]:
    """The table of a case, in the order of its entries."""
    first = result.outcomes[0]
    return tuple(
        _row(entry, runs, first) for entry, runs in zip(result.case.entries, result.outcomes)
    )


def _row(entry: Entry, runs: tuple[Outcome, ...], first: tuple[Outcome, ...]) -> Row:
    def over(number: Callable[[Outcome], float]) -> Estimate:
        return estimate([number(run) for run in runs])

    def against(number: Callable[[Outcome], float]) -> Estimate:
        return estimate([number(run) - number(other) for run, other in zip(runs, first)])

    live_rollouts = lambda run: run.live_rollouts / max(run.spent_rollouts, 1)
    value = np.array([run.curve_value for run in runs])
    regret = np.array([run.curve_optimum for run in runs]) - value
    return Row(
        entry=entry,
        spent=over(lambda run: run.spent_rollouts / run.budget_rollouts),
        rounds=over(lambda run: float(run.rounds)),
        live_share=over(lambda run: run.live_groups / max(run.groups, 1)),
        live_rollouts=over(live_rollouts),
        trained=over(lambda run: run.trained_rollouts / max(run.spent_rollouts, 1)),
        value=over(lambda run: run.value),
        regret=over(lambda run: run.optimum - run.value),
        ability=over(lambda run: run.ability),
        gain=against(lambda run: run.ability),
        live_gain=against(live_rollouts),
        value_gain=against(lambda run: run.value),
        kind_lift=tuple(estimate([run.kind_lift[kind] for run in runs]) for kind in range(4)),
        bin_lift=tuple(estimate([run.bin_lift[bin_] for run in runs]) for bin_ in range(5)),
        late_lift=over(lambda run: run.late_lift),
        curve_ability=np.array([run.curve_ability for run in runs]).mean(axis=0),
        curve_regret=regret.mean(axis=0),
        curve_value=value.mean(axis=0),
    )
