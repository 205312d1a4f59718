"""Faults inside the real server: a middleware between our guard and vLLM that spoils chosen
requests, as a control file says.

CERO_TEST_FAULTS names the file: a JSON list of rules {"kind", "path", "skip", "count", ...}. A
rule takes the requests of its path number skip .. skip+count-1 since the file was written last;
with "version" only the requests for several completions of that version of the weights are
counted. Every fault that is done is one line of the file's neighbour `fired`.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any


class Faults:
    def __init__(self, app: Any) -> None:
        self._app = app
        self._file = Path(os.environ["CERO_TEST_FAULTS"])
        self._text = ""
        self._rules: list[dict[str, Any]] = []
        self._lost_seed: int | None = None

    def _rule(self, path: str, group_of: str | None) -> dict[str, Any] | None:
        text = self._file.read_text()
        if text != self._text:
            self._text, self._lost_seed = text, None
            self._rules = [
                {"seen": 0, "path": "/v1/completions", **rule} for rule in json.loads(text)
            ]
        chosen = None
        for rule in self._rules:
            if rule["path"] == path and rule.get("version", group_of) == group_of:
                rule["seen"] += 1
                if chosen is None and rule.get("skip", 0) < rule["seen"] <= rule.get(
                    "skip", 0
                ) + rule.get("count", 10**9):
                    chosen = rule
        return chosen

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        asked = await _body(receive)
        receive = _replay(asked, receive)
        label = dict(scope["headers"]).get(b"x-cero-weights", b"").decode()
        rule = self._rule(
            scope["path"],
            label.partition("-")[0] if json.loads(asked or b"{}").get("n", 1) > 1 else None,
        )
        if rule is None:
            await self._app(scope, receive, send)
            return
        kind, fired = rule["kind"], self._file.with_name("fired")
        # once: the next server is another process
        if kind == "kill" and fired.exists() and "kill" in fired.read_text():
            await self._app(scope, receive, send)
            return
        if kind != "lose_one":
            with fired.open("a") as out:
                out.write(f"{kind}\n")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "status":
            await _answer(send, rule["status"], b'{"error": {"message": "out of luck"}}')
        elif kind == "hang":
            # like a server that computes for ever
            while (await receive())["type"] != "http.disconnect":
                pass
        # a weight sync that is confirmed and not made
        elif kind == "swallow" and json.loads(asked)["method"] == "load_weight_files":
            await _answer(
                send,
                200,
                json.dumps({"results": [{"label": json.loads(asked)["args"][0]}]}).encode(),
            )
        elif kind == "swallow":
            await self._app(scope, receive, send)
        else:
            await self._change_answer(rule, asked, scope, receive, send, fired)

    async def _change_answer(
        self, rule: dict[str, Any], asked: bytes, scope: Any, receive: Any, send: Any, fired: Path
    ) -> None:
        parts: list[bytes] = []
        start: dict[str, Any] = {}

        async def keep(message: Any) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, receive, keep)
        body, request = b"".join(parts), json.loads(asked)
        if rule["kind"] == "half":
            body = body[: len(body) // 2]
        elif rule["kind"] == "short":
            answer = json.loads(body)
            answer["choices"].pop()
            body = json.dumps(answer).encode()
        # the last draw of the first group it meets, each time it is asked for
        elif rule["kind"] == "lose_one":
            last_seed = request["seed"] + request["n"] - 1
            if self._lost_seed is None and request["n"] > 1:
                self._lost_seed = last_seed
            if last_seed == self._lost_seed:
                answer = json.loads(body)
                answer["choices"].pop()
                body = json.dumps(answer).encode()
                with fired.open("a") as out:
                    out.write("lose_one\n")
        await _answer(send, start["status"], body)


async def _body(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def _replay(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body once more, and then goes on."""
    given = False

    async def again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
