"""Reading and splitting: conventions of TRL and verl, one-line errors, and split invariants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cero_rl.config.data import DataConfig
from cero_rl.data.load import count_prompts, load_prompts
from cero_rl.data.prompts import fingerprint, make_prompt, question_hash
from cero_rl.errors import DataError


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{i}+1=", "answer": i + 1, "level": i % 3} for i in range(n)]


def test_jsonl_text(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", sums(20))
    split = load_prompts(DataConfig(source=source), seed=0)
    assert (len(split.train), len(split.heldout)) == (18, 2)
    first = split.train[0]
    assert first.answer == str(int(first.text.split("+")[0]) + 1)
    assert len(first.key) == 16
    assert first.columns["level"] in (0, 1, 2)
    assert first.source == source
    assert count_prompts(DataConfig(source=source)) == 18


def test_relative_path_and_blank_lines_and_bom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"prompt": "a", "answer": "1"}\n\n{"prompt": "b", "answer": "2"}'
    )
    monkeypatch.chdir(tmp_path)
    assert len(load_prompts(DataConfig(source="a.jsonl", heldout_fraction=0), 0).train) == 2


def test_trl_columns(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "q"}], "solution": "$4$"},
        {"prompt": "x", "ground_truth": "5"},
    ]
    train = load_prompts(
        DataConfig(source=write(tmp_path / "a.jsonl", rows), heldout_fraction=0), 0
    ).train
    assert [p.answer for p in train] == ["$4$", "5"]
    assert train[0].messages == ({"role": "user", "content": "q"},)
    assert train[0].columns == {"solution": "$4$"}


def verl_rows(n: int) -> list[dict[str, Any]]:
    return [
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": f"What is {i}?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"index": i, "split": "train"},
        }
        for i in range(n)
    ]


def test_verl_parquet_written_by_datasets(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "v.parquet"
    datasets.Dataset.from_list(verl_rows(12)).to_parquet(path)
    data = DataConfig(source=str(path), heldout_fraction=0.25)
    split = load_prompts(data, 3)
    assert (len(split.train), len(split.heldout)) == (9, 3)
    prompt = split.train[0]
    assert prompt.source == "openai/gsm8k"
    assert prompt.answer == str(prompt.columns["extra_info"]["index"])
    assert count_prompts(data) == 9


def test_named_columns_win(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.jsonl", [{"question": "q", "answer": "no", "final": "yes", "prompt": "p"}]
    )
    data = DataConfig(
        source=source, prompt_column="question", answer_column="final", heldout_fraction=0
    )
    assert [(p.text, p.answer) for p in load_prompts(data, 0).train] == [("q", "yes")]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        pytest.param([], "holds no prompts", marks=pytest.mark.covers("empty set")),
        pytest.param(
            [{"question": "q", "answer": "1"}],
            r"found columns question, answer; set data.prompt_column to one of them; the "
            r"row is \{\"question\": \"q\"",
            marks=pytest.mark.covers("missing columns"),
        ),
        pytest.param(
            [{"prompt": "q", "label": "1"}],
            "set data.answer_column",
            marks=pytest.mark.covers("missing columns"),
        ),
        pytest.param(
            [{"prompt": 3, "answer": "1"}],
            ":1: the prompt in column 'prompt' is of type int",
            marks=pytest.mark.covers("prompts of the wrong type"),
        ),
        ([{"prompt": ["q"], "answer": "1"}], "holds the message"),
        ([{"prompt": [], "answer": "1"}], "an empty list"),
        ([{"prompt": "  ", "answer": "1"}], "is empty"),
        pytest.param(
            [
                {"prompt": "a", "answer": "1"},
                {"prompt": "b", "answer": None},
                {"prompt": "c", "answer": " "},
            ],
            "2 answers .* 2, 3;",
            marks=pytest.mark.covers("null answers"),
        ),
        ([[1]], "wanted an object"),
    ],
)
def test_bad_rows(tmp_path: Path, rows: list[Any], words: str) -> None:
    data = DataConfig(source=write(tmp_path / "bad.jsonl", rows))
    with pytest.raises(DataError, match=words) as caught:
        load_prompts(data, 0)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    with pytest.raises(DataError):
        count_prompts(data)


@pytest.mark.covers("broken JSONL line")
def test_broken_files(tmp_path: Path) -> None:
    broken = tmp_path / "b.jsonl"
    broken.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": \n')
    with pytest.raises(DataError, match=r"b\.jsonl:2: broken JSON"):
        load_prompts(DataConfig(source=str(broken)), 0)
    broken.write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(DataError, match="not UTF-8"):
        load_prompts(DataConfig(source=str(broken)), 0)
    junk = tmp_path / "b.parquet"
    junk.write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load_prompts(DataConfig(source=str(junk)), 0)
    for source, words in [
        (str(tmp_path / "no.jsonl"), "does not exist"),
        (str(tmp_path), "is a directory"),
        ("reasoning_gym:chain_sums", "did you mean reasoning_gym:chain_sum"),
        ("a/b/c.csv", "does not exist"),
    ]:
        with pytest.raises(DataError, match=words):
            load_prompts(DataConfig(source=source), 0)


def test_hub_without_network_is_one_line() -> None:
    code = (
        "from cero_rl.config.data import DataConfig; from cero_rl.data.load import "
        "load_prompts, count_prompts\n"
        "data = DataConfig(source='nobody/no_such_set'); assert count_prompts(data) is None\n"
        "try: load_prompts(data, 0)\nexcept ValueError as e: print(type(e).__name__, e)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("DataError data.source: cannot load 'nobody/no_such_set'")
    assert "local .jsonl" in lines[0]


def test_counting_imports_neither_torch_nor_datasets(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", sums(10))
    code = (
        "import sys; from cero_rl.config.data import DataConfig; from cero_rl.data.load "
        "import count_prompts\n"
        "from cero_rl.rewards.pool import RewardPool; import cero_rl.data.encode\n"
        f"print(count_prompts(DataConfig(source={source!r})), "
        f"count_prompts(DataConfig(source='reasoning_gym:gcd', procedural_size=50)),"
        " sorted({'torch', 'datasets', 'reasoning_gym', 'math_verify', 'transformers'} & "
        "set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "9 45 []"


def test_reasoning_gym_is_deterministic_and_split() -> None:
    data = DataConfig(source="reasoning_gym:chain_sum", procedural_size=60)
    one, again, other = load_prompts(data, 5), load_prompts(data, 5), load_prompts(data, 6)
    assert one == again
    assert fingerprint(one.train) != fingerprint(other.train)
    assert one.train[0].columns["reasoning_gym"] == "chain_sum"
    apart = load_prompts(
        data.model_copy(update={"heldout_source": "reasoning_gym:chain_sum", "heldout_limit": 20}),
        5,
    )
    assert len(apart.heldout) == 20
    assert not {question_hash(p) for p in apart.train} & {question_hash(p) for p in apart.heldout}


def test_contamination_leaves_train(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", sums(10))
    held = write(
        tmp_path / "h.jsonl", [{"prompt": [{"role": "user", "content": " 3+1= "}], "answer": "4"}]
    )
    data = DataConfig(source=train, heldout_source=held)
    split = load_prompts(data, 0)
    assert (len(split.train), len(split.heldout), split.contaminated) == (9, 1, 1)
    assert all(p.text != "3+1=" for p in split.train)
    assert count_prompts(data) == 9
    with pytest.raises(DataError, match="nothing is left to train on"):
        load_prompts(DataConfig(source=train, heldout_source=train), 0)
    with pytest.raises(DataError, match="heldout_fraction: 0"):
        load_prompts(DataConfig(source=held), 0)


def test_limits(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", sums(100))
    split = load_prompts(
        DataConfig(source=source, limit=40, heldout_fraction=0.5, heldout_limit=7), 0
    )
    assert (len(split.train), len(split.heldout)) == (20, 7)


def test_keys_tell_prompts_apart() -> None:
    text, chat = (
        make_prompt("q", "1", "s", {}),
        make_prompt([{"role": "user", "content": "q"}], "1", "t", {"x": 1}),
    )
    assert text.key == make_prompt("q", "1", "elsewhere", {"y": 2}).key
    assert len({text.key, chat.key, make_prompt("q", "2", "s", {}).key}) == 3
    assert question_hash(text) == question_hash(chat)
    assert fingerprint([text, chat]) != fingerprint([chat, text])


rows_strategy = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=2, max_size=40)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=rows_strategy,
    seed=st.integers(0, 5),
    fraction=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    order=st.randoms(),
)
def test_split_invariants(
    tmp_path: Path, rows: list[tuple[int, int]], seed: int, fraction: float, order: Any
) -> None:
    data = DataConfig(
        source=write(tmp_path / "h.jsonl", [{"prompt": f"q{q}", "answer": a} for q, a in rows]),
        heldout_fraction=fraction,
    )
    questions = {q for q, _ in rows}
    if fraction and max(1, round(fraction * len(questions))) >= len(questions):
        with pytest.raises(DataError):
            load_prompts(data, seed)
        return
    split = load_prompts(data, seed)
    train, heldout = ({p.text for p in side} for side in (split.train, split.heldout))
    assert not train & heldout
    assert train | heldout == {f"q{q}" for q in questions}
    assert len(split.train) + len(split.heldout) == len(set(rows))
    assert split.duplicates == len(rows) - len(set(rows))
    assert len({p.key for p in split.train}) == len(split.train)
    order.shuffle(rows)
    write(tmp_path / "h.jsonl", [{"prompt": f"q{q}", "answer": a} for q, a in rows])
    assert {p.key for p in load_prompts(data, seed).heldout} == {p.key for p in split.heldout}
