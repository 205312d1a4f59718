"""The arithmetic of a TRL run under CERO, checked before the model is loaded; imports no trl.

One round = one TRL generation batch of up to

    generation_batch_size = per_device_train_batch_size * processes * steps_per_generation

rollouts. It is worked off in steps_per_generation * num_iterations micro-steps,
gradient_accumulation_steps of them to an optimizer step. A round with fewer rollouts has smaller
micro-batches, not fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cero_rl.scheduler import Scheduler
from cero_rl.scheduler.budgeted import BudgetedScheduler


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Sizes of a run. Raises ValueError if an optimizer step would mix rounds."""

    per_device: int  # rollouts of a micro-batch on one process, in a full round
    processes: int
    steps_per_generation: int
    num_iterations: int
    gradient_accumulation: int
    rounds: int

    def __post_init__(self) -> None:
        if self.micro_steps_per_round % self.gradient_accumulation:
            raise ValueError(
                f"steps_per_generation * num_iterations = {self.steps_per_generation} * "
                f"{self.num_iterations} = {self.micro_steps_per_round} is not a multiple of "
                f"gradient_accumulation_steps = {self.gradient_accumulation}, so an optimizer "
                "step would mix rounds; leave steps_per_generation out, or make it a multiple"
            )

    @property
    def rollouts_per_round(self) -> int:
        """The most one round can hold."""
        return self.per_device * self.processes * self.steps_per_generation

    @property
    def micro_steps_per_round(self) -> int:
        return self.steps_per_generation * self.num_iterations

    @property
    def optimizer_steps(self) -> int:
        return self.rounds * self.micro_steps_per_round // self.gradient_accumulation

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds of up to {self.rollouts_per_round} rollouts = "
            f"{self.per_device} per device * {self.processes} processes * "
            f"{self.steps_per_generation} steps per generation; {self.optimizer_steps} "
            f"optimizer steps = {self.rounds} * {self.steps_per_generation} * "
            f"{self.num_iterations} iterations / {self.gradient_accumulation} accumulated"
        )

    def check_round(self, rollouts: int) -> None:
        """ValueError if a round is larger than a generation batch."""
        if rollouts > self.rollouts_per_round:
            raise ValueError(
                f"a round of {rollouts} rollouts does not fit generation_batch_size = "
                f"{self.per_device} * {self.processes} * {self.steps_per_generation} = "
                f"{self.rollouts_per_round}; lower capacity_rollouts or raise steps_per_generation"
            )


def plan_run(args: Any, scheduler: Scheduler, num_prompts: int) -> RunPlan:
    """The plan of a GRPOConfig. Raises ValueError, with the equation, if config, scheduler and data
    set do not fit together."""
    pool = scheduler.value.shape[0]
    if pool != num_prompts:
        raise ValueError(
            f"scheduler: has {pool} prompts, the data set {num_prompts} rows; give "
            "num_prompts=len(train_dataset)"
        )
    if args.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            f"multi_objective_aggregation: got {args.multi_objective_aggregation!r}, wanted "
            "'sum_then_normalize': advantages come from one reward per rollout"
        )
    sizes = (
        args.per_device_train_batch_size,
        args.world_size,
        args.steps_per_generation,
        args.num_iterations,
    )
    accumulation = args.gradient_accumulation_steps
    micro = args.steps_per_generation * args.num_iterations
    if isinstance(scheduler, BudgetedScheduler):
        rounds = scheduler.spec.rounds
    elif args.max_steps > 0:
        rounds = -(-args.max_steps * accumulation // micro)
    else:
        raise ValueError(
            "max_steps: is not set, and this scheduler does not say how many rounds it "
            "has; set max_steps"
        )
    plan = RunPlan(*sizes, accumulation, rounds)
    if isinstance(scheduler, BudgetedScheduler):
        plan.check_round(scheduler.spec.capacity_rollouts)
        if args.max_steps > plan.optimizer_steps:
            raise ValueError(
                f"max_steps = {args.max_steps} is more than the budget lasts: {plan}; leave "
                "max_steps out"
            )
    return plan
