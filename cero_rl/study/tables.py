"""The tables of a study: what every arm reached, paired differences to the baseline arm, and how
many rollouts it needs for the baseline's final accuracy; each with a 95 % interval over seeds.

Speed-up: a* is the baseline's mean final accuracy at the study's largest budget that both have. An
arm's runs with horizons of their own give its final accuracy as a function of ln(budget), linear
between budgets (and beyond the outer ones along the nearest piece, by at most a factor of 2); where
it crosses a* is the budget it needs. A bootstrap draws seeds, with all their budgets and arms
together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cero_rl.report.paired import (
    DRAWS,
    FEWEST,
    ONE_SEED,
    Difference,
    difference,
    holm,
    interval,
    needed,
)
from cero_rl.report.tables import Table
from cero_rl.scheduler.posterior import Floats
from cero_rl.study.plan import Row

Runs = dict[tuple[str, int], dict[int, Row]]  # (arm, budget) -> seed -> row
_PASSES = ("pass@4", "pass@8", "pass@16")


def by_arm(rows: Sequence[Row], pool: str) -> Runs:
    runs: Runs = {}
    for row in rows:
        if row["pool"] == pool:
            runs.setdefault((row["arm"], row["budget"]), {})[row["seed"]] = row
    return runs


def pools_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["pool"] for row in rows))


@dataclass(frozen=True)
class SpeedUp:
    ratio: float
    low: float  # 95 %, bootstrap over seeds
    high: float
    seeds: int  # that all its runs have

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f} .. {self.high:.2f})"


def speed_up(runs: Runs, arm: str, baseline: str) -> SpeedUp | None:
    """Ratio of rollouts to the baseline's final accuracy; None with one budget, or with fewer than
    three seeds."""
    shared = [b for (a, b) in runs if a == baseline and (arm, b) in runs]
    own = sorted(b for (a, b) in runs if a == arm)
    if not shared or len(own) < 2:
        return None
    at = max(shared)
    groups = [runs[arm, b] for b in own] + [runs[baseline, at]]
    seeds = sorted(set.intersection(*(set(g) for g in groups)))
    if len(seeds) < FEWEST:
        return None
    table = np.array([[g[s]["accuracy"][-1] for s in seeds] for g in groups])

    def ratio(chosen: np.ndarray) -> float:
        means = table[:, chosen].mean(axis=1)
        return at / needed(np.array(own, dtype=float), means[:-1], float(means[-1]))

    rng = np.random.default_rng(0)
    draws = [ratio(rng.integers(0, len(seeds), len(seeds))) for _ in range(DRAWS)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return SpeedUp(ratio(np.arange(len(seeds))), float(low), float(high), len(seeds))


def ends(runs: Runs, arm: str, baseline: str, budget: int) -> Difference | None:
    """Of the final accuracies on the seeds that both have."""
    own, reference = runs.get((arm, budget), {}), runs.get((baseline, budget), {})
    seeds = sorted(own.keys() & reference.keys()) if arm != baseline else []
    if not seeds:
        return None
    return difference([own[s]["accuracy"][-1] - reference[s]["accuracy"][-1] for s in seeds])


def table_of(rows: Sequence[Row], pool: str, baseline: str, arms: Sequence[str]) -> Table:
    """Of one pool."""
    runs = by_arm(rows, pool)
    known = [
        p for p in _PASSES if any(p in r["pass_at"] for s in runs.values() for r in s.values())
    ]
    shown = [(arm, b) for arm in arms for b in sorted(b for (a, b) in runs if a == arm)]
    found = {cell: ends(runs, cell[0], baseline, cell[1]) for cell in shown}
    adjusted_of = {}
    for budget in dict.fromkeys(b for _, b in shown):
        p = {a: d.p for (a, b), d in found.items() if b == budget and d is not None}
        adjusted_of |= {(arm, budget): value for arm, value in holm(p).items()}
    return Table(
        [
            "arm",
            "rollouts",
            "seeds",
            "end",
            "what can be said",
            f"- {baseline} (95 %)",
            "bootstrap",
            "p (Holm)",
            f"along the run - {baseline} (95 %)",
            *known,
            "live",
            "entropy",
            "speed-up (95 %)",
        ],
        [
            _line(runs, cell, baseline, known, found[cell], adjusted_of.get(cell, math.nan))
            for cell in shown
        ],
        pool,
    )


def _line(
    runs: Runs,
    cell: tuple[str, int],
    baseline: str,
    known: Sequence[str],
    end: Difference | None,
    p_holm: float,
) -> list[str]:
    arm, budget = cell
    rows = list(runs[cell].values())
    fastest = budget == max(b for (a, b) in runs if a == arm)
    faster = speed_up(runs, arm, baseline) if fastest else None
    values = np.array([row["accuracy"][-1] for row in rows])
    boot = ""
    if end is not None and math.isfinite(end.bootstrap_low):
        boot = f"{end.bootstrap_low:+.4f} .. {end.bootstrap_high:+.4f}"
    judged = "the baseline" if arm == baseline else "no seed in common"
    if end is not None:
        judged = end.verdict
    return [
        arm,
        f"{budget:,}",
        str(len(rows)),
        f"{values.mean():.4f}",
        judged,
        "" if end is None else _interval(end),
        boot,
        f"{p_holm:.3f}" if math.isfinite(p_holm) else "",
        interval(_along(runs, arm, baseline, budget)) if arm != baseline else "",
        *(_mean([r["pass_at"][p][-1] for r in rows if p in r["pass_at"]], ".4f") for p in known),
        _mean([r["live"] for r in rows], ".0%"),
        _mean([r["entropy"][-1] for r in rows], ".2f"),
        "" if faster is None else f"{faster}, {faster.seeds} seeds",
    ]


def _interval(end: Difference) -> str:
    if end.pairs < 2:
        return f"{end.mean:+.4f} (1 seed)"
    return f"{end.mean:+.4f} +- {end.high - end.mean:.4f}"


def _along(runs: Runs, arm: str, baseline: str, budget: int) -> Floats:
    """Differences of the mean accuracy along the run, without its first point."""
    own, reference = runs[arm, budget], runs.get((baseline, budget), {})
    seeds = sorted(own.keys() & reference.keys())
    whole = [[np.mean(r[s]["accuracy"][1:]) for s in seeds] for r in (own, reference)]
    return np.array(whole[0]) - np.array(whole[1])


def _mean(values: Sequence[float | None], how: str) -> str:
    known = [v for v in values if v is not None]
    return format(float(np.mean(known)), how) if known else ""


def words_of(rows: Sequence[Row], baseline: str, arms: Sequence[str]) -> list[str]:
    """What the tables must not be read without."""
    seeds = {row["seed"] for row in rows}
    others = [arm for arm in arms if arm != baseline and any(r["arm"] == arm for r in rows)]
    said = []
    if len(seeds) < 2:
        said.append(f"{ONE_SEED}; run more seeds.")
    if len(others) > 1:
        said.append(
            f"{len(others)} arms against one baseline: intervals are not corrected for that; the p "
            "values are (Holm, over the arms of a pool and budget)."
        )
    said.append(
        "A difference is paired by seed; its interval is Student's t over seeds, the bootstrap "
        'draws seeds. "cannot tell": 0 lies inside the interval.'
    )
    return said


def as_json(rows: Sequence[Row], baseline: str, arms: Sequence[str]) -> dict[str, Any]:
    return {
        "baseline": baseline,
        "notes": words_of(rows, baseline, arms),
        "pools": {
            pool: [
                dict(zip(table.head, line))
                for table in [table_of(rows, pool, baseline, arms)]
                for line in table.rows
            ]
            for pool in pools_of(rows)
        },
    }
