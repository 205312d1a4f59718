"""The sampler's section of the configuration: which engine, its sizes, its waits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cero_rl.config_base import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Section


class RolloutConfig(Section):
    engine: Literal["auto", "transformers", "vllm"] = Field(
        default="auto", description="what samples; auto: vllm on a GPU where it is installed, else transformers"
    )
    max_response_tokens: PositiveInt = Field(default=1024, description="a longer response is cut and counted as truncated")
    temperature: PositiveFloat = Field(default=1.0, description="of training rollouts; the learner's log-probabilities use it too")
    top_p: Fraction = Field(default=1.0, description="must stay 1.0 in training")
    top_k: NonNegativeInt = Field(default=0, description="must stay 0 (off) in training")
    max_batch_tokens: PositiveInt = Field(default=65536, description="prompt + response tokens generated at once on a rank")
    gpu_memory_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="vllm on a GPU: share of its memory for weights and key-value cache, the learner's part left out"
    )
    kv_cache_memory_bytes: Annotated[int, Field(ge=2**20)] | None = Field(
        default=None, description="vllm: key-value cache of a rank; None: what gpu_memory_fraction leaves, 512 MiB on a CPU"
    )
    tensor_parallel: PositiveInt = Field(default=1, description="vllm: ranks that share one engine; must divide the number of ranks")
    sleep: bool = Field(default=True, description="vllm on a GPU: leave its memory to the learner between rollouts; no effect on a CPU")
    overlap: bool = Field(
        default=False,
        description="generate the next step's rollouts while the learner works on this one's: they come from weights one step old, which "
        "learner.importance_sampling corrects. Gains where sampler and learner have hardware of their own",
    )
    parity_bound: PositiveFloat | None = Field(
        default=None, description="largest |log-prob difference| of sampler and learner after a sync; None: 1e-4 (float32), 0.2 (bfloat16)"
    )
    sync_timeout_seconds: PositiveFloat = Field(default=600.0, description="a longer weight sync ends the run (exit 6)")
    generate_timeout_seconds: PositiveFloat = Field(
        default=3600.0, description="vllm: one wave of rollouts that takes longer ends the run (exit 6)"
    )

    @model_validator(mode="after")
    def _full_support(self) -> RolloutConfig:
        if self.top_p != 1.0 or self.top_k != 0:
            raise ValueError(
                f"top_p={self.top_p}, top_k={self.top_k} change the behaviour distribution that the loss divides by; "
                "train with top_p=1.0 and top_k=0"
            )
        if self.tensor_parallel > 1 and self.engine != "vllm":
            raise ValueError(
                f"tensor_parallel={self.tensor_parallel} needs engine: vllm, got engine: {self.engine}; set rollout.engine: vllm "
                "or rollout.tensor_parallel: 1"
            )
        if self.overlap and self.tensor_parallel > 1:
            raise ValueError(
                f"overlap: the ranks of one engine (tensor_parallel={self.tensor_parallel}) talk to each other while they generate, which "
                "cannot go on beside the learner's own messages; set rollout.overlap: false or rollout.tensor_parallel: 1"
            )
        return self
