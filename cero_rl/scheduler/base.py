"""The interface that the training loop knows, and the one place that turns a scheduler's name into a scheduler."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.baselines import UniformScheduler
from cero_rl.scheduler.cero import CeroScheduler
from cero_rl.scheduler.core import Observed, Samples, StateDict
from cero_rl.types import Allocation

SchedulerName = Literal["cero", "uniform"]


class Scheduler(Protocol):
    """One rollout budget over P prompts and K rounds; the same calls with the same global counts on every rank.

    Loop: while (allocation := next_round()) is not None: generate; refund(failed); while there is a further wave,
    next_round(observed), generate that too; train on keep(samples); update(successes, trials).
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


def make_scheduler(
    name: SchedulerName,
    *,
    num_prompts: int,
    rounds: int,
    budget_rollouts: int,
    rollouts_per_unit: int,
    max_units_per_prompt: int,
    capacity_rollouts: int,
    saturation: float = 1.0,
    prior: tuple[float, float] = (1.0, 1.0),
    forgetting: float = 1.0,
    step_size: float | None = None,
    price_init: float = 0.5,
    spend_down: bool = False,
    seed: int = 0,
) -> Scheduler:
    """The scheduler called `name`.

    "uniform" has no use for saturation, step_size, price_init and spend_down (it always spends exactly).

    Raises ValueError for an unknown name or sizes that contradict each other.
    """
    if name == "cero":
        return CeroScheduler(
            num_prompts=num_prompts,
            rounds=rounds,
            budget_rollouts=budget_rollouts,
            rollouts_per_unit=rollouts_per_unit,
            max_units_per_prompt=max_units_per_prompt,
            capacity_rollouts=capacity_rollouts,
            saturation=saturation,
            prior=prior,
            forgetting=forgetting,
            step_size=step_size,
            price_init=price_init,
            spend_down=spend_down,
            seed=seed,
        )
    if name == "uniform":
        return UniformScheduler(
            num_prompts=num_prompts,
            rounds=rounds,
            budget_rollouts=budget_rollouts,
            rollouts_per_unit=rollouts_per_unit,
            max_units_per_prompt=max_units_per_prompt,
            capacity_rollouts=capacity_rollouts,
            prior=prior,
            forgetting=forgetting,
            seed=seed,
        )
    raise ValueError(f"unknown scheduler {name!r}, wanted 'cero' or 'uniform'")
