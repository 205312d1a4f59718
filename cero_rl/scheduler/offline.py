"""The best allocation in hindsight, when every prompt's worth is known: the yardstick for regret;
for every utility family.

In:  c f64[P] >= 0 (utility per unit at exposure 0), the run's budget in allocation units, the most
units a prompt can hold. Out: units per prompt, continuous (water-filling) or integral (exact
greedy). Source: arXiv 2606.05606, 2610.09679; the start at exposures already given (re-solving) is
ours.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.bisection import last_digit
from cero_rl.scheduler.posterior import blocks
from cero_rl.scheduler.utility import EXPONENTIAL, Utility

Floats = npt.NDArray[np.float64]
_SAMPLE = 16384  # prompts, in which a large pool's water level is looked for first
_SAMPLING_ERROR = 0.008  # of the level's logarithm: one or two deviations


def _checked(c: npt.ArrayLike, budget_units: float, max_units: float) -> Floats:
    slopes = np.asarray(c, dtype=np.float64)
    if slopes.ndim != 1 or not bool(((slopes >= 0.0) & np.isfinite(slopes)).all()):
        raise ValueError("c must be a vector of finite slopes >= 0")
    if budget_units < 0 or max_units < 0:
        raise ValueError(f"budget_units {budget_units} and max_units {max_units} must be >= 0")
    return slopes


def water_filling(
    c: npt.ArrayLike,
    budget_units: float,
    max_units: float,
    utility: Utility = EXPONENTIAL,
    start: npt.ArrayLike | None = None,
    wear: npt.ArrayLike = 1.0,
) -> Floats:
    """f64[P] maximiser of sum_i U(w_i c_i, s_i + z_i) / w_i over 0 <= z_i <= max_units, sum z =
    budget_units (units); start s f64[P] (None: 0), wear w > 0, f64[P] or one (utility.py).

    z_i = clip(exposure at slope xi - s_i, 0, max_units), with the water level xi, the common slope,
    found by bisection on its logarithm (in a large pool beginning near that of a sample). Prompts
    with c = 0 get 0; if the others cannot hold the budget they are all full and the rest is left
    over. Raises ValueError on negative inputs.
    """
    slopes = _checked(c, budget_units, max_units)
    exposure = np.zeros_like(slopes)
    positive = slopes > 0.0
    useful = slice(None) if bool(positive.all()) else np.flatnonzero(positive)
    count = int(np.count_nonzero(positive))
    if count == 0 or budget_units == 0:
        return exposure
    if count * max_units <= budget_units:
        exposure[useful] = max_units
        return exposure
    worn = np.broadcast_to(np.asarray(wear, dtype=np.float64), slopes.shape)[useful]
    given = np.asarray(0.0 if start is None else start, dtype=np.float64)
    before = np.broadcast_to(given, slopes.shape)[useful]
    exposure[useful] = _filled(slopes[useful], worn, before, budget_units, max_units, utility)
    return exposure


def _filled(
    slopes: Floats,
    worn: Floats,
    before: Floats,
    budget_units: float,
    max_units: float,
    utility: Utility,
) -> Floats:
    """z f64[n] of prompts with slopes > 0 that can hold more than the budget."""
    count = slopes.shape[0]
    rate, reach = slopes * worn, float(before.max()) + max_units
    filled, filled_at = np.empty(count), np.nan

    def fill(log_level: float, part: slice, out: Floats | None = None) -> Floats:
        target = utility.supporting_exposure(np.exp(log_level) * worn[part], rate[part], reach)
        target -= before[part]
        return np.clip(target, 0.0, max_units, out=target if out is None else out)

    def excess(log_level: float) -> float:
        nonlocal filled_at
        for part in blocks(count):
            fill(log_level, part, filled[part])
        filled_at = log_level
        return float(filled.sum()) - budget_units

    # Below the least slope at full exposure everything is full; above the largest c nothing is.
    least = min(
        float((utility.slope(rate[part], before[part] + max_units) / worn[part]).min())
        for part in blocks(count)
    )
    low = max(float(np.log(least)), -745.0) if least > 0.0 else -745.0
    high = float(np.log(slopes.max()))
    ends = count * max_units - budget_units, -budget_units
    near: tuple[float, ...] = ()
    if (stride := count // _SAMPLE) > 1:
        some = slice(None, None, stride)
        share = budget_units * slopes[some].shape[0] / count
        guess = last_digit(lambda level: float(fill(level, some).sum()) - share, low, high, ends)
        near = guess - _SAMPLING_ERROR, guess + _SAMPLING_ERROR
    level = last_digit(excess, low, high, ends, near)
    if level != filled_at:
        excess(level)
    return filled


def greedy_integer(
    c: npt.ArrayLike, budget_units: int, max_units: int, utility: Utility = EXPONENTIAL
) -> npt.NDArray[np.int64]:
    """i64[P] exact integral optimum of the same problem from exposure 0: always buy the unit with
    the largest gain.

    Gains fall with the number of units bought, so greedy is exact. Units without gain are not
    bought. Equal gains go to the lower index. O(budget * log P). Raises ValueError on negative
    inputs.
    """
    slopes = _checked(c, budget_units, max_units)
    units = np.zeros(slopes.shape[0], dtype=np.int64)
    if max_units == 0:
        return units
    heap = [
        (-float(gain), prompt)
        for prompt, gain in enumerate(utility.gain(slopes, 1.0))
        if gain > 0.0
    ]
    heapq.heapify(heap)
    for _ in range(int(budget_units)):
        if not heap:
            break
        prompt = heap[0][1]
        units[prompt] += 1
        gain = (
            float(utility.gain(slopes[prompt], units[prompt] + 1))
            if units[prompt] < max_units
            else 0.0
        )
        if units[prompt] < max_units:
            heapq.heapreplace(heap, (-gain, prompt))
        else:
            heapq.heappop(heap)
    return units
