"""One self-contained HTML page: no network, no script, every text escaped.

In: `Facts` of one run, or a `Comparison` of several. Out: the page's text. jinja2 and matplotlib
come with the extra `report`; ConfigError says so where they are missing.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cero_rl import __version__
from cero_rl.legible import legible
from cero_rl.report.compare import Comparison
from cero_rl.report.drawing import Figure, need_matplotlib, short
from cero_rl.report.facts import Facts
from cero_rl.report.figures import accuracy_figures, figures_of
from cero_rl.report.samples import Sample, sorted_samples
from cero_rl.report.tables import Table, comparison_tables, heldout_table, waste_table

_TEMPLATES = Path(__file__).parent / "templates"
_NAME = 80


@dataclass(frozen=True)
class Tile:
    name: str
    value: str


@dataclass(frozen=True)
class Order:
    name: str
    aid: str
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Block:
    """A section of the page."""

    id: str
    title: str
    lead: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    samples: Sequence[Order] = field(default=())


def page_of_run(facts: Facts) -> str:
    need_matplotlib()
    run, summary = facts.run, facts.summary
    figures = figures_of(facts)
    starved = summary["starvation"]
    never, stale = starved["never_looked_at"], starved["not_for_two_passes"]
    look = (
        f"{never:,} prompts were never looked at and {stale:,} not for two uniform passes "
        f"({2 * starved['uniform_pass_steps']:.0f} steps). One look at each would take "
        f"{starved['look_rollouts']:,} rollouts ({starved['look_budget_share']:.1%} of what was "
        f"spent), {short(starved['look_tokens'])} tokens, {starved['look_seconds']:.0f} s."
    )
    regret = summary["regret_share"]
    if regret is not None:
        look += (
            f" Regret: {regret:.1%} of what hindsight would have got from as many rollouts; every "
            f"prompt alike: {summary['even_regret_share']:.1%}."
        )
    orders = [Order(name, aid, samples) for name, aid, samples in sorted_samples(run)]
    blocks = [
        Block(
            "accuracy",
            "Held-out accuracy",
            tables=[heldout_table(facts)],
            figures=figures["accuracy"],
        ),
        Block("spending", "Where the rollouts went", figures=figures["spending"]),
        Block(
            "waste",
            "What was generated and taught nothing",
            "Reasons may meet in one rollout, so they do not add up. Tokens and seconds of a step "
            "are dealt to its rollouts alike.",
            tables=[waste_table(facts)],
        ),
        Block("allocator", "What the allocator believed", look, figures=figures["allocator"]),
        Block("machine", "Signal, phases, stragglers, parity", figures=figures["machine"]),
        Block(
            "samples",
            "Samples",
            "Of samples.jsonl, some groups of every step; a click opens the whole text.",
            samples=orders,
        ),
    ]
    state = "finished" if run.finished else "not finished: the numbers are those of now"
    subtitle = (
        f"{run.config.scheduler.name}, baseline {run.config.learner.baseline}, seed "
        f"{run.config.seed}, {run.ranks} rank{'s' * (run.ranks > 1)}; {state}. "
        f"cero_rl {__version__}."
    )
    notes = [*(f"Alert: {line}" for line in summary["alerts"]), *run.notes]
    return render(f"Run {run.name}", subtitle, notes, _tiles(facts), blocks)


def page_of_comparison(comparison: Comparison) -> str:
    need_matplotlib()
    runs = comparison.facts
    blocks = [
        Block(
            "compared",
            "Side by side",
            comparison.verdict,
            tables=comparison_tables(comparison),
            figures=accuracy_figures([(f.run.name, f.accuracy) for f in runs]),
        )
    ]
    notes = [f"{f.run.name}: {note}" for f in runs for note in f.run.notes]
    subtitle = f"{len(runs)} runs, {len(comparison.arms)} arms. cero_rl {__version__}."
    title = "Runs " + ", ".join(f.run.name for f in runs)
    return render(title, subtitle, notes, [], blocks)


def _tiles(facts: Facts) -> list[Tile]:
    summary = facts.summary
    held = summary["heldout"]
    tiles = []
    if held and held[-1]["accuracy"] is not None:
        last, first = held[-1], held[0]
        half = last["half_width_95"]
        value = f"{last['accuracy']:.3f}" + ("" if half is None else f" ± {half:.3f}")
        tiles.append(Tile("held-out accuracy, 95 % over prompts", value))
        if first["accuracy"] is not None and len(held) > 1:
            gain = 100 * (last["accuracy"] - first["accuracy"])
            tiles.append(Tile("points since the start", f"{gain:+.1f}"))
    budget = summary["budget_rollouts"] or summary["rollouts"]
    tiles += [
        Tile("rollouts of the budget", f"{summary['rollouts']:,.0f} / {budget:,.0f}"),
        Tile("steps", f"{summary['steps']:,}"),
        Tile("tokens generated", short(summary["tokens"])),
        Tile("seconds of steps", f"{summary['seconds']:,.0f}"),
        Tile("prompts", f"{summary['prompts']:,}"),
    ]
    if summary["money"] is not None:
        tiles.append(Tile("at the given price", f"{summary['money']:,.2f}"))
    return tiles


# --- rendering


def render(
    title: str,
    subtitle: str,
    notes: Iterable[str],
    tiles: Sequence[Tile],
    blocks: Sequence[Block],
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["pixels_high"] = _pixels_high
    environment.filters["figure"] = lambda x: f"{x:.2f}" if math.isfinite(x) else "-"
    page = environment.get_template("report.html.j2").render(
        title=legible(title, 4 * _NAME),
        subtitle=legible(subtitle, 4 * _NAME),
        notes=[legible(note, 10 * _NAME) for note in notes],
        tiles=tiles,
        sections=[b for b in blocks if b.tables or b.figures or b.samples],
    )
    return page.strip() + "\n"


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


def _pixels_high(svg: str) -> int:
    """Of an image 470 pixels wide, so that nothing moves while the page loads."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found is not None
    return round(470 * float(found[2]) / float(found[1]))
