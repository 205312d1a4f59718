"""Controls that share CERO's machinery and leave one part of it out: the choice of prompts, or the
price.

Source: the comparisons of arXiv 2606.05606 and 2610.09679 (no published code).
"""

from __future__ import annotations

import numpy as np

from cero_rl.scheduler.cero import Cero
from cero_rl.scheduler.plan import ranked_plan
from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.reasons import Reserved
from cero_rl.scheduler.sizes import Ids
from cero_rl.scheduler.uniform import even_share
from cero_rl.types import Allocation

_DRAWS = 0x5A0F  # keeps this stream apart from the others of the same seed


class RandomMatchedScheduler(Cero):
    """CERO's group sizes, round by round, on prompts drawn at random: what the sizes alone are
    worth.

    Departure: the papers shuffle the prompts of a finished CERO run; here the duals run live and
    are charged for the prompts that were really served, so one run needs no other. Takes
    CERO's options.
    """

    name = "random_matched"

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        _, units = super()._choose(units_left, rounds_left)
        drawn = np.random.default_rng([self.seed, _DRAWS, self._round]).permutation(
            self.spec.num_prompts
        )
        return drawn[: units.shape[0]], units

    def _put_first(self, opened: Allocation) -> dict[Reserved, Ids]:
        return {}


class FixedPriceScheduler(Cero):
    """CERO with the price held at 0: every round spends the same quota on the largest slopes,
    whatever they are.

    It spends exactly; price_init and spend_down have no effect. Takes CERO's options.
    """

    name = "fixed_price"

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        most = self.spec.max_units_per_prompt
        quota = even_share(units_left, rounds_left, self.spec.capacity_units, most)
        return ranked_plan(self._slope, 0.0, self._tie_rank, most, quota, quota)

    def _put_first(self, opened: Allocation) -> dict[Reserved, Ids]:
        return {}

    def _learn(self, allocation: Allocation, wins: Floats, tries: Ids) -> None:
        super()._learn(allocation, wins, tries)
        self._price = 0.0
