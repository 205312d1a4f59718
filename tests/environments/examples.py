"""Environments that the tests load into workers."""

import asyncio
import os
import random
import time
from types import SimpleNamespace
from typing import Any

from cero_rl.environments import metric, reward, stop, tool


class Talk:
    """Says what the column `script` of the task wants, one line a turn."""

    def __init__(self, data: SimpleNamespace, tail: str = "") -> None:
        self.lines = data.script
        self.tail = tail

    async def setup(self, trace: Any) -> None:
        trace.info["luck"] = random.random()

    async def run(self, task: SimpleNamespace, agents: Any) -> None:
        async with agents.me.interaction(task) as talk:
            said = await talk.turn()
            for line in self.lines:
                if said.terminated:
                    break
                self.act(line)
                said = await talk.turn(line + self.tail)

    def act(self, line: str) -> None:
        if line == "crash":
            os._exit(3)
        elif line == "hang":
            time.sleep(600)
        elif line == "eat":
            self.eaten = bytearray(10**10)
        elif line == "raise":
            raise KeyError("no such thing")

    @stop
    def gave_up(self, trace: Any) -> bool:
        return trace.last_reply == "stop"

    @reward
    def words(self, trace: Any) -> float:
        return len(trace.assistant_messages) / 10

    @reward(weight=0.5)
    async def ends(self, task: SimpleNamespace, trace: Any) -> dict[str, float]:
        await asyncio.sleep(0)
        return {"right": float(trace.last_reply == task.answer)}

    @metric
    def luck(self, trace: Any) -> float:
        return trace.info["luck"]


class Forgetful(Talk):
    """Not the same when it is played again."""

    def act(self, line: str) -> None:
        super().act(line)
        self.tail = str(time.monotonic_ns())


class Desk:
    """Tools, and no reward."""

    def __init__(self, data: SimpleNamespace) -> None:
        self.seen: list[int] = []

    @tool
    def add(self, a: int, b: int = 1) -> int:
        """The sum."""
        self.seen.append(a)
        return a + b

    @tool(name="divide")
    async def by_zero(self, a: int) -> float:
        return a / 0


class Opens:
    """Speaks first, which the task's prompt does."""

    def __init__(self, data: SimpleNamespace) -> None:
        pass

    async def run(self, task: SimpleNamespace, agents: Any) -> None:
        async with agents.me.interaction(task) as talk:
            await talk.turn("hello")


class Judged(Opens):
    async def run(self, task: SimpleNamespace, agents: Any) -> None:
        async with agents.me.interaction(task) as talk:
            await talk.turn()

    @reward
    def nothing(self) -> None:
        return None
