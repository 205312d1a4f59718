"""The latest round: its plan, its Allocation, the evidence so far, and what was never generated.

In: what a scheduler planned and what came of it. Out: the parts that the posterior and the duals
have not learned from yet, and what each group really got. Raises ValueError for evidence of other
groups, and for bad counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.judging import missing_weight
from cero_rl.scheduler.posterior import (
    Floats,
    as_counts,
    as_squares,
    check_counts,
    check_groups,
)
from cero_rl.scheduler.sizes import Evidence, Ids, StateDict, merged, require
from cero_rl.scheduler.state import read_array, read_scalar
from cero_rl.types import Allocation


def _no_ids() -> Ids:
    return np.empty(0, dtype=np.int64)


@dataclass
class OpenRound:
    """[G] fields are in the Allocation's order. The plan is as made, before the budget clipped it:
    what the duals learn from."""

    allocation: Allocation  # all waves so far
    plan_ids: Ids
    plan_units: Ids
    wins: Floats = field(default_factory=lambda: np.empty(0))  # of the groups observed
    tries: Ids = field(default_factory=_no_ids)
    squares: Floats = field(default_factory=lambda: np.empty(0))
    failed: Ids = field(default_factory=_no_ids)  # rollouts of them that were never generated
    unplaced: int = 0  # never generated either, of a group that nobody named
    absorbed: int = 0  # groups that the posterior has taken in

    @property
    def answered(self) -> int:
        """Groups observed."""
        return self.tries.shape[0]

    @property
    def groups(self) -> int:
        return self.allocation.prompt_ids.shape[0]

    def grow(self, wave: Allocation) -> None:
        """A further wave."""
        self.allocation = merged(self.allocation, wave)

    def checked(self, evidence: Evidence) -> tuple[Floats, Ids, Floats | None, Ids]:
        """Wins, trials, squares and failed rollouts [n] of the next n groups."""
        count = evidence.prompt_ids.shape[0]
        part = slice(self.answered, self.answered + count)
        ids = self.allocation.prompt_ids[part]
        if not np.array_equal(evidence.prompt_ids, ids):
            raise ValueError(
                f"prompt_ids: wanted groups {self.answered}.. of round {self.allocation.round}'s "
                "Allocation, in its order; a group is answered exactly once"
            )
        wins, tries = as_counts(evidence.successes, evidence.trials, count)
        squares = as_squares(evidence.squares, count)
        asked = self.allocation.rollouts[part]
        wins, tries = check_groups(ids, asked, wins, tries, self.allocation.round)
        judged, room = int(tries.sum()), self.silent - evidence.failed_rollouts
        require(
            judged <= room,
            f"trials: {judged} rollouts with a reward, wanted at most {room}: of round "
            f"{self.allocation.round} the others are judged, or failed (failed_rollouts, refund)",
        )
        return wins, tries, squares, _failures(evidence, asked, tries)

    def take(
        self, wins: Floats, tries: Ids, squares: Floats | None, failed: Ids, unplaced: int = 0
    ) -> None:
        """Write down checked evidence of the next groups."""
        zeros = np.zeros_like(wins)
        self.wins = np.concatenate((self.wins, wins))
        self.tries = np.concatenate((self.tries, tries))
        self.squares = np.concatenate((self.squares, zeros if squares is None else squares))
        self.failed = np.concatenate((self.failed, failed))
        self.unplaced += unplaced

    def silence_the_rest(self) -> None:
        """The groups that were not observed have no reward."""
        absent = self.groups - self.answered
        nothing = np.zeros(absent, dtype=np.int64)
        self.take(np.zeros(absent), nothing, None, nothing)

    # --- what was generated

    @property
    def refundable(self) -> int:
        """Rollouts not yet said to have failed."""
        return self.allocation.total_rollouts - int(self.failed.sum()) - self.unplaced

    @property
    def silent(self) -> int:
        """Of those, without a reward so far: all that may still turn out to have failed."""
        return self.refundable - int(self.tries.sum())

    @property
    def complete(self) -> bool:
        """Was every rollout generated?"""
        return not self.unplaced and not self.failed.any()

    @property
    def all_judged(self) -> bool:
        """Has every rollout a reward?"""
        return int(self.tries.sum()) == self.allocation.total_rollouts

    def generated(self) -> Ids:
        """i64[G]; failures of no group in particular are laid to rollouts without a reward."""
        absent = self.groups - self.answered
        asked = self.allocation.rollouts.astype(np.int64)
        got = asked - np.pad(self.failed, (0, absent))
        return got - from_the_end(self.unplaced, got - np.pad(self.tries, (0, absent)))

    def served(self, unit: int) -> Ids:
        """i64[G] units of which at least one rollout was generated."""
        return -(-self.generated() // unit)

    def unjudged(self) -> tuple[Ids, Floats]:
        """Of a round that is over: rollouts [G] that were generated and have no reward, and what
        they count."""
        generated = self.generated()
        missing = generated - self.tries
        return missing, missing * missing_weight(generated, self.tries)

    def plan_served(self, unit: int, part: slice) -> Ids:
        """Part of the plan, less the units that were never generated."""
        units = self.plan_units[part]
        if self.complete:
            return units
        lost = -(-self.allocation.rollouts.astype(np.int64) // unit) - self.served(unit)
        lost = np.pad(lost, (0, max(self.plan_units.shape[0] - lost.shape[0], 0)))[part]
        return np.maximum(units - lost[: units.shape[0]], 0)

    # --- the plan's shares

    def share_of(self, part: slice) -> float:
        """Of the plan, in units."""
        return int(self.plan_units[part].sum()) / int(self.plan_units.sum())

    def share_left(self) -> float:
        """What of the plan is not absorbed; all shares of a round sum to 1."""
        done = int(self.plan_units[: self.absorbed].sum())
        return 1.0 - done / int(self.plan_units.sum()) if done else 1.0

    # --- state

    @staticmethod
    def state(latest: OpenRound | None) -> StateDict:
        """Fields of a saved scheduler, before its first round too."""
        now = latest or OpenRound(Allocation(0, _no_ids(), _no_units()), _no_ids(), _no_ids())
        return {
            "pending_ids": now.allocation.prompt_ids.copy(),
            "pending_rollouts": now.allocation.rollouts.copy(),
            "plan_ids": now.plan_ids.copy(),
            "plan_units": now.plan_units.copy(),
            "observed_successes": now.wins.copy(),
            "observed_trials": now.tries.copy(),
            "observed_squares": now.squares.copy(),
            "observed_failed": now.failed.copy(),
            "unplaced_failed": now.unplaced,
            "absorbed_groups": now.absorbed,
        }

    @staticmethod
    def read(state: StateDict, round_index: int) -> OpenRound:
        """The inverse of `state`. Raises ValueError for a damaged one."""
        ids = read_array(state, "pending_ids", np.int64, None)
        rollouts = read_array(state, "pending_rollouts", np.int32, ids.shape[0])
        plan_ids = read_array(state, "plan_ids", np.int64, None)
        plan_units = read_array(state, "plan_units", np.int64, plan_ids.shape[0])
        wins = read_array(state, "observed_successes", np.float64, None)
        tries = read_array(state, "observed_trials", np.int64, wins.shape[0])
        squares = read_array(state, "observed_squares", np.float64, wins.shape[0])
        failed = read_array(state, "observed_failed", np.int64, wins.shape[0])
        unplaced = int(read_scalar(state, "unplaced_failed"))
        absorbed = int(read_scalar(state, "absorbed_groups"))
        require(
            0 <= absorbed <= wins.shape[0] <= ids.shape[0],
            f"scheduler state is damaged: {absorbed} groups absorbed, {wins.shape[0]} observed of "
            f"{ids.shape[0]}",
        )
        allocation = Allocation(round_index, ids, rollouts)
        read = OpenRound(
            allocation, plan_ids, plan_units, wins, tries, squares, failed, unplaced, absorbed
        )
        require(
            bool((failed >= 0).all()) and unplaced >= 0 and read.refundable >= 0,
            f"scheduler state is damaged: {unplaced} + {failed.sum()} failed rollouts of "
            f"{allocation.total_rollouts}",
        )
        return read

    def pool_evidence(
        self,
        successes: npt.ArrayLike,
        trials: npt.ArrayLike,
        squares: npt.ArrayLike | None,
        pool: int,
    ) -> Evidence:
        """Vectors over a pool of `pool` prompts as the evidence of all groups still to be
        observed."""
        wins, tries = as_counts(successes, trials, pool)
        ids = self.allocation.prompt_ids
        rest, index = ids[self.answered :], self.allocation.round
        for counts in (wins, tries):
            if np.count_nonzero(counts) != np.count_nonzero(counts[rest]):
                # something outside the round, or an error to name
                check_counts(wins, tries, pool)
                require(
                    not np.any(tries[ids[: self.answered]]),
                    f"trials counts rollouts that observe() of round {index} has taken in already",
                )
                raise ValueError(
                    f"trials counts rollouts of prompts that round {index} did not allocate"
                )
        return Evidence(rest, wins[rest], tries[rest], as_squares(squares, pool, rest))


def from_the_end(count: int, room: Ids) -> Ids:
    """i64[n] that sums to `count`, or to all of room i64[n] if that is less: the last entries are
    filled first."""
    after = room.sum() - np.cumsum(room)
    return np.clip(count - after, 0, room)


def _failures(evidence: Evidence, asked: npt.NDArray[np.int32], tries: Ids) -> Ids:
    """i64[n] rollouts of each group that were never generated."""
    if evidence.generated is None:
        if not evidence.failed_rollouts:
            return np.zeros_like(tries)
        return from_the_end(evidence.failed_rollouts, asked - tries)
    generated = np.asarray(evidence.generated)
    require(
        generated.shape == asked.shape
        and generated.dtype.kind in "iu"
        and bool(((tries <= generated) & (generated <= asked)).all()),
        "generated: wanted one integer per group, trials <= generated <= rollouts asked for",
    )
    failed = asked - generated.astype(np.int64)
    require(
        int(failed.sum()) == evidence.failed_rollouts,
        f"failed_rollouts = {evidence.failed_rollouts}, but {int(failed.sum())} of those asked for "
        "were not generated",
    )
    return failed


def _no_units() -> np.ndarray:
    return np.empty(0, dtype=np.int32)
