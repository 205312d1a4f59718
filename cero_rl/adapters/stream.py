"""A trainer's stream of finished groups as rounds of the scheduler, each counted exactly once: for
trainers that generate asynchronously and return groups in whatever order they end.

    stream = PromptStream(scheduler, pool=pool_fingerprint(prompts))
    for ticket in stream.take(8):         # prompts and group sizes to generate next
        ...
    stream.put(ticket, rewards)           # in any order; stream.lose(ticket) where a group failed

A ticket is one group of one round. It ends once: with rewards, or lost; what comes after that, a
second answer or one of a closed round, is dropped and counted. A round closes when its last ticket
ends, or early (`close_round`), which gives the groups that are still out back to the budget. What
the scheduler learns does not depend on the order in which tickets end, so several processes that
are told the same results hold the same stream.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cero_rl.adapters.rounds import AdvantageRule, load_state, open_round, save_state, score_round
from cero_rl.errors import CheckpointError
from cero_rl.scheduler import Evidence, Scheduler
from cero_rl.scheduler.ledger import Ledger
from cero_rl.types import Allocation

_WAITING, _OUT, _BACK, _LOST = range(4)
_TICKETS = "cero_tickets.json"


@dataclass(frozen=True, slots=True)
class Ticket:
    """One group to generate: `rollouts` completions of prompt `prompt_id`, asked for in `round`."""

    round: int
    prompt_id: int
    rollouts: int


class PromptStream:
    """`pool` is the prompts' fingerprint (rounds.pool_fingerprint). Not safe for threads."""

    def __init__(
        self, scheduler: Scheduler, *, budget_rollouts: int, pool: str, rule: AdvantageRule
    ) -> None:
        self.scheduler, self.pool, self.rule = scheduler, pool, rule
        self.ledger = Ledger(budget_rollouts)
        self.duplicates = 0  # answers to a ticket that had ended
        self.late = 0  # answers to a round that was closed
        self._allocation: Allocation | None = None
        self._closed = -1  # the latest round that was closed
        self._place: dict[int, int] = {}  # of a prompt in the open round
        self._state: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # [G]
        self._wins: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # [G]
        self._tries: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # [G]

    # --- what to generate

    def take(self, most: int) -> list[Ticket]:
        """The next groups, at most `most`; opens a round where none is open. Empty while all groups
        of the round are out, and at the end of the run (`over`)."""
        if self._allocation is None and not self._open():
            return []
        assert self._allocation is not None
        chosen = np.flatnonzero(self._state == _WAITING)[: max(most, 0)]
        self._state[chosen] = _OUT
        return [self._ticket(int(place)) for place in chosen]

    def _ticket(self, place: int) -> Ticket:
        round_ = self._allocation
        assert round_ is not None
        return Ticket(round_.round, int(round_.prompt_ids[place]), int(round_.rollouts[place]))

    def _open(self) -> bool:
        allocation = open_round(self.scheduler)
        if allocation is None:
            return False
        groups = allocation.prompt_ids.shape[0]
        self._allocation = allocation
        self._place = {int(prompt): i for i, prompt in enumerate(allocation.prompt_ids)}
        self._state, self._wins, self._tries = (np.zeros(groups, dtype=np.int64) for _ in range(3))
        return True

    @property
    def out(self) -> list[Ticket]:
        """Groups that were taken and have not ended."""
        return [self._ticket(int(place)) for place in np.flatnonzero(self._state == _OUT)]

    @property
    def over(self) -> bool:
        """Is nothing left to generate, and nothing out?"""
        return self._allocation is None and not self._open()

    # --- what came of it

    def put(
        self, ticket: Ticket, rewards: Sequence[float | None]
    ) -> npt.NDArray[np.float32] | None:
        """The rewards of a group (None or NaN: missing) -> its advantages f32[n], or None where the
        ticket had ended before. Raises ValueError for another number of rewards than were asked
        for, RewardError for an infinite one."""
        place = self._current(ticket)
        if place is None:
            return None
        values = np.array([np.nan if r is None else r for r in rewards], dtype=np.float32)
        one = Allocation(
            ticket.round,
            np.zeros(1, dtype=np.int64),
            np.array([ticket.rollouts], dtype=np.int32),
        )
        scored = score_round(one, values, 1, self.rule)
        self._wins[place], self._tries[place] = scored.successes[0], scored.trials[0]
        self._end(place, _BACK)
        return scored.advantages

    def lose(self, ticket: Ticket) -> bool:
        """The group was never generated: its rollouts go back to the budget. False where the ticket
        had ended before."""
        place = self._current(ticket)
        if place is not None:
            self._end(place, _LOST)
        return place is not None

    def close_round(self) -> int:
        """Close the open round without the groups that have not ended; how many rollouts went back
        to the budget. No round open: 0."""
        if self._allocation is None:
            return 0
        rest = (self._state == _OUT) | (self._state == _WAITING)
        refunded = int(self._allocation.rollouts[rest].sum())
        self._state[rest] = _LOST
        self._finish()
        return refunded

    def _current(self, ticket: Ticket) -> int | None:
        """The place of a ticket that has not ended. Raises ValueError for one that was never
        given."""
        if ticket.round <= self._closed:
            self.late += 1
            return None
        place = self._place.get(ticket.prompt_id) if self._allocation is not None else None
        if place is None or self._ticket(place) != ticket:
            raise ValueError(f"{ticket}: the round after {self._closed} gave no such group")
        if self._state[place] in (_BACK, _LOST):
            self.duplicates += 1
            return None
        return place

    def _end(self, place: int, how: int) -> None:
        self._state[place] = how
        if bool(((self._state == _BACK) | (self._state == _LOST)).all()):
            self._finish()

    def _finish(self) -> None:
        round_, lost = self._allocation, self._state == _LOST
        assert round_ is not None
        failed = int(round_.rollouts[lost].sum())
        generated = np.where(lost, 0, round_.rollouts).astype(np.int64)
        self.scheduler.observe(
            Evidence(
                round_.prompt_ids,
                self._wins.astype(np.float64),
                self._tries,
                failed_rollouts=failed,
                generated=generated,
            )
        )
        self.scheduler.close_round()
        self.ledger.book(int(generated.sum()), failed)
        self._closed = round_.round
        self._allocation, self._state = None, self._state[:0]

    # --- state

    def save(self, folder: Path) -> None:
        """Into a checkpoint's folder. Groups that are out are asked for again after `load`."""
        open_ = self._allocation is not None
        ended = [int(i) for i in np.flatnonzero((self._state == _BACK) | (self._state == _LOST))]
        groups = [[int(self._state[i]), i, int(self._wins[i]), int(self._tries[i])] for i in ended]
        save_state(folder / "cero_scheduler.npz", self.scheduler, self.ledger, self.pool)
        told = {
            "open": open_,
            "closed": self._closed,
            "groups": groups,
            "duplicates": self.duplicates,
            "late": self.late,
            "refunded": self.ledger.refunded_rollouts,
        }
        temporary = folder / f".{_TICKETS}.tmp"
        temporary.write_text(json.dumps(told), encoding="utf-8")
        temporary.replace(folder / _TICKETS)

    def load(self, folder: Path) -> None:
        """The inverse of `save`. Raises CheckpointError."""
        load_state(folder / "cero_scheduler.npz", self.scheduler, self.ledger, self.pool)
        path = folder / _TICKETS
        try:
            told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            groups = np.array(told["groups"], dtype=np.int64).reshape(-1, 4)
            self.duplicates, self.late = int(told["duplicates"]), int(told["late"])
            self.ledger.refunded_rollouts = int(told["refunded"])
            is_open, self._closed = bool(told["open"]), int(told["closed"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: no tickets of a stream ({type(error).__name__}); resume from an older "
                "checkpoint"
            ) from None
        self._allocation, self._state = None, self._state[:0]
        pending = self.scheduler.pending
        if is_open != (pending is not None) or (
            pending is not None and pending.round <= self._closed
        ):
            raise CheckpointError(
                f"{path}: of another round than the scheduler beside it; the save was cut: resume "
                "from an older checkpoint"
            )
        if is_open and self._open():
            if groups.size and int(groups[:, 1].max()) >= self._state.shape[0]:
                raise CheckpointError(f"{path}: names a group that its round does not have")
            self._state[groups[:, 1]] = groups[:, 0]
            self._wins[groups[:, 1]], self._tries[groups[:, 1]] = groups[:, 2], groups[:, 3]
