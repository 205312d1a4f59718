"""What vLLM is started with, in the process of a rank and as a server: one list, so that both
sample the same. Does not import vllm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cero_rl.config.lora import LoraConfig

# that vLLM 0.32 has room for; a smaller adapter fits into a larger one
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
ADAPTER = "policy-adapter"  # what vLLM calls the adapter, of which it has one
CPU_ENVIRONMENT = {
    "TORCH_COMPILE_DISABLE": "1",  # else the first call compiles for seconds
    # The second one, vLLM's own choice on a GPU, draws in a Triton kernel. The first launches a
    # kernel a sequence and token where requests have seeds, which on a CPU costs nothing.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}


@dataclass(frozen=True)
class VllmSettings:
    """Sizes in tokens and bytes, waits in seconds."""

    dtype: str  # float32 | bfloat16
    max_model_tokens: int  # prompt and response of one sequence
    max_response_tokens: int
    max_sequences: int  # in flight at once
    gpu_memory_fraction: float
    kv_cache_memory_bytes: int | None
    tensor_parallel: int
    sleep: bool
    seed: int
    lora: LoraConfig | None = None  # weights come as its adapter; None: whole
    further: Mapping[str, Any] = field(default_factory=dict)  # arguments, checked by the config


def lora_room(lora: LoraConfig | None) -> int:
    """The rank that vLLM is built for; 0: for no adapter."""
    return next(rank for rank in _LORA_RANKS if rank >= lora.rank) if lora is not None else 0


def engine_arguments(settings: VllmSettings, *, on_gpu: bool) -> dict[str, Any]:
    """Keyword arguments of vllm.LLM; with dashes they are the server's options."""
    kv_bytes = settings.kv_cache_memory_bytes
    if kv_bytes is None and not on_gpu:
        # a share of all memory, vLLM's own default, would be asked for once a rank
        kv_bytes = 2**29
    # vLLM 0.32 takes back the draw of a prompt that is only partly read, which a CPU's seeded
    # generator cannot: its engine dies.
    whole_prompts: dict[str, Any] = {} if on_gpu else {"enable_chunked_prefill": False}
    rank = lora_room(settings.lora)
    lora: dict[str, Any] = (
        {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank} if rank else {}
    )
    return {
        **whole_prompts,
        **lora,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_tokens,
        "max_num_seqs": settings.max_sequences,
        "gpu_memory_utilization": settings.gpu_memory_fraction,
        "kv_cache_memory_bytes": kv_bytes,
        "tensor_parallel_size": settings.tensor_parallel,
        "enforce_eager": not on_gpu,
        "enable_prefix_caching": True,
        # The distribution that is sampled from, temperature included: what the learner computes.
        # Raw ones would leave it out.
        "logprobs_mode": "processed_logprobs",
        # a checkpoint's own top_p, top_k or repetition penalty must not reach the sampler
        "generation_config": "vllm",
        "skip_tokenizer_init": True,
        "worker_extension_cls": "cero_rl.rollout.engines.vllm_worker.WorkerExtension",
        "seed": settings.seed,
        **settings.further,
    }
