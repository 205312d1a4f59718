"""The first tab: what a run reached, what it spent, what that taught, and what to look at.

In: `Picture`. Out: one renderable of rich, with no markup of the run's own in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cero_rl.legible import one_line
from cero_rl.report.drawing import short
from cero_rl.report.facts import NORMAL, Accuracy
from cero_rl.report.reader import Run
from cero_rl.scheduler.posterior import Floats
from cero_rl.view.picture import Picture
from cero_rl.view.reasons import has_price
from cero_rl.view.words import clock, counted

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDE, _NARROW = 40, 24  # of a line of blocks, and of the budget's bar
_WIDE_SCREEN = 110
_MEAN_OF = 20  # steps behind a number of now
# column of metrics.jsonl, what it is called, how it is written
_TRACES = (
    ("reward", "reward", "{:.3f}"),
    ("baseline/signal_share", "with signal", "{:.0%}"),
    ("cero/effective_group_rate", "live groups", "{:.0%}"),
    ("entropy", "entropy", "{:.3f}"),
    ("completions/mean_length", "response tokens", "{:.1f}"),
    ("cero/price", "price of a unit", "{:.3f}"),
    ("cero/slope_mean", "mean slope", "{:.3f}"),
    ("cero/value_mean", "mean worth", "{:.3f}"),
)
_ALERTS = 8


def overview(picture: Picture, screen_width: int) -> RenderableType:
    width = _WIDE if screen_width >= _WIDE_SCREEN else _NARROW
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="bold", no_wrap=True)
    grid.add_column()
    for name, shown in (*_heldout(picture.facts.accuracy, width), _budget(picture, width)):
        grid.add_row(Text(name), shown)
    for name, shown in (*_traces(picture.run, width), *_wasted(picture)):
        grid.add_row(Text(name), shown)
    grid.add_row()
    grid.add_row(Text("rollouts by"), _shares(picture, width))
    return Group(_head(picture), _alerts(picture.alerts), grid)


def _head(picture: Picture) -> Text:
    summary = picture.facts.summary
    color = "green" if picture.run.finished else "yellow"
    what = (
        f"{summary['scheduler']}, baseline {summary['baseline']}, seed {summary['seed']}, "
        f"{summary['ranks']} rank(s), {summary['prompts']:,} prompts"
    )
    return Text.assemble(
        (one_line(summary["run"], 60), "bold"), "  ", (picture.state, color), "\n", (what, "dim")
    )


def _alerts(alerts: Sequence[str]) -> RenderableType:
    lines = [Text(f"! {one_line(alert, 300)}", style="bold red") for alert in alerts[:_ALERTS]]
    if len(alerts) > _ALERTS:
        lines.append(Text(f"! and {len(alerts) - _ALERTS} more", style="bold red"))
    return Group(Text(), *lines, *([Text()] if lines else []))


def _heldout(found: Accuracy, width: int) -> list[tuple[str, Text]]:
    if not found.value.size:
        return [("held-out accuracy", Text("not measured yet"))]
    said, first_of, of = Text(_point(found, -1), style="bold"), *found.samples[[0, -1]].tolist()
    if found.value.size > 1 and first_of == of:
        change = (found.value[-1] - found.value[0]) * 100
        said = Text.assemble(f"{_point(found, 0)} -> ", said, f"  ({change:+.1f} points)")
    elif found.value.size > 1:
        said = Text.assemble(f"{_point(found, 0)} (avg@{first_of}) -> ", said)
    at = f"  95 %, avg@{of}, step {found.step[-1]}"
    said.append(at, style="dim")
    rows = [("held-out accuracy", said)]
    if found.value.size > 2:
        rows.append(("", Text(f"{blocks(found.value, width)}  {found.value.size} evaluations")))
    for k, values in found.passes.items():
        known = np.flatnonzero(np.isfinite(values))
        if k > 1 and known.size:
            ends = f"{values[known[0]]:.3f} -> {values[known[-1]]:.3f}"
            rows.append((f"pass@{k}", Text(ends if known.size > 1 else f"{values[known[0]]:.3f}")))
    return rows


def _point(found: Accuracy, at: int) -> str:
    half = NORMAL * found.error[at]
    return f"{found.value[at]:.3f}" + (f" ± {half:.3f}" if math.isfinite(half) else "")


def _budget(picture: Picture, width: int) -> tuple[str, RenderableType]:
    summary = picture.facts.summary
    spent, total = summary["rollouts"], summary["budget_rollouts"] or summary["rollouts"]
    said = f"{spent:,.0f} of {total:,.0f} rollouts ({spent / max(total, 1):.0%})"
    said += f", {short(summary['tokens'])} tokens, {clock(summary['seconds'])}"
    if not picture.run.finished and 0 < spent < total:
        said += f", {clock(summary['seconds'] * (total - spent) / spent)} left at this pace"
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(total, 1), completed=spent, width=width)
    grid.add_row(bar, Text(said))
    return "budget", grid


def _traces(run: Run, width: int) -> list[tuple[str, Text]]:
    rows = []
    for column, name, how in _TRACES:
        values = run.column(column)
        known = values[np.isfinite(values)]
        if known.size and _says_something(run, column):
            now = how.format(known[-_MEAN_OF:].mean())
            line = f"{blocks(values, width):{width}}  "
            rows.append((name, Text.assemble((line, "cyan"), now)))
    return rows


def _says_something(run: Run, column: str) -> bool:
    """A price only where the plan asks for one, live groups only where there is no critic: a group
    of one is never live, and teaches."""
    if column == "cero/effective_group_rate":
        return "baseline/signal_share" not in run.steps[-1]
    return column != "cero/price" or has_price(run)


def _wasted(picture: Picture) -> list[tuple[str, Text]]:
    rows = []
    for waste in picture.facts.waste:
        if waste.rollouts >= 0.5:
            said = f"{waste.share:6.1%}  {counted(waste.rollouts, 'rollout')}: {waste.reason}"
            rows.append(("" if rows else "taught nothing", Text(said)))
    return rows


def _shares(picture: Picture, width: int) -> RenderableType:
    """Where the rollouts went, beside what the pool holds."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        *(Text(word, style="dim") for word in ("pass rate", "of the pool", "of the rollouts"))
    )
    for name, pool, used in picture.facts.by_rate:
        bar = "█" * round(used * width)
        numbers = Text.assemble(f"{used:5.0%} ", (bar, "cyan"))
        grid.add_row(Text(name), Text(f"{pool:5.0%}"), numbers)
    return grid


def blocks(values: Floats, width: int) -> str:
    """At most `width` characters, each the mean of its part; a blank where nothing is known."""
    parts = np.array_split(values, min(width, values.size)) if values.size else []
    means = [float(p[np.isfinite(p)].mean()) if np.isfinite(p).any() else math.nan for p in parts]
    known = [mean for mean in means if math.isfinite(mean)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = high - low

    def block(mean: float) -> str:
        if not math.isfinite(mean):
            return " "
        return _BLOCKS[round((mean - low) / span * 7) if span > 0 else 3]

    return "".join(map(block, means))
