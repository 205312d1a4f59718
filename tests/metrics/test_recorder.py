"""Where numbers go when a run is resumed: metrics.jsonl, TensorBoard, wandb."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from step_cases import config_of

from cero_rl.metrics.recorder import Recorder

BOARD = "logging.tensorboard=true"
WANDB = "logging.wandb=true"


def write(run: Path, steps: list[int], *overrides: str, first_step: int = 0) -> None:
    """A job that writes these steps."""
    recorder = Recorder(run, config_of(*overrides), active=True, first_step=first_step)
    for step in steps:
        recorder.write(step, {"reward": step / 10})
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
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What wandb was told; it is not installed here."""
    told: list[dict[str, Any]] = []

    def init(**settings: Any) -> Any:
        told.append(settings)
        return SimpleNamespace(
            log=told.append, finish=lambda: None, define_metric=lambda name, step_metric: None
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    return told


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, wandb: list[dict[str, Any]]):
    write(tmp_path, [1, 2], WANDB)
    write(tmp_path, [2], WANDB, first_step=2)
    first, _, _, again, point = wandb
    assert first["id"] == again["id"]
    assert first["id"].startswith("digits-")
    assert (first["resume"], again["resume"]) == ("allow", "allow")
    assert point == {"step": 2, "reward": 0.2}
    write(tmp_path / "other", [], WANDB)
    (tmp_path / "another").mkdir()
    write(tmp_path / "another", [1], WANDB)
    assert wandb[5]["id"] != first["id"]


def test_the_project_is_the_users(
    tmp_path: Path, wandb: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path, [1], WANDB)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    write(tmp_path, [1], WANDB)
    write(tmp_path, [1], WANDB, "logging.wandb_project=configured")
    asked = [told for told in wandb if "project" in told]
    assert [told["project"] for told in asked] == ["cero_rl", "mine", "configured"]
    assert [told["id"] for told in asked[1:]] == ["abc", "abc"]
