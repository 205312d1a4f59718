"""Rivals that share a round's rollouts out over a batch before sampling: Knapsack, VIP, GVM and
hit utility.

A batch is the next quota / group_rollouts prompts of the shuffled order (as in those papers: the
data loader picks prompts, the rule only sizes their groups). Every rule is a sum over prompts of
a value that is concave in the group size, so the integer optimum is found exactly by greedy.
Common departures: the success rate is our running Beta posterior (the papers: last epoch's pass
rate, a Gaussian process, or pilot samples), and a unit may be more than one rollout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.rivals.common import BatchOptions, RivalScheduler, exact_greedy
from cero_rl.scheduler.sizes import BudgetSpec, Ids, Shared, StateDict, require
from cero_rl.scheduler.uniform import PromptOrder

BatchT = TypeVar("BatchT", bound=BatchOptions)


class BatchScheduler(RivalScheduler[BatchT], Generic[BatchT]):
    """Batch of the next prompts, min_rollouts each, the rest of the quota by `_gains`. Spends
    exactly."""

    sizes_vary = True

    def __init__(self, spec: BudgetSpec, shared: Shared, options: BatchT) -> None:
        super().__init__(spec, shared, options)
        self._prompts = PromptOrder(spec.num_prompts, self.seed)

    def _gains(self, ids: Ids, rollouts: Floats) -> Floats:
        """f64[G, L]: what the last unit adds when the groups of prompts i64[G] grow to
        `rollouts` f64[L] (evenly spaced)."""
        raise NotImplementedError

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        quota = self._quota(units_left, rounds_left)
        if quota == 0:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        most, least = self.spec.max_units_per_prompt, self._units(self.options.min_rollouts)
        wanted = min(
            -(-quota // self._units(self.options.group_rollouts)),
            self.spec.num_prompts,
            quota // least,
        )
        prompts = max(wanted, -(-quota // most))
        ids = self._batch(prompts)
        # a rump of the budget that no batch of legal groups holds: shared evenly
        if quota < prompts * least:
            return ids, quota // prompts + (np.arange(prompts) < quota % prompts).astype(np.int64)
        sizes = np.asarray(
            self.spec.rollouts_per_unit * np.arange(least + 1, most + 1), dtype=np.float64
        )
        gains = self._gains(ids, sizes) * self._unjudged.factor(self.posterior, ids)[:, None]
        extra = exact_greedy(gains, quota - prompts * least, self._tie_rank[ids])
        return ids, least + extra

    def _batch(self, prompts: int) -> Ids:
        """The next prompts; one whose rollouts are not judged is passed over like GRESO's."""
        if not self._unjudged.any:
            return self._prompts.take(prompts)
        return self._unskipped(self._prompts, prompts, self._lost())

    def _extra_state(self) -> StateDict:
        return self._prompts.state()

    def _load_extra(self, state: StateDict) -> None:
        self._prompts.load(state)


class KnapsackScheduler(BatchScheduler[BatchOptions]):
    """Knapsack RL (arXiv 2509.25849): group sizes N maximise sum (1 - p^N - (1-p)^N) * p
    (1-p)^2, N >= 2.

    The first factor is the chance of a group with signal, the second the value of learning a
    prompt of that rate. Departures beyond the module's: the published integer programme is
    solved exactly, and prompts never solved get no extra rule (their posterior mean is above 0).
    The published cap N <= 128 is max_units_per_prompt.
    """

    name = "knapsack"

    def _gains(self, ids: Ids, rollouts: Floats) -> Floats:
        p = self.posterior.mean()[ids][:, None]
        step = float(self.spec.rollouts_per_unit)
        alive = lambda n: 1.0 - p**n - (1.0 - p) ** n
        return (alive(rollouts) - alive(rollouts - step)) * (p * (1.0 - p) ** 2)


@dataclass(frozen=True, slots=True)
class VipOptions(BatchOptions):
    min_rollouts: int = 3
    objective: Literal["dr_grpo", "rloo"] = "dr_grpo"

    def __post_init__(self) -> None:
        BatchOptions.__post_init__(self)
        require(
            self.objective in ("dr_grpo", "rloo"),
            f"objective = {self.objective!r}, wanted 'dr_grpo' or 'rloo'",
        )
        least = 3 if self.objective == "dr_grpo" else 2
        require(
            self.min_rollouts >= least,
            f"min_rollouts = {self.min_rollouts}: {self.objective} needs >= {least}, below "
            "that its variance is not convex",
        )


class VipScheduler(BatchScheduler[VipOptions]):
    """VIP (arXiv 2602.01601): group sizes n minimise the gradient variance sum a (n-1)/n^2
    (dr_grpo) or sum a/(n-1) (rloo).

    a = p(1-p). Departures beyond the module's: the paper bisects on the price of a rollout and
    rounds greedily, here the integer optimum is exact; both agree to rounding.
    """

    name = "vip"

    def _gains(self, ids: Ids, rollouts: Floats) -> Floats:
        p = self.posterior.mean()[ids]
        step = float(self.spec.rollouts_per_unit)
        if self.options.objective == "dr_grpo":
            variance = lambda n: (n - 1.0) / n**2
        else:
            variance = lambda n: 1.0 / (n - 1.0)
        return (p * (1.0 - p))[:, None] * (variance(rollouts - step) - variance(rollouts))


@dataclass(frozen=True, slots=True)
class GvmOptions(BatchOptions):
    # the published penalty: keeps prompts that are almost never solved from taking everything
    alpha: float = 1e-3

    def __post_init__(self) -> None:
        BatchOptions.__post_init__(self)
        require(
            0.0 < self.alpha < math.inf, f"alpha = {self.alpha:g}, wanted a positive finite number"
        )


class GvmScheduler(BatchScheduler[GvmOptions]):
    """GVM (arXiv 2505.02391): n in proportion to 1/sqrt(p + alpha/p), the rule without gradient
    norms (taken as 1).

    Departures beyond the module's: the paper estimates p from 8 pilot samples of every prompt
    and rounds the proportions to the nearest integers; here the integers minimise sum w^2/n
    exactly, whose continuous solution is n in proportion to w.
    """

    name = "gvm_p"

    def _gains(self, ids: Ids, rollouts: Floats) -> Floats:
        p = self.posterior.mean()[ids]
        squared = 1.0 / (p + self.options.alpha / p)
        return squared[:, None] * (1.0 / (rollouts - self.spec.rollouts_per_unit) - 1.0 / rollouts)


class HitUtilityScheduler(BatchScheduler[BatchOptions]):
    """Hit utility (HORA, arXiv 2605.07114): group sizes maximise the expected number of prompts
    hit at least once.

    The chance that n rollouts all fail under Beta(a, b) is prod_{j<n} (b+j)/(a+b+j). Departure:
    the paper's posterior starts from Beta(1,1) and the pilots of the same step (that is the
    rival "hora"); here it is the running posterior, no pilots.
    """

    name = "hit_utility"

    def _gains(self, ids: Ids, rollouts: Floats) -> Floats:
        return hit_gains(
            self.posterior.a[ids], self.posterior.b[ids], rollouts, self.spec.rollouts_per_unit
        )


def hit_gains(a: Floats, b: Floats, rollouts: Floats, unit: int) -> Floats:
    """f64[G, L]: chance that the last `unit` of `rollouts` f64[L] (evenly spaced) bring the
    first success under Beta(a, b)."""
    j = np.arange(int(rollouts[-1])) if rollouts.size else np.empty(0)
    misses = np.cumprod((b[:, None] + j) / ((a + b)[:, None] + j), axis=1)
    # [G, n+1] all of the first n fail
    misses = np.concatenate((np.ones((a.shape[0], 1)), misses), axis=1)
    ends = rollouts.astype(np.int64)
    return misses[:, ends - unit] - misses[:, ends]
