"""The CERO scheduler: online primal-dual allocation of one rollout budget over prompts and rounds.

In:  successes and trials of each round's groups. Out: per-round Allocations that together
never exceed the budget. Source: Zong, Wang, Jiang, arXiv 2606.05606; Zong, Wang, Hu, Jiang,
Shen, arXiv 2610.09679 (both without published code).

Each prompt keeps a slope v in [0, 1] (what one more unit is worth, falling with cumulative
exposure, over the largest possible slope) and the run keeps one price nu in [0, 1] for a unit of
budget. A round gives units to the largest positive margins v - nu; then both duals take one
projected gradient step, against the plan as made (not as clipped by the budget) and the worth
just re-estimated. With its defaults the class is that algorithm; what further options bring goes
beyond it, lives in a module of its own. planning.py has the state and the choice of a round; here
is what rounds teach, and what is saved.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.planning import CeroPlans
from cero_rl.scheduler.pool import PoolChange
from cero_rl.scheduler.posterior import Floats, Prior, blocks
from cero_rl.scheduler.prior import FitMethod, fit_to_evidence
from cero_rl.scheduler.sizes import Ids, Scalar, StateDict, require
from cero_rl.scheduler.state import read_array, read_scalar
from cero_rl.scheduler.tokens import TokenCosts
from cero_rl.scheduler.worth import digest
from cero_rl.types import Allocation


class Cero(CeroPlans):
    """CERO over a pool of P prompts: a selected prompt gets a group of at most g*Nmax rollouts
    (rollouts_per_unit times max_units_per_prompt) in a round.

    spend_down makes the run end with the budget spent exactly. Proof: let L rounds be left, this
    one included, C the capacity and W <= L*C the remaining units (true at the start). The plan
    is forced to at least W - (L-1)*C <= C units, so W - plan <= (L-1)*C and the invariant holds
    for the next round; at L = 1 it forces W. A forced round leaves exactly (L-1)*C, so every
    later round is full: the price stops mattering once and for all. Forced units are part of the
    plan that the duals learn from, so prompts still rotate. (Small exploration groups and a
    budget in tokens can leave a round unfilled.)

    What goes beyond the papers is off by default: CeroOptions says what each option is,
    docs/scheduler.md what it brings.

    Raises ValueError for sizes that contradict each other (see BudgetSpec) and for options out of
    range (see CeroOptions).
    """

    name = "cero"

    # --- what is told

    def warm_start(self, successes: npt.ArrayLike, failures: npt.ArrayLike) -> None:
        super().warm_start(successes, failures)
        self._worth.warm_start(successes, failures)
        self._revalue(None)
        self._slope = np.minimum(4.0 * self._value, 1.0)

    def set_pool(
        self,
        previous: npt.ArrayLike,
        new_prior: tuple[float, float] = (1.0, 1.0),
        labels: npt.ArrayLike | None = None,
        cells: npt.ArrayLike | None = None,
    ) -> None:
        """Exchange the pool between rounds: previous i64[P'] is each new prompt's index in the
        old pool, -1 for a prompt not in it.

        Prompts that stay keep posterior, slope, exposure and order of ties; new ones start from
        the prior (`new_prior` where the run has one per prompt, their cell's where it has cells).
        labels i64[P'] for value "progress", cells i64[P'] where the run has cells. A resumed run
        must be built with the new size. Raises RuntimeError in the middle of a round, ValueError
        for indices that repeat or do not exist or sizes that no longer fit.
        """
        if self._current is not None:
            raise RuntimeError("set_pool() in the middle of a round: close it first")
        require(
            (self.cells is None) == (cells is None),
            "cells: wanted where the run has them, one per prompt of the new pool",
        )
        require(isinstance(self._wear, float), "wear is that of one pool: it cannot be exchanged")
        change = PoolChange.of(np.asarray(previous), self.spec.num_prompts)
        spec = replace(self.spec, num_prompts=change.size)
        grown = None
        if self.cells is not None and cells is not None:
            grown = self.cells.over(cells, change.size)
        posterior = change.posterior(self.posterior, new_prior)
        progress = self._worth.labelled(labels, change.size)

        # Everything is checked: from here on the scheduler changes.
        self.spec = spec
        self._latest = None  # its groups are of the old pool: nothing of it can fail any more
        self._unjudged = self._unjudged.carried(change)
        fair = self._configured_rollouts / change.size
        where = None if grown is None else grown.labels
        self._worth.carry(change, posterior, progress, where, fair)
        self.posterior = posterior
        if grown is None and not isinstance(posterior.prior[0], float):
            self._prior_identity = posterior.prior_identity()
        self.cells = grown
        if self.reserve is not None:
            one = np.zeros(change.size, dtype=np.int64)
            self.reserve = self.reserve.over(one if where is None else where, change, self._round)
            self._worth.never_trained(self.reserve.probes)
        self._looks = self._looks.over(change) if self.reserve is None else self.reserve.looks
        if grown is not None and (prior := grown.prior()) is not None:
            self._set_prior(prior)
        self._value = np.empty(change.size)
        self._revalue(None)
        self._slope = change.carry(self._slope, np.minimum(4.0 * self._value, 1.0))
        self._exposure = change.carry(self._exposure, np.zeros(change.size, dtype=np.int64))
        rng = np.random.default_rng([self.seed, self._round, change.size])
        self._tie_rank = change.ranks(self._tie_rank, rng)
        self._pool_changed = True
        if self.tokens is not None:  # expected lengths come again with the next round
            spent = self.tokens.spent_tokens
            self.tokens = TokenCosts(change.size, self.tokens.budget_tokens)
            self.tokens.spent_tokens = spent

    # --- what a round teaches

    def _check(self, ids: Ids, wins: Floats, squares: Floats | None) -> None:
        self._worth.check(wins, squares)

    def _before_posterior(
        self, ids: Ids, wins: Floats, tries: Ids, squares: Floats, *, first: bool
    ) -> None:
        if self.cells is not None:
            self.cells.observe(ids, wins, tries, self.posterior.evidence_at(ids))
        self._worth.before_posterior(self.posterior, ids, wins, tries, squares, first=first)

    def _learn_part(self, plan_ids: Ids, plan_units: Ids, share: float) -> None:
        """One projected gradient step of both duals, each gradient divided by its largest
        possible size; `share` of it for a part."""
        spec, step = self.spec, self.step_size
        pull_factor = step / (self._rounds_at_pace * spec.max_units_per_prompt) * share
        push = (step / spec.max_units_per_prompt) * plan_units
        for part in blocks(self._slope.shape[0]):
            pull = self._supported(part)
            pull *= pull_factor
            self._slope[part] += pull
        self._slope[plan_ids] -= push
        np.clip(self._slope, 0.0, 1.0, out=self._slope)
        # Slopes move too little a round to follow a prompt that turns out not to be judged: there
        # the bound of every slope, that of the utility at exposure 0, is imposed.
        if self._unjudged.any:
            aside = self._unjudged.set_aside(self.posterior)
            self._slope[aside] = np.minimum(self._slope[aside], 4.0 * self._value[aside])
        costs = (
            self.tokens.relative()[plan_ids]
            if self.options.token_costs and self.tokens is not None
            else 1.0
        )
        fair, planned = self._fair_units(), float(np.sum(plan_units * costs))
        gradient = (fair * share - planned) / max(fair, spec.capacity_units - fair)
        self._price = min(max(self._price - step * gradient, 0.0), 1.0)

    def _learn(self, allocation: Allocation, wins: Floats, tries: Ids) -> None:
        if self.cells is not None:
            self.cells.close_round()
        if self._worth.close_round():
            self._revalue(None)
        if (
            self.options.refit_prior_every
            and (self._round + 1) % self.options.refit_prior_every == 0
        ):
            self.refit_prior()

    def refit_prior(self, method: FitMethod = "moments") -> Prior | None:
        """Exchange the prior for the one that the pool's own counts suggest (with cells, and
        cell_prior: each cell's, by moments), and return it; prompts never served restart from it.

        None, and no change, while fewer than two prompts have evidence.
        """
        evidence = self.posterior.evidence()
        fresh: tuple[float, float] | tuple[Floats, Floats] | None
        if self.cells is not None and self.options.cell_prior:
            fresh = self.cells.fit(*evidence)
        else:
            fresh = fit_to_evidence(*evidence, method)
        del evidence  # two numbers a prompt
        if fresh is None:
            return None
        self._set_prior(fresh)
        self._revalue(None)
        unserved = self._exposure == 0
        self._slope[unserved] = np.minimum(4.0 * self._value[unserved], 1.0)
        return fresh

    def _set_prior(self, prior: tuple[float, float] | tuple[Floats, Floats]) -> None:
        if self._worth.is_graded:
            self._worth.before_prior(prior[0] - self.posterior.prior[0])
        self.posterior.set_prior(prior)

    # --- state

    @property
    def _refits_one(self) -> bool:
        """Is a prior for all prompts refitted?"""
        by_cell = self.cells is not None and self.options.cell_prior
        return self.options.refit_prior_every > 0 and not by_cell

    def _identity(self) -> dict[str, Scalar]:
        return {
            **super()._identity(),
            "saturation": self.saturation,
            "step_size": self.step_size,
            **self.options.identity(),
            **self._worth.identity(),
            **({"wear": digest(self._wear)} if isinstance(self._wear, np.ndarray) else {}),
        }

    def _extra_state(self) -> StateDict:
        state: StateDict = {
            "slope": self._slope.copy(),
            "price": self._price,
            "exposure": self._exposure.copy(),
        }
        if self.reserve is None:
            state["last_looks"] = self._looks.rounds.copy()
        if self._pool_changed:
            state["tie_rank"] = self._tie_rank.copy()
        if self._refits_one:
            state["prior_now"] = np.array(self.posterior.prior, dtype=np.float64)
        for part in (self.tokens, self._worth, self.cells, self.reserve):
            state |= part.state() if part is not None else {}
        return state

    def _load_extra(self, state: StateDict) -> None:
        pool = self.spec.num_prompts
        slope, price = (
            read_array(state, "slope", np.float64, pool),
            float(read_scalar(state, "price")),
        )
        exposure = read_array(state, "exposure", np.int64, pool)
        if not (
            0.0 <= price <= 1.0
            and bool(((slope >= 0.0) & (slope <= 1.0)).all())
            and bool((exposure >= 0).all())
        ):
            raise ValueError(
                "scheduler state is damaged: slope and price must lie in [0, 1], exposure "
                "must be >= 0"
            )
        tie_rank = read_array(state, "tie_rank", np.int64, pool) if "tie_rank" in state else None
        own = self._identity()
        for key in ("cell_prior", "direction", "probe_share", "wear", "weights"):
            require(
                key in own or key not in state,
                f"scheduler state field {key!r} is of a run that had it, and this run has none",
            )
        prior = read_array(state, "prior_now", np.float64, 2) if self._refits_one else None
        for part in (self.tokens, self._worth, self.cells, self.reserve):
            if part is not None:
                part.load(state)
        if self.reserve is not None:
            self._worth.never_trained(self.reserve.probes)
        elif "last_looks" in state:
            self._looks.rounds = read_array(state, "last_looks", np.int64, pool)
        else:  # a state of before it was kept: counted from here on
            current = int(read_scalar(state, "round"))
            self._looks.rounds = np.full(pool, current, dtype=np.int64)
        self._slope, self._price, self._exposure = slope, price, exposure
        if tie_rank is not None:
            self._tie_rank, self._pool_changed = tie_rank, True
        if prior is not None:
            self.posterior.prior = (float(prior[0]), float(prior[1]))
        elif self.cells is not None and (by_cell := self.cells.prior()) is not None:
            self.posterior.prior = by_cell
