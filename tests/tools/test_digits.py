"""The digit-string tasks and the files that ship with them."""

import json
import sys
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import digits  # noqa: E402

ASSETS = ROOT / "recipes" / "assets"
SETS = ["unfiltered", "balanced", "heldout"]


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ASSETS / f"digits_{name}.jsonl").read_text().splitlines()]


@given(st.text("0123456789", min_size=2, max_size=8), st.data())
def test_answers_by_another_route(text, data):
    numbers = [ord(c) - 48 for c in text]
    digit, index = data.draw(st.integers(0, 9)), data.draw(st.integers(0, len(text) - 1))
    assert int(digits.solve("M", text)) == max(numbers)
    assert int(digits.solve("C", text, digit)) == sum(n == digit for n in numbers)
    total = 0
    for n in numbers:
        total = (total + n) % 10
    assert int(digits.solve("S", text)) == total
    assert [int(c) for c in digits.solve("R", text)] == list(reversed(numbers))
    assert int(digits.solve("I", text, index)) == numbers[index]
    assert [int(c) for c in digits.solve("O", text)] == sorted(numbers)


def test_streams_repeat_and_keep_to_their_side_of_the_split():
    a, b = (
        list(islice(digits.stream(5, families=digits.FAMILIES, heldout=False), 300))
        for _ in range(2)
    )
    assert a == b
    assert len({item.prompt for item in a}) == 300
    assert not any(digits.is_heldout(item.prompt) for item in a)
    other = islice(digits.stream(5, families=digits.FAMILIES, heldout=True), 100)
    assert all(digits.is_heldout(item.prompt) for item in other)


def test_no_heldout_question_in_a_training_pool():
    heldout = {r["prompt"] for r in rows("heldout")}
    assert len(heldout) == 1200
    for name in ("unfiltered", "balanced"):
        prompts = [r["prompt"] for r in rows(name)]
        assert len(set(prompts)) == len(prompts) == 4000
        assert not heldout & set(prompts)


def test_the_unfiltered_pool_has_its_documented_shares():
    kinds = [r["kind"] for r in rows("unfiltered")]
    assert {k: kinds.count(k) for k in set(kinds)} == {
        "solved": 2200,
        "impossible": 600,
        "luck": 400,
        "learnable": 800,
    }


@pytest.mark.parametrize("name", SETS)
def test_answer_keys_are_right_where_they_should_be(name):
    for row in rows(name):
        if row["kind"] in ("impossible", "luck"):
            continue
        head, _, body = row["prompt"].rstrip("=").partition(":")
        argument, text = (int(head[1:]), body) if body else (0, head[1:])
        assert digits.solve(row["family"], text, argument) == row["answer"], row


def test_the_start_model_loads_and_is_small():
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny_digits")
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny_digits")
    assert (ASSETS / "tiny_digits" / "model.safetensors").stat().st_size <= 4 * 2**20
    assert 0.7e6 < sum(p.numel() for p in model.parameters()) < 1.1e6
    for row in rows("heldout")[:200]:
        ids = tokenizer.encode(row["prompt"] + row["answer"])
        assert len(ids) == len(row["prompt"] + row["answer"])
        assert tokenizer.decode(ids) == row["prompt"] + row["answer"]
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id
