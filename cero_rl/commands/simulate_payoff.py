"""`cero-rl simulate --replay` on measured pass rates: would CERO+ pay on this pool, in plain words.

In: what was measured, a budget. Out: a table of what each allocator's rollouts would bring, the
speed-up that follows by regime, and whether it is worth having. docs/when.md explains the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import numpy as np

from cero_rl.config.presets import fill
from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.options import CeroOptions
from cero_rl.scheduler.posterior import Prior
from cero_rl.scheduler.prior import prior_from_pass_rate
from cero_rl.scheduler.registry import make_scheduler
from cero_rl.scheduler.simulation.measured import Measured
from cero_rl.scheduler.simulation.payoff import (
    GROUP,
    SIGNAL_RATES,
    Answer,
    Interval,
    Maker,
    Payoff,
    Sizes,
    answer,
)

UNIFORM, PUBLISHED, PLUS, TOLD, ORACLE = (
    "uniform",
    "cero, as published",
    "cero_plus",
    "cero_plus, told the rates",
    "oracle (knows p)",
)
WORTH_HAVING = 1.1  # times fewer rollouts
_ALL_DEAD = 0.01  # of the prompts have signal, at most


@dataclass(frozen=True, slots=True)
class Question:
    """A pool and the run that is planned on it."""

    source: str
    pool: Measured
    measured_with: str  # in words
    budget: int
    rounds: int
    drift: float
    column: str | None  # of the pass rates in the user's data, None for a run's own evidence


def _build(sizes: Sizes, name: str, unit: int, seed: int, **given: Any) -> BudgetedScheduler:
    most = math.ceil(sizes.most_rollouts / unit)
    return make_scheduler(
        name,
        num_prompts=sizes.prompts,
        rounds=sizes.rounds,
        budget_rollouts=sizes.budget_rollouts,
        rollouts_per_unit=unit,
        max_units_per_prompt=most,
        capacity_rollouts=sizes.capacity_rollouts(unit, most),
        seed=seed,
        **given,
    )


def _published(sizes: Sizes, pool: Measured, seed: int) -> BudgetedScheduler:
    step = 1.0 / math.sqrt(sizes.rounds)
    return _build(sizes, "cero", 8, seed, cero=CeroOptions(step_size=step, spend_down=True))


def _plus(told: bool) -> Maker:
    """CERO+ by its preset, with the pool's cells, or with the pass rates as prior."""

    def make(sizes: Sizes, pool: Measured, seed: int) -> BudgetedScheduler:
        given = {"preset": "cero_plus", "rounds": sizes.rounds}
        set_ = fill({"scheduler": given | ({"pass_rate_column": "-"} if told else {})})["scheduler"]
        every = set_.get("refit_prior_every", 0)
        prior: Prior = (1.0, 1.0)
        if told:
            known = pool.trials > 0.0
            rates = np.where(known, pool.successes / np.where(known, pool.trials, 1.0), np.nan)
            prior = prior_from_pass_rate(rates)
        cells = np.zeros(sizes.prompts, dtype=np.int64) if pool.cells is None else pool.cells
        options = CeroOptions(
            spend_down=True,
            plan=set_["plan"],
            refit_prior_every=every,
            cells=cells if every else None,
        )
        return _build(
            sizes,
            "cero",
            set_["rollouts_per_unit"],
            seed,
            saturation=set_["saturation"],
            forgetting=set_["forgetting"],
            prior=prior,
            cero=options,
        )

    return make


def _oracle(sizes: Sizes, pool: Measured, seed: int) -> BudgetedScheduler:
    """At CERO+'s saturation."""
    settings = fill({"scheduler": {"preset": "cero_plus", "rounds": sizes.rounds}})["scheduler"]
    return _build(sizes, "oracle", 1, seed, saturation=settings["saturation"])


MAKERS: tuple[tuple[str, Maker], ...] = (
    (UNIFORM, lambda sizes, pool, seed: _build(sizes, "uniform", 1, seed)),
    (PUBLISHED, _published),
    (PLUS, _plus(told=False)),
    (TOLD, _plus(told=True)),
    (ORACLE, _oracle),
)


def ask(question: Question, draws: int, progress: Callable[[int, int], None]) -> Answer:
    """Raises ValueError for sizes that do not fit."""
    makers = [(label, make) for label, make in MAKERS if label != TOLD or question.column]
    return answer(
        question.pool,
        makers,
        rounds=question.rounds,
        budget=question.budget,
        draws=draws,
        drift=question.drift,
        progress=progress,
    )


def tell_answer(question: Question, found: Answer, out: TextIO) -> None:
    sizes, pool = found.sizes, question.pool
    print(
        f"{question.source}: {pool.prompts} prompts, {question.measured_with}. Budget "
        f"{question.budget} rollouts, {found.rollouts_per_prompt:.1f} a prompt, in "
        f"{question.rounds} rounds.",
        file=out,
    )
    part = "all prompts"
    if sizes.prompts < pool.prompts:
        part = f"{sizes.prompts} of them, drawn anew each time, with as many rollouts a prompt"
    print(
        f"Simulated {found.draws} times: {part}, {sizes.rounds} rounds, a policy that drifts "
        f"{question.drift:g} logits. In brackets: 95 % of such draws.\n",
        file=out,
    )
    low, high = SIGNAL_RATES
    print(
        f"Today {_percent(found.live)} of uniform groups of {GROUP} are live;\n"
        f"{_percent(found.with_signal)} of the prompts have signal (success rate {low:g} to "
        f"{high:g}).\n",
        file=out,
    )
    _table(found, out)
    print(file=out)
    for line in speed_ups(found):
        print(line, file=out)
    print(f"\n{verdict(question, found)}", file=out)
    print(
        "Not in these figures: which way a prompt's gradient points, what is memorised, and what "
        "the critic brings on any allocation (docs/when.md).",
        file=out,
    )


def payoff_json(question: Question, found: Answer) -> dict[str, Any]:
    """The same for programs; intervals are {mean, low, high}, 95 % of draws."""
    return {
        "source": question.source,
        "prompts": question.pool.prompts,
        "measured_with": question.measured_with,
        "budget_rollouts": question.budget,
        "rounds": question.rounds,
        "drift_logits": question.drift,
        **asdict(found),
        "verdict": verdict(question, found),
    }


def _table(found: Answer, out: TextIO) -> None:
    heads = (
        "allocator",
        "rollouts with signal",
        "signal a rollout",
        "over uniform's",
        "first looks",
    )
    lines: list[tuple[str, ...]] = [heads]
    for each in found.payoffs:
        gain = "1" if each.label == UNIFORM else _times(each.gain)
        lines.append(
            (
                each.label,
                _percent(each.in_signal),
                f"{each.signal.mean:.3f}",
                gain,
                "" if each.label in (UNIFORM, ORACLE) else f"{each.first_looks.mean:.0%}",
            )
        )
    widths = [max(len(line[at]) for line in lines) for at in range(len(heads))]
    for line in lines:
        rest = (text.rjust(width) for text, width in zip(line[1:], widths[1:]))
        print("  ".join([line[0].ljust(widths[0]), *rest]), file=out)


def payoff_of(found: Answer, label: str) -> Payoff | None:
    return next((each for each in found.payoffs if each.label == label), None)


def speed_ups(found: Answer) -> list[str]:
    """Times fewer rollouts than uniform with the same learner, by regime: g is the gain in signal a
    rollout; efficiency of a step as in docs/when.md."""
    lines = ["Times fewer rollouts than uniform, same learner:"]
    for label in (PLUS, TOLD):
        if (each := payoff_of(found, label)) is None:
            continue
        root = each.gain.map(math.sqrt)
        lines += [
            f"  {label}",
            f"    batch or learning rate follows the signal: {_times(each.gain)}",
            f"    neither does, steps limited by noise:      {_times(root)}",
            "    neither does, steps limited by signal:     1",
        ]
    return lines


def verdict(question: Question, found: Answer) -> str:
    """One sentence; "It will not pay here" where no regime's interval reaches 1.1."""
    plus, told = payoff_of(found, PLUS), payoff_of(found, TOLD)
    oracle = payoff_of(found, ORACLE)
    assert plus is not None
    assert oracle is not None
    if found.with_signal.mean < _ALL_DEAD:
        return (
            f"It will not pay here: all but {found.with_signal.mean:.1%} of the prompts are dead, "
            "and no allocation makes signal; take easier prompts or a better start model."
        )
    hint = ""
    if told is not None and told.gain.low > max(plus.gain.high, WORTH_HAVING):
        hint = (
            f" The measured rates are worth a first look at every prompt: with "
            f"scheduler.pass_rate_column: {question.column} it is {_times(told.gain)}."
        )
    if plus.gain.high < WORTH_HAVING:
        if oracle.gain.high < WORTH_HAVING:
            reason = (
                "the pool is balanced, and even who knows every success rate gains "
                f"{_times(oracle.gain)} in signal a rollout"
            )
        else:
            reason = (
                f"{found.rollouts_per_prompt:.1f} rollouts a prompt are too few to find the "
                f"prompts with signal and use them: first looks take {plus.first_looks.mean:.0%} "
                f"of the budget; who knows the rates would gain {_times(oracle.gain)}"
            )
        return f"It will not pay here: {reason}.{hint}"
    if plus.gain.mean < WORTH_HAVING:
        return f"It will hardly pay: {_times(plus.gain)} at most.{hint}"
    if plus.gain.low <= 1.0:
        return f"It may pay; these pass rates do not settle it: {_times(plus.gain)}.{hint}"
    if plus.gain.high < WORTH_HAVING**2:
        return (
            "It pays little, and only if batch or learning rate follows the signal: "
            f"{_times(plus.gain)}.{hint}"
        )
    return (
        f"It pays: up to {_times(plus.gain)} where the step follows the signal, "
        f"{_times(plus.gain.map(math.sqrt))} where steps are limited by noise.{hint}"
    )


def _times(x: Interval) -> str:
    return f"{x.mean:.2f}x ({x.low:.2f} to {x.high:.2f})"


def _percent(x: Interval) -> str:
    return f"{x.mean:.0%} ({max(x.low, 0.0):.0%} to {min(x.high, 1.0):.0%})"
