"""Variance is not direction: which cells teach prompts that nobody has trained on, measured on
first looks. Ours.

In: a cell per prompt, and the counts of each round. Out: a factor omega_c in [floor, 1] per cell,
which multiplies the worth of its prompts.

The first time that a prompt is looked at, its rollouts measure today's policy on a prompt that was
never trained on: a held-out meter, already paid for, which memorising cannot move. (Which prompt of
a cell comes first must not matter; equal slopes go by a random permutation, so it does not.) For
each cell the success of first looks y is regressed on the exposure x that the cell had by then: its
rollouts in live groups (neither all right nor all wrong; a rollout alone counts 4 p (1-p)) per
prompt of the cell. The slope is what one such rollout adds to the success of all its prompts.
Weighted least squares over a fading memory; a look of n rollouts weighs n / (1 + (n-1)/5), because
they share a prompt. Slopes of cells are taken for draws from one normal law, whose mean and spread
are fitted (DerSimonian and Laird 1986); the spread is at least half of the mean, and half of the
slope that gains a quarter of success over a prompt's fair share of the budget:

    omega_c = floor + (1 - floor) max(0, posterior mean + ucb * posterior deviation) / (largest)

A cell answered by luck, or with wrong keys, stays where it is whatever its variance: its slope goes
to 0 and its factor to the floor. A cell without evidence has the benefit of the doubt. Once every
prompt has been looked at, only probes (reserve.py: prompts that never train, looked at again and
again) tell more. With them a cell's memory fades in rounds in which it is looked at; without, in
every round, and all cells go back to the benefit of the doubt.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.pool import PoolChange
from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids, StateDict, require
from cero_rl.scheduler.state import read_array

_SHARED = 0.2  # correlation of two rollouts of a prompt, given its cell
_USUAL_GAIN = 0.25  # success gained over a fair share of the budget: the scale of a slope
_SUMS = 5  # w, w x, w y, w x x, w x y


class FirstLooks:
    """Slopes of L cells over a pool of P, labels i64[P]; fair_rollouts is the budget a prompt."""

    def __init__(
        self,
        labels: npt.ArrayLike,
        fair_rollouts: float,
        floor: float,
        ucb: float,
        memory_rounds: float,
    ) -> None:
        self.labels: Ids = np.array(labels)
        self.fair_rollouts = fair_rollouts
        self.floor, self.ucb, self.memory_rounds = floor, ucb, memory_rounds
        count = int(self.labels.max()) + 1
        self._looked = np.zeros(self.labels.shape[0], dtype=np.bool_)  # [P] had a rollout judged?
        self.probes = np.zeros_like(self._looked)  # [P] looked at, never trained on
        self._exposure: Floats = np.zeros(count)  # [L] live rollouts per prompt
        self._sums: Floats = np.zeros((_SUMS, count))
        self._own: Floats = np.zeros((3, self.labels.shape[0]))  # w, w x, w y of each probe
        self._omega: Floats = np.ones(count)
        self._fade: Floats = np.ones(count)  # [L] of a round: of cells that were looked at in it

    @property
    def count(self) -> int:
        return self._omega.shape[0]

    @property
    def looked_share(self) -> float:
        """Of the pool, that was looked at."""
        return float(self._looked.mean())

    def factor(self) -> Floats:
        """f64[P] in [floor, 1]."""
        return self._omega[self.labels]

    def factor_at(self, part: slice | Ids) -> Floats:
        """The same of a part of the pool."""
        return self._omega[self.labels[part]]

    def by_cell(self) -> Floats:
        """f64[L] copy of the factors."""
        return self._omega.copy()

    # --- evidence

    def know(self, ids: Ids) -> None:
        """These prompts were trained on before: their next look is no first one."""
        self._looked[ids] = True

    def observe(self, ids: Ids, wins: Floats, tries: Ids, expected: Floats) -> None:
        """Counts [G] of a part of a round, and the success rates [G] expected before it."""
        judged = tries > 0
        ids, wins, tries, expected = ids[judged], wins[judged], tries[judged], expected[judged]
        first = ~self._looked[ids]
        trained = ~self.probes[ids]
        cell, n = self.labels[ids[first]], tries[first]
        x, y = self._exposure[cell], wins[first] / n
        w = n / (1.0 + (n - 1.0) * np.where(trained[first], _SHARED, 0.0))
        for row, values in enumerate((w, w * x, w * y, w * x * x, w * x * y)):
            self._sums[row] += np.bincount(cell, values, minlength=self.count)
            if row < 3:
                self._own[row, ids[~trained]] += values[~trained[first]]
        self._looked[ids[trained]] = True
        self._fade[cell if self.probes.any() else slice(None)] = math.exp(-1.0 / self.memory_rounds)
        live = trained * tries * ((wins > 0.0) & (wins < tries))
        live = np.where(tries == 1, trained * 4.0 * expected * (1.0 - expected), live)
        spent = np.bincount(self.labels[ids], live, minlength=self.count)
        prompts = np.bincount(self.labels, minlength=self.count)
        self._exposure += spent / np.maximum(prompts, 1)

    def close_round(self) -> None:
        self._omega = self._factors()
        self._sums *= self._fade
        self._own[:, self.probes] *= self._fade[self.labels[self.probes]]
        self._fade[:] = 1.0

    def slopes(self) -> tuple[Floats, Floats]:
        """Posterior mean and standard deviation f64[L] of dy/dx."""
        weight, _, y, xx, xy = self._sums
        mean = (y + 1.0) / (weight + 2.0)
        noise = mean * (1.0 - mean)  # variance of a look of weight 1

        # Every probe has a level of its own, the first looks of a cell have one together.
        probes = np.flatnonzero(self.probes)
        where, own = self.labels[probes], self._own[:, probes]
        rest = self._sums[:3] - [np.bincount(where, row, minlength=self.count) for row in own]
        between_xx, between_xy = np.zeros(self.count), np.zeros(self.count)
        for cell, (w, x, y) in ((where, own), (np.arange(self.count), rest)):
            some = np.maximum(w, 1e-12)
            between_xx += np.bincount(cell, x * x / some, minlength=self.count)
            between_xy += np.bincount(cell, x * y / some, minlength=self.count)
        spread = np.maximum(xx - between_xx, 0.0)
        known = spread > 1e-9 * np.maximum(xx, 1.0)
        precision = np.where(known, spread / noise, 0.0)
        fits = np.divide(xy - between_xy, spread, out=np.zeros_like(xy), where=known)

        scale = _USUAL_GAIN / self.fair_rollouts
        total = float(precision.sum())
        common = float(precision @ fits) / (total + scale**-2)
        between = float(precision @ (fits - common) ** 2) - (np.count_nonzero(precision) - 1)
        room = total - float(precision @ precision) / total if total > 0.0 else 0.0
        least = 0.5 * max(common, scale)
        variance = max(between / room if room > 0.0 else 0.0, least**2)
        certainty = precision + 1.0 / variance
        return (precision * fits + common / variance) / certainty, 1.0 / np.sqrt(certainty)

    def _factors(self) -> Floats:
        mean, deviation = self.slopes()
        hope = np.maximum(mean + self.ucb * deviation, 0.0)
        present = np.bincount(self.labels, minlength=self.count) > 0
        best = float(hope[present].max())
        share = np.minimum(hope / best, 1.0) if best > 0.0 else np.ones_like(hope)
        return self.floor + (1.0 - self.floor) * share

    # --- another pool, state

    def over(self, labels: npt.ArrayLike, change: PoolChange, fair_rollouts: float) -> FirstLooks:
        """The same cells over another pool; cells not seen before start without evidence."""
        other = FirstLooks(labels, fair_rollouts, self.floor, self.ucb, self.memory_rounds)
        new = max(other.count, self.count) - self.count
        other._looked = change.carry(self._looked, np.zeros(change.size, dtype=np.bool_))
        other._exposure = np.pad(self._exposure, (0, new))
        other._sums = np.pad(self._sums, ((0, 0), (0, new)))
        other._own = np.array([change.carry(row, np.zeros(change.size)) for row in self._own])
        other._omega, other._fade = (
            np.pad(each, (0, new), constant_values=1.0) for each in (self._omega, self._fade)
        )
        return other

    def state(self) -> StateDict:
        return {
            "direction_looked": self._looked.copy(),
            "direction_exposure": self._exposure.copy(),
            "direction_sums": self._sums.ravel(),
            "direction_own": self._own.ravel(),
            "direction_omega": self._omega.copy(),
            "direction_fade": self._fade.copy(),
        }

    def load(self, state: StateDict) -> None:
        """The inverse of `state`. Raises ValueError for a damaged one, or one of other cells."""
        looked = read_array(state, "direction_looked", np.bool_, self.labels.shape[0])
        omega = read_array(state, "direction_omega", np.float64, None)
        count = omega.shape[0]
        require(
            count > int(self.labels.max()),
            "scheduler state field 'direction_omega' does not fit this run's cells",
        )
        exposure = read_array(state, "direction_exposure", np.float64, count)
        fade = read_array(state, "direction_fade", np.float64, count)
        sums = read_array(state, "direction_sums", np.float64, _SUMS * count)
        own = read_array(state, "direction_own", np.float64, 3 * looked.shape[0])
        self._looked, self._exposure, self._omega = looked, exposure, omega
        self._sums, self._fade = sums.reshape(_SUMS, count), fade
        self._own = own.reshape(3, looked.shape[0])
