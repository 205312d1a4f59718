"""When a run saves and what a failed save means; the disk is real, only DeepSpeed's shards are
stood in for, and a full disk is made by CERO_FAULT."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import warm_ranks
from safetensors import SafetensorError
from step_cases import config_of

from cero_rl.checkpoint import commit
from cero_rl.checkpoint.commit import RunState
from cero_rl.checkpoint.lineage import origin_of, recover
from cero_rl.checkpoint.manifest import files_of, read_manifest, step_dirs, verify
from cero_rl.checkpoint.retention import Score
from cero_rl.checkpoint.saver import Saver
from cero_rl.config import Config
from cero_rl.distributed.group import Group
from cero_rl.errors import CheckpointError
from cero_rl.files.durable import describe_file
from cero_rl.job import faults

ROOT = Path(__file__).resolve().parents[2]
FULL = "checkpoint.write:enospc"
BEST = ("checkpoint.keep_best=1", "evaluation.every_steps=3")
KEEP_ALL = "checkpoint.keep_last=99"


def score(value: float, of: str = "avg@1") -> Score:
    return Score(value, of)


class Run:
    """A run that does nothing but save."""

    def __init__(self, run_dir: Path, *overrides: str) -> None:
        self.run_dir = run_dir
        self.config: Config = config_of(KEEP_ALL, *overrides)
        self.said: list[str] = []
        self.states = 0  # how often its state was asked for
        engine = SimpleNamespace()  # takes the place of DeepSpeed's
        identity = {"identity": {"content": "abc"}}
        self.saver = Saver(run_dir, Group.alone(), engine, self.config, identity, self.said.append)

    def step(self, step: int, score: Score | None = None, *, last: bool = False) -> None:
        def state() -> RunState:
            self.states += 1
            return RunState({"step": step}, {"lengths": np.arange(3)})

        self.saver.step_done(step, state, score, last=last)

    def directory(self, step: int) -> Path:
        return self.run_dir / f"checkpoints/step_{step:06d}"

    def written(self) -> None:
        """Let the writer in the background come to its end."""
        writing = self.saver._checkpoints._writing
        assert writing is not None
        writing.join()

    @property
    def steps(self) -> list[int]:
        """Steps whose checkpoints are valid, oldest first."""
        return sorted(verify(directory)["step"] for directory in step_dirs(self.run_dir))


@pytest.fixture(autouse=True)
def _no_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    def save_shards(engine: Any, directory: Path, tag: str) -> None:
        (directory / tag).mkdir()
        (directory / tag / "shard.pt").write_bytes(b"weights")

    monkeypatch.setattr(commit, "save_shards", save_shards)
    monkeypatch.setattr(faults, "_faults", [])


def fail(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The next `times` saves meet a full disk."""
    monkeypatch.setattr(faults, "_faults", faults.parse(f"{FULL}*{times}"))


# --- when


@pytest.mark.parametrize(
    ("every", "saved"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4]), (5, [5]), (6, []), (0, [])]
)
def test_every_so_many_steps(tmp_path: Path, every: int, saved: list[int]):
    run = Run(tmp_path, f"checkpoint.every_steps={every}")
    for step in range(1, 6):
        run.step(step)
    assert run.steps == saved
    assert run.states == len(saved), "a state costs something; it is asked for when it is needed"
    assert run.saver.failed_saves == 0
    assert run.said == []


def test_the_last_step_is_saved_whatever_the_rhythm(tmp_path: Path):
    run = Run(tmp_path, "checkpoint.every_steps=0")
    run.step(1)
    run.step(2, last=True)
    assert run.steps == [2]


def test_the_same_step_is_not_saved_twice(tmp_path: Path):
    run = Run(tmp_path, "checkpoint.every_steps=2")
    run.step(2)
    run.step(2, last=True)
    assert (run.steps, run.states) == ([2], 1)
    run.step(3, last=True)
    run.step(3, last=True)
    assert (run.steps, run.states) == ([2, 3], 2)


def test_a_score_that_comes_later_is_written_into_the_manifest(tmp_path: Path):
    run = Run(tmp_path, "checkpoint.every_steps=2")
    run.step(2)
    before = read_manifest(run.directory(2))
    run.saver.scored(score(0.5))
    assert run.states == 1
    after = read_manifest(run.directory(2))
    assert after == {**before, "score": 0.5, "score_of": "avg@1"}
    assert run.steps == [2]
    run.saver.scored(score(float("nan")))  # no reward was known
    assert read_manifest(run.directory(2))["score"] == 0.5


@pytest.mark.covers("evaluations and saves that do not meet")
def test_where_the_best_are_kept_a_scored_step_is_saved(tmp_path: Path):
    run = Run(tmp_path, *BEST, "checkpoint.every_steps=2", "checkpoint.keep_last=2")
    for step, value in enumerate([0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.8], 1):
        run.step(step, score(value) if step % 3 == 0 else None)
    assert run.steps == [3, 4, 6]
    assert read_manifest(run.directory(3))["score"] == 0.9
    run.step(7, last=True)
    run.saver.scored(score(0.95))
    assert run.steps == [6, 7], "the best is the newest now"


def test_scores_of_another_number_of_samples_are_not_compared(tmp_path: Path):
    run = Run(tmp_path, *BEST, "checkpoint.keep_last=2")
    for step, worth in enumerate([score(0.9), score(0.2, "avg@4"), score(0.3, "avg@4")], 1):
        run.step(step, worth)
    run.step(4, last=True)
    assert run.steps == [1, 3, 4]


def test_a_checkpoint_says_what_it_was_made_from(tmp_path: Path):
    run = Run(tmp_path)
    run.step(6, last=True)
    run.step(7, score(0.25), last=True)
    first, second = (read_manifest(run.directory(step)) for step in (6, 7))
    assert second["identity"] == {"content": "abc"}
    assert (second["step"], second["score"], second["world_size"]) == (7, 0.25, 1)
    assert first["parent"] is None
    assert second["parent"] == {"step": 6, "id": first["id"]}
    assert first["run"] == second["run"] == origin_of(tmp_path).id
    other = Run(tmp_path)
    other.saver.goes_on_from(run.directory(7))
    other.step(7, last=True)  # nothing to add
    other.step(8, last=True)
    assert other.states == 1
    assert read_manifest(run.directory(8))["parent"] == {"step": 7, "id": second["id"]}


# --- what a failed save means


def test_a_failure_is_said_counted_and_made_good_at_the_next_step(tmp_path: Path, monkeypatch):
    run = Run(tmp_path, "checkpoint.every_steps=2")
    fail(monkeypatch, 1)
    run.step(2)
    assert run.saver.failed_saves == 1
    assert run.steps == []
    assert len(run.said) == 1
    assert run.said[0].startswith(
        "not saved (1 of checkpoint.max_failures = 3): checkpoint of step 2, write: rank 0: "
        "OSError: "
    )
    assert "No space left on device" in run.said[0]
    run.step(3)  # would not be due
    assert run.saver.failed_saves == 0
    assert run.steps == [3]
    run.step(5)
    assert run.steps == [3]


def test_it_gives_up_after_so_many_in_a_row(tmp_path: Path, monkeypatch):
    run = Run(tmp_path, "checkpoint.every_steps=2", "checkpoint.max_failures=3")
    fail(monkeypatch, 3)
    run.step(2)
    run.step(3)
    with pytest.raises(CheckpointError, match="checkpoint of step 4, write: rank 0"):
        run.step(4)
    assert [words[:13] for words in run.said] == ["not saved (1 ", "not saved (2 "]
    assert run.saver.failed_saves == 3


def test_failures_that_are_not_in_a_row_are_survived(tmp_path: Path, monkeypatch):
    run = Run(tmp_path, "checkpoint.every_steps=1", "checkpoint.max_failures=2")
    for step in range(1, 9):
        if step % 2:
            fail(monkeypatch, 1)
        run.step(step)
    assert run.steps == [2, 4, 6, 8]
    assert len(run.said) == 4


def test_one_failure_is_enough_where_one_is_allowed(tmp_path: Path, monkeypatch):
    run = Run(tmp_path, "checkpoint.every_steps=1", "checkpoint.max_failures=1")
    fail(monkeypatch, 1)
    with pytest.raises(CheckpointError):
        run.step(1)
    assert run.said == []


def test_the_last_save_is_tried_again_at_once(tmp_path: Path, monkeypatch):
    run = Run(tmp_path)
    fail(monkeypatch, 2)
    run.step(1, last=True)
    assert run.steps == [1]
    assert run.states == 3
    assert len(run.said) == 2
    assert run.saver.failed_saves == 0


def test_the_last_save_is_not_tried_for_ever(tmp_path: Path, monkeypatch):
    run = Run(tmp_path, "checkpoint.every_steps=2")
    fail(monkeypatch, 99)
    run.step(2)
    with pytest.raises(CheckpointError):
        run.step(3, last=True)
    assert run.states == 3, "the failure before counts too"
    assert run.steps == []


def test_a_failed_save_leaves_the_one_before(tmp_path: Path, monkeypatch):
    run = Run(tmp_path, "checkpoint.every_steps=1", "checkpoint.max_failures=9")
    run.step(1)
    for stage in ("prepared", "write", "written", "manifest", "before_rename"):
        monkeypatch.setattr(faults, "_faults", faults.parse(f"checkpoint.{stage}:enospc"))
        run.step(2)
        assert run.steps == [1], stage
    assert run.saver.failed_saves == 5
    run.step(2)
    assert run.steps == [1, 2]
    assert not list((tmp_path / "checkpoints").glob("tmp.*")), "nothing is left lying about"


def test_a_bug_is_no_failed_save(tmp_path: Path):
    run = Run(tmp_path)

    def state() -> RunState:
        raise KeyError("typo")

    with pytest.raises(KeyError):
        run.saver.step_done(1, state, None, last=True)
    assert run.said == []


ODD = RuntimeWarning("nobody waits for a warning"), SafetensorError("odd"), KeyError("odd")


@pytest.mark.covers("writer meets an unknown exception")
@pytest.mark.parametrize("error", ODD)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_whatever_a_writer_meets_is_a_failed_save(
    tmp_path: Path, monkeypatch, error: Exception, asynchronous: bool
):
    run = Run(tmp_path, "checkpoint.every_steps=1", f"checkpoint.asynchronous={asynchronous}")
    run.step(1, last=True)

    def save_file(*_: Any) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(commit, "save_file", save_file)
        run.step(2)
        if asynchronous:
            run.written()
    run.step(3, last=True)
    assert run.steps == [1, 3]
    assert len(run.said) == 1
    assert f"step 2, write: rank 0: {type(error).__name__}" in run.said[0]


@pytest.mark.covers("incomplete checkpoint")
@pytest.mark.parametrize("part", ["arrays.safetensors", "state.json", "rank0.safetensors", "zero"])
def test_a_commit_without_a_part_is_refused(tmp_path: Path, monkeypatch, part: str):
    run = Run(tmp_path, "checkpoint.every_steps=1")
    run.step(1)

    def describe(path: Path) -> dict[str, Any]:
        entry = describe_file(path)
        if part in path.relative_to(path.parents[1]).parts or path.name == part:
            path.unlink()
        return entry

    def files(directory: Path) -> list[Path]:
        return [] if part == "zero" else files_of(directory)

    with monkeypatch.context() as broken:
        broken.setattr(commit, "describe_file", describe)
        broken.setattr(commit, "files_of", files)
        run.step(2)
    assert run.steps == [1]
    assert part in run.said[0]


@pytest.mark.covers("killed between the renames of a commit")
def test_the_commit_of_a_step_once_more_can_be_cut_anywhere(tmp_path: Path, monkeypatch):
    run = Run(tmp_path)
    monkeypatch.setattr(faults, "_faults", faults.parse("checkpoint.latest:enospc"))
    run.step(1, last=True)  # committed, said to have failed, and so committed once more
    assert (run.steps, run.states) == ([1], 2)
    put_aside = tmp_path / "checkpoints/tmp.old_step_000001"
    run.directory(1).rename(put_aside)  # what a kill between the two renames leaves
    assert [text[-46:] for text in recover(tmp_path)] == [
        "; the commit that was to replace it was cut off"[-46:]
    ]
    assert run.steps == [1]
    assert not put_aside.exists()
    monkeypatch.setattr(
        faults, "_faults", faults.parse("checkpoint.renamed:raise;checkpoint.replacing:raise")
    )
    other = Run(tmp_path, "checkpoint.every_steps=2")
    other.step(2)
    other.step(2, last=True)
    assert other.steps == [1, 2]
    assert len(other.said) == 2
    assert not list((tmp_path / "checkpoints").glob("tmp.*"))


@pytest.mark.covers("checkpoint that cannot be pruned")
def test_what_cannot_be_pruned_is_said_and_costs_no_save(tmp_path: Path, monkeypatch):
    run = Run(tmp_path, "checkpoint.every_steps=1", "checkpoint.keep_last=2")
    monkeypatch.setattr(faults, "_faults", faults.parse("checkpoint.prune:enospc"))
    for step in (1, 2, 3):
        run.step(step)
    assert run.steps == [2, 3]
    assert run.saver.failed_saves == 0
    assert run.said[0].startswith("old checkpoints not removed: checkpoint of step 3, prune")


@pytest.mark.covers("disk full in one part of a checkpoint", "disk full in a log")
@pytest.mark.parametrize(
    ("asynchronous", "part", "error"),
    [
        (True, "arrays", "SafetensorError: "),
        (False, "arrays", "SafetensorError: "),
        (False, "shards", "RuntimeError: "),
    ],
)
def test_a_disk_that_is_really_full(tmp_path: Path, asynchronous: bool, part: str, error: str):
    disk = tmp_path / "disk"
    disk.mkdir()
    driver = ["tests/checkpoint/full_disk_driver.py", str(disk), str(asynchronous), part]
    meet = {**warm_ranks.environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = warm_ranks.run(driver, ROOT, meet, tmp_path, ranks=1)
    if done.returncode == 77:
        pytest.skip("this user may not mount a tmpfs")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["steps"] == [1, 3]
    (said,) = told["said"]
    assert said.startswith("not saved (1 of checkpoint.max_failures = 3): checkpoint of step 2, wr")
    assert error in said
    assert "No space left on device" in said or "the disk has 0.0 MB left (" in said
    assert told["left"] == []
    assert told["full"], "the log met the full disk too"
    assert told["whole"], "and kept no half a line"


# --- asynchronous writers


def test_an_asynchronous_save_is_committed_at_a_later_step(tmp_path: Path):
    run = Run(tmp_path, "checkpoint.every_steps=2", "checkpoint.asynchronous=true")
    run.step(2)
    run.written()
    assert run.steps == []
    run.step(3)
    assert run.steps == [2]
    assert run.states == 1


def test_an_asynchronous_error_surfaces_at_a_later_step_which_saves_at_once(
    tmp_path: Path, monkeypatch
):
    run = Run(tmp_path, "checkpoint.every_steps=2", "checkpoint.asynchronous=true")
    fail(monkeypatch, 1)
    run.step(2)
    run.written()
    assert run.said == []
    run.step(3)  # would not be due
    assert "checkpoint of step 2, write" in run.said[0]
    assert run.saver.failed_saves == 1
    run.written()
    run.step(5)
    assert run.saver.failed_saves == 0
    assert run.steps == [3]


def test_the_last_asynchronous_save_is_waited_for(tmp_path: Path, monkeypatch):
    run = Run(tmp_path, "checkpoint.every_steps=2", "checkpoint.asynchronous=true")
    run.step(2)
    fail(monkeypatch, 1)
    run.step(3, last=True)
    assert run.steps[-1] == 3
    assert run.saver.failed_saves == 0


def test_a_writer_slower_than_a_step_makes_a_failure_good_all_the_same(tmp_path: Path, monkeypatch):
    run = Run(tmp_path, "checkpoint.every_steps=1", "checkpoint.asynchronous=true")
    slow = f"{FULL};checkpoint.write:sleep=0.2*9"
    monkeypatch.setattr(faults, "_faults", faults.parse(slow))
    run.step(1)
    run.written()
    for step in (2, 3, 4):  # each save waits for the one before it, and so commits it
        run.step(step)
    assert run.saver.failed_saves == 0
    run.step(4, last=True)
    assert run.steps == [2, 3, 4]
    assert run.states == 4, "the step that was being written is not saved again"
