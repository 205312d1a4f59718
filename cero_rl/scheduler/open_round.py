"""A round between open_round() and close_round(): its plan, its Allocation, the evidence so far.

In: what a scheduler planned and what came of it. Out: the parts that the posterior and the duals
have not learned from yet. Raises ValueError for evidence of other groups, and for bad counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cero_rl.scheduler.posterior import Floats, as_counts, as_squares, check_groups
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

    def checked(self, evidence: Evidence) -> tuple[Floats, Ids, Floats | None]:
        """Wins, trials and squares [n] of the next n groups."""
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
        wins, tries = check_groups(
            ids, self.allocation.rollouts[part], wins, tries, self.allocation.round
        )
        return wins, tries, squares

    def take(self, wins: Floats, tries: Ids, squares: Floats | None) -> None:
        """Write down checked evidence of the next groups."""
        zeros = np.zeros_like(wins)
        self.wins = np.concatenate((self.wins, wins))
        self.tries = np.concatenate((self.tries, tries))
        self.squares = np.concatenate((self.squares, zeros if squares is None else squares))

    def silence_the_rest(self) -> None:
        """The groups that were not observed have no reward."""
        absent = self.groups - self.answered
        self.take(np.zeros(absent), np.zeros(absent, dtype=np.int64), None)

    def share_of(self, part: slice) -> float:
        """Of the plan, in units."""
        return int(self.plan_units[part].sum()) / int(self.plan_units.sum())

    def share_left(self) -> float:
        """What of the plan is not absorbed; all shares of a round sum to 1."""
        done = int(self.plan_units[: self.absorbed].sum())
        return 1.0 - done / int(self.plan_units.sum()) if done else 1.0

    # --- state

    @staticmethod
    def state(opened: OpenRound | None) -> StateDict:
        """Fields of a saved scheduler, with or without an open round."""
        now = opened or OpenRound(Allocation(0, _no_ids(), _no_units()), _no_ids(), _no_ids())
        return {
            "has_pending": opened is not None,
            "pending_ids": now.allocation.prompt_ids.copy(),
            "pending_rollouts": now.allocation.rollouts.copy(),
            "plan_ids": now.plan_ids.copy(),
            "plan_units": now.plan_units.copy(),
            "observed_successes": now.wins.copy(),
            "observed_trials": now.tries.copy(),
            "observed_squares": now.squares.copy(),
            "absorbed_groups": now.absorbed,
        }

    @staticmethod
    def read(state: StateDict, round_index: int) -> OpenRound | None:
        """The inverse of `state`. Raises ValueError for a damaged one."""
        ids = read_array(state, "pending_ids", np.int64, None)
        rollouts = read_array(state, "pending_rollouts", np.int32, ids.shape[0])
        plan_ids = read_array(state, "plan_ids", np.int64, None)
        plan_units = read_array(state, "plan_units", np.int64, plan_ids.shape[0])
        wins = read_array(state, "observed_successes", np.float64, None)
        tries = read_array(state, "observed_trials", np.int64, wins.shape[0])
        squares = read_array(state, "observed_squares", np.float64, wins.shape[0])
        absorbed = int(read_scalar(state, "absorbed_groups"))
        require(
            0 <= absorbed <= wins.shape[0] <= ids.shape[0],
            f"scheduler state is damaged: {absorbed} groups absorbed, {wins.shape[0]} observed of "
            f"{ids.shape[0]}",
        )
        if not read_scalar(state, "has_pending"):
            return None
        allocation = Allocation(round_index, ids, rollouts)
        return OpenRound(allocation, plan_ids, plan_units, wins, tries, squares, absorbed)


def _no_units() -> np.ndarray:
    return np.empty(0, dtype=np.int32)
