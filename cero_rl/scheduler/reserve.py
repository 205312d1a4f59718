"""Rollouts that a round sets aside before it is planned: a probe set that never trains, and a floor
of exploration against starvation. Ours.

In: the budget's fair share of a round, and the round's index. Out: prompts and units that come
first in the plan, and which prompts the rest of it leaves out.

Probes (probe_share of each cell's prompts, drawn from the seed) are looked at in turn, one unit at
a time, with probe_share of the budget. They train nothing, so that their success stays a meter of
what training on others brings (direction.py) when every other prompt has been looked at.

The floor (explore_share of the budget) goes to the prompts looked at longest ago, those never
looked at first, ties as in the plan. What is known of a prompt grows old while the policy moves,
and nothing else makes sure that it is ever looked at again: with a share e and groups of n, every
prompt is after P n K / (e B) rounds.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.plan import largest
from cero_rl.scheduler.pool import PoolChange
from cero_rl.scheduler.sizes import Ids, StateDict
from cero_rl.scheduler.state import read_array

Flags = npt.NDArray[np.bool_]
_NEVER = -1
_STREAM = 0xB10B  # keeps this stream apart from the others of the same seed
STARVED_ALERT = 0.5  # share of the prompts: docs/decisions/0039
_PASSES = 2.0  # rounds of so many uniform passes without a look: starved


def draw_probes(labels: Ids, share: float, seed: list[int]) -> Flags:
    """bool[P]: `share` of each cell, at least one and at most a quarter of it, at random."""
    order = np.random.default_rng(seed).permutation(labels.shape[0])
    chosen = np.zeros(labels.shape[0], dtype=np.bool_)
    for cell in np.unique(labels):
        members = order[labels[order] == cell]
        wanted = max(round(share * members.shape[0]), 1)
        chosen[members[: min(wanted, members.shape[0] // 4)]] = True
    return chosen


def share_of_round(share: float, fair_units: float, round_index: int) -> int:
    """Whole units of this round, so that all rounds so far have share * fair_units each."""
    return math.floor((round_index + 1) * share * fair_units + 1e-9) - math.floor(
        round_index * share * fair_units + 1e-9
    )


class LastLooks:
    """When each of P prompts was looked at last; whether a floor looks again or not."""

    def __init__(self, prompts: int) -> None:
        self.rounds: Ids = np.full(prompts, _NEVER, dtype=np.int64)  # [P] of the latest look

    def served(self, ids: Ids, round_index: int) -> None:
        self.rounds[ids] = round_index

    def starved_share(
        self, round_index: int, rounds_a_pass: float, probes: Flags | None = None
    ) -> float:
        """Of the prompts that may train: not looked at for two uniform passes over the pool."""
        late = self.rounds < round_index - _PASSES * rounds_a_pass
        if probes is None:
            return float(late.mean())
        return float((late & ~probes).sum() / max((~probes).sum(), 1))

    def over(self, change: PoolChange) -> LastLooks:
        """Over another pool."""
        other = LastLooks(change.size)
        other.rounds = change.carry(self.rounds, other.rounds)
        return other


class Reserve:
    """Over a pool of P prompts with cells i64[P]; both shares of the budget, in [0, 1/2]."""

    def __init__(self, labels: Ids, probe_share: float, explore_share: float, seed: int) -> None:
        self.probe_share, self.explore_share, self.seed = probe_share, explore_share, seed
        count = labels.shape[0]
        self.probes: Flags = np.zeros(count, dtype=np.bool_)  # [P]
        if probe_share:
            self.probes = draw_probes(labels, probe_share, [seed, _STREAM])
        self.looks = LastLooks(count)

    def due_units(self, round_index: int, fair_units: float) -> int:
        """Of a round, if budget and pool have room for them."""
        shares = self.probe_share if self.probes.any() else 0.0, self.explore_share
        wanted = [share_of_round(share, fair_units, round_index) for share in shares]
        return min(wanted[0], int(self.probes.sum())) + wanted[1]

    def due(
        self,
        round_index: int,
        fair_units: float,
        most: int | Ids,
        tie_rank: Ids,
        units_left: int,
    ) -> tuple[Ids, Ids]:
        """Prompts i64[G] and units i64[G] of this round; most: the largest group of each prompt."""
        probes = np.flatnonzero(self.probes)
        probes = probes[np.argsort(tie_rank[probes])]
        spend = self.probe_share if probes.shape[0] else 0.0
        count = min(share_of_round(spend, fair_units, round_index), probes.shape[0], units_left)
        first = math.floor(round_index * spend * fair_units + 1e-9)
        looked = probes[(first + np.arange(count)) % max(probes.shape[0], 1)]

        units = min(share_of_round(self.explore_share, fair_units, round_index), units_left - count)
        others = self.probes.shape[0] - probes.shape[0]
        ids, sizes = looked, np.ones(count, dtype=np.int64)
        if units > 0 and others:
            age = np.where(self.probes, -np.inf, -self.looks.rounds.astype(np.float64))
            oldest = largest(age, tie_rank, min(units, others))
            group = np.broadcast_to(most, self.probes.shape)[oldest]
            group = np.clip(units - (np.cumsum(group) - group), 0, group)
            ids, sizes = np.append(ids, oldest[group > 0]), np.append(sizes, group[group > 0])
        return ids, sizes

    def aside(self, due: Ids) -> Flags:
        """bool[P]: prompts that the rest of the plan leaves out."""
        flags = self.probes.copy()
        flags[due] = True
        return flags

    # --- another pool, state

    def over(self, labels: Ids, change: PoolChange, round_index: int) -> Reserve:
        """Over another pool: probes stay probes, and of the prompts that joined some become it."""
        other = Reserve(labels, 0.0, self.explore_share, self.seed)
        other.probe_share = self.probe_share
        fresh = np.zeros(change.size, dtype=np.bool_)
        joined = np.flatnonzero(~change.stays)
        if self.probe_share and joined.shape[0]:
            seed = [self.seed, _STREAM, round_index]
            fresh[joined] = draw_probes(labels[joined], self.probe_share, seed)
        other.probes = change.carry(self.probes, fresh)
        other.looks = self.looks.over(change)
        return other

    def state(self) -> StateDict:
        return {"reserve_probes": self.probes.copy(), "reserve_last": self.looks.rounds.copy()}

    def load(self, state: StateDict) -> None:
        """The inverse of `state`. Raises ValueError for a damaged one."""
        count = self.probes.shape[0]
        probes = read_array(state, "reserve_probes", np.bool_, count)
        self.looks.rounds = read_array(state, "reserve_last", np.int64, count)
        self.probes = probes
