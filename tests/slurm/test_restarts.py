"""attempts.jsonl and the brake on restarts that get nowhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cero_rl.job.restarts import (
    FILE,
    MAX_RESTARTS_WITHOUT_PROGRESS,
    Attempt,
    next_attempt,
    read_attempts,
    restarts_without_progress,
    why_stop,
    write_attempts,
    write_end,
)

NOON = "2026-01-01T12:00:00+00:00"


def history(
    *steps: int, job: str | None = "7", codes: dict[int, int] | None = None
) -> list[Attempt]:
    """Attempts of one job from these steps; `codes` by index, killed where there is none."""
    return [
        Attempt(i + 1, step, NOON, job, i, "n1", (codes or {}).get(i))
        for i, step in enumerate(steps)
    ]


@pytest.mark.parametrize(
    ("steps", "count"),
    [
        ((0,), 0),
        ((0, 0), 1),
        ((0, 0, 0, 0), 3),
        ((0, 0, 0, 2), 0),
        ((0, 0, 2, 2), 1),
        ((4, 2, 2), 1),
        ((2, 2, 2, 2, 2), 4),
    ],
)
def test_counts_the_restarts_from_the_same_step(steps, count):
    *earlier, this = history(*steps)
    assert restarts_without_progress(earlier, this) == count


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30))
def test_a_job_that_obeys_never_runs_a_fourth_time_from_one_step(steps):
    ran: list[Attempt] = []
    for step in steps:
        this = next_attempt(ran, step, environ={"SLURM_JOB_ID": "7"}, host="n1", time=NOON)
        if why_stop(ran, this, Path("run")) is not None:
            assert [a.start_step for a in ran[-3:]] == [step] * 3
            break
        ran.append(this)
    same = [
        len(set(group)) == 1
        for group in zip(
            *([a.start_step for a in ran][i:] for i in range(MAX_RESTARTS_WITHOUT_PROGRESS + 1))
        )
    ]
    assert not any(same)


@pytest.mark.covers("3 restarts without progress")
def test_the_refusal_is_one_line_with_the_remedy():
    *earlier, this = history(5, 5, 5, 5)
    problem = why_stop(earlier, this, Path("runs/x"))
    assert problem is not None
    assert problem.startswith(
        "runs/x: 3 restarts in a row without a new committed step, all at step 5; "
    )
    assert "remove runs/x/attempts.jsonl" in problem
    assert "\n" not in problem


def test_a_new_job_and_a_good_end_begin_the_count_anew():
    *earlier, this = history(5, 5, 5, 5)
    assert restarts_without_progress(earlier, replace(this, job_id="8")) == 0
    # by hand
    assert (
        restarts_without_progress(
            [replace(a, job_id=None) for a in earlier], replace(this, job_id=None)
        )
        == 0
    )
    *earlier, this = history(5, 5, 5, 5, codes={2: 0})
    assert restarts_without_progress(earlier, this) == 0
    *earlier, this = history(5, 5, 5, 5, codes={0: 75, 1: 6, 2: 75})
    assert restarts_without_progress(earlier, this) == 3


def test_what_slurm_says_is_kept():
    environ = {"SLURM_JOB_ID": "118", "SLURM_RESTART_COUNT": "2"}
    this = next_attempt(history(1, 2, job="118"), 9, environ=environ, host="n1", time=NOON)
    assert this == Attempt(
        attempt=3, start_step=9, time=NOON, job_id="118", restart_count=2, host="n1"
    )
    assert next_attempt([], 0, environ={}, host="n1", time=NOON) == Attempt(
        1, 0, NOON, None, 0, "n1"
    )


def test_written_and_read_back(tmp_path):
    assert read_attempts(tmp_path) == []
    attempts = history(0, 4, 8, codes={0: 75, 2: 0})
    write_attempts(tmp_path, attempts)
    assert read_attempts(tmp_path) == attempts
    write_end(tmp_path, attempts[1], 75, NOON)
    assert [a.exit_code for a in read_attempts(tmp_path)] == [75, 75, 0]


def test_a_line_cut_by_a_kill_costs_that_line_only(tmp_path):
    attempts = history(0, 4, 8)
    write_attempts(tmp_path, attempts[:2])
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-20])
    write_attempts(tmp_path, attempts[2:])
    assert read_attempts(tmp_path) == [attempts[0], attempts[2]]


@pytest.mark.parametrize(
    "line",
    [
        "5",
        "[]",
        "{}",
        '{"attempt": "x"}',
        '{"exit_code": 3}',
        '{"attempt": 1, "start_step": "many"}',
        "\x00",
    ],
)
def test_foreign_lines_are_passed_over(tmp_path, line):
    attempts = history(0)
    write_attempts(tmp_path, attempts)
    with (tmp_path / FILE).open("a") as file:
        file.write(line + "\n")
    assert read_attempts(tmp_path) == attempts
