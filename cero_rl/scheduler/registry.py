"""The interface that the training loop knows, and the one place that turns a scheduler's name into
a scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, TypeVar, get_args

from cero_rl.scheduler.budgeted import BudgetedScheduler, BudgetSpec
from cero_rl.scheduler.cero import CeroScheduler
from cero_rl.scheduler.options import CeroOptions
from cero_rl.scheduler.posterior import Prior
from cero_rl.scheduler.protocol import Scheduler
from cero_rl.scheduler.rivals import (
    RIVALS,
    FixedPriceScheduler,
    KeepName,
    KeepRule,
    KeepScheduler,
    RandomMatchedScheduler,
    Shared,
)
from cero_rl.scheduler.uniform import UniformScheduler

SchedulerName = Literal[
    "cero",
    "uniform",
    "random_matched",
    "fixed_price",
    "greedy",
    "thompson",
    "preset",
    "oracle",
    "knapsack",
    "vip",
    "gvm_p",
    "hit_utility",
    "greso",
    "dapo",
    "hora",
    "speed_rl",
    "pilot_commit",
    "vigor",
    "reinforce_ada",
    "aero",
]
SCHEDULER_NAMES: tuple[str, ...] = get_args(SchedulerName)
OptionValue = bool | int | float | str | None
_CERO = {
    "cero": CeroScheduler,
    "random_matched": RandomMatchedScheduler,
    "fixed_price": FixedPriceScheduler,
}
OptionsT = TypeVar("OptionsT")


def make_options(kind: type[OptionsT], name: str, given: Mapping[str, OptionValue]) -> OptionsT:
    """The option record of scheduler `name` from a mapping. Raises ValueError for unknown keys,
    wrong types and wrong values."""
    known = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    for key, value in given.items():
        if key not in known:
            wanted = ", ".join(known) if known else "none"
            raise ValueError(f"scheduler {name!r} has no option {key!r}; its options: {wanted}")
        default = known[key].default
        integer, text = isinstance(default, int) or default is None, isinstance(default, str)
        fits = (
            isinstance(value, str)
            if text
            else isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
        )
        if not fits and not (value is None and default is None):
            kind_name = "a string" if text else "an integer" if integer else "a number"
            raise ValueError(f"scheduler {name!r}: option {key} = {value!r}, wanted {kind_name}")
    return kind(**given)


def make_scheduler(
    name: SchedulerName,
    *,
    num_prompts: int,
    rounds: int,
    budget_rollouts: int,
    rollouts_per_unit: int,
    max_units_per_prompt: int,
    capacity_rollouts: int,
    saturation: float = 1.0,
    prior: Prior = (1.0, 1.0),
    forgetting: float = 1.0,
    step_size: float | None = None,
    price_init: float = 0.5,
    spend_down: bool = False,
    cero: CeroOptions | None = None,
    options: Mapping[str, OptionValue] | None = None,
    keep_rule: KeepName | None = None,
    keep_share: float = 0.5,
    seed: int = 0,
) -> Scheduler:
    """The scheduler called `name`, with its own `options` (see rivals/) and, if wanted, a keep rule
    on top.

    step_size, price_init, spend_down and `cero` belong to "cero", "random_matched" and
    "fixed_price"; the others spend by their own rule. saturation is that of the surrogate utility,
    where a rule uses it.

    Raises ValueError for an unknown name or option, or sizes that contradict each other.
    """
    if cero is not None and name not in _CERO:
        raise ValueError(f"scheduler {name!r} has none of CERO's options")
    if name in _CERO or name == "uniform":
        if options:
            raise ValueError(
                f"scheduler {name!r} has no options of its own, got {', '.join(options)}"
            )
    elif name not in RIVALS:
        raise ValueError(f"unknown scheduler {name!r}, wanted one of {', '.join(SCHEDULER_NAMES)}")
    sizes = (
        num_prompts,
        rounds,
        budget_rollouts,
        rollouts_per_unit,
        max_units_per_prompt,
        capacity_rollouts,
    )
    scheduler: BudgetedScheduler
    if name in _CERO:
        more = cero or CeroOptions()
        scheduler = _CERO[name](
            *sizes,
            saturation=saturation,
            prior=prior,
            forgetting=forgetting,
            step_size=step_size,
            price_init=price_init,
            spend_down=spend_down,
            seed=seed,
            utility=more.utility,
            value=more.value,
            plan=more.plan,
            cap_shares=more.cap_shares,
            proximal=more.proximal,
            explore_units=more.explore_units,
            token_costs=more.token_costs,
            budget_tokens=more.budget_tokens,
            refit_prior_every=more.refit_prior_every,
            labels=more.labels,
            progress_floor=more.progress_floor,
            progress_memory_rounds=more.progress_memory_rounds,
        )
    elif name == "uniform":
        scheduler = UniformScheduler(*sizes, prior=prior, forgetting=forgetting, seed=seed)
    else:
        rival, kind = RIVALS[name]
        scheduler = rival(
            BudgetSpec(*sizes),
            Shared(prior, forgetting, saturation, seed),
            make_options(kind, name, options or {}),
        )
    return (
        scheduler
        if keep_rule is None
        else KeepScheduler(scheduler, KeepRule(keep_rule, keep_share))
    )
