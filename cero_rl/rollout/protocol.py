"""What every rollout engine does, whatever runs underneath."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cero_rl.data.prompts import Prompt
from cero_rl.types import RolloutGroup

# an engine must have room for one sequence of both, if the model has: the parity probe of every
# weight sync
PROBE_TOKENS = 8
PROBE_PROMPT_TOKENS = 160


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One group to sample: `rollouts` completions of one prompt. `first_draw` numbers them, so
    that draws are never repeated."""

    prompt_id: int
    prompt_tokens: npt.NDArray[np.int64]  # [m]
    rollouts: int
    # identifies the prompt in the random stream: stable over runs, ranks and prompt order
    stream_key: int
    first_draw: int = 0
    max_tokens: int | None = None  # of a response, below the limit of the call
    task: Prompt | None = None  # what an environment is told; None: a plain completion

    def limit(self, of_call: int) -> int:
        """The most tokens that a response of this request may have."""
        return of_call if self.max_tokens is None else min(self.max_tokens, of_call)


class RolloutEngine(Protocol):
    """Samples ragged groups. The random numbers of a completion are a function of (seed, stream,
    stream_key, draw), not of its batch.

    With the transformers engine the completion itself is; vLLM's rounding varies with its batch,
    so a near-tie may fall otherwise.
    """

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        *,
        stream: int,
        temperature: float,
        max_tokens: int | None = None,
    ) -> list[RolloutGroup]:
        """Groups in the order of `requests`. `stream` separates rounds and evaluations from one
        another.

        `max_tokens` lowers the engine's own limit. A group may come back short: what is missing
        failed, and is refunded.
        """
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over all weights; completions carry `version` from now on. Consumes the iterator
        to its end, even on failure."""
        ...

    def sleep(self) -> None:
        """Free accelerator memory until the next `load_weights`, where the engine can."""
        ...
