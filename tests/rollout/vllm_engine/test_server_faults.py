"""Faults of the real server: what passes is asked for again and gives the same rollouts, what
does not ends in one line and exit 6."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from engine_driver import plain
from ranks import ROOT, environment
from server_box import ServerBox, make_engine

from cero_rl.errors import EngineError
from cero_rl.models.load import load_model
from cero_rl.rollout.engines.server_http import Trouble
from cero_rl.rollout.engines.weight_files import new_label, write_weights
from cero_rl.rollout.protocol import RolloutRequest

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


@pytest.mark.covers("engine answers 5xx", "engine hangs")
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
    ids=[
        "503",
        "500",
        "hang",
        "half an answer",
        "fewer completions",
        "the question for its weights",
    ],
)
def test_a_fault_that_passes_changes_no_rollout(
    server: ServerBox, undisturbed: list[Any], fault: Any, keys: Any
) -> None:
    engine = make_engine(server, **keys)
    try:
        with server.faulty(fault):
            assert sample(engine) == undisturbed
        assert server.done() == [fault["kind"]] * fault["count"]
    finally:
        engine.close()


@pytest.mark.covers("engine answers 5xx", "engine hangs")
@pytest.mark.parametrize(
    ("fault", "keys", "said"),
    [
        (
            {"kind": "status", "status": 502},
            {},
            r"failed 4 times \(rollout.server.retries = 3\), the last time: "
            "POST /v1/completions was answered with 502: out of luck",
        ),
        (
            {"kind": "status", "status": 400, "count": 1},
            {},
            "POST /v1/completions was answered with 400: out of luck",
        ),
        (
            {"kind": "status", "status": 302, "count": 1},
            {},
            "was redirected, which is not followed",
        ),
        (
            {"kind": "hang"},
            {"read_timeout_seconds": 0.5, "retries": 1},
            "failed 2 times .*no answer to POST /v1/completions within 0.5 s",
        ),
        (
            {"kind": "hang"},
            {"wait": 2.0},
            "32 rollouts took longer than rollout.generate_timeout_seconds = 2 s",
        ),
        (
            {"kind": "hang", **CALLS},
            {"read_timeout_seconds": 0.5, "restart_timeout_seconds": 1.0},
            "no answer to POST /collective_rpc",
        ),
    ],
    ids=["5xx", "4xx", "redirect", "silence", "a hang", "workers that hang"],
)
def test_a_fault_that_stays_ends_in_one_line(
    server: ServerBox, fault: Any, keys: Any, said: str
) -> None:
    engine = make_engine(server, **keys)
    try:
        with server.faulty(fault), pytest.raises(EngineError, match=said) as raised:
            sample(engine)
        assert str(raised.value).startswith(f"rollout server {server.url}: ")
        assert "\n" not in str(raised.value)
    finally:
        engine.close()


@pytest.mark.covers("engine returns fewer completions")
def test_a_draw_that_never_comes_leaves_its_group_short(
    server: ServerBox, undisturbed: list[Any]
) -> None:
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


@pytest.mark.covers("old weight version served")
def test_old_weights_never_answer(server: ServerBox, undisturbed: list[Any]) -> None:
    start = load_model(str(server.model), "float32", "sdpa")
    # the first call asks which weights there are
    with server.faulty({"kind": "swallow", "count": 1, "skip": 1, **CALLS}):
        engine = make_engine(server)
        assert server.done() == ["swallow"]
    try:
        assert sample(engine) == undisturbed
        foreign, damaged = new_label(0), new_label(0)
        for label in (foreign, damaged):
            write_weights(
                ((name, p.data * 1.1) for name, p in start.named_parameters()),
                server.weights_dir,
                label,
            )
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
        held = server.weights_dir / engine._label / "shard-00000.safetensors"
        held.write_bytes(held.read_bytes()[:-1])
        write_weights(
            ((name, p.data) for name, p in start.named_parameters()),
            server.weights_dir,
            other := new_label(0),
        )
        call(engine, other)
        with pytest.raises(
            EngineError,
            match=r"although it was given .* 2 times \(POST /collective_rpc was answered with "
            r"500: .* is torn",
        ):
            sample(engine)
    finally:
        engine.close()
    with (
        server.faulty({"kind": "swallow", **CALLS}),
        pytest.raises(EngineError, match=r"although it was given v0-[0-9a-f]* 2 times"),
    ):
        make_engine(server)


@pytest.mark.covers("non-finite engine log-probs")
def test_weights_that_are_no_numbers_are_named(server: ServerBox) -> None:
    engine = make_engine(server)
    try:
        broken = {"model.norm.weight": torch.full((64,), float("nan"))}
        model = load_model(str(server.model), "float32", "sdpa")
        engine.load_weights(((n, broken.get(n, p.data)) for n, p in model.named_parameters()), 1)
        with pytest.raises(
            EngineError, match=r"log-probabilities .*not finite; the weights it holds are broken"
        ):
            sample(engine)
    finally:
        engine.close()


@pytest.mark.covers("engine refuses to start")
def test_a_wrong_key_and_a_taken_port_are_one_line(
    server: ServerBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CERO_SERVER_KEY", "not-the-key-of-this-server")
    with pytest.raises(
        EngineError,
        match=r"refused \(401: the key is missing or wrong\); rollout.server.key_file must be",
    ):
        make_engine(server)
    monkeypatch.delenv("CERO_SERVER_KEY")
    command = [sys.executable, "-m", "cero_rl", "serve", *server.arguments()]
    taken = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert taken.returncode == 6
    assert taken.stderr.count("\n") == 1
    assert f"--port {server.port}: cannot listen there (Address already in use)" in taken.stderr
