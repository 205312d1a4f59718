"""What a person reads of a run where there is no terminal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cero_rl.metrics import console as module
from cero_rl.metrics.console import Console

STEP: dict[str, Any] = {"reward": 0.51251, "signal": "live groups 38%", "tokens_per_second": 1234.5}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until a test turns it."""
    hand = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: hand.now))
    return hand


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_the_first_line_has_no_time_left(clock: SimpleNamespace, capsys):
    console = Console(True, total_rollouts=400)
    console.progress(1, 100, **STEP)
    assert said(capsys) == [
        "step 1  reward 0.513  live groups 38%  budget 100/400 (25%)  1234 tokens/s  ETA --:--"
    ]


def test_time_left_goes_by_the_pace_after_the_first_step(clock: SimpleNamespace, capsys):
    clock.now += 500  # a slow start
    console = Console(True, total_rollouts=400)
    clock.now += 300
    console.progress(1, 100, **STEP)
    clock.now += 50  # 100 rollouts in 50 seconds
    console.progress(2, 200, **STEP)
    first, second = said(capsys)
    assert first.endswith("ETA --:--")
    assert second.endswith("budget 200/400 (50%)  1234 tokens/s  ETA 1:40")


def test_a_resumed_run_goes_by_its_own_pace(clock: SimpleNamespace, capsys):
    console = Console(True, total_rollouts=1000)
    console.progress(9, 900, **STEP)
    clock.now += 3661
    console.progress(10, 950, **STEP)
    assert said(capsys)[1].endswith("budget 950/1000 (95%)  1234 tokens/s  ETA 1:01:01")


def test_lines_are_rare_but_the_last_is_always_there(clock: SimpleNamespace, capsys):
    console = Console(True, total_rollouts=50)
    for step in range(1, 50):
        console.progress(step, step, **STEP)
        clock.now += 1
    steps = [int(line.split()[1]) for line in said(capsys)]
    assert steps == [1, 16, 31, 46]
    console.progress(50, 50, **STEP)
    assert said(capsys)[0].endswith("budget 50/50 (100%)  1234 tokens/s  ETA 0:00")


def test_a_reward_that_is_no_number_is_no_error(clock: SimpleNamespace, capsys):
    Console(True, total_rollouts=4).progress(1, 4, **{**STEP, "reward": float("nan")})
    assert said(capsys)[0].startswith("step 1  reward nan  live groups 38%  budget 4/4 (100%)")


def test_other_ranks_say_nothing(clock: SimpleNamespace, capsys):
    console = Console(False, total_rollouts=4)
    console.say("a word")
    console.progress(1, 4, **STEP)
    console.close()
    assert said(capsys) == []


def test_plain_words_are_printed_as_they_are(capsys):
    console = Console(True, total_rollouts=4)
    console.say("saved [bold]here[/bold]")
    console.close()
    assert said(capsys) == ["saved [bold]here[/bold]"]
