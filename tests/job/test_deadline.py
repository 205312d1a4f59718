"""A block that takes too long ends its process with one line and the exit status of an engine
failure."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import time
from cero_rl.job.watchdog import deadline
with deadline({allowed}, "weight sync of version 3", key="rollout.sync_timeout_seconds",
              detail=lambda: "at lm_head.weight"):
    time.sleep({taken})
print("done")
"""


def run(allowed: float, taken: float) -> subprocess.CompletedProcess[str]:
    code = CODE.format(allowed=allowed, taken=taken)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )


def test_it_leaves_with_a_named_error() -> None:
    done = run(0.2, 100)
    assert done.returncode == 6
    assert done.stderr.startswith(
        "error (rank 0): weight sync of version 3 took longer than "
        "rollout.sync_timeout_seconds = 0.2 s"
    )
    assert "at lm_head.weight" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_in_time_nothing_happens() -> None:
    done = run(100, 0.01)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
