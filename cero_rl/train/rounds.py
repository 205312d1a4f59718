"""Rounds: an Allocation cut into steps, evidence back to the scheduler, a round closed, in one
place.

Every decision is a function of the seed and of counts summed over all ranks, so all ranks take the
same path.
"""

from __future__ import annotations

import numpy as np

from cero_rl.checkpoint.progress import Progress
from cero_rl.job import faults
from cero_rl.rollout.collector import Clock, Rollouts
from cero_rl.scheduler.live_signal import squared_advantages
from cero_rl.scheduler.protocol import Scheduler
from cero_rl.types import Allocation, Step


def cuts(rollouts: np.ndarray, per_step: int | None) -> list[tuple[int, int]]:
    """Cut an allocation's groups [G] into runs of whole groups of at most `per_step` rollouts (a
    larger group goes alone)."""
    if per_step is None:
        return [(0, len(rollouts))]
    bounds: list[tuple[int, int]] = []
    first = size = 0
    for index, count in enumerate(rollouts.tolist()):
        if index > first and size + count > per_step:
            bounds.append((first, index))
            first = index
            size = 0
        size += count
    return [*bounds, (first, len(rollouts))]


class Rounds:
    """The run's steps, one after the other. `clock` times the scheduler. `with_episodes`: rollouts
    are an environment's, whose turns and tokens the ledger counts."""

    def __init__(
        self,
        scheduler: Scheduler,
        progress: Progress,
        rollouts_per_step: int | None,
        clock: Clock,
        *,
        with_episodes: bool = False,
    ) -> None:
        self._scheduler = scheduler
        self._progress = progress
        self._per_step = rollouts_per_step
        self._clock = clock
        self._with_episodes = with_episodes
        self._peeked: Step | None = None

    def next_step(self) -> Step | None:
        """A cut of the open Allocation, or of a new round's; None when the budget is spent."""
        step = self._peeked
        self._peeked = None
        return step if step is not None else self._cut()

    def peek(self) -> Step | None:
        """The step that `next_step` will return; the step before it must have been observed."""
        if self._peeked is None:
            self._peeked = self._cut()
        return self._peeked

    def observe(self, rollouts: Rollouts) -> dict[str, float]:
        """Book what was generated and tell the scheduler what came of it; returns what there is to
        say of the step's signal."""
        evidence = rollouts.evidence
        with self._clock("scheduler"):
            numbers = self._signal(rollouts)
            self._scheduler.observe(evidence)
        self._progress.spent_before_step = self._progress.budget_position
        self._progress.lengths.update(rollouts.prompt_ids, rollouts.counts)
        counts = rollouts.counts
        episodes = {}
        if self._with_episodes:
            episodes = {
                "turns": int(counts.turns.sum()),
                "tokens": int(counts.response_tokens.sum()),
            }
        generated = int(counts.generated.sum())
        self._progress.ledger.book(generated, evidence.failed_rollouts, **episodes)
        faults.point("evidence.booked")
        return numbers

    def _signal(self, rollouts: Rollouts) -> dict[str, float]:
        """Compare a step's signal with what was expected of it when it was cut: neither scheduler
        nor critic has learned since."""
        progress = self._progress
        if progress.live_signal is None:
            return {}
        sums = rollouts.counts.reward_sums(rollouts.prompt_ids)
        predicted = None if progress.critic is None else progress.critic.predict(sums)
        worth = float(self._scheduler.value[sums.prompt_ids] @ sums.counts)
        return progress.live_signal.observe(worth, squared_advantages(sums, predicted))

    def close_if_last(self, step: Step) -> None:
        """End the round with its last step."""
        if step.ends_round:
            self._close()

    def _cut(self) -> Step | None:
        while (allocation := self._open()) is not None:
            first = self._scheduler.answered_groups
            if first < len(allocation.rollouts):
                return Step(allocation, first, first + self._groups_of_next(allocation, first))
            self._close()  # a round that asks for nothing
        return None

    def _groups_of_next(self, allocation: Allocation, first: int) -> int:
        """How many of the groups from `first` on make a step."""
        rollouts, signal = allocation.rollouts[first:], self._progress.live_signal
        if signal is None:
            return cuts(rollouts, self._per_step)[0][1]
        worth = self._scheduler.value[allocation.prompt_ids[first:]]
        return signal.next_groups(worth, rollouts.astype(np.int64))

    def _open(self) -> Allocation | None:
        if self._scheduler.pending is not None:  # in the middle of a round
            return self._scheduler.pending
        with self._clock("scheduler"):
            return self._scheduler.open_round(self._progress.lengths.expected_of_all)

    def _close(self) -> None:
        with self._clock("scheduler"):
            self._scheduler.close_round()
