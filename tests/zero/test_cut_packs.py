"""Packs that two ranks cut between them (zero.sequence_parallel): losses, gradients and metrics
against those of one process, on tiny random models, and what autograd keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import warm_ranks
from zero3_driver import ROOT

pytestmark = pytest.mark.slow
# keys and values in one head, windows with a cap, sinks, experts, values narrower than keys
ARCHITECTURES = ["llama, one key head", "gemma2, window 5", "gpt_oss", "qwen3_moe", "deepseek_v3"]


def on_ranks(out: Path, ranks: int, architectures: list[str]) -> list[list[dict]]:
    """Of each rank, a row a case."""
    line = ["tests/zero/slices_driver.py", str(out), *architectures]
    meet = {**warm_ranks.environment(), "MASTER_PORT": str(warm_ranks.free_port())}
    done = warm_ranks.run(line, ROOT, meet, out, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((out / f"slices-{rank}.json").read_text()) for rank in range(ranks)]


def assert_equal(rows: list[dict]) -> None:
    for row in rows:
        assert row["gradient"] > 0.01, row
        assert row["loss_gap"] < 1e-6, row
        assert row["gradient_gap"] < 1e-5, row
        assert row["metrics_gap"] < 1e-5 * max(map(abs, row["metrics"].values())), row
    for name, value in (("loss_gap", "loss"), ("gradient_gap", "gradient")):
        worst = max(rows, key=lambda row: row[name])
        print(f"{len(rows)} cases, largest {value} error {worst[name]:.2g}: {worst['case']}")


def test_loss_and_gradient_are_those_of_one_process(tmp_path):
    ranks = on_ranks(tmp_path, 2, ARCHITECTURES)
    assert_equal(ranks[0])
    for row, other in zip(*ranks, strict=True):
        # each rank brings a part of the gradient, and keeps about half of what one would
        shares = np.array([row["share"], other["share"]]) / row["gradient"]
        assert (shares > 0.01).all(), row
        assert max(row["kept"], other["kept"]) < 0.6, row
    named = {row["case"]: row["metrics"] for row in ranks[0]}
    assert named["qwen3, ppo, 1000 tokens"]["clip_low"] > 0
    assert named["qwen3, sequence ratios, 25 tokens"]["cut"] > 0


@pytest.mark.architectures
def test_every_architecture_that_is_trained_can_be_cut(tmp_path):
    assert_equal(on_ranks(tmp_path, 2, [])[0])
