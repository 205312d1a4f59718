"""Several reward functions: the sum that trains, the evidence, what is logged, whole groups,
scales, and which part of a response the built-in verifiers read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cero_rl.checkpoint.identity import Identity, changes_since, settings_of
from cero_rl.config.io import load_config
from cero_rl.config.reward import RewardConfig
from cero_rl.errors import CheckpointError, ConfigError, RewardError
from cero_rl.rewards.answers import answer_part
from cero_rl.rewards.base import RewardCounts, RewardItem
from cero_rl.rewards.parts import PartSums, Scale, part_numbers
from cero_rl.rewards.several import Judge

CODE = """
def length(completions):
    return [None if c == "3" else float(len(c)) for c in completions]

def extras(solution_str, ground_truth):
    bad = {"pred": "a", "bad": float("inf")}
    return {"score": 1.0, "acc": solution_str == "1", "odd name!": 2, **bad}

def ranked(completions):
    assert len(set(completions)) == 2, "one prompt's"
    return [c / 10 for c in map(len, completions)]
ranked.whole_group = True

def one(solution_str, ground_truth): return 1.0
one.whole_group = True

def signed(completions): return [float(c) for c in completions]
"""
nan = float("nan")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "r.py"
    path.write_text(CODE)
    return path


def item(completion: str, answer: Any = "1", group: int = -1) -> RewardItem:
    return RewardItem("q", completion, answer, "s", {}, group=group)


def two(file: Path, **more: Any) -> RewardConfig:
    length = {"function": f"{file}:length", "weight": -0.5, "range": [0, 4]}
    return RewardConfig.model_validate(
        {"functions": [{"function": "exact", "weight": 2.0}, length], "workers": 1, **more}
    )


def test_weighted_sum_and_evidence(file: Path) -> None:
    items = [item("1"), item("22"), item("3", "3"), item("4444")]
    with Judge(two(file, evidence="exact")) as judge:
        named = judge.score(items)
    assert named.values.tolist() == pytest.approx([2 - 0.5, -1, nan, -2], nan_ok=True)
    assert named.evidence.tolist() == pytest.approx([1, 0, nan, 0], nan_ok=True)
    assert named.counts == RewardCounts(scored=3, errors=1)
    assert (named.first_error or "").startswith("length: ")
    with Judge(two(file)) as judge:  # the sum lies in [-2, 2]
        mapped = judge.score(items)
    assert mapped.values.tolist() == pytest.approx(named.values.tolist(), nan_ok=True)
    assert mapped.evidence.tolist() == pytest.approx([3.5 / 4, 0.25, nan, 0], nan_ok=True)
    numbers = part_numbers([named.sums.state(), mapped.sums.state()])
    assert numbers["reward/exact/mean"] == 0.5
    assert numbers["reward/exact/std"] == 0.5
    assert numbers["reward/length/mean"] == pytest.approx(7 / 3)
    assert numbers["reward/length/std"] == pytest.approx(np.std([1, 2, 4]))
    assert numbers["reward/length/missing_rate"] == 0.25


def test_a_missing_part_without_weight_is_only_counted(file: Path) -> None:
    config = RewardConfig.model_validate(
        {
            "functions": [{"function": "exact"}, {"function": f"{file}:length", "weight": 0}],
            "evidence": "exact",
            "workers": 1,
        }
    )
    with Judge(config) as judge:
        judged = judge.score([item("3", "3")])
    assert judged.values.tolist() == judged.evidence.tolist() == [1]
    assert judged.counts == RewardCounts(scored=1)
    assert part_numbers([judged.sums.state()])["reward/length/missing_rate"] == 1


def test_extra_keys_are_logged_under_clean_names(file: Path) -> None:
    with Judge(RewardConfig(function=f"{file}:extras", workers=1)) as judge:
        judged = judge.score([item("1"), item("2")])
    assert part_numbers([judged.sums.state(), PartSums().state()]) == {
        "reward/extra/acc": 0.5,
        "reward/extra/odd_name": 2,
        "reward/extra_dropped": 4,
    }


def test_too_many_extras_are_counted() -> None:
    sums = PartSums(extras={f"k{i:02d}": [2.0, 4.0] for i in range(20)})
    numbers = part_numbers([sums.state()])
    assert numbers.pop("reward/extra_dropped") == 8
    assert numbers == {f"reward/extra/k{i:02d}": 2 for i in range(16)}


def test_whole_groups_come_in_one_call(file: Path) -> None:
    config = RewardConfig(function=f"{file}:ranked", workers=2)
    groups = [item("1" * (1 + k % 2), group=g) for g in range(3) for k in range(10)]
    with Judge(config) as judge:
        assert judge.score(groups).values.tolist() == pytest.approx([0.1, 0.2] * 15)
        broken = judge.score([item("1", group=0)] * 3 + groups[10:20])
    assert np.isnan(broken.values).tolist() == [True] * 3 + [False] * 10, "of group 0 all"
    assert broken.counts == RewardCounts(scored=10, errors=3)
    assert "one prompt's" in (broken.first_error or "")


@pytest.mark.covers("reward with the wrong signature")
def test_a_function_of_one_item_gets_no_group(file: Path) -> None:
    with (
        Judge(RewardConfig(function=f"{file}:one", workers=1)) as judge,
        pytest.raises(RewardError, match="whole_group, but scores one item"),
    ):
        judge.wait_ready()


def test_ranges_and_thresholds(file: Path) -> None:
    items = [item("-1"), item("0"), item("1")]
    for more, wanted in (
        ({"range": (-1, 1)}, [0, 0.5, 1]),
        ({"threshold": -0.5}, [0, 1, 1]),
    ):
        config = RewardConfig.model_validate({"function": f"{file}:signed", "workers": 1, **more})
        assert not config.trains_evidence
        with Judge(config) as judge:
            judged = judge.score(items)
        assert judged.values.tolist() == [-1, 0, 1]
        assert judged.evidence.tolist() == wanted
    assert Scale(0, 1, None).evidence(np.float32([0.3, nan]))[0] == np.float32(0.3)


@pytest.mark.covers("reward outside [0,1]")
def test_outside_of_its_range(file: Path) -> None:
    config = RewardConfig(function=f"{file}:signed", workers=1, range=(-1, 1))
    with Judge(config) as judge, pytest.raises(RewardError) as caught:
        judge.score([item("1.5")])
    said = str(caught.value)
    assert "got a reward of 1.5, wanted a number in [-1, 1]" in said
    assert "reward.range" in said


@pytest.mark.parametrize(
    ("text", "tags", "thinking", "read"),
    [
        ("<think>4</think> 5", False, "keep", "<think>4</think> 5"),
        ("<think>4</think> 5", False, "strip", " 5"),
        ("4</think> 5", False, "strip", " 5"),
        ("<think>4", False, "strip", ""),
        ("<think>4</think> 5 <think>6", False, "strip", ""),
        ("no thought", False, "strip", "no thought"),
        ("no end", False, "required", ""),
        ("a</think>b", False, "required", "b"),
        ("<answer>1</answer> <ANSWER>2</answer> 3", True, "keep", "2"),
        ("<answer>1", True, "keep", ""),
        ("5", True, "keep", ""),
        ("<think><answer>1</answer></think>2", True, "strip", ""),
        ("<answer>" * 200_000, True, "keep", ""),
    ],
)
def test_the_part_that_is_read(text: str, tags: bool, thinking: str, read: str) -> None:
    assert answer_part(text, answer_tags=tags, thinking=thinking) == read


def test_verifiers_read_that_part() -> None:
    config = RewardConfig(answer_tags=True, thinking="strip")
    with Judge(config) as judge:
        judged = judge.score(
            [item("<think>" + "x" * 20_000 + "</think><answer>1</answer>"), item("<think>1")]
        )
    assert judged.values.tolist() == [1, 0]


@pytest.mark.covers("unknown reward")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"function": "math", "functions": [{"function": "exact"}]}, "beside functions"),
        ({"functions": [{"function": "math"}], "kwargs": {"a": 1}}, "beside functions"),
        ({"functions": [{"function": "math"}, {"function": "math"}]}, "two are named 'math'"),
        ({"functions": [{"function": "math"}], "evidence": "x"}, "wanted one of math"),
        ({"functions": [{"function": "math", "weight": 0}]}, "all weights are 0"),
        ({"functions": [{"function": "math", "name": "extra"}]}, "and not extra"),
        ({"functions": [{"function": "math", "kwargs": {"a": 1}}]}, "which takes none"),
        ({"evidence": "math"}, "without functions"),
        ({"range": [1, 1]}, "wanted the lowest score"),
        ({"function": "r.py:f", "answer_tags": True}, "gets the whole response"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RewardConfig.model_validate(given)


RECIPE = Path(__file__).parents[2] / "recipes/digits_cpu.yaml"
LISTED = "reward.functions=[{function: exact, weight: 2}]"


def test_what_needs_the_evidences_scale_is_refused() -> None:
    settings = ["reward.function=exact", LISTED]
    for more, said in (
        ("reward.threshold=1", "learner.baseline: got posterior"),
        ("reward.evidence=exact", "learner.baseline: got posterior"),
        ("scheduler.name=aero", "takes a reward above a half"),
    ):
        settings[2:] = ["learner.baseline=" + ("group" if "aero" in more else "posterior")]
        with pytest.raises(ConfigError, match=said):
            load_config(RECIPE, [*settings, more])


def test_another_list_is_another_reward() -> None:
    before = settings_of(load_config(RECIPE, ["reward.function=exact"]))
    content = {"reward": None}
    old = {key: value for key, value in before.items() if not key.startswith("reward.function")}
    of_before = {"identity": {"settings": old, "content": content}}
    same = Identity(before, content)
    assert changes_since(Path("c"), of_before, same) == []
    now = Identity(settings_of(load_config(RECIPE, ["reward.function=exact", LISTED])), content)
    with pytest.raises(CheckpointError, match="--accept-new-reward"):
        changes_since(Path("c"), of_before, now)
    (change,) = changes_since(Path("c"), of_before, now, new_reward=True)
    assert change.key == "reward.functions"
