"""Kill a real training run at every fault point, start it again, and compare what comes out with a
run that nothing happened to.

    make kill-sweep     every point; the table goes to the screen, a JSON row a point to
                        docs/bench/kill_sweep.jsonl
    python tools/kill_sweep.py --points learner.backward checkpoint.renamed

DeepSpeed ZeRO-3 on 2 gloo ranks, the shipped command, on ranks that were imported beforehand.
Compared are sha256 over the exported weights, the logs (of metrics what the clock does not decide)
and the state of the last checkpoint (posterior, duals, ledger, cursor). Also checked: each step's
line is there exactly once in every log, and the posterior holds each logged success exactly once.
Points that a first start does not reach have a preparation of their own (`PREPARED`).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from cero_rl import __version__  # noqa: E402
from cero_rl.job import faults  # noqa: E402
from cero_rl.job.parent import dies_with_me  # noqa: E402

SETTINGS = [
    "scheduler.rounds=6",
    "budget.total_rollouts=384",
    "data.limit=120",
    "data.heldout_limit=8",
    "optimizer.warmup_steps=1",
    "evaluation.every_steps=0",
    "evaluation.samples_per_prompt=1",
    "evaluation.final_samples_per_prompt=1",
    "evaluation.pass_k=[1]",
    "checkpoint.every_steps=2",
    "logging.tensorboard=false",
    "scheduler.step_scale=5",
    "watchdog.stall_seconds=60",
]
RANK_1_STEP_3 = "@rank=1,step=3"
RANK_0_STEP_4 = "@rank=0,step=4"  # a step that saves
RANK_0 = "@rank=0"


def where(point: str) -> str:
    """The rank and step at which a sweep kills: where the point is reached, between the first and
    the last checkpoint."""
    if point.startswith("resume.") or point == "log.cut":
        return RANK_0
    late = ("finish.", "export.", "checkpoint.prune", "checkpoint.replacing")
    if point.startswith(late):
        return "@rank=0,step=6"
    if point.startswith("checkpoint."):
        return "@rank=1,step=4" if point == "checkpoint.written" else RANK_0_STEP_4
    # between the log of a step and its commit
    if point == "log.metrics":
        return RANK_0_STEP_4
    return "@rank=0,step=3" if point.startswith("log.") else RANK_1_STEP_3


@dataclass(frozen=True)
class Before:
    """What happens before the kill: a start that ends as `fault` or `flags` say, then the flags of
    the one that is killed; also_fault goes with the kill."""

    flags: tuple[str, ...] = ()
    fault: str = ""
    then: tuple[str, ...] = ("--resume", "auto")
    also_fault: str = ""


STOPPED = ("--stop-at-step", "4")
GO_BACK = ("--resume", "{run}/checkpoints/step_000002")
PREPARED = {
    "log.cut": Before(fault="log.metrics@rank=0,step=3:sigkill"),
    "resume.set_aside": Before(STOPPED, then=GO_BACK),
    "resume.logs_cut": Before(STOPPED, then=GO_BACK),
    # the commit is there, but is said to have failed, and so made once more
    "checkpoint.replacing": Before(
        STOPPED, then=("--resume", "auto"), also_fault="checkpoint.renamed@rank=0,step=6:raise;"
    ),
}


@dataclass(frozen=True)
class Ended:
    # by rank; a rank that had to be killed because another had left long ago has -9
    codes: list[int]
    texts: list[str]
    seconds: float

    @property
    def text(self) -> str:
        return "".join(self.texts)


def start_rank(line: list[str], environment: dict[str, str], log: Path) -> Any:
    """One rank as a process; its output goes to `log`. The tests start warmer ones."""
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *line],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=dies_with_me(),
        )


class Ranks:
    """The training command on `ranks` processes of this machine, started without a launcher, so
    that a rank's end is its own."""

    def __init__(
        self,
        out: Path,
        name: str,
        *flags: str,
        ranks: int = 2,
        settings: list[str] | None = None,
        fault: str = "",
        port: int | None = None,
    ) -> None:
        line = ["recipes/train_cero.py", "--config", "recipes/digits_cpu.yaml", *flags]
        for setting in [*SETTINGS, f"output_dir={out}", f"name={name}", *(settings or [])]:
            line += ["--set", setting]
        shared = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port or free_port()),
            "WORLD_SIZE": str(ranks),
            faults.VARIABLE: fault,
        }
        self.started = time.monotonic()
        self.logs = [out / f"{name}.{self.started:.3f}.rank{rank}.log" for rank in range(ranks)]
        self.processes = [
            start_rank(line, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, log)
            for rank, log in enumerate(self.logs)
        ]

    def wait(self, *, seconds: float = 240, grace_seconds: float = 40) -> Ended:
        """Until all have ended; those that are left `grace_seconds` after the first that ended, or
        after `seconds`, are killed."""
        end, first_end = time.monotonic() + seconds, None
        while any(process.poll() is None for process in self.processes):
            now = time.monotonic()
            if first_end is None and any(process.poll() is not None for process in self.processes):
                first_end = now
            if now > end or (first_end is not None and now > first_end + grace_seconds):
                for process in self.processes:
                    process.kill()
            time.sleep(0.05)
        texts = [log.read_text(encoding="utf-8") for log in self.logs]
        return Ended(
            [process.wait() for process in self.processes], texts, time.monotonic() - self.started
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(
    out: Path,
    name: str,
    *flags: str,
    ranks: int = 2,
    settings: list[str] | None = None,
    fault: str = "",
) -> Ended:
    return Ranks(out, name, *flags, ranks=ranks, settings=settings, fault=fault).wait()


def last_checkpoint(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("step_*"))


def entries(run_dir: Path, name: str) -> list[dict[str, Any]]:
    lines = (run_dir / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


CLOCK = ("timing_s/", "perf/", "skew/", "step_time", "checkpoint/")


def fingerprint(run_dir: Path) -> str:
    """sha256 over what a run leaves behind; the clock and the machine have no part in it."""
    digest = hashlib.sha256()
    newest = last_checkpoint(run_dir)
    for path in (
        run_dir / "export/model.safetensors",
        run_dir / "evidence.jsonl",
        run_dir / "ledger.jsonl",
        run_dir / "samples.jsonl",
        newest / "state.json",
        newest / "arrays.safetensors",
    ):
        digest.update(path.read_bytes())
    for entry in entries(run_dir, "metrics"):
        kept = {k: v for k, v in entry.items() if not k.startswith(CLOCK)}
        digest.update(json.dumps(kept, sort_keys=True).encode())
    return digest.hexdigest()


def logged_once(run_dir: Path) -> bool:
    """Is each step's line there exactly once, in order, and one last line of the whole run?"""
    metrics = entries(run_dir, "metrics")
    steps = [entry["step"] for entry in metrics if "final" not in entry]
    last = steps[-1]
    return (
        steps == list(range(last + 1))
        and [entry["step"] for entry in metrics if "final" in entry] == [last]
        and all(
            [entry["step"] for entry in entries(run_dir, name)] == list(range(1, last + 1))
            for name in ("ledger", "evidence")
        )
    )


def counted_once(run_dir: Path) -> bool:
    """Is the posterior of the last checkpoint the prior and every success and failure of the
    evidence log, each once?"""
    newest = last_checkpoint(run_dir)
    state, arrays = (
        json.loads((newest / "state.json").read_text(encoding="utf-8")),
        load_file(newest / "arrays.safetensors"),
    )
    wins = arrays["scheduler.posterior_a"] - state["scheduler.prior_a"]
    losses = arrays["scheduler.posterior_b"] - state["scheduler.prior_b"]
    for entry in entries(run_dir, "evidence"):
        for prompt, won, tried in zip(entry["prompt_ids"], entry["successes"], entry["trials"]):
            wins[prompt] -= won
            losses[prompt] -= tried - won
    return bool((abs(wins) < 1e-9).all() and (abs(losses) < 1e-9).all())


@dataclass(frozen=True)
class Row:
    point: str
    where: str
    killed_codes: list[int]
    resumed_from: str
    resumed_codes: list[int]
    sha256: str
    same: bool  # the kill happened, and the restarted run ended as the uninterrupted one
    counted_once: bool
    logged_once: bool

    @property
    def good(self) -> bool:
        return self.same and self.counted_once and self.logged_once


def kill_and_resume(
    out: Path, point: str, wanted: str, settings: list[str] | None = None, at: str | None = None
) -> Row:
    """One line of the sweep: kill at `point`, resume, compare with the fingerprint `wanted`."""
    at, name = at or where(point), point.replace(".", "_") + (at or "")[-1:]
    run_dir = out / name
    before = PREPARED.get(point)
    flags: list[str] = []
    if before is not None:
        train(out, name, *before.flags, settings=settings, fault=before.fault)
        flags = [flag.format(run=run_dir) for flag in before.then]
    fault = f"{before.also_fault if before else ''}{point}{at}:sigkill"
    killed = train(out, name, *flags, settings=settings, fault=fault)
    resumed = train(out, name, "--resume", "auto", settings=settings)
    source = re.search(r"resumed from .*(step_\d+):|begins again at (step 0)", resumed.text)
    ended = resumed.codes == [0, 0]
    found = fingerprint(run_dir) if ended else resumed.text[-300:]
    return Row(
        point,
        at,
        killed.codes,
        (source[1] or source[2]) if source else "",
        resumed.codes,
        found,
        same=found == wanted and -9 in killed.codes,
        counted_once=ended and counted_once(run_dir),
        logged_once=ended and logged_once(run_dir),
    )


def row_text(row: Row) -> str:
    verdict = "same" if row.good else "DIFFERS"
    return (
        f"{row.point:<26} {row.where:<16} {row.killed_codes!s:<10} {row.resumed_from:<13} "
        f"{row.sha256[:16]:<17} {verdict}"
    )


def start_warm() -> None:
    """Ranks as forks of a process that has imported everything, as the tests start theirs."""
    global start_rank
    sys.path.insert(0, str(ROOT / "tests"))
    warm = importlib.import_module("warm_ranks").WarmRank

    def start(line: list[str], environment: dict[str, str], log: Path) -> Any:
        return warm(line, ROOT, environment, log)

    start_rank = start


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Kill a training run at every fault point and compare what the restarted run "
        "ends with."
    )
    parser.add_argument(
        "--points",
        nargs="+",
        default=[point for point in faults.POINTS if not point.startswith("episode.")],
        metavar="POINT",
        help="default: all that a run without an environment reaches",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for all runs of the sweep",
    )
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="FILE",
        help="one JSON row a point, in the place of what was there",
    )
    arguments = parser.parse_args()
    if arguments.rows is not None:
        arguments.rows.write_text("")
    start_warm()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        uncut = train(out, "uncut", settings=arguments.settings)
        if uncut.codes != [0, 0]:
            print(uncut.text)
            return 1
        wanted = fingerprint(out / "uncut")
        print(f"{'killed at':<26} {'where':<16} {'exits':<10} {'resumed from':<13} {'sha256':<17}")
        right = counted_once(out / "uncut") and logged_once(out / "uncut")
        once = "counted once" if right else "COUNTED WRONGLY"
        print(
            f"{'(nothing)':<26} {'':<16} {uncut.codes!s:<10} {'':<13} {wanted[:16]:<17} {once}",
            flush=True,
        )
        versions: dict[str, Any] = {
            "cero_rl": __version__,
            "torch": torch.__version__,
            "settings": arguments.settings,
        }
        good = 0
        for point in arguments.points:
            row = kill_and_resume(out, point, wanted, arguments.settings)
            good += row.good
            print(row_text(row), flush=True)
            if arguments.rows is not None:
                with arguments.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**asdict(row), **versions}) + "\n")
    print(f"{good} of {len(arguments.points)} restarted runs end with the uninterrupted run's hash")
    return 0 if good == len(arguments.points) else 1


if __name__ == "__main__":
    sys.exit(main())
