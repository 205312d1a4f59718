"""What every scheduler shares: the checked budget, the round protocol, the posterior and the saved state.

One round:  next_round() -> Allocation | None;  refund(n) for generations that failed;  more waves by next_round(observed);
keep(samples) -> mask;  update(successes, trials). A subclass says which prompts to plan (`_choose`), whether the round goes on
(`_choose_more`), what trains (`keep`) and what to learn from a round (`_learn`); nothing here draws random numbers or talks to
other ranks, so equal counts give equal plans everywhere. Source of the budget rules: arXiv 2606.05606
and 2610.09679.
"""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import BetaPosterior, check_counts
from cero_rl.types import Allocation

Scalar: TypeAlias = int | float | str | bool
StateDict: TypeAlias = dict[str, npt.NDArray[np.generic] | Scalar]
ScalarT = TypeVar("ScalarT", bound=np.generic)
Ids: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Observed:
    """The open round so far: what its waves brought, summed over ALL ranks, by pool index."""

    successes: Floats  # f64[P] may be fractional
    trials: Ids  # i64[P] rollouts with a reward


@dataclass(frozen=True, slots=True)
class Samples:
    """The rewards of a round's groups, ragged: what `keep` chooses from. Group j owns rewards[offsets[j]:offsets[j+1]]."""

    prompt_ids: Ids  # i64[G]
    rewards: Floats  # f64[R] all known (a missing reward is not a sample)
    offsets: Ids  # i64[G+1]
    lengths: Ids  # i64[R] response tokens


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """Sizes of a run, checked once. Budget and capacity are in rollouts, an allocation unit is `rollouts_per_unit` of them.

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
                    f"{name} = {value} is not a multiple of rollouts_per_unit = {unit}; the nearest valid values: {nearest}"
                )
        run_capacity = self.rounds * self.capacity_rollouts
        if self.budget_rollouts > run_capacity:
            raise ValueError(
                f"budget_rollouts <= rounds * capacity_rollouts fails: {self.budget_rollouts} > {self.rounds} * "
                f"{self.capacity_rollouts} = {run_capacity}; lower the budget or raise rounds or capacity_rollouts"
            )
        pool_capacity = self.num_prompts * self.max_units_per_prompt * unit
        if self.capacity_rollouts > pool_capacity:
            raise ValueError(
                f"capacity_rollouts <= num_prompts * max_units_per_prompt * rollouts_per_unit fails: "
                f"{self.capacity_rollouts} > {self.num_prompts} * {self.max_units_per_prompt} * {unit} = "
                f"{pool_capacity}; lower capacity_rollouts"
            )

    @property
    def budget_units(self) -> int:
        return self.budget_rollouts // self.rollouts_per_unit

    @property
    def capacity_units(self) -> int:
        return self.capacity_rollouts // self.rollouts_per_unit


def read_scalar(state: StateDict, key: str) -> Scalar:
    """A plain scalar out of a state that may have been through npz (0-d arrays). ValueError if the key is missing."""
    if key not in state:
        raise ValueError(f"scheduler state has no field {key!r}: it was written by another version or another scheduler")
    return np.asarray(state[key]).item()


def read_array(state: StateDict, key: str, dtype: type[ScalarT], length: int | None) -> npt.NDArray[ScalarT]:
    """A private copy of a 1-d array of `length` entries (None: any). ValueError if it is missing or has another shape."""
    if key not in state:
        raise ValueError(f"scheduler state has no field {key!r}: it was written by another version or another scheduler")
    array = np.array(state[key], dtype=dtype)
    if array.ndim != 1 or (length is not None and array.shape[0] != length):
        wanted = "a vector" if length is None else f"({length},)"
        raise ValueError(f"scheduler state field {key!r} has shape {array.shape}, wanted {wanted}")
    return array


def _merged(first: Allocation, second: Allocation) -> Allocation:
    """Both waves as one Allocation: prompts in the order of their first appearance, sizes added."""
    ids, where = np.unique(np.concatenate((first.prompt_ids, second.prompt_ids)), return_inverse=True)
    sizes = np.bincount(where, weights=np.concatenate((first.rollouts, second.rollouts)), minlength=ids.shape[0]).astype(np.int32)
    order = np.concatenate((first.prompt_ids, second.prompt_ids[~np.isin(second.prompt_ids, first.prompt_ids)]))
    return Allocation(first.round, order, sizes[np.searchsorted(ids, order)])


class BudgetedScheduler:
    """Protocol, budget and posterior of a run; abstract in `_choose`. Raises ValueError (see BudgetSpec, BetaPosterior)."""

    name = "abstract"

    def __init__(self, spec: BudgetSpec, prior: tuple[float, float], forgetting: float, seed: int) -> None:
        self.spec = spec
        self.seed = operator.index(seed)
        self.posterior = BetaPosterior(spec.num_prompts, prior, forgetting)
        self._round = 0
        self._remaining = spec.budget_rollouts
        self._refundable = 0
        self._pending: Allocation | None = None
        self._plan_ids: Ids = np.empty(0, dtype=np.int64)
        self._plan_units: Ids = np.empty(0, dtype=np.int64)
        self._value: Floats = self.posterior.value()

    # --- what a scheduler decides and learns -------------------------------------------------------------------------

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        """Distinct prompt ids i64[G] in execution order and their units i64[G] >= 1, before the budget clips them."""
        raise NotImplementedError

    def _choose_more(self, observed: Observed, units_left: int) -> tuple[Ids, Ids] | None:
        """A further wave of the open round (a prompt may come again), or None to close it; clipped by the budget like a plan."""
        return None

    def keep(self, samples: Samples) -> npt.NDArray[np.bool_]:
        """bool[R]: which rollouts train. Group by group, so ranks may call it on their own groups. All of them, unless a rule says no."""
        return np.ones(samples.rewards.shape[0], dtype=bool)

    def _learn(self, plan_ids: Ids, plan_units: Ids) -> None:
        """Called after the posterior has taken in the round; gets the plan as `_choose` returned it."""

    def _identity(self) -> dict[str, Scalar]:
        prior_a, prior_b = self.posterior.prior
        sizes: dict[str, Scalar] = {key: int(value) for key, value in asdict(self.spec).items()}
        return {
            "scheduler": self.name, "state_version": STATE_VERSION, **sizes, "prior_a": prior_a, "prior_b": prior_b,
            "forgetting": self.posterior.forgetting, "seed": self.seed,
        }  # fmt: skip

    def _extra_state(self) -> StateDict:
        return {}

    def _load_extra(self, state: StateDict) -> None:
        """Restore `_extra_state`; check everything before changing anything."""

    # --- one round ---------------------------------------------------------------------------------------------------

    def next_round(self, observed: Observed | None = None) -> Allocation | None:
        """Without `observed`: open the next round. With it: the open round's next wave.

        Opening gives the round's Allocation, or None once the rounds or the budget are used up. Its rollouts leave
        `remaining_rollouts` at once. An Allocation without entries is a round that executes nothing; it needs its update() (with
        zeros) like any other. A further wave depends on what the waves before it brought; None says that the round's sampling
        is complete, which for most schedulers is at once. Raises RuntimeError for opening a round before the last one had its
        update(), and for a wave without an open round.
        """
        if observed is not None:
            return self._next_wave(observed)
        if self._pending is not None:
            raise RuntimeError(f"next_round() before update(): the counts of round {self._round} are still missing")
        units_left = self._remaining // self.spec.rollouts_per_unit
        if self._round >= self.spec.rounds or units_left == 0:
            return None
        ids, units = self._choose(units_left, self.spec.rounds - self._round)
        self._plan_ids, self._plan_units, self._refundable = ids, units, 0
        self._pending = self._execute(ids, units, units_left)
        return self._pending

    def _next_wave(self, observed: Observed) -> Allocation | None:
        if self._pending is None:
            raise RuntimeError("next_round(observed) without an open round: call next_round() first")
        units_left = self._remaining // self.spec.rollouts_per_unit
        wave = self._choose_more(observed, units_left) if units_left else None
        if wave is None or not wave[0].size:
            return None
        allocation = self._execute(*wave, units_left)
        self._pending = _merged(self._pending, allocation)
        return allocation

    def _execute(self, ids: Ids, units: Ids, units_left: int) -> Allocation:
        """Clip a plan to what the budget still holds, in its order, and book it."""
        before = np.cumsum(units) - units
        executed = np.clip(units_left - before, 0, units)
        kept = executed > 0
        allocation = Allocation(self._round, ids[kept], (executed[kept] * self.spec.rollouts_per_unit).astype(np.int32))
        self._refundable += allocation.total_rollouts
        self._remaining -= allocation.total_rollouts
        return allocation

    def refund(self, rollouts: int) -> None:
        """Give `rollouts` of the latest Allocation back to the budget because they could not be generated.

        For rollouts that never existed (an engine died), not for rollouts whose reward is missing: those were generated and
        stay spent. May be called before or after the round's update(), several times, up to the round's total; the sum must
        be the same on every rank. What comes back is offered to later rounds; it cannot be spent when those are full
        already, or when less than one unit of it is left. Raises ValueError if it is negative or more than the round spent.
        """
        count = operator.index(rollouts)
        if not 0 <= count <= self._refundable:
            raise ValueError(f"refund({count}): wanted 0 <= rollouts <= {self._refundable}, the latest round's spending")
        self._refundable -= count
        self._remaining += count

    def update(self, successes: npt.ArrayLike, trials: npt.ArrayLike) -> None:
        """Take in the round's counts: successes i64/f64[P] and trials i64/f64[P], summed over ALL ranks, by pool index.

        Required after every Allocation, also an empty one. Rollouts without a reward count in neither vector. Raises
        RuntimeError without an Allocation to answer, ValueError on bad counts or more trials than the Allocation gave
        (evidence counted twice).
        """
        allocation = self._pending
        if allocation is None:
            raise RuntimeError("update() without an Allocation: call next_round() first, then update() exactly once")
        wins, tries = check_counts(successes, trials, self.spec.num_prompts)
        planned = tries[allocation.prompt_ids]
        excess = np.flatnonzero(planned > allocation.rollouts)
        if excess.size:
            at = int(excess[0])
            raise ValueError(
                f"prompt {allocation.prompt_ids[at]}: {planned[at]} trials but round {self._round} allocated "
                f"{allocation.rollouts[at]} rollouts"
            )
        if int(tries.sum()) != int(planned.sum()):
            raise ValueError(f"trials counts rollouts of prompts that round {self._round} did not allocate")
        self.posterior.update(wins, tries)
        self._value = self.posterior.value()
        self._learn(self._plan_ids, self._plan_units)
        self._plan_ids = self._plan_units = np.empty(0, dtype=np.int64)
        self._pending = None
        self._round += 1

    # --- what can be read --------------------------------------------------------------------------------------------

    @property
    def round(self) -> int:
        """Rounds completed, i.e. the index of the round being worked on or planned next."""
        return self._round

    @property
    def remaining_rollouts(self) -> int:
        """Budget not yet allocated, in rollouts (refunds included)."""
        return self._remaining

    @property
    def pending(self) -> Allocation | None:
        """The Allocation that waits for its update(): what a run resumed in the middle of a round goes on with."""
        return self._pending

    @property
    def value(self) -> Floats:
        """f64[P] copy: worth of a rollout, E[p(1-p)] in (0, 1/4)."""
        return self._value.copy()

    @property
    def posterior_mean(self) -> Floats:
        """f64[P] expected success rate."""
        return self.posterior.mean()

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> StateDict:
        """Everything a resumed run needs: a flat dict of 1-d arrays (copies) and plain scalars; valid in mid-round too."""
        pending_ids = self._pending.prompt_ids if self._pending is not None else np.empty(0, dtype=np.int64)
        pending_rollouts = self._pending.rollouts if self._pending is not None else np.empty(0, dtype=np.int32)
        return {
            **self._identity(),
            "round": self._round,
            "remaining_rollouts": self._remaining,
            "refundable_rollouts": self._refundable,
            "has_pending": self._pending is not None,
            "pending_ids": pending_ids.copy(),
            "pending_rollouts": pending_rollouts.copy(),
            "plan_ids": self._plan_ids.copy(),
            "plan_units": self._plan_units.copy(),
            "posterior_a": self.posterior.a.copy(),
            "posterior_b": self.posterior.b.copy(),
            **self._extra_state(),
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Restore `state_dict()`, also after a trip through npz or JSON scalars. All or nothing.

        Raises ValueError naming the first field that is missing, misshapen or differs from this scheduler's configuration.
        """
        for key, wanted in self._identity().items():
            got = read_scalar(state, key)
            if got != wanted:
                raise ValueError(f"scheduler state field {key!r} is {got!r} but this run has {wanted!r}: use the saved one")
        pool = self.spec.num_prompts
        post_a = read_array(state, "posterior_a", np.float64, pool)
        post_b = read_array(state, "posterior_b", np.float64, pool)
        ids = read_array(state, "pending_ids", np.int64, None)
        rollouts = read_array(state, "pending_rollouts", np.int32, None)
        plan_ids, plan_units = read_array(state, "plan_ids", np.int64, None), read_array(state, "plan_units", np.int64, None)
        current, remaining = int(read_scalar(state, "round")), int(read_scalar(state, "remaining_rollouts"))
        refundable = int(read_scalar(state, "refundable_rollouts"))
        if not 0 <= remaining <= self.spec.budget_rollouts or not 0 <= current <= self.spec.rounds:
            raise ValueError(f"scheduler state is damaged: round {current}, remaining_rollouts {remaining}")
        pending = Allocation(current, ids, rollouts) if read_scalar(state, "has_pending") else None
        self._load_extra(state)
        self.posterior.a, self.posterior.b = post_a, post_b
        self._value = self.posterior.value()
        self._plan_ids, self._plan_units, self._pending = plan_ids, plan_units, pending
        self._round, self._remaining, self._refundable = current, remaining, refundable
