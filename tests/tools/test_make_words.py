"""The word tasks: answers by another route, the split, all cells alike, the same from a seed."""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import make_words  # noqa: E402


def question(row: dict) -> list[str]:
    return row["prompt"][-1]["content"].split()


def test_answers_by_another_route_and_the_example_is_solved_alike():
    for row in make_words.make(3, 320, 80)[0]:
        for words, answer in (
            (question(row), row["answer"]),
            (row["prompt"][1]["content"].split(), row["prompt"][2]["content"]),
        ):
            wanted = {
                "repeat": " ".join(words),
                "reverse": " ".join(words[-i - 1] for i in range(len(words))),
                "first": words[0],
                "last": words[len(words) - 1],
            }[row["family"]]
            assert answer == wanted
        assert len(question(row)) == row["length"] == len(set(question(row)))
        assert not set(question(row)) & set(make_words.EXAMPLE)


def test_cells_are_alike_and_no_question_is_in_both_sets():
    train, heldout = make_words.make(0, 320, 80)
    for rows, each in ((train, 20), (heldout, 5)):
        cells = Counter((row["family"], row["length"]) for row in rows)
        assert set(cells.values()) == {each}
        assert len(cells) == 16
    asked = [json.dumps(row["prompt"]) for row in train + heldout]
    assert len(set(asked)) == 400
    assert make_words.make(0, 320, 80) == (train, heldout)
    assert make_words.make(1, 320, 80) != (train, heldout)


def test_the_study_names_what_the_tool_makes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_words.py", "--out", str(tmp_path)])
    assert make_words.main() == 0
    assert "400 training and 160 held-out prompts" in capsys.readouterr().out
    study = yaml.safe_load((ROOT / "docs/studies/smollm2.yaml").read_text())
    (pool,) = study["pools"].values()
    made = tmp_path / Path(pool["data.source"]).name
    assert hashlib.sha256(made.read_bytes()).hexdigest() == pool["sha256"]
    assert (tmp_path / Path(pool["data.heldout_source"]).name).is_file()
