"""How long answers are: expected response tokens of a prompt, learned as the run goes on. A turn of
an episode may cost some more."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cero_rl.rollout.counts import GroupCounts


class LengthTracker:
    """Expected response tokens of a prompt: its own mean so far, the pool's mean before that. The
    same on every rank."""

    def __init__(
        self, num_prompts: int, first_guess_tokens: float, turn_cost_tokens: int = 0
    ) -> None:
        self.tokens = np.zeros(num_prompts, dtype=np.int64)
        self.samples = np.zeros(num_prompts, dtype=np.int64)
        self._first_guess = first_guess_tokens
        self._turn_cost = turn_cost_tokens

    def expected(self, prompt_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        known = self.samples.sum()
        typical = self.tokens.sum() / known if known else self._first_guess
        tokens, samples = self.tokens[prompt_ids], self.samples[prompt_ids]
        return np.where(samples > 0, tokens / np.maximum(samples, 1), typical)

    def update(self, prompt_ids: npt.NDArray[np.int64], counts: GroupCounts) -> None:
        """Learn from the counts [G] of a step's groups, of all ranks."""
        cost = counts.response_tokens + self._turn_cost * counts.turns
        np.add.at(self.tokens, prompt_ids, cost)
        np.add.at(self.samples, prompt_ids, counts.generated)

    def expected_of_all(self) -> npt.NDArray[np.float64]:
        """f64[P]"""
        return self.expected(np.arange(self.tokens.shape[0]))
