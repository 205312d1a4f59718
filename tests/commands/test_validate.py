"""`cero-rl validate` and `--dry-run`: what can be told before weights load is told there, in one
line, with the exit code of its kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cero_rl.commands.main import main
from cero_rl.commands.training import train_main

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/digits_cpu.yaml"
MODEL = ROOT / "recipes/assets/tiny_digits"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("RANK", raising=False)


def sums(path: Path, rows: list[dict[str, Any]] | None = None) -> str:
    given = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or given), encoding="utf-8")
    return str(path)


def small(source: str, *settings: str) -> list[str]:
    """The digit strings on ten prompts of one's own."""
    own = [f"data.source={source}", "data.heldout_source=null", "budget.total_rollouts=64"]
    own += ["scheduler.rounds=4", "learner.rollouts_per_step=null", *settings]
    return ["--config", str(RECIPE), *(word for each in own for word in ("--set", each))]


def refused(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which both `validate` and `--dry-run` refuse."""
    lines = set()
    for status in (
        lambda: main(["validate", *arguments]),
        lambda: train_main([*arguments, "--dry-run"]),
    ):
        assert status() == code
        lines.add(capsys.readouterr().err.strip())
    assert len(lines) == 1, lines
    (line,) = lines
    assert line.startswith("error: ")
    assert len(line.splitlines()) == 1
    return line


def test_a_valid_configuration_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(10)]
    rows += [rows[2], {**rows[3], "tests": "more"}, {"prompt": "0" * 30, "answer": "0"}]
    source = sums(tmp_path / "d.jsonl", rows)
    assert main(["validate", *small(source, "data.overlong_prompt=drop")]) == 0
    said = capsys.readouterr().out
    # a tenth, one prompt, is held out
    for line in (
        "  prompts         9\n",
        "13 rows read; left out: 2 duplicate, 0 contaminated, 1 overlong\n",
        f"1 exact duplicate; the first: {source}:11 repeats {source}:3\n",
        f"1 duplicate in prompt and answer alone; the first: {source}:12 repeats {source}:4 with "
        "another tests",
        f"1 overlong; the first: {source}:13 has 30 tokens\n",
        "exact can judge by all 10 answers of data.source\n",
        "tiny_digits: tokenizer, architecture, lengths and generation settings fit\n",
        "  memory          a single rank on a CPU holds ",
        "chat template: on 0 of 10 prompts (data.chat_template: never)\n",
    ):
        assert line in said


REWARDS = """
def wants_more(completions, solution, **c): return [1.0] * len(completions)
def high(prompts, completions, **c): return [2.0 for _ in completions]
def short(prompts, completions, **c): return []
def verl(data_source, solution_str, ground_truth, extra_info, threshold): return 1.0
def typo(prompts, completions, **c): return [float(c["solutoin"][0] == "x")]
def good(completions, answer, **c): return [float(a == x) for a, x in zip(answer, completions)]
"""


@pytest.mark.covers("reward whose columns the data lacks", "reward of the wrong length")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wants_more", "parameter 'solution' has no default and the data has no such column"),
        ("verl", "parameter 'threshold' has no default and the data has no such column"),
        ("high", "got a reward of 2.0, wanted a number in [0, 1]"),
        ("short", "got 0 rewards for 1 completions"),
        ("absent", "has no function 'absent'; it has wants_more, high"),
    ],
)
def test_a_reward_that_does_not_fit_the_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    (tmp_path / "mine.py").write_text(REWARDS, encoding="utf-8")
    source = sums(tmp_path / "d.jsonl")
    function = f"reward.function={tmp_path / 'mine.py'}:{name}"
    line = refused(small(source, function, "reward.workers=1"), 5, capsys)
    assert said in line
    assert name == "absent" or f"(tried on {source}:" in line


def test_a_column_that_only_some_rows_have_is_found_in_the_row_that_lacks_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(REWARDS, encoding="utf-8")
    rows = [{"prompt": f"{i}=", "answer": "1", "solution": "1"} for i in range(20)]
    del rows[14]["solution"]
    source = sums(tmp_path / "d.jsonl", rows)
    settings = [f"reward.function={tmp_path / 'mine.py'}:wants_more", "data.heldout_fraction=0"]
    assert main(["validate", *small(source, *settings)]) == 5
    assert f"(tried on {source}:15)" in capsys.readouterr().err


def test_a_reward_that_is_always_missing_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(REWARDS, encoding="utf-8")
    for name, said in [
        ("typo", "all missing (first: KeyError: 'solutoin')"),
        ("good", "mean 1.00"),
    ]:
        function = f"reward.function={tmp_path / 'mine.py'}:{name}"
        assert main(["validate", *small(sums(tmp_path / "d.jsonl"), function)]) == 0
        assert said in capsys.readouterr().out


@pytest.mark.covers("answers that the reward cannot judge by")
@pytest.mark.parametrize("reward", ["exact", "math"])
def test_an_answer_that_the_reward_cannot_judge_by_is_named_with_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reward: str
) -> None:
    rows = [{"prompt": f"{i}=", "answer": str(i)} for i in range(10)]
    rows[6]["answer"] = "6 ####"
    source = sums(tmp_path / "d.jsonl", rows)
    settings = [f"reward.function={reward}", "data.heldout_fraction=0"]
    line = refused(small(source, *settings), 3, capsys)
    assert f"1 of all 10 answers cannot be judged by {reward}: {source}:7: the answer" in line


def test_a_few_bad_answers_in_a_large_set_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{i}=", "answer": str(i)} for i in range(300)]
    rows[6]["answer"] = "6 ####"
    source = sums(tmp_path / "d.jsonl", rows)
    assert main(["validate", *small(source, "data.heldout_fraction=0")]) == 0
    assert f"1 of all 300 answers cannot be judged by exact: {source}:7" in capsys.readouterr().out


@pytest.mark.covers("reward file or model that is not there")
@pytest.mark.parametrize(
    ("setting", "code", "said"),
    [
        ("reward.function=no_such_file.py:f", 5, "no_such_file.py does not exist"),
        ("model.path=nowhere", 2, "model.path: 'nowhere' does not exist (looked in"),
        ("model.path=/no/such/dir", 2, "model.path: '/no/such/dir' does not exist"),
        ("model.path=recipes/no_such", 2, "or a Hugging Face id such as owner/name"),
        ("model.path=~/no_such_model", 2, "/no_such_model' does not exist"),
        ("zero.deepspeed={reduce_bucket: 5}", 2, "zero.deepspeed: reduce_bucket: got 5; "),
    ],
)
def test_what_is_not_there_is_told_before_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, code: int, said: str
) -> None:
    assert said in refused(small(sums(tmp_path / "d.jsonl"), setting), code, capsys)


@pytest.mark.covers("generation settings that cannot be saved")
def test_generation_settings_are_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    settings = folder / "generation_config.json"
    arguments = small(sums(tmp_path / "d.jsonl"), f"model.path={folder}")
    settings.write_text('{"do_sample": false, "temperature": 0.6, "eos_token_id": 1}')
    assert main(["validate", *arguments]) == 0
    said = "export: generation_config.json: do_sample set to true, without which temperature 0.6"
    assert said in capsys.readouterr().out
    settings.write_text('{"max_new_tokens": 0, "eos_token_id": 1}')
    assert "must be greater than 0" in refused(arguments, 2, capsys)


@pytest.mark.covers("prompt and response longer than the model")
def test_lengths_are_held_against_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = small(sums(tmp_path / "d.jsonl"), "rollout.max_response_tokens=100")
    assert "but the model has 64 positions" in refused(arguments, 2, capsys)


def test_a_written_line_break_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [r"data.prompt_suffix=\nThink.", r"data.system_prompt=\neq"]
    model = "model.path=owner/name"  # no tokenizer, no lengths
    assert main(["validate", *small(sums(tmp_path / "d.jsonl"), model, *texts)]) == 0
    said = capsys.readouterr().out
    assert "data.prompt_suffix holds a backslash and an n, two characters" in said
    assert "data.system_prompt holds" not in said
