"""Measured pass rates as a pool that is known with uncertainty: what success rates may lie behind
s right answers of n.

In: successes and trials of every prompt (fractions are welcome: faded evidence). Out: draws of all
success rates. The pool's distribution of rates is a free shape on a grid, fitted by a few steps of
EM (the nonparametric maximum-likelihood mixture of Kiefer and Wolfowitz 1956, stopped early so that
it stays smooth), under weights drawn anew each time (Rubin's Bayesian bootstrap 1981): two draws
differ in the pool's shape and in every prompt. So a prompt with 0 of 16 is likely hopeless in a
pool of hopeless prompts, and likely just hard in a pool of hard ones. With cells a prompt's prior
is that of its cell, drawn toward the pool's by 8 prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids

_LOGITS = np.linspace(-8.0, 8.0, 65)  # .0003 to .9997: nothing is impossible, some things nearly
RATES = 1.0 / (1.0 + np.exp(-_LOGITS))
_STEPS = 60  # of EM
_TOWARD_POOL = 8.0  # prompts


@dataclass(frozen=True, slots=True)
class Measured:
    """Raises ValueError unless 0 <= successes <= trials for at least one prompt."""

    successes: Floats  # [P]
    trials: Floats  # [P] 0: never measured
    cells: Ids | None = None  # [P] 0..L-1 whose prompts resemble each other

    def __post_init__(self) -> None:
        if not self.trials.size or not self.trials.sum() > 0.0:
            raise ValueError("no prompt has a measured pass rate")
        if (self.successes < 0.0).any() or (self.successes > self.trials).any():
            raise ValueError("wanted 0 <= successes <= trials for every prompt")

    @property
    def prompts(self) -> int:
        return self.trials.shape[0]

    def part(self, ids: Ids) -> Measured:
        """The pool of these prompts alone."""
        cells = None if self.cells is None else np.unique(self.cells[ids], return_inverse=True)[1]
        return Measured(self.successes[ids], self.trials[ids], cells)

    def draw(self, rng: np.random.Generator) -> Floats:
        """f64[P] success rates that agree with what was measured."""
        pairs = np.stack((self.successes, self.trials - self.successes), axis=1)
        distinct, which = np.unique(pairs, axis=0, return_inverse=True)
        which = which.reshape(-1)
        fits = distinct @ np.stack((np.log(RATES), np.log1p(-RATES)))  # [D, 65]
        fits = np.exp(fits - fits.max(axis=1, keepdims=True))
        weights = rng.exponential(size=self.prompts) * (self.trials > 0.0)
        counts = np.zeros(distinct.shape[0])
        np.add.at(counts, which, weights)
        pool = _mixture(fits, counts)
        if self.cells is None:
            behind = (fits * pool)[which]
        else:
            shares = fits * pool
            shares /= shares.sum(axis=1, keepdims=True)
            prior = np.zeros((int(self.cells.max()) + 1, RATES.shape[0]))
            np.add.at(prior, self.cells, shares[which] * weights[:, None])
            behind = fits[which] * (prior + _TOWARD_POOL * pool)[self.cells]
        edges = np.cumsum(behind, axis=1)
        spot = rng.random(self.prompts) * edges[:, -1]
        at = np.minimum((edges <= spot[:, None]).sum(axis=1), RATES.shape[0] - 1)
        step = _LOGITS[1] - _LOGITS[0]  # anywhere in the grid's cell
        logit = _LOGITS[at] + step * (rng.random(self.prompts) - 0.5)
        return 1.0 / (1.0 + np.exp(-logit))


def _mixture(fits: Floats, weights: Floats) -> Floats:
    """f64[65] shares of the grid's rates, from likelihoods [D, 65] and weights [D]."""
    shares = np.full(RATES.shape, 1.0 / RATES.shape[0])
    weights = weights / weights.sum()
    for _ in range(_STEPS):
        behind = fits @ shares
        shares = shares * ((weights / behind) @ fits)
    return shares
