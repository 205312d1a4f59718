"""A round cut into optimizer steps: which groups each of them learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cero_rl.rollout.collector import Begun
from cero_rl.types import Allocation


@dataclass(frozen=True)
class Work:
    """One step's share of an allocation: its groups first:last."""

    allocation: Allocation
    first: int
    last: int
    begun: Begun

    @property
    def ends_round(self) -> bool:
        return self.last == len(self.allocation.prompt_ids)

    @property
    def is_whole_round(self) -> bool:
        return self.first == 0 and self.ends_round


def slices(rollouts: np.ndarray, per_step: int | None) -> list[tuple[int, int]]:
    """Cut an allocation's groups [G] into runs of whole groups of at most `per_step` rollouts (a
    larger group goes alone)."""
    if per_step is None:
        return [(0, len(rollouts))]
    bounds, first, size = [], 0, 0
    for index, count in enumerate(rollouts.tolist()):
        if index > first and size + count > per_step:
            bounds.append((first, index))
            first, size = index, 0
        size += count
    return [*bounds, (first, len(rollouts))]
