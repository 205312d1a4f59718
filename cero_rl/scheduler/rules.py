"""Two ways to plan a round without the duals: re-solving the whole problem, and Thompson sampling
on the posterior.

In: the slope c f64[P] of every prompt's utility (1/unit) or its posterior, the units it had so far,
what is left of budget and rounds. Out: a plan as of `plan.ranked_plan`. Both spread what is left
evenly over the rounds left, so both spend the budget and need no price. Neither is in the CERO
papers. Re-solving: the fluid-policy literature (e.g. Jasin and Kumar 2012). Thompson 1933.
"""

from __future__ import annotations

import numpy as np

from cero_rl.scheduler.offline import water_filling
from cero_rl.scheduler.plan import largest
from cero_rl.scheduler.posterior import Floats, blocks
from cero_rl.scheduler.sizes import Ids
from cero_rl.scheduler.utility import Utility


def fair_units(units_left: int, rounds_left: int, capacity_units: int) -> int:
    """Units of this round when the rest of the budget is spread evenly: rounded up, at most the
    capacity."""
    return min(-(-units_left // rounds_left), capacity_units)


def resolve_plan(
    c: Floats,
    exposure: Ids,
    utility: Utility,
    tie_rank: Ids,
    max_units: int | Ids,
    units_left: int,
    rounds_left: int,
    capacity_units: int,
    wear: Floats | float = 1.0,
) -> tuple[Ids, Ids]:
    """Water-fill all that is left from today's exposures, then serve the largest deficits first, at
    most max_units each."""
    most = int(np.max(max_units))
    deficit = water_filling(c, units_left, rounds_left * most, utility, exposure, wear)
    room = fair_units(units_left, rounds_left, capacity_units)
    short = int(np.count_nonzero(deficit > 0.0))

    def best(count: int) -> tuple[Ids, Ids]:
        ids = largest(deficit, tie_rank, count) if count else np.empty(0, dtype=np.int64)
        each = max_units[ids] if isinstance(max_units, np.ndarray) else max_units
        wanted = np.minimum(np.maximum(np.ceil(deficit[ids] - 1e-9), 1.0), each).astype(np.int64)
        return ids, np.clip(room - (np.cumsum(wanted) - wanted), 0, wanted)

    fewest = min(-(-room // most), short)
    ids, units = best(fewest)
    if (left := room - int(units.sum())) > 0 and fewest < short:
        ids, units = best(min(fewest + left, short))  # every further prompt wants at least one
    kept = int(np.count_nonzero(units))
    return ids[:kept], units[:kept]


def beta_draws(rng: np.random.Generator, a: Floats, b: Floats) -> Floats:
    """f64[n] one draw from each Beta(a, b), as a ratio of gamma draws: half the time of the
    generator's own."""
    rate, other = rng.standard_gamma(a), rng.standard_gamma(b)
    other += rate
    # Both are below the least float: the ratio of gammas does not depend on their sum.
    lost = np.flatnonzero(other == 0.0)
    other[lost] = 1.0
    rate /= other
    rate[lost] = rng.beta(a[lost], b[lost])
    return rate


def thompson_score(
    a: Floats,
    b: Floats,
    exposure: Ids,
    largest_c: float,
    utility: Utility,
    rng: np.random.Generator,
    wear: Floats | float = 1.0,
) -> Floats:
    """f64[P] in [0, 1]: the slope of each prompt's utility at its exposure if its success rate were
    one draw p from Beta(a, b).

    largest_c (1/unit) is the slope at exposure 0 of a prompt with p = 1/2. With a small saturation
    this is 4 p (1 - p).
    """
    worn = np.broadcast_to(np.asarray(wear, dtype=np.float64), a.shape)
    score = np.empty(a.shape[0])
    for part in blocks(a.shape[0]):
        rate = beta_draws(rng, a[part], b[part])
        worth = 4.0 * rate * (1.0 - rate)
        slope = utility.slope(largest_c * worth * worn[part], exposure[part])
        score[part] = slope / (largest_c * worn[part])
    return score
