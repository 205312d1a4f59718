"""Rivals that sample a round in several waves; here what they share, and DAPO's dynamic sampling.

Protocol: open_round() gives the first wave, next_wave(evidence) each further one, or
None. A round's quota is fixed when it opens; what a rule leaves of it goes back to the later
rounds (whose even share grows), so give capacity_rollouts above budget / rounds, or it stays
unspent. Every rollout counts, pilots and discards included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.rivals.common import RivalScheduler, clip_units
from cero_rl.scheduler.rivals.ragged import live_groups
from cero_rl.scheduler.sizes import BudgetSpec, Evidence, Ids, Samples, Shared, StateDict, require
from cero_rl.scheduler.state import read_scalar
from cero_rl.scheduler.uniform import NOBODY, PromptOrder, whole_groups

WaveT = TypeVar("WaveT")
Plan = tuple[Ids, Ids]
NOTHING: Plan = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


class WaveScheduler(RivalScheduler[WaveT], Generic[WaveT]):
    """A subclass says how a round opens (`_open`) and goes on (`_extend`); both get the units
    the round has left."""

    waves = True

    def __init__(self, spec: BudgetSpec, shared: Shared, options: WaveT) -> None:
        super().__init__(spec, shared, options)
        self._prompts = PromptOrder(spec.num_prompts, self.seed)
        self._wave = 0  # waves planned in the open round, less one
        self._left = 0  # units of the round's quota not yet planned

    def _open(self, left: int) -> Plan:
        raise NotImplementedError

    def _extend(self, seen: Waves, left: int) -> Plan:
        """The next wave, NOTHING to close the round. self._wave counts the waves so far, the
        first being 0."""
        raise NotImplementedError

    def _round_limit(self, units_left: int, rounds_left: int) -> int:
        return self._quota(units_left, rounds_left)

    def _choose(self, units_left: int, rounds_left: int) -> Plan:
        limit = self._round_limit(units_left, rounds_left)
        ids, units = clip_units(*self._open(limit), limit) if limit else NOTHING
        self._wave, self._left = 0, limit - int(units.sum())
        return ids, units

    def _choose_more(self, so_far: Evidence, units_left: int) -> Plan | None:
        left = min(self._left, units_left)
        pending = self.pending
        if left <= 0 or pending is None or pending.prompt_ids.size == 0:
            return None
        units = -(-pending.rollouts.astype(np.int64) // self.spec.rollouts_per_unit)
        seen = Waves(pending.prompt_ids, units, so_far.successes, so_far.trials)
        ids, units = clip_units(*self._extend(seen, left), left)
        if not ids.size:
            return None
        self._wave += 1
        self._left = left - int(units.sum())
        return ids, units

    def _extra_state(self) -> StateDict:
        return {**self._prompts.state(), "wave": self._wave, "left": self._left}

    def _load_extra(self, state: StateDict) -> None:
        wave, left = int(read_scalar(state, "wave")), int(read_scalar(state, "left"))
        if wave < 0 or left < 0:
            raise ValueError(f"scheduler state is damaged: wave {wave}, left {left}")
        self._prompts.load(state)
        self._wave, self._left = wave, left


@dataclass(frozen=True, slots=True)
class Waves:
    """The open round so far, by group in the order of first appearance."""

    ids: Ids  # [G]
    units: Ids  # [G] planned, all waves; the budget's last one may be cut short
    successes: Floats  # [G] may be fractional
    trials: Ids  # [G] rollouts with a reward

    @property
    def live(self) -> npt.NDArray[np.bool_]:
        """bool[G]: neither all right nor all wrong so far."""
        return (self.successes > 0.0) & (self.successes < self.trials)

    @property
    def judged(self) -> npt.NDArray[np.bool_]:
        """bool[G]: has a reward. A rule that goes on where nothing was found yet must not go on
        where nothing can be found."""
        return self.trials > 0

    @property
    def rate(self) -> Floats:
        """f64[G] pass rate so far, 0 without a reward."""
        return self.successes / np.maximum(self.trials, 1)


@dataclass(frozen=True, slots=True)
class DapoOptions:
    # wanted in a round; None: the groups of an equal share of the budget
    live_groups: int | None = None
    max_waves: int = 10

    def __post_init__(self) -> None:
        require(
            self.live_groups is None or self.live_groups >= 1,
            f"live_groups = {self.live_groups}, wanted >= 1 or None",
        )
        require(self.max_waves >= 1, f"max_waves = {self.max_waves}, wanted >= 1")


class DapoScheduler(WaveScheduler[DapoOptions]):
    """DAPO's dynamic sampling (arXiv 2503.14476): draw batches of fresh prompts until enough
    groups have signal.

    A round may spend up to capacity_rollouts (not only its even share), so the budget can run
    out before the rounds do: fewer, fuller optimizer steps. Dead groups do not train.
    Departures: groups beyond the wanted number train too (the paper throws them away), and
    max_waves (10, as in its code) closes the round instead of ending the run.
    """

    name = "dapo"

    def _round_limit(self, units_left: int, rounds_left: int) -> int:
        return min(units_left, self.spec.capacity_units)

    def _wanted(self) -> int:
        if self.options.live_groups is not None:
            return self.options.live_groups
        return max(1, round(self._fair_units(self.spec.max_units_per_prompt)))

    def _groups(self, count: int, left: int, taken: Ids) -> Plan:
        group = self.spec.max_units_per_prompt
        units = whole_groups(left, group)[: min(count, self.spec.num_prompts - taken.size)]
        return self._prompts.take(units.shape[0], taken), units

    def _open(self, left: int) -> Plan:
        return self._groups(self._wanted(), left, NOBODY)

    def _extend(self, seen: Waves, left: int) -> Plan:
        if int(seen.live.sum()) >= self._wanted() or self._wave + 1 >= self.options.max_waves:
            return NOTHING
        return self._groups(self._wanted(), left, seen.ids)

    def _keep(self, samples: Samples) -> npt.NDArray[np.bool_]:
        return live_groups(samples)
