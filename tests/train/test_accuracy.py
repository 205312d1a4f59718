"""pass@k, maj@k and their intervals against references that draw or enumerate."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from step_cases import OneRank

from cero_rl.checkpoint.retention import Score
from cero_rl.distributed.group import Group
from cero_rl.rewards.answers import said_last
from cero_rl.train.accuracy import Spread, majority, pass_at_k, rates
from cero_rl.train.evaluate import EvaluationResult, SourceRow, evaluate

nan = float("nan")


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_all_choices_of_k(k: int) -> None:
    successes, trials = np.array([0, 1, 3, 5, 1]), np.array([5, 5, 5, 5, 2])
    shares = []
    for wins, n in zip(successes.tolist(), trials.tolist()):
        if n >= k:
            drawn = list(combinations([1] * wins + [0] * (n - wins), k))
            shares.append(sum(max(one) for one in drawn) / len(drawn))
    assert pass_at_k(successes, trials, k) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (r"so \boxed{1} no: \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"cut \boxed{1", ""),
        ("<answer>7</answer> or <ANSWER> 8 </ANSWER>", "8"),
        ("step 3\n#### 1 2", "12"),
        ("first\nlast  line\n\n", "lastline"),
        ("  \n", ""),
    ],
)
def test_what_is_voted_for(said: str, read: str) -> None:
    assert said_last(said) == read


@pytest.mark.parametrize(
    ("texts", "right", "share"),
    [
        (["4", "4", "5"], [True, True, False], 1.0),
        (["5", "5", "4"], [False, False, True], 0.0),
        (["5", "4"], [False, True], 0.5),  # as often: by lot
        (["5", "6", "4"], [False, False, True], 1 / 3),
        (["4.0", "4", "5", "5"], [True, True, False, False], 0.5),  # right is one answer
        (["", "", "4"], [False, False, True], 1.0),  # who says nothing does not vote
        ([], [], 0.0),
        (["", "5"], [False, False], 0.0),
    ],
)
def test_majority(texts: list[str], right: list[bool], share: float) -> None:
    assert majority(texts, right) == pytest.approx(share)


def test_the_standard_error_counts_prompts_and_samples() -> None:
    """Against the spread of means of fresh prompts with fresh samples, and of the same prompts."""
    rng = np.random.default_rng(4)
    prompts, samples, worlds = 60, 4, 4000
    chances = rng.beta(0.6, 0.9, (worlds, prompts))
    fresh = rng.binomial(samples, chances) / samples
    same = rng.binomial(samples, chances[:1].repeat(worlds, 0))
    trials = np.full(prompts, samples)
    found = [Spread.of(wins, trials) for wins in same]
    errors = [Spread.of((row * samples).astype(np.int64), trials).standard_error for row in fresh]
    assert np.mean(errors) == pytest.approx(fresh.mean(axis=1).std(), rel=0.05)
    drawn = math.sqrt(np.mean([f.sampling_error**2 for f in found]))
    assert drawn == pytest.approx((same / samples).mean(axis=1).std(), rel=0.05)
    covered = [
        spread.low <= 0.6 / 1.5 <= spread.high
        for spread in (Spread.of((row * samples).astype(np.int64), trials) for row in fresh)
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_too_little_says_nothing() -> None:
    lone = Spread.of(np.array([1]), np.array([2]))
    assert math.isnan(lone.standard_error)
    assert math.isnan(Spread.of(np.array([1, 0]), np.array([1, 1])).sampling_error)
    assert rates(np.array([1, 0]), np.array([2, 0])).tolist() == [0.5]


def test_an_evaluation_has_a_majority_and_a_row_for_each_source() -> None:
    rank = OneRank("evaluation.samples_per_prompt=4", "evaluation.pass_k=[1,4]")
    prompts = tuple(
        replace(p, source="even" if i % 2 == 0 else "odd")
        for i, p in enumerate(rank.data.heldout.prompts)
    )
    heldout = replace(rank.data.heldout, prompts=prompts)
    group = Group.alone()
    result = evaluate(
        rank.engine, heldout, rank.rewards, group, rank.watchdog, rank.config, final=True
    )
    rows = result.by_source
    assert list(rows) == ["even", "odd"]
    assert sum(row.prompts for row in rows.values()) == result.prompts == 4
    assert np.mean([row.average for row in rows.values()]) == pytest.approx(result.average)
    numbers = result.metrics()
    assert numbers["eval/source/odd/avg@4"] == rows["odd"].average
    assert numbers["eval/maj@4"] == result.majority
    assert 0 <= result.majority <= result.pass_at[4]
    assert numbers["eval/interval_low"] <= result.average <= numbers["eval/interval_high"]
    assert [line.split()[0] for line in result.table()[1:4]] == ["all", "even", "odd"]


def test_the_table_shows_what_was_not_judged() -> None:
    spread = Spread(0.1, 0.05, 0.3, 0.7)
    rows = {"a": SourceRow(4, 16, 15, 0.25, spread), "longer": SourceRow(4, 16, 16, 0.75, spread)}
    result = EvaluationResult(
        8, 32, 31, "", 0.5, 0.1, {1: 0.5}, 4, Score(0.5, "x"), spread, 0.625, rows
    )
    assert result.table() == [
        "source  prompts  samples  unjudged    avg@4  95 % interval",
        "all           8       32         1    0.500  0.300 to 0.700",
        "a             4       16         1    0.250  0.300 to 0.700",
        "longer        4       16         0    0.750  0.300 to 0.700",
        "pass@1 0.500, maj@4 0.625",
    ]
