"""GRESO-style skipping (arXiv 2506.02177): prompts whose last groups all had one outcome are
skipped at random, before sampling.

In: whether each round's groups were all right or all wrong. Out: whole groups (Nmax units) of
the next prompts of the shuffled order that were not skipped. Facts checked against the public
code of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.rivals.common import EXPLORE, RivalScheduler
from cero_rl.scheduler.sizes import BudgetSpec, Ids, Shared, StateDict, require
from cero_rl.scheduler.state import read_array, read_scalar
from cero_rl.scheduler.uniform import PromptOrder, whole_groups
from cero_rl.types import Allocation

_STEP, _LOWEST, _HIGHEST = 0.01, 0.05, 0.95


@dataclass(frozen=True, slots=True)
class GresoOptions:
    keep_start: float = 0.5  # chance that a prompt with one dead group in a row is sampled again
    # wanted share of dead groups: a third of it all right, two thirds all wrong
    target_dead: float = 0.25

    def __post_init__(self) -> None:
        require(
            0.0 < self.keep_start < 1.0,
            f"keep_start = {self.keep_start:g}, wanted a number in (0, 1)",
        )
        require(
            0.0 < self.target_dead < 1.0,
            f"target_dead = {self.target_dead:g}, wanted a number in (0, 1)",
        )


class GresoScheduler(RivalScheduler[GresoOptions]):
    """Skip a prompt with probability 1 - max(keep^z, 0.01), z = groups in a row that were all
    right (or all wrong).

    Two keep probabilities (for all right, all wrong) move by 0.01 a round towards their target
    share of dead groups, in [0.05, 0.95]. A skipped prompt's turn passes. If too few prompts of
    the pool survive, the first skipped ones fill up, so the budget is spent exactly. Departures:
    the paper refills a batch whose groups turned out dead (that is the rival "dapo"); all
    right/all wrong is exact here, the paper's code tolerates about one rollout in nine;
    adjusting starts at once, there after the first epoch; a prompt whose rollouts are not judged
    has no outcome, and is skipped with the probability of its next one being lost.
    """

    name = "greso"

    def __init__(self, spec: BudgetSpec, shared: Shared, options: GresoOptions) -> None:
        super().__init__(spec, shared, options)
        self._prompts = PromptOrder(spec.num_prompts, self.seed)
        # > 0 all right in a row, < 0 all wrong
        self._streak: Ids = np.zeros(spec.num_prompts, dtype=np.int64)
        self._keep_right = self._keep_wrong = options.keep_start

    def skip_probability(self) -> Floats:
        """f64[P] today."""
        base = np.where(self._streak > 0, self._keep_right, self._keep_wrong)
        streak = np.where(
            self._streak == 0, 0.0, 1.0 - np.maximum(base ** np.abs(self._streak), EXPLORE)
        )
        return np.maximum(streak, self._lost()) if self._unjudged.any else streak

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        group = self.spec.max_units_per_prompt
        units = whole_groups(self._quota(units_left, rounds_left, group), group)
        return self._unskipped(self._prompts, units.shape[0], self.skip_probability()), units

    def _learn(self, allocation: Allocation, wins: Floats, tries: Ids) -> None:
        known = tries > 0
        ids = allocation.prompt_ids[known]
        if ids.size == 0:
            return
        right = wins[known] == tries[known]
        wrong = wins[known] == 0.0
        streak = self._streak[ids]
        self._streak[ids] = np.where(
            right,
            np.maximum(streak, 0) + 1,
            np.where(wrong, np.minimum(streak, 0) - 1, 0),
        )
        target = self.options.target_dead
        self._keep_right = _moved(self._keep_right, right.mean() >= target / 3.0)
        self._keep_wrong = _moved(self._keep_wrong, wrong.mean() >= target * 2.0 / 3.0)

    def _extra_state(self) -> StateDict:
        keeps = {"keep_right": self._keep_right, "keep_wrong": self._keep_wrong}
        return {**self._prompts.state(), "streak": self._streak.copy(), **keeps}

    def _load_extra(self, state: StateDict) -> None:
        streak = read_array(state, "streak", np.int64, self.spec.num_prompts)
        keeps = float(read_scalar(state, "keep_right")), float(read_scalar(state, "keep_wrong"))
        self._prompts.load(state)
        self._streak, (self._keep_right, self._keep_wrong) = streak, keeps


def _moved(keep: float, too_many: bool | np.bool_) -> float:
    return max(keep - _STEP, _LOWEST) if too_many else min(keep + _STEP, _HIGHEST)
