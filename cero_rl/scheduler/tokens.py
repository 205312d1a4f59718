"""Rollouts are not equally long: what a unit of each prompt costs relative to the pool's mean, and
an optional budget in tokens.

In: expected response tokens per prompt, tokens spent. Out: relative costs k f64[P], and plans cut
to the tokens left. Ours: with costs the round's margin is the density v_i/k_i - nu (worth per
token, less the price of a token), and the price follows tokens.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids, StateDict
from cero_rl.scheduler.state import read_array, read_scalar


class TokenCosts:
    """Expected response tokens of a pool of P prompts. budget_tokens (response tokens of the whole
    run; None: no such budget) is a second limit beside the rollouts: whichever is used up first
    ends the run. Raises ValueError unless it is >= 1 or None."""

    def __init__(self, num_prompts: int, budget_tokens: int | None) -> None:
        if budget_tokens is not None and budget_tokens < 1:
            raise ValueError(f"budget_tokens = {budget_tokens}, wanted an integer >= 1, or None")
        self.budget_tokens = budget_tokens
        self.spent_tokens = 0
        self._expected: Floats = np.ones(num_prompts)
        self.known = False

    @property
    def left_tokens(self) -> float:
        return math.inf if self.budget_tokens is None else self.budget_tokens - self.spent_tokens

    def set_expected(self, tokens: npt.ArrayLike) -> None:
        """Expected response tokens f64[P] > 0 of one rollout of each prompt. ValueError."""
        expected = np.array(tokens, dtype=np.float64)
        if expected.shape != self._expected.shape or not bool(
            (np.isfinite(expected) & (expected > 0.0)).all()
        ):
            raise ValueError(
                f"expected tokens: wanted {self._expected.shape[0]} positive finite "
                f"numbers, got shape {expected.shape}"
            )
        self._expected, self.known = expected, True

    def spend(self, tokens: int) -> None:
        """Book response tokens that were generated. ValueError if negative."""
        if tokens < 0:
            raise ValueError(f"spend({tokens}): wanted tokens >= 0")
        self.spent_tokens += int(tokens)

    def relative(self) -> Floats:
        """f64[P] with mean 1."""
        return self._expected / self._expected.mean()

    def cut(self, ids: Ids, units: Ids, rollouts_per_unit: int) -> tuple[Ids, Ids]:
        """The plan up to the tokens left, in its order, by expectation; empty once none are
        left."""
        if self.budget_tokens is None or not self.known:
            return (ids, units) if self.left_tokens > 0 else (ids[:0], units[:0])
        each = self._expected[ids] * rollouts_per_unit
        before = np.cumsum(each * units) - each * units
        fits = np.clip(np.floor((self.left_tokens - before) / each), 0, units).astype(np.int64)
        kept = fits > 0
        return ids[kept], fits[kept]

    def state(self) -> StateDict:
        return {
            "tokens_expected": self._expected.copy(),
            "tokens_known": self.known,
            "tokens_spent": self.spent_tokens,
        }

    def load(self, state: StateDict) -> None:
        expected = read_array(state, "tokens_expected", np.float64, self._expected.shape[0])
        self._expected, self.known = expected, bool(read_scalar(state, "tokens_known"))
        self.spent_tokens = int(read_scalar(state, "tokens_spent"))
