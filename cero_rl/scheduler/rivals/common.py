"""What the rivals share: options as frozen records, the even share of the budget, and exact
integer allocation.

In: sizes (BudgetSpec), what every rival is told (Shared), its own options. Out:
BudgetedSchedulers, see budgeted.py for the protocol.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Generic, TypeVar

import numpy as np

from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import BudgetSpec, Ids, Scalar, Shared, require
from cero_rl.scheduler.uniform import NOBODY, PromptOrder, even_share

EXPLORE = 0.01  # least chance of a prompt that a rule would skip
_TIES, _DRAWS = 0x71E5, 0xD4A3  # tags that keep the streams of one seed apart


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """Rivals that share a round's rollouts out over a batch: the batch has quota /
    group_rollouts prompts."""

    # rollouts of a prompt on average, i.e. the group that uniform sampling would give
    group_rollouts: int = 8
    min_rollouts: int = 2  # every prompt of the batch gets at least this many

    def __post_init__(self) -> None:
        require(
            1 <= self.min_rollouts <= self.group_rollouts,
            f"min_rollouts = {self.min_rollouts}, group_rollouts = {self.group_rollouts}: "
            "wanted 1 <= min_rollouts <= group_rollouts",
        )


OptionsT = TypeVar("OptionsT")


class RivalScheduler(BudgetedScheduler, Generic[OptionsT]):
    """A BudgetedScheduler with options, tie-breaking and per-round randomness that are functions
    of the seed alone."""

    sizes_vary = False  # does the rule need groups of different sizes?

    def __init__(self, spec: BudgetSpec, shared: Shared, options: OptionsT) -> None:
        require(
            not self.sizes_vary or spec.max_units_per_prompt >= 2,
            f"scheduler {self.name!r} sizes groups per prompt, but max_units_per_prompt = 1 "
            "leaves no choice; set e.g. rollouts_per_unit = 2 and max_units_per_prompt = 16",
        )
        super().__init__(spec, shared)
        self.saturation = shared.saturation
        self.options = options
        self._tie_rank: Ids = np.random.default_rng([self.seed, _TIES]).permutation(
            spec.num_prompts
        )

    def _draws(self) -> np.random.Generator:
        """This round's randomness: a function of (seed, round), so that a resumed run repeats
        it."""
        return np.random.default_rng([self.seed, _DRAWS, self._round])

    def _quota(self, units_left: int, rounds_left: int, group: int = 1) -> int:
        return even_share(units_left, rounds_left, self.spec.capacity_units, group)

    def _units(self, rollouts: int) -> int:
        """Units that hold `rollouts`, rounded up, and no more than a prompt may get."""
        return min(-(-rollouts // self.spec.rollouts_per_unit), self.spec.max_units_per_prompt)

    def _utility_rate(self) -> Floats:
        """f64[P] c in 1/unit under today's posterior: slope of the surrogate utility 1 - exp(-c
        z) at exposure 0."""
        return (
            4.0 * self.saturation * self.spec.num_prompts / self.spec.budget_units
        ) * self._value

    def _lost(self) -> Floats:
        """f64[P] in [0, 1): how likely the next rollout of a prompt is to come back without a
        reward, less a hundredth, so that every prompt is tried again; 0 while nothing is
        missing."""
        return np.minimum(1.0 - self._unjudged.factor(self.posterior), 1.0 - EXPLORE)

    def _unskipped(self, prompts: PromptOrder, wanted: int, skip: Floats) -> Ids:
        """i64[wanted] of the next prompts: the turn of prompt i passes with chance skip[i], f64[P].
        If too few of the pool are left, the first skipped ones fill up."""
        pool = self.spec.num_prompts
        draw = self._draws().random(pool)
        chosen, skipped = NOBODY, NOBODY
        while chosen.size < wanted and chosen.size + skipped.size < pool:
            used = np.concatenate((chosen, skipped))
            fresh = prompts.take(min(wanted - chosen.size, pool - used.size), used)
            passed = draw[fresh] < skip[fresh]
            chosen = np.concatenate((chosen, fresh[~passed]))
            skipped = np.concatenate((skipped, fresh[passed]))
        return np.concatenate((chosen, skipped[: wanted - chosen.size]))

    def _identity(self) -> dict[str, Scalar]:
        options = asdict(self.options)  # pyright: ignore[reportArgumentType]
        own: dict[str, Scalar] = {f"option_{key}": _scalar(value) for key, value in options.items()}
        return {**super()._identity(), "saturation": self.saturation, **own}


def _scalar(value: object) -> Scalar:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def best(score: Floats, tie_rank: Ids, count: int) -> Ids:
    """i64[min(count, n)] positions of the largest scores f64[n], best first, equal scores by
    lower tie_rank i64[n]."""
    if count < score.shape[0]:
        cut = (
            np.partition(score, score.shape[0] - count)[score.shape[0] - count] if count else np.inf
        )
        candidates = np.flatnonzero(score >= cut)
    else:
        candidates = np.arange(score.shape[0])
    order = candidates[np.lexsort((tie_rank[candidates], -score[candidates]))]
    return order[:count]


def exact_greedy(gains: Floats, budget: int, tie_rank: Ids) -> Ids:
    """i64[n] units that maximise sum_i sum_{l < units_i} gains[i, l] with sum units =
    min(budget, n*L).

    gains f64[n, L] are what the next units of each prompt add; every row must not increase, then
    buying the best unit again and again is optimal. Here all at once: everything above the
    budget-th largest gain, and of the units equal to it the lower levels first, then the lower
    tie_rank i64[n], so that worthless units are spread evenly.
    """
    prompts, levels = gains.shape
    if budget >= prompts * levels:
        return np.full(prompts, levels, dtype=np.int64)
    if budget <= 0:
        return np.zeros(prompts, dtype=np.int64)
    cut = np.partition(gains, prompts * levels - budget, axis=None)[prompts * levels - budget]
    units = np.count_nonzero(gains > cut, axis=1).astype(np.int64)
    row, level = np.nonzero(gains == cut)
    chosen = np.lexsort((tie_rank[row], level))[: budget - int(units.sum())]
    return units + np.bincount(row[chosen], minlength=prompts)


def clip_units(ids: Ids, units: Ids, left: int) -> tuple[Ids, Ids]:
    """The plan cut to `left` units in its order, empty entries dropped."""
    kept = np.clip(left - (np.cumsum(units) - units), 0, units)
    return ids[kept > 0], kept[kept > 0]
