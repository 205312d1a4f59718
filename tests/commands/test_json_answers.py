"""--json on every verb that answers: standard output is one document, of an answer, of an error, of
a command line that cannot be read; the exit code is the one without --json."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_checkpoints import make
from made_runs import make_run

from cero_rl.commands.answers import error_of, finite
from cero_rl.commands.main import build_parser, main

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "recipes/quickstart_cpu.yaml")
FEW = "--set data.limit=200 --set data.heldout_limit=20 --show"
# what runs until it is ended, or draws on a terminal
NO_ANSWER = {"train", "launch", "serve", "view"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, checkpoints of which one is damaged, data with pass rates."""
    place = tmp_path_factory.mktemp("answers")
    make_run(place, "uniform", "scheduler.name=uniform", "seed=1")
    make_run(place, "cero", "seed=1")
    for run in ("intact", "broken"):
        for step in (2, 4):
            make(place / run, step, 0.5)
    (place / "broken/checkpoints/step_000004/arrays.safetensors").write_bytes(b"arrayz")
    rows = ({"prompt": str(at), "answer": "1", "pass_rate": at % 5 / 4} for at in range(40))
    (place / "rates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def answered(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    assert main([*words, "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def verbs(parser: argparse.ArgumentParser, *before: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb with its parser, `recipes list` as well as `plan`."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield before, parser
    for action in below:
        for name, own in action.choices.items():
            yield from verbs(own, *before, name)


VERBS = dict(verbs(build_parser()))


def test_every_verb_that_answers_has_the_flag() -> None:
    without = {
        words[0] for words, own in VERBS.items() if "--json" not in own._option_string_actions
    }
    assert without == NO_ANSWER


@pytest.mark.parametrize("words", [w for w in VERBS if w[0] not in NO_ANSWER], ids=" ".join)
def test_a_wrong_flag_is_a_document_on_every_verb(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*words, "--json", "--sed", "1"])
    assert left.value.code == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["type"], error["exit_code"]) == ("UsageError", 2)
    assert err == f"error: {error['message']}\n"


# verb -> further words, {} for the place; the exit code; what the answer has
ANSWERS = [
    ("recipes list", "", 0, {"recipes"}),
    ("recipes show", "digits_cpu", 0, {"name", "path", "text"}),
    ("recipes copy", "digits_cpu --to {}/copied", 0, {"config", "written"}),
    ("schema", "", 0, {"$schema", "properties"}),
    ("validate", f"--config {RECIPE} {FEW}", 0, {"valid", "prompts", "sizes", "config"}),
    ("plan", f"--config {RECIPE} --cpu --gpus 2", 0, {"fits", "phases", "machine"}),
    ("init", "--data {}/rates.jsonl --model M --reward exact --out {}/my.yaml --yes", 0,
     {"config", "prompts", "rollouts"}),
    ("report", "{}/cero", 0, {"finished", "scheduler"}),
    ("compare", "{}/uniform {}/cero", 0, {"runs"}),
    ("study", f"{ROOT}/docs/studies/frontier.yaml --tables", 0, {"pools"}),
    ("simulate", "--seeds 2 --prompts 64 --rounds 8 --budget 1024 --only greso --processes 1", 0,
     {"rows"}),
    ("simulate", "--replay {}/rates.jsonl --budget 320 --seeds 2", 0, {"payoffs", "verdict"}),
    ("checkpoints list", "{}/intact", 0, {"checkpoints", "unfinished", "set_aside"}),
    ("checkpoints verify", "{}/intact", 0, {"intact", "damaged"}),
    ("checkpoints verify", "{}/broken", 4, {"intact", "damaged", "error"}),
    ("checkpoints prune", "{}/intact --keep-last 1 --dry-run", 0, {"removed", "dry_run"}),
    ("slurm render", f"--config {RECIPE} --nodes 1 --ranks-per-node 2 --dry-run", 0, {"script"}),
    ("doctor", "--quick --output-dir {}", None, {"fit", "findings"}),
    # their answers: tests of evaluate, diagnose and parity, which load models
    ("evaluate", f"--config {RECIPE} --model {{}}/none", 2, {"error"}),
    ("diagnose", "{}/none", 2, {"error"}),
    ("parity", "--model {}/none --url http://127.0.0.1:9", 2, {"error"}),
]  # fmt: skip


def test_no_verb_is_left_out() -> None:
    assert {tuple(verb.split()) for verb, *_ in ANSWERS} == {
        words for words in VERBS if words[0] not in NO_ANSWER
    }


@pytest.mark.parametrize("verb, more, code, wanted", ANSWERS)
def test_an_answer_is_one_document(
    verb: str,
    more: str,
    code: int | None,
    wanted: set[str],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    status = main([*verb.split(), *more.format(*[place] * 3).split(), "--json"])
    assert code is None or status == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert wanted <= set(found)
    assert (
        ("error" in found) == (status != 0) == err.rstrip().rpartition("\n")[2].startswith("error:")
    )


def test_answers_say_what_the_words_say(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    found = answered(capsys, "validate", "--config", RECIPE, "--set", "seed=7", *FEW.split())
    assert (found["prompts"], found["config"]["seed"]) == (200, 7)
    assert found["sizes"]["updates, at least"] == "51200 / 128 x 1 = 400"
    bad = answered(capsys, "checkpoints", "verify", str(place / "broken"), code=4)
    assert (bad["intact"], list(bad["damaged"])) == (["step_000002"], ["step_000004"])
    assert bad["error"]["exit_code"] == 4
    of_run = answered(capsys, "report", str(place / "cero"))
    main(["report", str(place / "cero"), "--format", "json"])
    assert json.loads(capsys.readouterr().out) == of_run
    assert not (place / "cero/report.html").exists()


def test_a_page_may_be_written_beside_the_answer(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "cero.md"
    words = ["report", str(place / "cero"), "--format", "md", "--out", str(page)]
    assert answered(capsys, *words) == answered(capsys, "report", str(place / "cero"))
    assert "accuracy" in page.read_text()


# what a library prints, and what a child does, never reaches the document
NOISY = """
import os, sys
from cero_rl.commands import main as door, schema
own = schema.run
def run(arguments):
    print("a library")
    os.write(1, b"native code\\n")
    os.system("echo a child")
    return own(arguments)
schema.run = run
sys.exit(door.main(["schema", "--json"]))
"""


def test_what_others_print_is_on_standard_error() -> None:
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", NOISY], env=own, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr.split("\n")) == (
        0,
        ["a library", "native code", "a child", ""],
    )
    assert json.loads(done.stdout)["title"] == "Config"


@pytest.mark.parametrize(
    "words, code, field, got, wanted, remedy",
    [
        (["validate", "--config", RECIPE, "--set", "scheduler.nam=x"], 2, "scheduler.nam",
         None, None, "did you mean scheduler.name?"),
        (["validate", "--config", RECIPE, "--set", "seed=x"], 2, "seed", "'x'", None,
         "input should be a valid integer, unable to parse string as an integer"),
        (["plan", "--config", RECIPE, "--gpus", "0"], 2, "--gpus", "0", "an integer >= 1", None),
        (["validate", "--config", "none.yaml"], 2, "--config", None, None,
         "give the path of a YAML file, e.g. recipes/quickstart_cpu.yaml"),
        (["checkpoints", "list", "none"], 2, "RUN", None, None,
         "give a run's directory, e.g. runs/quickstart"),
        (["simulate", "--suite", "none"], 2, "--suite", "none", None, None),
    ],
)  # fmt: skip
def test_the_parts_of_an_error(
    words: list[str],
    code: int,
    field: str,
    got: str | None,
    wanted: str | None,
    remedy: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = answered(capsys, *words, code=code)["error"]
    assert (error["type"], error["field"], error["got"]) == ("ConfigError", field, got)
    assert wanted in (None, error["wanted"])
    assert remedy in (None, error["remedy"])


def test_what_a_message_does_not_say_is_null() -> None:
    error = error_of("DataError", "doctor: gloo not as a run needs it", 6)
    assert [error[part] for part in ("field", "got", "wanted", "remedy")] == [None] * 4
    error = error_of("ConfigError", "--tokens 0: wanted 1 to 9; say another", 2)
    assert list(error.values())[3:] == ["--tokens", "0", "1 to 9", "say another"]
    error = error_of("UsageError", "argument --gpus: invalid int value: 'x'; see plan --help", 2)
    assert (error["field"], error["got"]) == ("--gpus", "x")


def test_a_number_that_json_does_not_have_is_null() -> None:
    assert finite({"a": [float("nan"), 1.5], "b": float("inf")}) == {"a": [None, 1.5], "b": None}
