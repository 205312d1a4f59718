"""The figures and the page of a study: means over seeds along the runs, pass@k, entropy, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cero_rl.report.drawing import COLORS, Figure, canvas, need_matplotlib, plain, thousands
from cero_rl.report.page import Block, render
from cero_rl.scheduler.posterior import Floats
from cero_rl.study.plan import Row, Study
from cero_rl.study.tables import Runs, by_arm, pools_of, table_of, words_of


def page_of_study(study: Study, rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Raises ConfigError without the extra `report`."""
    need_matplotlib()
    blocks = [
        Block(
            f"pool-{index}",
            f"Pool {pool}",
            tables=[replace(table_of(rows, pool, study.baseline, arms), title="")],
            figures=figures_of(rows, pool, arms, f"{index}"),
        )
        for index, pool in enumerate(pools_of(rows))
    ]
    seeds = sorted({row["seed"] for row in rows})
    subtitle = f"{len(rows)} runs; seeds {', '.join(map(str, seeds))}; recipe {study.recipe}."
    words = words_of(rows, study.baseline, arms)
    return render(f"Study {study.name}", subtitle, words, [], blocks)


def figures_of(rows: Sequence[Row], pool: str, arms: Sequence[str], name: str) -> list[Figure]:
    """Of one pool, at its largest budget."""
    runs = by_arm(rows, pool)
    most = max(budget for _, budget in runs)
    there = [arm for arm in arms if (arm, most) in runs]
    drawn = [
        Figure(
            f"along-{name}",
            f"Held-out accuracy along runs of {most:,} rollouts",
            "Means over seeds (their number); the table says which differences are no chance.",
            _curves(there, lambda arm: list(runs[arm, most].values()), "accuracy"),
        )
    ]
    if (coverage := _coverage(runs, arms, name)) is not None:
        drawn.append(coverage)

    def measured(arm: str) -> list[Row]:
        return [row for row in runs[arm, most].values() if "entropy_along" in row]

    if with_entropy := [arm for arm in there if measured(arm)]:
        drawn.append(
            Figure(
                f"entropy-{name}",
                "Entropy of tokens that train (nats)",
                "A lower line ends more certain; where accuracy is equal, the higher one has more "
                "left to explore.",
                _curves(with_entropy, measured, "entropy_along"),
            )
        )
    return drawn


def _coverage(runs: Runs, arms: Sequence[str], name: str) -> Figure | None:
    """pass@k at the end of runs by their budget, from the start model's (0 rollouts)."""
    ks = [k for k in ("pass@4", "pass@8") if any(_ends(runs, arm, k) for arm in arms)]
    if not ks:
        return None
    with canvas(height=2.7 + 0.075 * len(arms)) as made:
        for index, arm in enumerate(arms):
            for k, style in zip(ks, ("-", ":")):
                points = _ends(runs, arm, k)
                if points:
                    label = f"{plain(arm, 24)} {k}" if k == ks[0] else None
                    color = COLORS[index % len(COLORS)]
                    x, y = [x for x, _ in points], [y for _, y in points]
                    made.axis.plot(x, y, linestyle=style, marker=".", color=color, label=label)
        made.axis.set_xlabel("rollouts of a run with a horizon of its own")
        made.legend()
        thousands(made.axis)
    aid = (
        f"{' (line) and '.join(ks)}{' (dots)' if len(ks) > 1 else ''}: an arm whose accuracy rises "
        "while these stay or fall sharpens."
    )
    return Figure(f"coverage-{name}", "pass@k at the end, by budget", aid, made.svg)


def _ends(runs: Runs, arm: str, k: str) -> list[tuple[int, float]]:
    found, start = [], 0.0
    for budget in sorted(budget for (a, budget) in runs if a == arm):
        rows = [row["pass_at"][k] for row in runs[arm, budget].values() if k in row["pass_at"]]
        if rows:
            found.append((budget, float(np.mean([last for _, last in rows]))))
            start = float(np.mean([first for first, _ in rows]))
    return [(0, start), *found] if found else []


def _curves(arms: Sequence[str], rows_of: Any, what: str) -> str:
    with canvas(height=2.7 + 0.075 * len(arms)) as made:
        for index, arm in enumerate(arms):
            rows = rows_of(arm)
            x, y = mean_curve(rows, what)
            made.axis.plot(
                x,
                y,
                color=COLORS[index % len(COLORS)],
                linestyle="-" if index < len(COLORS) else "--",
                marker="o",
                markersize=3,
                label=f"{plain(arm, 30)} ({len(rows)})",
            )
        made.axis.set_xlabel("rollouts generated for training")
        made.legend()
        thousands(made.axis)
    return made.svg


def mean_curve(rows: Sequence[Row], name: str) -> tuple[list[int], Floats]:
    """Rollouts and the mean over rows; what is measured between two points stands at the later."""
    values = np.mean([[np.nan if v is None else v for v in row[name]] for row in rows], axis=0)
    return rows[0]["rollouts"][-len(values) :], values
