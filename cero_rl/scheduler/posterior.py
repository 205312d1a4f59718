"""What is believed about every prompt's success rate: one Beta distribution per prompt, and the worth that follows from it.

In: successes and trials of a round, summed over all ranks. Out: the expected variance of the next reward of each prompt.
Source: arXiv 2606.05606 and 2610.09679; forgetting toward the prior is ours (forgetting = 1 is the papers' plain counting).

    a <- a0 + rho (a - a0) + successes        b <- b0 + rho (b - b0) + trials - successes        worth = E[p (1 - p)]
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def check_counts(successes: npt.ArrayLike, trials: npt.ArrayLike, num_prompts: int) -> tuple[Floats, Counts]:
    """The counts as f64[P] and i64[P]; ValueError unless finite, 0 <= successes <= trials, and trials whole numbers."""
    wins, tries = np.asarray(successes), np.asarray(trials)
    for name, counts in (("successes", wins), ("trials", tries)):
        if counts.shape != (num_prompts,):
            raise ValueError(f"{name} has shape {counts.shape}, wanted ({num_prompts},): one entry per pool prompt")
        if counts.dtype.kind not in "iuf":
            raise ValueError(f"{name} has dtype {counts.dtype}, wanted integers or floats")
    if tries.dtype.kind == "f" and not bool((np.isfinite(tries) & (np.floor(tries) == tries)).all()):
        raise ValueError("trials must be whole numbers: a rollout whose reward is missing counts in neither vector")
    wins, tries = wins.astype(np.float64, copy=False), tries.astype(np.int64, copy=False)
    in_range = (wins >= 0.0) & (wins <= tries)  # False for NaN as well
    if not bool(in_range.all()):
        bad = int(np.argmin(in_range))
        raise ValueError(f"prompt {bad}: {wins[bad]:g} successes of {tries[bad]} trials, wanted 0 <= successes <= trials")
    return wins, tries


class BetaPosterior:
    """Beta(a_i, b_i) for every prompt i of a pool of P.

    Rewards in [0, 1] count as fractional successes (r to a, 1 - r to b). Raises ValueError for a prior that is not positive
    and finite, or a forgetting factor outside (0, 1].
    """

    def __init__(self, num_prompts: int, prior: tuple[float, float] = (1.0, 1.0), forgetting: float = 1.0) -> None:
        prior_a, prior_b = float(prior[0]), float(prior[1])
        if not (0.0 < prior_a < math.inf and 0.0 < prior_b < math.inf):
            raise ValueError(f"prior = ({prior_a:g}, {prior_b:g}), wanted two positive finite pseudo-counts")
        if not 0.0 < forgetting <= 1.0:
            raise ValueError(f"forgetting = {forgetting:g}, wanted a factor in (0, 1]; 1 never forgets")
        self.prior = (prior_a, prior_b)
        self.forgetting = float(forgetting)
        self.a: Floats = np.full(num_prompts, prior_a)  # [P] pseudo-successes
        self.b: Floats = np.full(num_prompts, prior_b)  # [P] pseudo-failures

    def update(self, successes: npt.ArrayLike, trials: npt.ArrayLike) -> None:
        """Forget toward the prior, then add successes f64/i64[P] (may be fractional), trials i64[P]. ValueError."""
        wins, tries = check_counts(successes, trials, self.a.shape[0])
        if self.forgetting < 1.0:
            for counts, prior in ((self.a, self.prior[0]), (self.b, self.prior[1])):
                counts *= self.forgetting
                counts += (1.0 - self.forgetting) * prior
        self.a += wins
        self.b += tries
        self.b -= wins

    def mean(self) -> Floats:
        """f64[P] expected success rate, in (0, 1)."""
        return self.a / (self.a + self.b)

    def value(self) -> Floats:
        """f64[P] E[p(1-p)], in (0, 1/4): the expected unbiased variance of the next group's binary rewards (size >= 2)."""
        total = self.a + self.b
        worth = self.a / total
        worth *= self.b
        total += 1.0
        worth /= total
        return worth
