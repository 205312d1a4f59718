"""`cero-rl view`: its tabs and keys, a run that grows, hostile text, and what is no run."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from made_runs import PROMPTS, make_run
from textual.pilot import Pilot
from textual.widgets import Input, Static, TabbedContent

from cero_rl.commands.main import main
from cero_rl.view.app import RunView
from cero_rl.view.picture import log_of, look
from cero_rl.view.prompts import SORTS
from cero_rl.view.screens import PromptScreen, SampleScreen
from cero_rl.view.tables import Rows

Play = Callable[[Pilot[None], RunView], Awaitable[None]]


def play(run: Path, scene: Play, *, every: float = 60.0, size: tuple[int, int] = (80, 24)) -> None:
    async def act() -> None:
        app = RunView(run, look(run), every)
        async with app.run_test(size=size) as pilot:
            await scene(pilot, app)

    asyncio.run(act())


def cells(app: RunView, name: str) -> list[list[str]]:
    table = app.screen.query_one(f"#{name}", Rows)
    return [[cell.plain for cell in table.get_row_at(i)] for i in range(table.row_count)]


def screen_text(app: RunView) -> str:
    """What the terminal is given, without its styles."""
    return "\n".join(
        "".join(segment.text for segment in strip)
        for strip in app.screen._compositor.render_strips()
    )


def test_tabs_sorting_filter_history_and_samples(tmp_path: Path) -> None:
    async def scene(pilot: Pilot[None], app: RunView) -> None:
        await pilot.pause()
        assert "0.300 ± 0.020 -> 0.500 ± 0.020  (+20.0 points)" in screen_text(app)
        assert "384 of 384 rollouts (100%)" in screen_text(app)
        await pilot.press("2")
        assert app.query_one(TabbedContent).active == "tab-prompts"
        rows = cells(app, "prompts")
        assert len(rows) == PROMPTS
        assert [row[1] for row in rows[:1]] == ["16"]
        assert [row[1] for row in rows[-16:]] == ["0"] * 16, "those never looked at come last"
        for key, name in SORTS.items():
            await pilot.press(key)
            assert app._sort == name
        await pilot.press("p")  # again: turned round
        passes = [row[2] for row in cells(app, "prompts")]
        assert passes[:4] == ["0.00"] * 4, "the dead ones that were tried"
        assert passes[-16:] == ["-"] * 16
        asked = app._picture.run.prompts[20].asked
        await pilot.press("slash")
        app.query_one("#filter", Input).value = asked
        await pilot.pause()
        (row,) = cells(app, "prompts")
        assert row[0] == asked
        await pilot.press("enter", "enter")
        assert isinstance(app.screen, PromptScreen)
        history = cells(app, "history")
        assert len(history) == 4
        assert history[0][-1] in ("slope 0.70 > price 0.50", "slope 0.40 <= price 0.50")
        assert "One more unit was worth 0." in str(app.screen.query_one("#detail", Static).content)
        await pilot.press("escape", "3", "s")
        surprises = [float(row[3]) for row in cells(app, "samples")]
        assert surprises == sorted(surprises, reverse=True)
        await pilot.press("enter")
        assert isinstance(app.screen, SampleScreen)
        assert "completion" in screen_text(app)
        await pilot.press("escape", "4")
        await pilot.pause()
        assert "step 12  reward" in screen_text(app)

    play(make_run(tmp_path), scene)


def test_a_run_that_grows_is_read_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, finished=False)
    metrics = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(metrics[:-1]) + "\n")

    async def scene(pilot: Pilot[None], app: RunView) -> None:
        await pilot.press("2", "down", "down")
        chosen = app.query_one("#prompts", Rows).chosen
        assert app._picture.run.steps[-1]["step"] == 11
        with (run / "metrics.jsonl").open("a") as file:
            file.write(metrics[-1] + "\n")
        while app._picture.run.steps[-1]["step"] != 12:
            await pilot.pause(0.02)
        assert app.query_one("#prompts", Rows).chosen == chosen, "the cursor stays on its prompt"
        (run / "evidence.jsonl").write_text("")
        while "cannot be read now" not in str(app.query_one("#note", Static).content):
            await pilot.pause(0.02)
        assert app._picture.run.steps[-1]["step"] == 12

    play(run, scene, every=0.05)


@pytest.mark.covers("hostile completions in a view or on the console")
def test_hostile_completions_neither_break_nor_inject(tmp_path: Path) -> None:
    hostile = (
        "[bold red]x[/] [@click=app.quit]y[/] [/nope] \x1b]0;title\x07\x1b[2J\ud800\u202e\r\x9b31m"
    )
    run = make_run(tmp_path, completion=hostile)
    with (run / "samples.jsonl").open("a") as file:
        entry = json.loads((run / "samples.jsonl").read_text().splitlines()[-1])
        file.write(json.dumps({**entry, "step": 13, "completion": "[b]" * 350_000}) + "\n")

    async def scene(pilot: Pilot[None], app: RunView) -> None:
        await pilot.press("3")
        await pilot.pause()
        shown = screen_text(app)
        assert "[bold red]x[/] [@click=app.quit]y[/]" in shown
        assert "[b][b][b]" in shown
        await pilot.press("down", "enter")
        await pilot.pause()
        shown += screen_text(app)
        assert "\\u001b]0;title\\u0007\\u001b[2J\ufffd\\u202e\\u000d\\u009b31m" in shown
        await pilot.press("escape", "up", "enter")
        await pilot.pause()
        assert "[b][b][b]" in (whole := screen_text(app))
        assert not set(shown + whole) & {*map(chr, {*range(32)} - {10}), *"\x7f\x9b\u202e\ud800"}

    play(run, scene, size=(160, 30))


def test_a_very_small_screen(tmp_path: Path) -> None:
    async def scene(pilot: Pilot[None], app: RunView) -> None:
        await pilot.press("2", "enter", "escape", "3")
        assert app.query_one(TabbedContent).active == "tab-samples"

    play(make_run(tmp_path), scene, size=(20, 6))


def test_what_a_person_should_look_at_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path, finished=False)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1] |= {
        "cero/starved_share": 0.75,
        "reward/error_rate": 0.5,
        "cero/set_aside_prompts": 3,
        "checkpoint/failed_saves": 2,
        "skipped_updates": 1,
    }
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + "{cut")
    (run / "attempts.jsonl").write_text(
        '{"attempt": 1, "start_step": 0, "time": "t", "job_id": "7", "restart_count": 0, '
        '"host": "h"}\n{"attempt": 1, "exit_code": 75}\n'
    )
    picture = look(run)
    said = "\n".join(picture.alerts)
    assert "starvation (step 12): 75% of the prompts" in said
    assert "rewards missing (step 12): 50% of the rewards" in said
    assert "set aside (step 12): 3 prompts" in said
    assert "failed saves (step 12): 2 save(s)" in said
    assert "metrics.jsonl: 1 lines could not be read and are left out" in said
    assert picture.state == "not finished: ended with exit code 75 after step 12"
    assert picture.log[0] == "attempt 1: from step 0, t, job 7, exit code 75"
    assert picture.log[1].startswith("held-out after step 0: avg@2 0.300")
    (run / "attempts.jsonl").unlink()
    picture = look(run)
    assert picture.state.startswith("running: step 12, ")
    os.utime(run / "metrics.jsonl", (0, 0))
    assert picture.state.endswith("after step 12: killed, or stuck"), "without reading anew"
    assert look(make_run(tmp_path, "well")).alerts == []


# --- the command


def told(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.covers("view without a terminal or without its extra")
def test_without_a_terminal_one_line_says_what_to_type(tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path)
    assert main(["view", str(run)]) == 2
    assert f"no terminal here; cero-rl report {run} --format md" in told(capsys)
    assert main(["view", str(run), "--every", "0"]) == 2
    assert "--every 0: wanted a number of seconds above 0" in told(capsys)


@pytest.mark.covers("view without a terminal or without its extra")
def test_without_the_extra_one_line_names_it(tmp_path: Path, capsys, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("textual", "cero_rl.view"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "textual", None)
    assert main(["view", str(make_run(tmp_path))]) == 2
    assert "textual is not installed; pip install 'cero_rl[view]'" in told(capsys)


@pytest.mark.covers("view of what is no run, half a run or another version's")
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    half, other, old = (make_run(tmp_path, name) for name in ("half", "other", "old"))
    (half / "metrics.jsonl").write_text('{"step": 0, "eval/avg@2": 0.3}\n')
    resolved = other / "config.resolved.yaml"
    resolved.write_text(resolved.read_text().replace("budget:", "allowance:"))
    (old / "evidence.jsonl").write_text('{"step": 1, "prompts": [1]}\n')
    for name, code, wanted in (
        ("none", 2, "does not exist; give a run's directory"),
        ("empty", 2, "has no config.resolved.yaml, so it is no run's directory"),
        ("half", 3, "has no finished step yet"),
        ("other", 2, "is not of this version of cero_rl"),
        ("old", 2, "is not of this version of cero_rl"),
    ):
        assert main(["view", str(tmp_path / name)]) == code, name
        assert wanted in told(capsys)


def test_an_attempt_with_changes_is_in_the_log(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "attempts.jsonl").write_text(
        '{"attempt": 2, "start_step": 4, "time": "t", "job_id": null, "restart_count": 0, '
        '"host": "h", "changes": {"optimizer.learning_rate": [1e-05, 5e-06]}}\n'
    )
    lines = list(look(run).log)
    at = lines.index("attempt 2: from step 4, t, changed optimizer.learning_rate")
    assert lines[at - 1].startswith("held-out after step 4")
    assert lines[at + 1].startswith("step 5 ")
    assert log_of(look(run).run, [])[-1].startswith("held-out at the end: avg@2 0.500")
