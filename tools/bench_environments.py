"""Train the two example environments over paired seeds, uniform against CERO+, one rank on one
core, and write a row a run.

    python tools/bench_environments.py --rows docs/bench/environments.jsonl

A row holds the reward of every step (over what was sampled there, which an allocator chooses),
turns and tokens, and the accuracy on the same held-out prompts before and after, which compares.
Runs that are in the file already are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import kill_sweep
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
UNIFORM = ["scheduler.preset=published", "scheduler.name=uniform", "scheduler.rollouts_per_unit=4"]
SCHEDULERS = {"uniform": UNIFORM, "cero_plus": []}
KEY = ("environment", "scheduler", "seed")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(name: str, scheduler: str, seed: int, out: Path) -> dict[str, Any]:
    """Train; raises SystemExit with the run's output where it fails."""
    words = [f"seed={seed}", f"output_dir={out}", "name=run", "logging.tensorboard=false"]
    line = ["recipes/train_cero.py", "--config", f"recipes/{name}_cpu.yaml"]
    line += [f"--set={word}" for word in [*words, *SCHEDULERS[scheduler]]]
    one = {
        **os.environ,
        **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(kill_sweep.free_port())},
        **{"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    }
    log = out / "output.txt"
    started = time.monotonic()
    if kill_sweep.start_rank(line, one, log).wait():
        raise SystemExit(f"{' '.join(line)}\n{log.read_text(encoding='utf-8')}")
    metrics, ledger = lines(out / "run/metrics.jsonl"), lines(out / "run/ledger.jsonl")[-1]
    steps = [entry for entry in metrics if "reward" in entry]
    before, last = metrics[0], metrics[-1]
    return {
        "environment": name,
        "scheduler": scheduler,
        "seed": seed,
        "heldout_before": round(before["eval/avg@1"], 4),
        "heldout_after": round(last["eval/avg@1"], 4),
        "reward": [round(entry["reward"], 4) for entry in steps],
        "turns": [round(entry["episodes/turns"], 3) for entry in steps],
        "rollouts": ledger["spent_rollouts"],
        "spent_turns": ledger["spent_turns"],
        "spent_tokens": ledger["spent_tokens"],
        "missing": round(sum(e["reward/error_rate"] + e["reward/timeout_rate"] for e in steps), 4),
        "wall_seconds": round(time.monotonic() - started),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    by: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by[row["environment"], row["scheduler"]].append(row)
    print(
        f"{'environment':<12} {'scheduler':<10} {'seeds':>5}  held-out before -> after (each seed)"
    )
    for (name, scheduler), found in sorted(by.items()):
        pairs = [(row["heldout_before"], row["heldout_after"]) for row in found]
        mean = np.mean(pairs, axis=0)
        each = "  ".join(f"{before:.3f} -> {after:.3f}" for before, after in pairs)
        print(
            f"{name:<12} {scheduler:<10} {len(found):>5}  {mean[0]:.3f} -> {mean[1]:.3f}  ({each})"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--rows", type=Path, required=True, help="a JSON row a run is added to it")
    parser.add_argument("--environments", nargs="+", default=["calculator", "guess"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    kill_sweep.start_warm()
    rows = lines(arguments.rows) if arguments.rows.is_file() else []
    for seed in arguments.seeds:
        for name in arguments.environments:
            for scheduler in SCHEDULERS:
                if any(tuple(row[k] for k in KEY) == (name, scheduler, seed) for row in rows):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(run(name, scheduler, seed, Path(folder)))
                with arguments.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(
                    json.dumps({key: rows[-1][key] for key in (*KEY, "heldout_after")}), flush=True
                )
    print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
