"""The first host's name, before anything is joined."""

from __future__ import annotations

import datetime
import os

import pytest
import torch.distributed as dist

from cero_rl.distributed.rendezvous import join


@pytest.mark.covers("first host's name unknown")
def test_an_unknown_first_host_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "no-such.invalid")):
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match=r"MASTER_ADDR no-such\.invalid: "):
        join("gloo", datetime.timedelta(seconds=1.2))
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "'no-such.invalid' is not known here" in said


def test_every_backend_of_one_machine_is_kept_on_the_loopback_interface(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Libraries in a rank open groups of a backend of their own choice."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    join("gloo", datetime.timedelta(seconds=30))
    dist.destroy_process_group()
    assert os.environ["NCCL_SOCKET_IFNAME"] == "lo"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
