"""What a simulation says: a table (rich on a terminal, plain text elsewhere), JSON lines, and a
picture of the curves.

In: CaseResults with their Rows. Out: text, files. Intervals are 95 % t intervals over paired seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cero_rl.scheduler.simulation import GRID, KINDS, CaseResult, Estimate, Row

_LEGEND = (
    "live: groups whose rewards differ, of all groups; in live: rollouts in such groups, "
    "of all generated; trains: rollouts kept, of all\n"
    "generated. value: surrogate utility a prompt, along the path; regret: offline optimum "
    "less value; ability: held-out success rate of\n"
    "the learning model. Last columns: lift, i.e. share of the rollouts over share of the "
    "pool, by kind of prompt or by success rate.\n"
    "+-: 95 % t interval over paired seeds, * where it leaves out 0;"
)
_SHOWN = (
    "uniform",
    "cero, as published",
    "cero, step x3",
    "thompson, rho .98",
    "vigor",
    "greso",
    "oracle (knows p)",
)


def number(estimate: Estimate, digits: int = 3, signed: bool = False) -> str:
    """'.143±.002', '-' where there is none; a starred difference has an interval that leaves out
    0."""
    if math.isnan(estimate.mean):
        return "-"
    mean = f"{estimate.mean:{'+' if signed else ''}.{digits}f}"
    return f"{mean}±{estimate.half_width:.{digits}f}{'*' if signed and estimate.clear else ''}"


def columns(result: CaseResult) -> list[tuple[str, Callable[[Row], str]]]:
    """The columns that mean something for this pool: heading and cell."""
    dynamics = "replay" if result.case.recorded is not None else result.case.pool.dynamics
    wanted: list[tuple[str, Callable[[Row], str]]] = [
        ("allocator", lambda row: row.entry.label),
        ("spent", lambda row: f"{row.spent.mean:.1%}"),
        ("rounds", lambda row: f"{row.rounds.mean:.0f}"),
        ("live", lambda row: number(row.live_share)),
        ("in live", lambda row: number(row.live_rollouts)),
        ("trains", lambda row: f"{row.trained.mean:.2f}"),
        ("value", lambda row: number(row.value)),
    ]
    if dynamics == "static":
        wanted.append(("regret", lambda row: number(row.regret, 4)))
    if dynamics == "learning":
        wanted.append(("ability", lambda row: number(row.ability)))
        wanted.append(("gain", lambda row: number(row.gain, 4, signed=True)))
    else:
        wanted.append(("value gain", lambda row: number(row.value_gain, 4, signed=True)))
    for index, kind in enumerate(KINDS):
        if sum(share > 0 for share in result.case.pool.shares) > 1 and result.case.recorded is None:
            wanted.append((kind, lambda row, index=index: f"{row.kind_lift[index].mean:.2f}"))
    if result.case.pool.late and result.case.recorded is None:
        wanted.append(("late", lambda row: number(row.late_lift, 2)))
    if len(wanted) < 11:
        for index, name in enumerate(("p<.05", "p<.25", "p<.75", "p<.95", "p>.95")):
            wanted.append((name, lambda row, index=index: f"{row.bin_lift[index].mean:.2f}"))
    return wanted


def title(result: CaseResult, seeds: int) -> str:
    case = result.case
    prompts = case.pool.prompts if case.recorded is None else case.recorded.rates.shape[1]
    dynamics = "recorded rates" if case.recorded is not None else case.pool.dynamics
    start = result.outcomes[0][0].ability_start
    ability = f", held-out at the start {start:.3f} (seed 0)" if dynamics == "learning" else ""
    return (
        f"{case.pool.name} ({dynamics}): {prompts} prompts, {case.rounds} rounds, "
        f"{case.budget_rollouts} rollouts "
        f"({case.budget_rollouts / prompts:.1f} a prompt), {seeds} seeds{ability}"
    )


def print_tables(
    results: tuple[CaseResult, ...], tables: list[tuple[Row, ...]], seeds: int, out: TextIO
) -> None:
    for result, rows in zip(results, tables):
        cells = columns(result)
        if out.isatty():
            _rich_table(title(result, seeds), cells, rows)
        else:
            lines = [
                [head for head, _ in cells],
                *([cell(row) for _, cell in cells] for row in rows),
            ]
            widths = [max(len(line[column]) for line in lines) for column in range(len(cells))]
            print(title(result, seeds), file=out)
            for line in lines:
                first = line[0].ljust(widths[0])
                print(
                    "  ".join(
                        [first, *(text.rjust(width) for text, width in zip(line[1:], widths[1:]))]
                    ).rstrip(),
                    file=out,
                )
        print(file=out)
    print(f"{_LEGEND} gain: against {results[0].case.entries[0].label}.", file=out)


def _rich_table(
    heading: str, cells: list[tuple[str, Callable[[Row], str]]], rows: tuple[Row, ...]
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=heading, title_justify="left", box=None, pad_edge=False)
    for index, (head, _) in enumerate(cells):
        table.add_column(head, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        style = (
            "bold"
            if row.entry.scheduler == "cero"
            else "dim"
            if row.entry.scheduler == "oracle"
            else None
        )
        table.add_row(*(cell(row) for _, cell in cells), style=style)
    Console(width=max(Console().width, 150)).print(table)


@contextmanager
def progress(err: TextIO) -> Iterator[Callable[[int, int], None]]:
    """A bar with an estimate of the time left on a terminal, a line every tenth elsewhere."""
    if err.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(file=err), transient=True) as bar:
            task = bar.add_task("simulating", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    said = 0

    def say(done: int, total: int) -> None:
        nonlocal said
        if done * 10 // total > said:
            said = done * 10 // total
            print(f"simulating: {done} of {total} jobs", file=err, flush=True)

    yield say


def _pair(estimate: Estimate) -> list[float | None]:
    """[mean, half width], rounded; null where there is none (JSON has no nan)."""
    return [None if math.isnan(x) else round(x, 6) for x in (estimate.mean, estimate.half_width)]


def _line(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(x) else round(float(x), 5) for x in values]


def json_row(suite: str, result: CaseResult, row: Row, seeds: int) -> dict[str, Any]:
    """One line of the .jsonl: estimates are [mean, half width of the 95 % interval]."""
    case, entry = result.case, row.entry
    estimates = {
        "spent": row.spent,
        "rounds_used": row.rounds,
        "live_groups": row.live_share,
        "rollouts_in_live_groups": row.live_rollouts,
        "trained": row.trained,
        "value": row.value,
        "regret": row.regret,
        "ability": row.ability,
        "gain": row.gain,
        "live_gain": row.live_gain,
        "value_gain": row.value_gain,
    }
    return {
        "bench": "simulate",
        "suite": suite,
        "pool": case.pool.name,
        "dynamics": case.pool.dynamics,
        "label": entry.label,
        "scheduler": entry.scheduler,
        "rollouts_per_unit": entry.unit,
        "max_units_per_prompt": entry.most,
        "capacity_over_share": entry.slack,
        "forgetting": entry.forgetting,
        "step_scale": entry.step_scale,
        "options": dict(entry.options),
        "keep_rule": entry.keep,
        "against": case.entries[0].label,
        "rounds": case.rounds,
        "budget_rollouts": case.budget_rollouts,
        "seeds": seeds,
        **{name: _pair(value) for name, value in estimates.items()},
        "kind_lift": {kind: _pair(lift) for kind, lift in zip(KINDS, row.kind_lift)},
        "late_lift": _pair(row.late_lift),
        "rate_lift": [_pair(lift) for lift in row.bin_lift],
        "budget_share": _line(GRID),
        "curve_value": _line(row.curve_value),
        "curve_regret": _line(row.curve_regret),
        "curve_ability": _line(row.curve_ability),
    }


def json_rows(
    suite: str,
    results: tuple[CaseResult, ...],
    tables: list[tuple[Row, ...]],
    seeds: int,
) -> list[dict[str, Any]]:
    return [
        json_row(suite, result, row, seeds)
        for result, table in zip(results, tables)
        for row in table
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def draw(
    path: Path, results: tuple[CaseResult, ...], tables: list[tuple[Row, ...]], seeds: int
) -> None:
    """One row of panels a case: the curve over the budget, and every allocator's end with its
    interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = max(3.2, 0.21 * max(len(table) for table in tables))
    figure, axes = pyplot.subplots(
        len(results),
        2,
        figsize=(13, height * len(results)),
        squeeze=False,
        gridspec_kw={"width_ratios": [3, 2]},
    )
    for (left, right), result, table in zip(axes, results, tables):
        _panels(left, right, result, table)
        left.set_title(title(result, seeds), fontsize=9, loc="left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panels(left: Any, right: Any, result: CaseResult, table: tuple[Row, ...]) -> None:
    if result.case.recorded is None and result.case.pool.dynamics == "learning":
        name, curve, end = "held-out ability", lambda row: row.curve_ability, lambda row: row.gain
    elif not np.isnan(table[0].regret.mean):
        name, curve, end = "regret a prompt", lambda row: row.curve_regret, lambda row: row.regret
    else:
        name, curve, end = (
            "surrogate value a prompt",
            lambda row: row.curve_value,
            lambda row: row.value_gain,
        )
    shown = [row for row in table if row.entry.label in _SHOWN] if len(table) > 14 else list(table)
    for row in table:
        if row not in shown:
            left.plot(GRID, curve(row), color="0.85", linewidth=0.8, zorder=1)
    for index, row in enumerate(shown):
        left.plot(
            GRID,
            curve(row),
            color=f"C{index % 10}",
            linewidth=1.6,
            label=row.entry.label,
            zorder=2 + index,
        )
    left.set(xlabel="share of the budget spent", ylabel=name)
    left.legend(fontsize=7)
    ordered = sorted(table, key=lambda row: end(row).mean, reverse=name == "regret a prompt")
    colors = {row.entry.label: f"C{index % 10}" for index, row in enumerate(shown)}
    for place, row in enumerate(ordered):
        value = end(row)
        right.errorbar(
            value.mean,
            place,
            xerr=value.half_width,
            fmt="o",
            markersize=3,
            color=colors.get(row.entry.label, "0.5"),
        )
    right.set_yticks(range(len(ordered)), [row.entry.label for row in ordered], fontsize=7)
    right.axvline(0.0, color="0.7", linewidth=0.8)
    versus = "" if name == "regret a prompt" else f" less that of {result.case.entries[0].label}"
    right.set_xlabel(f"{name} at the end{versus}, 95 % interval", fontsize=8)
