"""One round's problem: which prompts get units now, given how much each is worth per unit and
what a unit costs.

In:  score f64[P] (what one more unit is worth), price, tie_rank i64[P] (a permutation), the most
units of a prompt and of the round. Out: prompt ids i64[G], best first, and their units i64[G] >=
1. Ties go by tie_rank, so permuting the prompts together with their tie ranks permutes the plan.
Source of the linear problem: arXiv 2606.05606; caps per prompt and the proximal problem are
ours.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids

_SAMPLE = 16384


def _kth_largest(values: npt.NDArray, count: int) -> npt.NDArray:
    """The count-th largest entry, 1 <= count <= len; exact.

    np.partition on what survives a first cut, guessed from every stride-th entry a little too
    low; on everything if the guess was too high (the sample may be anything but random: only the
    time depends on it).
    """
    stride = values.shape[0] // _SAMPLE
    if stride > 1 and 2 * count < values.shape[0]:
        sample = values[::stride]
        rank = int(1.1 * count / stride) + 64
        if rank < sample.shape[0]:
            guess = np.partition(sample, sample.shape[0] - rank)[sample.shape[0] - rank]
            survive = values >= guess
            if np.count_nonzero(survive) >= count:
                if np.count_nonzero(values > guess) < count:
                    return guess
                values = values[survive]
    return np.partition(values, values.shape[0] - count)[values.shape[0] - count]


def _in_order(score: Floats, tie_rank: Ids, chosen: Ids) -> Ids:
    """`chosen` by falling score, equal scores by rising tie_rank: np.lexsort((tie_rank,
    -score)), five times faster.

    Least significant digit first, 16 bits a pass: numpy sorts 16-bit integers stably by counting.
    """
    ranks, values = tie_rank[chosen], score[chosen] + 0.0  # + 0.0: there is one zero
    bits = values.view(np.int64)
    falling = (~np.where(bits < 0, ~bits, bits ^ np.int64(-(2**63)))).view(np.uint64)
    order = None
    for key in (ranks.view(np.uint64), falling):
        for shift in range(0, 64, 16):
            digit = (key >> np.uint64(shift)).astype(np.uint16)
            if digit.min() == digit.max():
                continue
            step = np.argsort(digit if order is None else digit[order], kind="stable")
            order = step if order is None else order[step]
    return chosen if order is None else chosen[order]


def largest(score: Floats, tie_rank: Ids, count: int) -> Ids:
    """i64[count], count >= 1: the prompts of the largest scores, best first, equal scores by
    lower tie_rank."""
    if count >= score.shape[0]:
        return _in_order(score, tie_rank, np.arange(score.shape[0]))
    cut = _kth_largest(score, count)
    chosen = score > cut
    wanted = count - int(np.count_nonzero(chosen))
    tied = score == cut
    tied_count = int(np.count_nonzero(tied))
    if wanted < tied_count:
        # The wanted lowest ranks among the tied: ranks are distinct, so marking them sorts them.
        # Again only what survives a guess.
        likely = tied & (tie_rank <= int(1.1 * wanted / tied_count * score.shape[0]) + 64)
        if np.count_nonzero(likely) < wanted:
            likely = tied
        marked = np.zeros(score.shape[0], dtype=bool)
        marked[tie_rank[likely]] = True
        tied &= tie_rank <= np.flatnonzero(marked)[wanted - 1]
    chosen |= tied
    return _in_order(score, tie_rank, np.flatnonzero(chosen))


def ranked_plan(
    slope: Floats,
    price: float,
    tie_rank: Ids,
    max_units: int | Ids,
    capacity_units: int,
    forced_units: int = 0,
) -> tuple[Ids, Ids]:
    """Maximise sum_i (slope_i - price) n_i over integers 0 <= n_i <= max_units with forced_units
    <= sum n <= capacity_units.

    slope f64[P], tie_rank i64[P] a permutation, max_units one number or i64[P] >= 1. Returns ids
    i64[G], best margin first, and units i64[G]: max_units each, the last one the residual. Only
    positive margins are served, unless forced_units asks for more. The optimum of this linear
    problem is integral, so nothing is rounded.
    """
    positive = slope > price
    if isinstance(max_units, np.ndarray):
        available, smallest = int(max_units[positive].sum()), int(max_units.min())
    else:
        available, smallest = int(np.count_nonzero(positive)) * max_units, max_units
    total = max(min(capacity_units, available), forced_units)
    if total == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    ids = largest(slope, tie_rank, min(-(-total // smallest), slope.shape[0]))
    units = (
        max_units[ids]
        if isinstance(max_units, np.ndarray)
        else np.full(ids.shape[0], max_units, dtype=np.int64)
    )
    units = np.clip(total - (np.cumsum(units) - units), 0, units)
    kept = int(np.count_nonzero(units))
    return ids[:kept], units[:kept]


def proximal_plan(
    margin: Floats,
    target: Floats,
    curvature: float,
    tie_rank: Ids,
    max_units: int | Ids,
    capacity_units: int,
    forced_units: int = 0,
) -> tuple[Ids, Ids]:
    """Maximise sum_i margin_i n_i - (curvature/2) (n_i - target_i)^2 over the same integers:
    true group sizes, not Nmax or nothing.

    margin, target f64[P]; curvature > 0. The l-th unit of prompt i gains margin_i - curvature (l
    - target_i - 1/2), which falls with l: buying the largest positive gains is exact. A prompt
    in the optimum has its first gain among the capacity's largest, so only those are expanded.
    Equal gains: lower tie_rank, then lower l. Returns ids by falling first gain, and units.
    """
    first = target - 0.5
    first *= curvature
    first += margin
    likely = max(int(np.count_nonzero(first > 0.0)), forced_units)
    size = min(capacity_units, likely, first.shape[0])
    if size == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    ids = largest(first, tie_rank, size)
    caps = (
        max_units[ids]
        if isinstance(max_units, np.ndarray)
        else np.full(size, max_units, dtype=np.int64)
    )
    first = first[ids]
    # (r + 1) * level others gain more than that unit of the prompt at rank r, if caps are alike
    most = int(caps.max())
    some = [size, *(min(size, capacity_units // level) for level in range(1, most))]
    rows = some if int(caps.min()) == most else [size] * most
    gain = np.empty(sum(rows))
    levels = np.split(gain, np.cumsum(rows)[:-1])
    for level, (row, each) in enumerate(zip(rows, levels)):
        np.subtract(first[:row], curvature * level, out=each)
        each[caps[:row] <= level] = -math.inf
    total = max(
        min(capacity_units, int(np.count_nonzero(gain > 0.0))), min(forced_units, int(caps.sum()))
    )
    if total == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    cut = _kth_largest(gain, total)
    units, at_cut = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    for row, each in zip(rows, levels):
        units[:row] += each > cut
        # more than one only where the curvature is below the gain's last digit
        at_cut[:row] += each == cut
    tied = np.flatnonzero(at_cut)
    tied = tied[np.argsort(tie_rank[ids[tied]])]
    short, before = total - int(units.sum()), np.cumsum(at_cut[tied]) - at_cut[tied]
    units[tied] += np.clip(short - before, 0, at_cut[tied])
    kept = units > 0
    return ids[kept], units[kept].astype(np.int64)
