"""Leaving a process: the status of the work is the status of the process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A rank that still holds its group when it leaves, right after a collective: ordinary shutdown
# aborts about every second pair of these.
RANK = """
import datetime, sys
import torch, torch.distributed as dist
from cero_rl.job.process import run_and_exit

def work():
    rank, port = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2,
                            timeout=datetime.timedelta(seconds=60))
    global held
    held = dist.group.WORLD
    for _ in range(20):
        dist.all_reduce(torch.ones(1000))
    dist.all_reduce(torch.zeros(1, dtype=torch.int64))
    dist.destroy_process_group()
    print("work is done")
    return 7 if rank else 0

run_and_exit(work)
"""


def run(code: str, *arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
def test_ranks_that_hold_their_group_leave_with_their_own_status():
    for _ in range(6):
        port = free_port()
        ranks = [run(RANK, str(rank), port) for rank in range(2)]
        ended = [(rank.communicate(timeout=120), rank.returncode) for rank in ranks]
        assert [status for _, status in ended] == [0, 7], ended
        assert [out for (out, _), _ in ended] == ["work is done\n"] * 2


@pytest.mark.parametrize("first_line", ["", "import torch"])
@pytest.mark.parametrize(
    ("action", "status", "said"),
    [
        ("lambda: 3", 3, ""),
        ("lambda: sys.exit(4)", 4, ""),
        ("lambda: sys.exit()", 0, ""),
        ("lambda: sys.exit('why')", 1, "why"),
        ("lambda: 1 / 0", 1, "ZeroDivisionError"),
    ],
)
def test_status_streams_and_exit_handlers(first_line, action, status, said):
    code = f"""
import atexit, sys
{first_line}
from cero_rl.job.process import run_and_exit
atexit.register(lambda: print("handler"))
print("out", end=" ")
run_and_exit({action})
"""
    process = run(code)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert out == "out handler\n"
    assert said in err


def test_a_reader_that_leaves_is_no_error_of_ours():
    code = (
        "from cero_rl.job.process import run_and_exit\nrun_and_exit(lambda: [print('x' * 100) "
        "for _ in range(10**5)] and 0)"
    )
    process = run(code)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
