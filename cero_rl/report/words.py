"""A report as Markdown: the tables and the sentences, without figures."""

from __future__ import annotations

from cero_rl.legible import legible
from cero_rl.report.compare import Comparison
from cero_rl.report.facts import Facts
from cero_rl.report.tables import Table, comparison_tables, heldout_table, markdown, waste_table


def run_in_words(facts: Facts) -> str:
    summary = facts.summary
    state = "finished" if summary["finished"] else "not finished"
    budget = summary["budget_rollouts"] or 0
    parts = [
        f"# Run {legible(summary['run'], 80)}",
        f"{summary['scheduler']}, baseline {summary['baseline']}, seed {summary['seed']}, "
        f"{summary['ranks']} rank(s), {state}: {summary['steps']:,} steps, "
        f"{summary['rollouts']:,.0f} of {budget:,.0f} rollouts, {summary['tokens']:,.0f} tokens, "
        f"{summary['seconds']:,.0f} s.",
        *(f"Alert: {legible(line, 800)}" for line in summary["alerts"]),
        *(f"Note: {legible(note, 800)}" for note in summary["notes"]),
        "## Held-out accuracy",
        markdown(heldout_table(facts)),
        "## Where the rollouts went",
        markdown(_shares("pass rate", summary["by_pass_rate"])),
        *(markdown(_shares(name, kinds)) for name, kinds in summary["by_label"].items()),
        "## What was generated and taught nothing",
        markdown(waste_table(facts)),
        "## What the allocator believed",
        markdown(_beliefs(facts)),
    ]
    return "\n\n".join(parts) + "\n"


def comparison_in_words(comparison: Comparison) -> str:
    tables = [markdown(table) for table in comparison_tables(comparison)]
    return "\n\n".join(["# Runs compared", comparison.verdict, *tables]) + "\n"


def _shares(name: str, kinds: dict[str, dict[str, float]]) -> Table:
    rows = [[legible(k, 40), f"{v['pool']:.1%}", f"{v['rollouts']:.1%}"] for k, v in kinds.items()]
    return Table([legible(name, 40), "of the pool", "of the rollouts"], rows)


def _beliefs(facts: Facts) -> Table:
    summary, starved = facts.summary, facts.summary["starvation"]

    def share(name: str) -> str:
        return "-" if summary[name] is None else f"{summary[name]:.1%}"

    def plain(name: str) -> str:
        return "-" if summary[name] is None else f"{summary[name]:.3f}"

    rows = [
        ["regret against hindsight, share of its utility", share("regret_share")],
        ["the same, every prompt alike", share("even_regret_share")],
        [
            "rank correlation of worth and variance that came",
            plain("premise_rank_correlation"),
        ],
        ["mean error of expected success rates", plain("calibration_error")],
        ["prompts never looked at", f"{starved['never_looked_at']:,}"],
        ["not for two uniform passes", f"{starved['not_for_two_passes']:,}"],
        ["rollouts for one look at each of them", f"{starved['look_rollouts']:,}"],
    ]
    return Table(["what", "number"], rows)
