"""The sizes of a run, checked once; the records that cross the scheduler's interface; reading a
saved state.

In: what a configuration, a trainer or a checkpoint gives. Out: frozen records, or one ValueError
that names the field. Source of the budget rules: arXiv 2606.05606 and 2610.09679.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from cero_rl.types import Allocation

Scalar: TypeAlias = int | float | str | bool
StateDict: TypeAlias = dict[str, npt.NDArray[np.generic] | Scalar]
ScalarT = TypeVar("ScalarT", bound=np.generic)
Ids: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Observed:
    """The open round so far: what its waves brought, summed over ALL ranks, by pool index."""

    successes: Floats  # f64[P] may be fractional
    trials: Ids  # i64[P] rollouts with a reward


@dataclass(frozen=True, slots=True)
class Samples:
    """The rewards of a round's groups, ragged: what `keep` chooses from. Group j owns
    rewards[offsets[j]:offsets[j+1]]."""

    prompt_ids: Ids  # i64[G]
    rewards: Floats  # f64[R] all known (a missing reward is not a sample)
    offsets: Ids  # i64[G+1]
    lengths: Ids  # i64[R] response tokens


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
                "budget_rollouts <= rounds * capacity_rollouts fails: "
                f"{self.budget_rollouts} > {self.rounds} * "
                f"{self.capacity_rollouts} = {run_capacity}; lower the budget or raise "
                "rounds or capacity_rollouts"
            )
        pool_capacity = self.num_prompts * self.max_units_per_prompt * unit
        if self.capacity_rollouts > pool_capacity:
            raise ValueError(
                "capacity_rollouts <= num_prompts * max_units_per_prompt * "
                "rollouts_per_unit fails: "
                f"{self.capacity_rollouts} > {self.num_prompts} * "
                f"{self.max_units_per_prompt} * {unit} = "
                f"{pool_capacity}; lower capacity_rollouts"
            )

    @property
    def budget_units(self) -> int:
        return self.budget_rollouts // self.rollouts_per_unit

    @property
    def capacity_units(self) -> int:
        return self.capacity_rollouts // self.rollouts_per_unit


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


def positions(ids: Ids, among: Ids) -> Ids | None:
    """i64[len(ids)]: where each of `ids` stands in `among` (distinct); None unless ids are
    distinct members of it."""
    order = np.argsort(among)
    at = np.searchsorted(among, ids, sorter=order)
    if (
        ids.shape[0] > among.shape[0]
        or np.unique(ids).shape != ids.shape
        or bool((at == among.shape[0]).any())
    ):
        return None
    at = order[at]
    return at if np.array_equal(among[at], ids) else None


@dataclass(frozen=True)
class Evidence:
    """Per group of the slice, summed over ranks. Rollouts whose reward is missing are in
    `generated` only."""

    prompt_ids: npt.NDArray[np.int64]  # [G]
    generated: npt.NDArray[np.int64]  # [G] completions delivered
    trials: npt.NDArray[np.int64]  # [G] completions with a reward
    wins: npt.NDArray[np.int64]  # [G] rewards above the success threshold
    successes: npt.NDArray[np.float64]  # [G] sum of rewards in [0, 1]
    squares: npt.NDArray[np.float64]  # [G] sum of their squares
    response_tokens: npt.NDArray[np.int64]  # [G]
    truncated: npt.NDArray[np.int64]  # [G] completions cut at the length limit
    live: npt.NDArray[np.bool_]  # [G] groups whose rewards differ
    # rollouts asked for in all waves; what was not generated goes back to the budget
    requested: int
