"""The time that is left of a job, counted from its start."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cero_rl.errors import ConfigError
from cero_rl.job.stopping import Walltime, find_walltime

seconds = st.floats(0, 1e6)


@given(seconds, seconds, seconds, seconds, seconds)
def test_a_step_and_a_save_that_are_allowed_end_before_the_limit(limit, margin, passed, step, save):
    walltime, now = Walltime(limit, margin, start=1e9), 1e9 + passed
    if not walltime.should_stop(step, save, now):
        assert now + step + save + margin <= 1e9 + limit + 1e-3
    else:
        assert now + step + save + margin >= 1e9 + limit - 1e-3


@pytest.mark.covers("walltime budget")
def test_stops_in_the_last_moment_that_is_early_enough():
    walltime = Walltime(limit_seconds=100, margin_seconds=10, start=1000)
    assert walltime.remaining_seconds(1040) == 60
    assert not walltime.should_stop(step_seconds=30, save_seconds=5, now=1055)
    assert walltime.should_stop(step_seconds=30, save_seconds=5, now=1056)
    assert walltime.should_stop(step_seconds=0, now=1091)


def test_the_clock_is_read_where_no_time_is_given():
    import time

    assert Walltime(3600, 0, start=time.time() - 3599).should_stop(step_seconds=60)
    assert not Walltime(3600, 0, start=time.time()).should_stop(step_seconds=60)


@pytest.mark.parametrize(
    ("limit", "environ", "start", "wanted"),
    [
        (None, {}, None, None),
        (None, {"SLURM_JOB_START_TIME": "900"}, None, None),  # a job without a limit
        (50.0, {}, 1000, 50),  # outside Slurm: from now on
        (50.0, {"SLURM_JOB_START_TIME": "900"}, 900, 50),  # what has passed since the start counts
        (None, {"SLURM_JOB_START_TIME": "900", "SLURM_JOB_END_TIME": "1100"}, 900, 200),
        (None, {"SLURM_JOB_END_TIME": "1100"}, 1000, 100),
        (50.0, {"SLURM_JOB_START_TIME": "900", "SLURM_JOB_END_TIME": "1100"}, 900, 50),
        (500.0, {"SLURM_JOB_START_TIME": "900", "SLURM_JOB_END_TIME": "1100"}, 900, 200),
        (None, {"SLURM_JOB_START_TIME": "", "SLURM_JOB_END_TIME": ""}, None, None),
    ],
)
def test_the_tighter_limit_counts(limit, environ, start, wanted):
    found = find_walltime(limit, 7.0, environ, now=1000)
    assert found == (None if wanted is None else Walltime(wanted, 7.0, start))


def test_nonsense_in_the_environment_is_refused():
    with pytest.raises(ConfigError, match="SLURM_JOB_END_TIME: got 'N/A', wanted Unix seconds"):
        find_walltime(None, 0, {"SLURM_JOB_END_TIME": "N/A"}, now=0)
