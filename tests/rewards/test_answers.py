"""Answers that are no text: from the row of a file to the built-in rewards and to plug-ins."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cero_rl.config.data import DataConfig
from cero_rl.config.reward import RewardConfig
from cero_rl.data.load import load_prompts
from cero_rl.rewards.answers import answer_text
from cero_rl.rewards.base import RewardItem
from cero_rl.rewards.pool import RewardPool
from cero_rl.rewards.verifiers import exact, math


def reward_items(
    tmp_path: Path, rows: list[dict[str, Any]], completion: str = "", **data: Any
) -> list[RewardItem]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(i), **r}) + "\n" for i, r in enumerate(rows)))
    config = DataConfig(source=str(path), heldout_fraction=0, **data)
    return [
        RewardItem(p.content, completion, p.reference, p.source, p.columns)
        for p in load_prompts(config, 0).train
    ]


def judged(verifier: Any, answer: Any, completion: str) -> float:
    return verifier(RewardItem("q", completion, answer, "s", {}))


EXACT = [
    (42.0, "42", 1),
    (42.0, "42.0", 1),
    (42.0, "#### 42", 1),
    (42.0, "43", 0),
    (42, "42.0", 1),
    (42, "forty-two", 0),
    (145.0, "145", 1),
    (1e-05, "0.00001", 1),
    (1e-05, "1e-05", 1),
    (1e16, "10000000000000000", 1),
    (0.1, "0.1", 1),
    (0.1, "0.10000001", 0),
    (0, "0", 1),
    (-3, "-3", 1),
    (7, "1e9999", 0),
    (True, "true", 1),
    (True, "True", 1),
    (True, "1", 0),
    (False, "False", 1),
    (["Paris", "paris"], "Paris", 1),
    (["Paris", "paris"], "paris", 1),
    (["Paris", "paris"], "a", 0),
    (["Paris", "paris"], '["Paris", "paris"]', 0),
    (["so #### 4"], "4", 1),
    ([1, 2.0], "2", 1),
    ([None, "x"], "x", 1),
    ([None, "x"], "", 0),
    ({"a": 1}, '{"a":1}', 1),
    ({"a": 1}, '{"a": 2}', 0),
    ("42.0", "42", 0),
    ("é", "é", 1),
    ([[1, 2]], "1, 2", 1),
    ([[1, 2]], "[1,2]", 1),
    ([[1, 2]], "1", 0),
]
MATH = [
    (145.0, "\\boxed{145}", 1),
    (145.0, "\\boxed{14.5}", 0),
    (1e-05, "\\boxed{10^{-5}}", 1),
    (1e16, "\\boxed{10^{16}}", 1),
    (["1/2", "50 apples"], "\\boxed{0.5}", 1),
    (["1/2", "50 apples"], "\\boxed{50}", 1),
    (["1/2", "50 apples"], "\\boxed{1/2, 50}", 0),
    (["$k\\left(k+1\\right)/2$"], "\\boxed{\\frac{k^2+k}{2}}", 1),
    (["$k\\left(k+1\\right)/2$"], "\\boxed{\\frac{k^2-k}{2}}", 0),
    ([[1, 2]], "\\boxed{1,2}", 1),
    ([[1, 2]], "\\boxed{2}", 0),
    (3, "\\boxed{3}", 1),
]


@pytest.mark.covers("answers that are no text")
def test_answers_that_are_no_text() -> None:
    wrong = [c for c in EXACT if judged(exact, *c[:2]) != c[2]]
    wrong += [c for c in MATH if judged(math, *c[:2]) != c[2]]
    assert not wrong


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (42.0, "42"),
        (1e-05, "0.00001"),
        (0.5, "0.5"),
        (-2.0, "-2"),
        (1e16, "1" + "0" * 16),
        (7, "7"),
    ],
)
def test_numbers_are_written_as_people_do(answer: float, text: str) -> None:
    assert answer_text(answer) == text


def test_rewards_get_the_answer_as_the_data_holds_it(tmp_path: Path) -> None:
    """Of the column that the configuration names, whatever else the row holds."""
    rows = [
        {"final": ["$\\frac{1}{2}$"], "reward_model": {"ground_truth": "old"}},
        {"final": 145.0, "answer": "old"},
        {"final": {"b": 1, "a": [2]}, "solution": "old"},
    ]
    items = reward_items(tmp_path, rows, answer_column="final")
    assert [item.answer for item in items] == [row["final"] for row in rows]
    verl = {"data_source": "s", "reward_model": {"ground_truth": ["a", "b"]}, "solution": "long"}
    assert reward_items(tmp_path, [verl])[0].answer == ["a", "b"]


def test_plugins_of_both_signatures_get_it(tmp_path: Path) -> None:
    code = """
def trl(prompts, completions, answer, final, **columns):
    return [float(c in a and a == f) for c, a, f in zip(completions, answer, final)]
def verl(data_source, solution_str, ground_truth, extra_info=None):
    return float(isinstance(ground_truth, list) and solution_str in ground_truth)
"""
    path = tmp_path / "reward.py"
    path.write_text(code)
    row = {"final": ["Paris", "paris"], "reward_model": {"ground_truth": "old"}}
    for name in ("trl", "verl"):
        config = RewardConfig(function=f"{path}:{name}", workers=1)
        with RewardPool(config) as pool:
            for said, value in (("paris", 1), ("a", 0), ("old", 0)):
                items = reward_items(tmp_path, [row], said, answer_column="final")
                assert pool.score(items).values.tolist() == [value], (name, said)


def test_decimals_of_a_parquet_file_are_numbers(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"prompt": ["a", "b"], "answer": [Decimal("145.00"), Decimal("0.25")]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    config = DataConfig(source=str(tmp_path / "rows.parquet"), heldout_fraction=0)
    assert [p.reference for p in load_prompts(config, 0).train] == [145, 0.25]
