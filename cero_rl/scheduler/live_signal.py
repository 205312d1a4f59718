"""How much a step teaches, expected and found, and where a round is cut so that every optimizer
step holds the same amount of it.

In: what the allocator thinks a rollout of each prompt is worth, and the sums of rewards of each
step's groups, the same on every rank. Out: how many of a round's next groups make a step.

The signal of a rollout is its squared advantage against the baseline in use, before any scaling:
n p (1-p) of a group of n rollouts, less what the baseline's own error takes (1/n of it with a group
mean) or adds. A gradient's signal and noise both grow with p (1-p), so steps of equal signal are
alike in their ratio, whatever share of the rollouts teaches. A step ends where the signal that is
*expected* reaches the amount, not where it was found: to stop at a lucky group would bias what the
step learns. What was found calibrates the expectation.
"""

from __future__ import annotations

import numpy as np

from cero_rl.scheduler.critic import GroupSums, Prediction
from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids, StateDict, require
from cero_rl.scheduler.state import read_scalar

RECENT = 32.0  # half-life of what was expected and found, in steps


def squared_advantages(groups: GroupSums, predicted: Prediction | None) -> float:
    """Sum over the rollouts of all groups of (reward - baseline)^2: the baseline is the group's
    mean, or the leave-one-out baseline of a critic that `predicted` of these groups."""
    there = groups.counts > 0
    n = groups.counts[there].astype(np.float64)
    sums, squares = groups.sums[there], groups.squares[there]
    if predicted is None:
        found = squares - sums**2 / n
    else:
        strength = predicted.strength[there]
        prior = strength * predicted.mean[there] + sums  # of all rewards, the own one included
        total = strength + n  # reward - baseline = (total reward - prior) / (total - 1)
        found = total**2 * squares - 2.0 * total * prior * sums + n * prior**2
        found /= (total - 1.0) ** 2
    return float(np.maximum(found, 0.0).sum())  # squares are counted in fixed point


class LiveSignal:
    """Steps of `per_step` squared advantages, of at most `most_rollouts` (None: of any size).
    Raises ValueError for an amount that is not above 0."""

    def __init__(self, per_step: float, most_rollouts: int | None = None) -> None:
        require(per_step > 0.0, f"per_step = {per_step:g}, wanted a number above 0")
        self.per_step = per_step
        self._most = most_rollouts
        self._expected = self._found = per_step  # of recent steps; the worth is believed at first

    @property
    def calibration(self) -> float:
        """Signal found in recent steps over the worth that was expected of them."""
        return self._found / max(self._expected, 1e-12)

    def next_groups(self, worth: Floats, rollouts: Ids) -> int:
        """How many of a round's remaining groups make the next step, at least 1: as many steps as
        come nearest to the amount, all of equal signal. worth f64[G] of a rollout, rollouts
        i64[G], G >= 1."""
        signal = np.cumsum(self.calibration * worth * rollouts)
        spent = np.cumsum(rollouts)
        steps = max(1, round(float(signal[-1]) / self.per_step))
        if self._most is not None:
            steps = max(steps, -(-int(spent[-1]) // self._most))
        middle = signal - 0.5 * np.diff(signal, prepend=0.0)
        count = int(np.searchsorted(middle, signal[-1] / steps, side="right"))
        if self._most is not None:
            count = min(count, int(np.searchsorted(spent, self._most, side="right")))
        return max(count, 1)

    def observe(self, worth: float, found: float) -> dict[str, float]:
        """A step's rollouts were thought to be `worth` that much together, and this much signal was
        found; returns its numbers under the names of metrics.jsonl."""
        numbers = {"signal/expected": self.calibration * worth, "signal/found": found}
        fade = 2.0 ** (-1.0 / RECENT)
        self._expected = fade * self._expected + worth
        self._found = fade * self._found + found
        return numbers

    def state_dict(self) -> StateDict:
        return {"expected": self._expected, "found": self._found}

    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError for a damaged state."""
        expected, found = (float(read_scalar(state, name)) for name in ("expected", "found"))
        good = expected >= 0.0 and found >= 0.0
        require(good, f"live signal: expected {expected:g} and found {found:g}, wanted >= 0")
        self._expected, self._found = expected, found
