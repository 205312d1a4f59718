"""The sizes of a run, checked once, and the records that cross the scheduler's interface.

In: what a configuration, a trainer or a checkpoint gives. Out: frozen records, or one ValueError
that names the field. Source of the budget rules: arXiv 2606.05606 and 2610.09679.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats, Prior
from cero_rl.types import Allocation

Scalar: TypeAlias = int | float | str | bool
StateDict: TypeAlias = dict[str, npt.NDArray[np.generic] | Scalar]
"""A scheduler's state as flat arrays and scalars: what a checkpoint stores, and no code."""
ScalarT = TypeVar("ScalarT", bound=np.generic)
Ids: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What came of groups of the open round, summed over ALL ranks: all that an allocator learns
    from.

    Groups stand in the order of the round's Allocation. A rollout whose reward is missing is
    generated and in no other count; an allocator that chooses by a posterior sets prompts back that
    are generated and not judged (see judging.py).
    """

    prompt_ids: Ids  # i64[G]
    successes: Floats  # f64[G] sums of rewards in [0, 1]
    trials: Ids  # i64[G] rollouts with a reward
    squares: Floats | None = None  # f64[G] sums of squared rewards, for who values graded rewards
    failed_rollouts: int = 0  # asked for and never generated: they go back to the budget
    response_tokens: int = 0  # generated, for who counts tokens
    # i64[G] rollouts that came, judged or not; None: all that were asked for, but failed_rollouts
    # of those without a reward, the last groups' first
    generated: Ids | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    """The rewards of a round's groups, ragged: what `keep` chooses from. Group j owns
    rewards[offsets[j]:offsets[j+1]]."""

    prompt_ids: Ids  # i64[G]
    rewards: Floats  # f64[R] all known (a missing reward is not a sample)
    offsets: Ids  # i64[G+1]
    lengths: Ids  # i64[R] response tokens
    # i64[G] rollouts that the round gave each group; None: as many as have a reward
    asked: Ids | None = None


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """Sizes of a run, checked once. Budget and capacity are in rollouts, an allocation unit is
    `rollouts_per_unit` of them.

    Raises ValueError naming the field, or the inequality, that fails.
    """

    num_prompts: int
    rounds: int
    budget_rollouts: int
    rollouts_per_unit: int
    max_units_per_prompt: int
    capacity_rollouts: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} = {value}, wanted an integer >= 1")
        unit = self.rollouts_per_unit
        for name in ("budget_rollouts", "capacity_rollouts"):
            value = asdict(self)[name]
            if value % unit:
                below, above = value // unit * unit, (value // unit + 1) * unit
                nearest = f"{below} or {above}" if below else str(above)
                raise ValueError(
                    f"{name} = {value} is not a multiple of rollouts_per_unit = {unit}; the "
                    f"nearest valid values: {nearest}"
                )
        run_capacity = self.rounds * self.capacity_rollouts
        if self.budget_rollouts > run_capacity:
            raise ValueError(
                f"budget_rollouts <= rounds * capacity_rollouts fails: {self.budget_rollouts} "
                f"> {self.rounds} * {self.capacity_rollouts} = {run_capacity}; lower the "
                "budget or raise rounds or capacity_rollouts"
            )
        pool_capacity = self.num_prompts * self.max_units_per_prompt * unit
        if self.capacity_rollouts > pool_capacity:
            raise ValueError(
                "capacity_rollouts <= num_prompts * max_units_per_prompt * rollouts_per_unit "
                f"fails: {self.capacity_rollouts} > {self.num_prompts} * "
                f"{self.max_units_per_prompt} * {unit} = {pool_capacity}; lower "
                "capacity_rollouts"
            )

    @property
    def budget_units(self) -> int:
        return self.budget_rollouts // self.rollouts_per_unit

    @property
    def capacity_units(self) -> int:
        return self.capacity_rollouts // self.rollouts_per_unit


def require(good: bool, message: str) -> None:
    """Raises ValueError with `message` unless `good`."""
    if not good:
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class Shared:
    """What every allocator is told besides the sizes and its own options.

    prior and forgetting belong to the posterior; saturation (lambda) says how fast a prompt is worn
    out at its fair share of the budget, where a rule uses a utility. Raises ValueError.
    """

    prior: Prior = (1.0, 1.0)
    forgetting: float = 1.0
    saturation: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            0.0 < self.saturation < math.inf,
            f"saturation = {self.saturation:g}, wanted a positive finite number",
        )


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The record of an allocator without options of its own."""


def merged(first: Allocation, second: Allocation) -> Allocation:
    """Both waves as one Allocation: prompts in the order of their first appearance, sizes added."""
    ids, where = np.unique(
        np.concatenate((first.prompt_ids, second.prompt_ids)), return_inverse=True
    )
    sizes = np.bincount(
        where, weights=np.concatenate((first.rollouts, second.rollouts)), minlength=ids.shape[0]
    ).astype(np.int32)
    order = np.concatenate(
        (first.prompt_ids, second.prompt_ids[~np.isin(second.prompt_ids, first.prompt_ids)])
    )
    return Allocation(first.round, order, sizes[np.searchsorted(ids, order)])
