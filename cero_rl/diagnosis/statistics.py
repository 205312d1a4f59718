"""Estimates with their standard errors: gradient noise scale, value of a group, SNR^2 gain of an
allocation. numpy alone.

In: sums, squares and inner products of group gradients. Out: `Measured`. Notation: g_i is the
gradient of group i (a step's gradient is the mean of its groups'), h the gradient of the held-out
reward, v_i = <g_i, h> the value of the group, w_i the rollouts that an allocation gives it.

Errors over groups are linearised (delta method), those of the held-out gradient and of squared
norms are jackknives over blocks; independent ones are added in squares. The noise scale is
tr(cov) / |Eg|^2 (McCandlish et al., arXiv 1812.06162, section 2), with an unbiased |Eg|^2 from
pairs of groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
CLEAR = 2.0  # standard errors from 0 that count as measured


@dataclass(frozen=True)
class Measured:
    """A number and its standard error, nan where too little was seen to tell."""

    value: float
    error: float

    @property
    def is_clear(self) -> bool:
        """More than `CLEAR` standard errors from 0."""
        return abs(self.value) > CLEAR * self.error  # nan is not


NOTHING = Measured(math.nan, math.nan)


def mean_of(values: Floats) -> Measured:
    """Of independent values [n]."""
    if not values.size:
        return NOTHING
    error = values.std(ddof=1) / math.sqrt(values.size) if values.size > 1 else math.nan
    return Measured(float(values.mean()), float(error))


def linearised(influence: Floats) -> float:
    """Standard error of a function of means whose influence of each observation is given, f64[n]
    with mean 0."""
    n = influence.shape[0]
    return float(np.sqrt((influence**2).sum() / (n * (n - 1)))) if n > 1 else math.nan


def jackknife(left_out: Floats) -> float:
    """Standard error from the estimates [B] that leave out one block each, of B alike."""
    blocks = left_out.shape[0]
    if blocks < 2:
        return math.nan
    return float(np.sqrt((blocks - 1) / blocks * ((left_out - left_out.mean()) ** 2).sum()))


def both(first: float, second: float) -> float:
    """The error of what two independent samples make uncertain."""
    return math.hypot(first, second)


# --- the noise scale


@dataclass(frozen=True)
class NoiseScale:
    """groups: batch at which signal and noise of a step are equal, nan where no signal was
    measured; at_least: what it exceeds in that case (`CLEAR` errors), else nan."""

    groups: Measured
    at_least: float
    signal: Measured  # |Eg|^2, unbiased
    power: Measured  # E|g|^2
    # of one group: signal / noise, 1 / groups; unlike groups it is defined at 0 too
    signal_to_noise: Measured


def noise_scale(gram: Floats, squares: Floats, counts: Ids) -> NoiseScale | None:
    """From blocks of groups: gram f64[B, B] of the blocks' summed gradients, squares f64[B] the
    sums of their groups' squared norms, counts i64[B]. None with fewer than three groups or two
    blocks, and where all groups have the same gradient.

    |Eg|^2 is estimated by the mean inner product of two different groups, (|S|^2 - sum |g|^2) /
    (n (n - 1)).
    """
    if counts.sum() < 3 or np.count_nonzero(counts) < 2:
        return None
    n = float(counts.sum())
    left = n - counts
    there = left > 1
    without = gram.sum() - 2 * gram.sum(axis=1) + np.diag(gram)  # |S - S_b|^2
    left_squares = squares.sum() - squares
    signal = float((gram.sum() - squares.sum()) / (n * (n - 1)))
    power = float(squares.sum() / n)
    left_power = left_squares[there] / left[there]
    left_signal = (without - left_squares)[there] / (left * (left - 1))[there]
    noise = power - signal
    if noise <= 0:
        return None
    twice = _counted_twice(gram / np.outer(counts, counts))
    ratio = signal / noise
    error = _less(jackknife(left_signal / (left_power - left_signal)), twice * power / noise**2)
    one = Measured(ratio, error)
    groups = NOTHING
    at_least = math.nan
    if one.is_clear and ratio > 0:
        groups = Measured(1 / ratio, error / ratio**2)
    elif (top := ratio + CLEAR * error) > 0:
        at_least = 1 / top
    return NoiseScale(
        groups,
        at_least,
        Measured(signal, _less(jackknife(left_signal), twice)),
        Measured(power, jackknife(left_power)),
        one,
    )


def _counted_twice(products: Floats) -> float:
    """The square root of what the jackknife over blocks adds to the variance of a mean over pairs:
    the part that belongs to the pair alone counts twice in it (Efron and Stein, 1981). products
    f64[B, B] of the blocks' means; off the diagonal they are taken as mean + block + block + pair.
    """
    blocks = len(products)
    if blocks < 4:
        return 0.0
    rows = (products.sum(axis=1) - np.diag(products)) / (blocks - 1)
    of_block = (rows - rows.mean()) * (blocks - 1) / (blocks - 2)
    pair = products - rows.mean() - of_block[:, None] - of_block
    np.fill_diagonal(pair, 0.0)
    variance = (pair**2).sum() / (blocks * (blocks - 3))
    return math.sqrt(2 * variance / ((blocks - 1) * (blocks - 2)))


def _less(error: float, twice: float) -> float:
    """A jackknife's error without what it counts twice, which is half of it at most."""
    return math.sqrt(max(error**2 - twice**2, error**2 / 2))


@dataclass(frozen=True)
class Regime:
    """How a step of so many groups stands to the noise, and what `gain` times the signal a rollout
    then brings (efficiency of an Adam step: sqrt(x / (1 + x)) at a fixed rate, x / (1 + x) at the
    best one)."""

    batch_over_noise: Measured  # x
    name: str  # noise-limited, signal-limited or between
    exponent_fixed_rate: float  # d log progress / d log gain
    exponent_tuned_rate: float


def regime_of(noise: NoiseScale, batch_groups: float) -> Regime:
    one = noise.signal_to_noise
    x = Measured(batch_groups * one.value, batch_groups * one.error)
    at = max(x.value, 0.0)
    low, high = at - CLEAR * x.error, at + CLEAR * x.error
    name = "noise-limited" if high < 1 else "signal-limited" if low > 1 else "between"
    return Regime(x, name, 0.5 / (1 + at), 1 / (1 + at))


def progress(gain: float, x: float) -> tuple[float, float, float]:
    """By what factor a run gets further a rollout when the SNR^2 of a rollout is `gain` times as
    high: at a fixed learning rate; at a rate tuned anew; with the live signal of a step held, so
    that the same batch of rollouts makes `gain` times the steps."""
    if not gain > 0:
        return math.nan, math.nan, math.nan
    x = max(x, 0.0)
    tuned = gain * (1 + x) / (1 + gain * x)
    return math.sqrt(tuned), tuned, gain


# --- the value of a group


@dataclass(frozen=True)
class Values:
    """Inner products f64[N, K] of each group's gradient with the mean held-out gradient of each of
    K folds, and the share f64[K] of the held-out prompts in each fold."""

    products: Floats
    share: Floats

    @property
    def whole(self) -> Floats:
        """f64[N]: with the gradient of all held-out prompts."""
        return self.products @ (self.share / self.share.sum())

    def without_fold(self) -> Floats:
        """f64[K, N]: with the gradient of all folds but one."""
        folds = self.share.shape[0]
        keep = (1.0 - np.eye(folds)) * self.share
        return (self.products @ (keep / keep.sum(axis=1, keepdims=True)).T).T

    def of(self, rows: npt.NDArray[np.bool_]) -> Values:
        return Values(self.products[rows], self.share)


def mean_value(values: Values) -> Measured:
    """Of the pool's groups, each prompt alike."""
    inner = mean_of(values.whole)
    if values.share.shape[0] < 2:
        return Measured(inner.value, math.nan)
    return Measured(inner.value, both(inner.error, jackknife(values.without_fold().mean(axis=1))))


def relative_value(values: Values, member: npt.NDArray[np.bool_]) -> Measured:
    """Mean value of the groups of `member` bool[N] over the mean value of all."""
    v = values.whole
    inside = member.mean()
    if not inside or v.mean() == 0:
        return NOTHING
    ratio = v[member].mean() / v.mean()
    influence = np.where(member, v - v[member].mean(), 0.0) / inside / v.mean()
    influence -= ratio * (v - v.mean()) / v.mean()
    left = values.without_fold()
    with np.errstate(divide="ignore", invalid="ignore"):
        of_folds = jackknife(left[:, member].mean(axis=1) / left.mean(axis=1))
    return Measured(float(ratio), both(linearised(influence), of_folds))


# --- allocations


@dataclass(frozen=True)
class Gain:
    """An allocation against uniform: value and noise of a rollout, and value^2 / noise."""

    value: float
    noise: float
    snr: Measured
    support: float  # (sum w)^2 / (N sum w^2): share of the pool that it lives on


def _snr(worth: Floats, v: Floats, squares: Floats) -> float:
    weighted = (worth * v).mean() / (worth.mean() * v.mean())
    return float(weighted**2 * worth.mean() * squares.mean() / (worth * squares).mean())


def allocation_gain(worth: Floats, values: Values, squares: Floats) -> Gain | None:
    """SNR^2 of a batch whose groups are drawn in proportion to worth f64[N], over that of a uniform
    one. squares f64[N]: squared norms of the groups' gradients. None where it cannot be told.

    worth must come from other samples than values and squares: then sums of products are unbiased
    in both, and an unbiased worth stands for the true one.
    """
    v = values.whole
    means = (worth.mean(), v.mean(), squares.mean(), (worth * v).mean(), (worth * squares).mean())
    if len(v) < 2 or any(m == 0 for m in means):
        return None
    w, m, q, wv, wq = means
    gain = _snr(worth, v, squares)
    influence = 2 * (worth * v / wv - v / m) + squares / q - worth / w - worth * squares / wq + 1
    of_groups = abs(gain) * linearised(influence)
    of_folds = 0.0  # a held-out gradient in one piece is taken as known
    if values.share.shape[0] > 1:
        of_folds = jackknife(
            np.array([_snr(worth, left, squares) for left in values.without_fold()])
        )
    return Gain(
        float(wv / (w * m)),
        float(wq / (w * q)),
        Measured(gain, both(of_groups, of_folds)),
        float(worth.sum() ** 2 / (len(v) * (worth**2).sum())),
    )


def gain_of_labels(worth: Floats, values: Values, squares: Floats, labels: Ids) -> Gain | None:
    """`allocation_gain` of worth times the label's value per worth, learnt from the other half of
    the groups and the other half of the held-out folds: what knowing the labels' values adds.
    Labels of no value get nothing. None where it cannot be told."""
    folds = np.arange(values.share.shape[0])
    if len(folds) < 4 or len(worth) < 4:
        return None
    half = np.arange(len(worth)) % 2
    tried = [_crossed(worth, values, labels, half, folds % 2)]
    for left in folds:
        some = Values(values.products[:, folds != left], values.share[folds != left])
        tried.append(_crossed(worth, some, labels, half, folds[folds != left] % 2))
    if any(weight is None for weight, _ in tried):
        return None
    whole = allocation_gain(tried[0][0], Values(tried[0][1][:, None], np.ones(1)), squares)
    if whole is None:
        return None
    of_folds = jackknife(np.array([_snr(weight, v, squares) for weight, v in tried[1:]]))
    return replace(whole, snr=Measured(whole.snr.value, both(whole.snr.error, of_folds)))


def _crossed(worth: Floats, values: Values, labels: Ids, half: Ids, fold_half: Ids) -> Any:
    """(worth times the label's value f64[N], or None where no label has any; v f64[N] from folds
    that the weights have not seen)."""
    weight, seen = np.zeros_like(worth), np.zeros_like(worth)
    for own in (0, 1):
        learn, judge = fold_half == own, fold_half != own
        by_fold = values.products * values.share
        learnt = by_fold[:, learn].sum(axis=1) / values.share[learn].sum()
        judged = by_fold[:, judge].sum(axis=1) / values.share[judge].sum()
        others, mine = half != own, half == own
        size = int(labels.max()) + 1
        value = np.bincount(labels[others], weights=learnt[others], minlength=size)
        per = np.bincount(labels[others], weights=worth[others], minlength=size)
        rate = np.maximum(np.divide(value, per, out=np.zeros(size), where=per > 0), 0.0)
        part = worth[mine] * rate[labels[mine]]
        if not part.sum() > 0:
            return None, seen
        weight[mine], seen[mine] = part / part.mean(), judged[mine]
    return weight, seen


# --- transfer


@dataclass(frozen=True)
class Transfer:
    """Gains in pass rate since the start on training and on held-out prompts of the same stratum
    (weights: the training prompts of it); covered: share of the training prompts in strata that
    both sides have."""

    train: Measured
    heldout: Measured
    ratio: Measured  # held-out over train
    covered: float
    strata: int


def transfer(
    train_stratum: Ids, train_gain: Floats, heldout_stratum: Ids, heldout_gain: Floats
) -> Transfer | None:
    """Strata by number, of each prompt; gain: pass rate at the end less that at the start, from
    other samples than the stratum, else the return to the mean is counted as learning. None where
    no stratum has two prompts on both sides."""
    rows = []
    for stratum in np.unique(train_stratum):
        sides = train_gain[train_stratum == stratum], heldout_gain[heldout_stratum == stratum]
        if min(len(side) for side in sides) > 1:
            rows.append((len(sides[0]), *map(mean_of, sides)))
    if not rows:
        return None
    weight = np.array([count for count, _, _ in rows], dtype=np.float64)
    covered = weight.sum() / len(train_stratum)
    weight /= weight.sum()

    def together(side: int) -> Measured:
        means = np.array([row[side].value for row in rows])
        errors = np.array([row[side].error for row in rows])
        return Measured(float(weight @ means), float(np.sqrt((weight**2) @ errors**2)))

    train, heldout = together(1), together(2)
    ratio = NOTHING
    if train.is_clear:
        value = heldout.value / train.value
        ratio = Measured(value, both(heldout.error, value * train.error) / abs(train.value))
    return Transfer(train, heldout, ratio, float(covered), len(rows))
