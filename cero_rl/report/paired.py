"""Statistics of paired seeds: differences with t and bootstrap intervals, and what they allow to be
said.

Numbers of the same seed in two arms are a pair: what a seed brings to both is no error of their
difference. numpy alone: Student's t is computed from its finite series for whole degrees of freedom
(Abramowitz and Stegun, 26.7.3 and 26.7.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cero_rl.scheduler.posterior import Floats

DRAWS = 4000
FEWEST = 3  # pairs from which a bootstrap is drawn
CANNOT_TELL = "cannot tell"
ONE_SEED = "one seed: no interval, no winner"


def t_probability(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's t with `freedom` >= 1 degrees of freedom."""
    if not math.isfinite(t):
        return 1.0
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom % 2:
        total, term = 0.0, cosine
        for k in range(1, freedom - 1, 2):
            total += term
            term *= cosine * cosine * (k + 1) / (k + 2)
        return 2.0 / math.pi * (angle + sine * total)
    total, term = 0.0, 1.0
    for k in range(0, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    return sine * total


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """The t with P(|T| < t) = level."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < level else (low, middle)
    return high


@dataclass(frozen=True)
class Difference:
    """Of paired numbers, arm less baseline; bounds are nan where a seed is too few."""

    pairs: int
    mean: float
    low: float  # 95 % t interval
    high: float
    bootstrap_low: float  # 95 % percentile bootstrap over pairs
    bootstrap_high: float
    p: float  # two-sided paired t test

    @property
    def verdict(self) -> str:
        if self.pairs < 2:
            return ONE_SEED
        if self.low > 0.0:
            return "higher"
        return "lower" if self.high < 0.0 else CANNOT_TELL


def difference(values: Sequence[float] | Floats) -> Difference:
    """values f64[pairs], each arm less baseline. Raises ValueError for none."""
    given = np.asarray(values, dtype=np.float64)
    n, nan = given.size, math.nan
    if not n:
        raise ValueError("no pair: the arms share no seed")
    mean = float(given.mean())
    if n < 2:
        return Difference(n, mean, nan, nan, nan, nan, nan)
    error = float(given.std(ddof=1) / math.sqrt(n))
    half = t_quantile(n - 1) * error
    p = 1.0 - t_probability(mean / error, n - 1) if error > 0 else (0.0 if mean else 1.0)
    low, high = nan, nan
    if n >= FEWEST:
        drawn = np.random.default_rng(0).integers(0, n, (DRAWS, n))
        low, high = np.quantile(given[drawn].mean(axis=1), [0.025, 0.975])
    return Difference(n, mean, mean - half, mean + half, float(low), float(high), p)


def interval(values: Floats) -> str:
    """Mean and half width of the 95 % t interval, for a table."""
    if not len(values):
        return ""
    found = difference(values)
    if found.pairs < 2:
        return f"{found.mean:+.4f} (1 seed)"
    return f"{found.mean:+.4f} +- {found.high - found.mean:.4f}"


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p values adjusted for that many comparisons (Holm, 1979); nan stays."""
    known = sorted((name for name in p if math.isfinite(p[name])), key=lambda name: p[name])
    adjusted, largest = dict(p), 0.0
    for rank, name in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p[name]))
        adjusted[name] = largest
    return adjusted


# --- how many rollouts an arm needs for the baseline's final accuracy


def needed(budgets: Floats, accuracy: Floats, target: float) -> float:
    """Budget at which the piecewise linear curve over ln(budget) reaches `target`; beyond the outer
    budgets along the nearest piece, by at most a factor of 2; inf where it does not get there."""
    logs = np.log(budgets)
    reached = np.flatnonzero(accuracy >= target)
    if reached.size and reached[0] == 0:
        first, last = 0, min(1, len(logs) - 1)
    elif reached.size:
        first, last = reached[0] - 1, reached[0]
    else:
        first, last = max(len(logs) - 2, 0), len(logs) - 1
    slope = (accuracy[last] - accuracy[first]) / max(logs[last] - logs[first], 1e-12)
    if first == last or slope <= 0:
        return float(budgets[0]) if reached.size else float("inf")
    at = logs[first] + (target - accuracy[first]) / slope
    if at > logs[-1] + np.log(2.0):
        return float("inf")
    return float(np.exp(max(at, logs[0] - np.log(2.0))))


def reach(curves: Sequence[tuple[Floats, Floats]], target: float) -> float:
    """Rollouts at which the mean of several runs' curves (rollouts, accuracy) first reaches
    `target`, linear between points; inf if never."""
    at = np.unique(np.concatenate([x for x, _ in curves]))
    mean = np.mean([np.interp(at, x, y) for x, y in curves], axis=0)
    above = np.flatnonzero(mean >= target)
    if not above.size:
        return math.inf
    first = int(above[0])
    if not first:
        return float(at[0])
    share = (target - mean[first - 1]) / (mean[first] - mean[first - 1])
    return float(at[first - 1] + share * (at[first] - at[first - 1]))


def speed_up_along(
    arm: Mapping[int, tuple[Floats, Floats]], baseline: Mapping[int, tuple[Floats, Floats]]
) -> tuple[float, float, float] | None:
    """(ratio, low, high): rollouts of the baseline's whole run over those at which the arm's mean
    curve first has the baseline's final accuracy. Curves by seed; the bootstrap draws seeds, both
    arms together. None with fewer than three paired seeds, or where the arm does not get there."""
    seeds = sorted(arm.keys() & baseline.keys())
    if len(seeds) < FEWEST:
        return None

    def ratio(chosen: Sequence[int]) -> float:
        target = float(np.mean([baseline[s][1][-1] for s in chosen]))
        whole = float(np.mean([baseline[s][0][-1] for s in chosen]))
        at = reach([arm[s] for s in chosen], target)
        return whole / at if at > 0 else math.inf

    middle = ratio(seeds)
    if not middle > 0:
        return None
    rng = np.random.default_rng(0)
    draws = [ratio(rng.choice(seeds, len(seeds)).tolist()) for _ in range(DRAWS // 4)]
    low, high = np.quantile(draws, [0.025, 0.975], method="inverted_cdf")
    return middle, float(low), float(high)
