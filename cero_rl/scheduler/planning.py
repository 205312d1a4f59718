"""What CERO plans: the state of a run and the choice of a round's prompts from it.

In: sizes and options, what is left of the budget. Out: a plan, prompt ids and their units. The
evidence goes in by cero.py, which learns from rounds and saves the state. Source: arXiv 2606.05606
and 2610.09679; the parts that go beyond them live in modules of their own (utility, value, worth,
cells, direction, reserve, plan, rules, tokens, progress) and are only put together here.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.cells import Cells
from cero_rl.scheduler.direction import FirstLooks
from cero_rl.scheduler.options import CeroOptions
from cero_rl.scheduler.plan import proximal_plan, ranked_plan
from cero_rl.scheduler.posterior import Floats, blocks
from cero_rl.scheduler.progress import LearningProgress
from cero_rl.scheduler.protocol import ExpectedTokens, Mask
from cero_rl.scheduler.reasons import Reasons, Reserved, put_first
from cero_rl.scheduler.reserve import LastLooks, Reserve
from cero_rl.scheduler.rules import fair_units, resolve_plan, thompson_score
from cero_rl.scheduler.sizes import BudgetSpec, Ids, Samples, Shared, require
from cero_rl.scheduler.tokens import TokenCosts
from cero_rl.scheduler.utility import utility_of
from cero_rl.scheduler.worth import Worth, per_prompt
from cero_rl.types import Allocation

# What a run changes in its rounds, whatever their number, sets these memories: parts of a run.
_CELL_MEMORY = 5.0
_DIRECTION_MEMORY = 1.5


class CeroPlans(BudgetedScheduler):
    """Slopes, price, exposures and parts of a run, and the plan that follows from them."""

    def __init__(self, spec: BudgetSpec, shared: Shared, options: CeroOptions) -> None:
        super().__init__(spec, shared)
        most = spec.max_units_per_prompt
        require(
            0 <= options.explore_units <= most,
            f"explore_units = {options.explore_units}, wanted 0 (off) .. max_units_per_prompt = "
            f"{most}",
        )
        require(
            not options.refit_prior_every or isinstance(self.posterior.prior[0], float),
            f"refit_prior_every = {options.refit_prior_every} needs one prior for all prompts; "
            "wanted 0 (off)",
        )
        self.options = options
        self.streaming = options.streaming
        self.saturation = float(shared.saturation)
        published = 1.0 / math.sqrt(spec.rounds)
        self.step_size = published if options.step_size is None else float(options.step_size)
        self.utility = utility_of(options.utility)
        pool = spec.num_prompts
        self.tokens: TokenCosts | None = None
        if options.token_costs or options.budget_tokens is not None:
            self.tokens = TokenCosts(pool, options.budget_tokens)
        self.cells: Cells | None = None
        if options.cells is not None:
            memory = options.cell_memory_rounds or max(spec.rounds / _CELL_MEMORY, 1.0)
            self.cells = Cells(options.cells, pool, memory)
        # [P] how many times as fast a prompt is worn out
        self._wear: Floats | float = 1.0
        if options.wear is not None:
            self._wear = per_prompt("wear", options.wear, pool, 0.01, 100.0)
        self._worth = Worth(
            options,
            spec.rollouts_per_unit * most,
            self.posterior,
            fair_rollouts=spec.budget_rollouts / pool,
            memory_rounds=options.direction_memory_rounds or spec.rounds / _DIRECTION_MEMORY,
        )
        self.reserve: Reserve | None = None
        if options.probe_share or options.explore_share:
            labels = np.zeros(pool, dtype=np.int64) if self.cells is None else self.cells.labels
            shares = options.probe_share, options.explore_share
            self.reserve = Reserve(labels, *shares, self.seed)
            self._worth.never_trained(self.reserve.probes)
        self._looks = LastLooks(pool) if self.reserve is None else self.reserve.looks
        self._exposure: Ids = np.zeros(pool, dtype=np.int64)  # [P] units executed so far
        self._price = float(options.price_init)
        self._revalue(None)
        self._slope: Floats = np.minimum(4.0 * self._value, 1.0)
        # Equal slopes go by this permutation, drawn once: a stateless rule, so a resumed run and
        # every rank break ties alike.
        self._tie_rank: Ids = np.random.default_rng(self.seed).permutation(pool)
        self._pool_changed = False

    # --- what can be read, and told

    @property
    def slope(self) -> Floats:
        """f64[P] copy of v, in [0, 1] (multiples of slope_max): today's worth of one more unit
        of each prompt."""
        return self._slope.copy()

    @property
    def price(self) -> float:
        """nu, in [0, 1] (multiples of slope_max): today's price of one unit of budget."""
        return self._price

    def metrics(self) -> dict[str, float | int]:
        """The means of every allocator, the price, the mean slope, and tokens left of a budget."""
        numbers = super().metrics()
        numbers |= {"cero/price": float(self.price), "cero/slope_mean": float(self._slope.mean())}
        if self.tokens is not None and self.tokens.budget_tokens is not None:
            numbers["budget/remaining_tokens"] = int(self.tokens.left_tokens)
        if self.cells is not None:
            numbers["cero/cell_spread"] = self.cells.spread()
        probes = None if self.reserve is None else self.reserve.probes
        a_pass = self.spec.num_prompts / self._fair_units(self.spec.max_units_per_prompt)
        numbers["cero/starved_share"] = self._looks.starved_share(self._round, a_pass, probes)
        return numbers | self._worth.metrics()

    @property
    def progress(self) -> LearningProgress | None:
        """Of the families, for value "progress"."""
        return self._worth.progress

    @property
    def direction(self) -> FirstLooks | None:
        """Of the cells, for direction "first_looks"."""
        return self._worth.direction

    @property
    def exposure(self) -> Ids:
        """i64[P] copy: units executed of each prompt so far."""
        return self._exposure.copy()

    @property
    def slope_max(self) -> float:
        """1/unit: the utility slope of a prompt of worth 1/4 at exposure 0."""
        return self.saturation * self.spec.num_prompts / self.spec.budget_units

    @property
    def exposure_cap(self) -> float:
        """Units: the most one prompt can get in the run, or the lower cap on its supporting
        exposure that cap_shares sets."""
        most = self.spec.rounds * self.spec.max_units_per_prompt
        return (
            most
            if self.options.cap_shares is None
            else min(most, self.options.cap_shares * self.spec.budget_units / self.spec.num_prompts)
        )

    def reasons(self) -> Reasons:
        """Slopes before the open round: the dual's own, or the utility's at the exposure so far."""
        before, first = self._exposure.copy(), {}
        if self._current is not None:
            opened = self._current.allocation
            units = self._current.served(self.spec.rollouts_per_unit)
            before[opened.prompt_ids] -= units
            first = self._put_first(opened)
        if self.options.plan == "duals":
            slope = self._slope.copy()
        else:
            rate = self.utility_rate() * self._wear
            slope = self.utility.slope(rate, before) / (self.slope_max * self._wear)
        if self.options.token_costs and self.tokens is not None:
            slope = slope / self.tokens.relative()
        return Reasons(slope, first)

    def _put_first(self, opened: Allocation) -> dict[Reserved, Ids]:
        """Of the open round's prompts, those of the reserve."""
        if self.reserve is None:
            return {}
        asked = -(-opened.rollouts.astype(np.int64) // self.spec.rollouts_per_unit)
        due = self.reserve.due_units(self._round, self._fair_units())
        return put_first(opened.prompt_ids, asked, self.reserve.probes, due)

    def utility_rate(self) -> Floats:
        """f64[P] c_i in 1/unit under today's posterior: the slope of prompt i's utility at
        exposure 0."""
        return (4.0 * self.slope_max) * self._value

    def _exhausted(self) -> bool:
        return self.tokens is not None and self.tokens.left_tokens <= 0

    # --- one round

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        plan = self._reserved_first(units_left, rounds_left)
        return plan if self.tokens is None else self.tokens.cut(*plan, self.spec.rollouts_per_unit)

    def _reserved_first(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        caps = self._caps()
        if self.reserve is None:
            return self._plan(units_left, rounds_left, caps, 0, None)
        fair = self._fair_units()
        ids, units = self.reserve.due(self._round, fair, caps, self._tie_rank, units_left)
        taken, aside = int(units.sum()), self.reserve.aside(ids)
        if taken >= min(self.spec.capacity_units, units_left) or aside.all():
            return ids, units
        rest = self._plan(units_left, rounds_left, caps, taken, aside)
        return np.concatenate((ids, rest[0])), np.concatenate((units, rest[1]))

    def _plan(
        self,
        units_left: int,
        rounds_left: int,
        caps: int | Ids,
        taken: int,
        aside: npt.NDArray[np.bool_] | None,
    ) -> tuple[Ids, Ids]:
        """The round's plan with `taken` units less, and without the prompts set aside bool[P]."""
        capacity = self.spec.capacity_units
        room = capacity - taken
        fair = fair_units(units_left, rounds_left, capacity) - taken
        if self.options.plan == "resolve":
            rate = self.utility_rate()
            if aside is not None:
                rate[aside] = 0.0
            plan = resolve_plan(
                rate,
                self._exposure,
                self.utility,
                self._tie_rank,
                caps,
                units_left - taken,
                rounds_left,
                max(fair, 0),
                self._wear,
            )
        else:
            score, price = self._slope, self._price
            forced = units_left - (rounds_left - 1) * capacity if self.options.spend_down else 0
            forced -= taken
            if self.options.plan == "thompson":
                rng = np.random.default_rng([self.seed, self._round, 1])
                score = thompson_score(
                    self.posterior.a,
                    self.posterior.b,
                    self._exposure,
                    self.slope_max,
                    self.utility,
                    rng,
                    self._wear,
                )
                if self._unjudged.any:
                    score *= self._unjudged.factor(self.posterior)
                if (factor := self._worth.factor()) is not None:
                    score *= factor
                price, room = -1.0, max(fair, 0)
            if self.options.token_costs and self.tokens is not None:
                score = score / self.tokens.relative()
            # Only a refund can leave more than the remaining rounds hold; the excess stays unspent.
            forced = min(max(forced, 0), room)
            if aside is not None:
                score = np.where(aside, -np.inf, score)
                forced = min(forced, int(np.broadcast_to(caps, aside.shape)[~aside].sum()))
            if self.options.proximal:
                target = np.empty(self.spec.num_prompts)
                for part in blocks(target.shape[0]):
                    target[part] = self._supported(part) / self._rounds_at_pace
                plan = proximal_plan(
                    score - price,
                    target,
                    self.options.proximal,
                    self._tie_rank,
                    caps,
                    room,
                    forced,
                )
            else:
                plan = ranked_plan(score, price, self._tie_rank, caps, room, forced)
        return plan

    def _supported(self, part: slice) -> Floats:
        """f64[len(part)] the exposure (units) at which each prompt's slope supports its utility."""
        largest = self.slope_max
        theta, c = largest * self._slope[part], (4.0 * largest) * self._value[part]
        if isinstance(self._wear, np.ndarray):
            theta, c = theta * self._wear[part], c * self._wear[part]
        return self.utility.supporting_exposure(theta, c, float(self.exposure_cap))

    def _caps(self) -> int | Ids:
        """The most units of a prompt in this round: fewer for one that nothing is known of, if
        exploration is on."""
        most = self.spec.max_units_per_prompt
        if not self.options.explore_units:
            return most
        seen = self._exposure > 0
        seen |= (
            self.posterior.a
            + self.posterior.b
            - (self.posterior.prior[0] + self.posterior.prior[1])
            >= 1.0
        )
        return np.where(seen, most, self.options.explore_units)

    def _serve(self, ids: Ids, units: Ids) -> None:
        self._exposure[ids] += units
        self._looks.served(ids[units > 0], self._round)

    @property
    def _has_probes(self) -> bool:
        return self.reserve is not None and bool(self.reserve.probes.any())

    @property
    def keeps_all(self) -> bool:
        return self.keep_rule is None and not self._has_probes

    def _keep(self, samples: Samples) -> Mask:
        """Probes train nothing."""
        if self.reserve is None:
            return super()._keep(samples)
        trains = ~self.reserve.probes[samples.prompt_ids]
        return np.repeat(trains, np.diff(samples.offsets))

    def _expect_tokens(self, expected_tokens: ExpectedTokens) -> None:
        if self.tokens is not None:
            self.tokens.set_expected(expected_tokens())

    def _spend_tokens(self, tokens: int) -> None:
        if self.tokens is not None:
            self.tokens.spend(tokens)

    def _revalue(self, ids: Ids | None) -> None:
        ids = self._worth.write(self.posterior, ids, self._value)
        self._discount(ids)
