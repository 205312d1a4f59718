"""The tables of a study: what every arm reached, paired differences to the baseline arm, and how
many rollouts it needs for the baseline's final accuracy; each with a 95 % interval over seeds.

Speed-up: a* is the baseline's mean final accuracy at the study's largest budget that both have. An
arm's runs with horizons of their own give its final accuracy as a function of ln(budget), linear
between budgets (and beyond the outer ones along the nearest piece, by at most a factor of 2); where
it crosses a* is the budget it needs. A bootstrap draws seeds, with all their budgets and arms
together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

Row = dict[str, Any]
Runs = dict[tuple[str, int], dict[int, Row]]  # (arm, budget) -> seed -> row
DRAWS = 4000


def by_arm(rows: list[Row], pool: str) -> Runs:
    runs: Runs = {}
    for row in rows:
        if row["pool"] == pool:
            runs.setdefault((row["arm"], row["budget"]), {})[row["seed"]] = row
    return runs


def interval(values: np.ndarray) -> str:
    """Mean and half width of the 95 % t interval."""
    if len(values) < 2:
        return f"{values.mean():+.4f} (1 seed)" if len(values) else ""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.4f} +- {half:.4f}"


def needed(budgets: np.ndarray, accuracy: np.ndarray, target: float) -> float:
    """Budget at which the piecewise linear curve over ln(budget) reaches `target`; inf where it
    does not within a factor of 2 of the largest."""
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


def speed_up(runs: Runs, arm: str, baseline: str, rng: np.random.Generator) -> str:
    """Ratio of rollouts to the baseline's final accuracy, with its bootstrap interval."""
    shared = [b for (a, b) in runs if a == baseline and (arm, b) in runs]
    own = sorted(b for (a, b) in runs if a == arm)
    if not shared or len(own) < 2:
        return ""
    at = max(shared)
    groups = [runs[arm, b] for b in own] + [runs[baseline, at]]
    seeds = sorted(set.intersection(*(set(g) for g in groups)))
    if len(seeds) < 3:
        return ""
    table = np.array([[g[s]["accuracy"][-1] for s in seeds] for g in groups])

    def ratio(chosen: np.ndarray) -> float:
        means = table[:, chosen].mean(axis=1)
        return at / needed(np.array(own, dtype=float), means[:-1], float(means[-1]))

    draws = [ratio(rng.integers(0, len(seeds), len(seeds))) for _ in range(DRAWS)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{ratio(np.arange(len(seeds))):.2f} ({low:.2f} .. {high:.2f})"


def print_report(rows: list[Row], *, baseline: str, arms: list[str]) -> None:
    """Print a table for every pool."""
    rng = np.random.default_rng(0)
    for pool in dict.fromkeys(row["pool"] for row in rows):
        runs = by_arm(rows, pool)
        passes = [f"pass@{k}" for k in (4, 8, 16)]
        known = [
            p for p in passes if any(p in r["pass_at"] for s in runs.values() for r in s.values())
        ]
        print(f"\n## {pool}\n")
        print(
            f"| arm | rollouts | seeds | end | - {baseline} (95 %) | along the run - {baseline} "
            f"(95 %) | {' | '.join(known)} | live | entropy | speed-up (95 %) |"
        )
        print("|---" * (9 + len(known)) + "|")
        for arm in arms:
            for budget in sorted(b for (a, b) in runs if a == arm):
                line = _line(runs, arm, budget, baseline, known, rng)
                print(f"| {' | '.join(line)} |")


def plot(rows: list[Row], *, arms: list[str], path: Path) -> None:
    """Three pictures a pool, means over seeds: held-out accuracy along the runs of the largest
    budget, pass@k at the end of runs by their budget, entropy along the run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pools = list(dict.fromkeys(row["pool"] for row in rows))
    figure, axes = plt.subplots(
        len(pools), 3, figsize=(15, 4.4 * len(pools)), squeeze=False, layout="constrained"
    )
    for (along, coverage, entropy), pool in zip(axes, pools):
        runs = by_arm(rows, pool)
        most = max(budget for _, budget in runs)
        for index, arm in enumerate(arm for arm in arms if (arm, most) in runs):
            own = list(runs[arm, most].values())
            style = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--"}
            label = f"{arm} ({len(own)})"
            along.plot(*_mean_curve(own, "accuracy"), label=label, **style)
            _plot_coverage(coverage, runs, arm, style)
            measured = [row for row in own if "entropy_along" in row]
            if measured:
                entropy.plot(*_mean_curve(measured, "entropy_along"), **style)
        along.set_ylabel("held-out accuracy (sampled, T = 1)")
        along.set_title(f"{pool}, mean over seeds (their number)")
        along.legend(fontsize=8)
        coverage.set_ylabel("pass@4 (line), pass@8 (dots) at the end")
        coverage.set_title("runs with a horizon of their own")
        entropy.set_ylabel("entropy of tokens that train (nats)")
        entropy.set_title("along the run")
        for axis in (along, coverage, entropy):
            axis.set_xlabel("rollouts generated for training")
            axis.grid(alpha=0.25)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _mean_curve(rows: list[Row], name: str) -> tuple[list[int], np.ndarray]:
    """Rollouts and the mean over rows; what is measured between two points stands at the later."""
    values = np.mean([row[name] for row in rows], axis=0)
    return rows[0]["rollouts"][-len(values) :], values


def _plot_coverage(axis: Any, runs: Runs, arm: str, style: dict[str, str]) -> None:
    """pass@4 and pass@8 of an arm by budget, from the start model's (rollouts 0)."""
    budgets = sorted(budget for (a, budget) in runs if a == arm)
    for name, mark in (("pass@4", style), ("pass@8", style | {"linestyle": ":", "marker": "."})):
        ends = {
            b: [r["pass_at"][name] for r in runs[arm, b].values() if name in r["pass_at"]]
            for b in budgets
        }
        known = [b for b in budgets if ends[b]]
        if known:
            start = np.mean([first for first, _ in ends[known[-1]]])
            values = [start, *(np.mean([last for _, last in ends[b]]) for b in known)]
            axis.plot([0, *known], values, **mark)


def _line(
    runs: Runs, arm: str, budget: int, baseline: str, known: list[str], rng: np.random.Generator
) -> list[str]:
    own = runs[arm, budget]
    rows = list(own.values())
    reference = runs.get((baseline, budget), {})
    seeds = sorted(own.keys() & reference.keys()) if arm != baseline else []
    ends = np.array([own[s]["accuracy"][-1] - reference[s]["accuracy"][-1] for s in seeds])
    whole = np.array(
        [np.mean(own[s]["accuracy"][1:]) - np.mean(reference[s]["accuracy"][1:]) for s in seeds]
    )
    fastest = budget == max(b for (a, b) in runs if a == arm)
    return [
        arm,
        f"{budget:,}",
        str(len(rows)),
        f"{np.mean([r['accuracy'][-1] for r in rows]):.4f}",
        interval(ends) if seeds else "",
        interval(whole) if seeds else "",
        *(
            f"{np.mean([r['pass_at'][p][-1] for r in rows if p in r['pass_at']]):.4f}"
            for p in known
        ),
        f"{np.mean([r['live'] for r in rows]):.0%}",
        f"{np.mean([r['entropy'][-1] for r in rows]):.2f}",
        speed_up(runs, arm, baseline, rng) if fastest else "",
    ]
