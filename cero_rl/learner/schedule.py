"""The learning rate of an optimizer step: from the ledger, never from a count of steps.

How many steps a budget makes depends on capacity, waves, cuts, empty rounds and refunds. How much
of it is spent does not: the decay follows the budget and reaches 0 only where the budget ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cero_rl.config.learner import OptimizerConfig


@dataclass(frozen=True)
class Spending:
    """One batch in the run's budget, in rollouts: where it stood `before` and `after` the batch was
    generated, and the `total`. `decay_from`: where it stood when the warm-up ended."""

    before: float
    after: float
    total: int
    decay_from: float

    def at(self, index: int, passes: int) -> float:
        """Where update `index` of `passes` over the batch begins."""
        return self.before + (self.after - self.before) * index / passes


def learning_rates(
    optimizer: OptimizerConfig, batch: Spending, *, updates_before: int, passes: int
) -> tuple[list[float], float]:
    """(the rate of each of `passes` updates over one batch, the new `decay_from`).

    A linear rise over optimizer.warmup_steps updates; then constant, or linear or cosine decay over
    the budget that was left when the warm-up ended. Above 0 for every rollout of the budget.
    """
    rates: list[float] = []
    # a resume with another budget moves where a budget in tokens stands
    decay_from = min(batch.decay_from, batch.before)
    for index in range(passes):
        update = updates_before + index
        if update < optimizer.warmup_steps:
            rise = optimizer.learning_rate * (update + 1) / optimizer.warmup_steps
            rates.append(min(rise, optimizer.learning_rate))  # 13 / 13 of it may round to above it
            decay_from = batch.at(index + 1, passes)
        else:
            span = max(batch.total - decay_from, 1.0)
            done = (batch.at(index, passes) - decay_from) / span
            rates.append(_decayed(optimizer, max(done, 0.0)))
    return rates, decay_from


def _decayed(optimizer: OptimizerConfig, done: float) -> float:
    if optimizer.schedule == "linear":
        return optimizer.learning_rate * (1.0 - done)
    if optimizer.schedule == "cosine":
        return optimizer.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
    return optimizer.learning_rate
