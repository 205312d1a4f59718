"""A phase that takes too long ends its process with one line: who waited for what, and the key that
allows more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STALL = """
import sys, time
from pathlib import Path
from cero_rl.job.watchdog import Limit, Watchdog
def stuck():
    time.sleep(60)
run_dir, phase, key = sys.argv[1:]
limit = Limit(0.7, key) if key != "watchdog.stall_seconds" else None
detail = (lambda: "at lm_head.weight") if phase == "sync" else None
with Watchdog(0.7 if limit is None else 30.0, Path(run_dir)) as watchdog:
    with watchdog.phase("learner", "all ranks"):
        time.sleep(0.2)
    with watchdog.phase("rollout", "the sampler", Limit(30, "rollout.generate_timeout_seconds")):
        time.sleep(1.0 if limit is None else 0.0)
        with watchdog.phase(phase, "the other ranks", limit, detail=detail):
            stuck()
"""


def stall(tmp_path: Path, phase: str, key: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RANK": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", STALL, str(tmp_path), phase, key]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("phase", "code", "key"),
    [
        ("counts", 6, "watchdog.stall_seconds"),
        ("checkpoint", 4, "watchdog.stall_seconds"),
        ("reward", 5, "watchdog.stall_seconds"),
        ("sync", 6, "rollout.sync_timeout_seconds"),
        ("rollout", 6, "rollout.generate_timeout_seconds"),
        ("evaluation", 6, "rollout.generate_timeout_seconds"),
    ],
)
def test_a_phase_that_stands_still_names_its_own_key(
    tmp_path: Path, phase: str, code: int, key: str
) -> None:
    done = stall(tmp_path, phase, key)
    assert done.returncode == code, done.stderr
    where = " (at lm_head.weight)" if phase == "sync" else ""
    assert done.stderr.startswith(
        f"error (rank 1): {phase} took longer than {key} = 0.7 s, waiting for the other "
        f"ranks{where}; a rank is lost or something hangs. Resume with --resume auto, or raise "
        f"{key}; stacks in"
    )
    assert len(done.stderr.splitlines()) == 1
    keys = {"watchdog.stall_seconds", "rollout.sync_timeout_seconds"}
    assert not any(other in done.stderr for other in keys - {key})
    assert "in stuck" in (tmp_path / "stacks_rank1.txt").read_text()


def test_in_time_nothing_happens() -> None:
    code = "from cero_rl.job.watchdog import Watchdog\n"
    code += "with Watchdog(60.0) as watchdog, watchdog.phase('sync', 'all'): print('done')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
