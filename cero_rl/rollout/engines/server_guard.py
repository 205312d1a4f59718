"""In front of vLLM's server, inside its process: who may ask, for what, and with which weights
an answer was made.

vLLM's own key guards /v1 alone, and what a weight sync needs (its development endpoints) would
be open to everyone who reaches the port. So every path but /health wants the key, a short list
of paths and worker methods is all there is, and each answer is stamped with the weights it was
sampled with. A request that names other weights is refused (409), so that old ones cannot answer
unnoticed. `--middleware cero_rl.rollout.engines.server_guard.Guard` puts it there; it is the
outermost.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WEIGHTS_HEADER = "x-cero-weights"
LOAD = "load_weight_files"
STATE = "weights_state"
_ALLOWED = {
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("POST", "/collective_rpc"),
    ("POST", "/reset_prefix_cache"),
}
_MOST_CALL_BYTES = 2**16


class Guard:
    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        key = os.environ.get("VLLM_API_KEY")
        if not key:
            raise ValueError("VLLM_API_KEY is not set; start the server with cero-rl serve")
        self._app = app
        self._wanted = f"Bearer {key}".encode()
        # of the weights that the workers hold, by their own word; empty while that is none, or new
        # ones are coming
        self._label = ""
        self._loading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif (scope["method"], scope["path"]) == ("GET", "/health"):
            await self._app(scope, receive, send)
        elif not hmac.compare_digest(_header(scope, b"authorization"), self._wanted):
            await _refuse(send, 401, "the key is missing or wrong")
        elif (scope["method"], scope["path"]) not in _ALLOWED:
            await _refuse(send, 403, f"{scope['method']} {scope['path']} is not served here")
        elif scope["path"] == "/collective_rpc":
            await self._call(scope, receive, send)
        else:
            await self._sample(scope, receive, send)

    async def _sample(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted, before = _header(scope, WEIGHTS_HEADER.encode()).decode("latin-1"), self._label
        if wanted and wanted != before:
            await _refuse(
                send, 409, f"the weights here are {before or 'not loaded'}, asked for {wanted}"
            )
            return

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                stamp = before if self._label == before else "mixed"
                message = {
                    **message,
                    "headers": [
                        *message.get("headers", []),
                        (WEIGHTS_HEADER.encode(), stamp.encode()),
                    ],
                }
            await send(message)

        await self._app(scope, receive, stamped)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A method of the workers. The stamp is what they say they hold; it is none from the
        moment a load is asked for until then."""
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > _MOST_CALL_BYTES:
                await _refuse(send, 413, "the body is too large")
                return
            if not message.get("more_body"):
                break
        try:
            asked = json.loads(body)
            method, label = asked["method"], str((asked.get("args") or [""])[0])
        except (ValueError, KeyError, TypeError, AttributeError):
            await _refuse(send, 400, "wanted a JSON object with a method")
            return
        if method not in (LOAD, STATE):
            await _refuse(send, 403, "no such method here")
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        held, answer = self._label, []

        async def keep(message: Message) -> None:
            answer.append(message)

        self._loading += method == LOAD
        if method == LOAD and label != held:
            self._label = ""
        try:
            await self._app(scope, replay, keep)
        finally:
            self._loading -= method == LOAD
        if not self._loading:
            self._label = _told_label(answer)
        for message in answer:
            await send(message)


def _told_label(answer: list[Message]) -> str:
    """The label in an answer of the workers; empty where they failed, or do not agree."""
    body = b"".join(message.get("body", b"") for message in answer)
    try:
        labels = {result["label"] for result in json.loads(body)["results"]}
    except (ValueError, KeyError, TypeError):
        return ""
    return str(labels.pop()) if len(labels) == 1 else ""


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
