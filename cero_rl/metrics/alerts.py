"""Alerts: what in a run's numbers a person should look at now, and the first thing to try.

In: the lines of metrics.jsonl, one after the other. Out: alerts, the same for the same lines, so
that a resumed run, the report and the trackers say what the run itself said. An alert comes once,
and again when it was over in between or has become twice as bad. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cero_rl.scheduler.reserve import STARVED_ALERT

Line = Mapping[str, Any]
PARITY_SHARE = 0.5  # of the bound that ends a run
DEAD = 0.95  # share of groups without a difference, over DEAD_STEPS steps
DEAD_STEPS = 3
CUT = 0.3  # share of responses cut at the limit
MISSING = 0.2  # share of rewards
STALLED_STEPS = 3  # without a rollout booked
ENTROPY_SHARE = 0.1  # of the first step's


@dataclass(frozen=True)
class Alert:
    """One line for a person. worse: by how much, on the rule's own scale."""

    step: int
    name: str
    text: str
    remedy: str
    worse: float

    def __str__(self) -> str:
        return f"{self.name}: {self.text}; {self.remedy}"


@dataclass(frozen=True)
class Rule:
    """`look`: (how bad, in words) where there is something to say, else None. It sees the lines of
    the run up to now, the newest last."""

    name: str
    remedy: str
    look: Callable[[list[Line], float], tuple[float, str] | None]


def _number(line: Line, name: str) -> float:
    """nan where a line lacks it, or it was not finite."""
    value = line.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _parity(lines: list[Line], bound: float) -> tuple[float, str] | None:
    gap = _number(lines[-1], "parity/gap")
    if not gap > PARITY_SHARE * bound:
        return None
    return gap, f"sampler and learner are {gap:.2g} apart (parity/gap), the bound is {bound:g}"


def _missing(lines: list[Line], bound: float) -> tuple[float, str] | None:
    rates = (_number(lines[-1], f"reward/{why}_rate") for why in ("timeout", "error"))
    share = sum(rate for rate in rates if math.isfinite(rate))
    if not share > MISSING:
        return None
    return share, f"{share:.0%} of the rewards of this step are missing"


def _starved(lines: list[Line], bound: float) -> tuple[float, str] | None:
    share = _number(lines[-1], "cero/starved_share")
    if not share > STARVED_ALERT:
        return None
    return share, (
        f"{share:.0%} of the prompts were not looked at for two uniform passes "
        "(cero/starved_share); what the model has learned to solve since among them stays unseen"
    )


def _set_aside(lines: list[Line], bound: float) -> tuple[float, str] | None:
    count = _number(lines[-1], "cero/set_aside_prompts")
    if not count > 0:
        return None
    return count, f"{count:.0f} prompts are set aside: their rollouts came back without a reward"


def _dead(lines: list[Line], bound: float) -> tuple[float, str] | None:
    if "baseline/strength" in lines[-1]:  # the critic learns from groups that are all alike, too
        return None
    shares = [_number(line, "frac_reward_zero_std") for line in lines[-DEAD_STEPS:]]
    if len(shares) < DEAD_STEPS or not min(shares) > DEAD:
        return None
    return 1.0, f"of the last {DEAD_STEPS} steps' groups {1 - max(shares):.0%} had any difference"


def _cut(lines: list[Line], bound: float) -> tuple[float, str] | None:
    share = _number(lines[-1], "completions/clipped_ratio")
    if not share > CUT:
        return None
    return share, f"{share:.0%} of the responses were cut at rollout.max_response_tokens"


def _skipped(lines: list[Line], bound: float) -> tuple[float, str] | None:
    skipped = _number(lines[-1], "skipped_updates")
    if not (skipped > 0 and _number(lines[-1], "micro_batches") > 0):
        return None
    return skipped, f"{skipped:.0f} update(s) were skipped for a gradient that is no number"


def _stalled(lines: list[Line], bound: float) -> tuple[float, str] | None:
    spent = [_number(line, "budget/spent_rollouts") for line in lines[-STALLED_STEPS - 1 :]]
    if len(spent) <= STALLED_STEPS or spent[-1] != spent[0]:
        return None
    return 1.0, f"no rollout was booked in {STALLED_STEPS} steps: the sampler returns none"


def _entropy(lines: list[Line], bound: float) -> tuple[float, str] | None:
    first, now = _number(lines[0], "entropy"), _number(lines[-1], "entropy")
    if not (first > 0 and now < ENTROPY_SHARE * first):
        return None
    return first / max(now, 1e-9), f"entropy fell from {first:.3g} to {now:.3g} nats a token"


def _saves(lines: list[Line], bound: float) -> tuple[float, str] | None:
    failed = _number(lines[-1], "checkpoint/failed_saves")
    return (failed, f"{failed:.0f} save(s) in a row failed") if failed > 0 else None


RULES = (
    Rule("parity", "look for another dtype, an adapter or quantisation: docs/parity.md", _parity),
    Rule("rewards missing", "run the reward on samples.jsonl; reward.timeout_seconds", _missing),
    Rule("set aside", "see whether the verifier can judge them (samples.jsonl)", _set_aside),
    Rule(
        "starvation",
        "scheduler.forgetting: 0.98 or scheduler.explore_share look again",
        _starved,
    ),
    Rule("no signal", "the prompts are too hard or too easy: cero-rl report, easier data", _dead),
    Rule("truncation", "raise rollout.max_response_tokens, or learner.truncated: mask", _cut),
    Rule("bad gradient", "lower optimizer.learning_rate; learner.max_nonfinite_steps", _skipped),
    Rule("stalled budget", "look at the sampler's log", _stalled),
    Rule(
        "entropy collapse", "learner.entropy_target, or a lower optimizer.learning_rate", _entropy
    ),
    Rule("failed saves", "free space below output_dir", _saves),
)


class Watch:
    """Looks at every step's line once. parity_bound: what ends the run (Config.parity_bound)."""

    def __init__(self, parity_bound: float) -> None:
        self._bound = parity_bound
        self._first: Line | None = None
        self._newest: list[Line] = []
        self._said: dict[str, float] = {}  # how bad it was when it was said; gone when over

    def look(self, line: Line) -> list[Alert]:
        """What is new at this step; nothing for lines that are no step's."""
        if "step_time" not in line:
            return []
        self._first = self._first or line
        self._newest = [*self._newest, line][-STALLED_STEPS - 1 :]
        seen = self._newest if self._newest[0] is self._first else [self._first, *self._newest]
        alerts = []
        for rule in RULES:
            found = rule.look(seen, self._bound)
            if found is None:
                self._said.pop(rule.name, None)
                continue
            worse, text = found
            if worse < 2 * self._said.get(rule.name, 0.0):
                continue
            self._said[rule.name] = worse
            alerts.append(Alert(int(line["step"]), rule.name, text, rule.remedy, worse))
        return alerts


def alerts_of(lines: Iterable[Line], parity_bound: float) -> list[Alert]:
    """All of a run, in the order of its steps."""
    watch = Watch(parity_bound)
    return [alert for line in lines for alert in watch.look(line)]


def by_name(alerts: Iterable[Alert]) -> list[str]:
    """A line for each rule that spoke: at which steps, and its newest words."""
    steps: dict[str, list[int]] = {}
    newest: dict[str, Alert] = {}
    for alert in alerts:
        steps.setdefault(alert.name, []).append(alert.step)
        newest[alert.name] = alert
    lines = []
    for name, at in steps.items():
        when = f"step {at[0]}" if len(at) == 1 else f"{len(at)} times, steps {at[0]} to {at[-1]}"
        alert = newest[name]
        lines.append(f"{name} ({when}): {alert.text}; {alert.remedy}")
    return lines
