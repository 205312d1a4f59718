"""Every code block of the docs is run or checked against the code: commands by the parsers that
will read them, their settings and the YAML by the configuration, Python by running it where it
stands alone, and else by the signatures it calls."""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib
import inspect
import json
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import yaml

from cero_rl.commands import train
from cero_rl.commands.common import Parser
from cero_rl.commands.main import COMMANDS
from cero_rl.config import load_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BASE = ROOT / "recipes" / "quickstart_cpu.yaml"  # what a fragment or a reader's own file stands in
FENCE = re.compile(r"(?ms)^```([^\n]*)\n(.*?)^```$")
LANGUAGES = {"bash", "console", "json", "python", "text", "yaml"}  # console: "$ " before commands
OURS = ("recipes/", "docs/", "tools/", "tests/", "cero_rl/", "csrc/")  # files that must exist
OF_THE_SHELL = {"cd", "printf", "source"}
# What a block leaves to its reader, and is not run without.
READERS_OWN = {
    *("args", "budget", "folder", "llm", "make_builder", "model", "prompts", "reward_funcs"),
    *("rewards", "rounds", "score", "scheduler", "stream", "token_ids", "tokenizer"),
    *("train_dataset", "trainer", "CeroGRPOTrainer"),
}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def blocks() -> tuple[Block, ...]:
    return tuple(
        Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for found in FENCE.finditer(text)
    )


def of(language: str) -> list[Any]:
    return [pytest.param(b, id=b.place) for b in blocks() if b.language == language]


def test_every_block_says_what_it_is() -> None:
    assert [f"{b.place}: {b.language!r}" for b in blocks() if b.language not in LANGUAGES] == []
    fences = sum(len(re.findall(r"(?m)^```", p.read_text("utf-8"))) for p in PAGES)
    assert fences == 2 * len(blocks()), "a fence that is not closed, or is indented"


# --- commands


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of each command: lines joined, comments off, variables before it and redirections
    left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            ends = [i for i, word in enumerate(words) if word in ("&&", "||", "|", ";")]
            one, words = (words[: ends[0]], words[ends[0] + 1 :]) if ends else (words, [])
            one = one[: one.index(">")] if ">" in one else one
            while one and re.match(r"[A-Z_]+=", one[0]):
                one = one[1:]
            if one:
                yield one


def in_console(text: str) -> str:
    return "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))


@cache
def parser() -> Parser:
    whole = Parser(prog="cero-rl", allow_abbrev=False)
    below = whole.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        own = below.add_parser(command.__name__.rpartition(".")[2], allow_abbrev=False)
        command.add_arguments(own)
    return whole


class ParsedError(Exception):
    """A program has taken its words."""


def take(program: Path, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a program with its words, up to where it has parsed them."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self: Any, *given: Any, **named: Any) -> None:
        parse(self, *given, **named)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [str(program), *words])
    monkeypatch.syspath_prepend(str(program.parent))
    with mock.patch.dict(os.environ), pytest.raises(ParsedError):  # some set variables for theirs
        runpy.run_path(str(program), run_name="__main__")


def check_cero(words: list[str]) -> None:
    given = parser().parse_args(train.spelled_out(words) if words[0] == "train" else words)
    settings = getattr(given, "overrides", None)
    if settings:
        named = Path(str(getattr(given, "config", "") or BASE))
        recipe = ROOT / "recipes" / f"{named.stem}.yaml"
        load_config(recipe if recipe.exists() else BASE, settings)


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        wanted = rf"\b{name}\b.*\?=|^(OWN_)?{name} :?=" if is_variable else rf"^{re.escape(name)}:"
        assert re.search(wanted, makefile, re.MULTILINE), f"make {word}: no such verb or variable"


def check_pip(words: list[str]) -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    lock = (ROOT / "requirements" / "lock.txt").read_text("utf-8").splitlines()
    for word in words:
        assert "==" not in word or word in lock, f"{word} is not the tested version"
        for extra in re.findall(r"^(?:cero_rl|\.)\[([\w,-]+)\]", word):
            assert set(extra.split(",")) <= set(extras), f"no such extra: {word}"


def check_docker(words: list[str]) -> None:
    known = re.findall(r"(?m)^ARG (\w+)", (ROOT / "Dockerfile").read_text("utf-8"))
    given = [words[i + 1] for i, word in enumerate(words) if word == "--build-arg"]
    assert {word.partition("=")[0] for word in given} <= set(known), f"the image takes {known}"
    if words[0] == "run":
        image = next(i for i, word in enumerate(words) if word.startswith("cero_rl"))
        check_cero(words[image + 1 :])
    else:
        assert words[0] == "build"


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for word in words:
        if word.startswith(OURS):
            assert (ROOT / word).exists(), f"{word} does not exist"
    first, *rest = words
    first = first.removeprefix(".venv/bin/")
    script = next((i for i, word in enumerate(words) if word.startswith(OURS[:3])), None)
    if first == "cero-rl":
        check_cero(rest)
    elif first == "make":
        check_make(rest)
    elif first == "docker":
        check_docker(rest)
    elif first == "pip":
        check_pip(rest)
    elif first in ("python", "deepspeed") and script is not None:
        program = ROOT / words[script]
        if program.name == "train_cero.py":  # the same settings as those of cero-rl launch
            check_cero(["launch", *words[script + 1 :]])
        else:
            take(program, words[script + 1 :], monkeypatch)
    elif words[:2] == ["python", "-m"]:
        assert words[2].startswith("verl."), f"not checked: {words}"
    else:
        assert first in OF_THE_SHELL, f"nobody checks {first!r}; add how to tests/test_docs_code.py"


@pytest.mark.parametrize("block", of("bash"))
def test_commands_are_taken(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(commands_in(block.text))
    assert found
    for words in found:
        check(words, monkeypatch)


@pytest.mark.parametrize("block", of("console"))
def test_commands_of_a_console_are_taken(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(commands_in(in_console(block.text)))
    assert found
    for words in found:
        check(words, monkeypatch)


WRONG = """
cero-rl practise
cero-rl validate --config my.yaml --strictly
cero-rl train my.yaml budget.rollouts=3
cero-rl train my.yaml scheduler.rounds=none
cero-rl report
cero-rl plan --config recipes/no_such_recipe.yaml
make coffee
make train MILK=1
pip install 'cero_rl[coffee]'
deepspeed recipes/train_cero.py --config my.yaml --set scheduler.nam=cero
python tools/testbeds.py --task none --out x
python tools/no_such_tool.py
docker build --build-arg BAES=x .
docker run --rm cero_rl trian quickstart_cpu
curl somewhere
"""


@pytest.mark.parametrize("line", WRONG.strip().splitlines())
def test_a_wrong_command_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = commands_in(line)
    with pytest.raises((AssertionError, SystemExit, ValueError)):
        check(words, monkeypatch)


def test_no_command_stands_outside_of_a_block() -> None:
    """Indented by four it would be code that nobody checks."""
    command = re.compile(r"(?m)^ {4}(?:\.venv/bin/)?(?:cero-rl|make|python|deepspeed|pip) .*")
    found = [f"{p.name}: {line.strip()}" for p in PAGES for line in command.findall(p.read_text())]
    assert not found, found


# --- data


def merged(into: Any, more: Any) -> Any:
    if isinstance(into, dict) and isinstance(more, dict):
        return {key: merged(into.get(key), more.get(key, into.get(key))) for key in into | more}
    return more


@pytest.mark.parametrize("block", of("yaml"))
def test_fragments_are_configuration(block: Block, tmp_path: Path) -> None:
    whole = merged(yaml.safe_load(BASE.read_text("utf-8")), yaml.safe_load(block.text))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    load_config(tmp_path / "run.yaml", [])


@pytest.mark.parametrize("block", of("json"))
def test_json_is_json(block: Block) -> None:
    assert [json.loads(line) for line in block.text.splitlines()]


# --- Python


def free_names(tree: ast.AST) -> set[str]:
    """Names that are read and nowhere made."""
    made, read = set(dir(builtins)), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            made.update(alias.asname or alias.name.split(".")[0] for alias in node.names)
    return read - made


def imported(tree: ast.AST) -> dict[str, Any]:
    """Name -> what it is, of cero_rl; None where a package of others is missing here, and then the
    name must at least stand in the file."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cero_rl"):
            module = str(node.module)
            try:
                loaded = importlib.import_module(module)
            except ModuleNotFoundError as error:
                if str(error.name).startswith("cero_rl"):
                    raise
                place = ROOT / module.replace(".", "/")
                files = [place.with_suffix(".py"), place / "__init__.py"]
                text = next(path for path in files if path.exists()).read_text("utf-8")
                for alias in node.names:
                    assert re.search(rf"\b{alias.name}\b", text), alias.name
                    found[alias.name] = None
                continue
            found |= {alias.name: getattr(loaded, alias.name) for alias in node.names}
    return found


def check_calls(tree: ast.AST) -> None:
    """Every call of what cero_rl defines fits its signature; so do methods of what was built."""
    known = imported(tree)
    built = {
        node.targets[0].id: known.get(node.value.func.id)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called, own = None, 0
        if isinstance(call.func, ast.Name):
            called = known.get(call.func.id)
        elif isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            kind = built.get(call.func.value.id)
            called, own = (
                (getattr(kind, call.func.attr), 1) if isinstance(kind, type) else (None, 0)
            )
        if callable(called):
            named = {word.arg: None for word in call.keywords if word.arg is not None}
            inspect.signature(called).bind(*[None] * (own + len(call.args)), **named)


def stand_ins(pool: int) -> dict[str, Any]:
    """A model that solves every prompt one time in three."""
    luck = np.random.default_rng(0)

    def my_rewards(prompt: int, rollouts: int) -> list[float]:
        return (luck.random(rollouts) < 1 / 3).astype(float).tolist()

    def my_sampler(ids: np.ndarray, rollouts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        successes, trials = np.zeros(pool, dtype=np.int64), np.zeros(pool, dtype=np.int64)
        successes[ids], trials[ids] = luck.binomial(rollouts, 1 / 3), rollouts
        return successes, trials

    return {"my_rewards": my_rewards, "my_sampler": my_sampler}


@pytest.mark.parametrize("block", of("python"))
def test_python_runs_or_fits(block: Block) -> None:
    tree = ast.parse(block.text, block.place)
    size = re.search(r"num_prompts=(\d+)", block.text)
    names = stand_ins(int(size[1])) if size else {}
    absent = free_names(tree) - set(names)
    assert absent <= READERS_OWN, f"nobody gives {sorted(absent - READERS_OWN)}"
    check_calls(tree)
    if absent:
        return
    exec(compile(tree, block.place, "exec"), names)
    if "scheduler" in names:
        assert names["scheduler"].remaining_rollouts == 0


def test_the_reward_of_the_docs_judges() -> None:
    (block,) = (b for b in blocks() if b.language == "python" and b.page.name == "reward.md")
    names: dict[str, Any] = {}
    exec(block.text, names)
    said = ["it is #### 42", "41", "42"]
    assert names["reward"](["?"] * 3, said, answer=["42", "42", ""]) == [1.0, 0.0, None]


@pytest.mark.parametrize(
    "code",
    [
        "from cero_rl.scheduler import KeepScheduler",
        "from cero_rl.scheduler import make_scheduler\nmake_scheduler('cero', prompts=3)",
        "from cero_rl.adapters.stream import PromptStream\ns = PromptStream(1, pool='')\ns.give(8)",
    ],
)
def test_wrong_python_is_found(code: str) -> None:
    with pytest.raises((AttributeError, TypeError)):
        check_calls(ast.parse(code))
