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
from cero_rl.scheduler.plan import ranked_plan
from cero_rl.scheduler.posterior import Floats
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
    deficit = water_filling(
        c, units_left, rounds_left * int(np.max(max_units)), utility, exposure, wear
    )
    wanted = np.minimum(np.maximum(np.ceil(deficit - 1e-9), 1.0), max_units).astype(np.int64)
    return ranked_plan(
        deficit, 0.0, tie_rank, wanted, fair_units(units_left, rounds_left, capacity_units)
    )


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
    rate = rng.beta(a, b)
    worth = 4.0 * rate * (1.0 - rate)
    return utility.slope(largest_c * worth * wear, exposure) / (largest_c * wear)
