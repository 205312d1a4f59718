"""What can be told before weights are loaded or a file is written."""

from __future__ import annotations

from typing import Any

import torch

from cero_rl.config import Config
from cero_rl.errors import ConfigError
from cero_rl.models.attention import choose_attention
from cero_rl.models.generation import exportable_generation_config, read_generation_config
from cero_rl.models.load import (
    adapter_without_weights,
    load_model_config,
    refuse_other_architectures,
)
from cero_rl.rollout.engines.choose import choose_engine


def check_model(config: Config, path: str, tokenizer: Any) -> None:
    """What can be told without the weights, before anything is written: does this machine run it,
    is it a causal language model, do tokenizer and lengths fit? Raises ConfigError."""
    choose_attention(config.model.attention)
    choose_engine(config, on_gpu=torch.cuda.is_available())
    model = load_model_config(path)
    refuse_other_architectures(path, model, tokenizer)
    if config.lora.rank and path == config.model.path:
        adapter_without_weights(config)
    longest = model.max_position_embeddings
    wanted = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    if wanted > longest:
        raise ConfigError(
            "data.max_prompt_tokens + rollout.max_response_tokens = "
            f"{config.data.max_prompt_tokens} + {config.rollout.max_response_tokens} = "
            f"{wanted}, but the model has {longest} positions; lower one of them"
        )


def export_repairs(config: Config) -> tuple[str, ...]:
    """What the export will change in the start model's generation settings, in words. Raises
    ConfigError for settings that could be neither saved nor repaired when all rollouts are paid."""
    path = config.model.path
    return exportable_generation_config(read_generation_config(path), path)[1]
