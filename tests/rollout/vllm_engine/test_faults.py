"""Faults of the real engine in a real 2-rank run: a named error on every rank, a run that goes
on, and a budget that is right."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_model import make_model, make_prompts
from ranks import ROOT, drive, lines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("faults")
    model, prompts = (
        make_model(folder / "model", tied=True, positions=128),
        make_prompts(folder / "prompts.jsonl", characters=16),
    )
    chosen = [
        f"model.path={model}",
        f"data.source={prompts}",
        "data.heldout_source=null",
        "data.heldout_fraction=0",
        "reward.function=tests/rollout/vllm_engine/rewards.py:odd_length",
        "rollout.engine=vllm",
        "rollout.max_response_tokens=32",
        "scheduler.rounds=4",
        "budget.total_rollouts=128",
        "optimizer.warmup_steps=0",
        "checkpoint.every_steps=1",
        "logging.tensorboard=false",
    ]
    return [word for setting in chosen for word in ("--set", setting)]


def run(fault: str, step: int, out: Path, settings: list[str], *more: str, code: int = 0) -> str:
    config = [
        "--config",
        str(ROOT / "recipes/digits_cpu.yaml"),
        "--set",
        f"output_dir={out}",
        "--set",
        "name=run",
    ]
    return drive("fault_driver.py", fault, str(step), *config, *settings, *more, world=2, code=code)


@pytest.mark.covers("engine dies mid-batch")
def test_an_engine_that_dies_in_a_batch_ends_all_ranks_and_the_run_goes_on(
    tmp_path: Path, settings: list[str]
) -> None:
    text = run("dies", 3, tmp_path, settings, code=6)
    assert (
        text.count(
            "error: rollout: rank 1: vllm failed while it generated (engine core is dead); "
            "resume the run"
        )
        == 1
    )
    assert "error (rank 1): rollout: rank 1: vllm failed" in text
    assert "Traceback" not in text
    # the failed batch is not booked
    assert lines(tmp_path / "run/ledger.jsonl")[-1]["spent_rollouts"] == 64
    run("none", 0, tmp_path, settings, "--resume", "auto")
    evidence = lines(tmp_path / "run/evidence.jsonl")
    assert [e["step"] for e in evidence] == [1, 2, 3, 4]
    assert (
        sum(sum(e["generated"]) for e in evidence)
        == 128
        == lines(tmp_path / "run/ledger.jsonl")[-1]["spent_rollouts"]
    )


@pytest.mark.long
@pytest.mark.covers("engine returns fewer completions")
def test_lost_completions_are_refunded_and_sampled_later(
    tmp_path: Path, settings: list[str]
) -> None:
    run("loses", 2, tmp_path, settings)
    evidence, ledger = lines(tmp_path / "run/evidence.jsonl"), lines(tmp_path / "run/ledger.jsonl")
    assert sum(evidence[1]["generated"]) == 24  # of 32: one group of 8 was lost
    assert 0 in evidence[1]["generated"]
    assert ledger[1]["refunded_rollouts"] == 8
    assert sum(sum(e["generated"]) for e in evidence) == ledger[-1]["spent_rollouts"]
    assert all(e["generated"] == e["trials"] for e in evidence)


@pytest.mark.covers("non-finite engine log-probs")
def test_log_probs_that_are_no_numbers_end_the_run(tmp_path: Path, settings: list[str]) -> None:
    text = run("breaks", 2, tmp_path, settings, code=6)
    assert "are not finite; the weights it holds are broken" in text
    assert lines(tmp_path / "run/ledger.jsonl")[-1]["spent_rollouts"] == 32


@pytest.mark.covers("engine hangs")
def test_an_engine_that_hangs_ends_the_run_with_a_named_error(
    tmp_path: Path, settings: list[str]
) -> None:
    limit = ("--set", "rollout.generate_timeout_seconds=5")
    text = run("hangs", 2, tmp_path, settings, *limit, code=6)
    assert "took longer than rollout.generate_timeout_seconds = 5 s" in text
