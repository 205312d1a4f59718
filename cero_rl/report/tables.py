"""The tables of a report, for the page and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cero_rl.legible import legible
from cero_rl.report.compare import Comparison
from cero_rl.report.drawing import short
from cero_rl.report.facts import Facts
from cero_rl.report.paired import Difference

_CELL = 60
_ARM_HEAD = (
    "arm",
    "seeds",
    "end",
    "- baseline (95 % t)",
    "bootstrap",
    "along the run",
    "p (Holm)",
    "speed-up (95 %)",
    "what can be said",
)


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    aid: str = ""
    numbers: bool = True  # all columns but the first


def markdown(table: Table) -> str:
    """Cells hold no bars, line breaks or markup of their own."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_in_markdown, cells)) + " |"

    head = [line(table.head), "|" + "---|" * len(table.head)]
    title = [f"### {table.title}", ""] if table.title else []
    aid = ["", table.aid] if table.aid else []
    return "\n".join([*title, *head, *(line(row) for row in table.rows), *aid])


def _in_markdown(text: str) -> str:
    """Angle brackets, bars and ticks in plain text."""
    for what, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'"), ("\n", " ")):
        text = text.replace(what, instead)
    return text


def heldout_table(facts: Facts) -> Table:
    accuracy = facts.accuracy
    ks = list(accuracy.passes)
    head = ["step", "rollouts", "tokens", "seconds", "accuracy", "± 95 %", "of", *_passes(ks)]
    rows = []
    for i in range(accuracy.step.size):
        rows.append(
            [
                f"{accuracy.step[i]}{' (end)' if _is_end(facts, i) else ''}",
                f"{accuracy.rollouts[i]:,.0f}",
                short(accuracy.tokens[i]),
                f"{accuracy.seconds[i]:,.0f}",
                _three(accuracy.value[i]),
                _three(1.96 * accuracy.error[i]),
                f"avg@{accuracy.samples[i]}",
                *(_three(accuracy.passes[k][i]) for k in ks),
            ]
        )
    return Table(head, rows)


def _is_end(facts: Facts, index: int) -> bool:
    return facts.run.finished and index == facts.accuracy.step.size - 1


def _passes(ks: Sequence[int]) -> list[str]:
    return [f"pass@{k}" for k in ks]


def waste_table(facts: Facts) -> Table:
    paid = any(w.money is not None for w in facts.waste)
    head = ["reason", "rollouts", "share", "tokens", "seconds", *(["money"] if paid else [])]
    rows = [
        [
            w.reason,
            f"{w.rollouts:,.0f}",
            f"{w.share:.1%}",
            short(w.tokens),
            f"{w.seconds:,.1f}",
            *([f"{w.money:,.2f}"] if w.money is not None else []),
        ]
        for w in facts.waste
    ]
    return Table(head, rows)


def comparison_tables(comparison: Comparison) -> list[Table]:
    arms = Table(
        _ARM_HEAD,
        [_arm_row(comparison, name) for name in comparison.arms],
        "Arms",
        "Differences are paired by seed; speed-up: the baseline's rollouts over those at which the "
        "arm's mean curve first had the baseline's final accuracy.",
    )
    runs = Table(
        ["run", "arm", "seed", "accuracy", "± 95 %", "rollouts", "tokens", "seconds"],
        [
            _run_row(facts, name)
            for name, seeds in comparison.arms.items()
            for facts in seeds.values()
        ],
        "Runs",
    )
    names = [facts.run.name for facts in comparison.facts]
    diff = Table(
        ["key", *(legible(name, _CELL) for name in names)],
        [
            [key, *(legible(value, _CELL) for value in values)]
            for key, values in comparison.differing.items()
        ],
        "Configurations: what differs",
        numbers=False,
    )
    return [arms, runs, diff] if diff.rows else [arms, runs]


def _arm_row(comparison: Comparison, name: str) -> list[str]:
    runs = comparison.arms[name]
    ends = [f.accuracy.value[-1] for f in runs.values() if f.accuracy.value.size]
    mean = _four(sum(ends) / len(ends)) if ends else "-"
    first = [legible(name, _CELL), str(len(runs)), mean]
    found = comparison.against.get(name)
    if name == comparison.baseline:
        return [*first, "", "", "", "", "", "the baseline"]
    if found is None:
        return [*first, "", "", "", "", "", "no seed in common"]
    speed = ""
    if found.speed_up is not None:
        middle, low, high = found.speed_up
        speed = f"{middle:.2f} ({low:.2f} .. {high:.2f})"
    along = "" if found.along is None else signed(found.along)
    boot = ""
    if math.isfinite(found.end.bootstrap_low):
        boot = f"{found.end.bootstrap_low:+.4f} .. {found.end.bootstrap_high:+.4f}"
    p = f"{found.p_holm:.3f}" if math.isfinite(found.p_holm) else ""
    return [*first, signed(found.end), boot, along, p, speed, found.end.verdict]


def _run_row(facts: Facts, arm: str) -> list[str]:
    summary, accuracy = facts.summary, facts.accuracy
    value, half = ("-", "-")
    if accuracy.value.size:
        value, half = _three(accuracy.value[-1]), _three(1.96 * accuracy.error[-1])
    return [
        legible(facts.run.name, _CELL),
        legible(arm, _CELL),
        str(summary["seed"]),
        value,
        half,
        f"{summary['rollouts']:,.0f}",
        short(summary["tokens"]),
        f"{summary['seconds']:,.0f}",
    ]


def signed(found: Difference) -> str:
    """`+0.0631 (+0.0580 .. +0.0682)`."""
    if found.pairs < 2:
        return f"{found.mean:+.4f} (one seed)"
    return f"{found.mean:+.4f} ({found.low:+.4f} .. {found.high:+.4f})"


def _three(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _four(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"
