"""What can be told before weights are loaded or a file is written."""

from __future__ import annotations

from typing import Any

import torch

from cero_rl.config import Config
from cero_rl.data.pool import Data
from cero_rl.distributed.group import Group
from cero_rl.errors import ConfigError, DataError, RewardError
from cero_rl.models.attention import attention_of, refuse_indivisible_heads
from cero_rl.models.generation import exportable_generation_config, read_generation_config
from cero_rl.models.load import (
    adapter_without_weights,
    load_model_config,
    load_tokenizer,
    refuse_other_architectures,
    usable_positions,
)
from cero_rl.rewards.trial import try_reward
from cero_rl.rollout.engines.choose import choose_engine
from cero_rl.rollout.engines.unfit_for_vllm import refuse_unfit_for_vllm
from cero_rl.train.trial import try_architecture


def check_model(config: Config, path: str, tokenizer: Any) -> None:
    """What can be told without the weights, before anything is written: does this machine run it,
    is it a causal language model that learner and sampler compute as its own code does, do
    tokenizer and lengths fit? Raises ConfigError."""
    attention_of(config)
    engine = choose_engine(config, on_gpu=torch.cuda.is_available()).rollout.engine
    model = load_model_config(path)
    refuse_other_architectures(path, model, tokenizer)
    refuse_indivisible_heads(path, model, config.zero.sequence_parallel)
    try_architecture(
        path,
        model,
        with_sampler=engine == "transformers",
        checkpointing=config.model.gradient_checkpointing,
        shared_prefix=config.learner.shared_prefix is not False
        and config.zero.sequence_parallel == 1,
    )
    if config.lora.rank and path == config.model.path:
        adapter_without_weights(config)
    longest, why = usable_positions(path, model)
    wanted = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    if engine == "vllm":
        refuse_unfit_for_vllm(path, model, wanted)
    if wanted > longest:
        raise ConfigError(
            "data.max_prompt_tokens + rollout.max_response_tokens = "
            f"{config.data.max_prompt_tokens} + {config.rollout.max_response_tokens} = "
            f"{wanted}, but the model has {longest} positions{why}; lower one of them"
        )


def export_repairs(config: Config) -> tuple[str, ...]:
    """What the export will change in the start model's generation settings, in words. Raises
    ConfigError for settings that could be neither saved nor repaired when all rollouts are paid."""
    path = config.model.path
    return exportable_generation_config(read_generation_config(path), path)[1]


def try_model(config: Config) -> tuple[Any, list[str]]:
    """(tokenizer, lines for the user) of the start model, for a validation on another machine than
    the run's: a GPU or vllm that this one lacks is no fault. Raises ConfigError, EngineError."""
    path, rollout = config.model.path, config.rollout
    if rollout.engine == "vllm":  # as installed elsewhere
        rollout = rollout.model_copy(update={"mode": "server"})
    model = config.model.model_copy(update={"attention": "auto"})
    tokenizer = load_tokenizer(path)
    check_model(config.model_copy(update={"model": model, "rollout": rollout}), path, tokenizer)
    repairs = export_repairs(config) if config.checkpoint.export else ()
    lines = [f"{path}: tokenizer, architecture, lengths and generation settings fit"]
    return tokenizer, lines + [f"export: generation_config.json: {repair}" for repair in repairs]


def try_rewards(config: Config, data: Data, group: Group) -> list[str]:
    """What is to be said of the reward on the reference answers of both pools; tried on rank 0,
    refused on all. A collective."""
    if config.rollout.environment is not None:
        return [f"{config.rollout.environment}, or reward.function where it has no reward"]
    said: list[str] = []

    def tried() -> None:
        for pool, field in ((data.train, "data.source"), (data.heldout, "held-out prompts")):
            said.extend(try_reward(config.reward, pool.prompts, field))

    group.on_main(tried, (RewardError, DataError))
    return said
