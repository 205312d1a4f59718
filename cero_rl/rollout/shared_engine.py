"""Rollout engines in step: what fails on one rank fails on all, and generation may go on while the
learner works.

Without it a rank that raised alone would leave the others waiting in a collective. Generation ahead
runs in a thread that enters no collective; the ranks agree on its outcome when it is collected.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

from torch import Tensor

from cero_rl.data.prompts import Prompt
from cero_rl.distributed.group import Group
from cero_rl.errors import EngineError, RewardError
from cero_rl.job import faults
from cero_rl.rewards.pool import RewardPool
from cero_rl.rewards.scoring import Scores, score_groups
from cero_rl.rollout.protocol import RolloutEngine, RolloutRequest
from cero_rl.types import RolloutGroup


class Ahead:
    """One rank's generation in the background. `seconds` is how long it took, once it is done."""

    def __init__(
        self,
        engine: RolloutEngine,
        requests: Sequence[RolloutRequest],
        *,
        stream: int,
        temperature: float,
    ) -> None:
        self.requests = requests
        self.stream = stream
        self.seconds = 0.0
        self._groups: list[RolloutGroup] = []
        self._failure: BaseException | None = None

        def work() -> None:
            started = time.perf_counter()
            try:
                self._groups = engine.generate(requests, stream=stream, temperature=temperature)
            except BaseException as error:  # raised again where it is waited for
                self._failure = error
            self.seconds = time.perf_counter() - started

        self._thread = threading.Thread(target=work, name="rollout-ahead", daemon=True)
        self._thread.start()

    def groups(self) -> list[RolloutGroup]:
        """Wait for them; raises what generation raised."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._groups


class InStep:
    """A RolloutEngine whose failures are everyone's. Every rank calls `generate` together, also
    with nothing to sample.

    Raises EngineError on all ranks when it failed on one.
    """

    def __init__(self, engine: RolloutEngine, group: Group) -> None:
        self.engine, self._group = engine, group

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        *,
        stream: int,
        temperature: float,
        max_tokens: int | None = None,
    ) -> list[RolloutGroup]:
        groups, failure = [], None
        try:
            groups = self.engine.generate(
                requests, stream=stream, temperature=temperature, max_tokens=max_tokens
            )
        except (EngineError, RuntimeError) as error:  # RuntimeError: out of memory and its kin
            failure = f"rank {self._group.rank}: {error}"
        self._group.agree(failure, "rollout")
        return groups

    def begin(
        self, requests: Sequence[RolloutRequest], *, stream: int, temperature: float
    ) -> Ahead:
        """Start generating on this rank and return at once; no collective. `finish` it before the
        next call of this engine."""
        return Ahead(self.engine, requests, stream=stream, temperature=temperature)

    def finish(self, ahead: Ahead) -> list[RolloutGroup]:
        groups, failure = [], None
        try:
            groups = ahead.groups()
        except (EngineError, RuntimeError) as error:
            failure = f"rank {self._group.rank}: {error}"
        self._group.agree(failure, "rollout")
        return groups

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        failure = None
        try:
            self.engine.load_weights(weights, version)
        except EngineError as error:
            failure = f"rank {self._group.rank}: {error}"
        self._group.agree(failure, f"weight sync of version {version}")

    def sleep(self) -> None:
        self.engine.sleep()


def score_in_step(
    groups: Sequence[RolloutGroup], prompts: Sequence[Prompt], rewards: RewardPool, group: Group
) -> Scores:
    """This rank's scores. A reward function that breaks its contract on one rank is a RewardError
    on all. A collective."""
    scores, failure = None, None
    try:
        faults.point("reward.before")
        scores = score_groups(groups, prompts, rewards)
    except (RewardError, RuntimeError) as error:
        failure = f"rank {group.rank}: {error}"
    messages = [m for m in group.gather_json(failure) if m]
    if scores is None or messages:
        raise RewardError(messages[0])
    return scores
