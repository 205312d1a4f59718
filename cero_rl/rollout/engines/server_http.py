"""One call of a rollout server, with an end: connect, read and total timeouts, no redirects, no
proxies, the key in a header only.

A failure that may pass (no connection, silence, 5xx, half an answer) is a `Trouble`, which the
caller tries again; one that will not (the key is refused, the request is wrong, a redirect) is
an EngineError.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httpx2

from cero_rl.errors import EngineError
from cero_rl.rollout.engines.server_guard import WEIGHTS_HEADER

_MOST_QUOTED = 300
# an idle connection; the server closes it after 5, and a call on a closing one would fail
_KEEP_SECONDS = 3.0
_PASSING = {408, 409, 425, 429}  # besides 5xx; 409 is ours: other weights
_NOT_FINITE = "not JSON compliant"  # what the server says when a log-probability is nan


class Trouble(Exception):
    """What went wrong in one try, in words. `last` is the label of the weights that answered,
    where that was told."""


@dataclass(frozen=True)
class Answer:
    body: Any  # parsed JSON, None where there is none
    weights: str  # label of the weights the answer was made with; empty where it is not told


class ServerClient:
    """Calls of one server. Every method must run in the same event loop."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        connect_seconds: float,
        read_seconds: float,
        total_seconds: float,
        connections: int,
    ) -> None:
        self.url = url
        self._key = key
        self._connect, self._read, self._total = connect_seconds, read_seconds, total_seconds
        self._client = httpx2.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            follow_redirects=False,
            trust_env=False,  # a proxy or a .netrc must see neither the key nor the prompts
            limits=httpx2.Limits(
                max_connections=connections,
                max_keepalive_connections=connections,
                keepalive_expiry=_KEEP_SECONDS,
            ),
        )

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        weights: str | None = None,
        seconds: float | None = None,
        keep: bool = True,
    ) -> Answer:
        """One try. `seconds` stands for the read and total timeouts where a call has its own;
        `keep`: the connection, for later calls."""
        read, total = (seconds, seconds) if seconds is not None else (self._read, self._total)
        timeout = httpx2.Timeout(connect=self._connect, read=read, write=read, pool=total)
        headers = ({WEIGHTS_HEADER: weights} if weights is not None else {}) | (
            {} if keep else {"Connection": "close"}
        )
        try:
            async with asyncio.timeout(total):
                response = await self._client.request(
                    method, path, json=body, headers=headers, timeout=timeout
                )
        except httpx2.ConnectTimeout:
            raise Trouble(
                f"no connection within connect_timeout_seconds = {self._connect:g}"
            ) from None
        except (httpx2.TimeoutException, TimeoutError):
            raise Trouble(f"no answer to {method} {path} within {min(read, total):g} s") from None
        except httpx2.TransportError as error:
            raise Trouble(
                f"{type(error).__name__} ({self._clean(str(error)) or 'the connection broke'})"
            ) from None
        except (httpx2.InvalidURL, httpx2.HTTPError) as error:
            raise EngineError(
                f"rollout server {self.url}: {type(error).__name__} ({self._clean(str(error))})"
            ) from None
        return self._judge(response, f"{method} {path}")

    def _judge(self, response: httpx2.Response, what: str) -> Answer:
        status, said = response.status_code, self._clean(response.text)
        if status >= 400 and _NOT_FINITE in said:
            raise EngineError(
                f"rollout server {self.url}: its log-probabilities are not finite; the "
                "weights it holds are broken"
            )
        if status in _PASSING or status >= 500:
            raise Trouble(f"{what} was answered with {status}: {said}")
        if status in (401, 403):
            raise EngineError(
                f"rollout server {self.url}: {what} was refused ({status}: {said}); "
                "rollout.server.key_file must be the server's, and the server one of cero-rl serve"
            )
        if 300 <= status < 400:
            raise EngineError(
                f"rollout server {self.url}: {what} was redirected, which is not followed; "
                "correct rollout.server.urls"
            )
        if status != 200:
            raise EngineError(
                f"rollout server {self.url}: {what} was answered with {status}: {said}"
            )
        try:
            body = response.json() if response.content else None
        except (ValueError, UnicodeDecodeError):
            raise Trouble(f"{what} was answered with no JSON: {said}") from None
        return Answer(body, response.headers.get(WEIGHTS_HEADER, ""))

    def _clean(self, text: str) -> str:
        """One line, of bounded length, without the key; the message alone of an error in JSON."""
        try:
            error = json.loads(text)["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            pass
        text = " ".join(text.replace(self._key, "[key]").split())
        return text if len(text) <= _MOST_QUOTED else text[:_MOST_QUOTED] + " ..."

    async def close(self) -> None:
        await self._client.aclose()

    async def healthy(self) -> None:
        """Raises Trouble unless the server says that its engine runs."""
        await self.call("GET", "/health", seconds=min(self._read, 10.0))

    async def rpc(self, method: str, *args: str, seconds: float | None = None) -> dict[str, Any]:
        """The answer of a worker method, which must be the same from every worker."""
        # The server ends the connection after a method that failed, and does not say so.
        answer = await self.call(
            "POST",
            "/collective_rpc",
            {"method": method, "args": list(args)},
            seconds=seconds,
            keep=False,
        )
        results = answer.body.get("results") if isinstance(answer.body, dict) else None
        if (
            not results
            or not isinstance(results[0], dict)
            or any(result != results[0] for result in results)
        ):
            raise Trouble(f"{method} was answered with {self._clean(json.dumps(answer.body))}")
        return results[0]
