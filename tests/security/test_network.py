"""Two ranks on one machine cannot be reached from the network: every socket they listen on is bound
to the loopback address."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cero_rl.config.rollout import is_loopback

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import datetime, os, sys
import torch, torch.distributed as dist
from cero_rl.distributed.rendezvous import join
from cero_rl.zero.launch import prepare_environment
prepare_environment()
join("gloo", datetime.timedelta(seconds=60))
total = torch.ones(1)
dist.all_reduce(total)
print(int(total), os.environ["MASTER_PORT"], flush=True)
sys.stdin.readline()
dist.destroy_process_group()
"""


def listening(pid: int) -> list[str]:
    """Addresses of the sockets that a process listens on, from the kernel's tables."""
    inodes = set()
    for link in list(Path(f"/proc/{pid}/fd").iterdir()):
        with contextlib.suppress(OSError):  # the one that listed the folder is gone again
            inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                raw = bytes.fromhex(fields[1].partition(":")[0])
                words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                found.append(socket.inet_ntop(family, words))
    return found


def start(world_size: int, **variables: str) -> list[subprocess.Popen[str]]:
    kept = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")
    }
    env = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(world_size),
        **variables,
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env={**env, "RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_ranks_of_one_machine_listen_on_the_loopback_address_alone() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = start(2, MASTER_PORT=port)
    try:
        assert [first_line(rank) for rank in ranks] == [f"2 {port}"] * 2
        addresses = [listening(rank.pid) for rank in ranks]
        assert addresses[0], "rank 0 serves the store"
        assert all(is_loopback(address) for found in addresses for address in found), addresses
    finally:
        for rank in ranks:
            rank.communicate("\n", timeout=60)
    assert [rank.returncode for rank in ranks] == [0, 0]


def test_a_single_rank_without_a_port_takes_a_free_one_and_two_of_them_do_not_meet() -> None:
    alone = [*start(1), *start(1)]
    try:
        said = [first_line(rank).split() for rank in alone]
        assert [total for total, _ in said] == ["1", "1"]
        assert len({port for _, port in said}) == 2
        assert all(is_loopback(address) for rank in alone for address in listening(rank.pid))
    finally:
        for rank in alone:
            rank.communicate("\n", timeout=60)


def test_the_table_reader_sees_a_socket_that_all_can_reach() -> None:
    with socket.socket() as open_to_all:
        open_to_all.bind(("", 0))
        open_to_all.listen()
        assert "0.0.0.0" in listening(os.getpid())


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("node-3", False),
        ("0.0.0.0", False),
    ],
)
def test_loopback_addresses(address: str, own: bool) -> None:
    assert is_loopback(address) is own
