"""Variance is not learnability: which kinds of prompts are getting easier, from a fast look
against a slow one.

In: the evidence of each round and a label per prompt (its family, source or topic). Out: a
factor in [floor, 1] per prompt. Ours; the papers value variance alone, which a prompt answered
by luck keeps for ever.

What a prompt's evidence so far (without its prior) says of its success rate is compared with
what the next group brings; the excess, averaged over the label's recent rollouts (a fading sum,
`memory` rounds long), is the label's learning progress: 0 on average for luck, for the solved
and for the impossible, positive where the policy improves faster than the counts follow. A first
look says nothing. A label is given the benefit of one standard error, so that a label not looked
at lately is looked at again.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids, StateDict
from cero_rl.scheduler.state import read_array


class LearningProgress:
    """Progress of L labels 0..L-1 over a pool of P. Raises ValueError for bad labels, floor
    outside [0, 1] or memory <= 0."""

    def __init__(
        self,
        labels: npt.ArrayLike,
        num_prompts: int,
        floor: float = 0.1,
        memory_rounds: float = 10.0,
    ) -> None:
        self.labels = np.array(labels)
        if (
            self.labels.shape != (num_prompts,)
            or self.labels.dtype.kind not in "iu"
            or int(self.labels.min()) < 0
        ):
            raise ValueError(
                f"labels: wanted {num_prompts} integers >= 0, one per prompt (its family), "
                "for value = 'progress'"
            )
        if not 0.0 <= floor <= 1.0:
            raise ValueError(f"progress_floor = {floor:g}, wanted a factor in [0, 1]")
        if not 0.0 < memory_rounds < math.inf:
            raise ValueError(
                f"progress_memory_rounds = {memory_rounds:g}, wanted a positive finite "
                "number of rounds"
            )
        self.floor, self.memory_rounds = float(floor), float(memory_rounds)
        # [L] fading sum of successes beyond the expected
        self._surprise: Floats = np.zeros(int(self.labels.max()) + 1)
        self._trials: Floats = np.zeros_like(self._surprise)  # [L] fading sum of rollouts

    def with_labels(self, labels: npt.ArrayLike, num_prompts: int) -> LearningProgress:
        """The same progress by label over another pool; labels not seen before start without
        any."""
        other = LearningProgress(labels, num_prompts, self.floor, self.memory_rounds)
        size = max(self._trials.shape[0], other._trials.shape[0])
        other._surprise, other._trials = (
            np.pad(sums, (0, size - sums.shape[0])) for sums in (self._surprise, self._trials)
        )
        return other

    def observe(
        self, ids: Ids, wins: Floats, tries: Ids, successes: Floats, failures: Floats
    ) -> None:
        """Counts [G] of a part of a round, and the evidence [G] that the posterior held of these
        prompts before it."""
        known = successes + failures >= 1.0
        expected = successes[known] / (successes[known] + failures[known])
        label, size = self.labels[ids][known], self._trials.shape[0]
        self._surprise += np.bincount(label, wins[known] - tries[known] * expected, minlength=size)
        self._trials += np.bincount(label, tries[known], minlength=size)

    def close_round(self) -> None:
        keep = math.exp(-1.0 / self.memory_rounds)
        self._surprise *= keep
        self._trials *= keep

    def by_label(self) -> Floats:
        """f64[L] optimistic progress per rollout: mean surprise plus one standard error (of
        rollouts with p = 1/2), >= 0."""
        trials = np.maximum(self._trials, 1.0)
        return np.maximum(self._surprise / trials + 0.5 / np.sqrt(trials), 0.0)

    def factor(self) -> Floats:
        """f64[P] in [floor, 1]: 1 for the label with most progress."""
        progress = self.by_label()
        best = float(progress.max())
        share = progress / best if best > 0.0 else np.ones_like(progress)
        return (self.floor + (1.0 - self.floor) * share)[self.labels]

    def state(self) -> StateDict:
        return {"progress_surprise": self._surprise.copy(), "progress_trials": self._trials.copy()}

    def load(self, state: StateDict) -> None:
        surprise, trials = (
            read_array(state, "progress_surprise", np.float64, None),
            read_array(state, "progress_trials", np.float64, None),
        )
        if surprise.shape != trials.shape or surprise.shape[0] < self._trials.shape[0]:
            raise ValueError(
                "scheduler state fields 'progress_surprise', 'progress_trials' do not fit "
                "this run's labels"
            )
        self._surprise, self._trials = surprise, trials
