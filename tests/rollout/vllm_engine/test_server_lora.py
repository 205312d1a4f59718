"""An adapter-only sync to a real server: parity after each update, also after the server was killed
and came back without the adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_model import make_prompts
from ranks import lines, train
from server_box import ServerBox

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_an_adapter_reaches_a_server_that_dies_in_between(tmp_path: Path, model: Path) -> None:
    prompts = make_prompts(tmp_path / "prompts.jsonl", characters=150)
    settings = [
        f"data.source={prompts}",
        "data.max_prompt_tokens=150",
        "data.heldout_fraction=0",
        "data.heldout_source=null",
        "reward.function=tests/rollout/vllm_engine/rewards.py:odd_length",
        "rollout.max_response_tokens=16",
        "scheduler.rounds=5",
        "budget.total_rollouts=160",
        "optimizer.warmup_steps=0",
        "optimizer.schedule=constant",
        "optimizer.learning_rate=0.003",
        "rollout.server.backoff_seconds=0.1",
    ]
    (tmp_path / "server").mkdir()
    server = ServerBox(tmp_path / "server", model, further=("lora.rank=4",))
    try:
        server.wait_ready()
        with server.faulty({"kind": "kill", "skip": 1, "count": 1, "version": "v2"}):
            done = train(tmp_path, "run", [*server.settings(), *settings], imports="warm_imports")
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.done() == ["kill"]
    finally:
        server.stop()
    *steps, last = lines(tmp_path / "run/metrics.jsonl")
    assert [m["parity/version"] for m in steps if m["step"]] == [1, 2, 3, 4, 5]
    for m in steps:
        assert m.get("parity/gap_max", 0) <= 1e-4
        assert m.get("mismatch/logp_abs_max", 0) <= 1e-4  # no token of the base alone got through
    assert last["budget/spent_rollouts"] == 160
