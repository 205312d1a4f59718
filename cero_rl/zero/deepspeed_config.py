"""Config -> the dictionary DeepSpeed wants. Pure, and the only place that knows DeepSpeed's key
names."""

from __future__ import annotations

from typing import Any

from cero_rl.config import Config
from cero_rl.errors import ConfigError

# elements of the norms and biases of a large model, which would each cost a collective
_PERSISTENT_ON_GPU = 100_000


def _zero_section(config: Config, *, on_gpu: bool, trains: bool) -> dict[str, Any]:
    zero = config.zero
    overlap = zero.overlap_comm
    section: dict[str, Any] = {
        "stage": zero.stage,
        "overlap_comm": on_gpu if overlap is None else overlap,
        **zero.deepspeed,
    }
    if zero.stage == 3:
        threshold = zero.param_persistence_threshold
        if threshold is None:
            # 0: every parameter is really sharded, so a partitioned numel() of 0 cannot hide in a
            # small tensor.
            threshold = _PERSISTENT_ON_GPU if on_gpu else 0
        section["stage3_param_persistence_threshold"] = threshold
        if zero.hpz_partition_size > 1:
            section["zero_hpz_partition_size"] = zero.hpz_partition_size
        on_host = zero.offload_parameters == "cpu" if trains else zero.reference_on_host
        if on_host:
            section["offload_param"] = {"device": "cpu"}
    if trains and zero.offload_optimizer == "cpu":
        section["offload_optimizer"] = {"device": "cpu"}
    return section


def refuse_unfit_zero(config: Config, world_size: int | None) -> None:
    """Raises ConfigError for a key of zero.deepspeed that DeepSpeed does not know, or a value that
    it does not take; and for ranks, where they are known, that zero.hpz_partition_size or
    zero.sequence_parallel does not divide."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    for key in ("hpz_partition_size", "sequence_parallel"):
        size = getattr(config.zero, key)
        if world_size is not None and world_size % size:
            raise ConfigError(
                f"zero.{key}: {size} does not divide the {world_size} ranks; choose a divisor"
            )
    try:
        DeepSpeedZeroConfig(**config.zero.deepspeed)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"zero.deepspeed: {key}: got {first['input']!r}; {first['msg']}; "
            "DeepSpeed's section zero_optimization lists what it takes"
        ) from None


def _gradient_types(config: Config) -> dict[str, Any]:
    """In what gradients are summed over micro-batches and over ranks. Without a word DeepSpeed
    takes the model's type, whose rounding grows with the number of summands."""
    wanted = config.gradient_dtype
    if wanted == config.model.dtype:
        return {}
    return {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}


def policy_config(
    config: Config, world_size: int, *, on_gpu: bool = False, universal: bool = False
) -> dict[str, Any]:
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
        "zero_optimization": _zero_section(config, on_gpu=on_gpu, trains=True),
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
                # One pass without temporaries; on a CPU it would round otherwise than before.
                **({"fused": True} if on_gpu and config.zero.offload_optimizer == "none" else {}),
            },
        },
        "steps_per_print": 10**9,
        **({"checkpoint": {"load_universal": True}} if universal else {}),
    }


def reference_config(config: Config, world_size: int, *, on_gpu: bool = False) -> dict[str, Any]:
    """Frozen reference: the same sharding, no optimizer."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": world_size,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "zero_optimization": _zero_section(config, on_gpu=on_gpu, trains=False),
        "steps_per_print": 10**9,
    }
