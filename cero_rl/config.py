"""The run configuration: one frozen pydantic tree, the algorithm presets, and the sizes that follow from it.

No torch here: `python -m cero_rl validate` answers in under two seconds. Reading YAML and overrides is `config_io`'s work.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cero_rl.config_base import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from cero_rl.config_lora import LoraConfig
from cero_rl.config_rollout import RolloutConfig
from cero_rl.config_run import CheckpointConfig, EvaluationConfig, LoggingConfig, WatchdogConfig
from cero_rl.config_scheduler import CERO_FAMILY, WAVE_SCHEDULERS, SchedulerConfig
from cero_rl.errors import ConfigError


class ModelConfig(Section):
    path: str = Field(description="directory in save_pretrained layout, or a Hugging Face id")
    dtype: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="of the weights in forward and backward; float32 on CPUs")
    attention: Literal["auto", "sdpa", "flash_attention_2"] = Field(
        default="auto", description="of packed sequences in the learner; auto: flash-attn on a GPU where it is installed, else sdpa"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, about a third slower"
    )


class DataConfig(Section):
    """Where prompts come from. `source` is a .jsonl/.parquet file, a Hugging Face id, or reasoning_gym:NAME."""

    source: str = Field(description="training prompts")
    split: str = Field(default="train", description="split of a Hugging Face data set")
    config_name: str | None = Field(default=None, description="subset of a Hugging Face data set")
    heldout_source: str | None = Field(default=None, description="evaluation prompts; never trained on. None: a share of `source`")
    heldout_split: str = Field(default="test", description="split of `heldout_source`, where it has splits")
    heldout_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="share of `source` set aside by content hash if `heldout_source` is null"
    )
    limit: PositiveInt | None = Field(default=None, description="use only the first prompts of `source`")
    heldout_limit: PositiveInt | None = Field(default=None, description="use only the first held-out prompts")
    prompt_column: str = Field(default="prompt", description="text, or a list of chat messages")
    answer_column: str = Field(default="answer", description="reference answer; all other columns reach the reward function too")
    procedural_size: PositiveInt = Field(default=1000, description="items drawn from a reasoning_gym set")
    system_prompt: str | None = Field(default=None, description="put before every prompt, as a system message or as text")
    prompt_suffix: str = Field(default="", description="appended to every user prompt")
    chat_template: Literal["auto", "always", "never"] = Field(default="auto", description="auto: where the tokenizer has one")
    enable_thinking: bool | None = Field(default=None, description="passed to chat templates that know it")
    max_prompt_tokens: PositiveInt = Field(default=1024, description="template included")
    overlong_prompt: Literal["error", "drop"] = Field(default="error", description="what becomes of a longer prompt")


class RewardConfig(Section):
    function: str = Field(default="exact", description="exact | math | reasoning_gym | path/to/file.py:function")
    workers: PositiveInt = Field(default=2, description="processes on each rank; killed and replaced when a reward hangs")
    timeout_seconds: PositiveFloat = Field(default=5.0, description="for one response; beyond it the reward is missing, never 0")
    memory_limit_mb: PositiveInt = Field(default=2048, description="address space of one worker")
    max_chars: PositiveInt = Field(default=16384, description="a longer response is scored on its last characters, where the answer stands")
    success_threshold: float = Field(default=0.5, description="a reward above it counts as a success in the posterior")


class BudgetConfig(Section):
    total_rollouts: PositiveInt = Field(description="rollouts generated for training in the whole run, kept or dropped")
    total_tokens: PositiveInt | None = Field(default=None, description="a second limit, in response tokens (CERO's family only)")


PRESETS: dict[str, dict[str, object]] = {
    "grpo": {"advantage": "std", "aggregation": "seq_mean", "clip_high": 0.2, "zero_variance": "keep"},
    "dr_grpo": {"advantage": "center", "aggregation": "constant", "clip_high": 0.2, "zero_variance": "keep"},
    "dapo": {"advantage": "std", "aggregation": "token_mean", "clip_high": 0.28, "zero_variance": "drop"},
    "rloo": {"advantage": "rloo", "aggregation": "seq_mean", "clip_high": 0.2, "zero_variance": "keep"},
}


class LearnerConfig(Section):
    """Loss and step. `algorithm` fills `advantage`, `aggregation`, `clip_high`, `zero_variance` where they are not given."""

    algorithm: Literal["grpo", "dr_grpo", "dapo", "rloo"] = Field(default="grpo", description="preset of the keys named above")
    advantage: Literal["std", "center", "rloo", "maxrl"] = Field(default="std", description="how a group's rewards become advantages")
    aggregation: Literal["token_mean", "seq_mean", "prompt_mean", "constant"] = Field(
        default="seq_mean", description="token losses are averaged over all tokens, rollouts or prompts, or divided by a constant length"
    )
    advantage_eps: PositiveFloat = Field(default=1e-6, description="added to the standard deviation")
    clip_low: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.2, description="ratios below 1 - clip_low are clipped")
    clip_high: NonNegativeFloat = Field(default=0.2, description="ratios above 1 + clip_high are clipped")
    kl_coefficient: NonNegativeFloat = Field(
        default=0.0, description="weight of KL(policy || start model); at 0 no reference model is held"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(default="k3", description="per-token estimate of that KL")
    zero_variance: Literal["drop", "keep"] = Field(default="keep", description="does the loss denominator count groups without signal?")
    importance_sampling: Literal["auto", "none", "truncate", "mask"] = Field(
        default="auto",
        description="weight pi_learner / pi_sampler of each token, cut off at importance_cap, or set to 0 outside "
        "[importance_floor, importance_cap]; auto: truncate where the sampler is another implementation (vllm), else none",
    )
    importance_level: Literal["token", "sequence"] = Field(
        default="token", description="of that weight: each token's own ratio, or the product over its response"
    )
    importance_cap: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(default=2.0, description="largest weight")
    importance_floor: Annotated[float, Field(ge=0, le=1)] = Field(default=0.5, description="smallest weight that mask keeps")
    max_micro_batch_tokens: PositiveInt = Field(default=16384, description="packed tokens of one forward and backward pass on a rank")
    rollouts_per_step: PositiveInt | None = Field(default=None, description="rollouts of one optimizer step; None: the whole round")
    updates_per_batch: PositiveInt = Field(default=1, description="passes over one batch of rollouts")
    max_nonfinite_steps: PositiveInt = Field(default=3, description="skipped steps in a row that end the run (exit 7)")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: object) -> object:
        if isinstance(data, dict):
            return {**PRESETS.get(str(data.get("algorithm", "grpo")), {}), **data}
        return data


class OptimizerConfig(Section):
    """AdamW."""

    learning_rate: PositiveFloat = Field(default=1e-6, description="after the warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="linear, cosine: down to 0 over the planned steps"
    )
    warmup_steps: NonNegativeInt = Field(default=0, description="linear rise from 0")
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = Field(default=1.0, description="the global gradient is scaled down to this norm")


class ZeroConfig(Section):
    stage: Literal[0, 1, 2, 3] = Field(default=3, description="sharded over ranks; 1: optimizer state, 2: and gradients, 3: and parameters")
    offload_optimizer: Literal["none", "cpu"] = Field(default="none", description="where the optimizer state lives between steps")
    offload_parameters: Literal["none", "cpu"] = Field(default="none", description="where parameter shards live; stage 3 only")

    @model_validator(mode="after")
    def _offload_needs_sharding(self) -> ZeroConfig:
        if self.offload_parameters == "cpu" and self.stage != 3:
            raise ValueError(f"offload_parameters: cpu needs stage 3, got stage {self.stage}; set stage: 3 or offload_parameters: none")
        if self.offload_optimizer == "cpu" and self.stage == 0:
            raise ValueError("offload_optimizer: cpu needs stage 1, 2 or 3, got stage 0; set stage: 3 or offload_optimizer: none")
        return self


class Config(Section):
    name: str = Field(default="run", description="of the run's directory")
    output_dir: str = Field(default="runs", description="parent of the run's directory")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="of everything random: plan, samples, split")
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

    @model_validator(mode="after")
    def _sizes_fit(self) -> Config:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) or ".." in self.name:
            raise ValueError(f"name: got {self.name[:80]!r}, wanted letters, digits, '.', '_' or '-' and no '..'")
        scheduler, total = self.scheduler, self.budget.total_rollouts
        unit = scheduler.rollouts_per_unit
        if total % unit:
            raise ValueError(f"budget.total_rollouts: {_not_a_multiple(total, unit)}")
        if total < scheduler.rounds * unit:
            raise ValueError(
                f"budget B >= rounds K * rollouts_per_unit fails: {total} < {scheduler.rounds} * {unit} = {scheduler.rounds * unit}, so "
                "some rounds could not give one prompt its group; lower scheduler.rounds or scheduler.rollouts_per_unit (at least 2), or "
                "raise budget.total_rollouts"
            )
        if scheduler.streaming and (scheduler.name not in CERO_FAMILY or self.learner.rollouts_per_step is None):
            raise ValueError(
                f"scheduler.streaming: got it with scheduler {scheduler.name!r} and learner.rollouts_per_step = "
                f"{self.learner.rollouts_per_step}; wanted one of {', '.join(CERO_FAMILY)} and rounds that rollouts_per_step cuts"
            )
        if self.budget.total_tokens is not None and scheduler.name not in CERO_FAMILY:
            wanted = ", ".join(CERO_FAMILY)
            raise ValueError(f"budget.total_tokens: scheduler {scheduler.name!r} counts rollouts only; wanted one of {wanted}")
        if scheduler.name in WAVE_SCHEDULERS and self.rollout.overlap:
            raise ValueError(
                f"rollout.overlap: scheduler {scheduler.name!r} asks for rollouts in answer to others of the same round, which cannot be "
                "generated ahead; set rollout.overlap: false or another scheduler"
            )
        if scheduler.name in WAVE_SCHEDULERS and self.learner.rollouts_per_step is not None:
            raise ValueError(
                f"learner.rollouts_per_step: scheduler {scheduler.name!r} samples a round in several waves, which one optimizer step "
                "learns from; leave it null and set scheduler.rounds"
            )
        capacity = self.capacity_rollouts
        if capacity % unit:
            raise ValueError(f"scheduler.capacity_rollouts: {_not_a_multiple(capacity, unit)}")
        if total > scheduler.rounds * capacity:
            raise ValueError(
                f"budget B <= rounds K * capacity C fails: {total} > {scheduler.rounds} * {capacity} = {scheduler.rounds * capacity}; "
                "raise scheduler.rounds or scheduler.capacity_rollouts, or lower budget.total_rollouts"
            )
        too_large = [
            k for k in self.evaluation.pass_k if k > (self.evaluation.final_samples_per_prompt or self.evaluation.samples_per_prompt)
        ]
        if too_large:
            raise ValueError(
                f"evaluation.pass_k: pass@{too_large[0]} needs at least {too_large[0]} samples per prompt; "
                "raise evaluation.samples_per_prompt (or final_samples_per_prompt), or drop that k"
            )
        return self

    @property
    def capacity_rollouts(self) -> int:
        """C: the most rollouts one round may execute; by default the budget's equal share, rounded up to whole units."""
        if self.scheduler.capacity_rollouts is not None:
            return self.scheduler.capacity_rollouts
        unit = self.scheduler.rollouts_per_unit
        return math.ceil(self.budget.total_rollouts / (self.scheduler.rounds * unit)) * unit

    @property
    def parity_bound(self) -> float:
        """Largest |log-prob difference| of sampler and learner after a sync, in nats."""
        return self.rollout.parity_bound or {"float32": 1e-4, "bfloat16": 0.2}[self.model.dtype]

    @property
    def dual_step_size(self) -> float:
        return self.scheduler.step_scale / math.sqrt(self.scheduler.rounds)

    @property
    def planned_steps(self) -> int:
        """Optimizer steps the learning-rate schedule is stretched over, from the budget: what full rounds would make."""
        per_step = self.learner.rollouts_per_step or self.capacity_rollouts
        return math.ceil(self.budget.total_rollouts / min(per_step, self.capacity_rollouts)) * self.learner.updates_per_batch


def _not_a_multiple(size: int, unit: int) -> str:
    """The equation that fails, and the three valid sizes nearest to it."""
    low = max(size // unit, 1) * unit
    return (
        f"{size} is not a multiple of scheduler.rollouts_per_unit = {unit} ({size} = {size // unit} * {unit} + {size % unit}); "
        f"nearest that are: {low}, {low + unit}, {low + 2 * unit}"
    )


def check_pool(config: Config, num_prompts: int) -> None:
    """Check C <= M * Nmax, which needs the pool's size M. Raises ConfigError with the numbers."""
    scheduler = config.scheduler
    most = num_prompts * scheduler.max_units_per_prompt * scheduler.rollouts_per_unit
    if config.capacity_rollouts > most:
        raise ConfigError(
            f"capacity C <= prompts M * largest group fails: {config.capacity_rollouts} > {num_prompts} * "
            f"{scheduler.max_units_per_prompt * scheduler.rollouts_per_unit} = {most}; "
            "lower scheduler.capacity_rollouts, add prompts, or raise scheduler.max_units_per_prompt"
        )


def derived_sizes(config: Config, num_prompts: int | None) -> list[tuple[str, str]]:
    """The arithmetic a user would otherwise do by hand: (name, equation with numbers), for the console and the run directory."""
    scheduler, total, capacity = config.scheduler, config.budget.total_rollouts, config.capacity_rollouts
    group = scheduler.rollouts_per_unit * scheduler.max_units_per_prompt
    per_step = min(config.learner.rollouts_per_step or capacity, capacity)
    rows = [
        ("largest group", f"{scheduler.rollouts_per_unit} x {scheduler.max_units_per_prompt} = {group} rollouts"),
        ("round capacity", f"{capacity} rollouts = {capacity // group} full groups"),
        ("budget", f"{total} rollouts of at most {scheduler.rounds} x {capacity} = {scheduler.rounds * capacity}"),
        ("optimizer step", f"{per_step} rollouts x {config.learner.updates_per_batch} update(s)"),
        ("planned steps", f"{total} / {per_step} x {config.learner.updates_per_batch} = {config.planned_steps}"),
    ]
    if num_prompts:
        share = total / num_prompts
        rows.append(("fair share", f"{total} / {num_prompts} prompts = {share:.1f} rollouts ({share / group:.2f} groups) a prompt"))
    return rows
