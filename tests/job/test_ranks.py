"""The supervisor of ranks, and ranks whose launcher is gone: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm_ranks

from cero_rl.job.parent import parent_of
from cero_rl.job.ranks import Ranks, environments, worst_code

ROOT = Path(__file__).resolve().parents[2]
# A rank that saves for a moment when it is told to stop, and notes which signal told it.
RANK = """
import os, pathlib, signal, sys, time
from cero_rl.job.parent import watch_launcher
from cero_rl.job.stopping import Interrupt
out, extra = pathlib.Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
rank = os.environ["RANK"]
with Interrupt() as interrupt:
    watch_launcher()
    (out / f"ready{rank}").write_text(str(os.getpid()))
    exec(extra)
    try:
        while interrupt.exit_code is None:
            time.sleep(0.01)
        time.sleep(0.2)
    except KeyboardInterrupt:
        os._exit(130)
    (out / f"saved{rank}").write_text(str(interrupt.exit_code))
sys.exit(interrupt.exit_code)
"""
LAUNCH = """
import sys
from cero_rl.job.parent import parent_of
from cero_rl.job.ranks import Ranks, environments
with Ranks([sys.executable, "-c", {rank!r}, *sys.argv[1:]], environments(2, 1)) as running:
    sys.exit(running.wait())
"""


def launcher(out: Path, extra: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH.format(rank=RANK), str(out), extra],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end, "waited for 30 s"
        time.sleep(0.02)


def ready(out: Path) -> list[int]:
    files = [out / f"ready{rank}" for rank in range(2)]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.covers("signal to the launcher alone")
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 75),
        (signal.SIGUSR1, 75),
        (signal.SIGHUP, 75),
    ],
)
def test_a_signal_to_the_launcher_is_everyone_s_and_the_save_is_waited_for(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    process = launcher(tmp_path)
    ready(tmp_path)
    process.send_signal(number)
    assert process.wait(30) == code
    assert [(tmp_path / f"saved{rank}").read_text() for rank in range(2)] == [str(code)] * 2


@pytest.mark.covers("signal during the start")
def test_a_signal_between_two_starts_reaches_the_ranks_that_come_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def start_and_be_told(*words: Any, **how: Any) -> Any:
        process = start(*words, **how)
        if how["env"]["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_be_told)
    own = environments(2, 1)
    with Ranks([sys.executable, "-c", "import time; time.sleep(60)"], own) as running:
        assert running.wait() == 128 + signal.SIGTERM


@pytest.mark.covers("Ctrl-C twice")
def test_a_second_ctrl_c_ends_the_ranks_before_their_save(tmp_path: Path) -> None:
    slow = "class Slow:\n    exit_code = None\ninterrupt = Slow()"
    process = launcher(tmp_path, slow)
    ready(tmp_path)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert process.wait(30) == 130
    assert not list(tmp_path.glob("saved*"))


@pytest.mark.covers("launcher killed")
def test_ranks_of_a_launcher_that_was_killed_save_and_end(tmp_path: Path) -> None:
    process = launcher(tmp_path)
    ranks = ready(tmp_path)
    process.kill()
    process.wait()
    wait_for(lambda: all(gone(rank) for rank in ranks))
    assert [(tmp_path / f"saved{rank}").read_text() for rank in range(2)] == ["75"] * 2


@pytest.mark.slow
@pytest.mark.covers("signal to the launcher alone")
def test_ranks_of_deepspeeds_launcher_save_and_end_when_it_is_gone(tmp_path: Path) -> None:
    """SIGTERM ends the outer of its two processes at once, as of any program that does not look."""
    # DeepSpeed puts --local_rank first
    (tmp_path / "rank.py").write_text(
        RANK.replace("sys.argv[1]", "sys.argv[2]", 1).replace("exec(extra)", "")
    )
    words = ["deepspeed", "--num_accelerators", "2", "--log_level", "error"]
    process = subprocess.Popen(
        [*words, "--master_port", "1", str(tmp_path / "rank.py"), str(tmp_path)],
        env=warm_ranks.environment(),
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    ranks = ready(tmp_path)
    inner = parent_of(ranks[0])
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    wait_for(lambda: all(gone(pid) for pid in (*ranks, inner)))
    assert "75" in {file.read_text() for file in tmp_path.glob("saved*")}


def test_what_one_rank_ends_with_is_the_whole_s(tmp_path: Path) -> None:
    """The other one says what it met, in its own time."""
    extra = "sys.exit(5) if rank == '0' else (time.sleep(0.3), sys.exit(6))"
    command = [sys.executable, "-c", RANK, str(tmp_path), extra]
    with Ranks(command, environments(2, 1)) as running:
        assert running.wait() == 5


def test_a_rank_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cero_rl.job.ranks._LINGER_SECONDS", 0.3)
    extra = "os.kill(os.getpid(), 9) if rank == '1' else time.sleep(60)"
    command = [sys.executable, "-c", RANK, str(tmp_path), extra]
    with Ranks(command, environments(2, 1)) as running:
        assert running.wait() == 137
    said = capfd.readouterr().err
    assert "rank 1 was ended by SIGKILL" in said
    assert "rank(s) 0 did not end and are killed" in said


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ([], 0),
        ([0, 0], 0),
        ([75, 75], 75),
        ([130, 0], 130),
        ([75, 4], 4),
        ([-9, 6], 6),
        ([1, 75], 1),
        ([-9, 0], 137),
        ([6, 5], 6),
        ([93, 93], 93),
    ],
)
def test_the_worst_code_is_a_documented_one_where_there_is_one(codes: list[int], worst: int):
    assert worst_code(codes) == worst


@pytest.mark.covers("signal during the start")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_before_the_first_step_ends_with_the_documented_code(
    number: signal.Signals, code: int
) -> None:
    words = "import time; from cero_rl.job.stopping import leave_at_once; leave_at_once()"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{words}; print('ready', flush=True); time.sleep(60)"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert said == "stopped before the first step; there was nothing to save\n"


@pytest.mark.covers("simulation killed")
@pytest.mark.parametrize("begun", [False, True])
def test_workers_of_a_simulation_end_with_it(begun: bool) -> None:
    words = ["simulate", "--suite", "rivals", "--seeds", "50", "--processes", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cero_rl", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def workers() -> list[int]:
        below = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
        return [p for p in below if parent_of(p) == process.pid and "spawn_main" in command(p)]

    def command(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return ""

    def ready() -> bool:  # numpy is loaded: the worker has begun
        maps = [Path(f"/proc/{pid}/maps") for pid in workers()]
        return len(maps) == 2 and all(not begun or "numpy" in m.read_text() for m in maps)

    wait_for(ready)
    time.sleep(0.5 * begun)
    held = workers()
    process.kill()
    process.wait()
    wait_for(lambda: all(gone(pid) for pid in held))


CHILD = """
import pathlib, sys, time
from cero_rl.job import parent
if sys.argv[3] == "watch":
    parent._kernel_kills = lambda number: False
pathlib.Path(sys.argv[2]).write_text("started")
time.sleep(float(sys.argv[4]))
parent.die_with_parent(int(sys.argv[1]))
pathlib.Path(sys.argv[2]).write_text("follows")
while True:
    sum(range(10000))
"""


@pytest.mark.parametrize("how", ["kernel", "watch"])
@pytest.mark.parametrize("late", [False, True])
def test_a_process_ends_with_its_parent(tmp_path: Path, how: str, late: bool) -> None:
    """`late`: the parent is gone before its child asks to follow it."""
    said = tmp_path / "said"
    code = f"""
import os, subprocess, sys
line = [sys.executable, "-c", {CHILD!r}, str(os.getpid()), {str(said)!r}, {how!r}, "{5 * late}"]
print(subprocess.Popen(line).pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wanted = "started" if late else "follows"
    wait_for(lambda: said.exists() and said.read_text() == wanted)
    assert not gone(child)
    parent.kill()
    parent.communicate()
    wait_for(lambda: gone(child))
    assert said.read_text() == wanted
