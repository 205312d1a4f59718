"""Peak memory by phase, on this process."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cero_rl.memory import peaks as module
from cero_rl.memory.peaks import Peaks

MIB = 2**20


def hold(mib: int) -> np.ndarray:
    return np.ones(mib * MIB // 8)


def test_a_phase_is_told_with_what_was_freed_in_it() -> None:
    peaks = Peaks(torch.device("cpu"))
    with peaks.phase("rollout"):
        large = hold(256)
        del large
    with peaks.phase("sync"):
        small = hold(64)
        del small
    taken = peaks.take()
    assert taken.keys() == {"rollout", "sync"}
    assert 240 * MIB < taken["rollout"] - peaks.before < 300 * MIB
    assert 48 * MIB < taken["sync"] - peaks.before < 110 * MIB
    assert peaks.take() == {}
    assert peaks.resident() >= taken["rollout"]


def test_what_happens_inside_counts_outside_and_what_was_before_does_not() -> None:
    peaks = Peaks(torch.device("cpu"))
    before = hold(256)
    del before
    with peaks.phase("learner"):
        with peaks.phase("optimizer"):
            inside = hold(64)
            del inside
        outside = hold(128)
        del outside
    taken = peaks.take()
    assert taken["learner"] - taken["optimizer"] > 40 * MIB
    assert taken["learner"] - peaks.before < 200 * MIB


def test_a_note_is_what_happened_since_the_last_phase() -> None:
    peaks = Peaks(torch.device("cpu"))
    built = hold(128)
    peaks.note("build")
    assert peaks.take()["build"] - peaks.before > 100 * MIB
    assert len(built)


def test_where_no_peak_can_be_set_back_phases_are_not_told(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MARKS", tmp_path / "none" / "clear_refs")
    monkeypatch.setattr(module, "_STATUS", tmp_path / "none" / "status")
    peaks = Peaks(torch.device("cpu"))
    with peaks.phase("rollout"):
        pass
    assert peaks.take() == {}
    assert peaks.resident() > 0
