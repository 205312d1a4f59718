"""Rollouts from vLLM's own server, over HTTP: the engine for a sampler that lives in another
process, or on another machine.

Rank r talks to server r mod N. Weights are handed over as files, which one rank writes and the
first rank of each server announces. Every answer carries the label of the weights it was made
with, and the workers are asked before and after a batch which they hold; so a server that kept
old weights, was given others, or came back from a crash with the start model cannot answer
unnoticed. What fails is tried again for the groups that are not finished, with back-off, a
bounded number of times; a completion is taken once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cero_rl.config.lora import LoraConfig
from cero_rl.config.rollout import ServerConfig
from cero_rl.distributed.group import Group
from cero_rl.errors import EngineError, tell
from cero_rl.models.hub_names import HubNames
from cero_rl.rollout.engines.server_guard import LOAD, STATE
from cero_rl.rollout.engines.server_http import Answer, ServerClient, Trouble
from cero_rl.rollout.engines.vllm_arguments import ADAPTER, lora_room
from cero_rl.rollout.engines.vllm_draws import FINISHED, draw_seed, make_completion
from cero_rl.rollout.engines.weight_files import WeightStore, new_label
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.types import Completion, RolloutGroup

MODEL_NAME = "policy"  # what the server calls whatever weights it holds
_REFILLS = 2  # further requests for draws that an answer left out
_MOST_BACKOFF_SECONDS = 30.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Expected:
    """What the server's workers must report for the parity of sampler and learner to be possible
    at all."""

    dtype: str
    vocab_size: int
    hidden_size: int
    layers: int
    longest_tokens: int  # prompt and response of one sequence
    lora: LoraConfig | None = None  # weights come as its adapter; None: whole


class ServerEngine:
    """See RolloutEngine. `load_weights` alone is a collective of `group`."""

    def __init__(
        self,
        config: ServerConfig,
        expected: Expected,
        *,
        key: str,
        eos_token_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        max_response_tokens: int,
        generate_timeout_seconds: float,
        sync_timeout_seconds: float,
        seed: int,
        names: HubNames,
        group: Group,
    ) -> None:
        self._config, self._expected = config, expected
        self._names = names
        self._eos = sorted(set(eos_token_ids))
        self._decode = decode
        self._max_response = max_response_tokens
        self._generate_seconds = generate_timeout_seconds
        self._sync_seconds = sync_timeout_seconds
        self._seed = seed
        self._ranks = group
        self.url = config.urls[group.rank % len(config.urls)]
        self._client = ServerClient(
            self.url,
            key,
            connect_seconds=config.connect_timeout_seconds,
            read_seconds=config.read_timeout_seconds,
            total_seconds=config.total_timeout_seconds,
            connections=config.concurrency,
        )
        self._store = WeightStore(Path(config.weights_dir)) if group.is_main else None
        # one loop for the engine's life, so that connections are kept
        self._runner = asyncio.Runner()
        self._slots = asyncio.Semaphore(config.concurrency)
        self._recovering = asyncio.Lock()
        self._recoveries = 0
        self._jitter = random.Random(f"{seed} {group.rank}")
        self._label = ""
        self.version = 0

    # --- weights

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See RolloutEngine. A collective."""
        label, failure = "", None
        if self._store is not None:
            label, source, lora = new_label(version), iter(weights), self._expected.lora
            named = source if lora is not None else self._names.of(source)
            try:
                self._store.write(named, label, lora)
            except EngineError as error:
                failure = str(error)
            finally:
                for _ in source:  # the other ranks still gather, and this one with them
                    pass
        else:
            for _ in weights:  # gathered together with the rank that writes
                pass
        label, failure = self._ranks.gather_json([label, failure])[0]
        if failure:
            raise EngineError(failure)
        self._label = label
        if self._ranks.rank < len(self._config.urls):  # the first rank of its server
            self._runner.run(self._recover(None))
        if self._store is not None:
            self._store.keep_only(label)  # this one stays: a server that comes back needs it
        self.version = version

    def sleep(self) -> None:
        """Nothing: the server's memory is its own."""

    def close(self) -> None:
        """End the connections and let go of the directory of weights; a process that ends does
        both by itself."""
        self._runner.run(self._client.close())
        self._runner.close()
        if self._store is not None:
            self._store.close()

    async def _load(self) -> None:
        await self._client.rpc(LOAD, self._label, seconds=self._sync_seconds)
        # Not needed for what is right, as requests are salted with the label; it frees the old
        # weights' blocks.
        await self._client.call("POST", "/reset_prefix_cache")

    async def _held(self) -> str:
        """The label of the weights that the workers hold. Raises EngineError if they can never
        answer as the learner would."""
        state, want = await self._client.rpc(STATE), self._expected
        wanted = {
            "dtype": want.dtype,
            "logprobs_mode": "processed_logprobs",
            "vocab_size": want.vocab_size,
            "hidden_size": want.hidden_size,
            "layers": want.layers,
            "lora_rank": lora_room(want.lora),
        }
        for name, value in wanted.items():
            if state.get(name) != value:
                raise EngineError(
                    f"rollout server {self.url}: its {name} is {state.get(name)}, the run's "
                    f"is {value}; start it with the configuration "
                    "of the run: cero-rl serve --config FILE"
                )
        if int(state.get("max_model_tokens", 0)) < want.longest_tokens:
            raise EngineError(
                f"rollout server {self.url}: it takes sequences of "
                f"{state.get('max_model_tokens')} tokens, the run needs {want.longest_tokens}; "
                "start it with the configuration of the run: cero-rl serve --config FILE"
            )
        return str(state.get("label"))

    async def _recover(self, seen: int | None, reason: str | None = None) -> None:
        """Return when the server is healthy and holds this run's weights, loading them again if
        it does not.

        `seen` is the number of recoveries before the failure that asks for this one: one
        recovery, and one word about it, serves all that failed together.
        """
        loop = asyncio.get_running_loop()
        async with self._recovering:
            if seen is not None and seen != self._recoveries:
                return
            if reason is not None:
                self._say(f"{reason}; asking again for what is not finished")
            end, loads, last = loop.time() + self._config.restart_timeout_seconds, 0, ""
            while True:
                try:
                    await self._client.healthy()
                    if (held := await self._held()) == self._label:
                        break
                    if loads == 2:
                        raise EngineError(
                            f"rollout server {self.url}: it holds the weights "
                            f"{held or 'of its start'} although it was given {self._label} "
                            f"{loads} times{last and f' ({last})'}; end other runs that use "
                            "it, or restart it"
                        )
                    loads += 1
                    await self._load()
                except Trouble as trouble:
                    seconds = self._config.restart_timeout_seconds
                    if loop.time() >= end:
                        raise EngineError(
                            f"rollout server {self.url}: {trouble}; it did not recover within "
                            f"rollout.server.restart_timeout_seconds = {seconds:g} s. See "
                            "what it printed, start it again (cero-rl serve) and resume"
                        ) from None
                    if not last:
                        self._say(f"{trouble}; waiting for it, at most {seconds:g} s")
                    last = str(trouble)
                    await asyncio.sleep(_POLL_SECONDS)
            self._recoveries += 1

    def _say(self, text: str) -> None:
        tell(f"rank {self._ranks.rank}, rollout server {self.url}: {text}")

    # --- sampling

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        *,
        stream: int,
        temperature: float,
        max_tokens: int | None = None,
    ) -> list[RolloutGroup]:
        if not self._label:
            raise EngineError(
                "rollout.mode: server: asked to generate before any weights were loaded"
            )
        if not requests:
            return []
        limit = min(max_tokens or self._max_response, self._max_response)
        return self._runner.run(self._bounded(requests, stream, temperature, limit))

    async def _bounded(
        self, requests: Sequence[RolloutRequest], stream: int, temperature: float, limit: int
    ) -> list[RolloutGroup]:
        try:
            async with asyncio.timeout(self._generate_seconds):
                return await self._proved(requests, stream, temperature, limit)
        except TimeoutError:
            raise EngineError(
                f"rollout server {self.url}: {sum(r.rollouts for r in requests)} rollouts took "
                f"longer than rollout.generate_timeout_seconds = {self._generate_seconds:g} s; "
                "it hangs or is too slow. Resume, or raise the key"
            ) from None

    async def _proved(
        self, requests: Sequence[RolloutRequest], stream: int, temperature: float, limit: int
    ) -> list[RolloutGroup]:
        """The groups, once the workers said before and after that they hold this run's weights."""
        for _ in range(2):
            await self._recover(None)
            try:
                async with asyncio.TaskGroup() as tasks:
                    groups = [
                        tasks.create_task(self._group(request, stream, temperature, limit))
                        for request in requests
                    ]
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
            before = self._recoveries
            try:
                held = await self._held()
            except Trouble as trouble:  # it died after its last answer
                await self._recover(before, str(trouble))
                held = self._label
            if held == self._label:
                return [task.result() for task in groups]
            self._say(
                f"after a batch it holds the weights {held or 'of its start'}, wanted "
                f"{self._label}; sampling the batch again"
            )
        raise EngineError(
            f"rollout server {self.url}: its weights changed during two batches; end other "
            "runs that use it"
        )

    async def _group(
        self, request: RolloutRequest, stream: int, temperature: float, limit: int
    ) -> RolloutGroup:
        """All draws of a request; fewer if the server left some out again and again."""
        taken: dict[int, Completion] = {}
        for _ in range(1 + _REFILLS):
            for first, count in _runs(
                draw for draw in range(request.rollouts) if draw not in taken
            ):
                body = {
                    "model": ADAPTER if self._expected.lora else MODEL_NAME,
                    "prompt": request.prompt_tokens.tolist(),
                    "n": count,
                    "max_tokens": request.limit(limit),
                    "seed": draw_seed(
                        self._seed, stream, request.stream_key, request.first_draw + first
                    ),
                    # as in the engine of a rank
                    "temperature": temperature,
                    "stop_token_ids": self._eos,
                    "ignore_eos": True,
                    "logprobs": 0,
                    "return_token_ids": True,
                    "return_tokens_as_token_ids": True,
                    "cache_salt": self._label,
                }
                for draw, completion in (await self._ask(body, request)).items():
                    taken[first + draw] = completion
            if len(taken) == request.rollouts:
                break
        return RolloutGroup(
            request.prompt_id, request.prompt_tokens, tuple(taken[draw] for draw in sorted(taken))
        )

    async def _ask(self, body: dict[str, Any], request: RolloutRequest) -> dict[int, Completion]:
        tries = 1 + self._config.retries
        for number in range(tries):
            before = self._recoveries
            try:
                async with self._slots:
                    answer = await self._client.call(
                        "POST", "/v1/completions", body, weights=self._label
                    )
                return self._completions(answer, body, request)
            except Trouble as trouble:
                if number + 1 == tries:
                    raise EngineError(
                        f"rollout server {self.url}: {body['n']} completions of prompt "
                        f"{request.prompt_id} failed {tries} times (rollout.server.retries = "
                        f"{self._config.retries}), the last time: {trouble}. Resume the run"
                    ) from None
                reason = str(trouble)
            backoff = min(self._config.backoff_seconds * 2**number, _MOST_BACKOFF_SECONDS)
            await asyncio.sleep(backoff * (0.5 + self._jitter.random()))
            await self._recover(before, reason)
        raise AssertionError

    def _completions(
        self, answer: Answer, body: dict[str, Any], request: RolloutRequest
    ) -> dict[int, Completion]:
        """The completions of an answer by their number in the request. Raises Trouble for an
        answer that makes no sense."""
        if answer.weights != self._label:
            raise Trouble(
                f"it answered with the weights {answer.weights or 'of its start'}, wanted "
                f"{self._label}"
            )
        taken: dict[int, Completion] = {}
        try:
            for choice in answer.body["choices"]:
                index, ids, logps = (
                    choice["index"],
                    choice["token_ids"],
                    choice["logprobs"]["token_logprobs"],
                )
                if not 0 <= index < body["n"] or index in taken:
                    raise Trouble(
                        f"it answered with completion {index} of {body['n']} to prompt "
                        f"{request.prompt_id}"
                    )
                if (
                    len(ids) != len(logps)
                    or len(ids) > body["max_tokens"]
                    or choice["prompt_token_ids"] != body["prompt"]
                ):
                    raise Trouble(
                        f"it answered something else than prompt {request.prompt_id} asks for"
                    )
                if ids and choice["finish_reason"] in FINISHED:
                    taken[index] = make_completion(
                        ids,
                        logps,
                        choice["finish_reason"],
                        prompt_id=request.prompt_id,
                        decode=self._decode,
                        version=self.version,
                    )
        except (KeyError, TypeError, IndexError) as error:
            raise Trouble(
                f"it left {error} out of its answer to prompt {request.prompt_id}"
            ) from None
        return taken


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """(first, how many) of each run of consecutive numbers: vLLM gives the completions of one
    request consecutive seeds."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
