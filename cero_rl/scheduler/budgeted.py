"""What every allocator shares: the protocol, the budget's books, the posterior and the saved state.

One round:  open_round() -> Allocation | None;  more waves by next_wave(so far);  keep(samples) ->
mask;  observe(evidence), in one piece or group after group;  close_round(). A subclass says which
prompts to plan (`_choose`), whether the round goes on (`_choose_more`), what trains (`_keep`) and
what to learn from a round (`_learn`, or `_learn_part` piece by piece); nothing here draws random
numbers or talks to other ranks, so equal counts give equal plans everywhere. Source of the budget
rules: arXiv 2606.05606 and 2610.09679.
"""

from __future__ import annotations

import operator
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.decisions import Decisions
from cero_rl.scheduler.judging import Unjudged
from cero_rl.scheduler.open_round import OpenRound
from cero_rl.scheduler.posterior import (
    BetaPosterior,
    Floats,
    check_counts,
)
from cero_rl.scheduler.protocol import ExpectedTokens, Mask
from cero_rl.scheduler.rivals.keep import KeepRule
from cero_rl.scheduler.sizes import (
    BudgetSpec,
    Evidence,
    Ids,
    Samples,
    Scalar,
    Shared,
    StateDict,
    require,
)
from cero_rl.scheduler.state import STATE_VERSION, read_array, read_scalar, refuse_other_version
from cero_rl.types import Allocation


class BudgetedScheduler(Decisions):
    """Protocol, budget and posterior of a run; abstract in `_choose`. Raises ValueError (see
    BudgetSpec, BetaPosterior)."""

    name = "abstract"
    waves = False  # may a round have more than one wave?
    simulation_only = False  # does it need what only a simulation knows?
    streaming = False  # does the posterior learn at every observe(), or when the round closes?
    keep_rule: KeepRule | None = None  # on top of the allocator's own

    def __init__(self, spec: BudgetSpec, shared: Shared) -> None:
        self.spec = spec
        self.seed = operator.index(shared.seed)
        self.posterior = BetaPosterior(spec.num_prompts, shared.prior, shared.forgetting)
        # set_budget changes the spec, not what the configuration says
        self._configured_rollouts = spec.budget_rollouts
        self._round = 0
        self._remaining = spec.budget_rollouts
        self._pace = spec.budget_rollouts, spec.rounds  # rollouts and rounds that share them
        self._latest: OpenRound | None = None
        self._current: OpenRound | None = None  # the latest, while it is open
        self._unjudged = Unjudged(spec.num_prompts)
        self._value: Floats = self.posterior.value()
        self._prior_identity = self.posterior.prior_identity()

    # --- worth and identity

    def _revalue(self, ids: Ids | None) -> None:
        """Recompute the worth of the prompts `ids` (None: of all) after their posterior changed."""
        if ids is None:
            self.posterior.value(out=self._value)
        else:
            self._value[ids] = self.posterior.value_at(ids)
        self._discount(ids)

    def _discount(self, ids: Ids | None) -> None:
        """A rollout is worth something only if it is judged (see judging.py)."""
        if self._unjudged.any:
            where = slice(None) if ids is None else ids
            self._value[where] *= self._unjudged.factor(self.posterior, ids)

    def _identity(self) -> dict[str, Scalar]:
        sizes: dict[str, Scalar] = {key: int(value) for key, value in asdict(self.spec).items()}
        sizes["budget_rollouts"] = self._configured_rollouts
        rule = self.keep_rule
        keep = KeepRule.no_identity() if rule is None else rule.identity()
        return {
            "scheduler": self.name,
            "state_version": STATE_VERSION,
            **sizes,
            **self._prior_identity,
            "forgetting": self.posterior.forgetting,
            "seed": self.seed,
            **keep,
        }

    # --- one round

    def open_round(self, expected_tokens: ExpectedTokens | None = None) -> Allocation | None:
        """The next round's Allocation, or None once the rounds or the budget are used up.

        Its rollouts leave `remaining_rollouts` at once. An Allocation without entries is a round
        that executes nothing; it is closed like any other. Raises RuntimeError before the last
        round was closed.
        """
        if self._current is not None:
            raise RuntimeError(
                f"open_round() before close_round(): the counts of round {self._round} are still "
                "missing"
            )
        if expected_tokens is not None:
            self._expect_tokens(expected_tokens)
        units_left = self._units_left
        if self._round >= self.spec.rounds or units_left == 0 or self._exhausted():
            return None
        ids, units = self._choose(units_left, self.spec.rounds - self._round)
        allocation = self._execute(ids, units)
        self._current = self._latest = OpenRound(allocation, ids, units)
        return allocation

    def next_wave(self, so_far: Evidence) -> Allocation | None:
        """A further wave of the open round, or None: its sampling is complete, which for most
        allocators is at once.

        `so_far` holds all groups of the round, in the order of `pending`. Raises RuntimeError
        without an open round or after observe(), ValueError for other groups.
        """
        if self._current is None or self._current.answered:
            raise RuntimeError("next_wave() without an open round, or after observe()")
        if not np.array_equal(so_far.prompt_ids, self._current.allocation.prompt_ids):
            raise ValueError("prompt_ids: wanted all groups of the open round, in its order")
        units_left = self._units_left
        wave = self._choose_more(so_far, units_left) if units_left else None
        if wave is None or not wave[0].size:
            return None
        allocation = self._execute(*wave)
        self._current.grow(allocation)
        return allocation

    def keep(self, samples: Samples) -> Mask:
        """bool[R]: which rollouts train. Group by group, so ranks may call it on their own
        groups."""
        mask = self._keep(samples)
        return mask if self.keep_rule is None else self.keep_rule.narrow(samples, mask)

    @property
    def keeps_all(self) -> bool:
        """Does every rollout train, whatever comes?"""
        return self.keep_rule is None and type(self)._keep is Decisions._keep

    @property
    def _units_left(self) -> int:
        """Of the budget. Failed rollouts may leave part of a unit: it counts as one, and
        `_execute` clips its group."""
        return -(-self._remaining // self.spec.rollouts_per_unit)

    def _execute(self, ids: Ids, units: Ids) -> Allocation:
        """Clip a plan to what the budget still holds, in its order, and book it."""
        wanted = units * self.spec.rollouts_per_unit
        executed = np.clip(self._remaining - (np.cumsum(wanted) - wanted), 0, wanted)
        kept = executed > 0
        allocation = Allocation(self._round, ids[kept], executed[kept].astype(np.int32))
        self._remaining -= allocation.total_rollouts
        self._serve(allocation.prompt_ids, -(-executed[kept] // self.spec.rollouts_per_unit))
        return allocation

    def refund(self, rollouts: int) -> None:
        """Give `rollouts` of the latest Allocation back to the budget because they could not be
        generated.

        For rollouts that never existed (an engine died), not for rollouts whose reward is
        missing: those were generated and stay spent. May be called before or after the
        round is closed, several times; the sum must be the same on every rank. What comes back is
        offered to later rounds, if they have room, and the prompts that did not get it are not
        taken for served (evidence with `generated` says which; else rollouts without a reward,
        the last groups' first). Raises ValueError if it is negative or more than the round spent.
        """
        count = self._check_refund(rollouts)
        latest = self._latest
        if count == 0 or latest is None:
            return
        ids, unit = latest.allocation.prompt_ids, self.spec.rollouts_per_unit
        closed = self._current is None
        served = latest.served(unit)
        missing, weight = latest.unjudged() if closed else (served, served)
        latest.unplaced += count
        self._remaining += count
        self._serve(ids, latest.served(unit) - served)
        if closed:  # the duals have learned already, what is known of prompts has a second look
            missing_now, weight_now = latest.unjudged()
            self._unjudged.add(ids, missing_now - missing, weight_now - weight)
            self._revalue(None)

    def _check_refund(self, rollouts: int) -> int:
        count = operator.index(rollouts)
        most = 0 if self._latest is None else self._latest.silent
        require(
            0 <= count <= most,
            f"refund({count}): wanted 0 <= rollouts <= {most}, what the latest round spent and has "
            "no reward for",
        )
        return count

    def set_budget(self, total_rollouts: int) -> None:
        """Change the run's whole budget (rollouts, what is spent included) now, also in the
        middle of a round.

        Raises ValueError if it breaks a rule of BudgetSpec, is less than what is spent, or more
        than the rounds left can hold.
        """
        total = operator.index(total_rollouts)
        spec = replace(self.spec, budget_rollouts=total)
        spent = self.spec.budget_rollouts - self._remaining
        rounds_left = spec.rounds - self._round - (self._current is not None)
        most = spent + rounds_left * spec.capacity_rollouts
        if not spent <= total <= max(most, self.spec.budget_rollouts):
            raise ValueError(
                f"set_budget({total}): wanted {spent} (spent) .. {most} ({rounds_left} rounds left)"
            )
        self._remaining += total - self.spec.budget_rollouts
        self.spec = spec
        still = 0 if self._current is None else self._current.refundable
        self._pace = self._remaining + still, spec.rounds - self._round

    def _fair_units(self, group: int = 1) -> float:
        """Groups of `group` units in an equal share of the budget for a round: of the whole
        budget, or, from the latest set_budget on, of what it left for the rounds left."""
        rollouts, rounds = self._pace
        return rollouts / (rounds * group * self.spec.rollouts_per_unit)

    @property
    def _rounds_at_pace(self) -> float:
        """Rounds that the whole budget would take at the pace of `_fair_units`."""
        rollouts, rounds = self._pace
        return self.spec.budget_rollouts * rounds / rollouts if rollouts else float(rounds)

    # --- evidence

    def warm_start(self, successes: npt.ArrayLike, failures: npt.ArrayLike) -> None:
        """Start from evidence f64[P] of an earlier run (see export.import_posterior). Raises
        RuntimeError after the first round began, ValueError for bad counts."""
        if self._round or self._current is not None:
            raise RuntimeError("warm_start() belongs before the first round")
        wins = np.asarray(successes, dtype=np.float64)
        losses = np.asarray(failures, dtype=np.float64)
        tries = np.ceil(wins + losses)
        check_counts(wins, tries, self.spec.num_prompts)
        check_counts(losses, tries, self.spec.num_prompts)
        self.posterior.a += wins
        self.posterior.b += losses
        self._revalue(None)

    def observe(self, evidence: Evidence) -> None:
        """What came of the round's next groups: of all of them, or piece by piece, e.g. after each
        optimizer step.

        Groups come in the Allocation's order (one number in the saved state says how far it went).
        Failed rollouts go back to the budget. A streaming allocator has learned from them on
        return, the others do when the round closes. Raises RuntimeError without an open round,
        ValueError for other groups or bad counts; then nothing has changed.
        """
        opened = self._opened("observe()")
        refunded = self._check_refund(evidence.failed_rollouts)
        wins, tries, squares, failed = opened.checked(evidence)
        self._check(evidence.prompt_ids, wins, squares)
        tokens = operator.index(evidence.response_tokens)
        require(tokens >= 0, f"response_tokens = {tokens}, wanted >= 0")

        # Everything is checked: from here on the scheduler changes.
        self._spend_tokens(tokens)
        unit = self.spec.rollouts_per_unit
        if refunded or not opened.complete:
            served = opened.served(unit)
            opened.take(wins, tries, squares, failed, refunded - int(failed.sum()))
            self._remaining += refunded
            self._serve(opened.allocation.prompt_ids, opened.served(unit) - served)
        else:
            opened.take(wins, tries, squares, failed)
        if self.streaming and wins.shape[0]:
            part = slice(opened.absorbed, opened.answered)
            self._absorb(opened)
            units = opened.plan_served(unit, part)
            self._learn_part(opened.plan_ids[part], units, opened.share_of(part))

    def close_round(self) -> None:
        """Learn from what is still to be learned, and end the round. Groups that were not observed
        have no reward.

        Required after every Allocation, also an empty one. Raises RuntimeError without one.
        """
        opened = self._opened("close_round()")
        unit = self.spec.rollouts_per_unit
        opened.silence_the_rest()
        rest, share = slice(opened.absorbed, None), opened.share_left()
        self._absorb(opened)
        if not opened.all_judged:
            self._unjudged.add(opened.allocation.prompt_ids, *opened.unjudged())
            self._revalue(None)
        self._learn_part(opened.plan_ids[rest], opened.plan_served(unit, rest), share)
        self._learn(opened.allocation, opened.wins, opened.tries)
        self._current = None
        self._round += 1

    def _opened(self, call: str) -> OpenRound:
        if self._current is None:
            raise RuntimeError(f"{call} without an Allocation: call open_round() first")
        return self._current

    def _absorb(self, opened: OpenRound) -> None:
        """Put what was observed and not yet absorbed into the posterior."""
        part = slice(opened.absorbed, opened.answered)
        ids = opened.allocation.prompt_ids[part]
        wins, tries = opened.wins[part], opened.tries[part]
        first = opened.absorbed == 0
        self._before_posterior(ids, wins, tries, opened.squares[part], first=first)
        forgets = first and self.posterior.forgetting < 1.0
        if forgets:
            self.posterior.forget()
            self._unjudged.forget(self.posterior.forgetting)
        self.posterior.add(ids, wins, tries)
        self._revalue(None if forgets else ids)
        opened.absorbed = opened.answered

    # --- the door for a loop of one's own: vectors over the pool, one wave a round

    def next_round(self) -> Allocation | None:
        """open_round(), for loops that know no tokens."""
        return self.open_round()

    def update(
        self,
        successes: npt.ArrayLike,
        trials: npt.ArrayLike,
        squares: npt.ArrayLike | None = None,
    ) -> None:
        """observe() and close_round() with vectors over the whole pool.

        successes i64/f64[P], trials i64/f64[P], summed over ALL ranks, by pool index; groups that
        were observed before must not come again. squares f64[P] are for schedulers that value
        graded rewards. Raises RuntimeError without an Allocation to answer, ValueError on bad
        counts or more trials than the Allocation gave (evidence counted twice).
        """
        opened = self._opened("update()")
        self.observe(opened.pool_evidence(successes, trials, squares, self.spec.num_prompts))
        self.close_round()

    # --- what can be read

    @property
    def round(self) -> int:  # completed, so the index of the one being worked on or planned next
        return self._round

    @property
    def remaining_rollouts(self) -> int:  # budget not yet allocated, refunds included
        return self._remaining

    @property
    def pending(self) -> Allocation | None:
        """The open round, all waves so far: what a run resumed in the middle of it goes on with."""
        return None if self._current is None else self._current.allocation

    @property
    def answered_groups(self) -> int:
        """Of the pending Allocation, in its order, that observe() has taken in."""
        return 0 if self._current is None else self._current.answered

    @property
    def value(self) -> Floats:
        """f64[P] copy: worth of a rollout; E[p(1-p)] in (0, 1/4) unless the scheduler values
        something else."""
        return self._value.copy()

    @property
    def posterior_mean(self) -> Floats:  # f64[P] expected success rate
        return self.posterior.mean()

    def evidence(self) -> tuple[Floats, Floats]:
        """Successes and failures f64[P] that the posterior holds beyond its prior."""
        return self.posterior.evidence()

    @property
    def unjudged_rollouts(self) -> Ids:
        """i64[P] of each prompt that were generated and have no reward, since the run began."""
        return self._unjudged.rollouts

    def metrics(self) -> dict[str, float | int]:
        """Means over the pool of what is believed, before this round is learned from; prompts
        that are set aside because their rollouts are mostly not judged."""
        return {
            "cero/posterior_mean": float(self.posterior_mean.mean()),
            "cero/value_mean": float(self._value.mean()),
            "cero/set_aside_prompts": self._unjudged.set_aside(self.posterior).shape[0],
        }

    # --- state

    def state_dict(self) -> StateDict:
        """Everything a resumed run needs: a flat dict of 1-d arrays (copies) and plain scalars;
        valid in mid-round too."""
        return {
            **self._identity(),
            "round": self._round,
            "budget_now_rollouts": self.spec.budget_rollouts,
            "remaining_rollouts": self._remaining,
            "pace_rollouts": self._pace[0],
            "pace_rounds": self._pace[1],
            "has_pending": self._current is not None,
            **OpenRound.state(self._latest),
            **self._unjudged.state(),
            "posterior_a": self.posterior.a.copy(),
            "posterior_b": self.posterior.b.copy(),
            **self._extra_state(),
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Restore `state_dict()`, also after a trip through npz or JSON scalars. All or nothing.

        Raises ValueError naming the first field that is missing, misshapen or differs from this
        scheduler's configuration, and for a state of another version.
        """
        refuse_other_version(state)
        for key, wanted in self._identity().items():
            got = read_scalar(state, key)
            if got != wanted:
                raise ValueError(
                    f"scheduler state field {key!r} is {got!r} but this run has {wanted!r}: use "
                    "the saved one"
                )
        pool = self.spec.num_prompts
        post_a = read_array(state, "posterior_a", np.float64, pool)
        post_b = read_array(state, "posterior_b", np.float64, pool)
        current = int(read_scalar(state, "round"))
        remaining = int(read_scalar(state, "remaining_rollouts"))
        pace = int(read_scalar(state, "pace_rollouts")), int(read_scalar(state, "pace_rounds"))
        budget = int(read_scalar(state, "budget_now_rollouts"))
        spec = replace(self.spec, budget_rollouts=budget)
        require(
            0 <= remaining <= budget and 0 <= current <= spec.rounds and min(pace) >= 0,
            f"scheduler state is damaged: round {current}, remaining_rollouts {remaining}",
        )
        is_open = bool(read_scalar(state, "has_pending"))
        latest = OpenRound.read(state, current - (not is_open))
        unjudged = Unjudged.read(state, pool)
        self._load_extra(state)
        self.spec = spec
        self.posterior.a = post_a
        self.posterior.b = post_b
        self._latest = latest
        self._current = latest if is_open else None
        self._unjudged = unjudged
        self._round = current
        self._remaining = remaining
        self._pace = pace
        self._revalue(None)
