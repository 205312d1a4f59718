"""An engine whose failures are everyone's, and generation that goes on while the learner works.

Generation ahead runs in a thread that enters no collective; the ranks agree on its outcome when it
is collected.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cero_rl.distributed.group import Group
from cero_rl.rollout.protocol import RolloutEngine, RolloutRequest
from cero_rl.types import RolloutGroup


class Ahead:
    """One rank's generation in the background. `seconds` is how long it took, once it is done."""

    def __init__(
        self,
        engine: RolloutEngine,
        requests: Sequence[RolloutRequest],
        device: torch.device,
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
            if device.type == "cuda":
                torch.cuda.set_device(device)  # a new thread begins with the first
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


class SharedEngine:
    """A RolloutEngine whose failures are everyone's. Every rank calls `generate` together, also
    with nothing to sample.

    Raises EngineError on all ranks when it failed on one.
    """

    def __init__(self, engine: RolloutEngine, group: Group) -> None:
        self.engine = engine
        self._group = group

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        *,
        stream: int,
        temperature: float,
        max_tokens: int | None = None,
    ) -> list[RolloutGroup]:
        def action() -> list[RolloutGroup]:
            return self.engine.generate(
                requests, stream=stream, temperature=temperature, max_tokens=max_tokens
            )

        return self._group.together("rollout", action)

    def begin(
        self, requests: Sequence[RolloutRequest], *, stream: int, temperature: float
    ) -> Ahead:
        """Start generating on this rank and return at once; no collective. `finish` it before the
        next call of this engine."""
        device = self._group.device
        return Ahead(self.engine, requests, device, stream=stream, temperature=temperature)

    def finish(self, ahead: Ahead) -> list[RolloutGroup]:
        return self._group.together("rollout", ahead.groups)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        what = f"weight sync of version {version}"
        self._group.together(what, lambda: self.engine.load_weights(weights, version))

    def sleep(self) -> None:
        self.engine.sleep()
