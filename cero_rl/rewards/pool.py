"""RewardPool: rewards from worker processes that can be killed, so that no answer can hang,
crash or fill the trainer.

In: RewardConfig, RewardItems. Out: RewardResult, one value within the declared limits or NaN for
each item, and the counts. One function: `rewards.several` is the pool of all of a run's. `exact`
runs in-process. Every item has `timeout_seconds` from the moment an idle worker gets it; then the
worker's process group is killed and another started. Batch plug-ins (TRL's signature) get chunks of
up to 8 completions under one deadline; a chunk that is lost is retried one item at a time, so such
a plug-in must not compare the items of one call with each other. One that asks for whole groups
gets all items of a prompt in one call, which is lost as a whole.
The built-in verifiers see the last `max_chars` characters of a longer completion, where the final
answer stands; a plug-in sees all of it. Call `score` from the thread that opened the pool: on Linux
workers die with the thread that started them.
"""

from __future__ import annotations

import difflib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np

from cero_rl import redact
from cero_rl.config.reward import RewardConfig
from cero_rl.errors import RewardError
from cero_rl.rewards import verifiers
from cero_rl.rewards.answers import answer_part
from cero_rl.rewards.base import GoldProblem, RewardCounts, RewardItem, RewardResult
from cero_rl.rewards.plugin import split_path
from cero_rl.rewards.process import BOOT_SECONDS, WorkerProcess, wait_for
from cero_rl.rewards.worker import TEXT_ONLY

_BUILT_IN = ("exact", "math", "reasoning_gym")
_CHUNK_ITEMS = 8
_TOLERANCE = 1e-6  # rounding beyond the limits, of their distance, that is clipped and not refused
Limits = tuple[float, float] | None


def _refuse_unknown(function: str) -> None:
    if function in _BUILT_IN:
        return
    if ":" not in function and "/" not in function and not function.endswith(".py"):
        near = difflib.get_close_matches(function, _BUILT_IN, n=1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else f"wanted {', '.join(_BUILT_IN)} or path/to/file.py:function"
        )
        raise RewardError(f"reward.function: unknown reward {function!r}; {hint}")
    split_path(function)


def in_range(value: float, key: str, limits: Limits = (0.0, 1.0)) -> float:
    """A reward within its limits (None: any); nan, which is missing, stays. Raises RewardError
    outside of them, with the key that it comes from."""
    if limits is None:
        return value
    low, high = limits
    room = _TOLERANCE * (high - low)
    if value < low - room or value > high + room:
        raise RewardError(
            f"{key}: got a reward of {value}, wanted a number in [{low:g}, {high:g}]: Beta "
            "posteriors need successes between 0 and 1; say what it lies in by reward.range: "
            "[low, high], which is mapped to 0 and 1, or what is right by reward.threshold"
        )
    return min(max(value, low), high) if value == value else value


@dataclass(slots=True)
class _Tally:
    """One call's results while they come in."""

    values: np.ndarray  # f32[n]
    limits: Limits
    done: int = 0
    scored: int = 0
    timeouts: int = 0
    reasons: dict[int, str] = field(default_factory=dict)  # of the errors, by item
    extras: list[dict[str, float]] = field(default_factory=list)
    extras_dropped: int = 0

    def failed(self, index: int, message: str) -> None:
        self.done += 1
        # a plug-in may put its key into what it raises
        self.reasons[index] = redact.text(message)

    def scored_as(self, index: int, value: float | None) -> None:
        if value is None or not math.isfinite(value):
            self.failed(index, f"the reward function returned {value}")
            return
        self.values[index] = in_range(value, "reward.function", self.limits)
        self.done += 1
        self.scored += 1


class RewardPool:
    """Context manager around the workers; `score` may be called any number of times inside it."""

    def __init__(
        self, config: RewardConfig, gold: bool = False, limits: Limits = (0.0, 1.0)
    ) -> None:
        """Of the one function `config` has. `gold`: judge answers instead of completions (for
        `gold_problems`). limits: of its scores; None: any finite number.

        Raises RewardError for an unknown function or a plug-in file that is not there."""
        _refuse_unknown(config.function)
        self._config = config
        self._gold = gold
        self._limits = limits
        self._workers: list[WorkerProcess] = []

    def __enter__(self) -> RewardPool:
        if self._config.function != "exact":
            self._workers = [self._start() for _ in range(self._config.workers)]
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> WorkerProcess:
        config = self._config
        start = {
            "function": config.function,
            "kwargs": config.kwargs,
            "gold": self._gold,
            "memory_limit_mb": config.memory_limit_mb,
        }
        return WorkerProcess("cero_rl.rewards.worker", start)

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def wait_ready(self) -> None:
        """Wait until one worker has loaded the function. Raises RewardError with the reason it
        could not."""
        if self._workers:
            self._run([], until_ready=True)

    def score(self, items: Sequence[RewardItem]) -> RewardResult:
        """Rewards [n] in the order of the items, NaN where missing.

        Raises RewardError (the run must end): load failure, wrong number or type of rewards, a
        reward outside its limits.
        """
        if self._config.function == "exact":
            values = np.array(
                [verifiers.exact(self._clipped(item)) for item in items], dtype=np.float32
            )
            return RewardResult(values, RewardCounts(scored=len(items)))
        if not self._workers:
            raise RuntimeError("RewardPool: score() outside its `with` block")
        tally = self._run(items, until_ready=False)
        errors = len(tally.reasons)
        counts = RewardCounts(scored=tally.scored, timeouts=tally.timeouts, errors=errors)
        return RewardResult(
            tally.values,
            counts,
            next(iter(tally.reasons.values()), None),
            frozenset(tally.reasons),
            tuple(tally.extras),
            tally.extras_dropped,
        )

    def problems(self, answers: Sequence[Any]) -> list[GoldProblem | None]:
        """Of a pool of `gold`: what is wrong with each answer, None where nothing is."""
        tally = self._run([RewardItem("", "", a, "", {}) for a in answers], until_ready=False)
        late = f"cannot be judged within reward.timeout_seconds ({self._config.timeout_seconds:g})"
        problems: list[GoldProblem | None] = []
        for index, value in enumerate(tally.values):
            reason = tally.reasons.get(index, None if math.isfinite(value) else late)
            text_only = reason is not None and reason.startswith(TEXT_ONLY)
            shown = reason and GoldProblem(reason.removeprefix(TEXT_ONLY), not text_only)
            problems.append(shown or None)
        return problems

    def _clipped(self, item: RewardItem) -> RewardItem:
        config = self._config
        if config.function not in _BUILT_IN or self._gold:
            return item
        part = answer_part(
            item.completion, answer_tags=config.answer_tags, thinking=config.thinking
        )
        part = part[-config.max_chars :]
        return item if len(part) == len(item.completion) else replace(item, completion=part)

    def _message(self, item: RewardItem) -> dict[str, Any]:
        item = self._clipped(item)
        columns = {} if self._config.function == "math" else dict(item.columns)
        return {
            "prompt": item.prompt,
            "completion": item.completion,
            "answer": item.answer,
            "source": item.source,
            "columns": columns,
            "finish_reason": item.finish_reason,
        }

    def _run(self, items: Sequence[RewardItem], until_ready: bool) -> _Tally:
        """The event loop: hand out work, read replies, kill what is late, until every item is
        done."""
        tally = _Tally(np.full(len(items), np.nan, dtype=np.float32), self._limits)
        for worker in self._workers:
            # nobody looked at it while the first rollouts were generated, which may have taken long
            if not worker.ready:
                worker.deadline = time.monotonic() + BOOT_SECONDS
        fresh, singles = deque(range(len(items))), deque[int]()
        while (not any(w.ready for w in self._workers)) if until_ready else tally.done < len(items):
            for slot, worker in enumerate(self._workers):
                if worker.idle and (fresh or singles):
                    self._hand_out(slot, items, fresh, singles)
            self._wait(tally, singles)
        return tally

    def _hand_out(
        self, slot: int, items: Sequence[RewardItem], fresh: deque[int], singles: deque[int]
    ) -> None:
        worker = self._workers[slot]
        if worker.process.poll() is not None:  # died between calls: nobody's fault in this one
            self._restart(slot)
            return
        if fresh and worker.whole_groups:
            worker.batch = [fresh.popleft()]
            of = items[worker.batch[0]].group
            while fresh and of >= 0 and items[fresh[0]].group == of:
                worker.batch.append(fresh.popleft())
        elif fresh:
            share = math.ceil(len(fresh) / len(self._workers)) if worker.batched else 1
            worker.batch = [fresh.popleft() for _ in range(min(share, _CHUNK_ITEMS))]
        else:
            worker.batch = [singles.popleft()]
        worker.queue({"items": [self._message(items[index]) for index in worker.batch]})
        worker.deadline = time.monotonic() + self._config.timeout_seconds

    def _wait(self, tally: _Tally, singles: deque[int]) -> None:
        """Sleep until a worker answers or is late, then settle every worker concerned."""
        replies, late = wait_for(self._workers)
        for slot, reply in replies.items():
            self._settle(slot, reply, tally, singles)
        for slot in late:
            self._expire(slot, tally, singles)

    def _settle(
        self, slot: int, reply: dict[str, Any] | None, tally: _Tally, singles: deque[int]
    ) -> None:
        worker = self._workers[slot]
        if isinstance(reply, dict) and "fatal" in reply:
            self._fatal(str(reply["fatal"]))
        if not worker.ready:
            if not isinstance(reply, dict) or "ready" not in reply:
                self._fatal(
                    f"reward.function: {self._config.function} ended its process while "
                    f"loading; run the file alone to see why"
                )
            worker.ready, worker.batched = True, bool(reply["batched"])
            worker.whole_groups = bool(reply["whole_groups"])
            return
        batch, worker.batch = worker.batch, []
        if isinstance(reply, dict) and "values" in reply:
            if len(reply["values"]) != len(batch):
                self._fatal(
                    f"reward.function: got {len(reply['values'])} rewards for {len(batch)} "
                    "completions; return one for each"
                )
            try:
                for index, value in zip(batch, reply["values"]):
                    tally.scored_as(index, value)
                tally.extras += reply["extras"]
                tally.extras_dropped += reply["dropped"]
            except RewardError as error:
                self._fatal(str(error))
            return
        reason = f"the worker died (crash, or more than {self._config.memory_limit_mb} MB)"
        if isinstance(reply, dict):
            reason = str(reply.get("error"))
        if len(batch) > 1 and not worker.whole_groups:
            singles.extend(batch)
        else:
            for index in batch:
                tally.failed(index, reason)
        if not isinstance(reply, dict):
            self._restart(slot)

    def _expire(self, slot: int, tally: _Tally, singles: deque[int]) -> None:
        worker = self._workers[slot]
        if not worker.ready:
            self._fatal(
                f"reward.function: {self._config.function} did not load within "
                f"{BOOT_SECONDS:.0f} s; make its imports faster"
            )
        if len(worker.batch) > 1 and not worker.whole_groups:
            singles.extend(worker.batch)
        else:
            tally.done += len(worker.batch)
            tally.timeouts += len(worker.batch)
        self._restart(slot)

    def _restart(self, slot: int) -> None:
        self._workers[slot].kill()
        self._workers[slot] = self._start()

    def _fatal(self, message: str) -> NoReturn:
        self.close()
        raise RewardError(message)


def gold_problems(config: RewardConfig, answers: Sequence[Any]) -> list[GoldProblem | None]:
    """Why the built-in verifier cannot judge by these answers, None where it can: call it before
    the model loads. Judged in workers, each answer under `timeout_seconds`.

    A plug-in and a procedural set judge by their own rules: None for all of theirs.
    """
    if config.function == "exact":
        return [verifiers.gold_problem("exact", answer) for answer in answers]
    if config.function != "math":
        return [None] * len(answers)
    with RewardPool(config, gold=True) as pool:
        return pool.problems(answers)
