"""Two network namespaces joined by one cable: two hosts, as far as sockets can tell. Needs root.

Each has a loopback and one interface named LINK; nothing else is reachable from inside. Files and
processes are shared.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

LINK = "cero0"
ADDRESSES = ("10.99.0.1", "10.99.0.2")


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    namespace: str

    def inside(self, *command: str) -> list[str]:
        """`command` as it is run on this host."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *command]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)


def why_not() -> str | None:
    """Why this machine can't have namespaces; None if it can."""
    name = f"cero{os.getpid()}x"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except FileNotFoundError:
        return "iproute2 is not installed (make slurm)"
    except subprocess.CalledProcessError as error:
        return f"ip netns add: {error.stderr.strip()}"
    return None


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Hosts n1 and n2, gone at the end with the processes' sockets in them."""
    first, second = (
        Host(f"n{i + 1}", ADDRESSES[i], f"cero{os.getpid()}n{i + 1}") for i in range(2)
    )
    _sweep()
    made = []
    try:
        for host in (first, second):
            _ip("netns", "add", host.namespace)
            made.append(host)
        _ip(
            "link",
            "add",
            LINK,
            "netns",
            first.namespace,
            "type",
            "veth",
            "peer",
            "name",
            LINK,
            "netns",
            second.namespace,
        )
        for host in (first, second):
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", LINK)
            for device in ("lo", LINK):
                _ip("-n", host.namespace, "link", "set", device, "up")
        yield first, second
    finally:
        for host in made:
            _end_all(host)
            _ip("netns", "del", host.namespace)


def _end_all(host: Host) -> None:
    """Whatever still runs there was started by us: nobody else knows the namespace."""
    found = subprocess.run(
        ["ip", "netns", "pids", host.namespace],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    for pid in found.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _sweep() -> None:
    """Remove what a killed test run left behind: namespaces named after a process that is no
    more."""
    listed = subprocess.run(
        ["ip", "netns", "list"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    for name, pid in re.findall(r"^(cero(\d+)n\d)\b", listed, re.MULTILINE):
        if not Path(f"/proc/{pid}").exists():
            _end_all(Host(name, "", name))
            _ip("netns", "del", name)
