"""EnvironmentPool: episodes in worker processes that can be killed, so that no environment and no
tool can hang, crash or fill the trainer.

In: tasks, then the model's answers, episode by episode. Out: an `Event` each: what the environment
says to the model, or how the episode ended. An episode stays with one worker, which works on one
message at a time; each has `reward.timeout_seconds` from the moment the worker gets it, and the
worker `reward.memory_limit_mb`. Whoever was being worked on when a worker died or was late has
failed, which is missing evidence; the worker's other episodes are played again in a new one, with
the answers that they had, and must come to the same words.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cero_rl import redact
from cero_rl.config.reward import RewardConfig
from cero_rl.config.rollout import RolloutConfig
from cero_rl.errors import RewardError
from cero_rl.rewards.process import BOOT_SECONDS, WorkerProcess, wait_for


def tools_of_environment(rollout: RolloutConfig, limits: RewardConfig) -> list[dict[str, Any]]:
    """The tools of rollout.environment, if there is one; tried in a worker. Raises RewardError."""
    if rollout.environment is None:
        return []
    pool = EnvironmentPool(rollout, limits.model_copy(update={"workers": 1}))
    try:
        return pool.describe()["tools"]
    finally:
        pool.close()


@dataclass(frozen=True)
class Event:
    """Where an episode stands: it `asks` the model, or has a `result`, or a `failure`."""

    asks: list[dict[str, Any]] | None = None  # what is new since the model's last message
    last: dict[str, Any] | None = None  # that message, as the environment read it
    result: dict[str, Any] | None = None  # reward (None: it has none), metrics, stop, last_reply
    failure: str = ""
    timed_out: bool = False


@dataclass
class _Episode:
    sent: list[dict[str, Any]] = field(default_factory=list)
    got: list[Event] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return bool(self.got) and self.got[-1].asks is None


class EnvironmentPool:
    """`open` starts the workers, or their first use does; `close` ends them, as does the end of
    this process. Call it from one thread at a time."""

    def __init__(self, rollout: RolloutConfig, limits: RewardConfig) -> None:
        self._rollout = rollout
        self._limits = limits
        self._workers: list[WorkerProcess] = []
        self._queues: list[deque[tuple[int, int]]] = []  # (episode, number of its message)
        self._episodes: list[_Episode] = []
        self._described: dict[str, Any] = {}

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def describe(self) -> dict[str, Any]:
        """The environment's tools, as chat templates take them, and whether it has rewards of its
        own. Raises RewardError for one that cannot be loaded."""
        self.open()
        while not self._described:
            self._wait()
        return self._described

    def begin(self, tasks: Sequence[Mapping[str, Any]]) -> list[Event]:
        """Episodes 0, 1, ... of these tasks, each up to its first question. What went before is
        forgotten; what is under way ends with its worker."""
        if any(not episode.over for episode in self._episodes):
            self.close()
        self.open()
        self._episodes = [_Episode() for _ in tasks]
        events = self._send({i: {"task": dict(task)} for i, task in enumerate(tasks)})
        return [events[i] for i in range(len(tasks))]

    def reply(self, answers: Mapping[int, Mapping[str, str]]) -> dict[int, Event]:
        """The model's answers {"content", "finish_reason"} to episodes that asked for them."""
        return self._send({i: {"reply": dict(answer)} for i, answer in answers.items()})

    def end(self, reasons: Mapping[int, str]) -> dict[int, Event]:
        """No more turns for these episodes: they are scored as they stand."""
        return self._send({i: {"end": reason} for i, reason in reasons.items()})

    # --- workers

    def open(self) -> None:
        """Start the workers that are not there. On Linux they die with the thread that did."""
        for slot, worker in enumerate(self._workers):
            if worker.process.poll() is not None:  # died between calls: nobody's fault in this one
                self._start(slot)
        if not self._workers:
            self._queues = [deque() for _ in range(self._limits.workers)]
            self._workers = [self._process() for _ in range(self._limits.workers)]

    def _process(self) -> WorkerProcess:
        start = {
            "environment": self._rollout.environment,
            "args": self._rollout.environment_args,
            "memory_limit_mb": self._limits.memory_limit_mb,
        }
        return WorkerProcess("cero_rl.environments.worker", start)

    def _start(self, slot: int) -> None:
        """Another process in a worker's place, and its episodes from their beginnings."""
        self._workers[slot].kill()
        self._workers[slot] = self._process()
        live = [
            index
            for index in range(slot, len(self._episodes), len(self._workers))
            if not self._episodes[index].over
        ]
        self._queues[slot] = deque(
            (index, number) for index in live for number in range(len(self._episodes[index].sent))
        )

    def _send(self, messages: Mapping[int, dict[str, Any]]) -> dict[int, Event]:
        for index, message in messages.items():
            episode = self._episodes[index]
            if episode.over:  # it failed when its worker died beside it
                continue
            episode.sent.append({"episode": index, **message})
            self._queues[index % len(self._workers)].append((index, len(episode.sent) - 1))
        for worker in self._workers:
            if not worker.ready:
                worker.deadline = time.monotonic() + BOOT_SECONDS
        while any(self._queues) or any(worker.batch for worker in self._workers):
            for slot, worker in enumerate(self._workers):
                if worker.idle and self._queues[slot]:
                    self._hand_out(slot)
            self._wait()
        return {index: self._episodes[index].got[-1] for index in messages}

    def _hand_out(self, slot: int) -> None:
        worker = self._workers[slot]
        if worker.process.poll() is not None:
            self._start(slot)
            return
        index, number = self._queues[slot].popleft()
        worker.batch = [index, number]
        worker.queue(self._episodes[index].sent[number])
        worker.deadline = time.monotonic() + self._limits.timeout_seconds

    def _wait(self) -> None:
        replies, late = wait_for(self._workers)
        for slot, reply in replies.items():
            self._settle(slot, reply)
        for slot in late:
            self._late(slot)

    def _settle(self, slot: int, reply: dict[str, Any] | None) -> None:
        worker = self._workers[slot]
        if reply is not None and "fatal" in reply:
            self._fatal(str(reply["fatal"]))
        if not worker.ready:
            if reply is None:
                self._fatal(
                    f"rollout.environment: {self._rollout.environment} ended its process while "
                    "loading; run the file alone to see why"
                )
            self._described, worker.ready = reply, True
            return
        (index, number), worker.batch = worker.batch, []
        if reply is None:
            limit = self._limits.memory_limit_mb
            self._failed(index, f"the worker died (crash, or more than {limit} MB)")
            self._start(slot)
            return
        self._take(slot, index, number, reply)

    def _take(self, slot: int, index: int, number: int, reply: dict[str, Any]) -> None:
        episode = self._episodes[index]
        if "error" in reply:
            event = Event(failure=redact.text(str(reply["error"])))
        else:
            event = Event(reply.get("asks"), reply.get("last"), reply.get("done"))
        if number == len(episode.got):
            episode.got.append(event)
        elif event != episode.got[number]:
            self._failed(
                index, "its worker died beside it, and played again it said something else"
            )
            self._queues[slot] = deque(each for each in self._queues[slot] if each[0] != index)

    def _late(self, slot: int) -> None:
        worker = self._workers[slot]
        if not worker.ready:
            self._fatal(
                f"rollout.environment: {self._rollout.environment} did not load within "
                f"{BOOT_SECONDS:.0f} s; make its imports faster"
            )
        index, _ = worker.batch
        seconds = self._limits.timeout_seconds
        self._failed(index, f"a step took longer than {seconds:g} s", timed_out=True)
        self._start(slot)

    def _failed(self, index: int, reason: str, *, timed_out: bool = False) -> None:
        self._episodes[index].got.append(Event(failure=reason, timed_out=timed_out))

    def _fatal(self, message: str) -> NoReturn:
        self.close()
        raise RewardError(message)
