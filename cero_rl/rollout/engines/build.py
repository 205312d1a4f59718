"""The sampler of a run, built: one function an engine; a new one is a file, a function and a line.

In: a Config, the tokenizer, the process group. Out: a `SharedEngine`, which the training loop and
the evaluation command share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cero_rl.config import Config
from cero_rl.config.lora import LoraConfig
from cero_rl.distributed.group import Group
from cero_rl.environments.pool import EnvironmentPool
from cero_rl.errors import ConfigError
from cero_rl.models.attention import sampler_attention
from cero_rl.models.hub_names import HubNames
from cero_rl.models.load import load_model, load_model_config, usable_positions
from cero_rl.models.lora import add_adapter
from cero_rl.rollout.engines.choose import choose_engine
from cero_rl.rollout.engines.server_key import read_key
from cero_rl.rollout.engines.transformers import TransformersEngine
from cero_rl.rollout.engines.vllm_arguments import VllmSettings
from cero_rl.rollout.episodes import EpisodeEngine
from cero_rl.rollout.protocol import PROBE_PROMPT_TOKENS, PROBE_TOKENS, RolloutEngine
from cero_rl.rollout.shared_engine import SharedEngine
from cero_rl.rollout.turns import TurnWriter


def _eos_token_ids(generation: Any, tokenizer: Any) -> list[int]:
    eos = generation.eos_token_id
    return sorted(
        {
            tokenizer.eos_token_id,
            *(eos if isinstance(eos, list) else [eos] if eos is not None else []),
        }
    )


def build_rollout_engine(
    config: Config, tokenizer: Any, group: Group, model_path: str | None = None
) -> SharedEngine:
    """This rank's sampler, with the start model's weights (or those of `model_path`, whole ones). A
    collective."""
    config = choose_engine(config, on_gpu=group.device.type == "cuda")
    if model_path is not None:
        config = config.model_copy(update={"lora": LoraConfig()})
    path = model_path or config.model.path
    kind = "server" if config.rollout.mode == "server" else config.rollout.engine
    sampler = ENGINES[kind](config, tokenizer, group, path)
    if config.rollout.environment is not None:
        sampler = _with_environment(sampler, config, tokenizer, path)
    engine = SharedEngine(sampler, group)
    if kind == "server" and model_path is not None:  # nobody else will give it these weights
        named: Any = ()
        if group.is_main:
            named = load_model(path, config.model.dtype, "sdpa").named_parameters()
        engine.load_weights(((name, parameter.data) for name, parameter in named), 0)
    return engine


def _with_environment(
    sampler: RolloutEngine, config: Config, tokenizer: Any, path: str
) -> EpisodeEngine:
    pool = EnvironmentPool(config.rollout, config.reward)
    pool.open()  # they load while the run starts
    return EpisodeEngine(
        sampler,
        pool,
        TurnWriter(tokenizer, config.data, _eos_token_ids(_generation_config(path), tokenizer)),
        _decoder(tokenizer),
        config.rollout,
        config.seed,
    )


def _transformers(config: Config, tokenizer: Any, group: Group, path: str) -> RolloutEngine:
    model = load_model(path, config.model.dtype, sampler_attention(load_model_config(path)))
    if config.lora.adapter_only:
        add_adapter(model, config)
    pad = tokenizer.pad_token_id
    return TransformersEngine(
        model.to(group.device),
        eos_token_ids=_eos_token_ids(model.generation_config, tokenizer),
        pad_token_id=pad if pad is not None else tokenizer.eos_token_id,
        decode=_decoder(tokenizer),
        max_response_tokens=config.rollout.max_response_tokens,
        max_batch_tokens=config.rollout.max_batch_tokens,
        seed=config.seed,
    )


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    return partial(tokenizer.decode, skip_special_tokens=True)


def _generation_config(path: str) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # a checkpoint without generation_config.json
        return GenerationConfig.from_model_config(load_model_config(path))


def vllm_settings(config: Config, path: str) -> VllmSettings:
    """The sizes of an engine that samples with the model at `path`, in a rank or in a server."""
    rollout, model = config.rollout, load_model_config(path)
    if model.num_attention_heads % rollout.tensor_parallel:
        raise ConfigError(
            f"rollout.tensor_parallel: {rollout.tensor_parallel} does not divide the "
            f"model's {model.num_attention_heads} attention heads"
        )
    longest = max(
        config.data.max_prompt_tokens + rollout.max_response_tokens,
        PROBE_PROMPT_TOKENS + PROBE_TOKENS,
    )
    return VllmSettings(
        dtype=config.model.dtype,
        max_model_tokens=min(longest, usable_positions(path, model)[0]),
        max_response_tokens=rollout.max_response_tokens,
        max_sequences=rollout.max_sequences,
        gpu_memory_fraction=rollout.gpu_memory_fraction,
        kv_cache_memory_bytes=rollout.kv_cache_memory_bytes,
        tensor_parallel=rollout.tensor_parallel,
        sleep=rollout.sleep,
        seed=config.seed,
        lora=config.lora if config.lora.adapter_only else None,
        further=rollout.vllm,
    )


def _vllm(config: Config, tokenizer: Any, group: Group, path: str) -> RolloutEngine:
    from cero_rl.rollout.engines.vllm import VllmEngine

    size = config.rollout.tensor_parallel
    if group.world_size % size:
        raise ConfigError(
            f"rollout.tensor_parallel: {size} does not divide the {group.world_size} ranks; "
            "choose a divisor"
        )
    settings = vllm_settings(config, path)
    eos = _eos_token_ids(_generation_config(path), tokenizer)
    return VllmEngine(path, settings, eos_token_ids=eos, decode=_decoder(tokenizer), group=group)


def _server(config: Config, tokenizer: Any, group: Group, path: str) -> RolloutEngine:
    from cero_rl.rollout.engines.server import Expected, ServerEngine

    rollout, model, settings = config.rollout, load_model_config(path), vllm_settings(config, path)
    if len(rollout.server.urls) > group.world_size:
        raise ConfigError(
            f"rollout.server.urls: {len(rollout.server.urls)} servers for "
            f"{group.world_size} ranks; name at most one a rank"
        )
    expected = Expected(
        settings.dtype,
        model.vocab_size,
        model.hidden_size,
        model.num_hidden_layers,
        settings.max_model_tokens,
        settings.lora,
    )

    def connect() -> ServerEngine:
        return ServerEngine(
            rollout.server,
            expected,
            key=read_key(Path(rollout.server.key_file)),
            eos_token_ids=_eos_token_ids(_generation_config(path), tokenizer),
            decode=_decoder(tokenizer),
            max_response_tokens=rollout.max_response_tokens,
            generate_timeout_seconds=rollout.generate_timeout_seconds,
            sync_timeout_seconds=rollout.sync_timeout_seconds,
            seed=config.seed,
            names=HubNames(model),
            group=group,
        )

    return group.together("rollout.mode: server", connect)  # a key may be missing on one node alone


ENGINES: dict[str, Callable[[Config, Any, Group, str], RolloutEngine]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "server": _server,
}
