"""What a run says at its end: accuracy, budget, which prompts took most, where things lie, and the
next command.

In: the run's books and its evidence.jsonl. Out: rows of (what, text), fit for a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cero_rl.data.prompts import Prompt
from cero_rl.errors import CeroError, first_line
from cero_rl.legible import one_line
from cero_rl.report.facts import NORMAL
from cero_rl.report.reader import Groups, number, read_groups
from cero_rl.scheduler.ledger import Ledger

MOST = 5  # prompts that are named
_PROMPT = 40  # characters
Numbers = Mapping[str, float | int]
Rows = list[tuple[str, str]]


def ending(
    run_dir: Path,
    ledger: Ledger,
    prompts: Sequence[Prompt],
    before: Numbers,
    after: Numbers,
    *,
    exported: bool,
) -> Rows:
    """before, after: eval/* of metrics.jsonl, empty without held-out prompts. What cannot be read
    is said, and ends nothing."""
    rows: Rows = []
    if said := _accuracy(before, after):
        rows.append(("accuracy", said))
    share = ledger.spent_rollouts / ledger.total_rollouts
    spent = f"{ledger.spent_rollouts:,} of {ledger.total_rollouts:,} rollouts ({share:.0%})"
    if ledger.refunded_rollouts:
        spent += f", {ledger.refunded_rollouts:,} came back from the engine"
    rows.append(("budget", spent))
    try:
        groups, _ = read_groups(run_dir)
        rows += _labelled("most went to", most_served(groups, prompts))
    except (CeroError, OSError) as error:
        rows.append(("most went to", f"not known: {one_line(first_line(error), 200)}"))
    places = [f"{run_dir / 'metrics.jsonl'}, samples.jsonl and evidence.jsonl beside it"]
    if exported:
        places.append(f"{run_dir / 'export'}, for from_pretrained")
    rows += _labelled("where", places)
    rows += _labelled("next", [f"cero-rl view {run_dir}", f"cero-rl report {run_dir}"])
    return rows


def _labelled(name: str, lines: Sequence[str]) -> Rows:
    return [(name if not index else "", line) for index, line in enumerate(lines)]


def _accuracy(before: Numbers, after: Numbers) -> str:
    name = next((key for key in after if key.startswith("eval/avg@")), None)
    if name is None:
        return ""
    end = _interval(after, name)
    if name not in before:
        return f"{end} (95 %), held-out {name.removeprefix('eval/')}"
    change = (after[name] - before[name]) * 100
    start = _interval(before, name)
    return f"{start} -> {end} (95 %), held-out {name.removeprefix('eval/')}, {change:+.1f} points"


def _interval(numbers: Numbers, name: str) -> str:
    half = NORMAL * number(numbers.get("eval/standard_error"))
    return f"{numbers[name]:.3f}" + (f" +- {half:.3f}" if math.isfinite(half) else "")


def most_served(groups: Groups, prompts: Sequence[Prompt]) -> list[str]:
    """The MOST prompts with most rollouts: how many, their pass rate, and what is asked."""
    spent = np.bincount(groups.prompt, weights=groups.generated)
    tries = np.bincount(groups.prompt, weights=groups.trials)
    wins = np.bincount(groups.prompt, weights=groups.successes)
    chosen = np.argsort(-spent, kind="stable")[:MOST].tolist()
    width = len(f"{spent[chosen[0]]:,.0f}")
    found = []
    for index in chosen:
        rate = f"{wins[index] / tries[index]:.2f} passed" if tries[index] else "none judged"
        asked = one_line(prompts[index].asked, _PROMPT) if index < len(prompts) else f"#{index}"
        found.append(f"{spent[index]:{width},.0f} rollouts, {rate}: {asked}")
    return found
