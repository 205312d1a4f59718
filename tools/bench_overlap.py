"""What `rollout.overlap` gains: seconds a step with and without it, in turns, in one run: `make
bench-overlap`.

    python tools/bench_overlap.py [--config FILE] [--set KEY=VALUE ...] [--ranks 1] [--server]
        [--steps 12] [--repeats 2]

Trains the shipped command for a few steps, without and with overlap in turns; the first steps,
which pay for the warm-up, and the last, which generates nothing ahead, are left out. `--server`
starts `cero-rl serve` beside it, so that sampler and learner are processes of their own, as they
are in a cluster. One JSON row a mode is appended to docs/bench/overlap.jsonl and printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from kill_sweep import free_port  # noqa: E402

from cero_rl.job.parent import dies_with_me  # noqa: E402

ROWS = ROOT / "docs/bench/overlap.jsonl"
WARM_UP_STEPS = 3


def settings_of(options: argparse.Namespace, out: Path, name: str, *, overlap: bool) -> list[str]:
    steps = options.steps + WARM_UP_STEPS + 1
    return [
        *options.settings,
        f"scheduler.rounds={steps}",
        f"budget.total_rollouts={steps * options.rollouts}",
        "logging.tensorboard=false",
        "data.heldout_limit=2",
        "evaluation.every_steps=0",
        "evaluation.samples_per_prompt=1",
        "evaluation.final_samples_per_prompt=1",
        "evaluation.pass_k=[1]",
        "checkpoint.every_steps=0",
        "checkpoint.export=false",
        "optimizer.warmup_steps=1",
        "learner.importance_sampling=truncate",
        f"rollout.overlap={str(overlap).lower()}",
        f"output_dir={out}",
        f"name={name}",
    ]


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


@contextmanager
def serving(options: argparse.Namespace, settings: list[str], out: Path) -> Iterator[list[str]]:
    """`cero-rl serve` for the run that has `settings`; yields what the run has to be told of it."""
    if not options.server:
        yield []
        return
    port, key = free_port(), out / "server.key"
    told = [
        "rollout.engine=vllm",
        "rollout.mode=server",
        f"rollout.server.urls=[http://127.0.0.1:{port}]",
    ]
    told += [f"rollout.server.key_file={key}", f"rollout.server.weights_dir={out / 'weights'}"]
    line = [
        sys.executable,
        "-m",
        "cero_rl",
        "serve",
        "--config",
        options.config,
        "--port",
        str(port),
    ]
    for setting in [*settings, *told]:
        line += ["--set", setting]
    with (out / "serve.log").open("w") as log:
        server = subprocess.Popen(
            line,
            cwd=ROOT,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=dies_with_me(),
        )
    try:
        for _ in range(1200):
            if "ready" in (out / "serve.log").read_text() or server.poll() is not None:
                break
            time.sleep(0.25)
        yield told
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def seconds_of_steps(
    options: argparse.Namespace, out: Path, name: str, *, overlap: bool
) -> list[dict[str, float]]:
    settings = settings_of(options, out, name, overlap=overlap)
    with serving(options, settings, out) as told:
        line = [sys.executable, "recipes/train_cero.py", "--config", options.config]
        for setting in [*settings, *told]:
            line += ["--set", setting]
        shared = {
            **environment(),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(options.ranks),
        }
        ranks = [
            subprocess.Popen(
                line,
                cwd=ROOT,
                env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)},
                stdout=subprocess.DEVNULL if r else None,
                preexec_fn=dies_with_me(),
            )
            for r in range(options.ranks)
        ]
        if any(rank.wait() for rank in ranks):
            raise SystemExit(f"{name}: a rank failed; see above, and {out / 'serve.log'}")
    lines = [
        json.loads(text)
        for text in (out / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [entry for entry in lines if "step_time" in entry][
        WARM_UP_STEPS : WARM_UP_STEPS + options.steps
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Seconds a step with and without rollout.overlap.")
    parser.add_argument("--config", default="recipes/digits_cpu.yaml")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rollouts", type=int, default=512, help="of a step (512)")
    parser.add_argument("--steps", type=int, default=12, help="that count (12)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--server", action="store_true", help="sample on a vLLM server of its own")
    options = parser.parse_args()
    taken: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            for overlap in (False, True):
                taken[overlap] += seconds_of_steps(
                    options, Path(folder), f"run{repeat}{int(overlap)}", overlap=overlap
                )
    fixed: dict[str, Any] = {
        "config": Path(options.config).name,
        "settings": options.settings,
        "ranks": options.ranks,
        "server": options.server,
        "rollouts": options.rollouts,
        "steps": options.steps * options.repeats,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__.split("+")[0],
    }
    medians = {}
    with ROWS.open("a", encoding="utf-8") as file:
        for overlap, steps in taken.items():
            medians[overlap] = statistics.median(s["step_time"] for s in steps)
            row = {"overlap": overlap, "step_seconds": round(medians[overlap], 4)}
            for stage in ("rollout", "learner", "sync", "reward"):
                row[f"{stage}_seconds"] = round(
                    statistics.median(s[f"timing_s/{stage}"] for s in steps), 4
                )
            row |= {
                "logp_gap_mean": statistics.median(s["mismatch/logp_abs_mean"] for s in steps),
                **fixed,
            }
            file.write(json.dumps(row) + "\n")
            print(json.dumps(row))
    print(f"without / with overlap: {medians[False] / medians[True]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
