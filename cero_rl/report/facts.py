"""What a run's report says in numbers: accuracy, where the rollouts went, what was wasted, regret,
premise, starvation, phases.

In: `Run`. Out: `Facts`, whose `summary` is plain JSON and whose arrays are what the figures draw.
Units in names. Estimates: intervals of accuracy are 1.96 standard errors over held-out prompts;
regret is on the papers' surrogate objective U = 1 - exp(-4 saturation q z / R) (arXiv 2606.05606)
with E[q] given all that the run showed in the place of the true q.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cero_rl.metrics.alerts import alerts_of, by_name
from cero_rl.report.reader import Groups, Line, Run, number
from cero_rl.scheduler.offline import water_filling
from cero_rl.scheduler.posterior import Floats, expected_variance
from cero_rl.scheduler.premise import rank_correlation
from cero_rl.scheduler.sizes import Ids

NORMAL = 1.96
RATE_EDGES = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
RATE_NAMES = ("< .05", ".05-.25", ".25-.50", ".50-.75", ".75-.95", "> .95")
FEW = 4  # rollouts of a prompt below which its pass rate is not spoken of
_BINS = 10  # of calibration
_POINTS = 20  # of the regret's curve
_PHASES = ("rollout", "reward", "advantage", "learner", "sync", "scheduler", "evaluate")


@dataclass(frozen=True)
class Accuracy:
    """Held-out points along a run, [E] each."""

    step: Ids
    rollouts: Floats
    tokens: Floats  # generated for training
    seconds: Floats  # of training steps
    value: Floats
    error: Floats  # standard error over prompts; nan where one prompt was judged
    samples: Ids  # k of avg@k
    passes: Mapping[int, Floats]  # pass@k [E], nan where not measured


@dataclass(frozen=True)
class Calibration:
    """Of groups in bins of what was believed, [bins] each; equal numbers of rollouts in each."""

    believed: Floats
    came: Floats
    error: Floats  # standard error of `came`
    rollouts: Ids


@dataclass(frozen=True)
class Regret:
    """Along the budget, [20] each: the surrogate a prompt as it was spent, spent evenly, and as
    hindsight would have spent as much."""

    rollouts: Floats
    spent: Floats
    even: Floats
    best: Floats


@dataclass(frozen=True)
class Waste:
    """Rollouts that taught nothing, by reason, and what they took."""

    reason: str
    rollouts: float
    tokens: float
    seconds: float
    share: float
    money: float | None


@dataclass(frozen=True)
class Facts:
    """What the report says of one run, as numbers: each field is a figure or a table of the page,
    `summary` the whole of `--format json`."""

    run: Run
    accuracy: Accuracy
    spent: Ids  # [P] rollouts of each prompt
    rates: Floats  # [P] pass rate over its rollouts of the run; nan: fewer than FEW
    last_look: Ids  # [P] step; -1: never
    calibration: Calibration | None
    premise: float  # rank correlation of worth and observed variance over groups of two or more
    regret: Regret | None
    waste: Sequence[Waste]
    by_label: Mapping[str, Mapping[str, Sequence[float]]]  # column -> kind -> (pool, spent) shares
    by_rate: Sequence[tuple[str, float, float]]  # name, share of the pool, of the rollouts
    summary: dict[str, Any]


def facts_of(run: Run, price_per_hour: float | None = None) -> Facts:
    """Everything the report draws, from a `Run`. price_per_hour: of one GPU (or rank), for the
    columns of money."""
    groups = run.groups

    def by_prompt(weights: np.ndarray) -> Floats:
        summed = np.bincount(groups.prompt, weights=weights, minlength=run.num_prompts)
        return summed.astype(np.float64)

    spent = by_prompt(groups.generated)
    last = np.full(run.num_prompts, -1, dtype=np.int64)
    np.maximum.at(last, groups.prompt, groups.step)
    wins, tries = by_prompt(groups.successes), by_prompt(groups.trials)
    rates = np.where(tries >= FEW, wins / np.maximum(tries, 1), np.nan)
    accuracy = _accuracy(run)
    waste = _waste(run, price_per_hour)
    regret = _regret(run, _worth(run, wins, tries))
    calibration, premise = _premise(groups)
    by_rate = _by_rate(rates, spent)
    by_label = {name: _shares(kinds, spent) for name, kinds in run.labels.items()}
    found = Facts(
        run=run,
        accuracy=accuracy,
        spent=spent.astype(np.int64),
        rates=rates,
        last_look=last,
        calibration=calibration,
        premise=premise,
        regret=regret,
        waste=waste,
        by_label=by_label,
        by_rate=by_rate,
        summary={},
    )
    found.summary.update(_summary(found, price_per_hour))
    return found


# --- accuracy


def _accuracy(run: Run) -> Accuracy:
    at = np.array([int(line["step"]) for line in run.steps])
    tokens = np.cumsum(np.nan_to_num(run.column("num_tokens")))
    seconds = np.cumsum(np.nan_to_num(run.column("step_time")))

    def until(step: int, of: Floats) -> float:
        done = int(np.searchsorted(at, step, side="right"))
        return float(of[done - 1]) if done else 0.0

    points = [_point(line) for line in run.evaluations]
    steps = [int(line["step"]) for line in run.evaluations]
    ks = sorted({k for _, _, _, passes in points for k in passes})
    return Accuracy(
        step=np.array(steps, dtype=np.int64),
        rollouts=np.array([number(line.get("budget/spent_rollouts")) for line in run.evaluations]),
        tokens=np.array([until(step, tokens) for step in steps]),
        seconds=np.array([until(step, seconds) for step in steps]),
        value=np.array([value for _, value, _, _ in points]),
        error=np.array([error for _, _, error, _ in points]),
        samples=np.array([k for k, _, _, _ in points], dtype=np.int64),
        passes={k: np.array([passes.get(k, math.nan) for *_, passes in points]) for k in ks},
    )


def _point(line: Line) -> tuple[int, float, float, dict[int, float]]:
    """(k, avg@k, its standard error, pass@k)."""
    samples = next(key for key in line if key.startswith("eval/avg@"))
    passes = {
        int(key.removeprefix("eval/pass@")): number(value)
        for key, value in line.items()
        if key.startswith("eval/pass@")
    }
    k = int(samples.removeprefix("eval/avg@"))
    return k, number(line[samples]), number(line.get("eval/standard_error")), passes


# --- where the rollouts went


def _worth(run: Run, wins: Floats, tries: Floats) -> Floats:
    """f64[P] E[p (1 - p)] of each prompt with all that the run showed of it, under a prior of one
    pseudo-rollout at the mean pass rate of its cell's prompts (the columns of the scheduler's cells
    where they are known, else the whole pool)."""
    columns = [run.labels[n] for n in run.config.scheduler.cell_columns if n in run.labels]
    rows = list(zip(*columns)) if columns else [()] * run.num_prompts
    number_of = {row: at for at, row in enumerate(dict.fromkeys(rows))}
    cell = np.array([number_of[row] for row in rows])
    seen = tries > 0
    if not seen.any():
        return np.zeros(run.num_prompts)
    rate = wins[seen] / tries[seen]
    size = len(number_of)
    summed = np.bincount(cell[seen], weights=rate, minlength=size) + rate.mean()
    prior = summed / (np.bincount(cell[seen], minlength=size) + 1.0)
    a = prior[cell] + wins
    return expected_variance(a, 1.0 + tries - a)


def _shares(kinds: Sequence[str], spent: Floats) -> dict[str, tuple[float, float]]:
    """kind -> share of the pool, share of the rollouts."""
    names, which = np.unique(np.array(kinds), return_inverse=True)
    have = np.bincount(which) / len(kinds)
    used = np.bincount(which, weights=spent[: len(kinds)]) / max(float(spent.sum()), 1.0)
    rows = [(str(n), (float(h), float(u))) for n, h, u in zip(names, have, used)]
    return dict(sorted(rows, key=lambda row: _in_order(row[0])))


def _in_order(name: str) -> tuple[float, str]:
    """Numbers by size, then words."""
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def _by_rate(rates: Floats, spent: Floats) -> list[tuple[str, float, float]]:
    known = np.isfinite(rates)
    which = np.searchsorted(RATE_EDGES, rates[known], side="right")
    size, total = len(RATE_NAMES), max(float(spent.sum()), 1.0)
    have = np.bincount(which, minlength=size) / rates.shape[0]
    used = np.bincount(which, weights=spent[known], minlength=size) / total
    rows = [(name, float(h), float(u)) for name, h, u in zip(RATE_NAMES, have, used)]
    few = ~known & (spent > 0)
    rows.append((f"1-{FEW - 1} rollouts", float(few.mean()), float(spent[few].sum() / total)))
    rows.append(("never", float((spent == 0).mean()), 0.0))
    return rows


# --- waste


def _waste(run: Run, price_per_hour: float | None) -> list[Waste]:
    """Tokens and seconds of a step go to its rollouts alike: a share of one is a share of all.
    Reasons may meet in one rollout (a cut one that is wrong, in a dead group), so they do not add
    up."""
    groups = run.groups
    steps = {int(line["step"]): line for line in run.steps}
    some = groups.generated > 0
    rollouts_of = _per_step(groups, groups.generated * some)
    dead = (groups.trials > 1) & ((groups.successes <= 0) | (groups.successes >= groups.trials))
    by_reason = {
        "dead groups (rewards all equal)": _per_step(groups, groups.generated * dead),
        "missing reward": _per_step(groups, groups.generated - groups.trials),
    }
    total = sum(rollouts_of.values())
    for step, line in steps.items():
        count = rollouts_of.get(step, 0.0)
        answered = number(line.get("completions/mean_length")) * count  # response tokens
        wasted = {
            "below learner.min_advantage (no signal)": 1
            - number(line.get("baseline/signal_share")),
            "not in the loss (share of response tokens)": 1
            - number(line.get("trained_tokens")) / (answered or math.nan),
            "cut at the length limit": number(line.get("completions/clipped_ratio")),
        }
        for reason, share in wasted.items():
            if math.isfinite(share):
                by_reason.setdefault(reason, {})[step] = max(share, 0.0) * count
    found = []
    for reason, each in by_reason.items():
        if not each:
            continue
        rollouts = tokens = seconds = 0.0
        for step, wasted in each.items():
            whole = rollouts_of.get(step, 0.0)
            if not wasted or not whole or (line := steps.get(step)) is None:
                continue
            rollouts += wasted
            tokens += np.nan_to_num(number(line.get("num_tokens"))) * wasted / whole
            seconds += np.nan_to_num(number(line.get("step_time"))) * wasted / whole
        found.append(_one_waste(reason, rollouts, tokens, seconds, total, run, price_per_hour))
    refunded = number(run.steps[-1].get("budget/refunded_rollouts"))
    if refunded > 0:
        reason = "never came from the engine (refunded)"
        found.append(_one_waste(reason, refunded, 0.0, 0.0, total, run, price_per_hour))
    return found


def _one_waste(
    reason: str,
    rollouts: float,
    tokens: float,
    seconds: float,
    total: float,
    run: Run,
    price: float | None,
) -> Waste:
    money = None if price is None else seconds / 3600 * run.ranks * price
    return Waste(reason, rollouts, tokens, seconds, rollouts / max(total, 1.0), money)


def _per_step(groups: Groups, weights: np.ndarray) -> dict[int, float]:
    steps, which = np.unique(groups.step, return_inverse=True)
    return dict(zip(steps.tolist(), np.bincount(which, weights=weights).tolist()))


# --- regret and premise


def _regret(run: Run, worth: Floats) -> Regret | None:
    """worth f64[P]: what the run knows of each prompt at its end, held still."""
    groups, pool = run.groups, run.num_prompts
    if not worth.any():
        return None
    budget = float(number(run.steps[-1].get("budget/total_rollouts")))
    if not budget > 0:
        budget = float(groups.generated.sum())
    slopes = 4.0 * run.config.scheduler.saturation * pool / budget * worth  # a rollout
    order = np.cumsum(groups.generated)
    total = float(order[-1])
    exposure = np.zeros(pool)
    rows, done = [], 0
    for share in np.linspace(1.0 / _POINTS, 1.0, _POINTS):
        upto = int(np.searchsorted(order, share * total, side="right"))
        np.add.at(exposure, groups.prompt[done:upto], groups.generated[done:upto])
        done = upto
        here = float(exposure.sum())
        best = water_filling(slopes, here, here)
        values = [-np.expm1(-slopes * z).mean() for z in (exposure, here / pool, best)]
        rows.append((here, *values))
    at, spent, even, best_of = np.array(rows).T
    return Regret(at, spent, even, best_of)


def _premise(groups: Groups) -> tuple[Calibration | None, float]:
    """Were expected success rates right, and did worth rank the variance that came?"""
    judged = (groups.trials > 0) & np.isfinite(groups.expected)
    premise = math.nan
    pairs = judged & (groups.trials > 1)
    if pairs.sum() > 2:
        n, wins = groups.trials[pairs], groups.successes[pairs]
        premise = rank_correlation(groups.worth[pairs], wins * (n - wins) / (n * (n - 1.0)))
    if judged.sum() < 2 * _BINS:
        return None, premise
    order = np.argsort(groups.expected[judged], kind="stable")
    believed = groups.expected[judged][order]
    wins, tries = groups.successes[judged][order], groups.trials[judged][order]
    edges = np.searchsorted(np.cumsum(tries), np.linspace(0, tries.sum(), _BINS + 1)[1:-1])
    rows = []
    for part in np.split(np.arange(order.size), edges):
        if not part.size:
            continue
        n = int(tries[part].sum())
        came = wins[part].sum() / n
        expected = (believed[part] * tries[part]).sum() / n
        rows.append((expected, came, math.sqrt(max(came * (1 - came), 0.0) / n), n))
    b, c, e, n = np.array(rows).T
    return Calibration(b, c, e, n.astype(np.int64)), premise


# --- the summary


def _summary(found: Facts, price: float | None) -> dict[str, Any]:
    run, accuracy = found.run, found.accuracy
    spent = float(found.spent.sum())
    seconds = float(np.nansum(run.column("step_time")))
    tokens = float(np.nansum(run.column("num_tokens")))
    held = [
        {
            "step": int(accuracy.step[i]),
            "rollouts": _plain(accuracy.rollouts[i]),
            "tokens": _plain(accuracy.tokens[i]),
            "seconds": _plain(accuracy.seconds[i]),
            "avg_at": int(accuracy.samples[i]),
            "accuracy": _plain(accuracy.value[i]),
            "half_width_95": _plain(NORMAL * accuracy.error[i]),
            "pass_at": {str(k): _plain(v[i]) for k, v in accuracy.passes.items()},
        }
        for i in range(accuracy.step.size)
    ]
    regret = found.regret
    return {
        "run": run.name,
        "finished": run.finished,
        "scheduler": run.config.scheduler.name,
        "baseline": run.config.learner.baseline,
        "seed": run.config.seed,
        "ranks": run.ranks,
        "steps": int(run.steps[-1]["step"]),
        "prompts": run.num_prompts,
        "rollouts": spent,
        "budget_rollouts": _plain(number(run.steps[-1].get("budget/total_rollouts"))),
        "tokens": tokens,
        "seconds": seconds,
        "money": None if price is None else seconds / 3600 * run.ranks * price,
        "heldout": held,
        "waste": [
            {
                "reason": w.reason,
                "rollouts": w.rollouts,
                "share": w.share,
                "tokens": w.tokens,
                "seconds": w.seconds,
                "money": w.money,
            }
            for w in found.waste
        ],
        "by_pass_rate": {name: {"pool": h, "rollouts": u} for name, h, u in found.by_rate},
        "by_label": {
            column: {kind: {"pool": h, "rollouts": u} for kind, (h, u) in kinds.items()}
            for column, kinds in found.by_label.items()
        },
        "regret_share": None
        if regret is None
        else _plain(1.0 - regret.spent[-1] / max(float(regret.best[-1]), 1e-12)),
        "even_regret_share": None
        if regret is None
        else _plain(1.0 - regret.even[-1] / max(float(regret.best[-1]), 1e-12)),
        "premise_rank_correlation": _plain(found.premise),
        "calibration_error": None
        if found.calibration is None
        else _plain(
            np.average(
                np.abs(found.calibration.believed - found.calibration.came),
                weights=found.calibration.rollouts,
            )
        ),
        "starvation": starvation(found),
        "seconds_by_phase": {
            name: float(np.nansum(column))
            for name in _PHASES
            if np.isfinite(column := run.column(f"timing_s/{name}")).any()
        },
        "notes": list(run.notes),
        "alerts": by_name(alerts_of(run.steps, run.config.parity_bound)),
    }


def starvation(found: Facts) -> dict[str, float | int]:
    """Prompts not looked at for two uniform passes (the run's rollouts a step over the pool), and
    what one unit for each would take."""
    run = found.run
    steps, spent = len(run.steps), float(found.spent.sum())
    a_pass = run.num_prompts * run.config.scheduler.rollouts_per_unit / max(spent / steps, 1e-9)
    newest = int(run.steps[-1]["step"])
    age = np.where(found.last_look < 0, newest, newest - found.last_look)
    never = int((found.last_look < 0).sum())
    stale = int(((age > 2 * a_pass) & (found.last_look >= 0)).sum())
    look = (never + stale) * run.config.scheduler.rollouts_per_unit
    seconds = float(np.nansum(run.column("step_time")))
    tokens = float(np.nansum(run.column("num_tokens")))
    return {
        "uniform_pass_steps": a_pass,
        "never_looked_at": never,
        "not_for_two_passes": stale,
        "look_rollouts": look,
        "look_budget_share": look / max(spent, 1.0),
        "look_tokens": tokens / max(spent, 1.0) * look,
        "look_seconds": seconds / max(spent, 1.0) * look,
    }


def _plain(value: float) -> float | None:
    """JSON has no nan."""
    return float(value) if math.isfinite(value) else None
