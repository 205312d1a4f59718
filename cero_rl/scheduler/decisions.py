"""What an allocator decides and learns: the methods that a subclass of BudgetedScheduler fills in.

In: what is left of the budget, and what came of rounds. Out: plans. Only `_choose` must be written.
"""

from __future__ import annotations

import numpy as np

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.protocol import ExpectedTokens, Mask
from cero_rl.scheduler.reasons import Reasons
from cero_rl.scheduler.sizes import Evidence, Ids, Samples, StateDict
from cero_rl.types import Allocation


class Decisions:
    """Abstract in `_choose`; everything else has a default that does nothing."""

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        """Distinct prompt ids i64[G] in execution order and their units i64[G] >= 1, before the
        budget clips them."""
        raise NotImplementedError

    def _choose_more(self, so_far: Evidence, units_left: int) -> tuple[Ids, Ids] | None:
        """A further wave of the open round (a prompt may come again), or None to close it; clipped
        by the budget like a plan."""
        return None

    def _keep(self, samples: Samples) -> Mask:
        """bool[R]: which rollouts train, before a keep rule. All of them, unless a subclass says
        no."""
        return np.ones(samples.rewards.shape[0], dtype=bool)

    def _learn(self, allocation: Allocation, wins: Floats, tries: Ids) -> None:
        """Called once a round, after the posterior has taken all of it in, with what the round
        executed and its counts [G]."""

    def _learn_part(self, plan_ids: Ids, plan_units: Ids, share: float) -> None:
        """Called after each part of a round is in the posterior, with that part of the plan as
        `_choose` returned it, less what was never generated, and its share (all parts sum to
        1)."""

    def _serve(self, ids: Ids, units: Ids) -> None:
        """Called with the units that prompts get when a wave is planned; with units below 0 when
        rollouts turn out not to have been generated."""

    def reasons(self) -> Reasons:
        """Why the open round's prompts were chosen, as far as more is known than their worth."""
        return Reasons()

    def _check(self, ids: Ids, wins: Floats, squares: Floats | None) -> None:
        """Called with evidence that is about to be taken in; may refuse it by a ValueError."""

    def _before_posterior(
        self, ids: Ids, wins: Floats, tries: Ids, squares: Floats, *, first: bool
    ) -> None:
        """Called with checked evidence before the posterior takes it in; `first`: of its round."""

    def _expect_tokens(self, expected_tokens: ExpectedTokens) -> None:
        """Called before a round is opened, for who prices tokens."""

    def _spend_tokens(self, tokens: int) -> None:
        """Called with the response tokens that were generated."""

    def _exhausted(self) -> bool:
        return False  # whether another limit than rounds and rollouts has ended the run

    def _extra_state(self) -> StateDict:
        return {}

    def _load_extra(self, state: StateDict) -> None:
        """Restore `_extra_state`; check everything before changing anything."""
