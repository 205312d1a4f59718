"""The run configuration: one frozen pydantic tree, what its sections ask of each other, and the
sizes that follow from it.

No torch here: `python -m cero_rl validate` answers in under two seconds. Reading YAML and overrides
is the work of `config/io.py`.
"""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import Field, model_validator

from cero_rl.config.base import Section
from cero_rl.config.data import BudgetConfig, DataConfig, ModelConfig
from cero_rl.config.learner import LearnerConfig, OptimizerConfig
from cero_rl.config.lora import LoraConfig
from cero_rl.config.paths import PathText
from cero_rl.config.presets import fill
from cero_rl.config.reward import RewardConfig
from cero_rl.config.rollout import RolloutConfig
from cero_rl.config.run import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    ProfileConfig,
    WatchdogConfig,
)
from cero_rl.config.scheduler import CERO_FAMILY, WAVE_SCHEDULERS, SchedulerConfig
from cero_rl.config.zero import ZeroConfig
from cero_rl.types import PARITY_BOUNDS

_COLLECTIVE_MARGIN_SECONDS = 60.0
_RIGHT_ABOVE_A_HALF = ("reinforce_ada", "aero")


class Config(Section):
    name: str = Field(default="run", description="of the run's directory")
    output_dir: PathText = Field(default="runs", description="parent of the run's directory")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="of everything random: plan, samples, split"
    )
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    scheduler: SchedulerConfig
    budget: BudgetConfig
    learner: LearnerConfig = LearnerConfig()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    zero: ZeroConfig = ZeroConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    profile: ProfileConfig = ProfileConfig()

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: object) -> object:
        return fill(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _sizes_fit(self) -> Config:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) or ".." in self.name:
            raise ValueError(
                f"name: got {self.name[:80]!r}, wanted letters, digits, '.', '_' or '-' and no '..'"
            )
        scheduler, total = self.scheduler, self.budget.total_rollouts
        unit = scheduler.rollouts_per_unit
        if total % unit:
            raise ValueError(f"budget.total_rollouts: {_not_a_multiple(total, unit)}")
        if total < scheduler.rounds * unit:
            raise ValueError(
                f"budget B >= rounds K * rollouts_per_unit fails: {total} < "
                f"{scheduler.rounds} * {unit} = {scheduler.rounds * unit}, so some rounds "
                "could not give one prompt its group; lower scheduler.rounds or "
                "scheduler.rollouts_per_unit (at least 2), or raise budget.total_rollouts"
            )
        if unit == 1 and self.learner.baseline == "group":
            raise ValueError(
                "scheduler.rollouts_per_unit: got 1 with learner.baseline: group, against which a "
                "group of one teaches nothing; set learner.baseline: posterior, or at least 2"
            )
        if scheduler.streaming and (
            scheduler.name not in CERO_FAMILY or not self.learner.cuts_rounds
        ):
            raise ValueError(
                f"scheduler.streaming: got it with scheduler {scheduler.name!r} and "
                f"learner.rollouts_per_step = {self.learner.rollouts_per_step}; wanted one of "
                f"{', '.join(CERO_FAMILY)} and rounds that rollouts_per_step cuts, or "
                "live_signal_per_step"
            )
        if self.budget.total_tokens is not None and scheduler.name not in CERO_FAMILY:
            wanted = ", ".join(CERO_FAMILY)
            raise ValueError(
                f"budget.total_tokens: scheduler {scheduler.name!r} counts rollouts only; "
                f"wanted one of {wanted}"
            )
        if scheduler.name in WAVE_SCHEDULERS and self.rollout.overlap:
            raise ValueError(
                f"rollout.overlap: scheduler {scheduler.name!r} asks for rollouts in answer "
                "to others of the same round, which cannot be "
                "generated ahead; set rollout.overlap: false or another scheduler"
            )
        if scheduler.name in WAVE_SCHEDULERS and self.learner.cuts_rounds:
            by = "rollouts" if self.learner.live_signal_per_step is None else "live_signal"
            raise ValueError(
                f"learner.{by}_per_step: scheduler {scheduler.name!r} samples a round "
                "in several waves, which one optimizer step "
                "learns from; leave it null and set scheduler.rounds"
            )
        buffer, limit = self.reward.overlong_buffer_tokens, self.rollout.max_response_tokens
        if buffer is not None and buffer > limit:
            raise ValueError(
                f"reward.overlong_buffer_tokens: got {buffer} with rollout.max_response_tokens = "
                f"{limit}; wanted at most as many"
            )
        if self.learner.baseline == "posterior" and not self.reward.evidence_is_affine:
            raise ValueError(
                "learner.baseline: got posterior, which holds the reward that trains against what "
                "the posterior knows, with reward.evidence or reward.threshold, by which that is "
                "something else; leave these out, or set learner.baseline: group"
            )
        if scheduler.name in _RIGHT_ABOVE_A_HALF and not self.reward.trains_evidence:
            raise ValueError(
                f"scheduler.name: got {scheduler.name}, which takes a reward above a half for "
                "right, with a reward in another scale; leave reward.evidence, range and threshold "
                "out and let the weights sum to 1, or choose another scheduler"
            )
        if self.zero.offload_states_in_rollout and self.rollout.overlap:
            raise ValueError(
                "zero.offload_states_in_rollout: got true with rollout.overlap, where learner and "
                "sampler work at the same time; set one of them to false"
            )
        self._slices_fit()
        if self.zero.gradient_dtype not in ("auto", self.gradient_dtype):
            raise ValueError(
                f"zero.gradient_dtype: got {self.zero.gradient_dtype!r} with model.dtype "
                f"{self.model.dtype!r} at stage {self.zero.stage}, which sums in "
                f"{self.gradient_dtype}; set it to auto, or zero.stage to 2 or 3"
            )
        capacity = self.capacity_rollouts
        if capacity % unit:
            raise ValueError(f"scheduler.capacity_rollouts: {_not_a_multiple(capacity, unit)}")
        if total > scheduler.rounds * capacity:
            raise ValueError(
                f"budget B <= rounds K * capacity C fails: {total} > {scheduler.rounds} * "
                f"{capacity} = {scheduler.rounds * capacity}; raise scheduler.rounds or "
                "scheduler.capacity_rollouts, or lower budget.total_rollouts"
            )
        self._best_can_be_told()
        too_large = [
            k
            for k in self.evaluation.pass_k
            if k > (self.evaluation.final_samples_per_prompt or self.evaluation.samples_per_prompt)
        ]
        if too_large:
            raise ValueError(
                f"evaluation.pass_k: pass@{too_large[0]} needs at least {too_large[0]} "
                "samples per prompt; "
                "raise evaluation.samples_per_prompt (or final_samples_per_prompt), or drop that k"
            )
        return self

    def _slices_fit(self) -> None:
        """zero.sequence_parallel needs the packed attention without shared prompts."""
        if (slices := self.zero.sequence_parallel) == 1:
            return
        if self.learner.shared_prefix is True:
            raise ValueError(
                f"zero.sequence_parallel: got {slices} with learner.shared_prefix: true, whose "
                "packs cannot be cut; set learner.shared_prefix: false, or sequence_parallel: 1"
            )
        if self.model.attention == "flash_attention_2":
            raise ValueError(
                f"zero.sequence_parallel: got {slices} with model.attention: flash_attention_2, "
                "which knows no slices; set model.attention: auto, or sequence_parallel: 1"
            )

    def _best_can_be_told(self) -> None:
        """checkpoint.keep_best compares accuracies of the same number of samples a prompt."""
        best, evaluation = self.checkpoint.keep_best, self.evaluation
        if not best:
            return
        if not evaluation.every_steps:
            raise ValueError(
                f"checkpoint.keep_best: got {best} with evaluation.every_steps = 0, so only the "
                "last checkpoint would have a held-out accuracy; set evaluation.every_steps, or "
                "keep_best: 0"
            )
        if self.data.heldout_source is None and not self.data.heldout_fraction:
            raise ValueError(
                f"checkpoint.keep_best: got {best} without held-out prompts; set "
                "data.heldout_source or data.heldout_fraction, or keep_best: 0"
            )
        final = evaluation.final_samples_per_prompt or evaluation.samples_per_prompt
        if final < evaluation.samples_per_prompt:
            raise ValueError(
                f"checkpoint.keep_best: got {best} with evaluation.final_samples_per_prompt = "
                f"{final} below samples_per_prompt = {evaluation.samples_per_prompt}, so the last "
                "checkpoint could not be compared; raise it, or keep_best: 0"
            )

    @property
    def truncated_are_censored(self) -> bool:
        """Are rollouts that the length limit cut no evidence to the scheduler?"""
        if self.scheduler.truncated == "auto":
            return self.learner.truncated == "mask"
        return self.scheduler.truncated == "censored"

    @property
    def capacity_rollouts(self) -> int:
        """C: the most rollouts one round may execute; by default the budget's equal share, rounded
        up to whole units."""
        if self.scheduler.capacity_rollouts is not None:
            return self.scheduler.capacity_rollouts
        unit = self.scheduler.rollouts_per_unit
        return math.ceil(self.budget.total_rollouts / (self.scheduler.rounds * unit)) * unit

    @property
    def gradient_dtype(self) -> str:
        """In what gradients are summed over micro-batches and ranks."""
        if self.zero.stage < 2 or self.model.dtype == "float32":
            return self.model.dtype
        return "float32" if self.zero.gradient_dtype == "auto" else self.zero.gradient_dtype

    @property
    def parity_bound(self) -> float:
        """Largest |log-prob difference| of sampler and learner after a sync, in nats. A temperature
        below 1 multiplies logits, and with them what rounding does to them."""
        if self.rollout.parity_bound is not None:
            return self.rollout.parity_bound
        rounding = PARITY_BOUNDS[self.model.dtype]
        return rounding / min(self.rollout.temperature, 1.0)

    @property
    def collective_timeout_seconds(self) -> float:
        """Of the process group: longer than any phase may take, so that the watchdog, which knows
        who waited for what and which key allows more, is the one that speaks."""
        rollout = self.rollout
        phases = (
            self.watchdog.stall_seconds,
            rollout.generate_timeout_seconds,
            rollout.sync_timeout_seconds,
        )
        return max(phases) + _COLLECTIVE_MARGIN_SECONDS

    @property
    def dual_step_size(self) -> float:
        return self.scheduler.step_scale / math.sqrt(self.scheduler.rounds)

    @property
    def fewest_updates(self) -> int:
        """Optimizer steps if every step is full; waves, cuts and half-filled rounds make more."""
        per_step = self.learner.rollouts_per_step or self.capacity_rollouts
        return (
            math.ceil(self.budget.total_rollouts / min(per_step, self.capacity_rollouts))
            * self.learner.updates_per_batch
        )


def _not_a_multiple(size: int, unit: int) -> str:
    """The equation that fails, and the three valid sizes nearest to it."""
    low = max(size // unit, 1) * unit
    return (
        f"{size} is not a multiple of scheduler.rollouts_per_unit = {unit} ({size} = "
        f"{size // unit} * {unit} + {size % unit}); "
        f"nearest that are: {low}, {low + unit}, {low + 2 * unit}"
    )
