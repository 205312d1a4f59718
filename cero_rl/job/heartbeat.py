"""A rank that is gone ends the others in seconds, also where their library only waits: NCCL's peers
of a lost rank spin until the group's limit.

Every rank writes a growing number into the store where the ranks met, and looks at its neighbour's.
One that stands still for too many looks is written down as lost, where all ranks see it: each ends
with one line that names it. Looks are counted and not seconds, so ranks that were all stopped for a
while (Ctrl-Z, a laptop's lid) accuse nobody when they go on.

Standard library only: the store is torch's, which another process's death does not block.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from cero_rl.errors import EngineError

Leave = Callable[[str, int], Any]  # ends the process with a line and an exit code
_LOST, _BEAT, _LEFT = "cero_rl/heartbeat/lost", "cero_rl/heartbeat/beat/", "left"


class Store(Protocol):
    """The part of torch.distributed.Store that is used. All raise RuntimeError where it is gone."""

    def set(self, key: str, value: str) -> Any: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


class Heartbeat:
    """Beats while it is entered as a context manager; a run of one rank has none. seconds: how long
    a rank may be silent. `leave` is called, on this object's thread, when a rank is lost."""

    def __init__(self, store: Store, rank: int, ranks: int, seconds: float, leave: Leave) -> None:
        self._store, self._rank, self._ranks = store, rank, ranks
        self._seconds, self._leave = seconds, leave
        self._pause = min(1.0, seconds / 8)
        self._looks = max(2, round(seconds / self._pause))
        self._stop = threading.Event()
        self._done = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        if self._ranks > 1:
            self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """A rank that is done says so, and nobody waits for its next beat. One that fails does not:
        if its error is not everyone's, the others are still waiting for it."""
        self._done = error is None
        self._stop.set()
        if self._ranks > 1:
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        neighbour = (self._rank + 1) % self._ranks
        beat, seen, still, unheard = 0, b"", 0, 0
        while not self._stop.is_set():
            try:
                self._store.set(f"{_BEAT}{self._rank}", str(beat))
                now = self._read(f"{_BEAT}{neighbour}")
                still = 0 if now != seen or now == _LEFT.encode() else still + 1
                seen, unheard, beat = now, 0, beat + 1
                if still >= self._looks:
                    self._store.set(_LOST, str(neighbour))
                if lost := self._read(_LOST):
                    self._end(f"rank {int(lost)} was not heard of for {self._seconds:g} s")
            except RuntimeError:  # rank 0 holds the store
                unheard += 1
                if unheard >= self._looks:
                    self._end(f"rank 0, where the ranks meet, is gone for {self._seconds:g} s")
            self._stop.wait(self._pause)
        if self._done:
            with suppress(RuntimeError):
                self._store.set(f"{_BEAT}{self._rank}", _LEFT)

    def _read(self, key: str) -> bytes:
        """Empty where nothing stands."""
        return self._store.get(key) if self._store.check([key]) else b""

    def _end(self, what: str) -> None:
        if self._stop.is_set():
            return
        self._leave(
            f"{what} (watchdog.heartbeat_seconds): killed, out of memory, or its host is down; its "
            "own log says more. Resume with --resume auto",
            EngineError.exit_code,
        )
        time.sleep(self._pause)
