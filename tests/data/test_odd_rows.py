"""Rows that libraries choke on are one line with file and row; rows that a run does not use are
counted and said."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cero_rl.config.data import DataConfig
from cero_rl.data.load import LeftOut, count_prompts, left_out_lines, load_prompts
from cero_rl.data.sources import read_jsonl
from cero_rl.errors import DataError

GOOD = b'{"prompt": "a", "answer": "1"}\n'


def refused(path: Path) -> str:
    data = DataConfig(source=str(path), heldout_fraction=0)
    for action in (lambda: load_prompts(data, 0), lambda: count_prompts(data)):
        with pytest.raises(DataError) as caught:
            action()
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500
    return str(caught.value)


@pytest.mark.covers("rows that a library chokes on")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "a", "answer": ' + b"9" * 5000 + b"}", "cannot be read as JSON (Exceeds"),
        (b'{"prompt": "a\\ud800", "answer": "1"}', "holds \\ud800, half of a surrogate pair"),
        (b'{"prompt": "a", "answer": "\\udcff"}', "holds \\udcff, half of a surrogate pair"),
        (
            b'{"prompt": [{"role": "user", "content": "\\ud800"}], "answer": "1"}',
            "half of a surrogate pair",
        ),
        (
            b'{"prompt": "a", "answer": "1", "data_source": "\\ud800"}',
            "half of a surrogate pair",
        ),
        (b'{"prompt": "a", "answer": "1", "x": ' + b"[" * 20000, "nested too deeply"),
        (
            b'{"prompt": "a", "answer": "1", "x": ' + b"[" * 200 + b"]" * 200 + b"}",
            "nested too deeply",
        ),
        (b'{"prompt": "a", "answer": "1", "answer": "2"}', "the key 'answer' stands twice"),
        (b'{"prompt": "a", "answer": "1", "x": {"y": 1, "y": 1}}', "the key 'y' stands twice"),
        (b'{"prompt": "a\xff", "answer": "1"}', "not UTF-8 text"),
        (b'{"prompt": "a", "answer": "1"', "broken JSON (Expecting ',' delimiter at column"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes(GOOD + line + b"\n")
    message = refused(path)
    assert f"{path}:2: " in message
    assert said in message


def test_what_is_odd_and_right_is_read(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes(
        b'{"prompt": "\\ud83d\\ude00", "answer": "1"}\n'
        b'{"prompt": "b", "answer": "1", "x": ' + b"[" * 90 + b"]" * 90 + b"}\n"
        b'{"prompt": "c", "answer": 1e999, "y": NaN}\n'
        b'{"prompt": "d", "answer": "' + b"9" * 5000 + b'"}\n'
    )
    assert [row["prompt"] for _, row in read_jsonl(str(path), None)] == ["😀", "b", "c", "d"]


@pytest.mark.covers("compressed or mistaken files")
def test_files_of_another_kind_are_told_apart(tmp_path: Path) -> None:
    for name, data, said in [
        ("a.jsonl", gzip.compress(GOOD), "not text but gzip data; unpack or rename the file"),
        ("b.jsonl", bz2.compress(GOOD), "not text but bzip2 data"),
        ("c.jsonl.gz", gzip.compress(GOOD), "not a kind of file this reads; unpack it and give"),
        ("d.jsonl", GOOD.decode().encode("utf-16"), "not UTF-8 text"),
        ("e.parquet", GOOD, "cannot be read as parquet"),
        ("f.parquet", b"", "cannot be read as parquet"),
        ("x" * 300 + ".jsonl", None, "does not exist"),
    ]:
        if data is not None:
            (tmp_path / name).write_bytes(data)
        assert said in refused(tmp_path / name)


@pytest.mark.covers("rows that a library chokes on")
def test_parquet_that_breaks_in_the_middle_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "text.parquet"
    texts = pa.array([b"fine", b"\xff\xfe"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": texts, "answer": ["1", "2"]}), path)
    assert "cannot be read as parquet" in refused(path)
    raw = tmp_path / "raw.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "answer": [b"\x89PNG"]}), raw)
    assert "raw.parquet row 1: the answer is of type bytes" in refused(raw)
    twice = tmp_path / "twice.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["prompt", "prompt"]), twice)
    assert "the column 'prompt' stands twice" in refused(twice)
    cut = tmp_path / "cut.parquet"
    pq.write_table(pa.table({"prompt": ["a"] * 1000, "answer": ["1"] * 1000}), cut)
    cut.write_bytes(cut.read_bytes()[:-20])
    assert "cannot be read as parquet" in refused(cut)


def rows_in(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_first_of_equal_rows_stays_in_its_place(tmp_path: Path) -> None:
    rows = [
        {"prompt": "A", "answer": "1", "tests": "x"},
        {"prompt": "B", "answer": "1"},
        {"prompt": "A", "answer": "1", "tests": "y"},
        {"prompt": "C", "answer": "1"},
        {"prompt": "B", "answer": "1"},
        {"prompt": "B", "answer": "2"},
    ]
    source = rows_in(tmp_path / "d.jsonl", rows)
    split = load_prompts(DataConfig(source=source, heldout_fraction=0), 0)
    assert [(p.text, p.answer) for p in split.train] == [
        ("A", "1"),
        ("B", "1"),
        ("C", "1"),
        ("B", "2"),
    ]
    assert split.train[0].columns["tests"] == "x"
    assert [p.where for p in split.train] == [f"{source}:{n}" for n in (1, 2, 4, 6)]
    lines = left_out_lines(split, LeftOut("overlong", 0, ""))
    assert lines[0] == "6 rows read; left out: 2 duplicate, 0 contaminated, 0 overlong"
    assert lines[1] == f"1 exact duplicate; the first: {source}:5 repeats {source}:2"
    assert lines[2].startswith(
        f"1 duplicate in prompt and answer alone; the first: {source}:3 repeats {source}:1 with "
        "another tests, which is not used"
    )


def test_every_row_that_vanishes_is_counted_with_its_first(tmp_path: Path) -> None:
    source = rows_in(tmp_path / "d.jsonl", [{"prompt": f"q{i}", "answer": i} for i in range(40)])
    held = rows_in(
        tmp_path / "h.jsonl",
        [
            {"prompt": "q3", "answer": 3},
            {"prompt": "q3", "answer": 3},
            {"prompt": "z", "answer": 1},
        ],
    )
    split = load_prompts(DataConfig(source=source, heldout_source=held), 0)
    lines = left_out_lines(split, LeftOut("overlong", 2, "there"))
    assert lines[0] == (
        "40 rows and 3 held-out rows read; left out: 0 duplicate, 1 contaminated, 2 overlong"
    )
    assert f"1 held-out exact duplicate; the first: {held}:2 repeats {held}:1" in lines
    assert f"1 contaminated; the first: {source}:4 asks what {held}:1 asks" in lines
    assert "2 overlong; the first: there" in lines
    cut = load_prompts(DataConfig(source=source, heldout_fraction=0.5, heldout_limit=7), 0)
    assert any(line.startswith("13 beyond data.heldout_limit") for line in left_out_lines(cut))
    assert len(cut.train) + len(cut.heldout) + 13 == 40


def test_answers_in_fields_of_a_column_are_found(tmp_path: Path) -> None:
    """verl's reward_model, as a mapping or as JSON text; any other by its dotted name."""
    by_convention = [
        {"prompt": "p", "reward_model": {"ground_truth": "5"}},
        {"prompt": "q", "reward_model": json.dumps({"ground_truth": "5"})},
    ]
    by_name = [{"prompt": "r", "info": {"final": 5}}, {"prompt": "s", "info": '{"final": 5}'}]
    for rows, column in ((by_convention, "answer"), (by_name, "info.final")):
        source = rows_in(tmp_path / "rows.jsonl", rows)
        read = load_prompts(
            DataConfig(source=source, heldout_fraction=0, answer_column=column), seed=0
        )
        assert [prompt.answer for prompt in read.train] == ["5", "5"]


@pytest.mark.covers("null beside answers")
def test_a_null_beside_answers_is_refused_by_its_row(tmp_path: Path) -> None:
    source = rows_in(tmp_path / "rows.jsonl", [{"prompt": "p", "answer": ["5", None]}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: the list of answers holds null"):
        load_prompts(DataConfig(source=source, heldout_fraction=0), seed=0)
