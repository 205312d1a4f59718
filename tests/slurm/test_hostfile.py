"""`deepspeed --hostfile` over two hosts: pdsh, a real sshd on each, gloo over the cable between
them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from launch import ROOT, SMALL, environment
from slurm_shared import export_hash, skip_or_fail
from two_hosts import LINK, Host, two_hosts, why_not

pytestmark = pytest.mark.slow

SSHD_CONFIG = """\
ListenAddress {address}
HostKey {dir}/host_key
PidFile {dir}/sshd-{name}.pid
AuthorizedKeysFile {dir}/user_key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""


@dataclass(frozen=True)
class Cluster:
    hosts: tuple[Host, Host]
    dir: Path  # hostfile, ssh_config, environment file


@pytest.fixture(scope="module")
def over_ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    absent = [name for name in ("pdsh", "ssh", "ssh-keygen") if shutil.which(name) is None]
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None:
        absent.append("sshd")
    skip_or_fail(
        f"not installed: {', '.join(absent)}; run make slurm"
        if absent
        else "needs root"
        if os.geteuid()
        else why_not()
    )
    assert sshd is not None
    directory = tmp_path_factory.mktemp("ssh")
    for key in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key)],
            check=True,
            timeout=30,
        )
    host_key = (directory / "host_key.pub").read_text()
    with two_hosts() as hosts, ExitStack() as stack:
        (directory / "known_hosts").write_text(
            "".join(f"{host.address} {host_key}" for host in hosts)
        )
        (directory / "hostfile").write_text("".join(f"{host.address} slots=1\n" for host in hosts))
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks its unprivileged half in
        for host in hosts:
            (directory / f"sshd_config-{host.name}").write_text(
                SSHD_CONFIG.format(address=host.address, dir=directory, name=host.name)
            )
            log = stack.enter_context((directory / f"sshd-{host.name}.log").open("wb"))
            command = host.inside(
                sshd, "-D", "-e", "-f", str(directory / f"sshd_config-{host.name}")
            )
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait, timeout=10)
            stack.callback(process.terminate)
        yield Cluster(hosts, directory)


def ssh_arguments(directory: Path) -> list[str]:
    options = {
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": f"{directory}/known_hosts",
        "LogLevel": "ERROR",
    }
    return [
        "-i",
        f"{directory}/user_key",
        *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
    ]


def test_two_hosts_train_what_one_host_trains(
    over_ssh: Cluster, out: Path, uncut_hash: str
) -> None:
    head, directory = over_ssh.hosts[0], over_ssh.dir
    deadline = time.monotonic() + 20
    for host in over_ssh.hosts:
        while (
            tried := subprocess.run(
                head.inside("ssh", *ssh_arguments(directory), host.address, "true"),
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
        ).returncode:
            assert time.monotonic() < deadline, (
                tried.stderr + (directory / f"sshd-{host.name}.log").read_text()
            )
            time.sleep(0.2)
    env = environment()
    # What the launcher does not carry over by itself goes through its environment file, as
    # docs/cluster.md says.
    carried = {
        "GLOO_SOCKET_IFNAME": LINK,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    (directory / "environment").write_text(
        "".join(f"{name}={value}\n" for name, value in carried.items())
    )
    env |= {
        "DS_ENV_FILE": str(directory / "environment"),
        "PDSH_SSH_ARGS_APPEND": " ".join(ssh_arguments(directory)),
        **carried,
    }
    line = [
        "deepspeed",
        "--hostfile",
        str(directory / "hostfile"),
        "--no_ssh_check",
        "--master_addr",
        head.address,
    ]
    line += [
        "--log_level",
        "warning",
        "recipes/train_cero.py",
        "--config",
        "recipes/digits_cpu.yaml",
    ]
    for setting in [*SMALL, f"output_dir={out}", "name=hostfile"]:
        line += ["--set", setting]
    done = subprocess.run(
        head.inside(*line),
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 2 cpu rank(s)" in done.stdout
    for host in over_ssh.hosts:  # pdsh names the host of each line
        assert f"{host.address}:" in done.stdout + done.stderr
    assert export_hash(out / "hostfile") == uncut_hash
