"""Faults of the real server: what passes is asked for again and gives the same rollouts, what does not ends in one line and exit 6."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_driver import plain
from make_model import make_prompts
from ranks import lines, train
from server_box import ServerBox, make_engine

from cero_rl.engine.models import load_model
from cero_rl.errors import EngineError
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.rollout.server_http import Trouble
from cero_rl.rollout.weight_files import new_label, write_weights

pytestmark = pytest.mark.slow

REQUESTS = [RolloutRequest(i, np.array([2 + i, 5, 7, 3]), 4, stream_key=i) for i in range(8)]
COMPLETIONS = {"path": "/v1/completions"}
CALLS = {"path": "/collective_rpc"}


def sample(engine: Any) -> list[Any]:
    return plain(engine.generate(REQUESTS, stream=1, temperature=1.0))


@pytest.fixture(scope="module")
def undisturbed(server: ServerBox) -> list[Any]:
    engine = make_engine(server)
    try:
        return sample(engine)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("fault", "keys"),
    [
        ({"kind": "status", "status": 503, "skip": 2, "count": 3}, {}),
        ({"kind": "status", "status": 500, "count": 2}, {}),
        ({"kind": "hang", "skip": 3, "count": 2}, {"read_timeout_seconds": 3.0}),
        ({"kind": "half", "skip": 1, "count": 2}, {}),
        ({"kind": "short", "count": 4}, {}),
        ({"kind": "status", "status": 500, "count": 1, **CALLS}, {}),
    ],
    ids=["503", "500", "hang", "half an answer", "fewer completions", "the question for its weights"],
)
def test_a_fault_that_passes_changes_no_rollout(server: ServerBox, undisturbed: list[Any], fault: Any, keys: Any) -> None:
    engine = make_engine(server, **keys)
    try:
        with server.faulty(fault):
            assert sample(engine) == undisturbed
        assert server.done() == [fault["kind"]] * fault["count"]
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("fault", "keys", "said"),
    [
        ({"kind": "status", "status": 502}, {}, r"failed 4 times \(rollout.server.retries = 3\), the last time: "
         "POST /v1/completions was answered with 502: out of luck"),
        ({"kind": "status", "status": 400, "count": 1}, {}, "POST /v1/completions was answered with 400: out of luck"),
        ({"kind": "status", "status": 302, "count": 1}, {}, "was redirected, which is not followed"),
        ({"kind": "hang"}, {"read_timeout_seconds": 0.5, "retries": 1}, "failed 2 times .*no answer to POST /v1/completions within 0.5 s"),
        ({"kind": "hang"}, {"wait": 2.0}, "32 rollouts took longer than rollout.generate_timeout_seconds = 2 s"),
        ({"kind": "hang", **CALLS}, {"read_timeout_seconds": 0.5, "restart_timeout_seconds": 1.0}, "no answer to POST /collective_rpc"),
    ],
    ids=["5xx", "4xx", "redirect", "silence", "a hang", "workers that hang"],
)  # fmt: skip
def test_a_fault_that_stays_ends_in_one_line(server: ServerBox, fault: Any, keys: Any, said: str) -> None:
    engine = make_engine(server, **keys)
    started = time.monotonic()
    try:
        with server.faulty(fault), pytest.raises(EngineError, match=said) as raised:
            sample(engine)
        assert time.monotonic() - started < 20
        assert str(raised.value).startswith(f"rollout server {server.url}: ")
        assert "\n" not in str(raised.value)
    finally:
        engine.close()


def test_a_draw_that_never_comes_leaves_its_group_short(server: ServerBox, undisturbed: list[Any]) -> None:
    engine = make_engine(server)
    try:
        with server.faulty({"kind": "lose_one"}):
            groups = sample(engine)
        assert server.done() == ["lose_one"] * 3  # asked for once with the others, and twice alone
        sizes = [len(completions) for _, completions in groups]
        assert sorted(sizes) == [3, 4, 4, 4, 4, 4, 4, 4]
        for (_, completions), (_, whole) in zip(groups, undisturbed):
            assert completions == whole[: len(completions)]
    finally:
        engine.close()


def call(engine: Any, label: str) -> None:
    engine._runner.run(engine._client.rpc("load_weight_files", label))


def test_old_weights_never_answer(server: ServerBox, undisturbed: list[Any]) -> None:
    start = load_model(str(server.model), "float32", "sdpa")
    with server.faulty({"kind": "swallow", "count": 1, "skip": 1, **CALLS}):  # the first call asks which weights there are
        engine = make_engine(server)
        assert server.done() == ["swallow"]
    try:
        assert sample(engine) == undisturbed
        foreign, damaged = new_label(0), new_label(0)
        for label in (foreign, damaged):
            write_weights(((name, p.data * 1.1) for name, p in start.named_parameters()), server.weights_dir, label)
        call(engine, foreign)  # another run takes the server
        assert sample(engine) == undisturbed
        shard = server.weights_dir / damaged / "shard-00000.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
        with pytest.raises(Trouble, match="is damaged: its sha256 is not the manifest's"):
            call(engine, damaged)
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(Trouble, match="is torn"):
            call(engine, damaged)
        assert sample(engine) == undisturbed
    finally:
        engine.close()
    with server.faulty({"kind": "swallow", **CALLS}), pytest.raises(EngineError, match=r"although it was given v0-[0-9a-f]* 2 times"):
        make_engine(server)


def test_weights_that_are_no_numbers_are_named(server: ServerBox) -> None:
    engine = make_engine(server)
    try:
        broken = {"model.norm.weight": torch.full((64,), float("nan"))}
        model = load_model(str(server.model), "float32", "sdpa")
        engine.load_weights(((n, broken.get(n, p.data)) for n, p in model.named_parameters()), 1)
        with pytest.raises(EngineError, match=r"log-probabilities .*not finite; the weights it holds are broken"):
            sample(engine)
    finally:
        engine.close()


# --- from here on the server dies: its one restart is used up, then it is gone ------------------------------------------------


def run_settings(server: ServerBox, folder: Path) -> list[str]:
    prompts = make_prompts(folder / "prompts.jsonl", characters=16)
    return [
        *server.settings(), f"data.source={prompts}", "data.heldout_source=null", "data.heldout_fraction=0",
        "reward.function=tests/vllm_engine/rewards.py:odd_length", "rollout.max_response_tokens=32", "scheduler.rounds=4",
        "budget.total_rollouts=128", "optimizer.warmup_steps=0", "rollout.server.retries=3", "rollout.server.backoff_seconds=0.1",
    ]  # fmt: skip


def test_a_run_survives_5xx_lost_draws_and_a_killed_server(server: ServerBox, undisturbed: list[Any], tmp_path: Path) -> None:
    """The server is killed by SIGKILL in the middle of a batch and comes back with the start model, many updates behind."""
    faults = [
        {"kind": "status", "status": 503, "skip": 4, "count": 3},
        {"kind": "half", "skip": 9, "count": 1},
        {"kind": "lose_one", "skip": 12},
        {"kind": "kill", "skip": 20, "count": 1},
    ]
    with server.faulty(*faults):
        done = train(tmp_path, "run", run_settings(server, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(server.done()) == {"status", "half", "lose_one", "kill"}
    assert "starting it again, 1 of 1" in server.log.read_text()
    run = tmp_path / "run"
    evidence, ledger, metrics = lines(run / "evidence.jsonl"), lines(run / "ledger.jsonl"), lines(run / "metrics.jsonl")
    generated = sum(sum(e["generated"]) for e in evidence)
    refunded = ledger[-1]["refunded_rollouts"]
    assert refunded > 0  # lost draws
    assert generated == ledger[-1]["spent_rollouts"] == 128 - refunded or generated == ledger[-1]["spent_rollouts"] == 128
    assert all(e["generated"] == e["trials"] for e in evidence)
    for m in metrics[:-1]:
        assert m["parity/gap_max"] <= 1e-4
        assert m["mismatch/logp_abs_max"] <= 1e-4  # no token of the start model got through
    server.wait_ready(times=2)
    engine = make_engine(server)  # and the server that came back gives what the first one gave
    try:
        assert sample(engine) == undisturbed
    finally:
        engine.close()


def test_a_server_that_stays_away_ends_the_run_with_one_line(server: ServerBox, tmp_path: Path) -> None:
    server.fired.unlink(missing_ok=True)
    with server.faulty({"kind": "kill", "skip": 12, "count": 1}):
        done = train(tmp_path, "run", [*run_settings(server, tmp_path), "rollout.server.restart_timeout_seconds=2"])
    assert server.process.wait(60) == 6  # its one restart was used
    assert "vLLM's server died 2 times (--restarts 1)" in server.log.read_text()
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    assert len(re.findall(rf"^error: (rollout|weight sync of version \d): rank [01]: rollout server {server.url}: ", text, re.M)) == 1
    assert "it did not recover within rollout.server.restart_timeout_seconds = 2 s" in text
    assert "exits with return code = 6" in text or done.returncode == 6
    evidence, ledger = lines(tmp_path / "run/evidence.jsonl"), lines(tmp_path / "run/ledger.jsonl")
    assert sum(sum(e["generated"]) for e in evidence) == ledger[-1]["spent_rollouts"] < 128  # the batch that broke is not booked
    mark = f"CERO_TEST_FAULTS={server.faults}".encode()
    orphans = [p.name for p in Path("/proc").iterdir() if p.name.isdigit() and mark in _environment(p)]
    assert not orphans  # vLLM's engine outlives a server that is killed; ours are ended with it


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes() if int(process.name) != os.getpid() else b""
    except OSError:
        return b""
