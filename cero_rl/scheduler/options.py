"""CERO's options as one record, the same for configuration, registry and scheduler. Defaults: the
published algorithm.

What each does, its ablation and where it loses: docs/scheduler.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy.typing as npt

from cero_rl.scheduler.sizes import Scalar, require
from cero_rl.scheduler.utility import UtilityName
from cero_rl.scheduler.value import ValueFunction, ValueName

PlanName: TypeAlias = Literal["duals", "resolve", "thompson"]


@dataclass(frozen=True, slots=True)
class CeroOptions:
    """Options of "cero", "random_matched" and "fixed_price". Raises ValueError for values out of
    range; what depends on the sizes is checked by the scheduler."""

    step_size: float | None = None  # of both duals; None: 1/sqrt(rounds), the published one
    price_init: float = 0.5  # first price of a unit of budget, in [0, 1]
    spend_down: bool = False  # end with the budget spent exactly
    streaming: bool = False  # posterior and duals learn at every observe()
    utility: UtilityName = "exponential"
    value: ValueName | ValueFunction = "variance"  # worth of a rollout
    pass_k: int = 4  # the k of value "pass_at_k"
    weights: npt.ArrayLike | None = None  # f64[P] in [0, 1], what every worth is multiplied by
    plan: PlanName = "duals"
    cap_shares: float | None = None  # cap of a prompt's supporting exposure, in fair shares
    proximal: float = 0.0  # curvature of the round problem: group sizes of their own
    explore_units: int = 0  # most units of a prompt never seen; 0: off
    token_costs: bool = False  # margins per expected response token
    budget_tokens: int | None = None  # a second limit, in response tokens
    refit_prior_every: int = 0  # rounds between empirical-Bayes fits of the prior; 0: off
    cells: npt.ArrayLike | None = None  # i64[P] whose prompts resemble each other
    cell_prior: bool = True  # is the refitted prior each cell's, or the pool's?
    cell_memory_rounds: float = 10.0  # rounds that a cell's success rate is averaged over
    labels: npt.ArrayLike | None = None  # i64[P] families, for value "progress"
    progress_floor: float = 0.1
    progress_memory_rounds: float = 10.0

    def __post_init__(self) -> None:
        step = 1.0 if self.step_size is None else self.step_size
        require(0.0 < step < math.inf, f"step_size = {step:g}, wanted a positive finite number")
        require(
            0.0 <= self.price_init <= 1.0,
            f"price_init = {self.price_init:g}, wanted a number in [0, 1]",
        )
        shares = 1.0 if self.cap_shares is None else self.cap_shares
        require(
            0.0 < shares < math.inf,
            f"cap_shares = {shares:g}, wanted a positive finite number of fair shares, or None",
        )
        require(
            self.plan in get_args(PlanName),
            f"plan = {self.plan!r}, wanted 'duals', 'resolve' or 'thompson'",
        )
        require(
            self.plan != "thompson" or self.value == "variance",
            "plan = 'thompson' draws success rates: it needs value = 'variance', got "
            f"{self.value!r}",
        )
        require(self.pass_k >= 1, f"pass_k = {self.pass_k}, wanted an integer >= 1")
        require(
            0.0 <= self.proximal < math.inf and (not self.proximal or self.plan == "duals"),
            f"proximal = {self.proximal:g} with plan = {self.plan!r}: wanted a finite number >= 0, "
            "more than 0 with 'duals' only",
        )
        require(
            self.refit_prior_every >= 0,
            f"refit_prior_every = {self.refit_prior_every}, wanted 0 (off) or more",
        )
        require(
            self.cells is None or self.refit_prior_every > 0,
            f"cells need refit_prior_every > 0, got {self.refit_prior_every}: their prior is that "
            "refit",
        )
        require(
            (self.value == "progress") == (self.labels is not None),
            "labels and value = 'progress' go together: give both or neither",
        )

    def cells_identity(self) -> dict[str, Scalar]:
        """What a saved state must agree in, where there are cells."""
        if self.cells is None:
            return {}
        return {"cell_prior": self.cell_prior, "cell_memory_rounds": self.cell_memory_rounds}
