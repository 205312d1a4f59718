"""CERO against uniform at the same number of generated rollouts, on paired seeds.

Held-out accuracy along the whole run, with 95 % intervals. Each arm of each seed is one real
training run (one rank, ZeRO-3) of a recipe. A finished run is one line of the results file, so a
sweep that was stopped goes on where it was. Both arms of a seed share the model, the split and the
evaluation's draws.

    python tools/compare.py run  --pool unfiltered --seeds 8 --jobs 2
    python tools/compare.py report
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "bench" / "compare.jsonl"
POOLS = {
    "unfiltered": "recipes/assets/digits_unfiltered.jsonl",
    "balanced": "recipes/assets/digits_balanced.jsonl",
}
# Evaluated along the way with the same samples a prompt throughout, so that a curve is made of like
# points.
SETTINGS = [
    "evaluation.every_steps=20",
    "evaluation.samples_per_prompt=2",
    "evaluation.final_samples_per_prompt=2",
    "evaluation.pass_k=[1]",
    "checkpoint.every_steps=0",
    "checkpoint.export=false",
    "logging.tensorboard=false",
    "logging.sample_dumps=false",
]
# What each arm changes in the recipe. "cero" is the method as published, with spend_down as in all
# recipes.
ARMS: dict[str, list[str]] = {
    "uniform": ["scheduler.name=uniform"],
    "cero": ["scheduler.step_scale=1"],
    "cero_step5": ["scheduler.step_scale=5"],
    "cero_good": [
        "scheduler.step_scale=5",
        "scheduler.cap_shares=4",
        "scheduler.refit_prior_every=5",
    ],
    "thompson": ["scheduler.name=thompson", "scheduler.forgetting=0.98"],
    "cero_forget": ["scheduler.step_scale=5", "scheduler.forgetting=0.9"],
}


@dataclass(frozen=True)
class Job:
    pool: str
    arm: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str, int, str]:
        return (self.pool, self.arm, self.seed, " ".join(self.overrides))


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spending(evidence: Path, pool: str) -> dict[str, dict[str, float]]:
    """Where a run's rollouts went, by kind of prompt (unfiltered pool) or family: groups a prompt,
    share of all rollouts, share of live groups, and share of the signal, sum of n p (1 - p) over
    groups."""
    prompts = [json.loads(line) for line in (ROOT / POOLS[pool]).read_text().splitlines()]
    label = np.array([row["kind" if pool == "unfiltered" else "family"] for row in prompts])
    groups, rollouts, live, signal = np.zeros((4, len(prompts)))
    for line in evidence.read_text().splitlines():
        entry = json.loads(line)
        ids, wins, tries = (np.array(entry[key]) for key in ("prompt_ids", "successes", "trials"))
        groups[ids] += 1
        rollouts[ids] += entry["generated"]
        live[ids] += (wins > 0) & (wins < tries)
        signal[ids] += wins * (tries - wins) / np.maximum(tries, 1)
    result = {}
    for name in np.unique(label):
        own = label == name
        result[str(name)] = {
            "groups_per_prompt": round(float(groups[own].mean()), 3),
            "rollout_share": round(float(rollouts[own].sum() / rollouts.sum()), 4),
            "live_share": round(float(live[own].sum() / groups[own].sum()), 4),
            "signal_share": round(float(signal[own].sum() / signal.sum()), 4),
        }
    return result


def run_job(job: Job, *, recipe: str, port: int, work_dir: Path) -> dict[str, Any]:
    """One training run; returns its result row. Raises RuntimeError with the end of its log if it
    fails."""
    name = f"{job.pool}-{job.arm}-{job.seed}"
    settings = [
        *(
            f"{key}={value}"
            for key, value in {"name": name, "output_dir": str(work_dir), "seed": job.seed}.items()
        ),
        f"data.source={POOLS[job.pool]}",
        *SETTINGS,
        *ARMS[job.arm],
        *job.overrides,
    ]
    command = [sys.executable, "recipes/train_cero.py", "--config", recipe, "--overwrite"]
    for setting in settings:
        command += ["--set", setting]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(port),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }
    started = time.monotonic()
    log = work_dir / f"{name}.log"
    work_dir.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        status = subprocess.run(
            command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, check=False
        ).returncode
    if status:
        raise RuntimeError(
            f"{name} ended with exit code {status}: " + "\n".join(log.read_text().splitlines()[-5:])
        )
    lines = [
        json.loads(line) for line in (work_dir / name / "metrics.jsonl").read_text().splitlines()
    ]
    accuracy = [
        (m["budget/spent_rollouts"], v)
        for m in lines
        for k, v in m.items()
        if k.startswith("eval/avg@")
    ]
    steps = [m for m in lines if "cero/effective_group_rate" in m]
    return {
        "pool": job.pool,
        "arm": job.arm,
        "seed": job.seed,
        "overrides": " ".join(job.overrides),
        "rollouts": [a for a, _ in accuracy],
        "accuracy": [round(v, 5) for _, v in accuracy],
        "effective_group_rate": round(
            float(np.mean([m["cero/effective_group_rate"] for m in steps])), 4
        ),
        "entropy_last10": round(float(np.mean([m["entropy"] for m in steps[-10:]])), 4),
        "proxy_rank_corr": round(
            float(
                np.mean(
                    [
                        m["cero/proxy_rank_corr"]
                        for m in steps
                        if m["cero/proxy_rank_corr"] is not None
                    ]
                )
            ),
            4,
        ),
        "spending": spending(work_dir / name / "evidence.jsonl", job.pool),
        "train_reward_last10": round(float(np.mean([m["reward"] for m in steps[-10:]])), 4),
        "spent_rollouts": lines[-1]["budget/spent_rollouts"],
        "total_rollouts": lines[-1]["budget/total_rollouts"],
        "steps": len(steps),
        "seconds": round(time.monotonic() - started, 1),
    }


def run(arguments: argparse.Namespace) -> int:
    done = {
        (r["pool"], r["arm"], r["seed"], r["overrides"]) for r in read_results(arguments.results)
    }
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    jobs = [
        Job(pool, arm, seed, tuple(arguments.overrides))
        for seed in seeds
        for pool in arguments.pool
        for arm in arguments.arm
    ]
    todo = [job for job in jobs if job.key not in done]
    print(
        f"{len(jobs)} runs, {len(jobs) - len(todo)} already in {arguments.results.name}", flush=True
    )
    started, finished = time.monotonic(), 0

    def one(numbered: tuple[int, Job]) -> None:
        nonlocal finished
        index, job = numbered
        row = run_job(
            job, recipe=arguments.recipe, port=arguments.port + index, work_dir=arguments.work_dir
        )
        with arguments.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        finished += 1
        left = (time.monotonic() - started) / finished * (len(todo) - finished)
        print(
            f"[{finished}/{len(todo)}] {job.pool} {job.arm} seed {job.seed}: "
            f"{row['accuracy'][0]:.3f} -> {row['accuracy'][-1]:.3f}, "
            f"effective groups {row['effective_group_rate']:.0%}, {row['seconds']:.0f} s; "
            f"about {left / 60:.0f} min left",
            flush=True,
        )

    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, enumerate(todo)))
    return 0


@dataclass(frozen=True)
class Paired:
    """Difference arm - uniform over seeds that have both; [E] along the evaluations (rollouts
    spent)."""

    rollouts: np.ndarray
    mean: np.ndarray
    half_width: np.ndarray  # of the 95 % t interval
    curve_mean: float  # average over the evaluations after the first: the whole run in one number
    curve_half_width: float
    seeds: int


def paired(rows: list[dict[str, Any]], pool: str, arm: str, overrides: str) -> Paired | None:
    by_seed: dict[str, dict[int, dict[str, Any]]] = {"uniform": {}, arm: {}}
    for row in rows:
        if row["pool"] == pool and row["overrides"] == overrides and row["arm"] in by_seed:
            by_seed[row["arm"]][row["seed"]] = row
    seeds = sorted(by_seed["uniform"].keys() & by_seed[arm].keys())
    if len(seeds) < 2:
        return None
    difference = np.array(
        [np.subtract(by_seed[arm][s]["accuracy"], by_seed["uniform"][s]["accuracy"]) for s in seeds]
    )
    quantile = float(stats.t.ppf(0.975, len(seeds) - 1)) / np.sqrt(len(seeds))
    along = difference[:, 1:].mean(axis=1)
    return Paired(
        np.array(by_seed[arm][seeds[0]]["rollouts"]),
        difference.mean(axis=0),
        quantile * difference.std(axis=0, ddof=1),
        float(along.mean()),
        float(quantile * along.std(ddof=1)),
        len(seeds),
    )


def report(arguments: argparse.Namespace) -> int:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_results(arguments.results)
    pools = [p for p in POOLS if any(r["pool"] == p for r in rows)]
    if not pools:
        print(
            f"error: {arguments.results} holds no results; run `python tools/compare.py run` first",
            file=sys.stderr,
        )
        return 3
    overrides = " ".join(arguments.overrides)
    figure, axes = plt.subplots(
        2,
        len(pools),
        figsize=(5.2 * len(pools), 7),
        squeeze=False,
        sharex="col",
        layout="constrained",
    )
    print(
        "| pool | arm | seeds | effective groups | held-out start | end | end - uniform "
        "(95 %) | along the run - uniform (95 %) |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for column, pool in enumerate(pools):
        arms = [
            a
            for a in ARMS
            if any(
                r["pool"] == pool and r["arm"] == a and r["overrides"] == overrides for r in rows
            )
        ]
        for arm in arms:
            own = [
                r
                for r in rows
                if r["pool"] == pool and r["arm"] == arm and r["overrides"] == overrides
            ]
            accuracy = np.array([r["accuracy"] for r in own])
            groups = np.mean([r["effective_group_rate"] for r in own])
            color = f"C{list(ARMS).index(arm)}"
            axes[0, column].plot(
                own[0]["rollouts"],
                accuracy.mean(axis=0),
                label=f"{arm} ({len(own)} seeds)",
                color=color,
            )
            cells = ["", ""]
            if arm != "uniform" and (pair := paired(rows, pool, arm, overrides)) is not None:
                axes[1, column].plot(
                    pair.rollouts, pair.mean, label=f"{arm} - uniform", color=color
                )
                low, high = pair.mean - pair.half_width, pair.mean + pair.half_width
                axes[1, column].fill_between(pair.rollouts, low, high, alpha=0.2, color=color)
                cells = [
                    f"{pair.mean[-1]:+.4f} +- {pair.half_width[-1]:.4f}",
                    f"{pair.curve_mean:+.4f} +- {pair.curve_half_width:.4f}",
                ]
            print(
                f"| {pool} | {arm} | {len(own)} | {groups:.1%} | "
                f"{accuracy[:, 0].mean():.3f} | {accuracy[:, -1].mean():.3f} "
                f"| {cells[0]} | {cells[1]} |"
            )
        axes[0, column].set_title(f"{pool} pool")
        axes[1, column].axhline(0.0, color="grey", linewidth=0.8)
        axes[1, column].set_xlabel("rollouts generated for training")
        for axis in axes[:, column]:
            axis.legend(fontsize=8)
            axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("held-out accuracy (sampled, T = 1)")
    axes[1, 0].set_ylabel("paired difference, 95 % interval")
    figure.savefig(arguments.plot, dpi=110)
    _print_spending(rows, overrides)
    print(f"\nplot: {arguments.plot.name}")
    return 0


def _print_spending(rows: list[dict[str, Any]], overrides: str) -> None:
    print(
        "\n| pool | prompts | arm | groups a prompt | share of rollouts | live groups | "
        "share of the signal |"
    )
    print("|---|---|---|---|---|---|---|")
    for pool in POOLS:
        by_arm = {
            a: [
                r
                for r in rows
                if r["pool"] == pool and r["arm"] == a and r["overrides"] == overrides
            ]
            for a in ARMS
        }
        for name in sorted(
            {name for own in by_arm.values() for row in own for name in row["spending"]}
        ):
            for arm, own in by_arm.items():
                if own:
                    mean = {
                        key: float(np.mean([r["spending"][name][key] for r in own]))
                        for key in own[0]["spending"][name]
                    }
                    print(
                        f"| {pool} | {name} | {arm} | {mean['groups_per_prompt']:.2f} | "
                        f"{mean['rollout_share']:.1%} "
                        f"| {mean['live_share']:.0%} | {mean['signal_share']:.1%} |"
                    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, action in (("run", run), ("report", report)):
        command = commands.add_parser(name)
        command.set_defaults(action=action)
        command.add_argument("--results", type=Path, default=RESULTS)
        command.add_argument(
            "--set",
            dest="overrides",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="for all arms",
        )
    runner, reporter = commands.choices["run"], commands.choices["report"]
    runner.add_argument("--pool", nargs="+", choices=list(POOLS), default=list(POOLS))
    runner.add_argument("--arm", nargs="+", choices=list(ARMS), default=["uniform", "cero"])
    runner.add_argument("--seeds", type=int, default=8)
    runner.add_argument("--first-seed", type=int, default=0)
    runner.add_argument(
        "--jobs", type=int, default=2, help="runs at a time; no more than there are cores"
    )
    runner.add_argument("--recipe", default="recipes/quickstart_cpu.yaml")
    runner.add_argument("--port", type=int, default=29700, help="first rendezvous port")
    runner.add_argument("--work-dir", type=Path, default=ROOT / "runs" / "compare")
    reporter.add_argument("--plot", type=Path, default=ROOT / "docs" / "compare.png")
    arguments = parser.parse_args()
    return arguments.action(arguments)


if __name__ == "__main__":
    sys.exit(main())
