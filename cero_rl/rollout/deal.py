"""Which rank samples which group: whole groups, balanced by expected tokens, decided identically on
every rank."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt


def deal_groups(
    expected_tokens: npt.NDArray[np.float64],
    world_size: int,
    owner: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """i64[G] rank of each group, longest processing time first (at most 4/3 of the best possible
    makespan).

    `expected_tokens` is [G] and must be the same on every rank; ties go by index, so no broadcast
    is needed. A group that an earlier wave of the round gave to a rank stays there: `owner` i64[G]
    names it, -1 where there is none.
    """
    ranks = np.full(expected_tokens.shape, -1, dtype=np.int64) if owner is None else owner.copy()
    fixed = ranks >= 0
    loads = [
        (float(expected_tokens[fixed & (ranks == rank)].sum()), rank) for rank in range(world_size)
    ]
    heapq.heapify(loads)
    for index in np.argsort(-expected_tokens, kind="stable"):
        if fixed[index]:
            continue
        load, rank = heapq.heappop(loads)
        ranks[index] = rank
        heapq.heappush(loads, (load + float(expected_tokens[index]), rank))
    return ranks
