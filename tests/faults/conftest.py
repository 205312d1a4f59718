"""Ranks of this folder's training runs are forked from a process that has imported everything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm_ranks

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(autouse=True, scope="session")
def warm_starts() -> Iterator[None]:
    import kill_sweep

    cold = kill_sweep.start_rank
    kill_sweep.start_rank = lambda line, environment, log: warm_ranks.WarmRank(
        line, ROOT, environment, log
    )
    yield
    kill_sweep.start_rank = cold
