"""Rollouts with vLLM, in the process of each rank: the engine of the recipes that matter.

Every rank (or every group of `tensor_parallel` ranks) holds one engine and samples its own groups;
the weights come from the ZeRO shards after each optimizer step. The engine joins the process group
that DeepSpeed made (vLLM's external launcher), so it is built after it. With tensor parallelism the
ranks of an engine work on the union of their requests, and each keeps its own. This file and its
neighbours vllm_*.py are the only importers of vllm.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cero_rl.config.lora import LoraConfig
from cero_rl.distributed.group import Group
from cero_rl.errors import ConfigError, EngineError, first_line
from cero_rl.files.lora_adapter import adapter_config, stored_name, write_adapter
from cero_rl.models.hub_names import HubNames
from cero_rl.models.load import load_model_config
from cero_rl.rollout.engines.choose import INSTALL_HINT
from cero_rl.rollout.engines.vllm_arguments import (
    ADAPTER,
    CPU_ENVIRONMENT,
    ENVIRONMENT,
    VllmSettings,
    engine_arguments,
)
from cero_rl.rollout.engines.vllm_classes import classes_untouched
from cero_rl.rollout.engines.vllm_cpu import private_segments
from cero_rl.rollout.engines.vllm_draws import FINISHED, draw_seed, make_completion
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.types import RolloutGroup

# the engine's core in this process: weights reach it as tensors
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    **ENVIRONMENT,
}
# vLLM sets these for children of its own; ours must not inherit them
_TOUCHED = (
    "LD_PRELOAD",
    "LOCAL_WORLD_SIZE",
    "OMP_NUM_THREADS",
)


class VllmEngine:
    """See RolloutEngine. `gather` is a collective that returns every rank's JSON value; needed with
    tensor parallelism alone.

    Raises EngineError when the engine cannot be built, fails, or answers with log-probabilities
    that are not finite.
    """

    def __init__(
        self,
        model_path: str,
        settings: VllmSettings,
        *,
        eos_token_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        group: Group,
    ) -> None:
        self._settings = settings
        self._eos = sorted(set(eos_token_ids))
        self._decode = decode
        self._ranks = group
        self._on_gpu = torch.cuda.is_available()
        self._asleep = False
        self._model_path = model_path
        self._names = HubNames(load_model_config(model_path))
        # vLLM's name for what load_weights brought, if that is an adapter
        self._adapter: Any = None
        self.version = 0
        shared = (
            private_segments()
            if settings.tensor_parallel > 1 and not self._on_gpu
            else nullcontext()
        )
        with _vllm_environment(self._on_gpu), shared:
            self._llm = self._build(model_path)

    def _build(self, model_path: str) -> Any:
        settings = self._settings
        try:
            from vllm import LLM  # pyright: ignore
            from vllm.engine.arg_utils import EngineArgs  # pyright: ignore
        except ImportError as error:
            raise EngineError(
                f"rollout.engine: vllm cannot be imported ({error}); {INSTALL_HINT}"
            ) from error
        if unknown := settings.further.keys() - {known.name for known in fields(EngineArgs)}:
            raise ConfigError(
                f"rollout.vllm: {min(unknown)} is no argument of vLLM's engine; its class "
                "EngineArgs lists them"
            )
        try:
            with classes_untouched(_model_of) as built:
                llm = LLM(
                    model_path,
                    distributed_executor_backend="external_launcher",
                    enable_sleep_mode=settings.sleep and self._on_gpu,
                    use_tqdm_on_load=False,
                    **engine_arguments(settings, on_gpu=self._on_gpu),
                )
                built.append(llm)
        except Exception as error:
            raise EngineError(
                f"rollout.engine: vllm could not be started ({first_line(error)}); see "
                "docs/rollout.md"
            ) from error
        # When it is collected or the interpreter leaves, vLLM destroys the process group, which is
        # DeepSpeed's.
        core: Any = llm.llm_engine.engine_core
        core._finalizer.detach()
        return llm

    # --- weights

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See RolloutEngine. A failure is final: vLLM cannot use an engine whose reload broke
        off."""
        source = iter(weights)
        try:
            if self._asleep:
                torch.cuda.empty_cache()  # what the learner's allocator kept and does not use
                self._llm.wake_up(tags=["weights"])
            self._reload(source) if self._settings.lora is None else self._load_adapter(
                source, self._settings.lora
            )
            if self._asleep:
                self._llm.wake_up(tags=["kv_cache"])
                self._asleep = False
            fresh = self._llm.reset_prefix_cache()  # it holds keys and values of the old weights
        except Exception as error:
            for _ in source:  # the other ranks still gather, and this one with them
                pass
            raise EngineError(
                f"vllm could not take over the weights ({first_line(error)}); resume the run"
            ) from error
        if not fresh:
            raise EngineError("vllm did not reset its prefix cache; resume the run")
        self.version = version

    def _reload(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        # vLLM keeps a tensor until its layer is complete, longer than a gathered parameter lives:
        # hence the copies.
        copies = ((name, tensor.detach().clone()) for name, tensor in self._names.of(weights))
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": copies})
        if not self._on_gpu:
            self._llm.collective_rpc("finish_reload")

    def _load_adapter(self, weights: Iterable[tuple[str, Tensor]], lora: LoraConfig) -> None:
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        tensors = {
            stored_name(name): tensor.detach().to("cpu", copy=True) for name, tensor in weights
        }
        with TemporaryDirectory(
            prefix="cero-adapter-"
        ) as folder:  # vLLM takes adapters from files alone, and keeps what it read
            write_adapter(Path(folder), tensors, adapter_config(lora, tensors, self._model_path))
            self._llm.llm_engine.add_lora(LoRARequest(ADAPTER, 1, folder, load_inplace=True))
            self._adapter = LoRARequest(ADAPTER, 1, folder)

    def sleep(self) -> None:
        """Give the GPU memory of weights and key-value cache to the learner; `load_weights` wakes
        the engine. No-op on CPUs."""
        if self._settings.sleep and self._on_gpu and not self._asleep:
            # 1 keeps the base weights, which no sync brings, in host memory
            self._llm.sleep(level=2 if self._settings.lora is None else 1)
            self._asleep = True

    # --- sampling

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        *,
        stream: int,
        temperature: float,
        max_tokens: int | None = None,
    ) -> list[RolloutGroup]:
        if self._asleep:
            raise EngineError(
                "rollout.engine: asked to generate while asleep; weights must be loaded first"
            )
        everyone, mine = self._union(requests)
        if not everyone:
            return []
        from vllm import SamplingParams  # pyright: ignore

        limit = min(
            max_tokens or self._settings.max_response_tokens, self._settings.max_response_tokens
        )
        prompts = [{"prompt_token_ids": request.prompt_tokens.tolist()} for request in everyone]
        params = [
            SamplingParams(
                n=request.rollouts,
                temperature=temperature,
                seed=draw_seed(self._settings.seed, stream, request.stream_key, request.first_draw),
                max_tokens=request.limit(limit),
                stop_token_ids=self._eos,
                # the end tokens are those above and no others, as in the transformers engine
                ignore_eos=True,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
            )
            for request in everyone
        ]
        # requests are numbered from here; one that was aborted has no output
        first_id = self._llm.request_counter.counter
        try:
            answers = self._llm.generate(
                prompts, params, lora_request=self._adapter, use_tqdm=False
            )
            outputs = {int(o.request_id) - first_id: o.outputs for o in answers}
        except Exception as error:
            raise EngineError(
                f"vllm failed while it generated ({first_line(error)}); resume the run"
            ) from error
        return [
            self._group(request, outputs.get(index, [])) for index, request in zip(mine, requests)
        ]

    def _group(self, request: RolloutRequest, answers: Sequence[Any]) -> RolloutGroup:
        """Completions that were aborted are left out: the caller counts what it got and refunds the
        rest."""
        completions = [
            make_completion(
                a.token_ids,
                a.logprobs.logprobs,
                a.finish_reason,
                prompt_id=request.prompt_id,
                decode=self._decode,
                version=self.version,
            )
            for a in answers
            if a.finish_reason in FINISHED
        ]
        return RolloutGroup(request.prompt_id, request.prompt_tokens, tuple(completions))

    def _union(self, requests: Sequence[RolloutRequest]) -> tuple[list[RolloutRequest], range]:
        """(what the ranks of this engine ask for, in rank order; where this rank's own requests
        stand). A collective if it spans ranks."""
        size = self._settings.tensor_parallel
        if size == 1:
            return list(requests), range(len(requests))
        assert all(r.max_tokens is None for r in requests)  # environments have engines of one rank
        own = [
            [r.prompt_id, r.prompt_tokens.tolist(), r.rollouts, str(r.stream_key), r.first_draw]
            for r in requests
        ]
        return union_of_peers(self._ranks.gather_json(own), self._ranks.rank, size)


def union_of_peers(
    by_rank: Sequence[Sequence[Any]], rank: int, size: int
) -> tuple[list[RolloutRequest], range]:
    """Requests of the ranks that share an engine with `rank` (blocks of `size` neighbours), and the
    places of its own."""
    first = rank // size * size
    peers = by_rank[first : first + size]
    before = sum(len(asked) for asked in peers[: rank - first])
    everyone = [
        RolloutRequest(p, np.array(t, dtype=np.int64), n, int(key), draw)
        for asked in peers
        for p, t, n, key, draw in asked
    ]
    return everyone, range(before, before + len(peers[rank - first]))


def _model_of(llm: Any) -> Any:
    """The module of the worker in this process."""
    (model,) = llm.apply_model(lambda model: model)
    return model


@contextmanager
def _vllm_environment(on_gpu: bool) -> Iterator[None]:
    """Set what vLLM reads, while and after it is imported; undo what it sets for processes that
    this one starts later."""
    for name, value in {**_ENVIRONMENT, **({} if on_gpu else CPU_ENVIRONMENT)}.items():
        os.environ.setdefault(name, value)
    # it reports, once a rank, that a CPU has no Triton
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    before = {name: os.environ.get(name) for name in _TOUCHED}
    set_num_threads = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
