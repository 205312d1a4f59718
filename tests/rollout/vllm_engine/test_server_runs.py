"""Real runs of two ranks that sample from a real server: parity after each update, and what
becomes of them when it dies."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from make_model import make_prompts
from ranks import lines, train
from server_box import ServerBox

pytestmark = pytest.mark.slow


def test_a_run_of_two_ranks_keeps_parity_after_each_update(
    server: ServerBox, tmp_path: Path
) -> None:
    prompts = make_prompts(tmp_path / "prompts.jsonl", characters=150)
    settings = [
        *server.settings(),
        f"data.source={prompts}",
        "data.max_prompt_tokens=150",
        "data.heldout_fraction=0.1",
        "data.heldout_source=null",
        "reward.function=tests/rollout/vllm_engine/rewards.py:odd_length",
        "evaluation.final_samples_per_prompt=1",
        "evaluation.pass_k=[1]",
        "rollout.max_response_tokens=16",
        "scheduler.rounds=5",
        "budget.total_rollouts=160",
        "optimizer.warmup_steps=0",
        "optimizer.schedule=constant",
        "optimizer.learning_rate=0.003",
    ]
    done = train(tmp_path, "run", settings, imports="warm_imports")
    assert done.returncode == 0, done.stdout + done.stderr
    _, *steps, last = lines(tmp_path / "run/metrics.jsonl")
    assert [m["parity/version"] for m in steps] == [1, 2, 3, 4, 5]
    print(
        "parity/gap_max",
        [m["parity/gap_max"] for m in steps],
        "sync",
        [round(m["timing_s/sync"], 2) for m in steps],
    )
    for m in steps:
        assert m["grad_norm"] > 0  # so the weights moved
        assert m["skipped_updates"] == 0
        assert m["parity/gap_max"] <= 1e-4  # probe prompts of more than 128 tokens
        assert m["mismatch/logp_abs_max"] <= 1e-4
        assert m["mismatch/cut_fraction"] == 0
    assert last["budget/spent_rollouts"] == 160
    assert lines(tmp_path / "run/ledger.jsonl")[-1]["refunded_rollouts"] == 0
    key = server.key_file.read_text().strip()
    written = b"".join(
        path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()
    )
    assert key.encode() not in written + (done.stdout + done.stderr).encode()


# --- from here on the server dies: its one restart is used up, then it is gone


def run_settings(server: ServerBox, folder: Path) -> list[str]:
    prompts = make_prompts(folder / "prompts.jsonl", characters=16)
    return [
        *server.settings(),
        f"data.source={prompts}",
        "data.heldout_source=null",
        "data.heldout_fraction=0",
        "reward.function=tests/rollout/vllm_engine/rewards.py:odd_length",
        "rollout.max_response_tokens=32",
        "scheduler.rounds=4",
        "budget.total_rollouts=128",
        "optimizer.warmup_steps=0",
        "rollout.server.retries=3",
        "rollout.server.backoff_seconds=0.1",
    ]


@pytest.mark.long
@pytest.mark.covers(
    "engine answers 5xx", "engine dies mid-batch", "engine returns fewer completions"
)
def test_a_run_survives_5xx_lost_draws_and_a_killed_server(
    server: ServerBox, tmp_path: Path
) -> None:
    """The server is killed by SIGKILL in the middle of a batch and comes back with the start
    model, many updates behind."""
    faults = [  # of two that meet, the first is done
        # the second of four groups of round 3
        {"kind": "kill", "skip": 1, "count": 1, "version": "v2"},
        {"kind": "status", "status": 503, "skip": 4, "count": 3},
        {"kind": "half", "skip": 9, "count": 1},
        {"kind": "lose_one", "skip": 10},
    ]
    with server.faulty(*faults):
        done = train(tmp_path, "run", run_settings(server, tmp_path), imports="warm_imports")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(server.done()) == {"status", "half", "lose_one", "kill"}
    assert "starting it again, 1 of 1" in server.log.read_text()
    run = tmp_path / "run"
    evidence, ledger, metrics = (
        lines(run / "evidence.jsonl"),
        lines(run / "ledger.jsonl"),
        lines(run / "metrics.jsonl"),
    )
    generated = sum(sum(e["generated"]) for e in evidence)
    refunded = ledger[-1]["refunded_rollouts"]
    # every group is of 8
    assert refunded == sum(8 - n for e in evidence for n in e["generated"]) > 0
    assert generated == ledger[-1]["spent_rollouts"] <= 128
    assert generated + metrics[-1]["budget/remaining_rollouts"] == 128
    assert all(e["generated"] == e["trials"] for e in evidence)
    for m in metrics[:-1]:
        assert m["parity/gap_max"] <= 1e-4
        assert m["mismatch/logp_abs_max"] <= 1e-4  # no token of the start model got through


@pytest.mark.long
@pytest.mark.covers("engine dies mid-batch")
def test_a_server_that_stays_away_ends_the_run_with_one_line(model: Path, tmp_path: Path) -> None:
    server = ServerBox(tmp_path, model, restarts=0)
    try:
        server.wait_ready()
        with server.faulty({"kind": "kill", "skip": 1, "count": 1, "version": "v1"}):
            done = train(
                tmp_path,
                "run",
                [*run_settings(server, tmp_path), "rollout.server.restart_timeout_seconds=2"],
                imports="warm_imports",
            )
        assert server.process.wait(60) == 6
    finally:
        server.stop()
    assert "vLLM's server died once (--restarts 0)" in server.log.read_text()
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    assert (
        len(
            re.findall(
                r"^error: (rollout|weight sync of version \d): rank [01]: rollout server "
                rf"{server.url}: ",
                text,
                re.M,
            )
        )
        == 1
    )
    assert "it did not recover within rollout.server.restart_timeout_seconds = 2 s" in text
    assert "exits with return code = 6" in text or done.returncode == 6
    evidence, ledger = lines(tmp_path / "run/evidence.jsonl"), lines(tmp_path / "run/ledger.jsonl")
    # the batch that broke is not booked
    assert sum(sum(e["generated"]) for e in evidence) == ledger[-1]["spent_rollouts"] == 32
    mark = f"CERO_TEST_FAULTS={server.faults}".encode()
    orphans = [
        p.name for p in Path("/proc").iterdir() if p.name.isdigit() and mark in _environment(p)
    ]
    assert not orphans  # vLLM's engine outlives a server that is killed; ours are ended with it


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes() if int(process.name) != os.getpid() else b""
    except OSError:
        return b""
