"""What the tests of this folder share: a real Slurm, and the run that they compare with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))

from launch import launch
from slurm_cluster import Slurm, cluster, missing
from slurm_shared import export_hash, skip_or_fail
from two_hosts import why_not


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster-runs")


@pytest.fixture(scope="session")
def uncut_hash(out: Path) -> str:
    """Of the model of an uninterrupted run of two ranks on one host, under the deepspeed
    launcher."""
    done = launch(out, "uncut")
    assert done.returncode == 0, done.stdout + done.stderr
    return export_hash(out / "uncut")


@pytest.fixture(scope="module")  # the nodes' addresses are free for the next module
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    absent = missing()
    skip_or_fail(
        f"not installed: {', '.join(absent)}; run make slurm"
        if absent
        else "needs root"
        if os.geteuid()
        else why_not()
    )
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running
