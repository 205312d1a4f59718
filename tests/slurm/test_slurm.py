"""The shipped job script on a real Slurm of two nodes: preempted, requeued, resumed; out of
time; stuck; a rank killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from launch import ROOT, SMALL, environment, lines
from slurm_cluster import Slurm
from slurm_shared import export_hash
from two_hosts import LINK

pytestmark = pytest.mark.slow


def render(
    slurm: Slurm, out: Path, name: str, *flags: str, settings: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """`cero-rl slurm render --submit` as a user on a login node would type it."""
    command = [
        sys.executable,
        "-m",
        "cero_rl",
        "slurm",
        "render",
        "--config",
        "recipes/digits_cpu.yaml",
        "--submit",
    ]
    command += ["--interface", LINK, *flags]
    for setting in [*SMALL, f"output_dir={out}", f"name={name}", *settings]:
        command += ["--set", setting]
    return slurm.run(*command, env=environment(), cwd=ROOT)


def submit(
    slurm: Slurm, out: Path, name: str, *flags: str, nodes: int = 2, settings: Sequence[str] = ()
) -> int:
    """The id of a job of one rank a node."""
    done = render(
        slurm, out, name, "--nodes", str(nodes), "--ranks-per-node", "1", *flags, settings=settings
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"Submitted batch job (\d+)", done.stdout)
    assert found, done.stdout
    return int(found[1])


def wait_for(happened: Callable[[], bool], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


def steps_done(run_dir: Path) -> int:
    """Lines of metrics.jsonl after the first, which is the evaluation before training."""
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") - 1 if path.exists() else 0


def log(out: Path, name: str, job: int, attempt: int | None = None) -> str:
    return (
        out
        / "slurm"
        / (f"{name}-{job}.out" if attempt is None else f"{name}-{job}.attempt-{attempt}.log")
    ).read_text()


def starts(run_dir: Path) -> list[dict]:
    path = run_dir / "attempts.jsonl"
    return [line for line in lines(path) if "start_step" in line] if path.exists() else []


def ends(run_dir: Path) -> list[int]:
    return [line["exit_code"] for line in lines(run_dir / "attempts.jsonl") if "exit_code" in line]


def finished(record: dict[str, str]) -> bool:
    return record["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")


@pytest.mark.covers("SIGUSR1 from the cluster")
def test_preempted_requeued_and_resumed_equals_uncut(
    slurm: Slurm, out: Path, uncut_hash: str
) -> None:
    job, run_dir = submit(slurm, out, "preempted"), out / "preempted"
    wait_for(lambda: steps_done(run_dir) >= 1, "the first step")
    # as --signal=B:USR1 does before the time limit
    assert slurm.run("scancel", "--signal=USR1", "--batch", str(job)).returncode == 0
    between = slurm.wait(
        job, lambda r: r["Restarts"] == "1" and r["JobState"] == "PENDING", what="requeued"
    )
    record = slurm.wait(job, finished, what="finished")
    story = log(out, "preempted", job)
    (first, second), text = starts(run_dir), log(out, "preempted", job, 1)
    tell(story, log(out, "preempted", job, 0), text, between, record, run_dir, out, uncut_hash)
    assert (record["JobState"], record["ExitCode"]) == ("COMPLETED", "0:0"), story
    said = (
        r"attempt 0: saved \(75\), asked by usr1; requeued\n.*attempt 1: starts on "
        r"n\[1-2\].*attempt 1: done\n"
    )
    assert re.search(said, story, re.DOTALL), story
    assert (first["restart_count"], second["restart_count"]) == (0, 1)
    assert 0 < second["start_step"] < 6
    assert f"step_{second['start_step']:06d}: step {second['start_step']}" in text
    assert ends(run_dir) == [75, 0]
    assert export_hash(run_dir) == uncut_hash


def tell(
    batch: str,
    first: str,
    second: str,
    between: dict,
    record: dict,
    run_dir: Path,
    out: Path,
    wanted: str,
) -> None:
    """Print what happened, in the order in which a user would look at it; CERO_SLURM_LOG=FILE
    keeps it."""
    fields = ("JobState", "Reason", "Restarts", "ExitCode", "NodeList", "StartTime", "EndTime")
    shown = [
        "  ".join(f"{name}={one.get(name, '')}" for name in fields) for one in (between, record)
    ]
    text = "\n".join(
        [
            "## slurm/preempted-JOB.out: the job script",
            batch,
            "## slurm/preempted-JOB.attempt-0.log: the ranks, until USR1",
            first,
            "## scontrol show job, after the preemption",
            shown[0] + "\n",
            "## slurm/preempted-JOB.attempt-1.log: the ranks, after the requeue",
            second,
            "## scontrol show job, at the end",
            shown[1] + "\n",
            "## preempted/attempts.jsonl",
            (run_dir / "attempts.jsonl").read_text(),
            "## sha256 of export/model.safetensors",
            f"{export_hash(run_dir)}  preempted, two Slurm nodes",
            f"{wanted}  uninterrupted, two ranks of one host under the deepspeed launcher\n",
        ]
    )
    text = re.sub(
        r"^.*hostname of the client socket cannot be retrieved.*\n",
        "",
        text.replace(str(out), "runs"),
        flags=re.MULTILINE,
    )
    print(text)
    if path := os.environ.get("CERO_SLURM_LOG"):
        Path(path).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def short_of_time(slurm: Slurm, out: Path) -> tuple[int, int]:
    """Two jobs of one node each, side by side: one whose limit ends in the middle, one whose
    limit is too short for any step."""
    many = (
        "scheduler.rounds=2000",
        "budget.total_rollouts=128000",
        "checkpoint.every_steps=0",
        "data.heldout_limit=4",
    )
    many = (*many, "checkpoint.walltime_margin_seconds=90")  # of the 120 s that Slurm gives
    limited = submit(
        slurm, out, "limited", "--time=00:02:00", "--signal-seconds=1", nodes=1, settings=many
    )
    stuck = submit(
        slurm,
        out,
        "stuck",
        nodes=1,
        settings=("checkpoint.walltime_seconds=1", "data.heldout_limit=4"),
    )
    return limited, stuck


@pytest.mark.long
@pytest.mark.covers("walltime budget")
def test_out_of_time_is_saved_and_requeued(
    slurm: Slurm, out: Path, short_of_time: tuple[int, int]
) -> None:
    job, run_dir = short_of_time[0], out / "limited"
    wait_for(lambda: len(starts(run_dir)) == 2, "a second attempt", 120)
    slurm.run("scancel", str(job))
    record = slurm.wait(job, finished, what="cancelled")
    # and scancel is obeyed: no requeue
    assert (record["JobState"], record["Restarts"]) == ("CANCELLED", "1")
    story = log(out, "limited", job)
    assert "attempt 0: saved (75), asked by itself; requeued" in story, story
    assert re.search(r"stopped after step \d+; saved", log(out, "limited", job, 0))
    assert starts(run_dir)[1]["start_step"] > 0


@pytest.mark.long
@pytest.mark.covers("3 restarts without progress")
def test_restarts_without_progress_end_the_job(
    slurm: Slurm, out: Path, short_of_time: tuple[int, int]
) -> None:
    job, run_dir = short_of_time[1], out / "stuck"
    record = slurm.wait(job, finished, what="finished", seconds=180)
    story = log(out, "stuck", job)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == (
        "FAILED",
        "93:0",
        "3",
    ), story
    assert [a["start_step"] for a in starts(run_dir)] == [0, 0, 0]
    assert ends(run_dir) == [75, 75, 75]
    assert "attempt 3: no progress in three restarts (93); not requeued from here" in story, story
    assert "3 restarts in a row without a new committed step, all at step 0" in log(
        out, "stuck", job, 3
    )


def rank_pid(job: int, rank: int) -> int | None:
    """The training process of one rank, found by what Slurm gave it."""
    wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}", "SLURM_STEP_ID=0"}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found = set(path.read_bytes().decode(errors="replace").split("\0"))
            if wanted <= found and b"train_cero.py" in (path.parent / "cmdline").read_bytes():
                return int(path.parent.name)
        except OSError:  # it has ended meanwhile
            continue
    return None


@pytest.mark.covers("node lost")
def test_a_killed_rank_ends_the_job_and_its_peer(slurm: Slurm, out: Path) -> None:
    """On the way there: USR1 at a rank that still starts, which has nothing to save."""
    job, run_dir = submit(slurm, out, "killed"), out / "killed"
    wait_for(
        lambda: rank_pid(job, 0) is not None and rank_pid(job, 1) is not None, "both ranks start"
    )
    slurm.run("scancel", "--signal=USR1", "--batch", str(job))
    slurm.wait(job, lambda r: r["Restarts"] == "1", what="requeued")
    wait_for(lambda: steps_done(run_dir) >= 1, "the first step")
    pid = rank_pid(job, 1)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    record = slurm.wait(job, finished, what="finished", seconds=70)
    story = log(out, "killed", job)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == (
        "FAILED",
        "137:0",
        "1",
    ), story
    assert {a["start_step"] for a in starts(run_dir)} == {0}
    assert "failed with exit code 137; not requeued from here" in story
    assert rank_pid(job, 0) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--nodes", "2", "--ranks-per-node", "1", "--partition", "nowhere"),
            "invalid partition specified: nowhere",
        ),
        (
            ("--nodes", "1", "--gpus-per-node", "1"),
            r"Invalid generic resource \(gres\) specification",
        ),
    ],
)
def test_what_slurm_refuses_is_one_line(
    slurm: Slurm, out: Path, flags: tuple[str, ...], message: str
) -> None:
    done = render(slurm, out, "refused", *flags)
    assert done.returncode == 2, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1, done.stderr
    assert re.search(f"--submit: sbatch refused .*{message}", errors[0]), errors[0]
    assert "Traceback" not in done.stderr


def test_srun_gives_every_rank_its_place(slurm: Slurm) -> None:
    code = "import os; from cero_rl.job.slurm_env import adopt; adopt(os.environ); "
    code += "print(*(os.environ[name] for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')))"
    env = {**environment(), "MASTER_ADDR": slurm.hosts[0].address, "MASTER_PORT": "15000"}
    done = slurm.run(
        "srun", "-N2", "-n4", "--ntasks-per-node=2", sys.executable, "-c", code, env=env, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 0 4", "1 1 4", "2 0 4", "3 1 4"]
    del env["MASTER_ADDR"]
    train = (sys.executable, "recipes/train_cero.py", "--config", "recipes/digits_cpu.yaml")
    alone = slurm.run("srun", "-N2", "-n2", *train, env=env, cwd=ROOT)
    assert alone.returncode == 2, alone.stdout + alone.stderr
    assert "MASTER_ADDR and MASTER_PORT: not set for 2 tasks of one srun" in alone.stderr
