"""The process that environments run in: `python -m cero_rl.environments.worker`, started and killed
by `pool`.

One JSON object a line each way. First {"environment", "args", "memory_limit_mb", "parent"} ->
{"ready": true, "tools", "rewarded"} or {"fatal"}. Then, for one of many episodes at a time,
{"episode", "task"} begins it, {"episode", "reply"} is the model's answer, {"episode", "end"} says
that there is no more; each is answered by {"asks": [messages], "last": the model's message as it
was read} or {"done": reward, metrics, ...} or {"error"}. Global randomness is seeded before each,
by episode and turn, so that an episode does not depend on its neighbours.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cero_rl.environments.host import Ended, Message, Reply, Trace, Wire, play
from cero_rl.environments.marks import marked
from cero_rl.environments.tools import tools_of
from cero_rl.errors import RewardError
from cero_rl.job.parent import die_with_parent
from cero_rl.rewards.plugin import describe, import_file
from cero_rl.rewards.worker import limit_memory, private_pipes


@dataclass(frozen=True)
class Kind:
    """A class of environments; an instance plays one episode."""

    of: type
    arguments: dict[str, Any]

    def make(self, data: SimpleNamespace) -> Any:
        return self.of(data, **self.arguments)

    def described(self) -> dict[str, Any]:
        """By an instance that was never initialised: its marks are its class's."""
        bare = object.__new__(self.of)
        tools = [tool.schema for tool in tools_of(bare).values()]
        return {"ready": True, "tools": tools, "rewarded": bool(marked(bare, "reward"))}


def load_environment(named: str, arguments: dict[str, Any]) -> Kind:
    """The class that rollout.environment names. Raises RewardError: no such file or class, import
    failure, arguments that it does not take."""
    path_text, _, name = named.rpartition(":")
    path = Path(path_text)
    if path.suffix != ".py" or not name.isidentifier():
        raise RewardError(f"rollout.environment: got {named!r}, wanted path/to/file.py:Class")
    if not path.is_file():
        raise RewardError(
            f"rollout.environment: {path} does not exist (looked in {Path.cwd()}); give the path "
            "of a Python file"
        )
    found = vars(import_file(path.resolve(), "rollout.environment")).get(name)
    if not inspect.isclass(found):
        raise RewardError(
            f"rollout.environment: {path} has no class {name!r}; name one that it has"
        )
    try:
        inspect.signature(found).bind(None, **arguments)
    except TypeError as error:
        raise RewardError(
            f"rollout.environment: {name}(data, ...): {error}; see rollout.environment_args"
        ) from None
    return Kind(found, arguments)


def _task(message: dict[str, Any]) -> SimpleNamespace:
    columns = dict(message.pop("columns"))
    return SimpleNamespace(**{**columns, **message})


@dataclass
class _Episode:
    """A coroutine that waits for the model, or has ended."""

    seed: int
    turn: int = 0
    running: asyncio.Task[None] | None = None
    waits: asyncio.Future[Reply] | None = None
    events: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)

    async def ask(self, last: Message | None, new: list[Wire]) -> Reply:
        self.waits = asyncio.get_running_loop().create_future()
        self.events.put_nowait({"asks": new, "last": last and _wire(last)})
        return await self.waits

    async def play(self, kind: Kind, task: dict[str, Any]) -> None:
        try:
            data = _task(task)
            trace = await play(kind.make(data), data, self.ask)
            self.events.put_nowait({"done": _result(trace)})
        except MemoryError:
            os._exit(1)  # the heap is in no state to go on; the pool starts another worker
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.events.put_nowait({"error": describe(error)})


def _wire(message: Message) -> Wire:
    wire: Wire = {"role": message.role, "content": message.content}
    return {**wire, "tool_calls": list(message.tool_calls)} if message.tool_calls else wire


def _result(trace: Trace) -> dict[str, Any]:
    missing = [n for n, r in trace.rewards.items() if r.score is None or not math.isfinite(r.score)]
    if missing:
        raise ValueError(f"the reward {missing[0]} is {trace.rewards[missing[0]].score}")
    return {
        "reward": trace.reward if trace.rewards else None,
        "metrics": trace.metrics,
        "stop": trace.stop_condition,
        "last_reply": trace.last_reply,
    }


class Host:
    """The episodes of this process."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._episodes: dict[int, _Episode] = {}
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)

    def take(self, message: dict[str, Any]) -> dict[str, Any]:
        """Carry an episode on until it waits for the model or has ended."""
        return self._loop.run_until_complete(self._take(message))

    async def _take(self, message: dict[str, Any]) -> dict[str, Any]:
        number = message["episode"]
        if "task" in message:
            self._episodes[number] = episode = _Episode(int(message["task"]["seed"]))
            self._seed(episode)
            coroutine = episode.play(self._kind, message["task"])
            episode.running = asyncio.get_running_loop().create_task(coroutine)
        else:
            episode = self._episodes[number]
            assert episode.waits is not None
            self._seed(episode)
            if "end" in message:
                episode.waits.set_exception(Ended(message["end"]))
            else:
                episode.waits.set_result(Reply(**message["reply"]))
        event = await episode.events.get()
        if "asks" not in event:
            del self._episodes[number]
        return event

    def _seed(self, episode: _Episode) -> None:
        random.seed(f"{episode.seed} {episode.turn}")
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed((episode.seed + episode.turn) % 2**32)
        episode.turn += 1

    def close(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()


def main() -> int:
    requests, replies = private_pipes()

    def send(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message, default=str) + "\n")
        replies.flush()

    start = json.loads(requests.readline() or "{}")
    if not start:
        return 0
    die_with_parent(start["parent"])
    try:
        kind = load_environment(start["environment"], start["args"])
        described = kind.described()
    except RewardError as error:
        send({"fatal": str(error)})
        return 0
    limit_memory(start["memory_limit_mb"])
    send(described)
    host = Host(kind)
    for line in requests:
        send(host.take(json.loads(line)))
    host.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
