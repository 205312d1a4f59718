"""The testbeds: tasks against independent code, what the sets hold, the split, determinism; and the
files that ship with the recipes."""

import json
import math
import random
import sys
from itertools import combinations, islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from cero_rl.rewards.answers import final_part

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import testbed_pools as pools  # noqa: E402
import testbeds  # noqa: E402
import tiny_models  # noqa: E402
from digits import LOTTERY, Item, is_heldout  # noqa: E402
from testbed_tasks import TASKS, solve_frontier, write_chain, wrong_key  # noqa: E402

ASSETS = ROOT / "recipes" / "assets"
SHIPPED = ["frontier", "chain"]
MIXES = [30, 50, 70, 85]


def rows(task: str, name: str) -> list[dict]:
    lines = (ASSETS / task / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def sets_of(task: str) -> list[str]:
    return [path.stem for path in sorted((ASSETS / task).glob("*.jsonl"))]


@given(st.text("0123456789", min_size=2, max_size=16))
def test_frontier_answers_by_another_route(text):
    numbers = [ord(c) - 48 for c in text]
    assert [int(c) for c in solve_frontier("R", text)] == list(reversed(numbers))
    assert [int(c) for c in solve_frontier("O", text)] == sorted(numbers)
    assert [int(c) for c in solve_frontier("D", text)] == [
        n + n - 10 if n >= 5 else n + n for n in numbers
    ]
    total, sums = 0, []
    for n in numbers:
        total = total + n - 10 if total + n >= 10 else total + n
        sums.append(total)
    assert [int(c) for c in solve_frontier("P", text)] == sums


@given(st.sampled_from("ABCD"), st.text("0123456789", min_size=10, max_size=16))
def test_chain_answers_by_closed_formula(family, text):
    """The values as sums of powers, where the tool goes step by step."""
    factor = {"A": 1, "B": 1, "C": 2, "D": 3}[family]
    written = write_chain(Item(f"{family}{text}=", "ab", family, len(text)))
    steps, _, answer = written.partition("####")
    assert answer == "ab"
    assert len(steps) == 2 * len(text) >= 20
    for last in range(len(text)):
        total = sum(
            int(c) * factor ** (last - i) * (-1 if family == "B" and i % 2 else 1)
            for i, c in enumerate(text[: last + 1])
        )
        assert steps[2 * last : 2 * last + 2] == f"{text[last]}{total % 10}"


@pytest.mark.parametrize("name", TASKS)
def test_what_the_start_model_is_taught_is_right_by_the_verifier(name):
    """Of every family; a wrong key is not, and everything has room."""
    task = TASKS[name]
    encode = tiny_models.Vocabulary(task.tokens).encoder()
    for heldout in (False, True):
        stream = task.stream(3, families=task.families + LOTTERY, heldout=heldout)
        for item in islice(stream, 400):
            response = task.write(item)
            assert tiny_models.right([response, response + "0"], item.answer) == 1
            assert tiny_models.right([response], wrong_key(item)) == 0
            assert len(wrong_key(item)) == len(item.answer)
            assert len(encode(item.prompt)) <= task.max_prompt_tokens
            assert len(encode(response)) + 1 <= task.max_response_tokens
            if item.family != LOTTERY:
                drawn = task.draw(item.family, item.length, random.Random(1))
                assert drawn.answer == final_part(task.write(drawn))


@pytest.mark.parametrize("name", TASKS)
def test_streams_repeat_keep_to_their_side_and_weigh_all_alike(name):
    task = TASKS[name]
    cells = len(task.families) * len(task.lengths)
    for heldout in (False, True):
        first, again = (
            list(islice(task.stream(5, families=task.families, heldout=heldout), 3 * cells))
            for _ in range(2)
        )
        assert first == again
        assert len({item.prompt for item in first}) == 3 * cells
        assert all(is_heldout(item.prompt) == heldout for item in first)
        drawn = [(item.family, item.length) for item in first]
        assert all(drawn.count((f, n)) == 3 for f in task.families for n in task.lengths)
        other = list(islice(task.stream(6, families=task.families, heldout=heldout), cells))
        assert other != first[:cells]
    practised = [task.practice(random.Random(i)) for i in range(300)]
    assert not any(is_heldout(item.prompt) for item in practised)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("dead", MIXES)
@pytest.mark.parametrize("prompts", [4000, 16000])
def test_shares_are_exact(name, dead, prompts):
    counts = pools.pool_counts(name, dead / 100, prompts)
    assert sum(counts.values()) == prompts
    assert counts["luck"] == counts["wrong_key"] == prompts * 5 // 100
    asleep = counts["solved"] + counts["out_of_reach"] + counts["wrong_key"]
    assert asleep == prompts * dead // 100
    held = pools.heldout_counts(name, dead / 100, 800)
    assert sum(held.values()) == 800
    live = prompts - counts["luck"] - counts["wrong_key"]
    for kind, count in held.items():
        assert count == pytest.approx(800 * counts[kind] / live, abs=1)


def test_a_mix_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"dead: got 0\.97, wanted 0\.05 to 0\.95"):
        pools.pool_counts("frontier", 0.97, 4000)
    with pytest.raises(ValueError, match=r"dead: got 0\.02"):
        pools.pool_counts("frontier", 0.02, 4000)


def test_candidates_do_not_depend_on_chunks_or_on_what_else_is_wanted(monkeypatch, tmp_path):
    """The real start model: a kind's rows are the first of it in the order of the task, with the
    rates of 16 plain draws."""
    torch.set_num_threads(1)
    task = TASKS["frontier"]
    model = Qwen3ForCausalLM.from_pretrained(ASSETS / "frontier" / "model", dtype=torch.float32)
    sampler = tiny_models.Sampler(
        model, tiny_models.Vocabulary(task.tokens), task.max_response_tokens, 7
    )

    def candidates(chunk: int, wanted: dict[str, int], file: str = "") -> pools.Candidates:
        monkeypatch.setattr(pools, "CHUNK", chunk)
        stream = task.stream(11, families=task.families, heldout=False)
        path = tmp_path / (file or f"{chunk}.jsonl")
        successes = pools.Successes(sampler, 0, path)
        made = pools.Candidates(successes, stream, lottery=False, keys=True)
        made.fill(wanted, 400, "test")
        return made

    everything = candidates(
        120, {"learnable": 50, "solved": 3, "out_of_reach": 60, "wrong_key": 10}
    )
    solved = candidates(64, {"solved": 3})
    assert solved.rows["solved"][:3] == everything.rows["solved"][:3]
    assert not solved.rows["out_of_reach"]
    assert (
        candidates(55, {"wrong_key": 10}).rows["wrong_key"][:10]
        == (everything.rows["wrong_key"][:10])
    )
    items = list(islice(task.stream(11, families=task.families, heldout=False), 120))
    texts = sampler.responses(dict(enumerate(items)), 16, stream=0)
    direct = [
        (item, tiny_models.right(texts[i], item.answer) / 16)
        for i, item in enumerate(items)
        if not pools.gets_wrong_key(item)
    ]
    learnable = [(item, rate) for item, rate in direct if 0 < rate < 1]
    found = [(row.item, row.rate) for row in everything.rows["learnable"]]
    assert found[: len(learnable)] == learnable
    assert len(learnable) > 20
    # what was kept is not sampled again: a stopped run goes on from it
    (tmp_path / "cut.jsonl").write_text(
        "".join((tmp_path / "120.jsonl").read_text().splitlines(keepends=True)[:100])
    )
    wanted = {"learnable": 50, "solved": 3, "out_of_reach": 60, "wrong_key": 10}
    assert candidates(120, wanted, "cut.jsonl").rows == everything.rows
    kept = (tmp_path / "cut.jsonl").read_text()
    assert candidates(120, wanted, "cut.jsonl").rows == everything.rows
    assert (tmp_path / "cut.jsonl").read_text() == kept
    with pytest.raises(SystemExit, match="400 candidates hold too few prompts"):
        candidates(200, {"solved": 399})


def test_a_start_model_that_ships_is_taken(tmp_path):
    """With what was sampled from it; what another model left is not."""
    made_by = json.loads((ASSETS / "frontier" / "testbed.json").read_text())["made_by"]
    recipe = {key: value for key, value in made_by.items() if key != "parameters"}
    weights, samples = tmp_path / "model" / "model.safetensors", tmp_path / "samples_train.jsonl"
    for left, kept in ((None, False), (None, True), (b"another", False)):
        samples.write_text("{}")
        if left is not None:
            weights.write_bytes(left)
        testbeds.take_start(ASSETS / "frontier", recipe, tmp_path)
        shipped = ASSETS / "frontier" / "model" / "model.safetensors"
        assert weights.read_bytes() == shipped.read_bytes()
        assert json.loads((tmp_path / "start.json").read_text()) == recipe
        assert samples.exists() == kept
    with pytest.raises(SystemExit, match="its seed is 0, wanted 1; name a testbed of the same"):
        testbeds.take_start(ASSETS / "frontier", {**recipe, "seed": 1}, tmp_path)


def test_chosen_sets_are_nested_and_shuffled():
    item = [Item(f"R{i}=", "1", "R", 2) for i in range(90)]
    kinds = {
        kind: [pools.Row(i, "1", kind, 0.5) for i in item[30 * n : 30 * n + 30]]
        for n, kind in enumerate(pools.KINDS[:3])
    }
    small, large = (pools.choose(kinds, dict.fromkeys(kinds, count), "seed") for count in (10, 25))
    assert {row.item for row in small} < {row.item for row in large}
    assert len(large) == 75
    assert small == pools.choose(kinds, dict.fromkeys(kinds, 10), "seed")
    assert [row.kind for row in small] != sorted(row.kind for row in small)


def test_the_warm_start_is_a_function_of_its_seed():
    task = TASKS["chain"]
    vocabulary = tiny_models.Vocabulary(task.tokens)
    encode = vocabulary.encoder()
    torch.set_num_threads(1)

    def practice(rng: random.Random) -> tuple[list[int], list[int]]:
        item = task.practice(rng)
        return encode(item.prompt), encode(task.write(item))

    def weights(seed: int) -> torch.Tensor:
        size = tiny_models.Size(64, 1, 2)
        model = tiny_models.make_model(size, len(vocabulary.ids()), seed)
        before = model.lm_head.weight.clone()
        tiny_models.warm_start(model, practice, steps=2, batch=8, rate=1e-3, seed=seed)
        assert not torch.equal(before, model.lm_head.weight)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("size", ["1m", "4m"])
def test_sizes(size):
    with torch.device("meta"):
        model = tiny_models.make_model(tiny_models.SIZES[size], 20, 0)
    least, most = {"1m": (0.7e6, 0.9e6), "4m": (4e6, 5e6)}[size]
    assert least <= model.num_parameters() <= most


@pytest.mark.parametrize(("samples", "k"), [(8, 4), (8, 1), (5, 5)])
def test_pass_at_k_is_the_mean_over_all_subsets(samples, k):
    for successes in range(samples + 1):
        outcomes = [i < successes for i in range(samples)]
        subsets = list(combinations(outcomes, k))
        assert testbeds.pass_at(k, successes, samples) == pytest.approx(
            sum(any(s) for s in subsets) / math.comb(samples, k)
        )


@pytest.mark.parametrize("task", SHIPPED)
def test_shipped_sets_hold_what_they_say(task):
    report = json.loads((ASSETS / task / "testbed.json").read_text())
    heldout = set()
    for name in sets_of(task):
        entries = rows(task, name)
        prompts = [row["prompt"] for row in entries]
        assert len(set(prompts)) == len(prompts) == report["sets"][name]["prompts"]
        assert all(is_heldout(p) == name.startswith("heldout") for p in prompts)
        heldout |= {p for p in prompts if name.startswith("heldout")}
        kinds = [row["kind"] for row in entries]
        counts = {kind: kinds.count(kind) for kind in pools.KINDS}
        shares = {kind: round(count / len(kinds), 4) for kind, count in counts.items() if count}
        assert shares == report["sets"][name]["kinds"]
        kind, _, dead = name.partition("_")
        if kind == "train":
            assert counts == pools.pool_counts(task, int(dead) / 100, len(entries))
        elif dead.isdigit():
            wanted = pools.heldout_counts(task, int(dead) / 100, len(entries))
            assert counts == {**dict.fromkeys(pools.KINDS, 0), **wanted}
    assert len(heldout) >= 800


@pytest.mark.parametrize("task", SHIPPED)
def test_shipped_keys_are_right_where_they_should_be(task):
    for name in sets_of(task):
        for row in rows(task, name):
            rate, kind = row["start_pass_rate"], row["kind"]
            assert kind in pools.KINDS
            assert rate * 16 == int(rate * 16)
            assert (rate == 1) == (kind == "solved")
            assert (rate == 0) == (kind in ("out_of_reach", "wrong_key"))
            assert len(row["prompt"]) == row["length"] + 2
            assert row["prompt"][0] == row["family"]
            assert (row["family"] == LOTTERY) == (kind == "luck")
            if kind == "luck":
                assert len(row["answer"]) == 1
                continue
            item = Item(row["prompt"], "", row["family"], row["length"])
            if task == "frontier":
                answer = solve_frontier(row["family"], row["prompt"][1:-1])
            else:
                answer = write_chain(item).partition("####")[0][-5::2]
            assert (row["answer"] != answer) == (kind == "wrong_key"), row


@pytest.mark.parametrize("task", SHIPPED)
def test_shipped_start_models_load_and_are_small(task):
    directory = ASSETS / task / "model"
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 4 * 2**20
    assert 0.7e6 < model.num_parameters() < 0.9e6
    encode = tiny_models.Vocabulary(TASKS[task].tokens).encoder()
    for row in rows(task, "heldout_50")[:200]:
        item = Item(row["prompt"], row["answer"], row["family"], row["length"])
        text = row["prompt"] + TASKS[task].write(item)
        ids = tokenizer.encode(text)
        assert ids == encode(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id
