"""Config -> the dictionary DeepSpeed wants. Pure, and the only place that knows DeepSpeed's key
names."""

from __future__ import annotations

from typing import Any

from cero_rl.config import Config


def _zero_section(config: Config, *, trains: bool) -> dict[str, Any]:
    section: dict[str, Any] = {"stage": config.zero.stage, "overlap_comm": False}
    if config.zero.stage == 3:
        # 0: every parameter is really sharded, so a partitioned numel() of 0 cannot hide in a small
        # tensor.
        section["stage3_param_persistence_threshold"] = 0
        if config.zero.offload_parameters == "cpu":
            section["offload_param"] = {"device": "cpu"}
    if trains and config.zero.offload_optimizer == "cpu":
        section["offload_optimizer"] = {"device": "cpu"}
    return section


def _gradient_types(config: Config) -> dict[str, Any]:
    """In what gradients are summed over micro-batches and over ranks. Without a word DeepSpeed
    takes the model's type, whose rounding grows with the number of summands."""
    wanted = config.gradient_dtype
    if wanted == config.model.dtype:
        return {}
    return {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}


def policy_config(config: Config, world_size: int, *, universal: bool = False) -> dict[str, Any]:
    """Learner. The caller owns the accumulation boundary, so the micro-batch count may differ from
    step to step.

    `universal`: load_checkpoint will be given a universal checkpoint (tools/convert.py
    zero-to-universal).
    """
    optimizer = config.optimizer
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "managed_gradient_accumulation": False,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_force_ds_cpu_optimizer": config.zero.offload_optimizer == "cpu",
        "zero_optimization": _zero_section(config, trains=True),
        **_gradient_types(config),
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.learning_rate,
                "betas": list(optimizer.betas),
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
                # Needs no build at start; with the optimizer on the CPU DeepSpeed's own kernel is
                # worth its build.
                "torch_adam": config.zero.offload_optimizer == "none",
            },
        },
        "steps_per_print": 10**9,
        **({"checkpoint": {"load_universal": True}} if universal else {}),
    }


def reference_config(config: Config, world_size: int) -> dict[str, Any]:
    """Frozen reference: the same sharding, no optimizer."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": world_size,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "zero_optimization": _zero_section(config, trains=False),
        "steps_per_print": 10**9,
    }
