"""What is believed about every prompt's success rate: one Beta distribution per prompt, and the
worth that follows from it.

In: successes and trials of a round, summed over all ranks. Out: the expected variance of the
next reward of each prompt. Source: arXiv 2606.05606 and 2610.09679; forgetting toward the prior
and priors per prompt are ours (forgetting = 1 and one prior are the papers' plain counting).

    a <- a0 + rho (a - a0) + successes        b <- b0 + rho (b - b0) + trials - successes
    worth = E[p (1 - p)]
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[np.int64]
Prior: TypeAlias = tuple[float, float] | tuple[npt.ArrayLike, npt.ArrayLike]
"""Pseudo-counts (a0, b0) in rollouts, one pair for the pool or f64[P] each."""

# entries: the temporaries of a block stay in the cache, so a pass costs its arithmetic and no
# memory
_BLOCK = 16384


def blocks(length: int) -> Iterator[slice]:
    """The slices that a pass over `length` entries works through."""
    return (slice(start, min(start + _BLOCK, length)) for start in range(0, length, _BLOCK))


def as_counts(
    successes: npt.ArrayLike, trials: npt.ArrayLike, length: int
) -> tuple[npt.NDArray, npt.NDArray]:
    """Both as arrays; ValueError unless they have `length` entries that are integers or floats.
    Values are not looked at."""
    wins, tries = np.asarray(successes), np.asarray(trials)
    for name, counts in (("successes", wins), ("trials", tries)):
        if counts.shape != (length,):
            raise ValueError(
                f"{name} has shape {counts.shape}, wanted ({length},): one entry per prompt"
            )
        if counts.dtype.kind not in "iuf":
            raise ValueError(f"{name} has dtype {counts.dtype}, wanted integers or floats")
    return wins, tries


def as_squares(
    squares: npt.ArrayLike | None, length: int, ids: Counts | None = None
) -> Floats | None:
    """Sums of squared rewards f64[length], or of the prompts `ids` among them; None stays None.
    ValueError for another shape."""
    if squares is None:
        return None
    sums = np.asarray(squares, dtype=np.float64)
    if sums.shape != (length,):
        raise ValueError(
            f"squares has shape {sums.shape}, wanted ({length},): one entry per prompt"
        )
    return sums if ids is None else sums[ids]


def check_counts(
    successes: npt.ArrayLike, trials: npt.ArrayLike, num_prompts: int, first: int = 0
) -> tuple[Floats, Counts]:
    """The counts as f64[P] and i64[P]; ValueError unless finite, 0 <= successes <= trials, and
    trials whole numbers.

    `first` is the name of entry 0 in messages.
    """
    wins, tries = as_counts(successes, trials, num_prompts)
    if tries.dtype.kind == "f" and not bool(
        (np.isfinite(tries) & (np.floor(tries) == tries)).all()
    ):
        raise ValueError(
            "trials must be whole numbers: a rollout whose reward is missing counts in "
            "neither vector"
        )
    wins, tries = wins.astype(np.float64, copy=False), tries.astype(np.int64, copy=False)
    in_range = (wins >= 0.0) & (wins <= tries)  # False for NaN as well
    if not bool(in_range.all()):
        bad = int(np.argmin(in_range))
        raise ValueError(
            f"prompt {first + bad}: {wins[bad]:g} successes of {tries[bad]} trials, wanted "
            "0 <= successes <= trials"
        )
    return wins, tries


def check_groups(
    ids: Counts,
    rollouts: npt.NDArray[np.int32],
    successes: npt.NDArray,
    trials: npt.NDArray,
    round_index: int,
) -> tuple[Floats, Counts]:
    """Counts [G] of the prompts `ids` as f64 and i64; ValueError unless good (as check_counts)
    and trials <= rollouts."""
    good = (
        (successes >= 0)
        & (successes <= trials)
        & (trials <= rollouts)
        & (np.floor(trials) == trials)
    )
    if not bool(good.all()):
        at = int(np.argmin(good))
        check_counts(successes[at : at + 1], trials[at : at + 1], 1, first=int(ids[at]))
        raise ValueError(
            f"prompt {ids[at]}: {trials[at]} trials but round {round_index} allocated "
            f"{rollouts[at]} rollouts"
        )
    return successes.astype(np.float64, copy=False), trials.astype(np.int64, copy=False)


def check_prior(prior: Prior, num_prompts: int) -> tuple[float | Floats, float | Floats]:
    """(a0, b0) as two floats or two private f64[P]; ValueError unless positive, finite and of
    these shapes."""
    pair = []
    for given in prior:
        counts = np.array(given, dtype=np.float64)
        if counts.shape not in ((), (num_prompts,)):
            raise ValueError(
                f"prior has shape {counts.shape}, wanted two numbers or two vectors of "
                f"{num_prompts} entries"
            )
        if not bool((np.isfinite(counts) & (counts > 0.0)).all()):
            shown = f"({prior[0]}, {prior[1]})" if counts.ndim == 0 else "a vector"
            raise ValueError(f"prior = {shown}, wanted positive finite pseudo-counts")
        pair.append(counts)
    if len(pair) != 2:
        raise ValueError(f"prior has {len(pair)} parts, wanted (a0, b0)")
    if pair[0].ndim == 0 and pair[1].ndim == 0:
        return float(pair[0]), float(pair[1])
    a, b = (each if each.ndim else np.full(num_prompts, each) for each in pair)
    return a, b


def expected_variance(a: Floats, b: Floats) -> Floats:
    """E[p(1-p)] for p ~ Beta(a, b), in (0, 1/4): a b / ((a+b)(a+b+1))."""
    total = a + b
    worth = a / total
    worth *= b
    total += 1.0
    worth /= total
    return worth


class BetaPosterior:
    """Beta(a_i, b_i) for every prompt i of a pool of P.

    Rewards in [0, 1] count as fractional successes (r to a, 1 - r to b). prior is one pair of
    pseudo-counts or a pair of vectors [P]. Raises ValueError for a prior that is not positive
    and finite, or a forgetting factor outside (0, 1].
    """

    def __init__(
        self, num_prompts: int, prior: Prior = (1.0, 1.0), forgetting: float = 1.0
    ) -> None:
        if not 0.0 < forgetting <= 1.0:
            raise ValueError(
                f"forgetting = {forgetting:g}, wanted a factor in (0, 1]; 1 never forgets"
            )
        self.prior = check_prior(prior, num_prompts)
        self.forgetting = float(forgetting)
        # [P] pseudo-successes
        self.a: Floats = np.array(np.broadcast_to(self.prior[0], num_prompts))
        # [P] pseudo-failures
        self.b: Floats = np.array(np.broadcast_to(self.prior[1], num_prompts))

    def forget(self) -> None:
        """Every prompt's evidence times `forgetting`; the prior stays."""
        if self.forgetting == 1.0:
            return
        for counts, prior in ((self.a, self.prior[0]), (self.b, self.prior[1])):
            for part in blocks(counts.shape[0]):
                counts[part] *= self.forgetting
                counts[part] += (1.0 - self.forgetting) * (
                    prior[part] if isinstance(prior, np.ndarray) else prior
                )

    def add(self, ids: Counts, wins: Floats, tries: Counts) -> None:
        """Add checked counts [len(ids)] of distinct prompts."""
        self.a[ids] += wins
        self.b[ids] += tries - wins

    def update(self, successes: npt.ArrayLike, trials: npt.ArrayLike) -> None:
        """Forget toward the prior, then add successes f64/i64[P] (may be fractional), trials
        i64[P]. ValueError."""
        wins, tries = check_counts(successes, trials, self.a.shape[0])
        self.forget()
        self.a += wins
        self.b += tries
        self.b -= wins

    def set_prior(self, prior: Prior) -> None:
        """Exchange the prior under the evidence: a moves by the change of a0, b by that of b0.
        ValueError."""
        fresh = check_prior(prior, self.a.shape[0])
        for counts, new, old in zip((self.a, self.b), fresh, self.prior):
            counts += new - old
        self.prior = fresh

    def evidence(self) -> tuple[Floats, Floats]:
        """Successes and failures f64[P] >= 0 that the posterior holds beyond its prior, after
        forgetting."""
        return np.maximum(self.a - self.prior[0], 0.0), np.maximum(self.b - self.prior[1], 0.0)

    def evidence_at(self, ids: Counts) -> Floats:
        """Both together, f64[len(ids)] of the prompts `ids`: rollouts that they were judged by."""
        total = self.a[ids] + self.b[ids]
        for prior in self.prior:
            total -= prior[ids] if isinstance(prior, np.ndarray) else prior
        return np.maximum(total, 0.0)

    def mean(self) -> Floats:
        """f64[P] expected success rate, in (0, 1)."""
        return self.a / (self.a + self.b)

    def value(self, out: Floats | None = None) -> Floats:
        """f64[P] E[p(1-p)], in (0, 1/4): the expected unbiased variance of the next group's
        binary rewards (size >= 2)."""
        worth = np.empty_like(self.a) if out is None else out
        for part in blocks(worth.shape[0]):
            worth[part] = expected_variance(self.a[part], self.b[part])
        return worth

    def value_at(self, ids: Counts) -> Floats:
        """The same for the prompts `ids` alone."""
        return expected_variance(self.a[ids], self.b[ids])

    def prior_identity(self) -> dict[str, float | str]:
        """The prior as two scalars for a saved state: itself, or the digest of a vector."""
        named = {}
        for name, prior in zip(("prior_a", "prior_b"), self.prior):
            named[name] = (
                "sha256:" + hashlib.sha256(prior.tobytes()).hexdigest()
                if isinstance(prior, np.ndarray)
                else prior
            )
        return named
