"""Episodes with any engine: a RolloutEngine around another one, whose completions are whole
conversations with an environment.

All episodes of a call go on in step: the engine samples an answer for each that waits for one, the
environment's workers take the answers, and what they say is put behind what was sampled, as tokens.
A request without a task (the parity probe) is handed on as it is. Turn t of draw d has random
numbers of its own, by (seed, stream, prompt, d, t); the first are those of a plain completion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from cero_rl.config.rollout import RolloutConfig
from cero_rl.environments.pool import EnvironmentPool, Event
from cero_rl.job import faults
from cero_rl.rollout.protocol import RolloutEngine, RolloutRequest
from cero_rl.rollout.turns import TurnWriter
from cero_rl.types import Completion, Episode, FinishReason, RolloutGroup

NO_TOKENS, NO_TURNS = "max_tokens", "max_turns"


@dataclass
class _Live:
    """An episode under way."""

    index: int  # of the call's episodes
    request: RolloutRequest
    draw: int  # of the request's
    tokens: list[int] = field(default_factory=list)  # behind the prompt
    logps: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    turns: int = 0
    version: int = 0
    finish: FinishReason = "stop"
    reply: str = ""
    event: Event = field(default_factory=Event)
    lost: bool = False  # the engine did not deliver its answer

    @property
    def waits(self) -> bool:
        return self.event.asks is not None and not self.lost

    def add(self, tokens: Sequence[int], logps: Sequence[float], *, sampled: bool) -> None:
        self.tokens += tokens
        self.logps += logps
        self.sampled += [sampled] * len(tokens)

    def take(self, answer: Completion) -> None:
        self.add(answer.token_ids.tolist(), answer.logp_behavior.tolist(), sampled=True)
        version = answer.policy_version
        self.version = min(self.version, version) if self.turns else version
        self.turns += 1
        self.finish, self.reply = answer.finish_reason, answer.text


class EpisodeEngine:
    """See RolloutEngine. Raises RewardError for an environment that cannot be loaded."""

    def __init__(
        self,
        engine: RolloutEngine,
        pool: EnvironmentPool,
        writer: TurnWriter,
        decode: Callable[[Sequence[int]], str],
        rollout: RolloutConfig,
        seed: int,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._writer = writer
        self._decode = decode
        self._max_turns = rollout.max_turns
        self._max_response = rollout.max_response_tokens
        self._max_turn_tokens = rollout.max_turn_tokens or rollout.max_response_tokens
        self._seed = seed

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self._engine.load_weights(weights, version)

    def sleep(self) -> None:
        self._engine.sleep()

    def close(self) -> None:
        """End the environment's workers."""
        self._pool.close()

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        *,
        stream: int,
        temperature: float,
        max_tokens: int | None = None,
    ) -> list[RolloutGroup]:
        if all(request.task is None for request in requests):
            return self._engine.generate(
                requests, stream=stream, temperature=temperature, max_tokens=max_tokens
            )
        limit = min(max_tokens or self._max_response, self._max_response)
        draws = [(request, draw) for request in requests for draw in range(request.rollouts)]
        live = [_Live(index, request, draw) for index, (request, draw) in enumerate(draws)]
        events = self._pool.begin([_task(each, self._seed, stream) for each in live])
        for each, event in zip(live, events):
            each.event = event
        while waiting := [each for each in live if each.waits]:
            calls = _calls(waiting)
            asked = [self._request(call, limit) for call in calls]
            groups = self._engine.generate(asked, stream=stream, temperature=temperature)
            for call, group in zip(calls, groups):
                _take(call, group.completions)
            self._pool.end({each.index: "lost" for each in waiting if each.lost})
            self._go_on([each for each in waiting if not each.lost], limit)
        return [
            RolloutGroup(
                request.prompt_id,
                request.prompt_tokens,
                tuple(self._completion(e) for e in live if e.request is request and not e.lost),
            )
            for request in requests
        ]

    def _request(self, call: Sequence[_Live], limit: int) -> RolloutRequest:
        first = call[0]
        of = first.request
        said = np.array(first.tokens, dtype=np.int64)
        return RolloutRequest(
            of.prompt_id,
            np.concatenate([of.prompt_tokens, said]),
            len(call),
            stream_key=_key_of_turn(of.stream_key, first.turns),
            first_draw=of.first_draw + first.draw,
            max_tokens=min(limit - len(said), self._max_turn_tokens),
        )

    def _go_on(self, answered: Sequence[_Live], limit: int) -> None:
        """Hand the answers to the environment; put what it says behind them, or end an episode that
        has no more turns or tokens."""
        replies = {e.index: {"content": e.reply, "finish_reason": e.finish} for e in answered}
        events, ends = self._pool.reply(replies), {}
        faults.point("episode.turn")
        for each in answered:
            each.event = event = events[each.index]
            if event.asks is None:
                continue
            assert each.request.task is not None
            assert event.last is not None
            tail = self._writer.tokens(each.request.task, event.last, event.asks)
            if each.turns >= self._max_turns:
                ends[each.index] = NO_TURNS
            elif len(each.tokens) + len(tail) >= limit:
                ends[each.index], each.finish = NO_TOKENS, "length"
            else:
                each.add(tail, [0.0] * len(tail), sampled=False)
        ended = self._pool.end(ends)
        for each in answered:
            if each.index in ended:
                each.event = ended[each.index]

    def _completion(self, each: _Live) -> Completion:
        result, event = each.event.result or {}, each.event
        reward = result.get("reward") if event.result is not None else float("nan")
        return Completion(
            token_ids=np.array(each.tokens, dtype=np.int64),
            logp_behavior=np.array(each.logps, dtype=np.float32),
            text=self._decode(each.tokens),
            finish_reason=each.finish,
            policy_version=each.version,
            sampled=np.array(each.sampled, dtype=np.bool_),
            episode=Episode(
                reward=reward,
                turns=each.turns,
                last_reply=str(result.get("last_reply", each.reply)),
                stop=str(result.get("stop", "")),
                metrics=result.get("metrics", {}),
                failure=event.failure,
                timed_out=event.timed_out,
            ),
        )


def _calls(waiting: Sequence[_Live]) -> list[list[_Live]]:
    """The episodes that one request samples for: neighbours of a group at their first turn, which
    share a prompt; later each alone."""
    calls: list[list[_Live]] = []
    for each in waiting:
        before = calls[-1][-1] if calls and not each.turns else None
        joins = before is not None and before.request is each.request
        if joins and before is not None and before.draw + 1 == each.draw:
            calls[-1].append(each)
        else:
            calls.append([each])
    return calls


def _take(call: Sequence[_Live], answers: Sequence[Completion]) -> None:
    """What the engine failed to deliver is lost; the caller counts and refunds it."""
    for place, each in enumerate(call):
        if place < len(answers):
            each.take(answers[place])
        else:
            each.lost = True


def _key_of_turn(stream_key: int, turn: int) -> int:
    """The prompt's key in the random stream at a turn; its own at the first."""
    if not turn:
        return stream_key
    return int.from_bytes(hashlib.sha256(f"{stream_key} {turn}".encode()).digest()[:8], "big")


def _task(each: _Live, seed: int, stream: int) -> dict[str, Any]:
    """What the environment is told; `seed` is the episode's own."""
    task, draw = each.request.task, each.request.first_draw + each.draw
    assert task is not None
    words = f"{seed} {stream} {each.request.stream_key} {draw}".encode()
    own = int.from_bytes(hashlib.sha256(words).digest()[:4], "big")
    return {
        "prompt": task.content,
        "answer": task.reference,
        "source": task.source,
        "columns": dict(task.columns),
        "seed": own,
    }
