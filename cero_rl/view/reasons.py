"""Why a group got its rollouts, in words, from what the run wrote down of it.

In: a `Run` and one of its groups. Out: `Reason`. evidence.jsonl holds, of the time before the group
was sampled, worth, expected success rate and slope, and what a reserve put first; metrics.jsonl the
price of its step. What an older version did not write is said to be missing, never guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cero_rl.report.reader import RESERVED, Run, number
from cero_rl.view.words import counted

_RESERVES = {
    "probe": "A probe's turn: probes are looked at and never trained on (scheduler.probe_share).",
    "floor": "The floor of exploration: of all prompts it was looked at longest ago "
    "(scheduler.explore_share).",
}
_CERO = ("cero", "fixed_price")


@dataclass(frozen=True)
class Reason:
    short: str  # for a table's cell
    text: str  # whole sentences


@dataclass(frozen=True)
class _Place:
    """Of a group in its round, by slope."""

    rank: int  # 1: the largest slope
    of: int
    least: float  # slope of a group that the round served for what it is worth


def reason_of(run: Run, index: int) -> Reason:
    """Of group `index` of run.groups."""
    groups, settings = run.groups, run.config.scheduler
    reserved = RESERVED[int(groups.reserved[index])]
    if reserved:
        short, chosen = reserved, _RESERVES[reserved]
    elif settings.name in _CERO:
        short, chosen = _by_slope(run, index)
    elif settings.name == "uniform":
        short, chosen = "next in order", "Every prompt alike: it was the next of the shuffled pool."
    elif settings.name == "random_matched":
        short, chosen = "drawn", "Drawn at random; the round's sizes are those of CERO."
    else:
        short = settings.name
        chosen = (
            f"Chosen by {settings.name} (docs/scheduler-rivals.md), which writes down no more than "
            "worth and expected success rate."
        )
    sentences = [chosen, _belief(run, index), _looks(run, index), _size(run, index)]
    return Reason(short, " ".join(sentence for sentence in sentences if sentence))


def _by_slope(run: Run, index: int) -> tuple[str, str]:
    groups, settings = run.groups, run.config.scheduler
    slope, place = float(groups.slope[index]), _place(run, index)
    if not math.isfinite(slope):
        return "not recorded", "Its slope is not written down (an older version made this run)."
    unit = "a rollout" if settings.rollouts_per_unit == 1 else "a unit"
    worth = f"One more unit was worth {slope:.2f} of the largest slope there can be"
    cost = ", by expected token" if settings.token_costs else ""
    ranked = f"rank {place.rank} of {place.of} in its round"
    if settings.name == "fixed_price":
        return f"slope {slope:.2f}, #{place.rank}", f"{worth}{cost}: {ranked}, whatever the price."
    if settings.plan == "resolve":
        return f"slope {slope:.2f}, #{place.rank}/{place.of}", (
            f"{worth}{cost}: {ranked}, whose least was {place.least:.2f}. The budget left, dealt "
            "anew over all prompts, owed it more than it had (plan: resolve)."
        )
    if settings.plan == "thompson":
        return f"drawn, slope {slope:.2f}", (
            f"A draw from its posterior was among the largest (plan: thompson). {worth}, by the "
            "posterior's mean."
        )
    price = price_at(run, int(groups.step[index]))
    if not math.isfinite(price):
        return f"slope {slope:.2f}", f"{worth}{cost}: {ranked}. The price is not written down."
    if slope > price:
        return f"slope {slope:.2f} > price {price:.2f}", (
            f"{worth}{cost}, more than the price of {unit}, {price:.2f}: {ranked}."
        )
    why = "the rest of the budget had to be spent (scheduler.spend_down)"
    if settings.proximal:
        why = "its share of the budget was still open (scheduler.proximal)"
    return f"slope {slope:.2f} <= price {price:.2f}", (
        f"{worth}{cost}, not more than the price of {unit}, {price:.2f}; {why}: {ranked}."
    )


def has_price(run: Run) -> bool:
    """Does the plan ask for one?"""
    settings = run.config.scheduler
    return settings.name == "cero" and settings.plan == "duals"


def price_at(run: Run, step: int) -> float:
    """Of a unit at `step`; nan where no step says it, or the plan asks for none."""
    if not has_price(run):
        return math.nan
    for line in reversed(run.steps):
        if line.get("step") == step:
            return number(line.get("cero/price"))
    return math.nan


def _place(run: Run, index: int) -> _Place:
    groups = run.groups
    of_round = (groups.round == groups.round[index]) & (groups.reserved == 0)
    slopes = groups.slope[of_round]
    above = int((slopes > groups.slope[index]).sum())
    return _Place(above + 1, slopes.size, float(slopes.min()) if slopes.size else math.nan)


def _belief(run: Run, index: int) -> str:
    groups, settings = run.groups, run.config.scheduler
    worth, expected, slope = (
        float(column[index]) for column in (groups.worth, groups.expected, groups.slope)
    )
    if not math.isfinite(expected):
        return "What was believed of it is not written down (an older version made this run)."
    said = f"A rollout was thought worth {worth:.3f}, at an expected success rate of {expected:.2f}"
    left = slope / (4.0 * worth) if worth > 0 else math.nan
    by_exposure = settings.name == "cero" and settings.plan != "duals" and not settings.token_costs
    if by_exposure and 0.0 <= left <= 1.001 and _seen(run, index):
        said += f"; what it had before leaves {min(left, 1.0):.0%} of that (saturation)"
    return f"{said}."


def _looks(run: Run, index: int) -> str:
    groups = run.groups
    before = (groups.prompt == groups.prompt[index]) & (groups.round < groups.round[index])
    if not before.any():
        known = "a prior alone"
        if run.config.scheduler.warm_start:
            known = "an earlier run's evidence (scheduler.warm_start)"
        elif run.config.scheduler.has_cells:
            known = "its cell's prior"
        return f"The first look at it in this run: {known} spoke for it."
    rollouts = int(groups.generated[before].sum())
    age = int(groups.step[index] - groups.step[before].max())
    had = f"{counted(rollouts, 'rollout')} in {counted(int(before.sum()), 'group')}"
    return f"Before: {had}, the last {counted(age, 'step')} ago."


def _size(run: Run, index: int) -> str:
    groups, settings = run.groups, run.config.scheduler
    size, unit = int(groups.generated[index]), settings.rollouts_per_unit
    largest = unit * settings.max_units_per_prompt
    missing = size - int(groups.trials[index])
    lost = f" {missing} of them have no reward." if missing else ""
    if size > largest:
        return f"Size {size}: more than one wave gave it rollouts.{lost}"
    if size == largest:
        why = f"rollouts_per_unit {unit} x max_units_per_prompt {settings.max_units_per_prompt}"
        return f"Size {size}, the largest group there is ({why}).{lost}"
    if size % unit:
        why = "not whole units: the budget's rest, or rollouts that never came"
    elif settings.name not in _CERO:
        why = f"of at most {largest}"
    elif settings.explore_units and size == unit * settings.explore_units and not _seen(run, index):
        why = f"the most for a prompt that nothing is known of (explore_units), of {largest}"
    elif _is_last(run, index):
        why = f"what its round had left, of at most {largest}"
    elif settings.proximal:
        why = f"a further unit would have gained nothing (proximal {settings.proximal:g})"
    else:
        why = f"as many units as it was short of, of at most {largest}"
    return f"Size {size}: {why}.{lost}"


def _seen(run: Run, index: int) -> bool:
    groups = run.groups
    same = groups.prompt == groups.prompt[index]
    return bool((same & (groups.round < groups.round[index])).any())


def _is_last(run: Run, index: int) -> bool:
    return int(np.flatnonzero(run.groups.round == run.groups.round[index])[-1]) == index
