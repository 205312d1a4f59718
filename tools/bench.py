"""Timings of the scheduler, the start-up and a training step: JSON lines in docs/bench/.

    scheduler   next_round and update at 1e4, 1e5, 1e6 prompts, bytes a prompt; against scipy and a
                Python loop
    startup     seconds from the start of the 2-rank job to its first line, and the shares of a
                training step

The advantage operator has a benchmark of its own: bench_advantage.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_scheduler import bench_scheduler
from bench_timing import machine

ROOT = Path(__file__).resolve().parent.parent


def bench_startup() -> Iterator[dict[str, Any]]:
    sys.path.insert(0, str(ROOT / "tests" / "train"))
    sys.path.insert(0, str(ROOT / "tests"))
    import tempfile

    from launch import command, environment, lines  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        settings = [
            "scheduler.rounds=20",
            "budget.total_rollouts=10240",
            "data.limit=null",
            "checkpoint.every_steps=0",
        ]
        started, first = time.monotonic(), None
        process = subprocess.Popen(
            command(out, "bench", settings=settings),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if first is None and line.startswith("held-out before training"):
                first = time.monotonic() - started
        if process.wait() != 0:
            raise SystemExit("error: the 2-rank job failed; run it by hand with --debug")
        steps = [m for m in lines(out / "bench" / "metrics.jsonl") if "step_time" in m][5:]

    def mean(key: str) -> float:
        return float(np.mean([m[key] for m in steps]))

    total = mean("step_time")
    yield {
        "bench": "step",
        "ranks": 2,
        "rollouts_per_step": 512,
        "startup_seconds": round(first or float("nan"), 1),
        "step_seconds": round(total, 3),
        "rollout_share": round(mean("timing_s/rollout") / total, 3),
        "learner_share": round(mean("timing_s/learner") / total, 3),
        "sync_share": round(mean("timing_s/sync") / total, 3),
        "scheduler_share": round(mean("timing_s/scheduler") / total, 5),
        "advantage_share": round(mean("timing_s/advantage") / total, 5),
        "peak_memory_gb": round(max(m["perf/peak_memory_gb"] for m in steps), 2),
        "tokens_per_second": round(mean("perf/tokens_per_second")),
    }


BENCHES = {"scheduler": bench_scheduler, "startup": bench_startup}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=list(BENCHES), default=list(BENCHES))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench" / "cpu.jsonl")
    arguments = parser.parse_args()
    where = {**machine(), "numpy": np.__version__}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("a") as file:
        for name in arguments.only:
            for row in BENCHES[name]():
                print(json.dumps(row), flush=True)
                file.write(json.dumps({**row, **where}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
