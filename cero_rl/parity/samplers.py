"""Asking a server for answers and their log-probabilities, as a trainer would: token ids in, token
ids and log-probabilities out, nothing set but the temperature.

Any OpenAI-compatible server that answers /v1/completions with token ids (`return_token_ids`) will
do; vLLM's does, and `cero-rl serve` also says which weights it holds and their checksum.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx2
import numpy as np
import numpy.typing as npt

from cero_rl.errors import EngineError
from cero_rl.parity.judge import Answer
from cero_rl.rollout.engines.server_guard import STATE, WEIGHTS_HEADER

Ids = npt.NDArray[np.int64]
_MOST_QUOTED = 300
_TOKEN = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the sampler says of itself; None: it does not."""

    weights: str | None = None  # its name for what it holds
    checksum: str | None = None  # of the tensors it was given, see models' bit sums
    dtype: str | None = None


class Sampler(Protocol):
    """Who is asked."""

    name: str

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
        """`answers` completions of at most `tokens` tokens each; `uncached`: not from the prefix
        cache. Raises EngineError."""
        ...

    def encode(self, text: str) -> Ids | None:
        """The prompt it makes of a text; None where it does not say."""
        ...

    def facts(self) -> Facts: ...


def fill(count: int, values: Sequence[float | None] | None) -> npt.NDArray[np.float32]:
    """f32[count]: what was reported; nan where nothing was."""
    told = np.full(count, np.nan, dtype=np.float32)
    if values is not None and len(values) == count:
        told[:] = [np.nan if value is None else value for value in values]
    return told


class HttpSampler:
    """An OpenAI-compatible server. `model` is its name for the policy (an adapter's, where one is
    served); default: the first it lists. `seconds` bounds every call."""

    def __init__(
        self, url: str, *, model: str | None = None, key: str | None = None, seconds: float = 60.0
    ) -> None:
        self.name = url.rstrip("/").removesuffix("/v1")
        self._key = key
        self._client = httpx2.Client(
            base_url=self.name,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            follow_redirects=False,
            trust_env=False,
            timeout=seconds,
        )
        self._seconds = seconds
        self._weights: str | None = None
        self._model = model or self._first_model()

    def _first_model(self) -> str:
        body = self._call("GET", "/v1/models")
        try:
            return str(body["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise EngineError(
                f"parity: {self.name}/v1/models lists no model; give --model NAME"
            ) from None

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        begun = time.monotonic()
        try:
            response = self._client.request(method, path, json=body)
        except httpx2.TimeoutException:
            raise EngineError(
                f"parity: {self.name}{path} gave no answer within {time.monotonic() - begun:.0f} s "
                "(--timeout)"
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise EngineError(
                f"parity: {self.name}{path} cannot be reached ({type(error).__name__}: "
                f"{self._clean(str(error)) or 'the connection broke'}); is the server up?"
            ) from None
        if response.status_code != 200:
            raise _Refused(
                f"parity: {self.name}{path} was answered with {response.status_code}: "
                f"{self._clean(response.text)}",
                response.status_code,
            )
        self._weights = response.headers.get(WEIGHTS_HEADER) or self._weights
        try:
            return response.json()
        except ValueError:
            raise EngineError(
                f"parity: {self.name}{path} gave no JSON: {self._clean(response.text)}"
            ) from None

    def _clean(self, text: str) -> str:
        text = " ".join((text.replace(self._key, "[key]") if self._key else text).split())
        return text if len(text) <= _MOST_QUOTED else text[:_MOST_QUOTED] + " ..."

    def _complete(self, prompt: Any, **changes: Any) -> list[dict[str, Any]]:
        body = {
            "model": self._model,
            "prompt": prompt,
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **changes,
        }
        answer = self._call("POST", "/v1/completions", body)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
            raise EngineError(
                f"parity: {self.name} answered without choices: {self._clean(json.dumps(answer))}"
            )
        return choices

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
        salt = {"cache_salt": secrets.token_hex(8)} if uncached else {}
        choices = self._complete(
            prompt.tolist(),
            n=answers,
            max_tokens=tokens,
            temperature=temperature,
            seed=seed,
            **salt,
        )
        return [self._answer(choice) for choice in choices]

    def _answer(self, choice: dict[str, Any]) -> Answer:
        told = choice.get("logprobs")
        told = told if isinstance(told, dict) else {}
        ids = choice.get("token_ids")
        if ids is None:  # older servers name them in the log-probabilities alone
            names = [_TOKEN.fullmatch(str(name)) for name in told.get("tokens") or ()]
            ids = [int(name[1]) for name in names if name is not None]
            if not ids or len(ids) != len(names):
                raise EngineError(
                    f"parity: {self.name} gives no token ids with its answers (return_token_ids); "
                    "text alone cannot be scored. vLLM's server gives them"
                )
        text = choice.get("text")
        return Answer(
            np.array(ids, dtype=np.int64),
            fill(len(ids), told.get("token_logprobs")),
            text if isinstance(text, str) and text else None,
        )

    def encode(self, text: str) -> Ids | None:
        try:
            (choice,) = self._complete(text, max_tokens=1, temperature=1.0, n=1)
        except _Refused as refused:
            if refused.status in (400, 422, 501):  # it takes token ids alone
                return None
            raise
        ids = choice.get("prompt_token_ids")
        return np.array(ids, dtype=np.int64) if ids is not None else None

    def facts(self) -> Facts:
        try:
            answer = self._call("POST", "/collective_rpc", {"method": STATE, "args": []})
            (state, *rest) = answer["results"]
            if any(other != state for other in rest):
                return Facts(weights="mixed")
            return Facts(state["label"] or None, state.get("checksum") or None, state.get("dtype"))
        except (_Refused, KeyError, TypeError, ValueError):  # no server of cero-rl serve
            return Facts(weights=self._weights)

    def close(self) -> None:
        self._client.close()


class _Refused(EngineError):
    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status
