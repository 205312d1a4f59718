"""Where the ranks of a run meet. On one machine nothing of it can be reached from the network.

torch's store listens on every interface, and gloo on the one of the host's name, whatever
MASTER_ADDR says. Where MASTER_ADDR is this machine's loopback address, the store gets a socket that
is bound to it, and gloo and NCCL are told to use the loopback interface.
"""

from __future__ import annotations

import datetime
import os
import socket
import time

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from cero_rl.config.rollout import is_loopback
from cero_rl.errors import tell

_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # vLLM opens gloo groups on GPUs too
_LOOPBACK_INTERFACE = "lo"
_NAME_SECONDS = 300.0


def _wait_for_name(address: str, seconds: float) -> None:
    """A cluster may publish the first host's name after this one has started; torch would print a
    warning a second. Raises OSError when the time is over."""
    end, said = time.monotonic() + seconds, False
    while True:
        try:
            socket.getaddrinfo(address, None)
            return
        except OSError as error:
            if time.monotonic() > end:
                raise OSError(f"MASTER_ADDR {address}: {error}") from None
            if not said and os.environ.get("RANK", "0") == "0":
                what = f"MASTER_ADDR {address!r} is not known here ({error}); waiting for it"
                tell(f"{what}, at most {seconds:g} s")
            said = True
            time.sleep(1.0)


def join(backend: str, timeout: datetime.timedelta) -> None:
    """Join the process group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe; port 0 is
    any free one, for a single rank.

    Raises OSError or RuntimeError: the port is taken, or a rank does not come.
    """
    address = os.environ["MASTER_ADDR"]
    _wait_for_name(address, min(timeout.total_seconds(), _NAME_SECONDS))
    if is_loopback(address):
        for name in _INTERFACES:
            os.environ.setdefault(name, _LOOPBACK_INTERFACE)
    if not is_loopback(address) or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        dist.init_process_group(backend, timeout=timeout)
        return
    rank, world_size, port = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")
    )
    listening = None
    if rank == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(("127.0.0.1", port))
            port = bound.getsockname()[1]
            listening = bound.detach()  # the store closes it
    os.environ["MASTER_PORT"] = str(port)
    store = TCPStore(
        "127.0.0.1",
        port,
        world_size,
        rank == 0,
        timeout,
        multi_tenant=True,
        master_listen_fd=listening,
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
