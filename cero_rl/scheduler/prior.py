"""Where a prior comes from: a fit to the pool's own counts, or what is known of each prompt
beforehand.

In: counts or pass rates per prompt. Out: pseudo-counts (a0, b0) for BetaPosterior. None of this
is in the papers, which start every prompt at Beta(1, 1); empirical Bayes for the beta-binomial
is textbook (method of moments: Kleinman 1973; maximum likelihood: Minka, "Estimating a Dirichlet
distribution", 2000, whose fixed point is the fallback of the Newton step here).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats, check_counts

FitMethod: TypeAlias = Literal["moments", "ml"]
# pseudo-counts: a pool without spread has no finite fit, one of 0s and 1s no positive one
_SMALLEST, _LARGEST = 1e-2, 1e6


def fit_beta_prior(
    successes: npt.ArrayLike, trials: npt.ArrayLike, method: FitMethod = "moments"
) -> tuple[float, float]:
    """The Beta(a0, b0) from which the prompts' success rates look drawn, given successes
    f64/i64[P] and trials i64[P].

    Prompts without trials say nothing. "moments" matches the weighted mean and the variance
    between prompts beyond binomial noise and takes fractional rewards; "ml" maximises the
    beta-binomial likelihood and needs whole successes. Pseudo-counts are kept in [0.01, 1e6].
    Raises ValueError for bad counts, an unknown method, fewer than two prompts with trials, or
    fractional successes with "ml".
    """
    wins, tries = check_counts(successes, trials, np.shape(trials)[0])
    wins, sizes = wins[tries > 0], tries[tries > 0]
    if wins.shape[0] < 2:
        raise ValueError(f"a prior needs at least 2 prompts with trials, got {wins.shape[0]}")
    if method == "moments":
        return _moments(wins, sizes.astype(np.float64))
    if method != "ml":
        raise ValueError(f"method = {method!r}, wanted 'moments' or 'ml'")
    if bool((wins != np.floor(wins)).any()):
        raise ValueError("method 'ml' needs whole successes; fractional rewards are for 'moments'")
    return _maximum_likelihood(wins.astype(np.int64), sizes)


def fit_to_evidence(
    successes: Floats, failures: Floats, method: FitMethod = "moments"
) -> tuple[float, float] | None:
    """fit_beta_prior from what a posterior holds, f64[P] each, rounded to whole trials
    (forgetting leaves fractions; "ml" also rounds successes); None if fewer than two prompts
    have any."""
    tries = np.rint(successes + failures)
    seen = tries > 0.0
    if np.count_nonzero(seen) < 2:
        return None
    wins, tries = successes[seen], tries[seen]
    if method == "moments":
        return _moments(np.minimum(wins, tries, out=wins), tries)
    return fit_beta_prior(np.minimum(np.rint(wins), tries), tries, method)


def _moments(wins: Floats, sizes: Floats) -> tuple[float, float]:
    total, prompts = sizes.sum(), sizes.shape[0]
    mean = float(np.clip(wins.sum() / total, 1e-6, 1.0 - 1e-6))
    apart = wins / sizes
    apart -= mean
    apart *= apart
    apart *= sizes
    between = float(apart.sum())
    # E[between] = mean(1-mean) ((P-1) + rho (N - sum n^2/N - (P-1))), rho = 1/(a+b+1): the
    # intra-class correlation.
    spread = total - (sizes**2).sum() / total - (prompts - 1)
    excess = between / (mean * (1.0 - mean)) - (prompts - 1)
    correlation = excess / spread if spread > 0.0 else 0.0
    strength = 1.0 / max(correlation, 1e-12) - 1.0
    return _clipped(mean * strength), _clipped((1.0 - mean) * strength)


def _clipped(count: float) -> float:
    return float(np.clip(count, _SMALLEST, _LARGEST))


def _more_than(counts: npt.NDArray[np.int64]) -> Floats:
    """f64[max]: entry j is the number of prompts whose count exceeds j (log Gamma(n+a) - log
    Gamma(a) = sum of log(a+j) over j < n)."""
    return (counts.shape[0] - np.cumsum(np.bincount(counts)))[: int(counts.max())].astype(
        np.float64
    )


def _maximum_likelihood(
    wins: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Newton in (log a, log b), with Minka's fixed point where the Newton step is no ascent."""
    tables = [_more_than(counts) for counts in (wins, sizes - wins, sizes)]
    steps = [np.arange(table.shape[0], dtype=np.float64) for table in tables]

    def likelihood(a: float, b: float) -> float:
        parts = [float((t * np.log(x + j)).sum()) for t, j, x in zip(tables, steps, (a, b, a + b))]
        return parts[0] + parts[1] - parts[2]

    a, b = _moments(wins.astype(np.float64), sizes.astype(np.float64))
    a, b = min(a, 1e3), min(b, 1e3)
    value = likelihood(a, b)
    for _ in range(500):
        first = [float((t / (x + j)).sum()) for t, j, x in zip(tables, steps, (a, b, a + b))]
        second = [float((t / (x + j) ** 2).sum()) for t, j, x in zip(tables, steps, (a, b, a + b))]
        gradient = np.array([a * (first[0] - first[2]), b * (first[1] - first[2])])
        off = a * b * second[2]
        hessian = np.array(
            [
                [gradient[0] + a * a * (second[2] - second[0]), off],
                [off, gradient[1] + b * b * (second[2] - second[1])],
            ]
        )
        determinant = hessian[0, 0] * hessian[1, 1] - off * off
        moves = [np.array([first[0] / first[2], first[1] / first[2]])]  # Minka: a factor for each
        if determinant > 0.0 and hessian[0, 0] < 0.0:
            newton = -np.linalg.solve(hessian, gradient)
            moves.insert(0, np.exp(np.clip(newton, -2.0, 2.0)))
        for factor in moves:
            trial = _clipped(a * factor[0]), _clipped(b * factor[1])
            fresh = likelihood(*trial)
            if fresh >= value:
                break
        else:
            return a, b
        done = abs(trial[0] - a) <= 1e-10 * a and abs(trial[1] - b) <= 1e-10 * b
        (a, b), value = trial, fresh
        if done:
            break
    return a, b


def prior_from_pass_rate(
    pass_rate: npt.ArrayLike, strength: float = 4.0, base: tuple[float, float] = (1.0, 1.0)
) -> tuple[Floats, Floats]:
    """A prior per prompt: `base` updated by `strength` pseudo-rollouts at pass_rate f64[P] (nan:
    not known, so `base` alone).

    Raises ValueError for rates outside [0, 1], a strength that is negative or not finite, or a
    base that is not positive.
    """
    rates = np.asarray(pass_rate, dtype=np.float64)
    known = ~np.isnan(rates)
    if rates.ndim != 1 or not bool(((rates[known] >= 0.0) & (rates[known] <= 1.0)).all()):
        raise ValueError("pass_rate must be a vector of rates in [0, 1], nan where not known")
    if not 0.0 <= strength < np.inf:
        raise ValueError(f"strength = {strength:g}, wanted a finite number of rollouts >= 0")
    if not (0.0 < base[0] < np.inf and 0.0 < base[1] < np.inf):
        raise ValueError(f"base = {base}, wanted two positive finite pseudo-counts")
    rates = np.where(known, rates, 0.0)
    weight = np.where(known, strength, 0.0)
    return base[0] + weight * rates, base[1] + weight * (1.0 - rates)
