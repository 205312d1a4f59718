"""What was meant by a key that does not exist: the nearest name, the same name in another section,
the word that other trainers use for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from cero_rl.config.base import kinds_of
from cero_rl.config.root import Config

# The field's other words, and those of other trainers. A value that is no key is said as it is.
_MEANT = {
    "lr": "optimizer.learning_rate",
    "learning_rate_schedule": "optimizer.schedule",
    "lr_scheduler_type": "optimizer.schedule",
    "warmup": "optimizer.warmup_steps",
    "num_warmup_steps": "optimizer.warmup_steps",
    "grad_clip": "optimizer.max_grad_norm",
    "clip_grad": "optimizer.max_grad_norm",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "name_or_path": "model.path",
    "torch_dtype": "model.dtype",
    "precision": "model.dtype",
    "attn_implementation": "model.attention",
    "dataset": "data.source",
    "dataset_name": "data.source",
    "train_files": "data.source",
    "val_files": "data.heldout_source",
    "max_prompt_length": "data.max_prompt_tokens",
    "max_tokens": "rollout.max_response_tokens",
    "max_new_tokens": "rollout.max_response_tokens",
    "max_response_length": "rollout.max_response_tokens",
    "max_completion_length": "rollout.max_response_tokens",
    "gpu_memory_utilization": "rollout.gpu_memory_fraction",
    "tensor_parallel_size": "rollout.tensor_parallel",
    "tensor_model_parallel_size": "rollout.tensor_parallel",
    "sequence_parallel_size": "zero.sequence_parallel",
    "ulysses_sequence_parallel_size": "zero.sequence_parallel",
    "context_parallel_size": "zero.sequence_parallel",
    "ring_attn_size": "zero.sequence_parallel",
    "num_generations": "scheduler.rollouts_per_unit",
    "group_size": "scheduler.rollouts_per_unit",
    "rollouts_per_prompt": "scheduler.rollouts_per_unit",
    "n": "scheduler.rollouts_per_unit",
    "allocator": "scheduler.name",
    "batch_size": "learner.rollouts_per_step",
    "train_batch_size": "learner.rollouts_per_step",
    "mini_batch_size": "learner.rollouts_per_step",
    "micro_batch_size": "learner.max_micro_batch_tokens",
    "gradient_accumulation_steps": "learner.max_micro_batch_tokens",
    "loss_type": "learner.algorithm",
    "beta": "learner.kl_coefficient",
    "kl_coef": "learner.kl_coefficient",
    "kl_loss_coef": "learner.kl_coefficient",
    "epsilon": "learner.clip_low",
    "clip_ratio": "learner.clip_low",
    "epsilon_high": "learner.clip_high",
    "clip_ratio_high": "learner.clip_high",
    "reward_function": "reward.function",
    "save_steps": "checkpoint.every_steps",
    "save_freq": "checkpoint.every_steps",
    "eval_steps": "evaluation.every_steps",
    "test_freq": "evaluation.every_steps",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "r": "lora.rank",
    "target_modules": "lora.targets",
    "zero_stage": "zero.stage",
    "epochs": "budget.total_rollouts",
    "num_train_epochs": "budget.total_rollouts",
    "max_steps": "budget.total_rollouts",
    "stop": "a response ends at the model's end-of-sequence tokens (generation_config.json, "
    "eos_token_id) or at rollout.max_response_tokens",
}
_MEANT |= dict.fromkeys(("stop_strings", "stop_token_ids"), _MEANT["stop"])


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field of this annotation may hold."""
    return [o for o in kinds_of(annotation) if isinstance(o, type) and issubclass(o, BaseModel)]


def section_at(path: Sequence[Any]) -> type[BaseModel] | None:
    """The section at this path of keys; None where there is no section."""
    model: type[BaseModel] = Config
    for part in path:
        field = model.model_fields.get(str(part))
        found = sections_of(field.annotation) if field else []
        if not found:
            return None
        model = found[0]
    return model


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(last name, whole key) of every key below `model`, sections before what they hold."""
    for name, field in model.model_fields.items():
        yield name, prefix + name
        for inner in sections_of(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def key_hint(unknown: str, path: Sequence[Any]) -> str:
    """In words: what the key `unknown`, found in the section at `path`, was probably meant to
    be."""
    section = section_at(path) or Config
    if (meant := _MEANT.get(unknown.lower())) is not None:
        return f"did you mean {meant}?" if " " not in meant else f"there is none: {meant}"
    elsewhere = [key for name, key in _keys(Config) if name == unknown]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    near = difflib.get_close_matches(unknown, section.model_fields, n=1, cutoff=0.7)
    begun = [name for name in section.model_fields if name.startswith(unknown)]
    if near := near or (begun if len(begun) == 1 and len(unknown) > 2 else []):
        return f"did you mean {'.'.join([*map(str, path), near[0]])}?"
    names = [name for name, _ in _keys(Config)]
    if far := difflib.get_close_matches(unknown, names, n=1, cutoff=0.85):
        return f"did you mean {next(key for name, key in _keys(Config) if name == far[0])}?"
    return f"known keys: {', '.join(section.model_fields)}"
