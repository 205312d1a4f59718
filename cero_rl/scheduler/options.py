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

DirectionName: TypeAlias = Literal["off", "first_looks"]
PlanName: TypeAlias = Literal["duals", "resolve", "thompson"]
"""What `scheduler.plan` takes: how a round's prompts are chosen from their worth."""


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
    wear: npt.ArrayLike | None = None  # f64[P] how many times as fast each prompt is worn out
    plan: PlanName = "duals"
    cap_shares: float | None = None  # cap of a prompt's supporting exposure, in fair shares
    proximal: float = 0.0  # curvature of the round problem: group sizes of their own
    explore_units: int = 0  # most units of a prompt never seen; 0: off
    token_costs: bool = False  # margins per expected response token
    budget_tokens: int | None = None  # a second limit, in response tokens
    refit_prior_every: int = 0  # rounds between empirical-Bayes fits of the prior; 0: off
    cells: npt.ArrayLike | None = None  # i64[P] whose prompts resemble each other
    cell_prior: bool = True  # is the refitted prior each cell's, or the pool's?
    # rounds that a cell's success rate is averaged over; None: a fifth of the run
    cell_memory_rounds: float | None = None
    direction: DirectionName = "off"  # a factor on the worth of each cell
    direction_floor: float = 0.1  # its smallest value, in [0, 1]
    direction_ucb: float = 1.0  # standard deviations of a slope that a cell is given in advance
    # rounds that a slope is fitted over; None: two thirds of the run
    direction_memory_rounds: float | None = None
    probe_share: float = 0.0  # of prompts and budget: looked at in turn, never trained on
    explore_share: float = 0.0  # of the budget: for the prompts looked at longest ago
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
            self.direction in get_args(DirectionName),
            f"direction = {self.direction!r}, wanted 'off' or 'first_looks'",
        )
        require(
            self.cells is None or self.refit_prior_every > 0 or self.direction != "off",
            f"cells need refit_prior_every > 0, got {self.refit_prior_every}, or direction: "
            "nothing else uses them",
        )
        require(
            self.cells is not None or self.direction == "off",
            f"direction = {self.direction!r} needs cells (in a run: cell_columns or "
            "cell_length_bins)",
        )
        require(
            0.0 <= self.direction_floor <= 1.0 and 0.0 <= self.direction_ucb < math.inf,
            f"direction_floor = {self.direction_floor:g}, direction_ucb = {self.direction_ucb:g}: "
            "wanted a factor in [0, 1] and a finite number >= 0",
        )
        require(
            0.0 <= self.probe_share <= 0.25 and 0.0 <= self.explore_share <= 0.5,
            f"probe_share = {self.probe_share:g}, explore_share = {self.explore_share:g}: wanted "
            "shares in [0, 0.25] and [0, 0.5]",
        )
        require(
            not self.probe_share or self.direction != "off",
            f"probe_share = {self.probe_share:g} needs direction: nothing else asks probes",
        )
        for name, rounds in (
            ("cell_memory_rounds", self.cell_memory_rounds),
            ("direction_memory_rounds", self.direction_memory_rounds),
        ):
            require(
                rounds is None or 0.0 < rounds < math.inf,
                f"{name} = {rounds}, wanted a positive finite number of rounds, or None",
            )
        require(
            (self.value == "progress") == (self.labels is not None),
            "labels and value = 'progress' go together: give both or neither",
        )

    def identity(self) -> dict[str, Scalar]:
        """What a saved state must agree in; the parts of later versions only where they are on."""
        named: dict[str, Scalar] = {
            "price_init": self.price_init,
            "spend_down": self.spend_down,
            "utility": self.utility,
            "plan": self.plan,
            "cap_shares": self.cap_shares or 0.0,
            "proximal": self.proximal,
            "explore_units": self.explore_units,
            "token_costs": self.token_costs,
            "refit_prior_every": self.refit_prior_every,
        }
        if self.cells is not None:
            named |= {
                "cell_prior": self.cell_prior,
                "cell_memory_rounds": self.cell_memory_rounds or 0.0,
            }
        if self.direction != "off":
            named |= {
                "direction": self.direction,
                "direction_floor": self.direction_floor,
                "direction_ucb": self.direction_ucb,
                "direction_memory_rounds": self.direction_memory_rounds or 0.0,
            }
        if self.probe_share or self.explore_share:
            named |= {"probe_share": self.probe_share, "explore_share": self.explore_share}
        return named
