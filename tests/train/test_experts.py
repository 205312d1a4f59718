"""A mixture of experts in the real loop on two ranks: trained, synced, resumed, exported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from launch import ROOT, launch, lines, repeatable
from safetensors.torch import load_file

sys.path.insert(0, str(ROOT / "tests/models"))

from architectures import TRAINED, save_model

pytestmark = pytest.mark.slow
SMALL = [
    "scheduler.rounds=3",
    "budget.total_rollouts=192",
    "optimizer.learning_rate=0.001",
    "checkpoint.every_steps=1",
    "evaluation.samples_per_prompt=1",
    "evaluation.final_samples_per_prompt=1",
    "evaluation.pass_k=[1]",
    f"reward.function={ROOT}/tests/models/odd_length.py:reward",
]


def test_experts_train_sync_resume_and_are_exported(tmp_path: Path) -> None:
    (row,) = [row for row in TRAINED if row.name == "qwen3_moe"]
    model = save_model(row, tmp_path / "start")
    settings = [*SMALL, f"model.path={model}"]
    for run, flags in (
        ("whole", ()),
        ("cut", ("--stop-at-step", "1")),
        ("cut", ("--resume", "auto")),
    ):
        done = launch(tmp_path, run, *flags, settings=settings)
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("metrics.jsonl", "ledger.jsonl", "evidence.jsonl"):
        a, b = ([repeatable(m) for m in lines(tmp_path / r / name)] for r in ("whole", "cut"))
        assert a == b, name
    steps = [m for m in lines(tmp_path / "whole/metrics.jsonl") if "step_time" in m]
    assert len(steps) == 3
    assert max(m["parity/gap"] for m in steps) < 1e-5
    weights, before = (
        load_file(f / "model.safetensors") for f in (tmp_path / "whole/export", model)
    )
    resumed = load_file(tmp_path / "cut/export/model.safetensors")
    assert weights.keys() == before.keys() == resumed.keys()
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    moved = {name for name in weights if not torch.equal(weights[name], before[name])}
    assert {name for name in before if "experts" in name or "gate" in name} <= moved
