"""Faults inside the real server: a middleware between our guard and vLLM that spoils chosen requests, as a control file says.

CERO_TEST_FAULTS names the file: a JSON list of rules {"kind", "path", "skip", "count", ...}. A rule takes the requests of its path
number skip .. skip+count-1 since the file was written last. Every fault that is done is one line of the file's neighbour `fired`.
"""

from __future__ import annotations

import asyncio
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
        self._spoilt_prompt: list[int] | None = None

    def _rule(self, path: str) -> dict[str, Any] | None:
        text = self._file.read_text()
        if text != self._text:
            self._text, self._spoilt_prompt = text, None
            self._rules = [{"seen": 0, "path": "/v1/completions", **rule} for rule in json.loads(text)]
        chosen = None
        for rule in self._rules:
            if rule["path"] == path:
                rule["seen"] += 1
                if chosen is None and rule.get("skip", 0) < rule["seen"] <= rule.get("skip", 0) + rule.get("count", 10**9):
                    chosen = rule
        return chosen

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        rule = self._rule(scope["path"]) if scope["type"] == "http" else None
        if rule is None:
            await self._app(scope, receive, send)
            return
        kind, fired = rule["kind"], self._file.with_name("fired")
        if kind == "kill" and fired.exists() and "kill" in fired.read_text():  # once: the next server is another process
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
            while (await receive())["type"] != "http.disconnect":
                pass
        elif kind == "swallow":  # a weight sync that is confirmed and not made
            asked = json.loads(await _body(receive))
            if asked["method"] == "load_weight_files":
                await _answer(send, 200, json.dumps({"results": [{"label": asked["args"][0]}]}).encode())
            else:
                await self._app(scope, _replay(json.dumps(asked).encode()), send)
        else:
            await self._change_answer(rule, scope, receive, send, fired)

    async def _change_answer(self, rule: dict[str, Any], scope: Any, receive: Any, send: Any, fired: Path) -> None:
        asked, parts, start = await _body(receive), [], {}

        async def keep(message: Any) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, _replay(asked), keep)
        body, prompt = b"".join(parts), json.loads(asked)["prompt"]
        if rule["kind"] == "half":
            body = body[: len(body) // 2]
        elif rule["kind"] == "short":
            answer = json.loads(body)
            answer["choices"].pop()
            body = json.dumps(answer).encode()
        elif rule["kind"] == "lose_one":  # the last draw of the first prompt it meets, each time it is asked for
            self._spoilt_prompt = self._spoilt_prompt or prompt
            if prompt == self._spoilt_prompt:
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


def _replay(body: bytes) -> Any:
    given = False

    async def receive() -> Any:
        nonlocal given
        if given:
            await asyncio.sleep(3600)  # nobody disconnects here
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _answer(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
