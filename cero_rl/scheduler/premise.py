"""The live check of the method's premise: does the predicted worth of a prompt rank the variance
that its group then shows?

CERO values a rollout by the posterior expected Bernoulli variance (arXiv 2606.05606). If that
prediction does not rank what is observed, the allocation rests on nothing; so every step reports
the rank correlation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average ranks, ties shared."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]


def rank_correlation(
    predicted: npt.NDArray[np.float64], observed: npt.NDArray[np.float64]
) -> float:
    """Spearman's rho of two [G] vectors; nan with fewer than three groups or where one side is
    constant."""
    if predicted.size < 3:
        return float("nan")
    x, y = _ranks(predicted), _ranks(observed)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def observed_variance(
    successes: npt.NDArray[np.float64],
    trials: npt.NDArray[np.int64],
    squares: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float64]:
    """Unbiased variance of the rewards, (n q - s^2) / (n (n-1)), of groups of n >= 2 with sums of
    rewards s and of their squares q; [G]. Without q for binary rewards, where q = s."""
    second = successes if squares is None else squares
    return (trials * second - successes * successes) / (trials * (trials - 1.0))


def premise_correlation(
    value: npt.NDArray[np.float64],
    successes: npt.NDArray[np.float64],
    trials: npt.NDArray[np.int64],
    squares: npt.NDArray[np.float64] | None = None,
) -> float:
    """Rank correlation of the predicted worth with the variance observed in the same groups; groups
    of one are left out."""
    usable = trials >= 2
    observed = observed_variance(
        successes[usable], trials[usable], None if squares is None else squares[usable]
    )
    return rank_correlation(value[usable], observed)
