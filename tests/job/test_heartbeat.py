"""A rank that is gone is named to all others, and one that is done is not missed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from cero_rl.job.heartbeat import Heartbeat

SECONDS = 2.0  # 8 looks of a quarter of a second


class Ranks:
    """Heartbeats of several ranks in this process, on one store; `told`: what each was told."""

    def __init__(self, count: int, store: dist.Store | None = None) -> None:
        store = store or dist.HashStore()
        self.told: dict[int, list[str]] = {rank: [] for rank in range(count)}
        self.beats = [
            Heartbeat(store, rank, count, SECONDS, self._leaver(rank)) for rank in range(count)
        ]

    def _leaver(self, rank: int) -> Callable[[str, int], None]:
        def leave(message: str, code: int) -> None:
            assert code == 6
            self.told[rank].append(message)
            self.beats[rank]._stop.set()  # a process would be gone

        return leave

    def wait(self, seconds: float, *ranks: int) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not all(self.told[rank] for rank in ranks):
            time.sleep(0.02)


def test_all_are_told_of_the_one_that_is_gone() -> None:
    ranks = Ranks(4)
    for beat in ranks.beats:
        beat.__enter__()
    ranks.beats[2]._stop.set()  # killed: no word
    ranks.wait(30.0, 0, 1, 3)
    for rank in (0, 1, 3):
        (message,) = ranks.told[rank]
        assert message.startswith("rank 2 was not heard of for 2 s (watchdog.heartbeat_seconds)")
    assert not ranks.told[2]


def test_one_that_is_done_is_not_missed() -> None:
    ranks = Ranks(2)
    with ranks.beats[0], ranks.beats[1]:
        ranks.beats[1].__exit__(None, None, None)
        ranks.wait(2 * SECONDS, 0)
    assert not any(ranks.told.values())


def test_one_that_failed_alone_is_missed() -> None:
    """Its error may not be everyone's: the others may be waiting for it."""
    ranks = Ranks(2)
    with ranks.beats[0]:
        ranks.beats[1].__enter__()
        ranks.beats[1].__exit__(ValueError, ValueError(), None)
        ranks.wait(30.0, 0)
    assert ranks.told[0][0].startswith("rank 1 was not heard of")


def test_the_loss_of_the_store_is_the_loss_of_rank_0(tmp_path: Path) -> None:
    """A real store in a process that is killed."""
    port = tmp_path / "port"
    code = (
        "import sys, time, pathlib, torch.distributed as dist\n"
        "store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
        "pathlib.Path(sys.argv[1] + '.new').write_text(str(store.port))\n"
        "pathlib.Path(sys.argv[1] + '.new').rename(sys.argv[1])\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(port)]) as server:
        try:
            while not port.exists():
                assert server.poll() is None
                time.sleep(0.02)
            store = dist.TCPStore("127.0.0.1", int(port.read_text()), wait_for_workers=False)
            store.set("cero_rl/heartbeat/beat/0", "left")
            ranks = Ranks(2, store.clone())
            with ranks.beats[1]:
                time.sleep(0.5)
                assert not ranks.told[1]
                server.kill()
                ranks.wait(30.0, 1)
        finally:
            server.kill()
    assert ranks.told[1][0].startswith("rank 0, where the ranks meet, is gone for 2 s")


def test_a_run_of_one_rank_has_none() -> None:
    alone = Ranks(1)
    with alone.beats[0]:
        assert not alone.beats[0]._thread.is_alive()
