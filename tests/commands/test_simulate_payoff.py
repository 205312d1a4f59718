"""`cero-rl simulate --replay` on measured pass rates: the answer in words, where it will not pay,
and one clear line for what is wrong."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cero_rl.commands.main import main
from cero_rl.commands.simulate_payoff import (
    ORACLE,
    PLUS,
    TOLD,
    UNIFORM,
    Question,
    verdict,
)
from cero_rl.scheduler import BetaPosterior, export_posterior
from cero_rl.scheduler.simulation.measured import Measured
from cero_rl.scheduler.simulation.payoff import Answer, Interval, Payoff, Sizes


def pool(path: Path, rates: Sequence[Any], **columns: Any) -> str:
    more = [{name: values[at] for name, values in columns.items()} for at in range(len(rates))]
    rows = ({"prompt": str(at), "pass_rate": rate} | more[at] for at, rate in enumerate(rates))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ask(capsys: pytest.CaptureFixture[str], *words: str, draws: int = 2) -> str:
    assert main(["simulate", "--seeds", str(draws), "--replay", *words]) == 0
    return capsys.readouterr().out


def half_dead(prompts: int) -> list[float]:
    rng = np.random.default_rng(0)
    live = np.rint(rng.beta(2, 2, prompts) * 32) / 32
    return [0.0 if at % 2 else float(live[at]) for at in range(prompts)]


def test_a_pool_where_it_pays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pool(tmp_path / "p.jsonl", half_dead(160), level=[at % 2 for at in range(160)])
    words = [path, "--budget", "4800", "--rounds", "60", "--drift", "0"]
    out = ask(capsys, *words)
    assert out.startswith(
        "p.jsonl: 160 prompts, pass rates from 32 samples, as the rates suggest. Budget 4800 "
        "rollouts, 30.0 a prompt, in 60 rounds."
    )
    assert "Simulated 2 times: all prompts, 60 rounds" in out
    assert "\nIt pays: up to " in out
    table = {line.split("  ")[0]: line for line in out.splitlines()}
    assert {"uniform", "cero, as published", "cero_plus", "oracle (knows p)"} <= set(table)
    gain = lambda label: float(table[label].split("x (")[0].split()[-1])
    assert 1.2 < gain("cero_plus") < gain("oracle (knows p)")
    assert gain("cero_plus, told the rates") > gain("cero_plus")
    told = ask(capsys, *words, "--cells", "level", "--samples", "64")
    assert "pass rates from 64 samples. Budget" in told
    assert told != out


@pytest.mark.parametrize(
    "rates, budget, reason",
    [
        ([0.5, 0.375, 0.625, 0.5] * 30, 2400, "the pool is balanced, and even who knows every"),
        ([0.0] * 199 + [1.0], 2000, "of the prompts are dead, and no allocation makes signal"),
    ],
)
def test_where_it_will_not_pay(
    rates: list[float],
    budget: int,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = pool(tmp_path / "p.jsonl", rates)
    words = ["--budget", str(budget), "--rounds", "20", "--samples", "128", "--drift", "0"]
    out = ask(capsys, path, *words, draws=6)
    assert "\nIt will not pay here: " in out
    assert reason in out
    assert "It pays" not in out


def test_the_sentence_follows_from_the_gains() -> None:
    pool = Measured(np.ones(100), np.full(100, 2.0))
    question = Question("p.jsonl", pool, "", 100, 10, 0.0, "rate")
    some = lambda mean, low, high: Interval(mean, low, high)

    def say(plus: Interval, told: Interval, oracle: Interval) -> str:
        each = ((UNIFORM, some(1, 1, 1)), (PLUS, plus), (TOLD, told), (ORACLE, oracle))
        half = some(0.5, 0.4, 0.6)
        payoffs = tuple(Payoff(label, half, half, gain, half) for label, gain in each)
        found = Answer(half, half, 1.0, Sizes(100, 10, 100, 1), 6, payoffs)
        return verdict(question, found)

    rich, poor = some(2.4, 2.0, 2.8), some(1.02, 0.95, 1.09)
    assert say(poor, rich, rich) == (
        "It will not pay here: 1.0 rollouts a prompt are too few to find the prompts with signal "
        "and use them: first looks take 50% of the budget; who knows the rates would gain 2.40x "
        "(2.00 to 2.80). The measured rates are worth a first look at every prompt: with "
        "scheduler.pass_rate_column: rate it is 2.40x (2.00 to 2.80)."
    )
    assert say(poor, poor, poor).startswith("It will not pay here: the pool is balanced, and even")
    assert say(some(1.05, 0.9, 1.2), poor, rich).startswith("It will hardly pay: 1.05x (0.90")
    assert say(some(1.3, 0.9, 1.9), poor, rich).startswith("It may pay; these pass rates do not")
    assert say(some(1.15, 1.1, 1.2), poor, rich).startswith("It pays little, and only if batch")
    assert say(some(1.44, 1.21, 1.69), poor, rich) == (
        "It pays: up to 1.44x (1.21 to 1.69) where the step follows the signal, 1.20x (1.10 to "
        "1.30) where steps are limited by noise."
    )


def test_what_a_run_leaves_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.arange(60)
    posterior = BetaPosterior(60)
    posterior.update((ids % 9).astype(float), np.full(60, 8))
    keys = [f"k{at}" for at in ids]
    export_posterior(tmp_path / "posterior.parquet", keys, posterior)
    size = ["--budget", "640", "--rounds", "10"]
    out = ask(capsys, str(tmp_path / "posterior.parquet"), *size)
    assert "60 prompts, counts of a run's posterior. Budget 640" in out
    assert "told the rates" not in out  # there is no column to name
    assert ask(capsys, str(tmp_path), "--pays", *size).split("\n", 1)[1] == out.split("\n", 1)[1]
    entry = {"prompt_ids": [0, 2], "trials": [8, 8], "successes": [0, 4], "generated": [8, 8]}
    lines = (json.dumps({**entry, "round": number}) + "\n" for number in range(3))
    (tmp_path / "evidence.jsonl").write_text("".join(lines))
    out = ask(capsys, str(tmp_path / "evidence.jsonl"), "--pays", "--budget", "64")
    assert "3 prompts, counts of a run's evidence" in out


def test_parquet_with_rates_that_are_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow
    from pyarrow import parquet

    rates = [None, 0.25, 0.5, 1.0] * 10
    parquet.write_table(pyarrow.table({"rate": rates}), tmp_path / "p.parquet")
    out = ask(capsys, str(tmp_path / "p.parquet"), "--column", "rate", "--budget", "320")
    assert "40 prompts, pass rates from 4 samples, as the rates suggest, 10 of them not" in out


def test_without_torch(tmp_path: Path) -> None:
    path = pool(tmp_path / "p.jsonl", [0.0, 0.5, 1.0, 0.25])
    words = ["simulate", "--replay", path, "--budget", "64", "--seeds", "2"]
    code = (
        "import sys; from cero_rl.commands.main import main; "
        f"assert main({words!r}) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.covers("unreadable run given to a replay")
@pytest.mark.parametrize(
    "rows, arguments, code, message",
    [
        ([0.5, 1.2], [], 3, "line 2: pass_rate is '1.2', wanted a number in [0, 1] or null"),
        ([0.5, True], [], 3, "line 2: pass_rate is 'True', wanted a number"),
        ([0.5, "0.5"], [], 3, "line 2: pass_rate is '0.5', wanted a number"),
        ([float("nan"), None], [], 3, "line 1: pass_rate is 'nan', wanted a number"),
        ([None, None], [], 3, "column pass_rate holds nothing but null"),
        ([0.5], ["--column", "rate"], 3, "line 1: no column rate, it has pass_rate, prompt; --col"),
        ([0.5], ["--cells", "level"], 3, "line 1: no column level for --cells, it has pass_rate"),
        ([at / 997 for at in range(1, 80)], [], 2, "--samples is missing: the rates of"),
        ([0.5], ["--samples", "0"], 2, "--samples 0: wanted an integer >= 1"),
        ([0.5], ["--drift", "-1"], 2, "--drift -1: wanted logits in [0, 20]"),
        ([0.5], ["--drift", "nan"], 2, "--drift nan: wanted logits in [0, 20]"),
        ([0.5], ["--seeds", "1"], 2, "--seeds 1: wanted at least 2"),
        ([0.5], ["--budget", "7"], 2, "7 rollouts for 1 prompts are too few; wanted 8 or more"),
        ([0.5], ["--prompts", "9"], 2, "--prompts has no meaning for measured pass rates"),
        ([0.5], ["--only", "cero"], 2, "--only has no meaning for measured pass rates"),
    ],
)
def test_bad_input_is_one_line(
    rows: list[Any],
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = pool(tmp_path / "p.jsonl", rows)
    budget = [] if "--budget" in arguments else ["--budget", "64"]
    assert main(["simulate", "--replay", path, *budget, *arguments]) == code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("simulating")]
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.mark.parametrize(
    "text, arguments, message",
    [
        ('{"pass_rate": 0.5}\n{"pass_rate": 0.5', ["--budget", "64"], "line 2: no JSON"),
        ('{"pass_rate": 0.5}\n[1]\n', ["--budget", "64"], "line 2: list, wanted an object"),
        ("", ["--pays", "--budget", "64"], "holds no evidence"),
        ('{"pass_rate": 0.5}\n', [], "--budget is missing; wanted the rollouts of the run"),
    ],
)
def test_bad_files_are_one_line(
    text: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    assert main(["simulate", "--replay", str(tmp_path / "p.jsonl"), *arguments]) in (2, 3)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_flags_of_the_answer_need_a_pool(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--suite", "smoke", "--column", "rate"]) == 2
    assert "--column has a meaning with --replay FILE only" in capsys.readouterr().err
    assert main(["simulate", "--replay", "/no/such", "--pays", "--budget", "64"]) == 3
    assert "/no/such: no such file" in capsys.readouterr().err
