"""What every rollout engine does, whatever runs underneath."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cero_rl.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One group to sample: `rollouts` completions of one prompt. `first_draw` numbers them, so that draws are never repeated."""

    prompt_id: int
    prompt_tokens: npt.NDArray[np.int64]  # [m]
    rollouts: int
    stream_key: int  # identifies the prompt in the random stream: stable over runs, ranks and prompt order
    first_draw: int = 0


class RolloutEngine(Protocol):
    """Samples ragged groups. A completion is a pure function of (weights, seed, stream, stream_key, draw), not of its batch."""

    def generate(self, requests: Sequence[RolloutRequest], *, stream: int, temperature: float) -> list[RolloutGroup]:
        """Groups in the order of `requests`. `stream` separates rounds and evaluations from one another."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over all weights; completions carry `version` from now on. Consumes the iterator to its end."""
        ...
