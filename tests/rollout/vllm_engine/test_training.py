"""Real runs: 2 ranks of ZeRO-3 with vLLM in each, through the shipped command."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_model import make_model, make_prompts
from ranks import lines, train

pytestmark = pytest.mark.slow

LONG = [
    "data.max_prompt_tokens=200",
    "data.heldout_fraction=0.1",
    "data.heldout_source=null",
    "evaluation.final_samples_per_prompt=1",
    "evaluation.pass_k=[1]",
    "rollout.max_response_tokens=16",
    "scheduler.rounds=5",
    "budget.total_rollouts=160",
    "optimizer.warmup_steps=0",
    "optimizer.schedule=constant",
    "optimizer.learning_rate=0.003",
]


@pytest.mark.parametrize(
    "tied", [True, pytest.param(False, marks=pytest.mark.long)], ids=["tied", "untied"]
)
def test_engine_and_learner_agree_after_each_of_five_updates(tmp_path: Path, tied: bool) -> None:
    model, prompts = (
        make_model(tmp_path / "model", tied=tied),
        make_prompts(tmp_path / "prompts.jsonl"),
    )
    settings = [
        f"model.path={model}",
        f"data.source={prompts}",
        "reward.function=tests/rollout/vllm_engine/rewards.py:odd_length",
    ]
    done = train(tmp_path, "run", [*settings, "rollout.engine=vllm", *LONG])
    assert done.returncode == 0, done.stdout + done.stderr
    _, *steps, last = lines(tmp_path / "run/metrics.jsonl")
    assert [m["parity/version"] for m in steps] == [1, 2, 3, 4, 5]
    print(
        "parity/gap_max",
        [m["parity/gap_max"] for m in steps],
        "mismatch max",
        [m["mismatch/logp_abs_max"] for m in steps],
    )
    for m in steps:
        assert m["grad_norm"] > 0  # so the weights moved
        assert m["skipped_updates"] == 0
        assert m["parity/gap_max"] <= 1e-4  # probe prompts of 200 tokens
        assert m["mismatch/logp_abs_max"] <= 1e-4  # every trained token of this step's rollouts
        assert m["mismatch/ratio_q01"] == pytest.approx(1, abs=1e-4)
        assert m["mismatch/cut_fraction"] == 0
    assert last["budget/spent_rollouts"] == 160
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("tied", "settings"),
    [(True, []), pytest.param(False, ["lora.sync=merged"], marks=pytest.mark.long)],
    ids=["adapter", "merged"],
)
def test_a_lora_adapter_arrives_after_each_of_five_updates(
    tmp_path: Path, tied: bool, settings: list[str]
) -> None:
    model, prompts = (
        make_model(tmp_path / "model", tied=tied),
        make_prompts(tmp_path / "prompts.jsonl"),
    )
    settings = [
        f"model.path={model}",
        f"data.source={prompts}",
        "lora.rank=4",
        "rollout.engine=vllm",
        *LONG,
        *settings,
    ]
    done = train(
        tmp_path,
        "run",
        [*settings, "reward.function=tests/rollout/vllm_engine/rewards.py:odd_length"],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, *steps, last = lines(tmp_path / "run/metrics.jsonl")
    assert [m["parity/version"] for m in steps] == [1, 2, 3, 4, 5]
    print(
        "parity/gap_max",
        [m["parity/gap_max"] for m in steps],
        "mismatch max",
        [m["mismatch/logp_abs_max"] for m in steps],
    )
    for m in steps:
        assert m["grad_norm"] > 0
        assert m["parity/gap_max"] <= 1e-4
        assert m["mismatch/logp_abs_max"] <= 1e-4
        assert m.get("parity/merge_loss") == (0.0 if "lora.sync=merged" in settings else None)
    assert last["budget/spent_rollouts"] == 160


@pytest.mark.long
def test_accounting_is_that_of_the_transformers_engine(tmp_path: Path) -> None:
    """Rewards that look at the prompt alone give both engines the same evidence, so every
    allocation and every count must be the same."""
    settings = [
        "scheduler.rounds=4",
        "budget.total_rollouts=256",
        "data.limit=60",
        "data.heldout_limit=8",
        "optimizer.warmup_steps=0",
        "evaluation.final_samples_per_prompt=1",
        "evaluation.pass_k=[1]",
        "reward.function=tests/rollout/vllm_engine/rewards.py:by_prompt",
        "scheduler.step_scale=5",
    ]
    for engine in ("vllm", "transformers"):
        done = train(tmp_path, engine, [*settings, f"rollout.engine={engine}"])
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("evidence.jsonl", "ledger.jsonl"):
        assert lines(tmp_path / "vllm" / name) == lines(tmp_path / "transformers" / name), name
    counted = (
        "reward",
        "reward_std",
        "cero/price",
        "cero/posterior_mean",
        "budget/spent_rollouts",
        "budget/remaining_rollouts",
    )
    both = zip(
        lines(tmp_path / "vllm/metrics.jsonl"),
        lines(tmp_path / "transformers/metrics.jsonl"),
        strict=True,
    )
    for ours, theirs in both:
        assert {k: ours.get(k) for k in counted} == {k: theirs.get(k) for k in counted}
    assert sum(sum(e["generated"]) for e in lines(tmp_path / "vllm/evidence.jsonl")) == 256
