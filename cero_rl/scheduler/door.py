"""CERO by keywords, for a training loop of one's own: the class of the README."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from cero_rl.scheduler.cero import Cero
from cero_rl.scheduler.options import CeroOptions
from cero_rl.scheduler.posterior import Prior
from cero_rl.scheduler.sizes import BudgetSpec, Shared
from cero_rl.scheduler.tokens import TokenCosts


class CeroScheduler(Cero):
    """CERO by keywords, for a training loop of one's own: `next_round()`, then
    `update(successes, trials)`.

    num_prompts, rounds, budget_rollouts (whole run), rollouts_per_unit (g), max_units_per_prompt
    (Nmax, per round) and capacity_rollouts (per round) set the sizes; saturation, prior, forgetting
    and seed are those of `Shared`; `options` are the fields of `CeroOptions`. Raises ValueError,
    and TypeError for an option that does not exist.
    """

    def __init__(
        self,
        num_prompts: int,
        rounds: int,
        budget_rollouts: int,
        rollouts_per_unit: int,
        max_units_per_prompt: int,
        capacity_rollouts: int,
        saturation: float = 1.0,
        prior: Prior = (1.0, 1.0),
        forgetting: float = 1.0,
        *,
        seed: int = 0,
        **options: Any,
    ) -> None:
        spec = BudgetSpec(
            num_prompts,
            rounds,
            budget_rollouts,
            rollouts_per_unit,
            max_units_per_prompt,
            capacity_rollouts,
        )
        super().__init__(spec, Shared(prior, forgetting, saturation, seed), CeroOptions(**options))

    def set_expected_tokens(self, tokens: npt.ArrayLike) -> None:
        """Expected response tokens f64[P] > 0 of a rollout of each prompt, for token_costs and
        budget_tokens; the same on every rank."""
        self._priced("set_expected_tokens()").set_expected(tokens)

    def spend_tokens(self, tokens: int) -> None:
        """Book response tokens generated on ALL ranks against budget_tokens."""
        self._priced("spend_tokens()").spend(tokens)

    def _priced(self, call: str) -> TokenCosts:
        if self.tokens is None:
            raise ValueError(f"{call} needs token_costs or budget_tokens")
        return self.tokens
