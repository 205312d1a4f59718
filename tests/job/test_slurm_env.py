"""RANK and its kin from srun's variables; the same against a real srun is in test_slurm.py."""

from __future__ import annotations

import pytest

from cero_rl.errors import ConfigError
from cero_rl.job.slurm_env import adopt

STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}
MEETING = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "15000"}


def test_a_task_of_srun_gets_its_rank():
    environ = {**STEP, **MEETING}
    adopt(environ)
    assert {name: environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")} == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
    }


@pytest.mark.parametrize(
    "environ",
    [
        {},
        MEETING,
        # the deepspeed launcher inside a job
        {**STEP, **MEETING, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"},  # the batch script itself
        {**STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"},  # srun --pty bash
    ],
)
def test_everything_else_is_left_alone(environ):
    before = dict(environ)
    adopt(environ)
    assert environ == before


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_tasks_that_would_train_alone_are_refused(missing):
    environ = {**STEP, **MEETING}
    del environ[missing]
    with pytest.raises(ConfigError, match="not set for 8 tasks of one srun"):
        adopt(environ)
    assert "RANK" not in environ


def test_numbers_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="SLURM_LOCALID=None"):
        adopt(
            {name: value for name, value in {**STEP, **MEETING}.items() if name != "SLURM_LOCALID"}
        )
