"""Rivals that choose prompts from the whole pool before sampling: greedy, Thompson, preset
schedule, oracle.

In: the posterior (or, for the oracle, the true rates). Out: one wave a round, the budget spent
exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.offline import water_filling
from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.rivals.common import RivalScheduler, best, exact_greedy
from cero_rl.scheduler.sizes import BudgetSpec, Ids, NoOptions, Shared, StateDict, require
from cero_rl.scheduler.state import read_array
from cero_rl.scheduler.uniform import PromptOrder, whole_groups
from cero_rl.types import Allocation


class _Exposed(RivalScheduler[NoOptions]):
    """Keeps z, the units each prompt has had."""

    def __init__(self, spec: BudgetSpec, shared: Shared, options: NoOptions) -> None:
        super().__init__(spec, shared, options)
        self._exposure: Ids = np.zeros(spec.num_prompts, dtype=np.int64)

    def _serve(self, ids: Ids, units: Ids) -> None:
        self._exposure[ids] += units

    def _extra_state(self) -> StateDict:
        return {"exposure": self._exposure.copy()}

    def _load_extra(self, state: StateDict) -> None:
        self._exposure = read_array(state, "exposure", np.int64, self.spec.num_prompts)

    def _unit_gains(self, rate: Floats) -> Floats:
        """f64[P, Nmax] utility of the next units: exp(-c (z + l)) (1 - exp(-c)), c f64[P] in
        1/unit."""
        levels = self._exposure[:, None] + np.arange(self.spec.max_units_per_prompt)
        return np.exp(-rate[:, None] * levels) * -np.expm1(-rate)[:, None]


class GreedyScheduler(_Exposed):
    """Each round buys the units with the largest marginal utility U(q, z+1) - U(q, z) under today's
    posterior, exactly.

    Myopic: the same quota every round, no price, no look ahead.
    """

    name = "greedy"

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        quota = self._quota(units_left, rounds_left, self.spec.max_units_per_prompt)
        gains = self._unit_gains(self._utility_rate())
        units = exact_greedy(gains, quota, self._tie_rank)
        ids = best(gains[:, 0], self._tie_rank, self.spec.num_prompts)
        ids = ids[units[ids] > 0]
        return ids, units[ids]


class OracleScheduler(_Exposed):
    """Knows the true rates (`set_rates`, simulation only): re-solves the offline problem every
    round, largest deficit first.

    Each round water-fills the whole run's units (spent and remaining) under today's true worth and
    serves the prompts that are furthest below their share. With static rates this ends in the exact
    integer optimum of `offline.greedy_integer`, as long as no prompt's share exceeds Nmax units a
    round. Until told otherwise it believes the posterior.
    """

    name = "oracle"
    simulation_only = True

    def __init__(self, spec: BudgetSpec, shared: Shared, options: NoOptions) -> None:
        super().__init__(spec, shared, options)
        self._true_worth: Floats | None = None
        self._solved: tuple[Floats, int, Ids] | None = None  # the last problem and its target

    def set_rates(self, rates: npt.ArrayLike) -> None:
        """The success rates f64[P] of the round to come."""
        p = np.asarray(rates, dtype=np.float64)
        self._true_worth = p * (1.0 - p)

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        spec, most = self.spec, self.spec.max_units_per_prompt
        worth = self._value if self._true_worth is None else self._true_worth
        rate = (4.0 * self.saturation * spec.num_prompts / spec.budget_units) * worth
        quota = self._quota(units_left, rounds_left, most)
        target = self._integer_target(rate, units_left + int(self._exposure.sum()))
        deficit = np.clip(target - self._exposure, 0, most)
        if int(deficit.sum()) < quota:  # rates moved: what is left goes to the best next units
            gains = self._unit_gains(rate)
            gains[np.arange(most) < deficit[:, None]] = np.inf
            units = exact_greedy(gains, quota, self._tie_rank)
        else:
            need = (target - self._exposure)[:, None] - np.arange(most)
            units = exact_greedy(np.where(need > 0, need, -np.inf), quota, self._tie_rank)
        ids = best((target - self._exposure).astype(np.float64), self._tie_rank, spec.num_prompts)
        ids = ids[units[ids] > 0]
        return ids, units[ids]

    def _integer_target(self, rate: Floats, total: int) -> Ids:
        """Integer optimum of the whole run: the floor of the water-filled shares, less a unit, then
        exact greedy around it."""
        if (
            self._solved is not None
            and self._solved[1] == total
            and np.array_equal(self._solved[0], rate)
        ):
            return self._solved[2]
        share = np.floor(water_filling(rate, total, float(total))).astype(np.int64)
        base = np.maximum(share - 1, 0)
        gains = np.exp(-rate[:, None] * (base[:, None] + np.arange(3))) * -np.expm1(-rate)[:, None]
        target = base + exact_greedy(gains, total - int(base.sum()), self._tie_rank)
        self._solved = rate, total, target
        return target


@dataclass(frozen=True, slots=True)
class ThompsonOptions:
    first_rollouts: int | None = None  # group of a prompt never seen; None: a whole group

    def __post_init__(self) -> None:
        require(
            self.first_rollouts is None or self.first_rollouts >= 1,
            f"first_rollouts = {self.first_rollouts}, wanted an integer >= 1 or None",
        )


class ThompsonScheduler(RivalScheduler[ThompsonOptions]):
    """Ours: draw a success rate from every prompt's posterior, serve the largest p(1-p), a whole
    group (Nmax units) each.

    Thompson sampling explores by the draw, so it needs neither price nor utility; forgetting < 1
    lets it return to prompts that a moving policy has changed. With `first_rollouts` a prompt of
    which no rollout was judged yet gets a smaller group.
    """

    name = "thompson"

    def __init__(self, spec: BudgetSpec, shared: Shared, options: ThompsonOptions) -> None:
        super().__init__(spec, shared, options)
        self._seen: npt.NDArray[np.bool_] = np.zeros(spec.num_prompts, dtype=bool)

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        group = self.spec.max_units_per_prompt
        quota = self._quota(units_left, rounds_left, group)
        drawn = self._draws().beta(self.posterior.a, self.posterior.b)
        first = (
            group
            if self.options.first_rollouts is None
            else self._units(self.options.first_rollouts)
        )
        wanted = min(-(-quota // first), self.spec.num_prompts)
        worth = drawn * (1.0 - drawn)
        if self._unjudged.any:
            worth *= self._unjudged.factor(self.posterior)
        ids = best(worth, self._tie_rank, wanted)
        sizes = np.where(self._seen[ids], group, first)
        before = np.cumsum(sizes) - sizes
        sizes = np.clip(quota - before, 0, sizes)
        return ids[sizes > 0], _topped_up(sizes[sizes > 0], quota, group)

    def warm_start(self, successes: npt.ArrayLike, failures: npt.ArrayLike) -> None:
        super().warm_start(successes, failures)
        self._seen |= np.asarray(successes) + np.asarray(failures) >= 1.0

    def _learn(self, allocation: Allocation, wins: Floats, tries: Ids) -> None:
        self._seen[allocation.prompt_ids[tries > 0]] = True

    def _extra_state(self) -> StateDict:
        return {"seen": self._seen.copy()}

    def _load_extra(self, state: StateDict) -> None:
        self._seen = read_array(state, "seen", np.bool_, self.spec.num_prompts)


def _topped_up(units: Ids, quota: int, group: int) -> Ids:
    """Where the whole pool in small groups does not hold the quota, fill the groups up in order."""
    room = group - units
    return units + np.clip(quota - int(units.sum()) - (np.cumsum(room) - room), 0, room)


@dataclass(frozen=True, slots=True)
class PresetOptions:
    shape: Literal["rising", "falling", "bell"] = "falling"  # of a round's budget over the run

    def __post_init__(self) -> None:
        require(
            self.shape in ("rising", "falling", "bell"),
            f"shape = {self.shape!r}, wanted 'rising', 'falling' or 'bell'",
        )


class PresetScheduler(RivalScheduler[PresetOptions]):
    """A budget schedule fixed in advance: round k of K gets a share of weight k+1, K-k or min(k+1,
    K-k); prompts uniform.

    Needs capacity_rollouts above the equal share, or every round is full and the shape is flat.
    Spends exactly. The shapes are ours.
    """

    name = "preset"

    def __init__(self, spec: BudgetSpec, shared: Shared, options: PresetOptions) -> None:
        super().__init__(spec, shared, options)
        self._prompts = PromptOrder(spec.num_prompts, self.seed)

    def _weights(self, first_round: int) -> Floats:
        k = np.arange(first_round, self.spec.rounds)
        up, down = k + 1.0, self.spec.rounds - k + 0.0
        return {"rising": up, "falling": down, "bell": np.minimum(up, down)}[self.options.shape]

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        group, capacity = self.spec.max_units_per_prompt, self.spec.capacity_units
        weights = self._weights(self._round)
        wanted = int(units_left * weights[0] / weights.sum()) // group * group
        total = min(max(wanted, units_left - (rounds_left - 1) * capacity), units_left, capacity)
        units = whole_groups(total, group)
        return self._prompts.take(units.shape[0]), units

    def _extra_state(self) -> StateDict:
        return self._prompts.state()

    def _load_extra(self, state: StateDict) -> None:
        self._prompts.load(state)
