"""The posterior as a critic: what a prompt's earlier rollouts say about its next rewards, as their
baseline.

In: sums of rewards of each step's groups, the same on every rank. Out: for every group the mean m
and the strength k (in rollouts) of a prior of its success rate, and from these the baseline of each
rollout j, which never sees the reward it is subtracted from (leave-one-out):

    b_j = (k m + sum of the group's other rewards) / (k + n - 1)

so a group of any size teaches, one rollout included, and so does a group whose rewards are all
equal. k = 0 is the leave-one-out mean of the group (RLOO), k = infinity is m alone (SPO, arXiv
2509.13232). Shrinkage toward a pool's prior: EBPO, arXiv 2602.05165, and James-Stein baselines,
arXiv 2511.03710. Ours: one memory for all of it, from which strength and forgetting are read off.

The memory of a prompt fades with the policy's drift since it was last seen, measured as the length
of the optimizer's path, in updates at the full learning rate. Several half-lives are kept side by
side, and the one whose predictions came closest is used. A prompt's prior is its cell's mean, a
cell's is the pool's; both are of the recent past and leave out the group in question. Strengths
come from the evidence: for Beta-distributed rates a + b = E[p (1-p)] / Var(p), and both have
unbiased estimates from groups of two or more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids, StateDict, require
from cero_rl.scheduler.state import read_array, read_scalar

HALF_LIVES = (8.0, 32.0, 128.0, 512.0, math.inf)  # of a prompt's memory, in updates
RECENT = 32.0  # half-life of cells, pool and errors, in updates
CELL_STRENGTH = 8.0  # rollouts that the pool's mean counts for in a cell
FIRST_STRENGTH = 2.0  # of a prior before there is evidence on it
FIRST_PAIRS = 64.0  # pairs of rewards that this first guess counts for
FIRST_VARIANCE = 0.15  # p (1-p) of these
STRENGTHS = (0.25, 64.0)  # bounds


@dataclass(frozen=True, slots=True)
class CriticOptions:
    """strength: rollouts that a prior counts for; half_life: updates after which a prompt's
    evidence counts half. None: from the evidence. Raises ValueError."""

    strength: float | None = None
    half_life: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("strength", self.strength), ("half_life", self.half_life)):
            require(
                value is None or value > 0.0,
                f"{name} = {value}, wanted a number above 0, or None: from the evidence",
            )


@dataclass(frozen=True, slots=True)
class GroupSums:
    """Of a step's groups over all ranks: rewards that came, any finite range. Distinct prompts."""

    prompt_ids: Ids  # i64[G]
    sums: Floats  # f64[G]
    squares: Floats  # f64[G] sums of squared rewards
    counts: Ids  # i64[G] rollouts with a reward


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is expected of a step's groups before their own rewards are looked at."""

    prompt_ids: Ids  # i64[G]
    mean: Floats  # f64[G]
    strength: Floats  # f64[G] rollouts that it counts for
    prior: Floats  # f64[G] mean of a prompt never seen in its place
    seen: Floats  # f64[G] rollouts of the prompt's own memory, faded
    by_half_life: Floats  # f64[H, G] means under each half-life

    def rows(self, prompt_ids: Ids) -> tuple[Floats, Floats]:
        """(mean, strength) of some of the groups."""
        order = np.argsort(self.prompt_ids, kind="stable")
        at = order[np.searchsorted(self.prompt_ids, prompt_ids, sorter=order)]
        return self.mean[at], self.strength[at]


def leave_one_out(
    rewards: npt.NDArray[np.float64], offsets: Ids, mean: Floats, strength: Floats
) -> Floats:
    """Baseline f64[R] of every rollout from the other rewards of its group and the group's prior:
    rewards f64[R], offsets i64[G+1], mean and strength f64[G]."""
    sizes = np.diff(offsets)
    group = np.repeat(np.arange(sizes.size), sizes)
    sums = np.bincount(group, weights=rewards, minlength=sizes.size)
    prior, count = strength[group], sizes[group] - 1.0
    return (prior * mean[group] + sums[group] - rewards) / (prior + count)


class PosteriorCritic:
    """The memory of a pool of P prompts. `predict`, then `observe`, then `advance` for every step,
    with the same sums on every rank. cells i64[P]: prompts that predict each other; None: all."""

    def __init__(
        self, num_prompts: int, options: CriticOptions, cells: npt.ArrayLike | None = None
    ) -> None:
        self.options = options
        labels = np.zeros(num_prompts, np.int64) if cells is None else np.asarray(cells)
        require(
            labels.shape == (num_prompts,) and labels.dtype.kind in "iu",
            f"cells: got shape {labels.shape} of {labels.dtype}, wanted integers [{num_prompts}]",
        )
        self._cell: Ids = np.unique(labels, return_inverse=True)[1].astype(np.int64)
        lives = HALF_LIVES if options.half_life is None else (options.half_life,)
        self._lives: Floats = np.array(lives)
        self._sums = np.zeros((len(lives), num_prompts))
        self._counts = np.zeros((len(lives), num_prompts))
        self._clock = 0.0  # updates at the full learning rate
        self._seen_at = np.zeros(num_prompts)
        self._cells = np.zeros((2, int(self._cell.max(initial=0)) + 1))  # sums, counts
        self._misses = np.zeros(len(lives))  # squared errors of each half-life's predictions
        within = FIRST_PAIRS * FIRST_VARIANCE
        # p (1-p); (p - prior)^2; expected and found (p - mean)^2
        self._errors: Floats = np.array([within, within / FIRST_STRENGTH, 1.0, 1.0])
        self._errors[2:] *= within / FIRST_STRENGTH

    @property
    def prior_strength(self) -> float:
        """Rollouts that a cell's mean counts for on one of its prompts."""
        if self.options.strength is not None:
            return self.options.strength
        return float(np.clip(self._errors[0] / max(self._errors[1], 1e-12), *STRENGTHS))

    @property
    def _calibration(self) -> float:
        """Found over expected precision of what is predicted: below 1 where the policy moves."""
        return float(np.clip(self._errors[2] / max(self._errors[3], 1e-12), 1e-3, 1.0))

    @property
    def _best(self) -> int:
        return int(np.argmin(self._misses))

    def _priors(self, groups: GroupSums) -> Floats:
        """f64[G]: mean of the group's cell, shrunk toward the pool's, from the recent past and the
        step's other groups."""
        cell = self._cell[groups.prompt_ids]
        own = np.stack((groups.sums, groups.counts.astype(np.float64)))
        cells = self._cells.copy()
        for row, values in zip(cells, own):
            np.add.at(row, cell, values)
        pool = cells.sum(axis=1)
        sums, counts = pool[:, None] - own
        pool_mean = (sums + 0.5) / (counts + 1.0)
        sums, counts = cells[:, cell] - own
        return (sums + CELL_STRENGTH * pool_mean) / (counts + CELL_STRENGTH)

    def predict(self, groups: GroupSums) -> Prediction:
        """What these prompts' rewards were expected to be; changes nothing."""
        ids, prior = groups.prompt_ids, self._priors(groups)
        fade = np.exp2(-(self._clock - self._seen_at[ids]) / self._lives[:, None])
        sums, counts = self._sums[:, ids] * fade, self._counts[:, ids] * fade
        weight = self.prior_strength
        means = (weight * prior + sums) / (weight + counts)
        best = self._best
        if self.options.strength is None:
            strength = np.clip(self._calibration * (weight + counts[best]), *STRENGTHS)
        else:
            strength = np.full(ids.size, self.options.strength)
        return Prediction(ids, means[best], strength, prior, counts[best], means)

    def observe(self, groups: GroupSums, predicted: Prediction) -> None:
        """Learn from a step's groups, whose prediction was `predicted`."""
        there = groups.counts > 0
        ids, sums = groups.prompt_ids[there], groups.sums[there]
        counts = groups.counts[there].astype(np.float64)
        misses = (sums / counts - predicted.by_half_life[:, there]) ** 2
        self._misses += (misses * counts).sum(axis=1)
        self._learn_errors(groups, predicted)
        fade = np.exp2(-(self._clock - self._seen_at[ids]) / self._lives[:, None])
        self._sums[:, ids] = self._sums[:, ids] * fade + sums
        self._counts[:, ids] = self._counts[:, ids] * fade + counts
        self._seen_at[ids] = self._clock
        for row, values in zip(self._cells, (sums, counts)):
            np.add.at(row, self._cell[ids], values)

    def _learn_errors(self, groups: GroupSums, predicted: Prediction) -> None:
        """How far off priors and predictions were, of groups that can tell it from luck: pairs of
        rewards are independent given p, so the mean product of (r - m) is (p - m)^2 unbiased."""
        pairs = groups.counts > 1
        n = groups.counts[pairs].astype(np.float64)
        sums, squares = groups.sums[pairs], groups.squares[pairs]
        prior, mean = predicted.prior[pairs], predicted.mean[pairs]
        within = (squares - sums**2 / n) / (n - 1.0)
        off = [
            ((sums - n * m) ** 2 - (squares - 2.0 * m * sums + n * m**2)) / (n * (n - 1.0))
            for m in (prior, mean)
        ]
        expected = within / (self.prior_strength + predicted.seen[pairs])
        found = ((n - 1.0) * np.stack((within, off[0], expected, off[1]))).sum(axis=1)
        self._errors += found

    def advance(self, updates: float) -> None:
        """The policy moved: by `updates` optimizer steps at the full learning rate."""
        self._clock += updates
        fade = 2.0 ** (-updates / RECENT)
        self._cells *= fade
        self._misses *= fade
        self._errors *= fade

    def metrics(self, predicted: Prediction) -> dict[str, float]:
        """Under the names of metrics.jsonl."""
        return {"baseline/strength": float(predicted.strength.mean()), **self.metrics_now()}

    def metrics_now(self) -> dict[str, float]:
        """Those that no prediction is needed for."""
        return {
            "baseline/half_life": float(min(self._lives[self._best], 1e9)),
            "baseline/explained": float(1.0 - self._errors[3] / max(self._errors[1], 1e-12)),
        }

    def state_dict(self) -> StateDict:
        """Free of the number of ranks."""
        return {
            "sums": self._sums.reshape(-1).copy(),
            "counts": self._counts.reshape(-1).copy(),
            "seen_at": self._seen_at.copy(),
            "cells": self._cells.reshape(-1).copy(),
            "misses": self._misses.copy(),
            "errors": self._errors.copy(),
            "clock": self._clock,
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError for a state of another pool, other cells or other half-lives."""

        def array(name: str, like: Floats) -> Floats:
            return read_array(state, name, np.float64, like.size).reshape(like.shape)

        sums, counts = array("sums", self._sums), array("counts", self._counts)
        seen_at, cells = array("seen_at", self._seen_at), array("cells", self._cells)
        misses, errors = array("misses", self._misses), array("errors", self._errors)
        self._clock = float(read_scalar(state, "clock"))
        self._sums, self._counts, self._seen_at, self._cells = sums, counts, seen_at, cells
        self._misses, self._errors = misses, errors
