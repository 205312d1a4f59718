"""A paired-seed study of allocators and learners in real training: a file says what runs, this runs
it.

The study file (YAML) names a recipe, settings for all runs, pools, arms, seeds and budgets. Each
run is one real training run (one rank) of the recipe; a finished run is one line of the results
file, so a study that was stopped goes on where it was. All arms of a seed share the start model,
the order of draws and the held-out samples, and every rollout generated counts.

    python tools/study.py run docs/studies/frontier.yaml --jobs 2
    python tools/study.py report docs/studies/frontier.yaml
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from study_report import plot, print_report

from cero_rl.errors import EXIT_INTERRUPT
from cero_rl.job.parent import LAUNCHER

ROOT = Path(__file__).resolve().parent.parent
# what a run of a study need not write
QUIET = {
    "checkpoint.every_steps": 0,
    "checkpoint.export": False,
    "logging.tensorboard": False,
    "logging.sample_dumps": False,
}
POINTS = 5  # evaluations along a run, the last of them final, where `points` says nothing else

Settings = Mapping[str, Any]


class StudyError(ValueError):
    """The study file or a run of it cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Study:
    """What a study file says. Settings are dotted keys of the configuration, and six of its own:
    `round`, rollouts of a round, by which a budget becomes a number of rounds; `warmup`, the share
    of these that the learning rate rises over; `capacity`, the most rollouts of one, in rounds;
    `points`, evaluations along a run; `recipe`, in the place of the study's; `sha256`, the digest
    of the file `data.source`."""

    name: str
    recipe: str
    settings: Settings
    pools: Mapping[str, Settings]
    arms: Mapping[str, Settings]
    seeds: list[int]
    budgets: list[int]
    baseline: str
    results: Path


@dataclass(frozen=True)
class Job:
    """One training run."""

    pool: str
    arm: str
    seed: int
    budget: int
    settings: Settings

    @property
    def digest(self) -> str:
        text = json.dumps(sorted(self.settings.items()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        return (self.pool, self.arm, self.seed, self.budget, self.digest)

    @property
    def name(self) -> str:
        return f"{self.pool}-{self.arm}-{self.seed}-{self.budget}"


def read_study(path: Path) -> Study:
    """Raises StudyError for a file that is none."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise StudyError(f"{path} cannot be read as a study: {error}") from None
    wanted = {"recipe", "settings", "pools", "arms", "seeds", "budgets", "baseline", "results"}
    if not isinstance(given, dict) or (odd := set(given) ^ wanted):
        raise StudyError(f"{path}: wanted the keys {sorted(wanted)}, odd ones: {sorted(odd)}")
    if given["baseline"] not in given["arms"]:
        raise StudyError(f"{path}: baseline {given['baseline']!r} is none of its arms")
    return Study(name=path.stem, **{**given, "results": ROOT / given["results"]})


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def refuse_unknown(study: Study, chosen: argparse.Namespace) -> None:
    """Raises StudyError for an arm or a pool that the study does not have."""
    for name, known in (("arms", study.arms), ("pools", study.pools)):
        for one in getattr(chosen, name, None) or ():
            if one not in known:
                raise StudyError(f"--{name} {one}: the study has {', '.join(known)}")


def refuse_other_data(jobs: list[Job]) -> None:
    """Raises StudyError for a pool whose file is missing, or is not the one that the study names:
    its rows would stand beside those of other prompts."""
    for pool, job in {job.pool: job for job in jobs}.items():
        source = job.settings["data.source"]
        if not (ROOT / source).is_file():
            raise StudyError(
                f"pool {pool}: {source} is missing; the study's file says what makes it"
            )
        found = hashlib.sha256((ROOT / source).read_bytes()).hexdigest()
        wanted = job.settings.get("sha256", found)
        if found != wanted:
            raise StudyError(
                f"pool {pool}: the SHA-256 of {source} is {found}, wanted {wanted}; another CPU "
                "may sample another pool: name its digest in a study of your own"
            )


def jobs_of(study: Study, chosen: argparse.Namespace) -> Iterator[Job]:
    """Seed after seed, so that a study that is cut short has whole pairs."""
    for seed in chosen.seeds or study.seeds:
        for budget in chosen.budgets or study.budgets:
            for pool in chosen.pools or study.pools:
                for arm in chosen.arms or study.arms:
                    settings = {**study.settings, **study.pools[pool], **study.arms[arm]}
                    yield Job(pool, arm, seed, budget, settings)


def settings_of(job: Job) -> dict[str, Any]:
    """Configuration keys of one run: rounds, warm-up and evaluations follow from the budget."""
    settings = {**QUIET, **job.settings}
    for key in ("recipe", "sha256"):
        settings.pop(key, None)
    per_round = settings.pop("round")
    rounds = job.budget // per_round
    if shares := settings.pop("capacity", None):
        settings["scheduler.capacity_rollouts"] = shares * per_round
    if share := settings.pop("warmup", None):
        settings["optimizer.warmup_steps"] = round(share * rounds)
    settings |= {"budget.total_rollouts": job.budget, "scheduler.rounds": rounds}
    points = settings.pop("points", POINTS)
    settings.setdefault("evaluation.every_steps", max(1, rounds // points))
    return {**settings, "seed": job.seed, "name": job.name}


def run_job(job: Job, study: Study, *, port: int, work_dir: Path) -> dict[str, Any]:
    """One training run; returns its row. Raises StudyError with the end of its log if it fails."""
    recipe = job.settings.get("recipe", study.recipe)
    command = [sys.executable, "recipes/train_cero.py", "--config", recipe, "--overwrite"]
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
            command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, check=False
        ).returncode
    if status:
        end = "\n".join(log.read_text().splitlines()[-5:])
        raise StudyError(f"{job.name} ended with exit code {status}: {end}")
    seconds = time.monotonic() - started
    row = {**row_of(job, work_dir / job.name), "seconds": round(seconds, 1)}
    shutil.rmtree(work_dir / job.name)
    return row


def row_of(job: Job, run_dir: Path) -> dict[str, Any]:
    """What a finished run showed."""
    text = (run_dir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    points = [m for m in lines if any(k.startswith("eval/avg@") for k in m)]
    steps = [m for m in lines if "reward" in m]
    tail = steps[-max(1, len(steps) // 10) :]

    def mean(name: str, of: list[dict[str, Any]]) -> float | None:
        known = [m[name] for m in of if m.get(name) is not None]
        return round(sum(known) / len(known), 4) if known else None

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
            if k.startswith("eval/pass@")
        },
        "live": mean("cero/effective_group_rate", steps),
        "entropy": [mean("entropy", steps[: len(tail)]), mean("entropy", tail)],
        "entropy_along": [
            mean("entropy", [m for m in steps if first < m["budget/spent_rollouts"] <= last])
            for first, last in pairwise(m["budget/spent_rollouts"] for m in points)
        ],
        "steps": len(steps),
        "trained_tokens": round(sum(m.get("trained_tokens", 0) for m in steps)),
        "tokens": sum(m["num_tokens"] for m in steps),
        "spending": spending(run_dir / "evidence.jsonl", job),
    }


def spending(evidence: Path, job: Job) -> dict[str, float]:
    """Share of the rollouts by kind of prompt, where the pool says kinds."""
    source = ROOT / job.settings["data.source"]
    kinds = [json.loads(line).get("kind", "all") for line in source.read_text().splitlines()]
    spent: dict[str, int] = dict.fromkeys(sorted(set(kinds)), 0)
    for line in evidence.read_text().splitlines():
        entry = json.loads(line)
        for prompt, rollouts in zip(entry["prompt_ids"], entry["generated"]):
            spent[kinds[prompt]] += rollouts
    total = max(sum(spent.values()), 1)
    return {kind: round(count / total, 4) for kind, count in spent.items()}


def run(study: Study, arguments: argparse.Namespace) -> int:
    done = {
        (r["pool"], r["arm"], r["seed"], r["budget"], r["digest"]) for r in read_rows(study.results)
    }
    jobs = list(jobs_of(study, arguments))
    todo = [job for job in jobs if job.key not in done]
    refuse_other_data(todo)
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} of them in {study.results.name}", flush=True)
    started, finished, failed, stopped = time.monotonic(), 0, 0, False
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    study.results.parent.mkdir(parents=True, exist_ok=True)

    def one(numbered: tuple[int, Job]) -> None:
        nonlocal finished, failed
        index, job = numbered
        try:
            row = run_job(job, study, port=arguments.port + index, work_dir=arguments.work_dir)
        except StudyError as error:
            failed += 1
            if not stopped:
                print(f"error: {error}", file=sys.stderr, flush=True)
            return
        with study.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        finished += 1
        left = (time.monotonic() - started) / finished * (len(todo) - finished - failed)
        print(
            f"[{finished}/{len(todo)}] {job.name}: {row['accuracy'][0]:.3f} -> "
            f"{row['accuracy'][-1]:.3f}, {row['seconds']:.0f} s; about {left / 60:.0f} min left",
            flush=True,
        )

    with ThreadPoolExecutor(arguments.jobs) as pool:
        try:
            list(pool.map(one, enumerate(todo)))
        except KeyboardInterrupt:
            stopped = True
            pool.shutdown(cancel_futures=True)
            left = len(todo) - finished
            print(f"stopped with {left} runs to go; the same command goes on", file=sys.stderr)
            return EXIT_INTERRUPT
    return 1 if failed else 0


def report(study: Study, arguments: argparse.Namespace) -> int:
    rows = read_rows(study.results)
    if not rows:
        raise StudyError(f"{study.results} holds no results; run `study.py run` first")
    arms = arguments.arms or list(study.arms)
    print_report(rows, baseline=study.baseline, arms=arms)
    if arguments.plot is not None:
        plot(rows, arms=arms, path=arguments.plot)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0], allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, action in (("run", run), ("report", report)):
        command = commands.add_parser(name)
        command.set_defaults(action=action)
        command.add_argument("study", type=Path)
        command.add_argument("--arms", nargs="+")
    runner, reporter = commands.choices["run"], commands.choices["report"]
    runner.add_argument("--pools", nargs="+")
    runner.add_argument("--seeds", nargs="+", type=int)
    runner.add_argument("--budgets", nargs="+", type=int)
    runner.add_argument("--jobs", type=int, default=2, help="runs at a time, one a core")
    runner.add_argument("--port", type=int, default=29700, help="first rendezvous port")
    runner.add_argument("--work-dir", type=Path, default=ROOT / "runs" / "study")
    reporter.add_argument("--plot", type=Path, help="write the curves to this PNG")
    arguments = parser.parse_args()
    try:
        study = read_study(arguments.study)
        refuse_unknown(study, arguments)
        return arguments.action(study, arguments)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
