"""A run's line of ancestors: what a resume from an older checkpoint sets aside, what a kill in the
midst of it leaves, and which checkpoints a run may go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_checkpoints import SETTINGS, make
from step_cases import config_of

from cero_rl.checkpoint.identity import Identity
from cero_rl.checkpoint.lineage import LOGS, arrive, begin, cut_logs, origin_of, recover
from cero_rl.checkpoint.lineage import refuse_foreign as refuse
from cero_rl.checkpoint.manifest import all_steps, read_manifest, step_dirs, verify
from cero_rl.checkpoint.ownership import RESOLVED
from cero_rl.checkpoint.retention import prune
from cero_rl.commands.main import main
from cero_rl.distributed.group import Group
from cero_rl.errors import CheckpointError, ConfigError
from cero_rl.files.durable import write_json
from cero_rl.files.jsonl import append_jsonl, lines_up_to, write_lines
from cero_rl.job import faults
from cero_rl.train.run_directory import Start, open_run_dir


@pytest.fixture(autouse=True)
def _no_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_faults", [])


def line(run: Path, name: str, step: int, **more: Any) -> None:
    append_jsonl(run / name, {"step": step, **more})


def run_of(run: Path, steps: int, every: int = 2) -> Path:
    """A finished run: checkpoints, logs, results."""
    begin_here = not run.exists()
    run.mkdir(exist_ok=True)
    if begin_here:
        begin(run, None)
    line(run, "metrics.jsonl", 0)
    for step in range(1, steps + 1):
        for name in LOGS:
            line(run, name, step)
        if step % every == 0:
            make(run, step, run_id=origin_of(run).id)
    (run / "export").mkdir()
    (run / "export/model.safetensors").write_text(f"after {steps}")
    (run / "posterior.parquet").write_text(f"after {steps}")
    return run


def steps_of(run: Path, name: str = "evidence.jsonl") -> list[int]:
    return [json.loads(text)["step"] for text in (run / name).read_text().splitlines()]


def numbers(run: Path) -> list[int]:
    return [read_manifest(directory)["step"] for directory in reversed(step_dirs(run))]


def in_order(run: Path, step: int) -> bool:
    """Nothing of a step after `step` is left, and each line up to it is there once."""
    return (
        max(numbers(run)) == step
        and steps_of(run, "metrics.jsonl") == list(range(step + 1))
        and all(steps_of(run, name) == list(range(1, step + 1)) for name in LOGS[1:])
        and json.loads((run / "latest.json").read_text())["step"] == step
        and not (run / "export").exists()
    )


@pytest.mark.covers("back to an older checkpoint")
def test_what_came_after_is_set_aside_by_name_and_whole(tmp_path: Path):
    run = run_of(tmp_path / "run", 8)
    said = arrive(run, 4)
    aside = run / "abandoned/after_step_000004"
    assert said == [
        f"what came after step 4 is set aside in {aside}: step_000006, step_000008, logs"
    ]
    assert in_order(run, 4)
    assert numbers(aside) == [6, 8]
    assert steps_of(aside) == list(range(1, 9))
    assert (aside / "export/model.safetensors").read_text() == "after 8"
    assert (aside / "posterior.parquet").exists()
    for step in (5, 6):  # another future, and back again
        for name in LOGS:
            line(run, name, step)
    make(run, 6)
    arrive(run, 2)
    assert in_order(run, 2)
    assert numbers(run / "abandoned/after_step_000002") == [4, 6]
    make(run, 4)
    arrive(run, 2)
    assert numbers(run / "abandoned/after_step_000002.2") == [4]
    assert numbers(aside) == [6, 8]


@pytest.mark.covers("back to an older checkpoint")
def test_retention_counts_no_abandoned_step(tmp_path: Path):
    run = run_of(tmp_path / "run", 11, every=1)
    arrive(run, 4)
    for step in (6, 7):
        make(run, step)
        prune(run, keep_last=2, keep_every_steps=4)
    assert numbers(run) == [4, 6, 7]


@pytest.mark.covers("killed while a future is set aside", "killed while logs are cut")
@pytest.mark.parametrize("times", range(9))
def test_a_kill_while_it_is_set_aside_is_made_good_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
):
    run = run_of(tmp_path / "run", 8)
    points = ["resume.set_aside"] * 2 + ["log.cut"] * 4 + ["resume.logs_cut"]
    reached: list[str] = []

    def point(name: str, path: Path | None = None) -> None:
        reached.append(name)
        if len(reached) > times:
            raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(faults, "point", point)
        if times < len(points):
            with pytest.raises(KeyboardInterrupt):
                arrive(run, 4)
        else:
            arrive(run, 4)
    assert reached == points[: times + 1]
    assert len(recover(run)) == (times < len(points))
    assert in_order(run, 4)
    aside = run / "abandoned/after_step_000004"
    assert numbers(aside) == [6, 8]
    assert all(steps_of(aside, name)[-1] == 8 for name in LOGS)
    assert recover(run) == []
    assert arrive(run, 4) == []


def test_lines_after_the_newest_checkpoint_are_dropped_and_said(tmp_path: Path):
    run = run_of(tmp_path / "run", 3)
    assert arrive(run, 2) == [
        "lines after step 2 dropped: 1 of metrics.jsonl, 1 of ledger.jsonl, 1 of evidence.jsonl, "
        "1 of samples.jsonl"
    ]
    assert steps_of(run) == [1, 2]
    assert not (run / "abandoned").exists()
    assert (run / "export").exists()


@pytest.mark.covers("half a line in a log")
def test_half_a_line_is_dropped_and_the_lines_before_stay(tmp_path: Path):
    run = run_of(tmp_path / "run", 2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "reward": 0.')
    assert arrive(run, 2) == ["lines after step 2 dropped: 1 of metrics.jsonl"]
    assert steps_of(run, "metrics.jsonl") == [0, 1, 2]


@pytest.mark.covers("foreign line in a log")
@pytest.mark.parametrize(
    "foreign", ['{"note": "restarted by hand"}', "[1, 2]", "# by hand", '{"step": "two"}', "null"]
)
def test_a_line_of_somebody_else_stays_and_is_said(tmp_path: Path, foreign: str):
    run = run_of(tmp_path / "run", 4)
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], foreign, *lines[2:]]) + "\n")
    said = cut_logs(run, 3)
    assert said[1:] == [
        f"{path}: line 3 is none of this program's (it has no step); it stays as it is (1 such)"
    ]
    assert path.read_text().splitlines() == [*lines[:2], foreign, *lines[2:4]]


def test_lines_that_an_older_fault_lost_are_said(tmp_path: Path):
    run = run_of(tmp_path / "run", 4)
    (run / "evidence.jsonl").write_text('{"step": 1}\n{"step": 3}\n{"step": 4}\n')
    (said,) = arrive(run, 4)
    assert "evidence.jsonl: holds 3 lines for 4 steps" in said


def test_a_file_is_read_and_written_back_byte_for_byte(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    odd = [b'{"step": 1, "text": "\xe2\x80\xa8"}', b"\xff\xfe", b'{"step": 2}\r']
    path.write_bytes(b"\n".join([*odd, b'{"step": 9}']) + b"\n")
    cut = lines_up_to(path, 2)
    assert (cut.steps, cut.dropped, cut.foreign) == ([1, 2], 1, [2])
    write_lines(path, cut.kept)
    assert path.read_bytes() == b"\n".join(odd) + b"\n"


# --- whose checkpoint


@pytest.mark.covers("another run's checkpoint into a run", "checkpoint that was set aside")
def test_a_run_goes_on_from_its_own_checkpoints_alone(tmp_path: Path):
    run, other = run_of(tmp_path / "run", 4), run_of(tmp_path / "other", 4)
    for own in step_dirs(run):
        refuse(run, own, read_manifest(own))
    theirs = step_dirs(other)[0]
    with pytest.raises(CheckpointError, match=r"it is another run's, and .* already holds a run"):
        refuse(run, theirs, read_manifest(theirs))
    arrive(run, 2)
    left = step_dirs(run / "abandoned/after_step_000002")[0]
    with pytest.raises(CheckpointError, match=r"was set aside.*--set name="):
        refuse(run, left, read_manifest(left))
    converted = make(tmp_path / "elsewhere", 4, run_id=origin_of(run).id)
    refuse(run, converted, read_manifest(converted))


@pytest.mark.covers("branch killed before its first checkpoint")
def test_a_branch_has_the_lines_it_grew_from_and_can_begin_again(tmp_path: Path):
    other, run = run_of(tmp_path / "other", 4), tmp_path / "branch"
    grown_from = other / "checkpoints/step_000002"
    run.mkdir()
    begin(run, grown_from)
    assert arrive(run, 2) == []
    assert steps_of(run, "metrics.jsonl") == [0, 1, 2]
    line(run, "metrics.jsonl", 3)
    assert origin_of(run).begun_from == grown_from
    refuse(run, grown_from, read_manifest(grown_from))
    assert arrive(run, 2) == ["lines after step 2 dropped: 1 of metrics.jsonl"]
    assert steps_of(other) == [1, 2, 3, 4]


def opened(run: Path, resume: str, *, overwrite: bool = False) -> Path | None:
    if run.exists():
        (run / RESOLVED).touch()
    start = Start(resume, overwrite)
    return open_run_dir(run, config_of(), 48, start, Identity(SETTINGS, {}), Group.alone())


@pytest.mark.covers("branch killed before its first checkpoint")
def test_a_branch_without_a_checkpoint_begins_where_it_grew_from(tmp_path: Path):
    grown_from = make(tmp_path / "other", 2, ranks=1)
    run = tmp_path / "branch"
    assert opened(run, str(grown_from)) == grown_from
    killed = tmp_path / "killed"  # its lock is another's
    shutil.copytree(run, killed)
    assert opened(killed, "auto") == grown_from


@pytest.mark.covers("killed between the renames of a commit", "killed while a future is set aside")
def test_a_start_puts_right_what_a_kill_left_before_it_looks_for_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    steps = [make(tmp_path, step, ranks=1) for step in (2, 4, 6)]
    monkeypatch.setattr(faults, "_faults", faults.parse("resume.set_aside:raise"))
    with pytest.raises(RuntimeError):
        arrive(tmp_path, 4)
    steps[1].rename(steps[1].with_name("tmp.old_step_000004"))
    assert opened(tmp_path, "auto") == steps[1]
    assert f"{steps[1]}: put back" in capsys.readouterr().out
    assert numbers(tmp_path) == [2, 4]


def test_one_that_lacks_a_part_is_passed_over_and_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    old, new = (make(tmp_path, step, ranks=1) for step in (2, 4))
    manifest = read_manifest(new)
    (new / "arrays.safetensors").unlink()
    del manifest["files"]["arrays.safetensors"]
    write_json(new / "MANIFEST.json", manifest)
    assert opened(tmp_path, "auto") == old
    assert capsys.readouterr().err == (
        f"checkpoint refused: {new}: has no arrays.safetensors; use an older checkpoint\n"
    )
    arrive(tmp_path, 2)
    assert numbers(tmp_path / "abandoned/after_step_000002") == [4]


@pytest.mark.covers("--resume with --overwrite")
@pytest.mark.parametrize("resume", ["auto", "checkpoints/step_000002"])
def test_to_go_on_and_to_delete_is_refused(tmp_path: Path, resume: str):
    make(tmp_path, 2, ranks=1)
    with pytest.raises(ConfigError, match="give one of them"):
        opened(tmp_path, resume if resume == "auto" else str(tmp_path / resume), overwrite=True)
    assert numbers(tmp_path) == [2]


WRONG = [
    ("checkpoints", r"give one of them \(step_000002, step_000004\), or --resume auto"),
    ("checkpoints/step_000004/zero", r"it is a part of a checkpoint; give .*step_000004$"),
    ("checkpoints/step_000004/state.json", "it is no directory; give one of checkpoints/step_"),
    ("checkpoints/tmp.step_000006.1", "not a valid checkpoint"),
    (".", r"it is a run's directory; give its name with --resume auto"),
    ("nowhere", "it is no directory"),
]


@pytest.mark.covers("folder of checkpoints, or part of one, to --resume")
@pytest.mark.parametrize(("given", "said"), WRONG)
def test_what_is_no_checkpoint_is_said_with_what_to_give(tmp_path: Path, given: str, said: str):
    for step in (2, 4):
        make(tmp_path, step, ranks=1)
    (tmp_path / "checkpoints/tmp.step_000006.1").mkdir()
    (tmp_path / "config.resolved.yaml").write_text("{}")
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path, str(tmp_path / given))


MISSHAPEN: list[Any] = [
    {"files": {"state.json": 3}},
    {"files": {"state.json": {"bytes": 1}}},
    {"files": []},
    {"world_size": "two"},
    {"world_size": None},
    {"step": None},
]


@pytest.mark.covers("manifest of another form")
@pytest.mark.parametrize("change", MISSHAPEN)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, change: dict[str, Any]):
    directory = make(tmp_path, 2)
    write_json(directory / "MANIFEST.json", {**read_manifest(directory), **change})
    with pytest.raises(CheckpointError, match=r"no readable MANIFEST\.json"):
        verify(directory)


@pytest.mark.covers("incomplete checkpoint", "manifest of another form")
@pytest.mark.parametrize(
    "part", ["state.json", "arrays.safetensors", "rank1.safetensors", "zero/shard.pt"]
)
def test_a_manifest_that_lists_too_little_is_refused(tmp_path: Path, part: str):
    directory = make(tmp_path, 2)
    manifest = read_manifest(directory)
    (directory / part).unlink()
    del manifest["files"][part]
    write_json(directory / "MANIFEST.json", manifest)
    with pytest.raises(CheckpointError, match=f"has no {part.split('/')[0]}"):
        verify(directory)


@pytest.mark.covers("killed between the renames of a commit")
def test_the_command_shows_what_was_set_aside_and_prunes_no_only_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = run_of(tmp_path / "run", 6)
    arrive(run, 4)
    newest = step_dirs(run)[0]
    newest.rename(newest.with_name("tmp.old_step_000004"))
    assert main(["checkpoints", "prune", str(run)]) == 0
    assert numbers(run) == [2, 4]
    assert main(["checkpoints", "list", str(run)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("abandoned/after_step_000004  0.0 MB  set aside when the run went back")
    assert last.endswith(": step_000006")


def test_steps_are_numbers_and_nothing_else_is_a_step(tmp_path: Path):
    for step in (999_998, 1_000_000):
        make(tmp_path, step)
    (tmp_path / "checkpoints/step_1000000").rename(tmp_path / "checkpoints/step_1000000.bak")
    make(tmp_path, 1_000_000)
    make(tmp_path, 2)
    assert numbers(tmp_path) == [2, 999_998, 1_000_000]
    assert all_steps(tmp_path)[0].name == "step_1000000"
