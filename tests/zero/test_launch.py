"""What a rank sets for itself before anything is joined."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from cero_rl.zero.launch import prepare_environment


@pytest.fixture
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"LOCAL_SIZE": "2", "WORLD_SIZE": "16"}, 4),  # DeepSpeed's launcher
        ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, 2),
        ({"WORLD_SIZE": "16"}, 1),  # nobody says how many are here
        ({}, 8),
    ],
)
def test_ranks_of_a_machine_share_its_cores(monkeypatch, variables, threads):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    prepare_environment()
    assert torch.get_num_threads() == threads
    assert os.environ["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.usefixtures("_eight_cores")
def test_a_number_of_threads_that_was_set_is_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("LOCAL_SIZE", "8")
    prepare_environment()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert torch.get_num_threads() == 8  # torch has read the variable itself
