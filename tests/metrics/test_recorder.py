"""Where numbers and alerts go, also when a run is resumed: metrics.jsonl and the real trackers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from step_cases import config_of
from wandb_file import records

from cero_rl.errors import ConfigError
from cero_rl.metrics.alerts import Alert
from cero_rl.metrics.recorder import Recorder
from cero_rl.metrics.trackers import TRACKERS, TensorBoard, refuse_missing

BOARD = "logging.tensorboard=true"
WANDB = "logging.wandb=true"


def write(
    run: Path,
    steps: list[int],
    *overrides: str,
    first_step: int = 0,
    numbers: Callable[[int], dict[str, float]] = lambda step: {"reward": step / 10},
) -> None:
    """A job that writes these steps."""
    run.mkdir(exist_ok=True)
    if WANDB in overrides and first_step:
        time.sleep(1.0)  # wandb names its folder of a start by the second
    recorder = Recorder(run, config_of(*overrides), active=True, first_step=first_step)
    for step in steps:
        recorder.write(step, numbers(step))
    recorder.close()


@pytest.mark.covers("back to an older checkpoint")
def test_tensorboard_forgets_what_a_resume_left(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, [1, 2, 3], BOARD)
    write(tmp_path, [2, 3, 4], BOARD, first_step=2)
    write(tmp_path, [4], BOARD, first_step=4)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("reward")] == [1, 2, 3, 4]


@pytest.mark.covers("finished run started again")
def test_a_job_that_writes_nothing_leaves_no_trace(tmp_path: Path):
    write(tmp_path, [], BOARD)
    assert list(tmp_path.iterdir()) == []


def test_the_last_line_is_known_by_its_mark(tmp_path: Path):
    recorder = Recorder(tmp_path, config_of(), active=True)
    assert not recorder.is_final(6)
    recorder.write(6, {"reward": 0.5})
    assert not recorder.is_final(6)
    recorder.write(6, {"eval/avg@1": 0.5}, final=True)
    assert recorder.is_final(6)
    assert not recorder.is_final(7), "a longer budget goes on"
    assert not Recorder(tmp_path, config_of(), active=False).is_final(6)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last == {"step": 6, "final": True, "eval/avg@1": 0.5}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real wandb, which keeps everything in the run's directory."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)


def whole(file: Path) -> list[Any]:
    """Its records, once wandb's own process has written the last."""
    end = time.monotonic() + 30.0
    while True:
        found = records(file)
        if any(r.WhichOneof("record_type") == "exit" for r in found) or time.monotonic() > end:
            return found
        time.sleep(0.05)


def kept(run: Path) -> list[tuple[Any, list[dict[str, Any]], list[str]]]:
    """Of each start of wandb: (its run record, points, titles of alerts)."""
    found = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        all_of = whole(file)
        points = [
            {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
            for r in all_of
            if r.WhichOneof("record_type") == "history"
        ]
        alerts = [r.alert.title for r in all_of if r.WhichOneof("record_type") == "alert"]
        (run_record,) = [r.run for r in all_of if r.WhichOneof("record_type") == "run"]
        found.append((run_record, points, alerts))
    return found


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, offline: None) -> None:
    own = ("logging.wandb_entity=team", "logging.group=arm", "logging.tags=[a,b]")
    write(tmp_path / "run", [1, 2], WANDB, *own)
    write(tmp_path / "run", [2, 3], WANDB, *own, first_step=2)
    write(tmp_path / "other", [1], WANDB)
    (first, points, _), (again, more, _) = kept(tmp_path / "run")
    assert [point["step"] for point in points] == [1, 2]
    assert [point["step"] for point in more] == [2, 3], "an older step is not dropped"
    assert points[1]["reward"] == 0.2
    assert first.run_id == again.run_id
    assert first.run_id.startswith("digits-")
    assert (first.project, first.entity, first.run_group) == ("cero_rl", "team", "arm")
    assert list(first.tags) == ["a", "b"]
    ((other, _, _),) = kept(tmp_path / "other")
    assert other.run_id != first.run_id
    assert (other.entity, other.run_group, list(other.tags)) == ("", "", [])


def test_the_project_is_the_users(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    write(tmp_path, [1], WANDB)
    write(tmp_path, [1], WANDB, "logging.wandb_project=configured", first_step=1)
    assert [run.project for run, _, _ in kept(tmp_path)] == ["mine", "configured"]
    assert [run.run_id for run, _, _ in kept(tmp_path)] == ["abc", "abc"]


TRACKIO = """
import sys
from pathlib import Path
from trackio.sqlite_storage import SQLiteStorage
from test_recorder import write, starved
settings = ("logging.trackio=true", "logging.trackio_project=mine", "logging.group=arm")
for steps, first in (([1, 2], 0), ([3], 3)):
    write(Path(sys.argv[1]), steps, *settings, first_step=first, numbers=starved)
(run,) = SQLiteStorage.get_runs("mine")
logs, alerts = SQLiteStorage.get_logs("mine", run), SQLiteStorage.get_alerts("mine")
print(run, [(p["step"], p["reward"]) for p in logs], [a["title"] for a in alerts])
"""


def test_trackio_goes_on_in_the_same_run(tmp_path: Path) -> None:
    """The real one, in a process of its own: it looks for its folder when it is imported."""
    here = Path(__file__).resolve().parent
    paths = [str(here), str(here.parent), str(here.parents[1])]
    own = {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.pathsep.join(paths)}
    line = [sys.executable, "-c", TRACKIO, str(tmp_path / "run")]
    done = subprocess.run(line, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("digits-")
    assert last.endswith("[(1, 0.1), (2, 0.2), (3, 0.3)] ['starvation, step 2']")
    assert "TRACKIO WARN" not in done.stdout


def starved(step: int) -> dict[str, float]:
    """A step's numbers; most prompts are starved from step 2 on."""
    return {"reward": step / 10, "step_time": 1.0, "cero/starved_share": 0.6 if step > 1 else 0.1}


def test_alerts_reach_every_tracker_once(tmp_path: Path, offline: None) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, [1, 2], WANDB, BOARD, numbers=starved)
    write(tmp_path, [3], WANDB, BOARD, numbers=starved, first_step=3)  # said before the resume
    assert [titles for _, _, titles in kept(tmp_path)] == [["starvation, step 2"], []]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    (event,) = board.Tensors("alerts/text_summary")
    assert event.step == 2
    assert b"60% of the prompts" in event.tensor_proto.string_val[0]


def test_a_tracker_that_fails_is_said_once_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(TensorBoard):
        def alert(self, alert: Alert) -> None:
            raise OSError("no space left")

    monkeypatch.setitem(TRACKERS, "tensorboard", Broken)
    write(tmp_path, [1, 2, 3], BOARD, numbers=starved)
    said = capsys.readouterr().out
    assert said.count("tensorboard failed and is left out from here on (OSError: no space") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_without_its_package_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuse_missing(config_of(BOARD))  # it is on by default: said, and left out
    with pytest.raises(ConfigError, match=r"logging.wandb: true.*pip install 'cero_rl\[wandb\]'"):
        refuse_missing(config_of(WANDB))
