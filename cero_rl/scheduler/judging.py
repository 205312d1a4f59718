"""Prompts whose rollouts come back without a reward: how likely the next one is to be judged. Ours.

In: of each round's groups, the rollouts that were generated and those that have a reward. Out: a
factor in (0, 1] per prompt, exactly 1 for a prompt of which nothing is missing. A rollout teaches
only if it is judged, so

    worth of a rollout = factor * worth of a judged one,    factor = (2 + judged) / (2 + judged + u)

the mean of Beta(2 + judged, u): certain until shown otherwise, and two lost rollouts show little. u
is the number of rollouts without a reward, each weighed by the share of the round's other rollouts
that were judged: where a verifier failed for all, that says nothing of a prompt. Without the factor
a prompt that is never judged keeps the prior's uncertainty, and with it the worth of the best, for
ever.
"""

from __future__ import annotations

import numpy as np

from cero_rl.scheduler.pool import PoolChange
from cero_rl.scheduler.posterior import BetaPosterior, Floats
from cero_rl.scheduler.sizes import Ids, StateDict
from cero_rl.scheduler.state import read_array

_SURE = 2.0  # rollouts that a prompt counts as judged in advance
_SET_ASIDE = 0.5  # a factor below it: the next rollout is more likely lost than judged


def missing_weight(generated: Ids, judged: Ids) -> Floats:
    """f64[G]: what one rollout without a reward of each group counts, from a round's counts [G]."""
    others = generated.sum() - generated
    return (judged.sum() - judged + 1.0) / (others + 1.0)


def judged_share(judged: Floats | Ids, unjudged: Floats | Ids) -> Floats:
    """The factor of the module's docstring, f64[n]."""
    return (_SURE + judged) / (_SURE + judged + unjudged)


class Unjudged:
    """Rollouts without a reward of a pool of P. Nothing is stored while nothing is missing."""

    def __init__(self, num_prompts: int) -> None:
        self._pool = num_prompts
        self._rollouts: Ids | None = None  # [P] as they were counted
        self._weight: Floats = np.empty(0)  # [P] as they count, fading with the evidence

    @property
    def any(self) -> bool:
        """Was there one, ever?"""
        return self._rollouts is not None

    @property
    def rollouts(self) -> Ids:
        """i64[P] copy: generated and not judged, since the run began."""
        return (
            np.zeros(self._pool, dtype=np.int64) if self._rollouts is None else self._rollouts + 0
        )

    def add(self, ids: Ids, rollouts: Ids, weight: Floats) -> None:
        """`rollouts` i64[G] of distinct prompts, which together count `weight` f64[G]; less than 0
        takes back."""
        if self._rollouts is None:
            if not rollouts.any():
                return
            self._rollouts = np.zeros(self._pool, dtype=np.int64)
            self._weight = np.zeros(self._pool)
        self._rollouts[ids] += rollouts
        self._weight[ids] = np.maximum(self._weight[ids] + weight, 0.0)

    def forget(self, forgetting: float) -> None:
        """As the posterior forgets its evidence."""
        self._weight *= forgetting

    def factor(self, posterior: BetaPosterior, ids: Ids | None = None) -> Floats:
        """Of the prompts `ids`, or of all."""
        prior = posterior.prior[0] + posterior.prior[1]
        judged = posterior.a + posterior.b - prior
        if not self.any:
            return np.ones(self._pool if ids is None else ids.shape[0])
        if ids is None:
            return judged_share(judged, self._weight)
        return judged_share(judged[ids], self._weight[ids])

    def set_aside(self, posterior: BetaPosterior) -> Ids:
        """Prompts, rising, whose next rollout is more likely lost than judged."""
        if not self.any:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(self.factor(posterior) < _SET_ASIDE)

    def carried(self, change: PoolChange) -> Unjudged:
        """Over another pool."""
        fresh = Unjudged(change.size)
        if self._rollouts is not None:
            fresh._rollouts = change.carry(self._rollouts, fresh.rollouts)
            fresh._weight = change.carry(self._weight, np.zeros(change.size))
        return fresh

    def state(self) -> StateDict:
        """Empty arrays while nothing is missing."""
        rollouts = np.empty(0, dtype=np.int64) if self._rollouts is None else self._rollouts.copy()
        return {"unjudged_rollouts": rollouts, "unjudged_weight": self._weight.copy()}

    @classmethod
    def read(cls, state: StateDict, num_prompts: int) -> Unjudged:
        """The inverse of `state`. Raises ValueError for a damaged one."""
        read = cls(num_prompts)
        rollouts = read_array(state, "unjudged_rollouts", np.int64, None)
        if rollouts.shape[0]:
            rollouts = read_array(state, "unjudged_rollouts", np.int64, num_prompts)
        weight = read_array(state, "unjudged_weight", np.float64, rollouts.shape[0])
        if not bool((rollouts >= 0).all() and np.isfinite(weight).all() and (weight >= 0.0).all()):
            raise ValueError("scheduler state is damaged: unjudged rollouts must be >= 0")
        if rollouts.shape[0]:
            read._rollouts, read._weight = rollouts, weight
        return read
