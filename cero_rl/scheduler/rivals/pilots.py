"""Rivals that look first and commit then: HORA, SPEED-RL, Pilot-Commit.

In: a few pilot rollouts of many prompts. Out: a second wave for those that the pilots recommend.
Pilots count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.judging import judged_share
from cero_rl.scheduler.rivals.batch_rules import hit_gains
from cero_rl.scheduler.rivals.common import exact_greedy
from cero_rl.scheduler.rivals.elimination import more_for
from cero_rl.scheduler.rivals.ragged import group_of, live_groups
from cero_rl.scheduler.rivals.waves import NOTHING, Plan, Waves, WaveScheduler
from cero_rl.scheduler.sizes import Samples, require
from cero_rl.scheduler.uniform import NOBODY


@dataclass(frozen=True, slots=True)
class HoraOptions:
    group_rollouts: int = 8  # sizes the batch: quota / group_rollouts prompts
    pilot_rollouts: int = 4

    def __post_init__(self) -> None:
        require(
            1 <= self.pilot_rollouts < self.group_rollouts,
            f"pilot_rollouts = {self.pilot_rollouts}, wanted 1 <= pilot_rollouts < "
            f"group_rollouts = {self.group_rollouts}",
        )


class HoraScheduler(WaveScheduler[HoraOptions]):
    """HORA (arXiv 2605.07114): pilots for a batch, then the rest of the quota where a first further
    hit is most likely.

    After the pilots each prompt's posterior is Beta(1+s, 1+f) (the paper's uniform prior, from this
    round alone); the second wave maximises the expected number of prompts with at least one right
    answer in it, exactly. Departure: prompts come from our shuffled order and the quota is the
    round's even share.
    """

    name = "hora"
    sizes_vary = True

    def _open(self, left: int) -> Plan:
        prompts = min(
            max(left // self._units(self.options.group_rollouts), 1), self.spec.num_prompts
        )
        return self._prompts.take(prompts), np.full(
            prompts, self._units(self.options.pilot_rollouts), dtype=np.int64
        )

    def _extend(self, seen: Waves, left: int) -> Plan:
        room = self.spec.max_units_per_prompt - int(seen.units.max())
        if self._wave > 0 or room <= 0:
            return NOTHING
        unit = self.spec.rollouts_per_unit
        sizes = np.asarray(unit * np.arange(1, room + 1), dtype=np.float64)
        gains = hit_gains(1.0 + seen.successes, 1.0 + seen.trials - seen.successes, sizes, unit)
        asked = seen.units * unit
        gains *= judged_share(seen.trials, np.maximum(asked - seen.trials, 0))[:, None]
        more = exact_greedy(gains, left, self._tie_rank[seen.ids])
        return seen.ids[more > 0], more[more > 0]


@dataclass(frozen=True, slots=True)
class ScreenOptions:
    pilot_rollouts: int = 4
    commit_rollouts: int = 12  # more, for a prompt that qualifies
    pilot_share: float = 0.5  # of what the round has left, for looking
    lowest_rate: float = 0.25  # Pilot-Commit only: pass rates of the pilots that qualify
    highest_rate: float = 0.75
    max_waves: int = 4  # SPEED-RL only: pilots are not begun where no wave is left to commit in

    def __post_init__(self) -> None:
        require(self.pilot_rollouts >= 2, f"pilot_rollouts = {self.pilot_rollouts}, wanted >= 2")
        require(self.commit_rollouts >= 1, f"commit_rollouts = {self.commit_rollouts}, wanted >= 1")
        require(self.max_waves >= 2, f"max_waves = {self.max_waves}, wanted >= 2")
        require(
            0.0 < self.pilot_share <= 1.0,
            f"pilot_share = {self.pilot_share:g}, wanted a number in (0, 1]",
        )
        require(
            0.0 <= self.lowest_rate <= self.highest_rate <= 1.0,
            f"lowest_rate = {self.lowest_rate:g}, highest_rate = {self.highest_rate:g}: "
            "wanted 0 <= lowest <= highest <= 1",
        )


class _Screening(WaveScheduler[ScreenOptions]):
    sizes_vary = True

    def _pilots(self, left: int, taken: npt.NDArray[np.int64]) -> Plan:
        units = self._units(self.options.pilot_rollouts)
        prompts = min(
            max(int(left * self.options.pilot_share) // units, 1),
            self.spec.num_prompts - taken.size,
        )
        return self._prompts.take(prompts, taken), np.full(prompts, units, dtype=np.int64)

    def _open(self, left: int) -> Plan:
        return self._pilots(left, NOBODY)


class SpeedScheduler(_Screening):
    """SPEED-RL (arXiv 2506.09016): screen prompts with a few rollouts, go on with those that are
    neither all right nor all wrong.

    Pilots (4) and continuation (12) train together; screened-out prompts do not train. While the
    round has quota, screening and continuing alternate. Departures: the paper keeps surplus
    qualified prompts for later steps and merges the next screening into the same call; here a round
    starts afresh, so that all rollouts are on-policy. (v3 of the paper is marked withdrawn by its
    author.)
    """

    name = "speed_rl"

    def _extend(self, seen: Waves, left: int) -> Plan:
        pilot = self._units(self.options.pilot_rollouts)
        commit = self._units(self.options.commit_rollouts)
        waves_left = self.options.max_waves - (self._wave + 1)
        waiting = seen.live & (seen.units == pilot)
        if waves_left and waiting.any():
            return more_for(seen, waiting, commit, self.spec.max_units_per_prompt)
        if waves_left < 2 or left < pilot + commit or seen.ids.size >= self.spec.num_prompts:
            return NOTHING
        return self._pilots(left, seen.ids)

    def _keep(self, samples: Samples) -> npt.NDArray[np.bool_]:
        return live_groups(samples)


class PilotCommitScheduler(_Screening):
    """Pilot-Commit (arXiv 2605.26606): pilots for many prompts, then a full group for those whose
    pass rate lies in a band.

    Only committed prompts train, pilots included (thresholds as in its code). Departures: the code
    keeps qualified prompts in a buffer for up to four steps and commits to a random draw of it;
    here the commitment follows in the same round, in order.
    """

    name = "pilot_commit"

    def _extend(self, seen: Waves, left: int) -> Plan:
        if self._wave > 0:
            return NOTHING
        good = (
            (seen.rate >= self.options.lowest_rate)
            & (seen.rate <= self.options.highest_rate)
            & (seen.trials > 0)
        )
        return more_for(
            seen, good, self._units(self.options.commit_rollouts), self.spec.max_units_per_prompt
        )

    def _keep(self, samples: Samples) -> npt.NDArray[np.bool_]:
        pilot = self._units(self.options.pilot_rollouts) * self.spec.rollouts_per_unit
        # known rewards alone would take a committed group that lost some for one of pilots
        asked = np.diff(samples.offsets) if samples.asked is None else samples.asked
        return (asked > pilot)[group_of(samples.offsets)]
