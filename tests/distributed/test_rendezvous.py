"""The first host's name, before anything is joined."""

from __future__ import annotations

import datetime

import pytest

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
