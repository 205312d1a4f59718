"""What the training loop may ask of any allocator, and no more.

One round:  open_round() -> Allocation | None;  sample it;  while next_wave(so far) gives one,
sample that too;  observe(evidence), at once or step by step;  train on keep(samples);
close_round(). The same calls with the same global counts on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.reasons import Reasons
from cero_rl.scheduler.sizes import Evidence, Samples, StateDict
from cero_rl.types import Allocation

ExpectedTokens: TypeAlias = Callable[[], Floats]  # f64[P] > 0, response tokens of one rollout
Mask: TypeAlias = npt.NDArray[np.bool_]


class Scheduler(Protocol):
    """One rollout budget over P prompts and K rounds."""

    def open_round(self, expected_tokens: ExpectedTokens | None = None) -> Allocation | None:
        """The next round's Allocation, or None once the rounds or the budget are used up.

        `expected_tokens` is called only by an allocator that prices tokens.
        """
        ...

    def next_wave(self, so_far: Evidence) -> Allocation | None:
        """A further wave of the open round in answer to what all its groups brought so far, or
        None when the round's sampling is complete."""
        ...

    def keep(self, samples: Samples) -> Mask:
        """bool[R]: which rollouts train. Group by group, so ranks may ask for their own groups."""
        ...

    def observe(self, evidence: Evidence) -> None:
        """What came of the round's next groups. To learn at once or to wait for the round's end is
        the allocator's own affair."""
        ...

    def close_round(self) -> None:
        """The round is over: groups that were not observed brought nothing."""
        ...

    def set_budget(self, total_rollouts: int) -> None:
        """Change the run's whole budget, what is spent included. Raises ValueError where the rounds
        left cannot hold it."""
        ...

    def metrics(self) -> dict[str, float | int]:
        """What it believes and asks, under the names of metrics.jsonl."""
        ...

    def reasons(self) -> Reasons:
        """Why the open round's prompts were chosen."""
        ...

    @property
    def pending(self) -> Allocation | None:
        """The open round, all waves so far: what a resumed run goes on with."""
        ...

    @property
    def answered_groups(self) -> int:
        """How many groups of `pending`, in its order, have been observed."""
        ...

    @property
    def remaining_rollouts(self) -> int:
        """Budget not yet allocated, refunds included."""
        ...

    @property
    def value(self) -> Floats:
        """f64[P] copy: today's worth of a rollout of each prompt."""
        ...

    @property
    def posterior_mean(self) -> Floats:
        """f64[P]: today's expected success rate of each prompt."""
        ...

    def evidence(self) -> tuple[Floats, Floats]:
        """Successes and failures f64[P] that it holds of each prompt, for another run to start
        from."""
        ...

    def state_dict(self) -> StateDict:
        """Everything that the next plan depends on, the ledger included; between rounds or inside
        one."""
        ...

    def load_state_dict(self, state: StateDict) -> None:
        """Go on as the one that saved it would have, bit for bit. Raises ValueError for a state of
        other sizes, options or another allocator."""
        ...
