"""What the training loop may ask of any allocator, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.budgeted import Observed, Samples, StateDict
from cero_rl.types import Allocation


class Scheduler(Protocol):
    """One rollout budget over P prompts and K rounds; the same calls with the same global counts on
    every rank.

    Loop: while (allocation := next_round()) is not None: generate; refund(failed); while there is a
    further wave, next_round(observed), generate that too; train on keep(samples); update(successes,
    trials).
    """

    @property
    def round(self) -> int: ...

    @property
    def remaining_rollouts(self) -> int: ...

    @property
    def pending(self) -> Allocation | None: ...

    @property
    def value(self) -> npt.NDArray[np.float64]: ...

    @property
    def posterior_mean(self) -> npt.NDArray[np.float64]: ...

    def next_round(self, observed: Observed | None = None) -> Allocation | None: ...

    def keep(self, samples: Samples) -> npt.NDArray[np.bool_]: ...

    def update(self, successes: npt.ArrayLike, trials: npt.ArrayLike) -> None: ...

    def refund(self, rollouts: int) -> None: ...

    def state_dict(self) -> StateDict: ...

    def load_state_dict(self, state: StateDict) -> None: ...


NextWave = Callable[[Observed], Allocation | None]
Keep = Callable[[Samples], npt.NDArray[np.bool_]]
