"""Which rank samples which group: whole groups, balanced by expected tokens, decided identically on every rank."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt


def deal_groups(expected_tokens: npt.NDArray[np.float64], world_size: int) -> list[npt.NDArray[np.int64]]:
    """Indices of the groups of each rank, longest processing time first (at most 4/3 of the best possible makespan).

    `expected_tokens` is [G] and must be the same on every rank; ties go by index, so no broadcast is needed.
    """
    loads = [(0.0, rank) for rank in range(world_size)]
    dealt: list[list[int]] = [[] for _ in range(world_size)]
    for index in np.argsort(-expected_tokens, kind="stable"):
        load, rank = heapq.heappop(loads)
        dealt[rank].append(int(index))
        heapq.heappush(loads, (load + float(expected_tokens[index]), rank))
    return [np.array(sorted(indices), dtype=np.int64) for indices in dealt]
