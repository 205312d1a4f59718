"""Several files as one source: behind commas, a pattern, a directory; and a held-out set with
columns of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cero_rl.config.data import DataConfig
from cero_rl.data.load import count_prompts, load_prompts
from cero_rl.errors import DataError


def rows(path: Path, first: int, count: int = 3) -> str:
    lines = [{"prompt": f"q{i}", "answer": str(i)} for i in range(first, first + count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def questions(source: str, **settings: object) -> list[str]:
    data = DataConfig(source=source, heldout_fraction=0, **settings)
    train = load_prompts(data, 0).train
    assert count_prompts(data) == len(train)
    return [prompt.text or "" for prompt in train]


def test_several_files_are_one_source_in_order(tmp_path: Path) -> None:
    b, a = rows(tmp_path / "b.jsonl", 0), rows(tmp_path / "a.jsonl", 10)
    table = pa.table({"prompt": ["q20"], "answer": ["20"]})
    pq.write_table(table, tmp_path / "c.parquet")
    assert questions(f"{b}, {a},{tmp_path / 'c.parquet'}") == [
        *("q0", "q1", "q2", "q10", "q11", "q12", "q20")
    ]
    assert DataConfig(source=[b, a]).source == f"{b},{a}"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none with a comma"):
        DataConfig(source=["a,b.jsonl"])  # type: ignore[arg-type]
    assert questions(f"{tmp_path}/*.jsonl") == ["q10", "q11", "q12", "q0", "q1", "q2"]
    assert questions(f"{tmp_path}/*.jsonl", limit=4) == ["q10", "q11", "q12", "q0"]
    assert questions(f"{b},{tmp_path}/[b].jsonl") == ["q0", "q1", "q2"], "each file once"
    first = load_prompts(DataConfig(source=f"{tmp_path}/*.jsonl", heldout_fraction=0), 0).train[0]
    assert first.where == f"{a}:1"


def test_of_a_directory_the_files_of_the_split_are_taken(tmp_path: Path) -> None:
    plain, split = tmp_path / "plain", tmp_path / "split"
    plain.mkdir()
    split.mkdir()
    rows(plain / "part-0.jsonl", 0)
    rows(plain / "part-1.jsonl", 10)
    rows(split / "train-00000-of-00002.jsonl", 0)
    rows(split / "train-00001-of-00002.jsonl", 10)
    rows(split / "test.jsonl", 20)
    assert (
        questions(str(plain)) == questions(str(split)) == [*("q0", "q1", "q2", "q10", "q11", "q12")]
    )
    both = load_prompts(DataConfig(source=str(split), heldout_source=str(split)), 0)
    assert [prompt.text for prompt in both.heldout] == ["q20", "q21", "q22"]
    assert len(both.train) == 6


@pytest.mark.covers("several files that are none")
def test_what_is_no_source_is_told(tmp_path: Path) -> None:
    for name in ("empty", "mixed", "linked", "split"):
        (tmp_path / name).mkdir()
    rows(tmp_path / "mixed/a.jsonl", 0)
    (tmp_path / "mixed/a.parquet").touch()
    a = rows(tmp_path / "a.jsonl", 0)
    (tmp_path / "linked/a.jsonl").symlink_to(a)
    rows(tmp_path / "split/test.jsonl", 0)
    for source, said in [
        (f"{tmp_path}/empty", "is a directory without .jsonl or .parquet files"),
        (f"{tmp_path}/mixed", "is a directory with both .jsonl and .parquet files"),
        (f"{tmp_path}/linked", "a.jsonl is a link, which is not followed"),
        (f"{tmp_path}/split", "files of splits (test.jsonl) and none of split 'train'"),
        (f"{tmp_path}/*.csv", "matches no .jsonl or .parquet file"),
        (f"{a},{tmp_path}/no.jsonl", "no.jsonl does not exist"),
        (f"{a},owner/name", "owner/name is no .jsonl or .parquet file"),
    ]:
        with pytest.raises(DataError) as caught:
            load_prompts(DataConfig(source=source), 0)
        assert said in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_a_held_out_set_may_have_columns_of_its_own(tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", 0)
    held = tmp_path / "h.jsonl"
    held.write_text('{"question": "h", "target": "7", "prompt": "no"}\n', encoding="utf-8")
    data = DataConfig(
        source=source,
        heldout_source=str(held),
        heldout_prompt_column="question",
        heldout_answer_column="target",
    )
    split = load_prompts(data, 0)
    assert [(p.text, p.answer) for p in split.heldout] == [("h", "7")]
    assert [p.text for p in split.train] == ["q0", "q1", "q2"]


def test_each_of_several_paths_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home-of/me")
    monkeypatch.setenv("D", "/data")
    with pytest.raises(ValueError, match="wanted a path"):
        DataConfig(source="a.jsonl,,b.jsonl")
    assert DataConfig(source="~/a.jsonl, $D/b.jsonl").source == "/home-of/me/a.jsonl,/data/b.jsonl"
