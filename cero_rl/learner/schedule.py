"""The learning rate of an optimizer step."""

from __future__ import annotations

import math

from cero_rl.config.learner import OptimizerConfig


def learning_rate_at(update: int, optimizer: OptimizerConfig, planned_updates: int) -> float:
    """Learning rate of optimizer step `update` (0-based): linear warm-up, then constant, linear or
    cosine decay to 0."""
    if update < optimizer.warmup_steps:
        return optimizer.learning_rate * (update + 1) / optimizer.warmup_steps
    span = max(planned_updates - optimizer.warmup_steps, 1)
    done = min((update - optimizer.warmup_steps) / span, 1.0)
    if optimizer.schedule == "linear":
        return optimizer.learning_rate * (1.0 - done)
    if optimizer.schedule == "cosine":
        return optimizer.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
    return optimizer.learning_rate
