"""Timings, as ratios within one run where they compare two ways: one JSON line a row, appended to docs/bench/.

    scheduler   next_round + update at 1e4, 1e5, 1e6 prompts, bytes a prompt
    advantage   the ragged op against eager index_add and a Python loop over groups
    startup     seconds from the start of the 2-rank job to its first line, and the shares of a training step
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def median_seconds(action: Callable[[], object], repeats: int = 15) -> float:
    action()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def bench_scheduler() -> Iterator[dict[str, Any]]:
    from cero_rl.scheduler import CeroScheduler

    for prompts in (10_000, 100_000, 1_000_000):
        scheduler = CeroScheduler(prompts, rounds=200, budget_rollouts=prompts * 8, rollouts_per_unit=8, max_units_per_prompt=1,
                                  capacity_rollouts=min(prompts, 65536) * 8, seed=0)  # fmt: skip
        rng = np.random.default_rng(0)
        plan_seconds, learn_seconds = [], []
        for _ in range(10):
            started = time.perf_counter()
            allocation = scheduler.next_round()
            planned = time.perf_counter()
            if allocation is None:
                break
            trials = np.zeros(prompts, dtype=np.int64)
            trials[allocation.prompt_ids] = allocation.rollouts
            successes = rng.binomial(trials, 0.4)
            ready = time.perf_counter()
            scheduler.update(successes, trials)
            learn_seconds.append(time.perf_counter() - ready)
            plan_seconds.append(planned - started)
        state = sum(v.nbytes for v in scheduler.state_dict().values() if isinstance(v, np.ndarray))
        yield {
            "bench": "scheduler", "prompts": prompts, "next_round_ms": round(1e3 * float(np.median(plan_seconds)), 3),
            "update_ms": round(1e3 * float(np.median(learn_seconds)), 3), "state_bytes_per_prompt": round(state / prompts, 1),
        }  # fmt: skip


def _eager(rewards: Any, offsets: Any) -> Any:
    """Leave-one-out advantage with index_add, as eager trainers write it."""
    import torch

    sizes = (offsets[1:] - offsets[:-1]).long()
    owner = torch.repeat_interleave(torch.arange(sizes.numel()), sizes)
    total = torch.zeros(sizes.numel()).index_add_(0, owner, rewards)
    count = sizes.float().clamp(min=1)
    mean = total / count
    centered = rewards - mean[owner]
    square = torch.zeros(sizes.numel()).index_add_(0, owner, centered**2)
    std = (square / (count - 1).clamp(min=1)).sqrt()
    wins = torch.zeros(sizes.numel()).index_add_(0, owner, (rewards > 0.5).float())
    scale = count / (count - 1).clamp(min=1)
    return centered * scale[owner] * (std > 1e-6)[owner], mean, std, wins


def _loop(rewards: Any, offsets: Any) -> Any:
    """The same with a Python loop over groups."""
    import torch

    out = torch.zeros_like(rewards)
    edges = offsets.tolist()
    for first, last in pairwise(edges):
        group = rewards[first:last]
        if last - first > 1:
            out[first:last] = (group - group.mean()) * ((last - first) / (last - first - 1))
    return out


def bench_advantage() -> Iterator[dict[str, Any]]:
    import torch

    from cero_rl.ops import group_advantage

    rng = np.random.default_rng(0)
    for rollouts in (512, 8192, 65536):
        shapes = {"constant 8": np.full(rollouts // 8, 8)}
        ragged = np.clip(rng.lognormal(2.0, 1.0, rollouts).astype(int), 1, 1024)
        shapes["log-normal"] = ragged[: int(np.searchsorted(np.cumsum(ragged), rollouts))]
        for name, sizes in shapes.items():
            offsets = torch.tensor(np.cumsum([0, *sizes]))
            rewards = torch.tensor(rng.integers(0, 2, int(sizes.sum())), dtype=torch.float32)
            own = median_seconds(lambda r=rewards, o=offsets: group_advantage(r, o))
            eager = median_seconds(lambda r=rewards, o=offsets: _eager(r, o))
            loop = median_seconds(lambda r=rewards, o=offsets: _loop(r, o), repeats=3)
            yield {
                "bench": "advantage", "device": "cpu", "rollouts": int(sizes.sum()), "groups": len(sizes), "sizes": name,
                "microseconds": round(own * 1e6, 1), "index_add_ratio": round(eager / own, 2), "python_loop_ratio": round(loop / own, 1),
            }  # fmt: skip


def bench_startup() -> Iterator[dict[str, Any]]:
    sys.path.insert(0, str(ROOT / "tests" / "training"))
    import tempfile

    from launch import command, environment, lines

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        settings = ["scheduler.rounds=20", "budget.total_rollouts=10240", "data.limit=null", "checkpoint.every_steps=0"]
        started, first = time.monotonic(), None
        process = subprocess.Popen(command(out, "bench", settings=settings), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if first is None and line.startswith("held-out accuracy before"):
                first = time.monotonic() - started
        if process.wait() != 0:
            raise SystemExit("error: the 2-rank job failed; run it by hand with --debug")
        steps = [m for m in lines(out / "bench" / "metrics.jsonl") if "step_time" in m][5:]

    def mean(key: str) -> float:
        return float(np.mean([m[key] for m in steps]))

    total = mean("step_time")
    yield {
        "bench": "step", "ranks": 2, "rollouts_per_step": 512, "startup_seconds": round(first or float("nan"), 1),
        "step_seconds": round(total, 3), "rollout_share": round(mean("timing_s/rollout") / total, 3),
        "learner_share": round(mean("timing_s/learner") / total, 3), "sync_share": round(mean("timing_s/sync") / total, 3),
        "scheduler_share": round(mean("timing_s/scheduler") / total, 5), "advantage_share": round(mean("timing_s/advantage") / total, 5),
        "peak_memory_gb": round(max(m["perf/peak_memory_gb"] for m in steps), 2),
        "tokens_per_second": round(mean("perf/tokens_per_second")),
    }  # fmt: skip


BENCHES = {"scheduler": bench_scheduler, "advantage": bench_advantage, "startup": bench_startup}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=list(BENCHES), default=list(BENCHES))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench" / "cpu.jsonl")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    import torch

    machine = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__, "numpy": np.__version__, "commit": commit}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("a") as file:
        for name in arguments.only:
            for row in BENCHES[name]():
                print(json.dumps(row), flush=True)
                file.write(json.dumps({**row, **machine}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
