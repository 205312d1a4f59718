"""Several rewards of one completion: their weighted sum, the evidence, and what is logged of each.

What trains is the sum of weight times score, in its own scale, as TRL and verl sum. What the
posterior and the evaluation read is the evidence: that sum or the score of one function, mapped
from its declared range to [0, 1], or cut at a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cero_rl.config.reward import EXTRA, RewardConfig
from cero_rl.rewards.base import RewardResult
from cero_rl.rewards.extras import MOST_EXTRAS

Values = npt.NDArray[np.float32]
_MOST_KEPT = 256  # sums of a rank's step, before the ranks agree on which are told
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Scale:
    """Scores in [low, high] -> evidence in [0, 1]; above `threshold` 1, else 0, where there is
    one."""

    low: float
    high: float
    threshold: float | None

    @property
    def limits(self) -> tuple[float, float] | None:
        """None: any finite number."""
        return None if self.threshold is not None else (self.low, self.high)

    def evidence(self, values: Values) -> Values:
        """f32[n], nan stays."""
        if self.threshold is not None:
            won = (values > np.float32(self.threshold)).astype(np.float32)
            return np.where(np.isnan(values), np.float32(np.nan), won)
        if abs(self.low) <= _TOLERANCE and abs(self.high - 1) <= _TOLERANCE:
            return np.clip(values, 0, 1)
        mapped = (values.astype(np.float64) - self.low) / (self.high - self.low)
        return np.clip(mapped, 0, 1).astype(np.float32)


def scale_of_evidence(config: RewardConfig) -> Scale:
    """Of the sum, or of the function that reward.evidence names."""
    named = [part for part in config.functions if part.label == config.evidence]
    low, high = config.sum_limits
    if named:
        low, high = config.limits_of(named[0]) or (0.0, 1.0)
    return Scale(low, high, config.threshold)


def scale_of_episodes(config: RewardConfig) -> Scale:
    """Of an environment's own reward."""
    low, high = config.range or (0.0, 1.0)
    return Scale(low, high, config.threshold)


def weighted_sum(config: RewardConfig, parts: Sequence[Values]) -> Values:
    """f32[n]; nan where a part is missing that has a weight."""
    total = np.zeros(parts[0].shape, dtype=np.float64)
    for part, values in zip(config.functions, parts):
        if part.weight:
            total += part.weight * values.astype(np.float64)
    return total.astype(np.float32)


@dataclass
class PartSums:
    """A rank's sums of a step. of: a function's name -> [scored, missing, sum, sum of squares];
    extras: a key -> [entries, sum]."""

    of: dict[str, list[float]] = field(default_factory=dict)
    extras: dict[str, list[float]] = field(default_factory=dict)
    dropped: int = 0

    def take(self, name: str, result: RewardResult) -> None:
        """Add what a function said of some completions; without a name only its extras."""
        self.dropped += result.extras_dropped
        for extras in result.extras:
            self._take_extras(extras)
        if name:
            known = result.values[~np.isnan(result.values)].astype(np.float64)
            row = [known.size, result.values.size - known.size, known.sum(), (known**2).sum()]
            self._add(self.of, name, [float(number) for number in row])

    def add(self, more: PartSums) -> None:
        self.dropped += more.dropped
        for own, others in ((self.of, more.of), (self.extras, more.extras)):
            for name, row in others.items():
                self._add(own, name, row)

    def _take_extras(self, extras: Mapping[str, float]) -> None:
        for name, value in extras.items():
            if name in self.extras or len(self.extras) < _MOST_KEPT:
                self._add(self.extras, name, [1.0, value])
            else:
                self.dropped += 1

    @staticmethod
    def _add(sums: dict[str, list[float]], name: str, row: list[float]) -> None:
        before = sums.get(name, [0.0] * len(row))
        sums[name] = [a + b for a, b in zip(before, row)]

    def state(self) -> dict[str, Any]:
        return {"of": self.of, "extras": self.extras, "dropped": self.dropped}


def part_numbers(ranks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of all ranks' `PartSums.state`, in the order of the ranks."""
    total = PartSums()
    for rank in ranks:
        total.add(PartSums(rank["of"], rank["extras"], rank["dropped"]))
    numbers: dict[str, float] = {}
    for name, (scored, missing, first, second) in total.of.items():
        numbers[f"reward/{name}/missing_rate"] = missing / max(scored + missing, 1.0)
        if scored:
            mean = first / scored
            numbers[f"reward/{name}/mean"] = mean
            numbers[f"reward/{name}/std"] = math.sqrt(max(second / scored - mean**2, 0.0))
    told = sorted(total.extras)[:MOST_EXTRAS]
    for name in told:
        entries, summed = total.extras[name]
        numbers[f"reward/{EXTRA}/{name}"] = summed / entries
    left = sum(total.extras[name][0] for name in total.extras if name not in told)
    if dropped := int(total.dropped + left):
        numbers["reward/extra_dropped"] = dropped
    return numbers
