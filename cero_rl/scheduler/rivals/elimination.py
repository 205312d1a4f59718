"""Rivals that go on with fewer and fewer prompts of a batch: VIGOR, Reinforce-Ada, AERO.

In: a batch of the next prompts of the shuffled order, sized so that the round's quota can hold the
rule's rollouts. Out: waves for those still in; what the rule saves goes back to later rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.rivals.common import best
from cero_rl.scheduler.rivals.ragged import group_of, group_sum, right, running_count
from cero_rl.scheduler.rivals.waves import NOTHING, Plan, Waves, WaveScheduler
from cero_rl.scheduler.sizes import Ids, Samples, require


@dataclass(frozen=True, slots=True)
class VigorOptions:
    start_rollouts: int = 2
    waves: int = 4

    def __post_init__(self) -> None:
        require(self.start_rollouts >= 1, f"start_rollouts = {self.start_rollouts}, wanted >= 1")
        require(2 <= self.waves <= 16, f"waves = {self.waves}, wanted 2..16")


class VigorScheduler(WaveScheduler[VigorOptions]):
    """VIGOR (arXiv 2607.22002): 2 rollouts each, then the half with the largest reward variance
    gets twice as many, 4 waves.

    Sequential halving, every wave costs the same: n prompts x 2, n/2 x 4, n/4 x 8, n/8 x 16; so n =
    quota / (start * waves). Departures: we had the abstract, not the text, so that a wave doubles
    the rollouts it gives is our reading; the variance is p(1-p) of the pass rate so far (for graded
    rewards its upper bound); equal variances go by the tie order of the seed.
    """

    name = "vigor"
    sizes_vary = True

    def _open(self, left: int) -> Plan:
        start = self._units(self.options.start_rollouts)
        prompts = min(max(left // (start * self.options.waves), 1), self.spec.num_prompts)
        return self._prompts.take(prompts), np.full(prompts, start, dtype=np.int64)

    def _extend(self, seen: Waves, left: int) -> Plan:
        wave = self._wave + 1
        if wave >= self.options.waves:
            return NOTHING
        racing = np.flatnonzero(seen.units == seen.units.max())
        survivors = max(seen.ids.shape[0] >> wave, 1)
        rate = seen.rate[racing]
        variance = np.where(seen.judged[racing], rate * (1.0 - rate), -1.0)
        racing = racing[best(variance, self._tie_rank[seen.ids[racing]], survivors)]
        more = self._units(self.options.start_rollouts) << wave
        more = min(more, self.spec.max_units_per_prompt - int(seen.units.max()))
        return (
            (seen.ids[racing], np.full(racing.shape[0], more, dtype=np.int64))
            if more > 0
            else NOTHING
        )


@dataclass(frozen=True, slots=True)
class ReinforceAdaOptions:
    group_rollouts: int = 8  # sizes the batch: quota / group_rollouts prompts
    wave_rollouts: int = 4
    max_waves: int = 4
    keep_rollouts: int = 4  # of a group, after down-sampling
    exit: Literal["balanced", "positive"] = "balanced"

    def __post_init__(self) -> None:
        for name, value in (("wave_rollouts", self.wave_rollouts), ("max_waves", self.max_waves)):
            require(value >= 1, f"{name} = {value}, wanted >= 1")
        require(self.keep_rollouts >= 2, f"keep_rollouts = {self.keep_rollouts}, wanted >= 2")
        require(
            self.group_rollouts >= self.wave_rollouts,
            f"group_rollouts = {self.group_rollouts}, wanted >= wave_rollouts",
        )
        require(
            self.exit in ("balanced", "positive"),
            f"exit = {self.exit!r}, wanted 'balanced' or 'positive'",
        )


class ReinforceAdaScheduler(WaveScheduler[ReinforceAdaOptions]):
    """Reinforce-Ada (arXiv 2510.04996): waves of the same size for every prompt that has not found
    its signal yet.

    A prompt leaves with keep/2 right and keep/2 wrong answers (exit "balanced") or its first right
    one ("positive"), or after max_waves. Of a group keep_rollouts train, half right and half wrong
    where there are enough (checked against its code). Departures: the batch is sized for
    group_rollouts on average and a round stops at its quota, where the paper lets the budget of a
    step float. Its statistics over all rollouts of a prompt, those that do not train included, are
    the learner's: `learner.advantage_over: all` of a run.
    """

    name = "reinforce_ada"
    sizes_vary = True

    def _open(self, left: int) -> Plan:
        prompts = min(
            max(left // self._units(self.options.group_rollouts), 1), self.spec.num_prompts
        )
        return self._prompts.take(prompts), np.full(
            prompts, self._units(self.options.wave_rollouts), dtype=np.int64
        )

    def _extend(self, seen: Waves, left: int) -> Plan:
        if self._wave + 1 >= self.options.max_waves:
            return NOTHING
        half = self.options.keep_rollouts // 2
        if self.options.exit == "balanced":
            done = (seen.successes >= half) & (
                seen.trials - seen.successes >= self.options.keep_rollouts - half
            )
        else:
            done = seen.successes >= 1.0
        return more_for(
            seen,
            ~done & seen.judged,
            self._units(self.options.wave_rollouts),
            self.spec.max_units_per_prompt,
        )

    def _keep(self, samples: Samples) -> npt.NDArray[np.bool_]:
        keep, offsets = self.options.keep_rollouts, samples.offsets
        good = right(samples)
        wins, losses = group_sum(good, offsets), group_sum(~good, offsets)
        most_wins = np.maximum(keep // 2, keep - losses)
        most_losses = np.maximum(keep - keep // 2, keep - wins)
        group = group_of(offsets)
        return np.where(
            good,
            running_count(good, offsets) <= most_wins[group],
            running_count(~good, offsets) <= most_losses[group],
        )


def more_for(seen: Waves, wanted: npt.NDArray[np.bool_], units: int, most: int) -> Plan:
    """`units` more for the groups in wanted bool[G], no group above `most`."""
    more = np.where(wanted, np.minimum(units, most - seen.units), 0).astype(np.int64)
    ids: Ids = seen.ids[more > 0]
    return ids, more[more > 0]


@dataclass(frozen=True, slots=True)
class AeroOptions:
    group_rollouts: int = 8  # sizes the batch: quota / group_rollouts prompts
    explore_rollouts: int = 6
    extra_rollouts: int = 2
    max_waves: int = 6
    wrong_per_right: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.explore_rollouts >= 1, f"explore_rollouts = {self.explore_rollouts}, wanted >= 1"
        )
        for name, value in (("extra_rollouts", self.extra_rollouts), ("max_waves", self.max_waves)):
            require(value >= 1, f"{name} = {value}, wanted >= 1")
        require(
            self.group_rollouts >= self.explore_rollouts,
            f"group_rollouts = {self.group_rollouts}, wanted >= explore_rollouts",
        )
        require(
            self.wrong_per_right > 0.0, f"wrong_per_right = {self.wrong_per_right:g}, wanted > 0"
        )


class AeroScheduler(WaveScheduler[AeroOptions]):
    """AERO (arXiv 2602.14338): explore a batch, then rescue: prompts without any right answer get
    extra_rollouts again and again.

    A rescue ends with the first right answer, when the quota (or the largest group) is out, or
    after max_waves. Of groups with a pass rate below 1/2, all right answers train and
    wrong_per_right wrong ones for each. Departures: the paper's Beta-posterior baseline for groups
    of one outcome belongs to the estimator and is left out, so all-right groups teach nothing here;
    its code is not public; the exploration size (6 of 8) and the limit on waves are ours.
    """

    name = "aero"
    sizes_vary = True

    def _open(self, left: int) -> Plan:
        prompts = min(
            max(left // self._units(self.options.group_rollouts), 1), self.spec.num_prompts
        )
        return self._prompts.take(prompts), np.full(
            prompts, self._units(self.options.explore_rollouts), dtype=np.int64
        )

    def _extend(self, seen: Waves, left: int) -> Plan:
        if self._wave + 1 >= self.options.max_waves:
            return NOTHING
        return more_for(
            seen,
            (seen.successes == 0.0) & seen.judged,
            self._units(self.options.extra_rollouts),
            self.spec.max_units_per_prompt,
        )

    def _keep(self, samples: Samples) -> npt.NDArray[np.bool_]:
        good, offsets = right(samples), samples.offsets
        wins, losses = group_sum(good, offsets), group_sum(~good, offsets)
        allowed = np.where(wins < losses, np.floor(self.options.wrong_per_right * wins), np.inf)
        return good | (running_count(~good, offsets) <= allowed[group_of(offsets)])
