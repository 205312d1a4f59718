"""Server mode on a real server: the same protocol and answers as the engine in a rank, the
learner's weights, nothing for strangers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from engine_driver import episodes, gap, make_requests, plain
from server_box import ServerBox, make_engine, push

from cero_rl.models.load import load_model, load_tokenizer
from cero_rl.rollout.protocol import RolloutRequest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(server: ServerBox) -> Iterator[Any]:
    engine = make_engine(server, max_response=100)
    yield engine
    engine.close()


def sample(
    engine: Any,
    requests: list[RolloutRequest],
    *,
    stream: int = 1,
    temperature: float = 1.0,
    limit: int = 24,
) -> list[Any]:
    return engine.generate(requests, stream=stream, temperature=temperature, max_tokens=limit)


def test_the_server_answers_as_the_engine_of_a_rank(
    engine: Any, model: Path, answers: list[dict[str, Any]]
) -> None:
    requests = make_requests()
    whole = sample(engine, requests)
    assert plain(whole) == answers[0]["whole"]
    assert plain(sample(engine, requests, limit=2)) == answers[0]["cut"]
    assert plain(sample(engine, requests, stream=2)) == answers[0]["other_stream"]
    wave = [
        RolloutRequest(r.prompt_id, r.prompt_tokens, 2, r.stream_key, first_draw=3)
        for r in requests
    ]
    assert plain(sample(engine, wave)) == answers[0]["later_wave"]
    cool, plainly = (
        sample(engine, requests, temperature=0.6),
        load_model(str(model), "float32", "sdpa"),
    )
    assert gap(plainly, whole, 1.0) < 1e-4
    assert gap(plainly, cool, 0.6) < 1e-4
    assert gap(plainly, cool, 1.0) > 0.05
    assert sample(engine, []) == []


def test_episodes_are_those_of_the_engine_of_a_rank(
    engine: Any, model: Path, answers: list[dict[str, Any]]
) -> None:
    talks = episodes(engine, load_tokenizer(str(model)))
    assert plain(talks) == answers[0]["episodes"]
    assert gap(load_model(str(model), "float32", "sdpa"), talks, 1.0) < 1e-4


def test_new_weights_reach_every_answer(engine: Any, server: ServerBox, model: Path) -> None:
    """A prompt of 200 tokens lies in the prefix cache from before, and the head of the model is
    tied."""
    moved = load_model(str(model), "float32", "sdpa")
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    requests = make_requests()
    old = sample(engine, requests)
    push(engine, moved, 1)
    new = sample(engine, requests)
    assert gap(moved, new, 1.0) < 1e-4
    assert gap(moved, old, 1.0) > 0.01
    assert {c.policy_version for g in new for c in g.completions} == {1}
    # old versions are gone
    assert len([path for path in server.weights_dir.iterdir() if path.is_dir()]) == 1
    push(engine, load_model(str(model), "float32", "sdpa"), 2)
    again = sample(engine, requests)
    assert [[c.token_ids.tolist() for c in g.completions] for g in again] == [
        [c.token_ids.tolist() for c in g.completions] for g in old
    ]


@pytest.mark.covers("rollout 100 times longer")
def test_one_rollout_a_hundred_times_longer_than_another_is_cut_and_recorded(engine: Any) -> None:
    requests = [RolloutRequest(i, np.array([2 + i, 5, 7]), 60, stream_key=i) for i in range(10)]
    done = [c for g in sample(engine, requests, stream=6, limit=100) for c in g.completions]
    lengths = [len(c.token_ids) for c in done]
    assert len(done) == 600
    assert (min(lengths), max(lengths)) == (1, 100)
    assert any(c.finish_reason == "length" for c in done)
    for c in done:
        assert (c.finish_reason == "length") == (c.token_ids[-1] != 1)
        assert c.finish_reason == "stop" or len(c.token_ids) == 100


def test_more_prompt_tokens_than_one_pass_of_the_engine_takes(engine: Any) -> None:
    rng = np.random.default_rng(3)
    requests = [RolloutRequest(i, rng.integers(2, 12, 200), 3, stream_key=i) for i in range(60)]
    groups = sample(engine, requests, stream=8, limit=4)
    assert [len(g.completions) for g in groups] == [3] * 60


def test_strangers_get_nothing(server: ServerBox) -> None:
    key = server.key_file.read_text().strip()
    assert server.key_file.stat().st_mode & 0o777 == 0o600
    with httpx2.Client(base_url=server.url, trust_env=False) as client:
        assert client.get("/health").status_code == 200
        for path in ("/v1/completions", "/collective_rpc", "/reset_prefix_cache", "/metrics"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": key}):
                answer = client.post(path, json={"method": "weights_state"}, headers=headers)
                assert answer.status_code == 401, (path, headers)
                assert key not in answer.text
        ours = {"Authorization": f"Bearer {key}"}
        assert (
            client.post(
                "/collective_rpc", json={"method": "weights_state"}, headers=ours
            ).status_code
            == 200
        )
        # vLLM has them in this mode
        for path in ("/pause", "/sleep", "/server_info", "/abort_requests", "/shutdown"):
            assert client.post(path, headers=ours).status_code == 403, path
        assert (
            client.post(
                "/collective_rpc", json={"method": "save_sharded_state"}, headers=ours
            ).status_code
            == 403
        )
        outside = client.post(
            "/collective_rpc",
            json={"method": "load_weight_files", "args": ["../../secret"]},
            headers=ours,
        )
        assert outside.status_code == 500
        assert "is no label of weights" in outside.text
    assert key not in server.log.read_text()
