"""Training ranks forked from a process that has imported everything already.

A rank imports torch, transformers and DeepSpeed for longer than most tests train. Here the standard
library's fork server imports them once a session; a rank is a fork of it that runs the shipped
entry point with its own environment, arguments, directory and output. Nothing of a run is shared.
`imports` names the module of this folder that the server imports: warm_imports, or warm_vllm.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
_servers: dict[str, forkserver.ForkServer] = {}


def _server_of(imports: str) -> forkserver.ForkServer:
    """The fork server whose processes have a module of this folder imported."""
    if imports not in _servers:
        server = forkserver.ForkServer()
        server.set_forkserver_preload([imports])
        before = os.environ.get("PYTHONPATH")
        # the server looks for what it is to import where a new interpreter would
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), before or ""])
        server.ensure_running()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        _servers[imports] = server
    return _servers[imports]


def _start(process: BaseProcess, imports: str) -> None:
    """As a fork of that server: the standard library asks whichever server the module has."""
    usual = forkserver.connect_to_new_process
    forkserver.connect_to_new_process = _server_of(imports).connect_to_new_process
    try:
        process.start()
    finally:
        forkserver.connect_to_new_process = usual


def _run(
    script: str, arguments: list[str], environment: dict[str, str], cwd: str, out: str, err: str
) -> None:
    """In the fork: become the rank."""
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment() -> dict[str, str]:
    kept = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
    }
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
    }


class WarmRank:
    """The part of subprocess.Popen that tests use."""

    def __init__(
        self,
        line: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        out: Path,
        err: Path | None = None,
        *,
        imports: str = "warm_imports",
    ) -> None:
        """line: a script and its arguments, without the interpreter. err None: with the output."""
        script, *arguments = line
        self._process: BaseProcess = multiprocessing.get_context("forkserver").Process(
            target=_run,
            args=(
                str(cwd / script),
                arguments,
                dict(environment),
                str(cwd),
                str(out),
                str(err or out),
            ),
        )
        _start(self._process, imports)
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("a warm rank", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None and self.pid is not None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    line: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    logs: Path,
    *,
    ranks: int,
    seconds: float = 240.0,
    grace_seconds: float = 30.0,
    imports: str = "warm_imports",
) -> subprocess.CompletedProcess[str]:
    """The line on `ranks` ranks that meet on this machine, as the launcher would start them.

    The exit status is that of the first rank that failed; ranks that outlive one by grace_seconds
    are killed. Output is that of all ranks, rank after rank.
    """
    started = time.monotonic()
    shared = {**environment, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    files = [(logs / f"rank{r}.out", logs / f"rank{r}.err") for r in range(ranks)]
    processes = [
        WarmRank(
            line,
            cwd,
            {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            out,
            err,
            imports=imports,
        )
        for rank, (out, err) in enumerate(files)
    ]
    failed_at: float | None = None
    code = 0
    while any(process.poll() is None for process in processes):
        now = time.monotonic()
        ended = [process.poll() for process in processes]
        if failed_at is None and any(ended):
            failed_at = now
            code = next(status for status in ended if status)
        late = failed_at is not None and now > failed_at + grace_seconds
        if late or now > started + seconds:
            for process in processes:
                process.kill()
        time.sleep(0.02)
    code = code or next((p.returncode for p in processes if p.returncode), 0)
    texts = ["".join(f[i].read_text(encoding="utf-8") for f in files) for i in (0, 1)]
    return subprocess.CompletedProcess(list(line), code, *texts)
