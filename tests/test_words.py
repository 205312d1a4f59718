"""What the docs and the docstrings name exists: files, verbs, configuration keys, commands, flags,
and the names of the code. Whoever renames one finds here where it was spoken of."""

from __future__ import annotations

import argparse
import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from pydantic import BaseModel

from cero_rl.commands.main import COMMANDS
from cero_rl.config.root import Config

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cero_rl"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "AGENTS.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]

# What others define, or the reader: patterns. One that is not needed is an error. In order: of the
# reader; of the shell, of Slurm and secrets; of DeepSpeed, vLLM, torch, Megatron; of TRL and verl.
OF_OTHERS = """
path/to/* path.py:name owner/name reasoning_gym:NAME runs/* OUTPUT_DIR/* weights_dir/*
out/megatron .NAME.tmp-*
/ .netrc /* https:// hf_... sk-... ghp_... AKIA... api_key hf_token HF_TOKEN WANDB_API_KEY
$* srun AuthInfo BeginTime cred_expire
.deepspeed_env DS_ENV_FILE PDSH_SSH_ARGS_APPEND --no_ssh_check ds_to_universal
--api-key fullgraph=True F.linear_cross_entropy --load GPTModel
dist_checkpointing.*
n_samples_per_prompt loss_agg_mode peft_config compute_score(*)
shuffle_dataset resume_from_checkpoint vespo rollout.n *?rollout.n
<answer> \\boxed{*}
cero.rounds trainer.* +ray_kwargs.* AgentLoopManagerTQ cero_center cero_std cero_rloo cero_maxrl
"""
FOREIGN = OF_OTHERS.split()
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
NAME = r"[A-Za-z_]\w*"


@dataclass
class Vocabulary:
    """Every name that some code defines, imports or touches."""

    names: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)  # packages of others
    top: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # of each module
    members: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # of each class
    bases: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    literals: set[str] = field(default_factory=set)  # strings of one word
    templates: set[str] = field(default_factory=set)  # f-strings that name a file or a metric
    patterns: list[re.Pattern[str]] = field(default_factory=list)  # of templates

    def read(self, path: Path) -> None:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        stem = path.parent.name if path.stem == "__init__" else path.stem
        self.names.add(stem)
        self.top[stem].update(name for node in tree.body for name in defined(node))
        for node in ast.walk(tree):
            self.names.update(defined(node))
            if isinstance(node, ast.ClassDef):
                self.members[node.name].update(members_of(node))
                self.bases[node.name].update(n.id for n in node.bases if isinstance(n, ast.Name))
            elif isinstance(node, ast.Import):
                self.foreign.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                self.foreign.add((node.module or "").split(".")[0])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"\S{1,80}", node.value):
                    self.literals.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "*" for p in node.values]
                if re.fullmatch(r"[\w/.*-]*\w{4}[\w/.*-]*", text := "".join(parts)):
                    self.templates.add(text)

    def close(self) -> None:
        self.names.update(word for word in self.literals if re.fullmatch(NAME, word))
        self.foreign -= {"cero_rl", ""}
        hole = r"[\w*-]+"
        self.patterns = [
            re.compile(hole.join(map(re.escape, t.split("*")))) for t in self.templates
        ]

    def has_member(self, kind: str, name: str) -> bool:
        return name in self.members[kind] or any(
            base not in self.members or self.has_member(base, name) for base in self.bases[kind]
        )

    def has_template(self, word: str) -> bool:
        return any(pattern.fullmatch(word) for pattern in self.patterns)


def defined(node: ast.AST) -> Iterator[str]:
    """The names in one node of a syntax tree; of an assignment, those on its left."""
    if isinstance(node, DEFINITIONS):
        yield node.name
    elif isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.arg | ast.keyword):
        yield from [node.arg] if node.arg else []
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
    elif isinstance(node, ast.Assign):
        yield from (name for target in node.targets for name in defined(target))
    elif isinstance(node, ast.AnnAssign):
        yield from defined(node.target)


def members_of(kind: ast.ClassDef) -> Iterator[str]:
    for node in kind.body:
        yield from defined(node)
    for node in ast.walk(kind):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield from [node.attr] if node.value.id in ("self", "cls") else []


@cache
def vocabulary(*patterns: str) -> Vocabulary:
    words = Vocabulary()
    for pattern in patterns:
        for path in ROOT.glob(pattern):
            words.read(path)
    words.close()
    return words


def of_the_package() -> Vocabulary:
    return vocabulary("cero_rl/**/*.py")


@cache
def of_the_repository() -> Vocabulary:
    words = vocabulary("cero_rl/**/*.py", "tools/*.py", "recipes/*.py", "tests/*.py", "setup.py")
    words.names.update(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    for path in (ROOT / "tests").rglob("*.py"):
        words.names.update(re.findall(r"\bCERO_[A-Z_]+\b", path.read_text("utf-8")))
    return words


def keys_of(model: type[BaseModel], before: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield before + name
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from keys_of(info.annotation, f"{before}{name}.")


KEYS = set(keys_of(Config))
SECTIONS = {key.split(".")[0] for key in KEYS if "." in key}
LEAVES = {key.split(".")[-1] for key in KEYS}
VERBS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@cache
def commands() -> dict[str, set[str]]:
    """Of `cero-rl`: each command with its flags, and what it takes for its own commands."""

    def options(parser: argparse.ArgumentParser) -> Iterator[str]:
        yield from parser._option_string_actions
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, own in action.choices.items():
                    yield name
                    yield from options(own)

    words = {}
    for command in COMMANDS:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        words[command.__name__.rpartition(".")[2]] = set(options(parser))
    return words


# --- one word


@dataclass(frozen=True)
class Reader:
    """Who reads a page that may name what is in `words`, and files beside the page."""

    words: Vocabulary
    page: Path = ROOT / "README.md"

    def knows(self, word: str) -> bool:
        return is_of_others(word) or self.knows_ours(word)

    def knows_ours(self, word: str) -> bool:
        if is_value(word):
            return True
        if re.search(r"[ (=[]", word):
            return self.knows_phrase(word)
        if word.startswith("--"):
            return word in of_the_repository().literals | set().union(*commands().values())
        if word.rstrip("/") in self.words.literals or self.words.has_template(word.rstrip("/")):
            return True
        if re.fullmatch(NAME, word):
            return word in self.words.names | KEYS | LEAVES
        if re.fullmatch(rf"{NAME}(\.{NAME})+", word) and self.knows_dotted(word.split(".")):
            return True
        return self.finds(word) or self.knows_family(word)

    def knows_phrase(self, text: str) -> bool:
        first, *rest = re.sub(r'="[^"]*"', "=", text).split(" ")
        if first == "make":
            return all(word in VERBS for word in rest if "=" not in word)
        if ours := re.match(r"(cero-rl|python -m cero_rl) ([^-].*?)( -- .*)?$", text):
            return knows_command(ours[2].split(" "))
        if text.startswith("python -m "):
            return self.knows_dotted(rest[1].split("."))
        if re.match(r"python |[\w/.]+\.py ", text):
            files = [word for word in (first, *rest) if word.endswith((".py", ".yaml"))]
            flags = [word.split("=")[0] for word in rest if word.startswith("--")]
            return all(map(self.finds, files)) and all(map(self.knows, flags))
        if first == "--set":
            return all(is_setting(word) for word in rest if word != "--set")
        if first.startswith("--"):
            return self.knows(first)
        if setting := re.fullmatch(r"([\w.]+)(: |=).*", text):
            return self.knows(setting[1])
        if call := re.fullmatch(r"([\w.]+)(\(.*\))", text):
            method = call[1].rpartition(".")[2]
            own = any(method in members for members in self.words.members.values())
            return (own or self.knows(call[1])) and self.knows_all(call[2])
        return self.knows_all(text)

    def knows_all(self, formula: str) -> bool:
        """What is unmistakably a name: with an underline, or in CamelCase."""
        unmistakable = r"\b[A-Za-z]+_\w+\b|\b[A-Z][a-z]+[A-Z]\w+\b|\b[A-Z][a-z]{3,}\b(?=\()"
        return all(map(self.knows, re.findall(unmistakable, formula)))

    def knows_dotted(self, parts: Sequence[str]) -> bool:
        first, *rest = parts
        if first in SECTIONS and ".".join(parts) in KEYS:
            return True
        if first == "cero_rl" or (PACKAGE / first / "__init__.py").is_file():
            path = PACKAGE if first == "cero_rl" else PACKAGE / first
            while rest and ((path / rest[0]).is_dir() or (path / f"{rest[0]}.py").is_file()):
                path /= rest.pop(0)
            return not rest or rest[0] in self.words.top[path.name]
        if first in self.words.members:
            return self.words.has_member(first, rest[0])
        if first in self.words.top:
            return rest[0] in self.words.top[first] and (len(rest) == 1 or self.knows_dotted(rest))
        if first in SECTIONS:  # and no such key
            return False
        return first in self.words.foreign or all(part in self.words.names for part in parts)

    def finds(self, word: str) -> bool:
        """Is it a file or folder, from the root, the package or the page; or a file's bare name?"""
        path = word.split(":")[0].rstrip("/")
        if not path or path.startswith(("/", "..")):
            return False
        places = [ROOT, PACKAGE, self.page.parent]
        if "/" not in path and re.search(r"[\w*]\.\w+$", path):
            path = f"**/{path}"
            places = [PACKAGE, ROOT / "tests", ROOT / "docs"]
        return any(found.is_file() or holds_a_file(found) for p in places for found in p.glob(path))

    def knows_family(self, word: str) -> bool:
        """Several names of one kind: budget/{total,spent}_rollouts, skew/*."""
        if braces := re.fullmatch(r"(.*)\{(.*)\}(.*)", word):
            return all(self.knows(braces[1] + one + braces[3]) for one in braces[2].split(","))
        names = self.words.literals | self.words.names | self.words.templates
        return "*" in word and any(fnmatch(name, word) for name in names)


@cache
def holds_a_file(folder: Path) -> bool:
    """Git keeps no empty folder; what Python left behind in an old one is none of ours."""
    return any(f.is_file() and "__pycache__" not in f.parts for f in folder.rglob("*"))


def is_setting(word: str) -> bool:
    return word.partition("=")[0] in {*KEYS, "section.key", "key"}


def knows_command(words: Sequence[str]) -> bool:
    name, *rest = words
    flags = {word.split("=")[0] for word in rest if word.startswith("-")}
    takes_own = any(not word.startswith("-") for word in commands().get(name, ()))
    own = (
        rest[0].split("|") if takes_own and rest[:1] and rest[0].replace("|", "").islower() else []
    )
    settings = [word for word in rest if re.match(r"[a-z][\w.]*=", word)]
    return (
        name in commands()
        and flags | set(own) <= commands()[name]
        and all(map(is_setting, settings))
    )


def is_of_others(word: str) -> bool:
    return any(fnmatch(word, pattern) for pattern in FOREIGN)


def is_value(word: str) -> bool:
    try:
        ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word in {"true", "false", "null"}
    return True


# --- all words


def in_backquotes(text: str) -> Iterator[tuple[int, str]]:
    """(line, word) of Markdown or a docstring, code blocks left out."""
    text = re.sub(r"(?ms)^```.*?^```$", lambda block: "\n" * block[0].count("\n"), text)
    text = re.sub(r"(?m)^    .*$", "", text)
    for match in re.finditer(r"`([^`]+)`", text):
        yield text.count("\n", 0, match.start()) + 1, " ".join(match[1].split())


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, DEFINITIONS | ast.Module):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text


READERS = [
    *((page, Reader(of_the_repository(), page)) for page in PAGES),
    *((path, Reader(of_the_package(), path)) for path in sorted(PACKAGE.rglob("*.py"))),
]


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    return docstrings(path) if path.suffix == ".py" else iter([(1, path.read_text("utf-8"))])


@cache
def not_ours() -> list[tuple[str, str]]:
    """(place, word) of whatever the code does not have."""
    return [
        (f"{path.relative_to(ROOT)}:{start + line - 1}", word)
        for path, reader in READERS
        for start, text in texts_of(path)
        for line, word in in_backquotes(text)
        if not reader.knows_ours(word)
    ]


def test_what_is_named_exists() -> None:
    wrong = [f"{place}: {word}" for place, word in not_ours() if not is_of_others(word)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_foreign_word_is_needed() -> None:
    words = {word for _, word in not_ours()}
    assert [pattern for pattern in FOREIGN if not any(fnmatch(w, pattern) for w in words)] == []


RIGHT = """
`cero_rl/train/loop.py`, `train/`, `loop.py`, `tests/test_layers.py`, `vllm*.py`, `make test`,
`make gpu-check PY=python3`, `budget.total_rollouts`, `rollout.server.urls`, `lora.rank: 16`,
`cero-rl checkpoints list|verify|prune RUN`, `cero-rl simulate --suite rivals`, `--resume auto`,
`--set scheduler.name=uniform --set name=x`,
`python -m cero_rl validate --config FILE`, `python -m cero_rl.rewards.worker`, `open_round`,
`Group.together`, `Cero.pending`, `scheduler.next_wave(evidence)`, `config.root.Config`, `skew/*`,
`budget/{total,spent}_rollouts`, `parity/gap`, `stacks_rankN.txt`, `Evidence(ids, wins, trials)`,
`cero_rl.config.root.Config`, `torch.compile`, `null`, `0.5`

    `Observed` in a code block is none of ours
"""
WRONG = """
`cero_rl/loop.py`
`rooms/`
`tests/test_rooms.py`
`make coffee`
`budget.rollouts`
`rollout.server.key: x`
`cero-rl practise`
`cero-rl train my.yaml scheduler.nam=uniform`
`cero-rl validate --suite rivals`
`--no-such-flag`
`python -m cero_rl.worker`
`KeepScheduler`
`update_groups`
`Group.optimize`
`--set scheduler.nam=uniform`
`Cero.answer`
`next_wave(Observed(successes, trials))`
`config.root.Settings`
`cero_rl.collect.Collected`
`skewed/*`
`parity/hole`
`budget/{total,lost}_rollouts`
`rollouts_per_step * no_such_name`
"""


def test_the_checker_tells_right_from_wrong() -> None:
    reader = Reader(of_the_repository())
    assert [word for _, word in in_backquotes(RIGHT) if not reader.knows(word)] == []
    wrong = [(line, word) for line, word in in_backquotes(WRONG) if not reader.knows(word)]
    assert wrong == list(enumerate(WRONG.replace("`", "").split("\n")[1:-1], 2))
