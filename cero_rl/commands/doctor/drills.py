"""What a run depends on, tried for real in a few seconds each: a collective on 2 ranks, a reward
that hangs, a weight sync.

Ranks are processes of their own (`peer`), with a limit after which they are killed: a drill that
hangs is a finding, not a hang.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cero_rl import redact
from cero_rl.commands.doctor.finding import Finding
from cero_rl.config.reward import RewardConfig
from cero_rl.job.parent import dies_with_me
from cero_rl.rewards.base import RewardItem
from cero_rl.rewards.pool import RewardPool

TINY_MODEL = Path(__file__).resolve().parents[3] / "recipes/assets/tiny_digits"
# start of two interpreters included; the collectives themselves take a second or two
_COLLECTIVE_SECONDS = 60.0
_SYNC_SECONDS = 240.0
_REWARD_SECONDS = 1.0
_PROMISED_SECONDS = 0.5  # beyond the limit
_HANGS = """
import os, time
def hang(solution_str, ground_truth):
    with open({pid!r}, "w") as file: file.write(str(os.getpid()))
    while True: time.sleep(1000)
"""


def _run_peers(
    what: str, world_size: int, seconds: float, *, on_gpu: bool, arguments: tuple[str, ...] = ()
) -> list[dict[str, Any]] | str:
    """Every rank's answer, or why there is none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    package_root = str(Path(__file__).resolve().parents[3])
    env = {
        **os.environ,
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")])),
    }
    if not on_gpu:
        env |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    line = [sys.executable, "-m", "cero_rl.commands.doctor.peer", what, *arguments]
    deadline = time.monotonic() + seconds
    ranks = [
        subprocess.Popen(
            line,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=dies_with_me(),
        )
        for rank in range(world_size)
    ]
    try:
        ended = [
            (*rank.communicate(timeout=max(0.1, deadline - time.monotonic())), rank.returncode)
            for rank in ranks
        ]
    except subprocess.TimeoutExpired:
        return f"no end within {seconds:.0f} s"
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    answers = []
    for out, err, code in ended:
        if code != 0:
            return redact.text((err.strip().splitlines() or [f"exit status {code}"])[-1])
        answers.append(json.loads(out.splitlines()[-1]))
    return answers


def collective() -> Iterator[Finding]:
    import torch

    on_gpu = torch.cuda.device_count() >= 2
    backend, begun = "nccl" if on_gpu else "gloo", time.monotonic()
    answers = _run_peers("collective", 2, _COLLECTIVE_SECONDS, on_gpu=on_gpu)
    name = f"{backend} x 2"
    if isinstance(answers, str):
        remedy = (
            "set NCCL_DEBUG=INFO to see why"
            if on_gpu
            else "is the loopback interface up, is GLOO_SOCKET_IFNAME set wrongly?"
        )
        yield Finding("bad", name, f"{answers}; {remedy}")
        return
    wrong = [a["wrong"] for a in answers if a["wrong"]]
    if wrong:
        yield Finding("bad", name, f"two ranks do not agree: {wrong[0]}; do not train here")
        return
    rate = min(a["mib_per_second"] for a in answers)
    yield Finding(
        "ok",
        name,
        f"sums, counts and texts agree; all-reduce at {rate:.0f} MiB/s "
        f"({time.monotonic() - begun:.1f} s in all)",
    )


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def reward() -> Iterator[Finding]:
    """A reward function that never returns, in the pool that a run uses."""
    with tempfile.TemporaryDirectory(prefix="cero-doctor-") as folder:
        pid_file, plugin = Path(folder) / "pid", Path(folder) / "hangs.py"
        plugin.write_text(_HANGS.format(pid=str(pid_file)), encoding="utf-8")
        with RewardPool(
            RewardConfig(function=f"{plugin}:hang", timeout_seconds=_REWARD_SECONDS, workers=1)
        ) as pool:
            pool.wait_ready()
            begun = time.monotonic()
            result = pool.score([RewardItem("1+1=", "2", "2", "doctor", {})])
            seconds = time.monotonic() - begun
        pid = int(pid_file.read_text()) if pid_file.exists() else None
    if pid is None or result.counts.timeouts != 1 or _runs(pid):
        text = (
            f"a hanging reward was not killed ({result.counts}, process {pid}); rewards need "
            "Linux' signals and /proc"
        )
        yield Finding("bad", "reward timeout", text)
        return
    text = (
        f"a reward that hangs was killed {seconds:.2f} s after it began, limit "
        f"{_REWARD_SECONDS:g} s"
    )
    late = seconds > _REWARD_SECONDS + _PROMISED_SECONDS
    yield Finding(
        "note" if late else "ok",
        "reward timeout",
        f"{text}; later than promised, this machine is busy" if late else text,
    )


def sync() -> Iterator[Finding]:
    """The learner's weights into a sampler that held others; then both must say the same of a
    few tokens."""
    import torch

    if not TINY_MODEL.is_dir():
        yield Finding(
            "note",
            "sync parity",
            "left out: recipes/assets/tiny_digits is not beside the package; run it in a checkout",
        )
        return
    engine = "vllm" if importlib.util.find_spec("vllm") is not None else "transformers"
    answers = _run_peers(
        "sync",
        1,
        _SYNC_SECONDS,
        on_gpu=torch.cuda.is_available(),
        arguments=(str(TINY_MODEL), engine),
    )
    if isinstance(answers, str):
        yield Finding("bad", "sync parity", f"{engine}: {answers}; see docs/rollout.md")
        return
    before, after = answers[0]["gap_before"], answers[0]["gap_after"]
    text = (
        f"{engine}: sampler and learner differ by {after:.1e} nats a token after the sync, "
        f"{before:.1e} before"
    )
    yield Finding("ok", "sync parity", text)
