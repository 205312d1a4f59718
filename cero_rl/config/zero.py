"""The section on how weights, states and sequences are divided over ranks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cero_rl.config.base import NonNegativeInt, PositiveInt, Section, refuse_own_keys

_OWN_ZERO_KEYS = {  # of DeepSpeed's section -> what sets it here
    "stage": "set zero.stage",
    "offload_optimizer": "set zero.offload_optimizer",
    "offload_param": "set zero.offload_parameters",
    "cpu_offload": "set zero.offload_optimizer",
    "cpu_offload_params": "set zero.offload_parameters",
    "overlap_comm": "set zero.overlap_comm",
    "param_persistence_threshold": "set zero.param_persistence_threshold",
    "stage3_param_persistence_threshold": "set zero.param_persistence_threshold",
    "zero_hpz_partition_size": "set zero.hpz_partition_size",
    "mics_shard_size": "weights are sharded over all ranks here",
    "zenflow": "the learner's steps are its own here",
}


class ZeroConfig(Section):
    stage: Literal[0, 1, 2, 3] = Field(
        default=3,
        description="sharded over ranks; 1: optimizer state, 2: and gradients, 3: and parameters",
    )
    offload_optimizer: Literal["none", "cpu"] = Field(
        default="none", description="where the optimizer state lives between steps"
    )
    offload_parameters: Literal["none", "cpu"] = Field(
        default="none", description="where parameter shards live; stage 3 only"
    )

    offload_reference: Literal["auto", "none", "cpu"] = Field(
        default="auto",
        description="where the frozen reference's shards live; auto: as offload_parameters. Needs "
        "stage 3; none with LoRA, whose base is the reference",
    )
    offload_states_in_rollout: bool = Field(
        default=False,
        description="stage 3 on GPUs: masters, Adam's moments, gradient sums and their bucket wait "
        "in host memory while the sampler works; frees about 16 bytes a trained parameter of the "
        "rank for the sampler, and moves 12 of them out and in once a step. No effect on a CPU",
    )
    gradient_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of the sums of gradients over micro-batches and ranks; auto: float32 at "
        "stages 2 and 3, the model's own at 0 and 1, where DeepSpeed knows no other",
    )

    overlap_comm: bool | None = Field(
        default=None,
        description="gradients are reduced while the backward pass goes on; None: on a GPU",
    )
    param_persistence_threshold: NonNegativeInt | None = Field(
        default=None,
        description="stage 3: a parameter of no more elements stays whole on every rank; None: "
        "100,000 on a GPU, 0 on a CPU",
    )
    hpz_partition_size: PositiveInt = Field(
        default=1,
        description="stage 3: neighbouring ranks that hold a second copy of the model between "
        "them, so that the backward pass gathers among them alone; several nodes: the ranks of one",
    )
    sequence_parallel: PositiveInt = Field(
        default=1,
        description="neighbouring ranks that hold the tokens of one micro-batch between them, and "
        "exchange them for attention heads inside attention; they learn from the rollouts of all "
        "of them, whoever sampled. Must divide ranks and attention heads "
        "(docs/sequence-parallel.md)",
    )
    deepspeed: dict[str, Any] = Field(
        default={},
        description="further keys of DeepSpeed's section zero_optimization, handed on as they are",
    )

    @field_validator("deepspeed")
    @classmethod
    def _no_key_of_ours(cls, given: dict[str, Any]) -> dict[str, Any]:
        refuse_own_keys(given, _OWN_ZERO_KEYS)
        return given

    @property
    def reference_on_host(self) -> bool:
        """Do the reference's shards live in host memory?"""
        where = self.offload_reference
        return (self.offload_parameters if where == "auto" else where) == "cpu"

    @model_validator(mode="after")
    def _stage_three_keys(self) -> ZeroConfig:
        for name, unset in (("param_persistence_threshold", None), ("hpz_partition_size", 1)):
            if self.stage != 3 and (value := getattr(self, name)) != unset:
                raise ValueError(
                    f"{name}: {value} needs stage 3, got stage {self.stage}; set stage: 3, or "
                    f"leave {name} out"
                )
        return self

    @model_validator(mode="after")
    def _offload_needs_sharding(self) -> ZeroConfig:
        if self.offload_parameters == "cpu" and self.stage != 3:
            raise ValueError(
                f"offload_parameters: cpu needs stage 3, got stage {self.stage}; set stage: "
                "3 or offload_parameters: none"
            )
        if self.offload_reference == "cpu" and self.stage != 3:
            raise ValueError(
                f"offload_reference: cpu needs stage 3, got stage {self.stage}; set stage: 3 or "
                "offload_reference: auto"
            )
        if self.offload_optimizer == "cpu" and self.stage == 0:
            raise ValueError(
                "offload_optimizer: cpu needs stage 1, 2 or 3, got stage 0; set stage: 3 "
                "or offload_optimizer: none"
            )
        if self.offload_states_in_rollout and (self.stage != 3 or self.offload_optimizer == "cpu"):
            raise ValueError(
                f"offload_states_in_rollout: got true with stage {self.stage} and "
                f"offload_optimizer: {self.offload_optimizer}; wanted stage 3 and the optimizer on "
                "the GPU; set it to false, or stage: 3 and offload_optimizer: none"
            )
        return self
