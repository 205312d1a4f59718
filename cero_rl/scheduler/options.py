"""CERO's options beyond the papers as one record, for callers that choose an allocator by name.
Defaults: the published algorithm.

What each does, its ablation and where it loses: docs/scheduler.md. `CeroScheduler` checks the
values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy.typing as npt

from cero_rl.scheduler.utility import UtilityName
from cero_rl.scheduler.value import ValueName

PlanName: TypeAlias = Literal["duals", "resolve", "thompson"]


@dataclass(frozen=True, slots=True)
class CeroOptions:
    """The keyword-only arguments of CeroScheduler."""

    utility: UtilityName = "exponential"
    value: ValueName = "variance"
    plan: PlanName = "duals"
    cap_shares: float | None = None
    proximal: float = 0.0
    explore_units: int = 0
    token_costs: bool = False
    budget_tokens: int | None = None
    refit_prior_every: int = 0
    labels: npt.ArrayLike | None = None  # i64[P], for value "progress"
    progress_floor: float = 0.1
    progress_memory_rounds: float = 10.0
