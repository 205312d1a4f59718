"""Faults put into the real command on 2 ranks of ZeRO-3: what the run survives, and how it ends
where it cannot."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from kill_sweep import (  # noqa: E402
    RANK_1_STEP_3,
    Ranks,
    counted_once,
    fingerprint,
    free_port,
    kill_and_resume,
    last_checkpoint,
    logged_once,
    train,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uncut(out: Path) -> Path:
    done = train(out, "uncut")
    assert done.codes == [0, 0], done.text
    assert counted_once(out / "uncut")
    return out / "uncut"


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def one_error(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith("error")]
    assert "Traceback (most recent" not in text, text
    assert len(errors) == 1, text
    return errors[0]


@pytest.mark.parametrize(
    ("point", "at"),
    [
        pytest.param("learner.backward", None, marks=pytest.mark.covers("rank killed in backward")),
        pytest.param(
            "checkpoint.written",
            None,
            marks=pytest.mark.covers(
                "SIGKILL at a checkpoint stage", "killed between log and commit"
            ),
        ),
        pytest.param(
            "checkpoint.renamed", None, marks=pytest.mark.covers("SIGKILL at a checkpoint stage")
        ),
        pytest.param(
            "log.evidence",
            "@rank=0,step=1",
            marks=pytest.mark.covers("killed before the first checkpoint"),
        ),
    ],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    out: Path, uncut: Path, point: str, at: str | None
):
    row = kill_and_resume(out, point, fingerprint(uncut), at=at)
    assert row.good, row
    assert row.resumed_from == (
        "step 0" if at else "step_000004" if point == "checkpoint.renamed" else "step_000002"
    )


def said_of_a_stopped_rank(out: Path, name: str, limit: str) -> str:
    """The one error of rank 0, while rank 1 stands still with its connections open: what a lost
    peer looks like under NCCL."""
    fault = f"learner.backward{RANK_1_STEP_3}:sigstop"
    ranks = Ranks(out, name, settings=[limit], fault=fault)
    while ranks.processes[0].poll() is None and time.monotonic() < ranks.started + 120:
        time.sleep(0.05)
    ranks.processes[1].kill()
    done = ranks.wait()
    assert done.codes == [6, -9], done.text
    return one_error(done.texts[0])


@pytest.mark.covers("rank stopped in a collective")
def test_a_stopped_rank_is_named_within_the_limit(out: Path):
    said = said_of_a_stopped_rank(out, "stopped", "watchdog.stall_seconds=8")
    assert "learner took longer than watchdog.stall_seconds = 8 s" in said


@pytest.mark.covers("rank gone while the others only wait")
def test_a_silent_rank_is_named_long_before_any_phase_is_over(out: Path):
    said = said_of_a_stopped_rank(out, "silent", "watchdog.heartbeat_seconds=4")
    assert "rank 1 was not heard of for 4 s (watchdog.heartbeat_seconds)" in said


@pytest.mark.covers("exception in a reward on one rank")
def test_an_error_in_a_reward_is_everyones(out: Path):
    done = train(out, "reward", fault="reward.before@rank=1,step=2:raise")
    assert done.codes == [5, 5], done.text
    assert one_error(done.text) == (
        "error: reward: rank 1: RuntimeError: fault injected at reward.before, step 2"
    )


@pytest.mark.covers("SIGTERM to one rank", "second SIGTERM during the save")
def test_a_signal_to_one_rank_is_agreed_saved_and_resumed(out: Path, uncut: Path):
    done = train(
        out,
        "signal",
        fault=f"evidence.booked{RANK_1_STEP_3}:sigterm;checkpoint.write{RANK_1_STEP_3}:sigterm",
    )
    assert done.codes == [75, 75], done.text
    assert "stopped after step 3; saved" in done.text
    again = train(out, "signal", "--resume", "auto")
    assert again.codes == [0, 0], again.text
    assert fingerprint(out / "signal") == fingerprint(uncut)


@pytest.mark.covers("Ctrl-C twice")
def test_a_second_ctrl_c_leaves_at_once(out: Path):
    ranks = Ranks(out, "impatient", fault="learner.before_step@step=3:sleep=60")
    saved = out / "impatient/checkpoints/step_000002/MANIFEST.json"
    while not saved.exists() and time.monotonic() < ranks.started + 120:
        time.sleep(0.05)
    time.sleep(1)
    for _ in range(2):
        for process in ranks.processes:
            process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    done = ranks.wait(grace_seconds=10)
    # a rank that slept on would have been killed: -9
    assert done.codes == [130, 130], done.text
    assert saved.exists()


@pytest.mark.parametrize(
    ("name", "fault", "settings"),
    [
        pytest.param(
            "full",
            "checkpoint.write@rank=1,step=2:enospc",
            [],
            marks=pytest.mark.covers("disk full once"),
        ),
        pytest.param(
            "writer",
            "checkpoint.write@rank=1:raise",
            ["checkpoint.asynchronous=true"],
            marks=pytest.mark.covers("async writer dies"),
        ),
    ],
)
def test_a_save_that_failed_is_said_and_made_good(
    out: Path, uncut: Path, name: str, fault: str, settings: list[str]
):
    done = train(out, name, fault=fault, settings=settings)
    assert done.codes == [0, 0], done.text
    assert (
        done.text.count(
            "not saved (1 of checkpoint.max_failures = 3): checkpoint of step 2, write: rank 1"
        )
        == 1
    )
    assert max(m.get("checkpoint/failed_saves", 0) for m in metrics(out / name)) == 1
    assert (out / name / "checkpoints/step_000006/MANIFEST.json").exists()
    assert fingerprint(out / name) == fingerprint(uncut)


@pytest.mark.covers("disk full three times")
def test_three_failed_saves_end_the_run(out: Path):
    done = train(out, "full3", fault="checkpoint.write@rank=1:enospc*3")
    assert done.codes == [4, 4], done.text
    assert "No space left on device" in one_error(done.text)


@pytest.mark.covers("NaN loss on one rank")
def test_all_ranks_skip_a_loss_that_is_no_number(out: Path):
    done = train(out, "nan", fault=f"learner.loss{RANK_1_STEP_3}:nan")
    assert done.codes == [0, 0], done.text
    assert [m["skipped_updates"] for m in metrics(out / "nan")[1:-1]] == [0, 0, 1, 0, 0, 0]


@pytest.mark.covers("NaN loss on one rank", "NaN gradient with finite loss")
def test_three_bad_gradients_in_a_row_end_the_run(out: Path):
    done = train(out, "nan3", fault="learner.gradient@rank=1:nan*3")
    assert done.codes == [7, 7], done.text
    assert "3 optimizer steps in a row" in done.text


@pytest.mark.covers("all rewards equal")
def test_a_run_without_any_signal_ends_with_the_model_it_began_with(out: Path):
    done = train(out, "equal", settings=["reward.function=tests/faults/rewards.py:always"])
    assert done.codes == [0, 0], done.text
    steps = metrics(out / "equal")[1:-1]
    assert all(m["frac_reward_zero_std"] == 1.0 and m["grad_norm"] == 0.0 for m in steps)
    assert steps[-1]["budget/remaining_rollouts"] == 0
    assert "no step had a group whose rewards differ" in done.text
    from safetensors.torch import load_file

    start, end = (
        load_file(ROOT / "recipes/assets/tiny_digits/model.safetensors"),
        load_file(out / "equal/export/model.safetensors"),
    )
    assert all(bool((end[name] == start[name]).all()) for name in end)


@pytest.mark.covers("all rewards missing")
def test_rewards_that_are_all_missing_end_the_run_saved_and_a_mended_one_goes_on(out: Path):
    nobody_asks_before = ["data.heldout_source=null", "data.heldout_fraction=0"]
    broken = [*nobody_asks_before, "reward.function=tests/faults/rewards.py:breaks"]
    # steps of a quarter of the window: what is missing in it does not end the mended run again
    quarters = ["learner.rollouts_per_step=32"]
    nobody_asks_before += quarters
    broken += quarters
    done = train(out, "unjudged", settings=broken)
    assert done.codes == [5, 5], done.text
    assert "128 of the last 128 rollouts have no reward (100%" in one_error(done.text)
    assert "'solutoin'" in done.text
    assert "done:" not in done.text
    assert metrics(out / "unjudged")[-1]["budget/spent_rollouts"] == 128
    mended = [*nobody_asks_before, "reward.function=exact"]
    flags = ("--resume", "auto", "--accept-new-reward")
    done = train(out, "unjudged", *flags, settings=mended)
    assert done.codes == [0, 0], done.text
    assert metrics(out / "unjudged")[-1]["budget/remaining_rollouts"] == 0


@pytest.mark.covers("all rewards missing in a run that its tokens end")
def test_a_run_that_ends_with_rollouts_left_is_judged_too(out: Path):
    settings = [
        "data.heldout_source=null",
        "data.heldout_fraction=0",
        "reward.function=tests/faults/rewards.py:breaks",
        "reward.missing_window_rollouts=100000",
        "budget.total_tokens=100",
    ]
    done = train(out, "tokens", ranks=1, settings=settings)
    assert done.codes == [5], done.text
    assert "rollouts have no reward (100%" in one_error(done.text)
    assert metrics(out / "tokens")[-1]["budget/remaining_rollouts"] > 0
    assert last_checkpoint(out / "tokens").is_dir()


@pytest.mark.covers("rewards missing in evaluation")
def test_held_out_samples_that_are_not_judged_make_no_accuracy_and_no_run(out: Path):
    settings = ["reward.function=tests/faults/rewards.py:abstains", "reward.max_missing_rate=0.25"]
    done = train(out, "abstains", settings=settings)
    assert done.codes == [5, 5], done.text
    assert "held-out before training: accuracy unknown: " in done.text
    assert "held-out samples" in one_error(done.text)
    before = metrics(out / "abstains")[0]
    assert 0 < before["eval/judged_rate"] < 0.75
    assert not [name for name in before if "avg@" in name or "pass@" in name]


@pytest.mark.parametrize(
    ("ranks", "settings", "said"),
    [
        pytest.param(
            1,
            [],
            "written by 2 ranks, this job has 1",
            marks=pytest.mark.covers("another world size"),
        ),
        pytest.param(
            2,
            ["data.limit=100"],
            "data.limit was 120, is 100",
            marks=pytest.mark.covers("another data set"),
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_both_values(
    out: Path, uncut: Path, ranks: int, settings: list[str], said: str
):
    before = fingerprint(uncut)
    done = train(out, "uncut", "--resume", "auto", ranks=ranks, settings=settings)
    assert set(done.codes) == {4}, done.text
    assert said in one_error(done.text)
    assert fingerprint(uncut) == before


@pytest.mark.covers("junk in latest", "stale tmp directories", "truncated checkpoint")
def test_leftovers_and_damage_are_passed_over(out: Path, uncut: Path):
    run = out / "leftovers"
    shutil.copytree(uncut, run)
    (run / "latest.json").write_text("{not json")
    stale = run / "checkpoints/tmp.step_000008.1"
    stale.mkdir()
    (stale / "state.json").write_text("{")
    optimizer = next((last_checkpoint(run) / "zero").glob("*optim_states.pt"))
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    done = train(out, "leftovers", "--resume", "auto")
    assert done.codes == [0, 0], done.text
    assert f"{optimizer.name}: 1000 bytes, the manifest says" in done.text
    assert "resumed from" in done.text
    assert not stale.exists()
    assert fingerprint(run) == fingerprint(uncut)


@pytest.mark.covers("two jobs on one run directory")
def test_a_second_job_on_the_directory_is_sent_away(out: Path, uncut: Path):
    from cero_rl.job.lock import RunLock, is_locked

    lock = RunLock(uncut)
    assert is_locked(uncut)
    try:
        done = train(out, "uncut", "--resume", "auto")
        assert done.codes == [2, 2], done.text
        assert f"{uncut}: another job works in it (process " in one_error(done.text)
        done = train(out, "uncut", "--overwrite", ranks=1)
        assert done.codes == [2], done.text
    finally:
        lock.release()
    assert not is_locked(uncut)


@pytest.mark.covers("port in use")
def test_a_port_that_is_taken_is_said(out: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        done = Ranks(out, "port", ranks=1, port=taken.getsockname()[1]).wait()
    assert done.codes == [6], done.text
    assert "could not meet at 127.0.0.1:" in one_error(done.text)
    assert not (out / "port").exists()


@pytest.mark.covers("generation ahead cut")
def test_rollouts_generated_ahead_survive_a_cut(out: Path):
    ahead = ["rollout.overlap=true", "checkpoint.asynchronous=true"]
    done = train(out, "ahead", settings=ahead)
    assert done.codes == [0, 0], done.text
    steps = metrics(out / "ahead")[1:-1]
    assert [m["rollout/staleness"] for m in steps] == [0, 1, 1, 1, 1, 1]
    assert steps[-1]["budget/spent_rollouts"] == 384
    row = kill_and_resume(out, "learner.after_step", fingerprint(out / "ahead"), ahead)
    assert row.same, row


EPISODES = [
    "model.path=recipes/assets/guess/model",
    "data.source=recipes/assets/guess/train.jsonl",
    "data.heldout_source=recipes/assets/guess/heldout.jsonl",
    "data.chat_template=auto",
    "rollout.environment=recipes/environments/guess.py:GuessNumber",
    "rollout.max_response_tokens=48",
    "scheduler.rounds=4",
    "budget.total_rollouts=192",
    "data.heldout_limit=2",
]


@pytest.mark.covers("episode cut in its middle")
def test_a_run_cut_in_the_middle_of_an_episode_goes_on_as_if_nothing_had_happened(out: Path):
    done = train(out, "episodes", settings=EPISODES)
    assert done.codes == [0, 0], done.text
    ledger = [json.loads(x) for x in (out / "episodes/ledger.jsonl").read_text().splitlines()]
    assert ledger[-1]["spent_rollouts"] == 192
    assert 192 < ledger[-1]["spent_turns"] <= 6 * 192
    row = kill_and_resume(out, "episode.turn", fingerprint(out / "episodes"), EPISODES)
    assert row.good, row
    assert row.resumed_from == "step_000002"


@pytest.mark.covers("back to an older checkpoint", "finished run started again")
def test_a_run_that_went_back_never_returns_to_the_future_it_left(out: Path, uncut: Path):
    run = out / "back"
    shutil.copytree(uncut, run)
    older = run / "checkpoints/step_000004"
    done = train(out, "back", "--resume", str(older), "--stop-at-step", "5")
    assert done.codes == [0, 0], done.text
    assert f"what came after step 4 is set aside in {run / 'abandoned/after_step_000004'}: " in (
        done.text
    )
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step_000004",
        "step_000005",
    ]
    assert (run / "abandoned/after_step_000004/checkpoints/step_000006/MANIFEST.json").exists()
    assert not (run / "export").exists()
    done = train(out, "back", "--resume", "auto")
    assert done.codes == [0, 0], done.text
    assert f"resumed from {run / 'checkpoints/step_000005'}: step 5" in done.text
    assert fingerprint(run) == fingerprint(uncut)
    assert logged_once(run)
    manifest = json.loads((last_checkpoint(run) / "MANIFEST.json").read_text())
    assert manifest["parent"]["step"] == 5
    assert manifest["score"] == metrics(run)[-1]["eval/avg@1"]
    before = {path: path.read_bytes() for path in run.glob("*.jsonl")}
    shutil.rmtree(run / "export")
    done = train(out, "back", "--resume", "auto", fault="export.written:raise")
    assert "done before: 6 steps, 384 of 384 rollouts; nothing to add" in done.text
    assert "held-out accuracy" not in done.text
    assert (run / "export/model.safetensors").exists()
    assert done.codes == [6, 6], done.text
    assert "error: export failed (RuntimeError: fault injected at export.written" in done.texts[0]
    del before[run / "attempts.jsonl"]
    assert all(path.read_bytes() == text for path, text in before.items())
