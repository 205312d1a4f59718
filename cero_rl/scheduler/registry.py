"""Every allocator by its name: class and record of options. A new one is a file and a line here.

The configuration reads the names and the records from here; nothing else tells allocators apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.cero import Cero
from cero_rl.scheduler.options import CeroOptions
from cero_rl.scheduler.posterior import Prior
from cero_rl.scheduler.rivals.batch_rules import (
    GvmOptions,
    GvmScheduler,
    HitUtilityScheduler,
    KnapsackScheduler,
    VipOptions,
    VipScheduler,
)
from cero_rl.scheduler.rivals.common import BatchOptions
from cero_rl.scheduler.rivals.controls import FixedPriceScheduler, RandomMatchedScheduler
from cero_rl.scheduler.rivals.elimination import (
    AeroOptions,
    AeroScheduler,
    ReinforceAdaOptions,
    ReinforceAdaScheduler,
    VigorOptions,
    VigorScheduler,
)
from cero_rl.scheduler.rivals.greso import GresoOptions, GresoScheduler
from cero_rl.scheduler.rivals.keep import KeepName, KeepRule
from cero_rl.scheduler.rivals.pilots import (
    HoraOptions,
    HoraScheduler,
    PilotCommitScheduler,
    ScreenOptions,
    SpeedScheduler,
)
from cero_rl.scheduler.rivals.selection import (
    GreedyScheduler,
    OracleScheduler,
    PresetOptions,
    PresetScheduler,
    ThompsonOptions,
    ThompsonScheduler,
)
from cero_rl.scheduler.rivals.waves import DapoOptions, DapoScheduler
from cero_rl.scheduler.sizes import BudgetSpec, NoOptions, Shared
from cero_rl.scheduler.uniform import UniformScheduler

OptionValue = bool | int | float | str | None
OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True, slots=True)
class Allocator:
    """Built as kind(spec, shared, options), where `options` is of the class `options`."""

    kind: type[BudgetedScheduler]
    options: type

    @property
    def is_cero(self) -> bool:
        """Does it take CERO's options?"""
        return self.options is CeroOptions


ALLOCATORS: dict[str, Allocator] = {
    "cero": Allocator(Cero, CeroOptions),
    "uniform": Allocator(UniformScheduler, NoOptions),
    "random_matched": Allocator(RandomMatchedScheduler, CeroOptions),
    "fixed_price": Allocator(FixedPriceScheduler, CeroOptions),
    "greedy": Allocator(GreedyScheduler, NoOptions),
    "thompson": Allocator(ThompsonScheduler, ThompsonOptions),
    "preset": Allocator(PresetScheduler, PresetOptions),
    "oracle": Allocator(OracleScheduler, NoOptions),
    "knapsack": Allocator(KnapsackScheduler, BatchOptions),
    "vip": Allocator(VipScheduler, VipOptions),
    "gvm_p": Allocator(GvmScheduler, GvmOptions),
    "hit_utility": Allocator(HitUtilityScheduler, BatchOptions),
    "greso": Allocator(GresoScheduler, GresoOptions),
    "dapo": Allocator(DapoScheduler, DapoOptions),
    "hora": Allocator(HoraScheduler, HoraOptions),
    "speed_rl": Allocator(SpeedScheduler, ScreenOptions),
    "pilot_commit": Allocator(PilotCommitScheduler, ScreenOptions),
    "vigor": Allocator(VigorScheduler, VigorOptions),
    "reinforce_ada": Allocator(ReinforceAdaScheduler, ReinforceAdaOptions),
    "aero": Allocator(AeroScheduler, AeroOptions),
}
"""Every allocator by the name that `make_scheduler` and `scheduler.name` take, with the class of
its options."""
SCHEDULER_NAMES = tuple(ALLOCATORS)
"""The names of all allocators, the published CERO first."""


def allocator(name: str) -> Allocator:
    """Raises ValueError for a name that does not exist."""
    if name not in ALLOCATORS:
        raise ValueError(f"unknown scheduler {name!r}, wanted one of {', '.join(SCHEDULER_NAMES)}")
    return ALLOCATORS[name]


def make_options(kind: type[OptionsT], name: str, given: Mapping[str, OptionValue]) -> OptionsT:
    """The option record of allocator `name` from a mapping. Raises ValueError for unknown keys,
    wrong types and wrong values."""
    known: dict[str, Any] = {field.name: field for field in fields(kind)}  # pyright: ignore
    for key, value in given.items():
        if key not in known:
            wanted = ", ".join(known) if known else "none"
            raise ValueError(f"scheduler {name!r} has no option {key!r}; its options: {wanted}")
        wanted = _wanted(known[key].default)
        if not _fits(value, known[key].default):
            raise ValueError(f"scheduler {name!r}: option {key} = {value!r}, wanted {wanted}")
    return kind(**given)


def _wanted(default: object) -> str:
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, str):
        return "a string"
    return "a number" if isinstance(default, float) else "an integer"


def _fits(value: object, default: object) -> bool:
    """Is `value` of the kind of the option's default? (None stands for an integer left open.)"""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, str):
        return isinstance(value, str)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return isinstance(value, int) or (value is None and default is None)


def make_scheduler(
    name: str,
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
    cero: CeroOptions | None = None,
    options: Mapping[str, OptionValue] | None = None,
    keep_rule: KeepName | None = None,
    keep_share: float = 0.5,
    seed: int = 0,
) -> BudgetedScheduler:
    """The allocator called `name` and, if wanted, a keep rule on top.

    `cero` is for those that take CERO's options, `options` are an allocator's own (see rivals/).
    Raises ValueError for an unknown name or option, or sizes that contradict each other.
    """
    chosen = allocator(name)
    sizes = BudgetSpec(
        num_prompts,
        rounds,
        budget_rollouts,
        rollouts_per_unit,
        max_units_per_prompt,
        capacity_rollouts,
    )
    shared = Shared(prior, forgetting, saturation, seed)
    if cero is not None and not chosen.is_cero:
        raise ValueError(f"scheduler {name!r} has none of CERO's options")
    if chosen.is_cero:
        if options:
            raise ValueError(f"scheduler {name!r} takes its options as a record of CeroOptions")
        own: Any = cero or CeroOptions()
    else:
        own = make_options(chosen.options, name, options or {})
    kind: Any = chosen.kind
    scheduler: BudgetedScheduler = kind(sizes, shared, own)
    if keep_rule is not None:
        scheduler.keep_rule = KeepRule(keep_rule, keep_share)
    return scheduler
