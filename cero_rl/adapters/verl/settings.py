"""The `cero` block of a verl configuration, and the scheduler it asks for; imports no verl.

A round is one verl step. The default budget is what `rounds` steps of the same script would cost:
rounds * data.train_batch_size * actor_rollout_ref.rollout.n rollouts, spent exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cero_rl.adapters.rounds import published_cero
from cero_rl.scheduler import Scheduler, make_scheduler


@dataclass(frozen=True, slots=True)
class CeroSettings:
    """Keys of the block; rounds is required. Sizes in rollouts. Raises ValueError for an unknown
    key or a missing `rounds`."""

    rounds: int
    scheduler: str = "cero"
    budget_rollouts: int | None = None  # None: rounds * capacity
    rollouts_per_unit: int | None = None  # None: rollout.n
    max_units_per_prompt: int = 1
    saturation: float = 1.0
    step_scale: float = 1.0  # dual step in units of the published 1/sqrt(rounds)
    forgetting: float = 1.0
    success_threshold: float = 0.5  # a rollout is a success when its score is larger
    seed: int = 0

    @classmethod
    def read(cls, block: Mapping[str, Any] | None) -> CeroSettings:
        """The settings of verl's configuration. Raises ValueError for a name that is none."""
        known = {field.name for field in fields(cls)}
        given = dict(block or {})
        unknown = sorted(set(given) - known)
        if unknown:
            raise ValueError(
                f"cero.{unknown[0]}: is not a setting, wanted one of {', '.join(sorted(known))}"
            )
        if not given.get("rounds"):
            raise ValueError(
                "cero.rounds: is missing; add +cero.rounds=N, the number of verl steps the "
                "budget is made for"
            )
        return cls(**given)

    def make_scheduler(self, num_prompts: int, train_batch_size: int, rollout_n: int) -> Scheduler:
        """The scheduler for a pool of num_prompts. Raises ValueError for sizes that contradict each
        other."""
        capacity = train_batch_size * rollout_n
        return make_scheduler(
            self.scheduler,
            num_prompts=num_prompts,
            rounds=self.rounds,
            budget_rollouts=self.rounds * capacity
            if self.budget_rollouts is None
            else self.budget_rollouts,
            rollouts_per_unit=rollout_n
            if self.rollouts_per_unit is None
            else self.rollouts_per_unit,
            max_units_per_prompt=self.max_units_per_prompt,
            capacity_rollouts=capacity,
            saturation=self.saturation,
            forgetting=self.forgetting,
            cero=published_cero(self.scheduler, self.rounds, self.step_scale),
            seed=self.seed,
        )
