"""The sampler's section of the configuration: which engine, its sizes, its waits; where its server
is, if it is one."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from cero_rl.config.base import (
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seconds,
    Section,
    Temperature,
    refuse_own_keys,
)
from cero_rl.config.paths import PathText


def is_loopback(host: str) -> bool:
    """Is this the name or number of this machine alone?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ServerConfig(Section):
    """Rollouts from a server that `cero-rl serve --config FILE` started. Its key is read from a
    file, never from the configuration."""

    urls: tuple[str, ...] = Field(
        default=("http://127.0.0.1:8000",),
        min_length=1,
        description="servers, http://HOST:PORT or https://HOST:PORT; rank r uses number r modulo N",
    )
    key_file: PathText = Field(
        default="runs/.server/key",
        description="cero-rl serve makes it; the variable CERO_SERVER_KEY stands before it",
    )
    weights_dir: PathText = Field(
        default="runs/.server/weights",
        description="where weights are handed over, the same place for run and servers; room "
        "for two copies of the model",
    )
    connect_timeout_seconds: Seconds = Field(default=10.0, description="for a connection")
    read_timeout_seconds: Seconds = Field(
        default=600.0, description="of silence; one group, its wait in the server's queue included"
    )
    total_timeout_seconds: Seconds = Field(
        default=1800.0, description="for one call from its start to its last byte"
    )
    restart_timeout_seconds: Seconds = Field(
        default=300.0,
        description="how long a run waits for a server that is down or comes back; then it ends "
        "(exit 6)",
    )
    retries: NonNegativeInt = Field(
        default=5, description="further tries of a request that failed; then the run ends (exit 6)"
    )
    backoff_seconds: Seconds = Field(
        default=0.5, description="before the first of them, about; doubled each time, at most 30"
    )
    concurrency: PositiveInt = Field(
        default=64, description="groups that a rank asks for at the same time"
    )

    @field_validator("urls")
    @classmethod
    def _plain_addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        # the url itself is not shown where it may hold a password
        for number, url in enumerate(urls, 1):
            try:
                parts = urlsplit(url)
                host, _ = parts.hostname, parts.port
            except ValueError as error:
                raise ValueError(
                    f"number {number} is no address ({error}); wanted http://HOST:PORT"
                ) from None
            if parts.username is not None or parts.password is not None:
                raise ValueError(
                    f"number {number} carries a user name or password; keys belong into key_file"
                )
            if (
                parts.scheme not in ("http", "https")
                or not host
                or parts.path not in ("", "/")
                or parts.query
                or parts.fragment
            ):
                raise ValueError(
                    f"got {url!r}; wanted http://HOST:PORT or https://HOST:PORT and nothing "
                    "after it"
                )
        urls = tuple(url.rstrip("/") for url in urls)
        if len(set(urls)) < len(urls):
            raise ValueError(f"got a server twice in {list(urls)}; name each once")
        return urls


OVERLAP_IN_THE_RANK = (
    "overlap: vllm in the rank shares the learner's device and its stream, so nothing would be "
    "gained and both would hold their memory; set rollout.mode: server, or rollout.overlap: false"
)
_ON_POLICY = "what is sampled must be what the learner computes"
_OWN_VLLM_ARGUMENTS = {  # vLLM's name -> what sets it here
    "model": "set model.path",
    "tokenizer": "set model.path",
    "dtype": "set model.dtype",
    "seed": "set seed",
    "max_model_len": "set data.max_prompt_tokens and rollout.max_response_tokens",
    "max_num_seqs": "set rollout.max_sequences",
    "gpu_memory_utilization": "set rollout.gpu_memory_fraction",
    "kv_cache_memory_bytes": "set rollout.kv_cache_memory_bytes",
    "tensor_parallel_size": "set rollout.tensor_parallel",
    "enable_sleep_mode": "set rollout.sleep",
    "enable_lora": "set lora.rank",
    "max_loras": "the engine has one adapter",
    "max_lora_rank": "set lora.rank",
    "logprobs_mode": _ON_POLICY,
    "generation_config": _ON_POLICY,
    "override_generation_config": _ON_POLICY,
    "skip_tokenizer_init": "prompts are tokens already",
    "trust_remote_code": "code of a checkpoint is never run",
    "worker_extension_cls": "weights arrive through it",
    "distributed_executor_backend": "the engine joins the ranks' own group",
    "pipeline_parallel_size": "the engine joins the ranks' own group",
    "data_parallel_size": "every rank has an engine of its own",
    "load_format": "weights come from the learner",
    "speculative_config": _ON_POLICY,
}


class RolloutConfig(Section):
    mode: Literal["in_process", "server"] = Field(
        default="in_process",
        description="server: vllm in a process of its own, started with cero-rl serve (section "
        "rollout.server)",
    )
    engine: Literal["auto", "transformers", "vllm"] = Field(
        default="auto",
        description="what samples; auto: vllm on a GPU where it is installed, else transformers",
    )
    max_response_tokens: PositiveInt = Field(
        default=1024, description="a longer response is cut and counted as truncated"
    )
    temperature: Temperature = Field(
        default=1.0, description="of training rollouts; the learner's log-probabilities use it too"
    )
    top_p: Fraction = Field(default=1.0, description="must stay 1.0 in training")
    top_k: NonNegativeInt = Field(default=0, description="must stay 0 (off) in training")
    max_batch_tokens: PositiveInt = Field(
        default=65536,
        description="transformers: prompt + response tokens generated at once on a rank",
    )
    max_sequences: PositiveInt = Field(
        default=256,
        description="vllm: sequences that an engine generates at once, as far as its key-value "
        "cache holds what they really are long; the others wait",
    )
    gpu_memory_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5,
        description="vllm on a GPU: share of its memory for weights and key-value cache, the "
        "learner's part left out",
    )
    kv_cache_memory_bytes: Annotated[int, Field(ge=2**20)] | None = Field(
        default=None,
        description="vllm: key-value cache of a rank; None: what gpu_memory_fraction leaves, "
        "512 MiB on a CPU",
    )
    tensor_parallel: PositiveInt = Field(
        default=1, description="vllm: ranks that share one engine; must divide the number of ranks"
    )
    sleep: bool = Field(
        default=True,
        description="vllm on a GPU: leave its memory to the learner between rollouts; no "
        "effect on a CPU",
    )
    overlap: bool = Field(
        default=False,
        description="generate the next step's rollouts while the learner works on this one's: "
        "they come from weights one step old, which learner.importance_sampling corrects. "
        "Gains where sampler and learner have hardware of their own",
    )
    environment: PathText | None = Field(
        default=None,
        description="tasks of several turns, with tools: path/to/file.py:Class, see "
        "docs/environments.md",
    )
    environment_args: dict[str, Any] = Field(
        default={}, description="further arguments of that class, by name"
    )
    max_turns: PositiveInt = Field(
        default=8, description="answers of the model in an episode; then it is scored as it stands"
    )
    max_turn_tokens: PositiveInt | None = Field(
        default=None,
        description="of one answer in an episode; None: what max_response_tokens leaves, which "
        "counts the environment's words too",
    )
    turn_cost_tokens: NonNegativeInt = Field(
        default=0,
        description="what a turn costs beside its tokens, in tokens; enters the expected cost of a "
        "rollout",
    )
    parity_bound: PositiveFloat | None = Field(
        default=None,
        description="largest |log-prob difference| of sampler and learner after a sync; None: 1e-4 "
        "(float32), 0.2 (bfloat16), divided by a temperature below 1",
    )
    parity_every_syncs: PositiveInt = Field(
        default=1,
        description="weight syncs from one parity probe to the next, counted from the start of "
        "the process; 1: after every sync. Between probes the same bound is held by the "
        "log-probs of the rollouts that train",
    )
    sync_timeout_seconds: Seconds = Field(
        default=600.0, description="a longer weight sync ends the run (exit 6)"
    )
    generate_timeout_seconds: Seconds = Field(
        default=3600.0,
        description="one wave of rollouts that takes longer ends the run (exit 6)",
    )

    vllm: dict[str, Any] = Field(
        default={},
        description="further arguments of vLLM's engine, in a rank and in cero-rl serve, handed on "
        "as they are",
    )

    server: ServerConfig = ServerConfig()

    @field_validator("vllm")
    @classmethod
    def _no_argument_of_ours(cls, given: dict[str, Any]) -> dict[str, Any]:
        refuse_own_keys(given, _OWN_VLLM_ARGUMENTS)
        return given

    @model_validator(mode="after")
    def _full_support(self) -> RolloutConfig:
        if self.top_p != 1.0 or self.top_k != 0:
            raise ValueError(
                f"top_p={self.top_p}, top_k={self.top_k} change the behaviour distribution "
                "that the loss divides by; train with top_p=1.0 and top_k=0"
            )
        if self.tensor_parallel > 1 and self.engine != "vllm":
            raise ValueError(
                f"tensor_parallel={self.tensor_parallel} needs engine: vllm, got engine: "
                f"{self.engine}; set rollout.engine: vllm or rollout.tensor_parallel: 1"
            )
        if self.environment is not None and self.tensor_parallel > 1 and self.mode == "in_process":
            raise ValueError(
                f"environment with tensor_parallel={self.tensor_parallel}: ranks that share an "
                "engine would have to end their episodes in the same turn; set rollout.mode: "
                "server, or tensor_parallel: 1"
            )
        if self.overlap and self.engine == "vllm" and self.mode == "in_process":
            raise ValueError(OVERLAP_IN_THE_RANK)
        if self.overlap and self.parity_every_syncs > 1:
            raise ValueError(
                f"parity_every_syncs={self.parity_every_syncs} with overlap: rollouts that are a "
                "step old prove nothing between two probes; set rollout.parity_every_syncs: 1 or "
                "rollout.overlap: false"
            )
        if self.mode == "server" and self.engine != "vllm":
            raise ValueError(
                f"mode: server needs engine: vllm, got engine: {self.engine}; set "
                "rollout.engine: vllm or rollout.mode: in_process"
            )
        return self
