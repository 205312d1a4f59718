"""Shell completion, asked as a shell asks: the line and the place of the cursor in variables, the
words in a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cero_rl.commands.main import COMMANDS
from cero_rl.config import Config
from cero_rl.config.recipes import all_recipes
from cero_rl.scheduler.registry import SCHEDULER_NAMES

ROOT = Path(__file__).resolve().parents[2]
LINES = {
    "verbs": "cero-rl ",
    "verb begun": "cero-rl va",
    "flags": "cero-rl plan --gpu",
    "recipes": "cero-rl recipes show ",
    "train": "cero-rl train quick",
    "keys behind --set": "cero-rl validate --config x.yaml --set scheduler.r",
    "keys of train": "cero-rl train my.yaml seed=1 budget.",
    "values": "cero-rl train my.yaml scheduler.preset=",
    "truths": "cero-rl train my.yaml rollout.overlap=",
    "allocators": "cero-rl launch --config my.yaml --set scheduler.name=",
    "suites": "cero-rl simulate --suite ",
    "files": "cero-rl report rec",
}
# every line in a fork of one interpreter, since an answer ends the process
ASK = """
import json, os, sys
from cero_rl.commands.main import main
for line in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        os.environ |= {"_ARGCOMPLETE": "1", "COMP_LINE": line}
        os.environ["COMP_POINT"] = str(len(line.encode()))
        main()
        os._exit(9)  # it was not asked
    assert os.waitpid(child, 0)[1] == 0, line
    with open(os.environ["_ARGCOMPLETE_STDOUT_FILENAME"]) as file:
        print(json.dumps(file.read().split("\\v")), flush=True)
"""


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    pytest.importorskip("argcomplete")
    words = tmp_path_factory.mktemp("complete") / "words"
    shell = {
        "_ARGCOMPLETE_STDOUT_FILENAME": str(words),
        "_ARGCOMPLETE_IFS": "\v",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><;|&(",  # as in zsh, which does not break at =
        "PYTHONPATH": str(ROOT),
    }
    lines = list(LINES.values())
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(lines)],
        cwd=ROOT,
        env={**os.environ, **shell},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = [set(map(str.strip, json.loads(line))) for line in done.stdout.splitlines()]
    return dict(zip(LINES, said, strict=True))


def test_verbs_and_flags(offered: dict[str, set[str]]) -> None:
    assert {c.__name__.rpartition(".")[2] for c in COMMANDS} <= offered["verbs"]
    assert offered["verb begun"] == {"validate"}
    assert offered["flags"] == {"--gpus", "--gpu-memory"}


def test_what_stands_behind_them(offered: dict[str, set[str]]) -> None:
    recipes = {one.name for one in all_recipes()}
    assert recipes <= offered["recipes"]
    assert {name for name in recipes if name.startswith("quick")} == offered["train"]
    assert {"rivals", "drift"} <= offered["suites"]
    assert {"recipes/"} == offered["files"]


def test_settings(offered: dict[str, set[str]]) -> None:
    begun = {n for n in Config.model_fields["scheduler"].annotation.model_fields if n[0] == "r"}
    assert offered["keys behind --set"] == {f"scheduler.{name}=" for name in begun}
    assert "budget.total_rollouts=" in offered["keys of train"]
    assert offered["values"] == {"scheduler.preset=published", "scheduler.preset=cero_plus"}
    assert offered["truths"] == {"rollout.overlap=true", "rollout.overlap=false"}
    assert offered["allocators"] == {f"scheduler.name={name}" for name in SCHEDULER_NAMES}


def test_without_argcomplete_nothing_breaks() -> None:
    code = "import sys; sys.modules['argcomplete'] = None\n"
    code += "from cero_rl.commands.main import main; sys.exit(main(['recipes', 'list']))"
    for asked, status in ({}, 0), ({"_ARGCOMPLETE": "1"}, 1):
        env = {**os.environ, "PYTHONPATH": str(ROOT), **asked}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (status, "")
        assert bool(done.stdout) is not bool(status)


def test_it_is_imported_where_a_shell_asks_alone() -> None:
    code = "import sys; from cero_rl.commands.main import main\n"
    code += "main(['recipes', 'list']); sys.exit('argcomplete' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=60)
    assert done.returncode == 0
