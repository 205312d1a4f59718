"""What every scheduler shares: the round protocol, the budget's books, the posterior and the
saved state.

One round:  next_round() -> Allocation | None;  refund(n) for generations that failed;  more
waves by next_round(observed); keep(samples) -> mask;  update(successes, trials), or
update_groups(...) with the round's groups only, before either of them update_partial(...) after
each optimizer step of a long round. A subclass says which prompts to plan (`_choose`), whether
the round goes on (`_choose_more`), what trains (`keep`) and what to learn from a round
(`_learn`, or `_learn_part` step by step); nothing here draws random numbers or talks to other
ranks, so equal counts give equal plans everywhere. Source of the budget rules: arXiv 2606.05606
and 2610.09679.
"""

from __future__ import annotations

import operator
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import (
    BetaPosterior,
    Prior,
    as_counts,
    as_squares,
    check_counts,
    check_groups,
)
from cero_rl.scheduler.sizes import (
    BudgetSpec,
    Floats,
    Ids,
    Observed,
    Samples,
    Scalar,
    ScalarT,
    StateDict,
    merged,
    positions,
)
from cero_rl.scheduler.state import STATE_VERSION, read_array, read_scalar
from cero_rl.types import Allocation

__all__ = [
    "STATE_VERSION",
    "BudgetSpec",
    "BudgetedScheduler",
    "Floats",
    "Ids",
    "Observed",
    "Samples",
    "Scalar",
    "ScalarT",
    "StateDict",
    "read_array",
    "read_scalar",
]


def _no_ids() -> Ids:
    return np.empty(0, dtype=np.int64)


class BudgetedScheduler:
    """Protocol, budget and posterior of a run; abstract in `_choose`. Raises ValueError (see
    BudgetSpec, BetaPosterior)."""

    name = "abstract"

    def __init__(self, spec: BudgetSpec, prior: Prior, forgetting: float, seed: int) -> None:
        self.spec = spec
        self.seed = operator.index(seed)
        self.posterior = BetaPosterior(spec.num_prompts, prior, forgetting)
        # set_budget changes the spec, not what the configuration says
        self._configured_rollouts = spec.budget_rollouts
        self._round = 0
        self._remaining = spec.budget_rollouts
        self._refundable = 0
        self._pending: Allocation | None = None
        self._answered = 0  # groups of the pending Allocation, in its order, whose evidence is in
        self._plan_ids, self._plan_units = _no_ids(), _no_ids()
        self._value: Floats = self.posterior.value()
        self._prior_identity = self.posterior.prior_identity()

    # --- what a scheduler decides and learns

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        """Distinct prompt ids i64[G] in execution order and their units i64[G] >= 1, before the
        budget clips them."""
        raise NotImplementedError

    def _choose_more(self, observed: Observed, units_left: int) -> tuple[Ids, Ids] | None:
        """A further wave of the open round (a prompt may come again), or None to close it;
        clipped by the budget like a plan."""
        return None

    def keep(self, samples: Samples) -> npt.NDArray[np.bool_]:
        """bool[R]: which rollouts train. Group by group, so ranks may call it on their own
        groups. All of them, unless a rule says no."""
        return np.ones(samples.rewards.shape[0], dtype=bool)

    def _learn(self, plan_ids: Ids, plan_units: Ids) -> None:
        """Called once a round, after the posterior has taken all of it in; gets the plan as
        `_choose` returned it."""

    def _learn_part(self, plan_ids: Ids, plan_units: Ids, share: float) -> None:
        """Called after each part of a round is in the posterior, with that part of the plan and
        its share (all parts sum to 1)."""

    def _observe(self, ids: Ids, wins: Floats, tries: Ids, squares: Floats | None) -> None:
        """Called with checked evidence before the posterior takes it in; may refuse it by a
        ValueError."""

    def _revalue(self, ids: Ids | None) -> None:
        """Recompute the worth of the prompts `ids` (None: of all) after their posterior changed."""
        if ids is None:
            self.posterior.value(out=self._value)
        else:
            self._value[ids] = self.posterior.value_at(ids)

    def _exhausted(self) -> bool:
        return False  # whether another limit than rounds and rollouts has ended the run

    def _identity(self) -> dict[str, Scalar]:
        sizes: dict[str, Scalar] = {key: int(value) for key, value in asdict(self.spec).items()}
        sizes["budget_rollouts"] = self._configured_rollouts
        return {
            "scheduler": self.name,
            "state_version": STATE_VERSION,
            **sizes,
            **self._prior_identity,
            "forgetting": self.posterior.forgetting,
            "seed": self.seed,
        }

    def _extra_state(self) -> StateDict:
        return {}

    def _load_extra(self, state: StateDict) -> None:
        """Restore `_extra_state`; check everything before changing anything."""

    # --- one round

    def next_round(self, observed: Observed | None = None) -> Allocation | None:
        """Without `observed`: open the next round. With it: the open round's next wave.

        Opening gives the round's Allocation, or None once the rounds or the budget are used up.
        Its rollouts leave `remaining_rollouts` at once. An Allocation without entries is a round
        that executes nothing; it needs its update() (with zeros) like any other. A further wave
        depends on what the waves before it brought; None says that the round's sampling is
        complete, which for most schedulers is at once. Raises RuntimeError for opening a round
        before the last one had its update(), and for a wave without an open round or after
        update_partial().
        """
        if observed is not None:
            return self._next_wave(observed)
        if self._pending is not None:
            raise RuntimeError(
                f"next_round() before update(): the counts of round {self._round} are still missing"
            )
        units_left = self._remaining // self.spec.rollouts_per_unit
        if self._round >= self.spec.rounds or units_left == 0 or self._exhausted():
            return None
        ids, units = self._choose(units_left, self.spec.rounds - self._round)
        self._plan_ids, self._plan_units, self._refundable, self._answered = ids, units, 0, 0
        self._pending = self._execute(ids, units, units_left)
        return self._pending

    def _next_wave(self, observed: Observed) -> Allocation | None:
        if self._pending is None or self._answered:
            raise RuntimeError(
                "next_round(observed) without an open round, or after update_partial(): "
                "call next_round() first"
            )
        units_left = self._remaining // self.spec.rollouts_per_unit
        wave = self._choose_more(observed, units_left) if units_left else None
        if wave is None or not wave[0].size:
            return None
        allocation = self._execute(*wave, units_left)
        self._pending = merged(self._pending, allocation)
        return allocation

    def _execute(self, ids: Ids, units: Ids, units_left: int) -> Allocation:
        """Clip a plan to what the budget still holds, in its order, and book it."""
        before = np.cumsum(units) - units
        executed = np.clip(units_left - before, 0, units)
        kept = executed > 0
        allocation = Allocation(
            self._round, ids[kept], (executed[kept] * self.spec.rollouts_per_unit).astype(np.int32)
        )
        self._refundable += allocation.total_rollouts
        self._remaining -= allocation.total_rollouts
        return allocation

    def refund(self, rollouts: int) -> None:
        """Give `rollouts` of the latest Allocation back to the budget because they could not be
        generated.

        For rollouts that never existed (an engine died), not for rollouts whose reward is
        missing: those were generated and stay spent. May be called before or after the round's
        update(), several times; the sum must be the same on every rank. What comes back is
        offered to later rounds, if they have room. Raises ValueError if it is negative or more
        than the round spent.
        """
        count = operator.index(rollouts)
        if not 0 <= count <= self._refundable:
            raise ValueError(
                f"refund({count}): wanted 0 <= rollouts <= {self._refundable}, the latest "
                "round's spending"
            )
        self._refundable -= count
        self._remaining += count

    def set_budget(self, total_rollouts: int) -> None:
        """Change the run's whole budget (rollouts, what is spent included) now, also in the
        middle of a round.

        Raises ValueError if it breaks a rule of BudgetSpec, is less than what is spent, or more
        than the rounds left can hold.
        """
        total = operator.index(total_rollouts)
        spec = replace(self.spec, budget_rollouts=total)
        spent = self.spec.budget_rollouts - self._remaining
        rounds_left = spec.rounds - self._round - (self._pending is not None)
        most = spent + rounds_left * spec.capacity_rollouts
        if not spent <= total <= max(most, self.spec.budget_rollouts):
            raise ValueError(
                f"set_budget({total}): wanted {spent} (spent) .. {most} ({rounds_left} rounds left)"
            )
        self._remaining += total - self.spec.budget_rollouts
        self.spec = spec

    # --- evidence

    def update(
        self, successes: npt.ArrayLike, trials: npt.ArrayLike, squares: npt.ArrayLike | None = None
    ) -> None:
        """Take in the round's counts and close it: successes i64/f64[P], trials i64/f64[P],
        summed over ALL ranks, by pool index.

        Required after every Allocation, also an empty one; what update_partial() has taken in
        must not come again. Rollouts without a reward count in neither vector. squares f64[P]
        (sums of squared rewards) is for schedulers that value graded rewards. Raises
        RuntimeError without an Allocation to answer, ValueError on bad counts or more trials
        than the Allocation gave (evidence counted twice).
        """
        allocation = self._opened("update()")
        wins, tries = as_counts(successes, trials, self.spec.num_prompts)
        rest = allocation.prompt_ids[self._answered :]
        for counts in (wins, tries):
            # something outside the round, or an error to name
            if np.count_nonzero(counts) != np.count_nonzero(counts[rest]):
                check_counts(wins, tries, self.spec.num_prompts)
                if np.any(tries[allocation.prompt_ids[: self._answered]]):
                    raise ValueError(
                        "trials counts rollouts that update_partial() of round "
                        f"{self._round} has taken in already"
                    )
                raise ValueError(
                    f"trials counts rollouts of prompts that round {self._round} did not allocate"
                )
        graded = as_squares(squares, self.spec.num_prompts, rest)
        self._absorb(rest, allocation.rollouts[self._answered :], wins[rest], tries[rest], graded)
        self._close()

    def update_groups(
        self,
        prompt_ids: npt.ArrayLike,
        successes: npt.ArrayLike,
        trials: npt.ArrayLike,
        squares: npt.ArrayLike | None = None,
    ) -> None:
        """update() from the round's groups alone: prompt_ids i64[G] distinct, in any order,
        counts [G]; absent groups have no reward.

        The same result without a pass over P entries. Raises as update() does.
        """
        allocation = self._opened("update_groups()")
        ids, rest = np.asarray(prompt_ids, dtype=np.int64), allocation.prompt_ids[self._answered :]
        wins, tries = as_counts(successes, trials, ids.shape[0])
        graded = as_squares(squares, ids.shape[0])
        sizes = allocation.rollouts[self._answered :]
        if not np.array_equal(ids, rest):
            at = positions(ids, rest)
            if at is None:
                raise ValueError(
                    f"prompt_ids: wanted distinct prompts that round {self._round} "
                    "allocated and that were not answered yet"
                )
            sizes = sizes[at]
        self._absorb(ids, sizes, wins, tries, graded)
        self._close()

    def update_partial(
        self,
        prompt_ids: npt.ArrayLike,
        successes: npt.ArrayLike,
        trials: npt.ArrayLike,
        squares: npt.ArrayLike | None = None,
    ) -> None:
        """Take in the counts of the next groups of the open round, e.g. after each optimizer
        step; update() closes it later.

        prompt_ids i64[G] must be the Allocation's next groups, in its order (a group is answered
        once, and one number in the saved state says how far it went); successes, trials, squares
        [G]. Posterior and worth of these prompts, and this part's share of the step of the
        duals, are up to date on return. Raises RuntimeError without an open round, ValueError
        for other groups or bad counts.
        """
        allocation = self._opened("update_partial()")
        ids = np.asarray(prompt_ids, dtype=np.int64)
        last = self._answered + ids.shape[0]
        if ids.ndim != 1 or not np.array_equal(ids, allocation.prompt_ids[self._answered : last]):
            raise ValueError(
                f"prompt_ids: wanted groups {self._answered}.. of round {self._round}'s "
                "Allocation, in its order; "
                "a group is answered exactly once"
            )
        if not ids.shape[0]:
            return
        wins, tries = as_counts(successes, trials, ids.shape[0])
        graded = as_squares(squares, ids.shape[0])
        self._absorb(ids, allocation.rollouts[self._answered : last], wins, tries, graded)
        planned = self._plan_units[self._answered : last]
        self._learn_part(
            self._plan_ids[self._answered : last],
            planned,
            int(planned.sum()) / int(self._plan_units.sum()),
        )
        self._answered = last

    def _opened(self, call: str) -> Allocation:
        if self._pending is None:
            raise RuntimeError(
                f"{call} without an Allocation: call next_round() first, then update() exactly once"
            )
        return self._pending

    def _absorb(
        self,
        ids: Ids,
        rollouts: npt.NDArray[np.int32],
        wins: npt.NDArray,
        tries: npt.NDArray,
        squares: Floats | None,
    ) -> None:
        """Check the counts of distinct prompts and put them into the posterior; nothing changes
        if they are bad."""
        wins, counts = check_groups(ids, rollouts, wins, tries, self._round)
        self._observe(ids, wins, counts, squares)
        forgot = self.posterior.forgetting < 1.0 and self._answered == 0
        if forgot:
            self.posterior.forget()
        self.posterior.add(ids, wins, counts)
        self._revalue(None if forgot else ids)

    def _close(self) -> None:
        planned = self._plan_units[self._answered :]
        done = int(self._plan_units[: self._answered].sum())
        share = 1.0 - done / (done + int(planned.sum())) if done else 1.0
        self._learn_part(self._plan_ids[self._answered :], planned, share)
        self._learn(self._plan_ids, self._plan_units)
        self._plan_ids, self._plan_units = _no_ids(), _no_ids()
        self._pending = None
        self._answered = 0
        self._round += 1

    # --- what can be read

    @property
    def round(self) -> int:  # completed, so the index of the one being worked on or planned next
        return self._round

    @property
    def remaining_rollouts(self) -> int:  # budget not yet allocated, refunds included
        return self._remaining

    @property
    def pending(self) -> Allocation | None:
        """The Allocation that waits for its update(): what a run resumed in the middle of a
        round goes on with."""
        return self._pending

    @property
    # of the pending Allocation, in its order, that update_partial() has taken in
    def answered_groups(self) -> int:
        return self._answered

    @property
    def value(self) -> Floats:
        """f64[P] copy: worth of a rollout; E[p(1-p)] in (0, 1/4) unless the scheduler values
        something else."""
        return self._value.copy()

    @property
    def posterior_mean(self) -> Floats:  # f64[P] expected success rate
        return self.posterior.mean()

    # --- state

    def state_dict(self) -> StateDict:
        """Everything a resumed run needs: a flat dict of 1-d arrays (copies) and plain scalars;
        valid in mid-round too."""
        pending_ids = self._pending.prompt_ids if self._pending is not None else _no_ids()
        pending_rollouts = (
            self._pending.rollouts if self._pending is not None else np.empty(0, dtype=np.int32)
        )
        return {
            **self._identity(),
            "round": self._round,
            "budget_now_rollouts": self.spec.budget_rollouts,
            "remaining_rollouts": self._remaining,
            "refundable_rollouts": self._refundable,
            "answered_groups": self._answered,
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

        Raises ValueError naming the first field that is missing, misshapen or differs from this
        scheduler's configuration.
        """
        for key, wanted in self._identity().items():
            got = read_scalar(state, key)
            if got != wanted:
                raise ValueError(
                    f"scheduler state field {key!r} is {got!r} but this run has {wanted!r}: "
                    "use the saved one"
                )
        pool = self.spec.num_prompts
        post_a = read_array(state, "posterior_a", np.float64, pool)
        post_b = read_array(state, "posterior_b", np.float64, pool)
        ids = read_array(state, "pending_ids", np.int64, None)
        rollouts = read_array(state, "pending_rollouts", np.int32, None)
        plan_ids, plan_units = (
            read_array(state, "plan_ids", np.int64, None),
            read_array(state, "plan_units", np.int64, None),
        )
        current, remaining = (
            int(read_scalar(state, "round")),
            int(read_scalar(state, "remaining_rollouts")),
        )
        refundable, answered = (
            int(read_scalar(state, "refundable_rollouts")),
            int(read_scalar(state, "answered_groups")),
        )
        spec = replace(self.spec, budget_rollouts=int(read_scalar(state, "budget_now_rollouts")))
        if not (
            0 <= remaining <= spec.budget_rollouts
            and 0 <= current <= spec.rounds
            and 0 <= answered <= ids.shape[0]
        ):
            raise ValueError(
                f"scheduler state is damaged: round {current}, remaining_rollouts "
                f"{remaining}, answered_groups {answered}"
            )
        pending = Allocation(current, ids, rollouts) if read_scalar(state, "has_pending") else None
        self._load_extra(state)
        self.spec = spec
        self.posterior.a, self.posterior.b = post_a, post_b
        self._plan_ids, self._plan_units, self._pending = plan_ids, plan_units, pending
        self._round, self._remaining, self._refundable, self._answered = (
            current,
            remaining,
            refundable,
            answered,
        )
        self._revalue(None)
