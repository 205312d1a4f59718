"""One reading of a run's directory, with all that the tabs show of it, made outside of the screen.

In: runs/NAME. Out: `Picture`. The report's reader and facts are the only ones that read; what they
raise (no run, another version, no step yet) goes through.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cero_rl.job.restarts import FILE as ATTEMPTS
from cero_rl.job.restarts import Attempt, read_attempts
from cero_rl.metrics.console import signal_in_words, step_in_words
from cero_rl.report.facts import Facts, facts_of
from cero_rl.report.reader import Line, Run, number, read_run
from cero_rl.report.samples import Sample, samples_of
from cero_rl.view.prompts import Prompts
from cero_rl.view.words import clock

WATCHED = ("metrics.jsonl", "evidence.jsonl", "samples.jsonl", ATTEMPTS, "posterior.parquet")
_SILENT_STEPS, _SILENT_SECONDS = 20.0, 300.0  # without a line: killed, or stuck
Stamp = tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class Picture:
    run: Run
    facts: Facts
    prompts: Prompts
    samples: Sequence[Sample]
    alerts: Sequence[str]  # of the run (docs/tracking.md), and what the reader could not read
    log: Sequence[str]
    attempts: Sequence[Attempt]
    stamp: Stamp  # of the files it was read from
    read_seconds: float

    @property
    def state(self) -> str:
        """Of the run at this moment, in words."""
        if self.run.finished:
            return "finished"
        step = int(self.run.steps[-1]["step"])
        if self.attempts and (code := self.attempts[-1].exit_code) is not None:
            return f"not finished: ended with exit code {code} after step {step}"
        age, usual = _age(self.run.path), number(self.run.steps[-1].get("step_time"))
        if age > max(_SILENT_SECONDS, _SILENT_STEPS * (usual if math.isfinite(usual) else 0.0)):
            return f"no step for {clock(age)} after step {step}: killed, or stuck"
        return f"running: step {step}, {clock(age)} ago"


def stamp_of(path: Path) -> Stamp:
    """Size and time of change of each file that is watched; it differs when the run has grown."""
    found: list[tuple[int, int] | None] = []
    for name in WATCHED:
        try:
            status = (path / name).stat()
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)


def look(path: Path) -> Picture:
    """Raises what `read_run` raises."""
    started, stamp = time.monotonic(), stamp_of(path)
    run = read_run(path)
    facts = facts_of(run)
    attempts = read_attempts(path)
    return Picture(
        run=run,
        facts=facts,
        prompts=Prompts.of(facts),
        samples=samples_of(run),
        attempts=attempts,
        alerts=[*facts.summary["alerts"], *run.notes],
        log=log_of(run, attempts),
        stamp=stamp,
        read_seconds=time.monotonic() - started,
    )


def _age(path: Path) -> float:
    """Seconds since the newest step was written."""
    try:
        return max(time.time() - (path / "metrics.jsonl").stat().st_mtime, 0.0)
    except OSError:
        return math.nan


# --- the log


def log_of(run: Run, attempts: Sequence[Attempt]) -> list[str]:
    """Every start of the run, its steps as the console says them, and what was held out."""
    lines: list[tuple[float, int, str]] = []
    for attempt in attempts:
        job = f", job {attempt.job_id}" if attempt.job_id else ""
        said = f"attempt {attempt.attempt}: from step {attempt.start_step}, {attempt.time}{job}"
        if attempt.exit_code is not None:
            said += f", exit code {attempt.exit_code}"
        if attempt.changes:
            said += f", changed {', '.join(attempt.changes)}"
        lines.append((attempt.start_step or -1, 2, said))  # the first before everything
    total = int(number(run.steps[-1].get("budget/total_rollouts")) or 1)
    for line in run.steps:
        lines.append((number(line["step"]), 0, _step(line, total)))
    for line in run.evaluations:
        lines.append((number(line["step"]), 1, _heldout(line)))
    return [said for _, _, said in sorted(lines, key=lambda line: line[:2])]


def _step(line: Line, total: int) -> str:
    spent = number(line.get("budget/spent_rollouts"))
    numbers: Mapping[str, float] = {
        name: number(value)
        for name, value in line.items()
        if name in ("baseline/signal_share", "cero/effective_group_rate")
    }
    return step_in_words(
        int(line["step"]),
        number(line.get("reward")),
        signal_in_words({"cero/effective_group_rate": math.nan, **numbers}),
        int(spent) if math.isfinite(spent) else 0,
        max(total, 1),
        number(line.get("perf/tokens_per_second")),
    )


def _heldout(line: Line) -> str:
    numbers = [
        f"{name.removeprefix('eval/')} {number(value):.3f}"
        for name, value in line.items()
        if name.startswith(("eval/avg@", "eval/pass@", "eval/maj@"))
    ]
    when = "at the end" if line.get("final") is True else f"after step {line['step']}"
    return f"held-out {when}: {', '.join(numbers)}"
