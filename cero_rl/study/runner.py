"""The runs of a study, one real training run (one rank) each: started, awaited, written down.

A finished run is one line of the results file, so a study that was stopped goes on where it was.
All arms of a seed share the start model, the order of draws and the held-out samples, and every
rollout generated counts.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from cero_rl.errors import EXIT_INTERRUPT, tell
from cero_rl.files.jsonl import append_jsonl
from cero_rl.job.parent import LAUNCHER
from cero_rl.study.plan import (
    Chosen,
    Job,
    Row,
    Study,
    StudyError,
    jobs_of,
    read_rows,
    refuse_other_data,
    settings_of,
)

Say = Callable[[str], None]


def run_study(
    study: Study, chosen: Chosen, *, jobs: int, port: int, work_dir: Path, say: Say
) -> int:
    """Run what is not in the results yet, `jobs` at a time, with rendezvous ports from `port` on.
    Returns 0, 1 where a run failed (the others go on), or 130. Raises StudyError before anything
    is started."""
    done = {(r["pool"], r["arm"], r["seed"], r["budget"], r["digest"]) for r in _rows(study)}
    every = list(jobs_of(study, chosen))
    todo = [job for job in every if job.key not in done]
    refuse_other_data(todo)
    say(f"{len(every)} runs, {len(every) - len(todo)} of them in {study.results.name}")
    started, finished, failed, stopped = time.monotonic(), 0, 0, False
    work_dir.mkdir(parents=True, exist_ok=True)
    study.results.parent.mkdir(parents=True, exist_ok=True)

    def one(numbered: tuple[int, Job]) -> None:
        nonlocal finished, failed
        index, job = numbered
        try:
            row = run_job(job, study, port=port + index, work_dir=work_dir)
        except StudyError as error:
            failed += 1
            if not stopped:
                tell(f"error: {error}")
            return
        append_jsonl(study.results, row)
        finished += 1
        left = (time.monotonic() - started) / finished * (len(todo) - finished - failed)
        say(
            f"[{finished}/{len(todo)}] {job.name}: {row['accuracy'][0]:.3f} -> "
            f"{row['accuracy'][-1]:.3f}, {row['seconds']:.0f} s; about {left / 60:.0f} min left"
        )

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(one, enumerate(todo)))
        except KeyboardInterrupt:
            stopped = True
            pool.shutdown(cancel_futures=True)
            left = len(todo) - finished
            tell(f"stopped with {left} runs to go; the same command goes on")
            return EXIT_INTERRUPT
    return 1 if failed else 0


def _rows(study: Study) -> list[Row]:
    """The results so far; half a line that a kill left is cut off, so that the next begins a line
    of its own."""
    rows = read_rows(study.results)
    if study.results.exists():
        data = study.results.read_bytes()
        if data and not data.endswith(b"\n"):
            with study.results.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)
            rows = read_rows(study.results)
    return rows


def run_job(job: Job, study: Study, *, port: int, work_dir: Path) -> Row:
    """One training run; returns its row. Raises StudyError with the end of its log if it fails."""
    recipe = job.settings.get("recipe", study.recipe)
    command = [sys.executable, "-m", "cero_rl.commands.rank", "--config", recipe, "--overwrite"]
    for key, value in {**settings_of(job), "output_dir": str(work_dir)}.items():
        text = value if isinstance(value, str) else json.dumps(value)
        command += ["--set", f"{key}={text}"]
    one_rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    env = {**os.environ, **one_rank, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(port)}
    env[LAUNCHER] = str(os.getpid())  # without this process the run ends as well
    started = time.monotonic()
    log = work_dir / f"{job.name}.log"
    with log.open("w") as out:
        status = subprocess.run(
            command, env=env, stdout=out, stderr=subprocess.STDOUT, check=False
        ).returncode
    if status:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise StudyError(f"{job.name} ended with exit code {status}: {end}")
    seconds = time.monotonic() - started
    row = {**row_of(job, work_dir / job.name), "seconds": round(seconds, 1)}
    shutil.rmtree(work_dir / job.name)
    return row


def row_of(job: Job, run_dir: Path) -> Row:
    """What a finished run showed. Raises StudyError where it was never evaluated."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    points = [m for m in lines if any(k.startswith("eval/avg@") for k in m)]
    if not points:
        raise StudyError(f"{job.name}: no held-out accuracy in its metrics; give a held-out set")
    steps = [m for m in lines if "reward" in m]
    tail = steps[-max(1, len(steps) // 10) :]
    return {
        "pool": job.pool,
        "arm": job.arm,
        "seed": job.seed,
        "budget": job.budget,
        "digest": job.digest,
        "settings": dict(job.settings),
        "rollouts": [m["budget/spent_rollouts"] for m in points],
        "accuracy": [
            round(next(v for k, v in m.items() if k.startswith("eval/avg@")), 5) for m in points
        ],
        "pass_at": {
            k.removeprefix("eval/"): [round(points[0][k], 5), round(points[-1][k], 5)]
            for k in points[-1]
            if k.startswith("eval/pass@") and k in points[0]
        },
        "live": _mean("cero/effective_group_rate", steps),
        "entropy": [_mean("entropy", steps[: len(tail)]), _mean("entropy", tail)],
        "entropy_along": [
            _mean("entropy", [m for m in steps if first < m["budget/spent_rollouts"] <= last])
            for first, last in pairwise(m["budget/spent_rollouts"] for m in points)
        ],
        "steps": len(steps),
        "trained_tokens": round(sum(m.get("trained_tokens", 0) for m in steps)),
        "tokens": sum(m["num_tokens"] for m in steps),
        "spending": spending(run_dir / "evidence.jsonl", job),
    }


def _mean(name: str, of: list[dict[str, Any]]) -> float | None:
    known = [m[name] for m in of if m.get(name) is not None and math.isfinite(m[name])]
    return round(sum(known) / len(known), 4) if known else None


def spending(evidence: Path, job: Job) -> Mapping[str, float]:
    """Share of the rollouts by kind of prompt, where the pool says kinds (a column `kind` of a
    JSON lines file); else all of it is one kind."""
    source = Path(job.settings["data.source"])
    kinds = ["all"]
    if source.suffix == ".jsonl":
        lines = source.read_text(encoding="utf-8").splitlines()
        kinds = [json.loads(line).get("kind", "all") for line in lines if line.strip()]
    spent: dict[str, int] = dict.fromkeys(sorted(set(kinds)), 0)
    for line in evidence.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for prompt, rollouts in zip(entry["prompt_ids"], entry["generated"]):
            spent[kinds[prompt] if prompt < len(kinds) else kinds[0]] += rollouts
    total = max(sum(spent.values()), 1)
    return {kind: round(count / total, 4) for kind, count in spent.items()}
