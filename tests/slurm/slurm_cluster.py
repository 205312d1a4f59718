"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd, all in one directory
and gone at the end. Needs root.

The controller and whoever submits are on host n1. Waits are as short as Slurm takes them:
cred_expire is what a requeued job waits.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from two_hosts import Host, two_hosts

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun")
CONTROLLER_PORT, NODE_PORT = 16817, 16818  # inside the hosts' own namespaces, so nobody else's

CONF = """\
ClusterName=cero
SlurmctldHost={hostname}({address})
SlurmctldPort={controller_port}
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd-%n.log
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool-%n
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket,cred_expire=5
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
MailProg={true}
KillWait=5
SlurmdParameters=config_overrides
MinJobAge=600
InactiveLimit=0
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Slurm:
    """A running cluster and the commands of a user on n1."""

    dir: Path
    hosts: tuple[Host, Host]

    def run(
        self, *command: str, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.hosts[0].inside(*command),
            env={**(env or os.environ), **self.environment()},
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.dir / "slurm.conf"), "PATH": _path()}

    def job(self, job_id: int) -> dict[str, str]:
        """`scontrol show job` as a mapping; raises if Slurm doesn't know it."""
        done = self.run("scontrol", "show", "job", "-o", str(job_id))
        assert done.returncode == 0, done.stderr
        return {
            name: value
            for name, _, value in (field.partition("=") for field in done.stdout.split())
        }

    def wait(
        self, job_id: int, done: Callable[[dict[str, str]], bool], *, what: str, seconds: float = 90
    ) -> dict[str, str]:
        """The job's record once `done` holds."""
        deadline = time.monotonic() + seconds
        while not done(record := self.job(job_id)):
            assert time.monotonic() < deadline, (
                f"job {job_id}: not {what} within {seconds:.0f} s: {record}"
            )
            time.sleep(0.2)
        return record


@contextmanager
def cluster(directory: Path) -> Iterator[Slurm]:
    """Start everything under `directory`; yields when both nodes are idle."""
    with two_hosts() as hosts, ExitStack() as stack:
        slurm = Slurm(directory, hosts)
        (directory / "state").mkdir()
        (directory / "munge.key").write_bytes(secrets.token_bytes(128))
        (directory / "munge.key").chmod(0o400)
        nodes = "\n".join(
            f"NodeName={h.name} NodeAddr={h.address} Port={NODE_PORT} CPUs=2 RealMemory=1000"
            for h in hosts
        )
        conf = CONF.format(
            hostname=socket.gethostname(),
            address=hosts[0].address,
            controller_port=CONTROLLER_PORT,
            dir=directory,
            true=shutil.which("true"),
            nodes=nodes,
        )
        (directory / "slurm.conf").write_text(conf)
        munge = [
            f"--{name}={directory}/munge.{suffix}"
            for name, suffix in (
                ("socket", "socket"),
                ("key-file", "key"),
                ("pid-file", "pid"),
                ("log-file", "log"),
                ("seed-file", "seed"),
            )
        ]
        # --force: the directory need not be one that only munge can reach.
        stack.enter_context(
            _daemon(["munged", "--foreground", "--force", *munge], directory, slurm)
        )
        _until(lambda: (directory / "munge.socket").exists(), "munged answers", directory)
        stack.enter_context(_daemon(hosts[0].inside("slurmctld", "-D"), directory, slurm))
        for host in hosts:
            stack.enter_context(
                _daemon(host.inside("slurmd", "-D", "-N", host.name), directory, slurm)
            )
        _until(
            lambda: slurm.run("sinfo", "-h", "-o", "%D %T").stdout.strip() == "2 idle",
            "two idle nodes",
            directory,
        )
        yield slurm


def _until(ready: Callable[[], bool], what: str, directory: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(
                f"--- {path.name}\n{path.read_text()[-2000:]}"
                for path in sorted(directory.glob("*.log"))
            )
            raise AssertionError(f"{what}: not within {seconds:.0f} s\n{logs}")
        time.sleep(0.1)


@contextmanager
def _daemon(command: list[str], directory: Path, slurm: Slurm) -> Iterator[None]:
    with (directory / "daemons.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **slurm.environment()}
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
