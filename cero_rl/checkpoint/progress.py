"""Everything a run counts, and how it travels through a checkpoint: one place that knows what
has to be kept.

Free of the number of ranks: counts are summed over ranks before they get here, so any number of
ranks writes the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cero_rl.checkpoint.commit import RunState
from cero_rl.config import Config
from cero_rl.errors import CheckpointError
from cero_rl.learner.coverage import EntropyControl
from cero_rl.rewards.missing import MissingRewards
from cero_rl.rollout.lengths import LengthTracker
from cero_rl.scheduler import Scheduler
from cero_rl.scheduler.critic import CriticOptions, PosteriorCritic
from cero_rl.scheduler.ledger import Ledger
from cero_rl.scheduler.live_signal import LiveSignal
from cero_rl.scheduler.sizes import Ids, StateDict

_SCHEDULER = "scheduler."
_CRITIC = "critic."
_SIGNAL = "signal."
_COVERAGE = "coverage."
_COUNTERS = ("step", "updates", "bad_updates", "learned_steps")


@dataclass
class Progress:
    """Where a run stands, weights and scheduler left out. The frontier is what was trained, not
    what was generated ahead."""

    ledger: Ledger
    lengths: LengthTracker
    total_tokens: int | None = None  # budget in response tokens
    step: int = 0
    updates: int = 0
    learned_steps: int = 0  # that changed the weights
    bad_updates: int = 0  # optimizer steps in a row that were skipped for a bad gradient
    spent_before_step: float = 0.0  # budget position at the step's start; not kept
    decay_from: float = 0.0  # budget position at the end of the learning rate's warm-up
    eval_before: dict[str, float | int] = field(default_factory=dict)
    missing_rewards: MissingRewards = field(default_factory=MissingRewards)
    critic: PosteriorCritic | None = None  # where learner.baseline is posterior
    live_signal: LiveSignal | None = None  # where learner.live_signal_per_step is given
    coverage: EntropyControl | None = None  # where learner.entropy_target is given

    @classmethod
    def fresh(cls, config: Config, num_prompts: int, cells: Ids | None = None) -> Progress:
        """Of a run that begins. cells i64[P]: prompts that predict each other's rewards."""
        lengths = LengthTracker(
            num_prompts,
            first_guess_tokens=config.rollout.max_response_tokens / 2,
            turn_cost_tokens=config.rollout.turn_cost_tokens,
        )
        learner, critic, signal, coverage = config.learner, None, None, None
        if learner.baseline == "posterior":
            options = CriticOptions(learner.baseline_strength, learner.baseline_half_life)
            critic = PosteriorCritic(num_prompts, options, cells)
        if learner.live_signal_per_step is not None:
            signal = LiveSignal(learner.live_signal_per_step, learner.rollouts_per_step)
        if learner.entropy_target is not None:
            coverage = EntropyControl(learner.entropy_target, learner.positive_weight)
        return cls(
            Ledger(config.budget.total_rollouts),
            lengths,
            config.budget.total_tokens,
            critic=critic,
            live_signal=signal,
            coverage=coverage,
        )

    @property
    def budget_position(self) -> float:
        """Rollouts spent; where a budget in response tokens is further on, its share in rollouts
        (below the total while there are rollouts left)."""
        ledger = self.ledger
        if self.total_tokens is None:
            return ledger.spent_rollouts
        share = int(self.lengths.tokens.sum()) / self.total_tokens
        by_tokens = min(share * ledger.total_rollouts, ledger.total_rollouts - 1)
        return max(ledger.spent_rollouts, by_tokens)

    def _keepers(self) -> dict[str, PosteriorCritic | LiveSignal | EntropyControl]:
        """What this run has with a state of its own, by the prefix of its fields."""
        kept = {_CRITIC: self.critic, _SIGNAL: self.live_signal, _COVERAGE: self.coverage}
        return {prefix: keeper for prefix, keeper in kept.items() if keeper is not None}

    def state(self, scheduler: Scheduler, own: dict[str, Any]) -> RunState:
        """What a checkpoint keeps; `own` are this rank's arrays."""
        scalars: dict[str, Any] = {name: getattr(self, name) for name in _COUNTERS}
        scalars |= {
            "ledger": self.ledger.state(),
            "eval_before": self.eval_before,
            "decay_from": self.decay_from,
            "missing_rewards": self.missing_rewards.state(),
        }
        arrays: dict[str, Any] = {
            "lengths.tokens": self.lengths.tokens,
            "lengths.samples": self.lengths.samples,
        }
        parts: dict[str, StateDict] = {_SCHEDULER: scheduler.state_dict()}
        parts |= {prefix: keeper.state_dict() for prefix, keeper in self._keepers().items()}
        for prefix, part in parts.items():
            for name, value in part.items():
                (arrays if isinstance(value, np.ndarray) else scalars)[prefix + name] = value
        return RunState(scalars, arrays, own)

    def restore(self, state: RunState, scheduler: Scheduler) -> None:
        """Take over a checkpoint's state. Raises CheckpointError if it is not this scheduler's."""
        scalars, arrays = state.scalars, state.arrays

        def part(prefix: str) -> StateDict:
            both = {**scalars, **arrays}
            return {k[len(prefix) :]: v for k, v in both.items() if k.startswith(prefix)}

        try:
            scheduler.load_state_dict(part(_SCHEDULER))
            for prefix, keeper in self._keepers().items():
                keeper.load_state_dict(part(prefix))
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        for name in _COUNTERS:
            setattr(self, name, scalars.get(name, 0))
        self.lengths.tokens = arrays["lengths.tokens"]
        self.lengths.samples = arrays["lengths.samples"]
        self.eval_before = scalars["eval_before"]
        self.decay_from = scalars.get("decay_from", 0.0)  # checkpoints had none before 2026-11-26
        self.missing_rewards = MissingRewards(scalars.get("missing_rewards", []))
        self.ledger = Ledger(**scalars["ledger"])

    def set_budget(self, total_rollouts: int, scheduler: Scheduler) -> None:
        """A budget that was changed on resume. Raises CheckpointError where the rounds left cannot
        hold it."""
        if total_rollouts == self.ledger.total_rollouts:
            return
        try:
            scheduler.set_budget(total_rollouts)
        except ValueError as error:
            raise CheckpointError(
                f"budget.total_rollouts was {self.ledger.total_rollouts}, is {total_rollouts}: "
                f"{error}; scheduler.rounds and its capacity stay as they were, so give a budget "
                "that they can hold, or begin another run with scheduler.warm_start"
            ) from None
        self.ledger.total_rollouts = total_rollouts
