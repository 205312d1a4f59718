"""Sections of the configuration that decide what a run measures and leaves behind, not what it
computes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from cero_rl.config.base import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Seconds,
    Section,
    Temperature,
)


class EvaluationConfig(Section):
    every_steps: NonNegativeInt = Field(default=0, description="0: only before and after training")
    samples_per_prompt: PositiveInt = Field(default=1, description="k of avg@k")
    final_samples_per_prompt: PositiveInt | None = Field(
        default=None, description="before and after; None: as samples_per_prompt"
    )
    pass_k: tuple[PositiveInt, ...] = Field(
        default=(1,),
        description="k of the unbiased pass@k; those above the samples drawn are left out",
    )
    temperature: Temperature = Field(default=1.0, description="of evaluation samples")
    limit: PositiveInt | None = Field(
        default=None, description="evaluate only the first held-out prompts"
    )
    min_judged_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.95,
        description="share of samples with a reward below which no accuracy is told: what was not "
        "judged may be what is wrong",
    )


class CheckpointConfig(Section):
    every_steps: NonNegativeInt = Field(
        default=0, description="0: only at the end and when interrupted"
    )
    keep_last: int = Field(
        default=2, ge=2, description="older checkpoints are removed after a newer one is committed"
    )
    keep_best: NonNegativeInt = Field(
        default=0,
        description="and those with the best held-out accuracy, as many as this; a step that is "
        "evaluated is then saved too",
    )
    keep_every_steps: NonNegativeInt = Field(
        default=0, description="and every step that is a multiple of this; 0: none"
    )
    asynchronous: bool = Field(
        default=False,
        description="write from a copy in host memory while training goes on; an error "
        "surfaces at a later step",
    )
    max_failures: PositiveInt = Field(
        default=3, description="saves in a row that may fail before the run ends (exit 4)"
    )
    walltime_seconds: Seconds | None = Field(
        default=None,
        description="of a job, from its start: save and exit 75 before it is over; under Slurm the "
        "job's own limit holds too",
    )
    walltime_margin_seconds: NonNegativeFloat = Field(
        default=60.0, description="kept free beside the next step and the save"
    )
    export: bool = Field(
        default=True, description="write the final model in save_pretrained layout to export/"
    )


class WatchdogConfig(Section):
    stall_seconds: Seconds = Field(
        default=1800.0,
        description="no phase of a step may take longer; then stacks are written and the run "
        "ends. Generation and weight sync have limits of their own (rollout.*_timeout_seconds)",
    )
    startup_seconds: Seconds = Field(
        default=3600.0,
        description="the same for the start: loading models, starting the sampler, and compiling "
        "DeepSpeed's operators the first time",
    )
    heartbeat_seconds: Annotated[float, Field(ge=2, le=86400)] = Field(
        default=60.0,
        description="a rank that is not heard of for so long ends the others, whatever they wait "
        "for; a rank that only computes is heard of",
    )


class LoggingConfig(Section):
    tensorboard: bool = True
    wandb: bool = Field(default=False, description="needs the extra [wandb] and your own login")
    wandb_project: str | None = Field(
        default=None, description="None: the environment's WANDB_PROJECT, else cero_rl"
    )
    wandb_entity: str | None = Field(
        default=None, description="user or team; None: the environment's, else your own"
    )
    group: str | None = Field(
        default=None,
        description="of runs that belong together, e.g. the seeds of an arm (wandb, trackio)",
    )
    tags: list[str] = Field(default=[], description="for filtering (wandb)")
    trackio: bool = Field(
        default=False,
        description="needs the extra [trackio]; local unless TRACKIO_SPACE_ID or "
        "TRACKIO_SERVER_URL says where",
    )
    trackio_project: str = Field(default="cero_rl", description="what `trackio show` asks for")
    sample_dumps: bool = Field(
        default=True, description="write some rollouts of each step to samples.jsonl"
    )
    samples_per_dump: PositiveInt = Field(
        default=8, description="groups of one step whose first rollout is written"
    )
    table_every_steps: NonNegativeInt = Field(
        default=50,
        description="steps between the console's tables of completions, beside that of the first "
        "step; 0: never",
    )


class ProfileConfig(Section):
    steps: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None,
        description="first and last optimizer step that torch's profiler traces on rank 0, into "
        "profile/ of the run's directory; a traced step is slower, and its trace large",
    )

    @field_validator("steps")
    @classmethod
    def _in_order(cls, steps: tuple[int, int] | None) -> tuple[int, int] | None:
        if steps is not None and steps[0] > steps[1]:
            raise ValueError(f"got {list(steps)}; wanted the first step before the last")
        return steps
