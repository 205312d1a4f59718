"""A hierarchical prior: prompts of one cell (source, family, length) resemble each other, so what
the cell's prompts brought lately predicts a prompt that nobody has looked at. Ours; empirical Bayes
of the beta-binomial by moments (Kleinman 1973), one level deeper than prior.py.

In: a cell per prompt, and the evidence of each round. Out: pseudo-counts per cell,

    Beta(s_c m_c, s_c (1 - m_c))

m_c, the success rate of the cell's prompts now: a mean over the groups of recent rounds (a fading
sum, `memory_rounds` long: shorter than a prompt's own memory, because the policy moves and the cell
has the rollouts to follow it), drawn toward the pool's mean by 8 pseudo-rollouts. A group of n
rollouts of a prompt with e rollouts of evidence counts n/(n+e): a prompt that the allocator serves
often does not speak for the cell's others. The pool's mean is over cells, by their prompts.

s_c, how alike the prompts of the cell are, as rollouts: s_c = 1/r_c - 1, r_c the intra-class
correlation of the prompts' evidence, drawn toward the pool's, and s_c kept in [.05, 16]: a cell
never outweighs what two looks at the prompt itself say, and where its prompts are all right or all
wrong, each for itself, an unseen one is no promise.

A cell that nobody looks at is remembered five times as long, and then goes back to the pool's mean,
which brings it another look: dead cells that are forgotten sooner take half of the budget.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids, StateDict, require
from cero_rl.scheduler.state import read_array

_TOWARD_POOL = 8.0  # rollouts: one usual group weighs as much as the pool's mean
_SPREAD_TOWARD_POOL = 4.0  # information about r_c, in rollouts times p(1-p)
_USUAL_CORRELATION = 0.2  # before anything is known: s = 4
_CORRELATIONS = 1.0 / 17.0, 0.95  # s = 16 and s = 0.05
_UNLOOKED = 5.0  # times as long is a cell remembered in whose rounds nobody looks at it
_SMALLEST = 1e-2  # pseudo-count, as in prior.py
_FIELDS = "cell_wins", "cell_weight", "cell_rollouts"


class Cells:
    """L cells 0..L-1 over a pool of P. Raises ValueError for bad labels or a memory <= 0."""

    def __init__(self, labels: npt.ArrayLike, num_prompts: int, memory_rounds: float) -> None:
        self.labels = np.array(labels)
        require(
            self.labels.shape == (num_prompts,)
            and self.labels.dtype.kind in "iu"
            and int(self.labels.min()) >= 0,
            f"cells: wanted {num_prompts} integers >= 0, one per prompt",
        )
        require(
            0.0 < memory_rounds < math.inf,
            f"cell_memory_rounds = {memory_rounds:g}, wanted a positive finite number of rounds",
        )
        self.memory_rounds = float(memory_rounds)
        self._resize(int(self.labels.max()) + 1)
        self._prior: tuple[Floats, Floats] | None = None  # [L] each, of the latest fit

    def _resize(self, count: int) -> None:
        self.prompts = np.bincount(self.labels, minlength=count)  # i64[L] prompts of each cell
        self._wins: Floats = np.zeros(count)  # fading sums: successes, weighted
        self._weight: Floats = np.zeros(count)  # rollouts, weighted
        self._rollouts: Floats = np.zeros(count)  # rollouts
        self._looked = np.zeros(count, dtype=np.bool_)  # at, in this round

    @property
    def count(self) -> int:
        return self.prompts.shape[0]

    # --- evidence

    def observe(self, ids: Ids, wins: Floats, tries: Ids, evidence: Floats) -> None:
        """Counts [G] of a part of a round, and the rollouts [G] that the posterior held of these
        prompts before it."""
        label = self.labels[ids]
        weight = tries / np.maximum(tries + evidence, 1.0)
        for sums, each in (
            (self._wins, weight * wins),
            (self._weight, weight * tries),
            (self._rollouts, tries),
        ):
            sums += np.bincount(label, each, minlength=self.count)
        self._looked[label[tries > 0]] = True

    def close_round(self) -> None:
        memory = np.where(self._looked, self.memory_rounds, _UNLOOKED * self.memory_rounds)
        keep = np.exp(-1.0 / memory)
        for sums in (self._wins, self._weight, self._rollouts):
            sums *= keep
        self._looked[:] = False

    # --- the prior

    def means(self) -> Floats:
        """m_c f64[L], in [0, 1]."""
        rate = np.divide(
            self._wins, self._weight, out=np.zeros(self.count), where=self._weight > 0.0
        )
        known = self._rollouts / (self._rollouts + _TOWARD_POOL)
        share = self.prompts * known
        total = float(share.sum())
        pool = float(share @ rate) / total if total > 0.0 else 0.5
        return known * rate + (1.0 - known) * pool

    def strengths(self, successes: Floats, failures: Floats) -> Floats:
        """s_c f64[L] in rollouts, from the evidence f64[P] of every prompt."""
        tries = np.rint(successes + failures)
        seen = np.flatnonzero(tries > 0.0)
        label, n = self.labels[seen], tries[seen]
        wins = np.minimum(successes[seen], n)

        def per_cell(values: Floats) -> Floats:
            return np.bincount(label, values, minlength=self.count).astype(np.float64)

        total, prompts = per_cell(n), np.bincount(label, minlength=self.count)
        some = np.maximum(total, 1.0)
        mean = per_cell(wins) / some
        between = per_cell(n * (wins / n - mean[label]) ** 2)
        variance, free = mean * (1.0 - mean), np.maximum(prompts - 1, 0)
        # E[between] = variance (free + r (N - sum n^2/N - free)), as in prior.py
        excess = between - free * variance
        information = np.maximum(total - per_cell(n * n) / some - free, 0.0) * variance
        pool = (float(excess.sum()) + _SPREAD_TOWARD_POOL * _USUAL_CORRELATION) / (
            float(information.sum()) + _SPREAD_TOWARD_POOL
        )
        correlation = (excess + _SPREAD_TOWARD_POOL * np.clip(pool, *_CORRELATIONS)) / (
            information + _SPREAD_TOWARD_POOL
        )
        least, most = _CORRELATIONS
        return 1.0 / np.minimum(np.maximum(correlation, least), most) - 1.0

    def fit(self, successes: Floats, failures: Floats) -> tuple[Floats, Floats] | None:
        """Prior (a0, b0) f64[P] each of every prompt, given the evidence f64[P]; None while fewer
        than two prompts have any."""
        if np.count_nonzero(successes + failures > 0.5) < 2:
            return None
        mean, strength = self.means(), self.strengths(successes, failures)
        self._prior = (
            np.maximum(strength * mean, _SMALLEST),
            np.maximum(strength * (1.0 - mean), _SMALLEST),
        )
        return self.of_prompts(self._prior)

    def of_prompts(self, prior: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        return prior[0][self.labels], prior[1][self.labels]

    def prior(self) -> tuple[Floats, Floats] | None:
        """The latest fit for every prompt, f64[P] each; None before the first."""
        return None if self._prior is None else self.of_prompts(self._prior)

    def spread(self) -> float:
        """Standard deviation of m_c over the pool's prompts: how much the cells tell apart."""
        mean, share = self.means(), self.prompts / self.prompts.sum()
        return math.sqrt(max(float(share @ mean**2) - float(share @ mean) ** 2, 0.0))

    # --- another pool, state

    def over(self, labels: npt.ArrayLike, num_prompts: int) -> Cells:
        """The same cells over another pool; cells not seen before start at the pool's mean and the
        usual strength."""
        other = Cells(labels, num_prompts, self.memory_rounds)
        size = max(self.count, other.count)
        new = size - self.count
        other._resize(size)
        other._wins, other._weight, other._rollouts = (
            np.pad(sums, (0, new)) for sums in (self._wins, self._weight, self._rollouts)
        )
        if self._prior is not None:
            mean, strength = other.means()[self.count :], 1.0 / _USUAL_CORRELATION - 1.0
            joined = np.maximum(np.stack((mean, 1.0 - mean)) * strength, _SMALLEST)
            a, b = (np.concatenate(both) for both in zip(self._prior, joined))
            other._prior = a, b
        return other

    def state(self) -> StateDict:
        """Empty arrays of prior before the first fit."""
        a, b = self._prior or (np.empty(0), np.empty(0))
        sums = zip(_FIELDS, (self._wins, self._weight, self._rollouts))
        return {
            **{name: each.copy() for name, each in sums},
            "cell_looked": self._looked.copy(),
            "cell_prior_a": a.copy(),
            "cell_prior_b": b.copy(),
        }

    def load(self, state: StateDict) -> None:
        """The inverse of `state`. Raises ValueError for a damaged one, or one of other cells."""
        wins, weight, rollouts = (read_array(state, name, np.float64, None) for name in _FIELDS)
        a, b = (read_array(state, f"cell_prior_{c}", np.float64, None) for c in "ab")
        looked = read_array(state, "cell_looked", np.bool_, wins.shape[0])
        count = wins.shape[0]
        alike = weight.shape == rollouts.shape == wins.shape and a.shape == b.shape
        if not alike or count < int(self.labels.max()) + 1 or a.shape[0] not in (0, count):
            raise ValueError("scheduler state fields 'cell_*' do not fit this run's cells")
        self._resize(count)
        self._wins, self._weight, self._rollouts, self._looked = wins, weight, rollouts, looked
        self._prior = (a, b) if a.shape[0] else None
