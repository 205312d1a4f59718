"""The best allocation in hindsight, when every prompt's worth is known: the yardstick for regret.

In:  c f64[P] >= 0 (utility per unit at exposure 0), the run's budget in allocation units, the most units a prompt can hold.
Out: units per prompt, continuous (water-filling) or integral (exact greedy). Source: arXiv 2606.05606, 2610.09679.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_BISECTIONS = 200


def _checked(c: npt.ArrayLike, budget_units: float, max_units: float) -> Floats:
    slopes = np.asarray(c, dtype=np.float64)
    if slopes.ndim != 1 or not bool(((slopes >= 0.0) & np.isfinite(slopes)).all()):
        raise ValueError("c must be a vector of finite slopes >= 0")
    if budget_units < 0 or max_units < 0:
        raise ValueError(f"budget_units {budget_units} and max_units {max_units} must be >= 0")
    return slopes


def water_filling(c: npt.ArrayLike, budget_units: float, max_units: float) -> Floats:
    """f64[P] maximiser of sum_i 1 - exp(-c_i z_i) over 0 <= z_i <= max_units, sum z = budget_units (units).

    z_i = clip(log(c_i/xi)/c_i, 0, max_units) with the water level xi found by bisection on its logarithm. Prompts with c = 0
    get 0; if the others cannot hold the budget they are all full and the rest is left over. Raises ValueError on negative
    inputs.
    """
    slopes = _checked(c, budget_units, max_units)
    exposure = np.zeros_like(slopes)
    useful = np.flatnonzero(slopes > 0.0)
    if useful.size == 0 or budget_units == 0:
        return exposure
    if useful.size * max_units <= budget_units:
        exposure[useful] = max_units
        return exposure
    rate, log_rate = slopes[useful], np.log(slopes[useful])

    def fill(log_level: float) -> Floats:
        return np.clip((log_rate - log_level) / rate, 0.0, max_units)

    low, high = float((log_rate - rate * max_units).min()), float(log_rate.max())
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


def greedy_integer(c: npt.ArrayLike, budget_units: int, max_units: int) -> npt.NDArray[np.int64]:
    """i64[P] exact integral optimum of the same problem: always buy the unit with the largest gain.

    The l-th unit of prompt i gains (1 - exp(-c_i)) * exp(-c_i (l - 1)); gains fall with l, so greedy is exact. Units without
    gain are not bought. Equal gains go to the lower index. O(budget * log P). Raises ValueError on negative inputs.
    """
    slopes = _checked(c, budget_units, max_units)
    units = np.zeros(slopes.shape[0], dtype=np.int64)
    if max_units == 0:
        return units
    heap = [(float(math.expm1(-rate)), prompt) for prompt, rate in enumerate(slopes) if rate > 0.0]
    heapq.heapify(heap)
    for _ in range(int(budget_units)):
        if not heap:
            break
        negative_gain, prompt = heap[0]
        units[prompt] += 1
        if units[prompt] < max_units:
            heapq.heapreplace(heap, (negative_gain * math.exp(-slopes[prompt]), prompt))
        else:
            heapq.heappop(heap)
    return units
