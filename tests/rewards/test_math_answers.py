"""`math` against a table of our own pairs (`math_pairs.txt`), against each other's answers, and
against answers that would take long."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cero_rl.rewards.base import RewardItem
from cero_rl.rewards.mathematics import read_completion
from cero_rl.rewards.verifiers import gold_problem, math

PAIRS = {
    "numbers": 54,
    "fractions": 42,
    "percent": 15,
    "units": 89,
    "currency": 20,
    "things counted": 48,
    "words around": 46,
    "worked solutions": 19,
    "several pieces": 69,
    "algebra": 61,
    "roots and powers": 35,
    "functions": 27,
    "equations": 29,
    "inequalities and intervals": 37,
    "sets": 41,
    "vectors and matrices": 19,
    "complex and infinity": 12,
    "no mathematics for the parser": 39,
    "words": 34,
    "where the answer stands": 60,
}
DIFFERENT = [
    r"1/2",
    r"20 $cm^{2}$",
    r"9 (apples)",
    r"1;$\frac{8}{9}$",
    r"3, 4",
    r"2x+1",
    r"$10-4m$",
    r"x=5",
    r"x > 3",
    r"$\{x|x=3k\}$",
    r"x \equiv 3 \pmod 7",
    r"no solution",
]


def rows() -> list[tuple[str, str, list[str], list[str]]]:
    """(topic, answer, right completions, wrong completions) of each line."""
    found, topic = [], ""
    lines = (Path(__file__).parent / "math_pairs.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.startswith("# "):
            topic = line[2:]
        elif not line.startswith("## "):
            answer, _, rest = line.replace("\\n", "\n").partition(" == ")
            right, wrong = (side.strip(" ").split(" || ") for side in rest.split(" != "))
            found.append((topic, answer, right, wrong))
    return found


def judged(answer: str, completion: str) -> float:
    return math(RewardItem("q", completion, answer, "s", {}))


@pytest.mark.covers("answers with units, words or pieces", "box that holds no mathematics")
def test_every_pair_is_judged_right(capsys: pytest.CaptureFixture[str]) -> None:
    counts: Counter[str] = Counter()
    wrong = []
    for topic, answer, right, others in rows():
        for completion, value in [(c, 1.0) for c in right] + [(c, 0.0) for c in others]:
            counts[topic] += 1
            if judged(answer, completion) != value:
                wrong.append((topic, answer, completion, value))
    with capsys.disabled():
        print("\n" + ", ".join(f"{t} {n}" for t, n in counts.items()) + f": {counts.total()} pairs")
    assert not wrong
    assert counts == PAIRS
    assert counts.total() >= 750


def test_no_answer_is_another_ones() -> None:
    right = {answer: completions[0] for _, answer, completions, _ in rows()}
    accepted = [
        (answer, other)
        for answer in DIFFERENT
        for other in DIFFERENT
        if (answer == other) != bool(judged(answer, right[other]))
    ]
    assert not accepted


def test_answers_of_the_table_can_be_judged_by() -> None:
    problems = {a: gold_problem("math", a) for a in dict.fromkeys(row[1] for row in rows())}
    named = [answer for answer, problem in problems.items() if problem is not None]
    assert len(named) == 7, named
    assert not any(problem.never_right for problem in problems.values() if problem is not None)
    for nothing in ("", "####", "\\boxed{}", "$$", "??", "\\frac{}{}", "{", "\\text{}"):
        problem = gold_problem("math", nothing)
        assert problem is not None, nothing
        assert problem.never_right, nothing


@pytest.mark.covers("wall of digits or numbers as an answer")
def test_walls_of_digits_and_numbers_are_wrong_at_once() -> None:
    """They were missing: the library reads for longer than a worker may take."""
    walls = [
        "\\boxed{" + ", ".join(map(str, range(3000))) + "}",
        "\\boxed{" + "7" * 16_000 + "}",
        "7" * 16_000,
        "it is " + "1234567 " * 60 + "7" * 15_000,
        "<answer>" + "7 " * 8000 + "</answer>",
        "#### " + "1+" * 8000 + "1",
    ]
    assert [judged("42", wall) for wall in walls] == [0.0] * len(walls)
    assert read_completion(walls[1], gold_chars=2).whole == ()
    digits = "7" * 600
    assert judged(digits, f"\\boxed{{{digits}}}") == 1
    assert judged(digits, f"\\boxed{{{digits[1:]}}}") == 0
