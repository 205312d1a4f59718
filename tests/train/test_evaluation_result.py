"""What a person reads of an evaluation."""

from __future__ import annotations

from dataclasses import replace

from cero_rl.checkpoint.retention import Score
from cero_rl.train.evaluate import EvaluationResult

RESULT = EvaluationResult(
    prompts=800,
    rollouts=3200,
    judged=3200,
    reason="",
    average=0.4346,
    standard_error=0.0161,
    pass_at={1: 0.4346, 4: 0.5312},
    samples_per_prompt=4,
    score=Score(0.43, "1 sample"),
)
BEFORE = {"eval/avg@4": 0.3047, "eval/pass@1": 0.3047, "eval/pass@4": 0.475}


def test_the_end_stands_beside_the_start():
    assert RESULT.change_from(BEFORE) == " 0.305 -> 0.435 (+13.0 points)"
    assert RESULT.describe(BEFORE) == (
        "avg@4 0.435 +- 0.016 on 800 prompts, pass@1 0.435, pass@4 0.475 -> 0.531"
    )


def test_what_was_not_measured_before_stands_alone():
    assert RESULT.change_from({"eval/avg@1": 0.3}) == " -> 0.435"
    assert RESULT.describe({"eval/avg@1": 0.3}) == RESULT.describe()
    assert RESULT.describe().endswith("pass@1 0.435, pass@4 0.531")


def test_an_accuracy_that_is_not_known_has_no_change():
    unknown = replace(RESULT, average=float("nan"), judged=12, reason="timeout of exact")
    assert unknown.change_from(BEFORE) == ""
    assert unknown.describe(BEFORE) == (
        "accuracy unknown: 12 of 3200 samples have a reward, timeout of exact"
    )
