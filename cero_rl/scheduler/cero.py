"""The CERO scheduler: online primal-dual allocation of one rollout budget over prompts and rounds.

In:  per-prompt successes and trials of each round. Out: per-round Allocations that together never exceed the budget.
Source: Zong, Wang, Jiang, arXiv 2606.05606; Zong, Wang, Hu, Jiang, Shen, arXiv 2610.09679 (both without published code).

Each prompt keeps a slope v in [0, 1] (what one more unit is worth, falling with cumulative exposure, over the largest
possible slope) and the run keeps one price nu in [0, 1] for a unit of budget. A round gives units to the largest positive
margins v - nu; then both duals take one projected gradient step, against the plan as made (not as clipped by the budget) and
the worth just re-estimated.
"""

from __future__ import annotations

import math

import numpy as np

from cero_rl.scheduler.core import BudgetedScheduler, BudgetSpec, Floats, Ids, Scalar, StateDict, read_array, read_scalar
from cero_rl.scheduler.utility import supporting_exposure


def _largest(slope: Floats, tie_rank: Ids, count: int) -> Ids:
    """i64[count], count >= 1: the prompts of the largest slopes, best first, equal slopes by lower tie_rank."""
    pool = slope.shape[0]
    if count < pool:
        cut = np.partition(slope, pool - count)[pool - count]
        above, tied = np.flatnonzero(slope > cut), np.flatnonzero(slope == cut)
        wanted = count - above.shape[0]
        if wanted < tied.shape[0]:
            tied = tied[np.argpartition(tie_rank[tied], wanted - 1)[:wanted]]
        chosen = np.concatenate((above, tied))
    else:
        chosen = np.arange(pool)
    return chosen[np.lexsort((tie_rank[chosen], -slope[chosen]))]


def ranked_plan(
    slope: Floats, price: float, tie_rank: Ids, max_units: int, capacity_units: int, forced_units: int = 0
) -> tuple[Ids, Ids]:
    """Maximise sum_i (slope_i - price) n_i over integers 0 <= n_i <= max_units with forced_units <= sum n <= capacity_units.

    slope f64[P], tie_rank i64[P] a permutation. Returns ids i64[G], best margin first, and units i64[G]: max_units each, the
    last one the residual. Only positive margins are served, unless forced_units asks for more. The optimum of this linear
    problem is integral, so nothing is rounded.
    """
    positive = int(np.count_nonzero(slope > price))
    total = max(min(capacity_units, positive * max_units), forced_units)
    if total == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    groups = -(-total // max_units)
    ids = _largest(slope, tie_rank, groups)
    units = np.full(groups, max_units, dtype=np.int64)
    units[-1] = total - (groups - 1) * max_units
    return ids, units


class CeroScheduler(BudgetedScheduler):
    """CERO over a pool of P = num_prompts prompts.

    rounds, budget_rollouts (whole run), capacity_rollouts (per round), rollouts_per_unit (g) and max_units_per_prompt (Nmax,
    per round) set the sizes: a selected prompt gets a group of at most g*Nmax rollouts. saturation (lambda) says how fast a
    prompt is worn out at its fair share of the budget; prior and forgetting belong to the posterior; step_size is the
    gradient step of both duals (None: 1/sqrt(rounds), the published one); price_init is the first price, in [0, 1].

    spend_down makes the run end with the budget spent exactly. Proof: let L rounds be left, this one included, C the
    capacity and W <= L*C the remaining units (true at the start). The plan is forced to at least W - (L-1)*C <= C units, so
    W - plan <= (L-1)*C and the invariant holds for the next round; at L = 1 it forces W. A forced round leaves exactly
    (L-1)*C, so every later round is full: the price stops mattering once and for all. Forced units are part of the plan that
    the duals learn from, so prompts still rotate.

    Raises ValueError for sizes that contradict each other (see BudgetSpec) and for options out of range.
    """

    name = "cero"

    def __init__(
        self,
        num_prompts: int,
        rounds: int,
        budget_rollouts: int,
        rollouts_per_unit: int,
        max_units_per_prompt: int,
        capacity_rollouts: int,
        saturation: float = 1.0,
        prior: tuple[float, float] = (1.0, 1.0),
        forgetting: float = 1.0,
        step_size: float | None = None,
        price_init: float = 0.5,
        spend_down: bool = False,
        seed: int = 0,
    ) -> None:
        spec = BudgetSpec(num_prompts, rounds, budget_rollouts, rollouts_per_unit, max_units_per_prompt, capacity_rollouts)
        super().__init__(spec, prior, forgetting, seed)
        for option, number in (("saturation", saturation), ("step_size", 1.0 if step_size is None else step_size)):
            if not 0.0 < number < math.inf:
                raise ValueError(f"{option} = {number:g}, wanted a positive finite number")
        if not 0.0 <= price_init <= 1.0:
            raise ValueError(f"price_init = {price_init:g}, wanted a number in [0, 1]")
        self.saturation = float(saturation)
        self.step_size = float(step_size) if step_size is not None else 1.0 / math.sqrt(rounds)
        self.spend_down = bool(spend_down)
        self.price_init = float(price_init)
        self.exposure_cap = rounds * max_units_per_prompt  # units: the most one prompt can get in the run
        self.slope_max = self.saturation * num_prompts / spec.budget_units  # 1/unit: worth 1/4 at exposure 0
        self._price = self.price_init
        self._slope: Floats = np.minimum(4.0 * self._value, 1.0)
        # Equal slopes go by this permutation, drawn once: a stateless rule, so a resumed run and every rank break ties
        # alike.
        self._tie_rank: Ids = np.random.default_rng(self.seed).permutation(num_prompts)

    @property
    def slope(self) -> Floats:
        """f64[P] copy of v, in [0, 1] (multiples of slope_max): today's worth of one more unit of each prompt."""
        return self._slope.copy()

    @property
    def price(self) -> float:
        """nu, in [0, 1] (multiples of slope_max): today's price of one unit of budget."""
        return self._price

    def utility_rate(self) -> Floats:
        """f64[P] c_i in 1/unit under today's posterior: the slope of prompt i's utility at exposure 0."""
        return (4.0 * self.slope_max) * self._value

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        capacity = self.spec.capacity_units
        forced = units_left - (rounds_left - 1) * capacity if self.spend_down else 0
        # Only a refund can leave more than the remaining rounds hold; the excess stays unspent.
        forced = min(max(forced, 0), capacity)
        return ranked_plan(self._slope, self._price, self._tie_rank, self.spec.max_units_per_prompt, capacity, forced)

    def _learn(self, plan_ids: Ids, plan_units: Ids) -> None:
        """One projected gradient step of both duals, each gradient divided by its largest possible size."""
        spec, step = self.spec, self.step_size
        pull = supporting_exposure(self.slope_max * self._slope, self.utility_rate(), float(self.exposure_cap))
        pull *= step / (spec.rounds * spec.max_units_per_prompt)
        self._slope += pull
        self._slope[plan_ids] -= (step / spec.max_units_per_prompt) * plan_units
        np.clip(self._slope, 0.0, 1.0, out=self._slope)
        fair_units = spec.budget_units / spec.rounds
        gradient = (fair_units - int(plan_units.sum())) / max(fair_units, spec.capacity_units - fair_units)
        self._price = min(max(self._price - step * gradient, 0.0), 1.0)

    def _identity(self) -> dict[str, Scalar]:
        return {
            **super()._identity(), "saturation": self.saturation, "step_size": self.step_size, "price_init": self.price_init,
            "spend_down": self.spend_down,
        }  # fmt: skip

    def _extra_state(self) -> StateDict:
        return {"slope": self._slope.copy(), "price": self._price}

    def _load_extra(self, state: StateDict) -> None:
        slope, price = read_array(state, "slope", np.float64, self.spec.num_prompts), float(read_scalar(state, "price"))
        if not (0.0 <= price <= 1.0 and bool(((slope >= 0.0) & (slope <= 1.0)).all())):
            raise ValueError("scheduler state is damaged: slope and price must lie in [0, 1]")
        self._slope, self._price = slope, price
