"""The half of an environment's protocol that the framework plays, in the worker's process.

The protocol is that of verifiers 0.4 (its module v1), for one agent: an environment is a class
whose instance is made for one episode with the task's data; `tool`, `reward`, `metric` and
`stop` mark its methods; `setup` and `finalize` are called around the episode; `run(task, agents)`
is its control flow, by default a single turn of the agent with its tools.
`agents.NAME.interaction(task)` opens the conversation, `await interaction.turn(message)` says
something to the model and returns a `Segment`, all that the agent did until it yields: answers,
calls of tools and their results.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from cero_rl.environments.marks import called, marked
from cero_rl.environments.tools import answer, calls_in, tools_of

Wire = dict[str, Any]  # a message as OpenAI's interface writes it
LENGTH = "max_tokens"  # the stop condition of an answer that was cut


class Ended(Exception):
    """The trainer has no more turns or tokens for this episode."""


@dataclass(frozen=True)
class Reply:
    content: str
    finish_reason: str  # stop, length


@dataclass(frozen=True)
class Reward:
    score: float | None
    weight: float = 1.0


@dataclass(frozen=True)
class Message:
    role: str
    content: str
    tool_calls: Sequence[Wire] = ()


Ask = Callable[[Message | None, list[Wire]], Awaitable[Reply]]


@dataclass
class Trace:
    """What happened in an episode so far, for rewards, metrics and stop conditions."""

    task: SimpleNamespace
    messages: list[Message] = field(default_factory=list)
    rewards: dict[str, Reward] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    state: SimpleNamespace = field(default_factory=SimpleNamespace)
    stop_condition: str | None = None
    num_turns: int = 0

    @property
    def assistant_messages(self) -> list[Message]:
        """Every answer of the model, in order."""
        return [m for m in self.messages if m.role == "assistant"]

    @property
    def tool_messages(self) -> list[Message]:
        return [m for m in self.messages if m.role == "tool"]

    @property
    def last_reply(self) -> str:
        answers = self.assistant_messages
        return answers[-1].content.strip() if answers else ""

    @property
    def is_truncated(self) -> bool:
        return self.stop_condition in ("max_turns", LENGTH)

    @property
    def reward(self) -> float:
        return sum((r.score or 0.0) * r.weight for r in self.rewards.values())

    def record_reward(self, name: str, value: float, weight: float = 1.0) -> None:
        self.rewards[name] = Reward(None if value is None else float(value), weight)

    def record_metric(self, name: str, value: float) -> None:
        self.metrics[name] = float(value)

    def record_metrics(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.record_metric(name, value)

    def stop(self, condition: str, override: bool = False) -> None:
        if override or self.stop_condition is None:
            self.stop_condition = condition


@dataclass(frozen=True)
class Segment:
    """What the agent did in one turn of the user. `terminated`: the episode is over, and there
    is no message."""

    messages: Sequence[Message] = ()
    terminated: bool = False

    @property
    def last_reply(self) -> str:
        answers = [m for m in self.messages if m.role == "assistant"]
        return answers[-1].content.strip() if answers else ""


class Interaction:
    """The conversation, held open: whoever holds it is the model's user."""

    def __init__(self, environment: object, trace: Trace, ask: Ask) -> None:
        self.trace = trace
        self._ask = ask
        self._tools = tools_of(environment)
        self._stops = marked(environment, "stop")
        self._last: Message | None = None  # the model's

    async def turn(self, message: str | Sequence[Wire] | None = None) -> Segment:
        """Say `message` to the model, nothing at the first turn, where the task's prompt stands,
        and hear its answer, calls of tools included. Raises ValueError for a message at the
        first turn, or none at a later one."""
        if self.trace.stop_condition is not None:
            return Segment(terminated=True)
        if (message is None) != (self._last is None):
            raise ValueError(
                "turn(): the task's prompt opens the conversation, so the first turn takes no "
                "message and every other one does"
            )
        said = [{"role": "user", "content": message}] if isinstance(message, str) else message
        new: list[Wire] = list(said or [])
        done: list[Message] = []
        while True:
            heard = [Message(m["role"], str(m["content"])) for m in new]
            self.trace.messages += heard
            done += heard if done else []  # results of tools; the user's own are no part of it
            try:
                reply = await self._ask(self._last, new)
            except Ended as end:
                self.trace.stop(str(end))
                return Segment(terminated=True)
            content, calls = calls_in(reply.content) if self._tools else (reply.content, [])
            self._last = Message("assistant", content, calls)
            self.trace.messages.append(self._last)
            self.trace.num_turns += 1
            done.append(self._last)
            if reply.finish_reason == "length":
                self.trace.stop(LENGTH)
            await self._check_stops()
            if self.trace.stop_condition is not None:
                return Segment(terminated=True)
            if not calls:
                return Segment(done)
            new = [await answer(self._tools, call) for call in calls]

    async def _check_stops(self) -> None:
        for condition in self._stops:
            if await called(condition, {"task": self.trace.task, "trace": self.trace}):
                self.trace.stop(condition.__name__)
                return


class _Agents:
    """The seats of an episode: one agent, whatever name the environment has for it."""

    def __init__(self, environment: object, trace: Trace, ask: Ask) -> None:
        self._interaction = Interaction(environment, trace, ask)
        self._name: str | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._name not in (None, name):
            raise ValueError(f"got the agents {self._name} and {name}; one agent is trained")
        self._name = name
        opened = self._interaction

        @asynccontextmanager
        async def interaction(task: Any) -> AsyncIterator[Interaction]:
            yield opened

        return SimpleNamespace(interaction=interaction)


async def play(environment: Any, data: SimpleNamespace, ask: Ask) -> Trace:
    """One episode, to its rewards. `ask(the model's last message, what is new since)` is its
    policy. Raises whatever the environment raises."""
    trace = Trace(data)
    offered = {"task": data, "trace": trace}
    agents = _Agents(environment, trace, ask)
    if hasattr(environment, "setup"):
        await called(environment.setup, offered)
    if hasattr(environment, "run"):
        await environment.run(data, agents)
    else:
        async with agents.agent.interaction(data) as interaction:
            await interaction.turn()
    if not trace.num_turns and trace.stop_condition is None:
        raise ValueError("run() ended without a turn of the agent")
    trace.stop("done")
    if hasattr(environment, "finalize"):
        await called(environment.finalize, offered)
    for method in marked(environment, "metric"):
        value = await called(method, offered)
        trace.record_metrics(value if isinstance(value, Mapping) else {method.__name__: value})
    for method in marked(environment, "reward"):
        value = await called(method, offered)
        scores = value if isinstance(value, Mapping) else {method.__name__: value}
        for name, score in scores.items():
            trace.record_reward(name, score, getattr(method, "_vf_weight", 1.0))
    return trace
