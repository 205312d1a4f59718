"""Asking a vLLM engine in this process: the LLM that a trainer holds."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from cero_rl.errors import EngineError, first_line
from cero_rl.parity.judge import Answer
from cero_rl.parity.samplers import Facts, Ids, fill
from cero_rl.rollout.engines.server_guard import STATE


class LlmSampler:
    """`llm` is a vllm.LLM, `adapter` the LoRARequest that the trainer samples with."""

    name = "the vLLM engine"

    def __init__(self, llm: Any, *, adapter: Any = None) -> None:
        self._llm = llm
        self._adapter = adapter

    def sample(
        self,
        prompt: Ids,
        *,
        answers: int,
        tokens: int,
        temperature: float,
        seed: int,
        uncached: bool = False,
    ) -> list[Answer]:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        params = SamplingParams(
            n=answers, max_tokens=tokens, temperature=temperature, seed=seed, logprobs=0
        )
        asked: dict[str, Any] = {"prompt_token_ids": prompt.tolist()}
        if uncached:
            asked["cache_salt"] = secrets.token_hex(8)
        try:
            (output,) = self._llm.generate(
                [asked], params, lora_request=self._adapter, use_tqdm=False
            )
        except Exception as error:  # whatever an engine dies of
            raise EngineError(f"parity: vllm failed ({first_line(error)})") from error
        return [self._answer(completion) for completion in output.outputs]

    def _answer(self, completion: Any) -> Answer:
        ids = [int(token) for token in completion.token_ids]
        told = None
        if completion.logprobs is not None:
            told = [row[token].logprob for row, token in zip(completion.logprobs, ids)]
        return Answer(np.array(ids, dtype=np.int64), fill(len(ids), told), completion.text or None)

    def encode(self, text: str) -> Ids | None:
        try:
            tokenizer = self._llm.get_tokenizer()
        except (AttributeError, ValueError):  # started without one
            return None
        return None if tokenizer is None else np.array(tokenizer.encode(text), dtype=np.int64)

    def facts(self) -> Facts:
        """Of engines with our worker extension: `worker_extension_cls`."""
        try:
            (state, *_) = self._llm.collective_rpc(STATE)
        except Exception:  # vLLM raises whatever its transport makes of an unknown method
            return Facts()
        return Facts(state["label"] or None, state.get("checksum") or None, state.get("dtype"))
