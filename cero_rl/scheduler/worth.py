"""The worth of a rollout of every prompt, put together: a function of its posterior, what that
function needs beside it, and what multiplies it.

In: the posterior, and the evidence of each round before the posterior takes it in. Out: worth
f64[P] in [0, 1/4], which CERO allocates by. The functions are in value.py, learning progress is in
progress.py.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.direction import FirstLooks
from cero_rl.scheduler.options import CeroOptions
from cero_rl.scheduler.pool import PoolChange
from cero_rl.scheduler.posterior import BetaPosterior, Floats, blocks
from cero_rl.scheduler.progress import LearningProgress
from cero_rl.scheduler.sizes import Ids, Scalar, StateDict, require
from cero_rl.scheduler.state import read_array
from cero_rl.scheduler.value import ValueFunction, graded_variance, value_function


def per_prompt(
    name: str, given: npt.ArrayLike, num_prompts: int, least: float, most: float
) -> Floats:
    """A private copy f64[P] of numbers in [least, most]. Raises ValueError for anything else."""
    numbers = np.array(given, dtype=np.float64)
    require(
        numbers.shape == (num_prompts,) and bool(((numbers >= least) & (numbers <= most)).all()),
        f"{name}: wanted {num_prompts} numbers in [{least:g}, {most:g}], one per prompt",
    )
    return numbers


def digest(numbers: Floats) -> str:
    """Of a vector, for the identity of a saved state."""
    return "sha256:" + hashlib.sha256(numbers.tobytes()).hexdigest()


class Worth:
    """Of a pool of P prompts, from groups of at most `group` rollouts. Raises ValueError for
    options that do not fit the pool."""

    def __init__(
        self,
        options: CeroOptions,
        group: int,
        posterior: BetaPosterior,
        fair_rollouts: float,
        memory_rounds: float,
    ) -> None:
        value = options.value
        if callable(value):
            self._function: ValueFunction = value
            self.name = f"{value.__module__}.{value.__qualname__}"
        else:
            self._function = value_function(value, group, options.pass_k)
            self.name = f"pass_at_{options.pass_k}" if value == "pass_at_k" else value
        # [P] in [0, 1]
        self._weights = None
        if options.weights is not None:
            self._weights = per_prompt("weights", options.weights, posterior.a.shape[0], 0.0, 1.0)
        # [P] sum of squared rewards, prior included
        self._squares = posterior.a.copy() if value == "graded" else None
        self.progress: LearningProgress | None = None
        if options.labels is not None:
            self.progress = LearningProgress(
                options.labels,
                posterior.a.shape[0],
                options.progress_floor,
                options.progress_memory_rounds,
            )
        self.direction: FirstLooks | None = None
        if options.direction == "first_looks" and options.cells is not None:
            self.direction = FirstLooks(
                options.cells,
                fair_rollouts,
                options.direction_floor,
                options.direction_ucb,
                memory_rounds,
            )

    @property
    def is_graded(self) -> bool:
        """Does it need the sums of squared rewards?"""
        return self._squares is not None

    def write(self, posterior: BetaPosterior, ids: Ids | None, out: Floats) -> Ids | None:
        """Recompute entries `ids` (None: all) of out f64[P]; returns which were (None: all)."""
        a, b, squares = posterior.a, posterior.b, self._squares
        if self.progress is not None:
            ids = None  # one prompt's progress changes the factor of all
        for part in blocks(a.shape[0]) if ids is None else (ids,):
            out[part] = (
                self._function(a[part], b[part])
                if squares is None
                else graded_variance(a[part], b[part], squares[part])
            )
            if self._weights is not None:
                out[part] *= self._weights[part]
            if self.direction is not None:
                out[part] *= self.direction.factor_at(part)
        if self.progress is not None:
            out *= self.progress.factor()
        return ids

    def metrics(self) -> dict[str, float | int]:
        if self.direction is None:
            return {}
        return {
            "cero/direction_mean": float(self.direction.factor().mean()),
            "cero/looked_share": self.direction.looked_share,
        }

    def factor(self) -> Floats | None:
        """f64[P] in [0, 1] that the worth is multiplied by beside the posterior; None: by nothing.
        For a plan with a worth of its own."""
        factor = self._weights
        if self.direction is not None:
            omega = self.direction.factor()
            factor = omega if factor is None else factor * omega
        return factor

    # --- evidence

    def warm_start(self, successes: npt.ArrayLike, failures: npt.ArrayLike) -> None:
        """Evidence f64[P] of an earlier run came to the posterior; its rewards count as 0 or 1."""
        wins = np.asarray(successes, dtype=np.float64)
        if self._squares is not None:
            self._squares += wins
        if self.direction is not None:
            self.direction.know(np.flatnonzero(wins + np.asarray(failures) > 0.0))

    def check(self, wins: Floats, squares: Floats | None) -> None:
        """Raises ValueError for sums of squares [G] that are needed and missing, or impossible."""
        if self._squares is None:
            return
        fits = squares is not None and bool(((squares >= 0) & (squares <= wins + 1e-9)).all())
        require(
            fits,
            "value = 'graded' needs squares, one sum of squared rewards in [0, successes] per "
            "prompt",
        )

    def before_posterior(
        self,
        posterior: BetaPosterior,
        ids: Ids,
        wins: Floats,
        tries: Ids,
        squares: Floats,
        *,
        first: bool,
    ) -> None:
        """Checked evidence [G] that the posterior has not taken in yet; `first`: of its round."""
        if self._squares is not None:
            if first:
                prior, rho = posterior.prior[0], posterior.forgetting
                self._squares *= rho
                self._squares += (1.0 - rho) * prior
            self._squares[ids] += squares
        if self.progress is not None:
            before = [counts[ids] for counts in posterior.evidence()]
            self.progress.observe(ids, wins, tries, *before)
        if self.direction is not None:
            expected = posterior.a[ids] / (posterior.a[ids] + posterior.b[ids])
            self.direction.observe(ids, wins, tries, expected)

    def never_trained(self, prompts: npt.NDArray[np.bool_]) -> None:
        """bool[P] prompts that are looked at and train nothing."""
        if self.direction is not None:
            self.direction.probes = prompts

    def before_prior(self, change: Floats | float) -> None:
        """The prior's pseudo-successes a0 are about to change by `change`."""
        if self._squares is not None:
            self._squares += change

    def close_round(self) -> bool:
        """The round is over; did that change the worth of all?"""
        for part in (self.progress, self.direction):
            if part is not None:
                part.close_round()
        return self.progress is not None or self.direction is not None

    # --- another pool

    def labelled(self, labels: npt.ArrayLike | None, num_prompts: int) -> LearningProgress | None:
        """The progress over a pool with `labels` i64[P']. Raises ValueError; changes nothing."""
        require(self._weights is None, "weights are those of one pool: it cannot be exchanged")
        require(
            (self.progress is not None) == (labels is not None),
            "labels belong to value = 'progress', and there they are needed: one per prompt of the "
            "new pool",
        )
        if self.progress is None or labels is None:
            return None
        return self.progress.with_labels(labels, num_prompts)

    def carry(
        self,
        change: PoolChange,
        posterior: BetaPosterior,
        progress: LearningProgress | None,
        cells: Ids | None,
        fair_rollouts: float,
    ) -> None:
        """Go over to the pool of `posterior`."""
        if self._squares is not None:
            fresh = np.broadcast_to(posterior.prior[0], (change.size,))
            self._squares = change.carry(self._squares, fresh)
        self.progress = progress
        if self.direction is not None and cells is not None:
            self.direction = self.direction.over(cells, change, fair_rollouts)

    # --- state

    def identity(self) -> dict[str, Scalar]:
        """What a saved state must agree in."""
        named: dict[str, Scalar] = {"value_name": self.name}
        if self._weights is not None:
            named["weights"] = digest(self._weights)
        return named

    def state(self) -> StateDict:
        state: StateDict = {}
        if self._squares is not None:
            state["squares"] = self._squares.copy()
        for part in (self.progress, self.direction):
            state |= part.state() if part is not None else {}
        return state

    def load(self, state: StateDict) -> None:
        """The inverse of `state`. Raises ValueError for a damaged one."""
        squares = self._squares
        if squares is not None:
            squares = read_array(state, "squares", np.float64, squares.shape[0])
        for part in (self.progress, self.direction):
            if part is not None:
                part.load(state)
        self._squares = squares
