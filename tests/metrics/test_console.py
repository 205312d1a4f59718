"""What a person reads of a run where there is no terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rich
import rich.console
from made_runs import held, make_run
from rich.cells import cell_len
from step_cases import OneRank, made_group, made_rollouts

from cero_rl.learner.batch import make_batch
from cero_rl.metrics import console as module
from cero_rl.metrics.completions import CompletionRow, completion_rows, is_due
from cero_rl.metrics.console import Console
from cero_rl.metrics.ending import ending
from cero_rl.report.reader import read_run
from cero_rl.scheduler.ledger import Ledger
from cero_rl.scheduler.sizes import Samples
from cero_rl.types import RolloutGroup

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


# --- completions, and the end of a run

HOSTILE = "[bold]x[/nope]\x1b]0;t\x07\x1b[2J\ud800\u202e\r\n" + "[b]" * 350_000


def group_of(rank: OneRank, prompt: int, texts: list[str]) -> RolloutGroup:
    made = made_group(prompt, [2] * len(texts))
    completions = [replace(c, text=text) for c, text in zip(made.completions, texts)]
    return replace(made, completions=completions, prompt_tokens=rank.pool.tokens[prompt])


@pytest.fixture(scope="module")
def rank() -> OneRank:
    return OneRank()


def prints_on(terminal: bool, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal without colours, or none."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    made = rich.console.Console(file=sys.stdout, width=width, color_system=None)
    monkeypatch.setattr(rich, "_console", made)


def rows_of(rank: OneRank, keep: Callable[[Samples], np.ndarray]) -> list[CompletionRow]:
    groups = [group_of(rank, 5, ["a", "b", HOSTILE]), group_of(rank, 9, ["c", "d"])]
    rollouts = made_rollouts(groups, [[1, 0, 0], [float("nan"), 1]])
    batch = make_batch(rollouts, keep, rank.config, rank.group)
    return completion_rows(rollouts, batch, rank.pool.prompts, np.arange(48) / 48)


def test_rows_have_the_advantages_that_train(rank: OneRank) -> None:
    rows = rows_of(rank, lambda samples: np.ones(samples.rewards.shape, dtype=bool))
    assert [row.completion for row in rows if len(row.completion) < 3] == ["a", "b", "c", "d"]
    assert [row.prompt for row in rows[3:]] == [rank.pool.prompts[9].text] * 2
    assert [row.expected for row in rows] == [5 / 48] * 3 + [9 / 48] * 2
    of_first = [row.advantage for row in rows[:3]]
    assert of_first[0] > 0 > of_first[1] == of_first[2]
    assert sum(of_first) == pytest.approx(0.0, abs=1e-6)
    assert np.isnan([rows[3].reward, rows[3].advantage]).all(), "a missing reward trains nothing"
    assert rows[4].advantage == 0.0

    def keep(samples: Samples) -> np.ndarray:
        return np.array([True, False, True, True])

    kept = rows_of(rank, keep)
    assert [np.isnan(row.advantage) for row in kept] == [False, True, False, True, False]
    assert kept[0].advantage == -kept[2].advantage > 0, "of the two that train"
    assert kept[1].reward == 0.0, "it has one all the same"


def test_a_table_comes_at_the_first_step_and_every_so_often() -> None:
    assert [step for step in range(1, 13) if is_due(step, 5)] == [1, 5, 10]
    assert not any(is_due(step, 0) for step in range(1, 13))


@pytest.mark.covers("hostile completions in a view or on the console")
@pytest.mark.parametrize("terminal", [False, True])
def test_the_console_prints_completions_as_text(
    rank: OneRank, terminal: bool, capsys, monkeypatch
) -> None:
    prints_on(terminal, 140, monkeypatch)
    rows = rows_of(rank, lambda samples: np.ones(samples.rewards.shape, dtype=bool))
    console = Console(True, total_rollouts=4)
    console.completions(7, rows)
    Console(False, total_rollouts=4).completions(7, rows)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert "step 7: some completions of rank 0" in lines[0]
    assert max(map(len, lines)) <= 140
    assert "[bold]x[/nope]\\u001b]" in printed
    assert "b][b][b]" in printed, "the end of a long one is shown too"
    assert not set(printed) & set("\x1b\x07\r\x00\u202e\ud800")
    assert printed.count(rank.pool.prompts[9].text or "?") == 2
    if not terminal:
        assert lines[1].split() == ["prompt", "completion", "reward", "advantage", "expected"]
        assert len({cell_len(line) for line in lines[1:]}) == 1
        assert lines[-2].endswith("       -          -     0.188")
        assert lines[-1].endswith("   1.000      0.000     0.188")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_locale_of_latin_letters_ends_no_run(terminal: bool, monkeypatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    prints_on(terminal, 100, monkeypatch)
    console = Console(True, total_rollouts=4)
    console.completions(1, [CompletionRow("è 日本", "long " * 40 + "…", 1.0, 0.5, 0.5)])
    console.ending("done: ü", [("where", "/runs/日本")])
    console.say("日本")
    out.flush()
    printed = out.buffer.getvalue().decode("latin-1")
    assert "è ??" in printed
    assert "done: ü" in printed
    assert "/runs/??" in printed


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_ends_with_what_it_reached_and_what_to_type(
    tmp_path: Path, terminal: bool, capsys, monkeypatch
) -> None:
    run = make_run(tmp_path)
    prompts = read_run(run).prompts
    ledger = Ledger(384, 384, refunded_rollouts=4)
    rows = ending(run, ledger, prompts, held(0.3), held(0.5), exported=True)
    said = [text for _, text in rows]
    assert rows[0] == (
        "accuracy",
        "0.300 +- 0.020 -> 0.500 +- 0.020 (95 %), held-out avg@2, +20.0 points",
    )
    assert said[1] == "384 of 384 rollouts (100%), 4 came back from the engine"
    assert [name for name, _ in rows[2:7]] == ["most went to", "", "", "", ""]
    first = prompts[16].text
    assert said[2] == f"16 rollouts, 0.00 passed: {first}", "one of the dead that were tried"
    assert said[-2:] == [f"cero-rl view {run}", f"cero-rl report {run}"]
    prints_on(terminal, 200, monkeypatch)
    Console(True, total_rollouts=4).ending("done: 12 steps", rows)
    printed = capsys.readouterr().out
    assert "done: 12 steps" in printed.splitlines()[0]
    assert all(text in printed for text in said)


def test_an_end_without_evidence_or_held_out_prompts_says_so(tmp_path: Path) -> None:
    rows = ending(tmp_path, Ledger(8, 4), (), {}, {}, exported=False)
    assert rows[0] == ("budget", "4 of 8 rollouts (50%)")
    assert rows[1][1].startswith("not known: ")
    assert not any("export" in text for _, text in rows)
