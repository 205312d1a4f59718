"""Golden traces for refactorings: 20 steps of real training, case by case, as digests to compare.

    python tools/golden_trace.py run --rows before.jsonl [--checkout DIR] [--cases cero dapo]
    python tools/golden_trace.py compare before.jsonl after.jsonl

`run` starts the shipped training command of a checkout (this one by default) on gloo ranks and
writes a JSON row a case: sha256 over the numbers of every step without its timings, over the
allocations and what came of them, and over the exported weights. The same machine and the same
versions give the same rows; `compare` ends with 1 where two files differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kill_sweep import free_port

HERE = Path(__file__).resolve().parents[1]
COMMON = [
    "scheduler.rounds=20",
    "budget.total_rollouts=1280",
    "data.limit=120",
    "data.heldout_limit=24",
    "optimizer.warmup_steps=1",
    "evaluation.every_steps=10",
    "evaluation.final_samples_per_prompt=2",
    "evaluation.pass_k=[1,2]",
    "checkpoint.every_steps=7",
    "logging.tensorboard=false",
    "scheduler.step_scale=5",
]
FINE = [
    "scheduler.rollouts_per_unit=2",
    "scheduler.max_units_per_prompt=16",
    "scheduler.capacity_rollouts=128",
]
CASES: dict[str, tuple[int, list[str]]] = {  # name -> ranks, settings
    "uniform": (1, ["scheduler.name=uniform"]),
    "cero": (1, []),
    "cero_2ranks": (2, []),
    "dapo": (
        1,
        ["scheduler.name=dapo", "scheduler.capacity_rollouts=256", "budget.total_rollouts=5120"],
    ),
    "overlap_2ranks": (2, ["rollout.overlap=true"]),
    "lora": (1, ["lora.rank=4", "optimizer.learning_rate=0.003", "learner.kl_coefficient=0.01"]),
    "two_updates_kl": (
        2,
        ["learner.updates_per_batch=2", "learner.kl_coefficient=0.02", "learner.algorithm=dapo"],
    ),
    "waves_keep_2ranks": (
        2,
        [
            "scheduler.name=reinforce_ada",
            "scheduler.keep_rule=gfpo",
            "learner.algorithm=dapo",
            *FINE,
        ],
    ),
    "greso": (1, ["scheduler.name=greso"]),
    "graded_tokens_refit": (
        1,
        [
            "scheduler.value=graded",
            "scheduler.token_costs=true",
            "budget.total_tokens=100000",
            "scheduler.refit_prior_every=3",
            "scheduler.cap_shares=4",
            "scheduler.forgetting=0.95",
        ],
    ),
    "streaming": (
        1,
        [
            "scheduler.streaming=true",
            "scheduler.rounds=5",
            "learner.rollouts_per_step=64",
            "scheduler.forgetting=0.9",
        ],
    ),
    "cut_rounds": (
        1,
        [
            "scheduler.rounds=5",
            "learner.rollouts_per_step=64",
            "scheduler.value=graded",
            "scheduler.keep_rule=pods",
        ],
    ),
}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _repeatable(entry: dict[str, Any]) -> dict[str, Any]:
    """A line without what the clock and the machine decide."""
    clock = ("timing_s/", "perf/", "skew/")
    return {k: v for k, v in entry.items() if not k.startswith(clock) and k != "step_time"}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def trace(checkout: Path, name: str, out: Path) -> dict[str, Any]:
    """One case's row. Raises SystemExit with the run's own words if it fails."""
    ranks, settings = CASES[name]
    launcher = Path(sys.executable).parent / "deepspeed"
    line = [str(launcher), "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    line += ["--log_level", "warning", "recipes/train_cero.py", "--overwrite"]
    line += ["--config", "recipes/digits_cpu.yaml"]
    for setting in [*COMMON, f"output_dir={out}", f"name={name}", *settings]:
        line += ["--set", setting]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(checkout),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    started = time.monotonic()
    done = subprocess.run(line, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    run = out / name
    metrics = [_repeatable(entry) for entry in _lines(run / "metrics.jsonl")]
    losses = [entry["loss"] for entry in metrics if "loss" in entry]
    weights = (run / "export/model.safetensors").read_bytes()
    return {
        "case": name,
        "ranks": ranks,
        "steps": len(losses),
        "metrics": _digest(metrics),
        "allocations": _digest(_lines(run / "evidence.jsonl")),
        "ledger": _digest(_lines(run / "ledger.jsonl")),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "losses": losses,
        "seconds": round(time.monotonic() - started, 1),
    }


def run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.cases or CASES:
            row = trace(options.checkout.resolve(), name, Path(scratch))
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            weights = row["weights_sha256"][:16]
            print(f"{name:<20} {row['steps']:>3} steps  {row['metrics']}  {weights}", flush=True)
    return 0


def compare(options: argparse.Namespace) -> int:
    before, after = (
        {row["case"]: row for row in _lines(p)} for p in (options.before, options.after)
    )
    different = 0
    for name in sorted(before.keys() | after.keys()):
        pair = before.get(name), after.get(name)
        if pair[0] is None or pair[1] is None:
            print(f"{name:<20} only in one of the files")
            different += 1
            continue
        keys = ("steps", "losses", "metrics", "allocations", "ledger", "weights_sha256")
        unlike = [key for key in keys if pair[0][key] != pair[1][key]]
        different += bool(unlike)
        steps, weights = pair[1]["steps"], pair[1]["weights_sha256"][:16]
        verdict = f"differs in {', '.join(unlike)}" if unlike else "equal"
        print(f"{name:<20} {steps:>3} steps  weights {weights}  {verdict}")
    print(
        f"{len(before.keys() | after.keys()) - different} of {len(before | after)} traces are equal"
    )
    return int(different > 0)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train each case and write its row")
    running.add_argument("--rows", type=Path, required=True, help="JSON lines, appended to")
    running.add_argument("--checkout", type=Path, default=HERE, help="whose code runs")
    running.add_argument("--cases", nargs="*", choices=CASES, metavar="CASE")
    comparing = commands.add_parser("compare", help="hold two files of rows against each other")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    return run(options) if options.command == "run" else compare(options)


if __name__ == "__main__":
    sys.exit(main())
