"""zero.sequence_parallel in whole runs: two ranks that cut every pack between them against one rank
that holds it."""

from __future__ import annotations

import pytest
from launch import launch, lines, repeatable

pytestmark = pytest.mark.slow
SETTINGS = [
    "scheduler.rounds=3",
    "budget.total_rollouts=192",
    "learner.kl_coefficient=0.02",
    "learner.updates_per_batch=2",
    "learner.max_micro_batch_tokens=256",
    "evaluation.final_samples_per_prompt=1",
    "evaluation.pass_k=[1]",
    "data.heldout_limit=4",
]
CUT = [*SETTINGS, "zero.sequence_parallel=2"]


def test_a_run_on_two_ranks_is_that_of_one(tmp_path):
    for name, ranks, settings in (("one", 1, SETTINGS), ("cut", 2, CUT)):
        done = launch(tmp_path, name, ranks=ranks, settings=settings)
        assert done.returncode == 0, done.stdout + done.stderr
    one, cut = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "cut"))
    assert [row["step"] for row in cut] == [0, 1, 2, 3, 3]
    largest = 0.0
    for row, other in zip(one[1:4], cut[1:4], strict=True):
        assert row["trained_tokens"] == other["trained_tokens"] > 0
        assert row["num_tokens"] == other["num_tokens"]  # counted once, not once a rank
        assert row["micro_batches"] == other["micro_batches"] > 1
        for name, value in repeatable(row).items():
            if isinstance(value, float):  # Adam makes more of roundings with every step
                bound = 1e-5 if name in ("loss", "kl", "entropy") else 1e-4
                assert other[name] == pytest.approx(value, abs=bound, rel=1e-4), name
        largest = max(largest, abs(row["loss"] - other["loss"]))
    print(f"largest difference of a loss over 3 steps: {largest:.2g}")
    for name in ("evidence.jsonl", "ledger.jsonl"):  # every rollout booked once
        rows, others = (lines(tmp_path / run / name) for run in ("one", "cut"))
        assert [r.get("generated") for r in rows] == [r.get("generated") for r in others]
        assert [r.get("spent_rollouts") for r in rows] == [r.get("spent_rollouts") for r in others]
    assert others[-1]["spent_rollouts"] == others[-1]["total_rollouts"] == 192
