"""A run on two ranks with a reward for the answer and one for its form."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import launch, lines

pytestmark = pytest.mark.slow
FORM = """
def form(completions):
    return [{"score": float(c.strip().isdigit()), "characters": len(c)} for c in completions]
"""


def test_the_posterior_reads_one_of_two_rewards(tmp_path: Path) -> None:
    (tmp_path / "form.py").write_text(FORM)
    functions = f"[{{function: exact}}, {{function: {tmp_path}/form.py:form, weight: 0.25}}]"
    small = ["scheduler.rounds=2", "budget.total_rollouts=64", "data.limit=40"]
    small += ["data.heldout_limit=4", "checkpoint.export=false", "evaluation.pass_k=[1]"]
    settings = [*small, "reward.function=exact", f"reward.functions={functions}"]
    done = launch(tmp_path, "a", settings=[*settings, "reward.evidence=exact"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the posterior and the evaluation read exact" in done.stdout
    evidence = lines(tmp_path / "a/evidence.jsonl")
    steps = [entry for entry in lines(tmp_path / "a/metrics.jsonl") if "loss" in entry]
    assert len(steps) == len(evidence) == 2
    for line, seen in zip(steps, evidence):
        right, form = line["reward/exact/mean"], line["reward/form/mean"]
        assert line["reward"] == pytest.approx(right + 0.25 * form, abs=1e-6)
        assert sum(seen["successes"]) / sum(seen["trials"]) == pytest.approx(right)
        assert line["reward/exact/std"] == pytest.approx((right * (1 - right)) ** 0.5, abs=1e-6)
        assert line["reward/extra/characters"] > 0
        assert line["reward/form/missing_rate"] == 0
