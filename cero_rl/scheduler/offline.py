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

from cero_rl.scheduler.utility import EXPONENTIAL, Utility

Floats = npt.NDArray[np.float64]
_BISECTIONS = 200


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
    found by bisection on its logarithm. Prompts with c = 0 get 0; if the others cannot hold the
    budget they are all full and the rest is left over. Raises ValueError on negative inputs.
    """
    slopes = _checked(c, budget_units, max_units)
    exposure = np.zeros_like(slopes)
    useful = np.flatnonzero(slopes > 0.0)
    if useful.size == 0 or budget_units == 0:
        return exposure
    if useful.size * max_units <= budget_units:
        exposure[useful] = max_units
        return exposure
    worn = np.broadcast_to(np.asarray(wear, dtype=np.float64), slopes.shape)[useful]
    rate = slopes[useful] * worn
    before = np.zeros_like(rate) if start is None else np.asarray(start, dtype=np.float64)[useful]
    reach = float(before.max()) + max_units

    def fill(log_level: float) -> Floats:
        target = utility.supporting_exposure(np.exp(log_level) * worn, rate, reach)
        target -= before
        return np.clip(target, 0.0, max_units, out=target)

    # Below the least slope at full exposure everything is full; above the largest c nothing is.
    high = float(np.log(slopes[useful].max()))
    with np.errstate(divide="ignore"):
        low = max(float(np.log((utility.slope(rate, before + max_units) / worn).min())), -745.0)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if float(fill(middle).sum()) > budget_units:
            low = middle
        else:
            high = middle
    exposure[useful] = fill(high)
    return exposure


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
