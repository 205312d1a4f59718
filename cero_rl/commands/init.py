"""`cero-rl init`: a first configuration for your data and model, from five questions or flags."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cero_rl.commands.answers import add_json, answer
from cero_rl.commands.common import add_debug
from cero_rl.config import Config
from cero_rl.config.io import build_config
from cero_rl.config.paths import path_argument, text_argument
from cero_rl.data.files import files_of
from cero_rl.data.load import left_out_lines, read_local
from cero_rl.data.sources import read_files
from cero_rl.errors import ConfigError, DataError
from cero_rl.rewards.several import check_reward

HELP = "write a first configuration for your data and model: five questions, or flags"
GROUP = 8  # rollouts of a prompt at a time
_ROUNDS, _LEAST_ROUND = 200, 64  # at most; rollouts of one
_PER_PROMPT = 16
_PROMPTS = ("prompt", "question", "problem", "instruction", "input", "query")
_ANSWERS = ("answer", "solution", "ground_truth", "target", "label", "output")
_SMALL = 256  # hidden size of models that a test trains from scratch
_QUESTIONS = {  # flag -> question, and what stands for no answer
    "data": ("Prompts: a .jsonl or .parquet file", None),
    "model": ("Model: a directory, or a Hugging Face id", "Qwen/Qwen3-0.6B"),
    "reward": ("Who judges: exact, math, or path/to/file.py:function", "math"),
    "rollouts": ("Rollouts in all (the budget)", ""),
    "out": ("Write the configuration to", "my.yaml"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=text_argument, metavar="FILE", help="prompts and answers")
    parser.add_argument("--model", type=text_argument, metavar="PATH", help="directory or hub id")
    parser.add_argument(
        "--reward", type=text_argument, metavar="NAME", help="exact, math, or path/to/file.py:name"
    )
    parser.add_argument(
        "--rollouts", metavar="N", help=f"the budget (default: {_PER_PROMPT} a prompt)"
    )
    parser.add_argument("--out", type=path_argument, metavar="FILE", help="default: my.yaml")
    parser.add_argument("--prompt-column", metavar="NAME", help="default: found by its name")
    parser.add_argument("--answer-column", metavar="NAME", help="default: found by its name")
    parser.add_argument(
        "--yes", action="store_true", help="ask nothing: what no flag says is the default"
    )
    add_json(parser)
    add_debug(parser)


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError or DataError before a file is written; what is written is valid."""
    asking = not arguments.yes and sys.stdin.isatty()
    said = {key: _answer(arguments, key, asking=asking) for key in _QUESTIONS}
    out = Path(said["out"])
    if out.exists():
        raise ConfigError(f"--out {out}: is there already; choose another name, or move it")
    row = _first_row(said["data"])
    columns = {
        "prompt_column": arguments.prompt_column or _column(row, _PROMPTS, "--prompt-column"),
        "answer_column": arguments.answer_column or _column(row, _ANSWERS, "--answer-column"),
    }
    prompts = _count(build_config(_settings(said, columns, out, total=GROUP), str(out)))
    total = _budget(said["rollouts"], prompts)
    settings = _settings(said, columns, out, total=total)
    check_reward(build_config(settings, str(out)).reward)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(_written(settings, out), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None
    answer(arguments, config=str(out), prompts=prompts, rollouts=total)
    print(f"{out}: {prompts} prompts to train on, {total:,} rollouts")
    print(f"next: cero-rl validate --config {out}")
    print(f"      cero-rl train {out}")
    return 0


def _answer(arguments: argparse.Namespace, key: str, *, asking: bool) -> str:
    """Of a flag, of a person, or the default. Raises ConfigError where there is none."""
    given = getattr(arguments, key)
    if given is not None:
        return str(given)
    question, default = _QUESTIONS[key]
    if asking:
        shown = "" if not default else f" [{default}]"
        given = input(f"{question}{shown}: ").strip() or default
    else:
        given = default
    if given is None:
        raise ConfigError(f"--{key}: missing; {question[0].lower()}{question[1:]}")
    return given


def _first_row(source: str) -> Mapping[str, Any]:
    files = files_of(source, "train", "--data")
    if files is None:
        raise DataError(f"--data {source}: wanted a .jsonl or .parquet file")
    rows = list(read_files(files[:1], limit=1))
    if not rows:
        raise DataError(f"--data {source}: holds no row")
    return rows[0][1]


def _column(row: Mapping[str, Any], names: tuple[str, ...], flag: str) -> str:
    """The first of these names that the row has; the configuration's default where other
    conventions of TRL and verl hold."""
    found = next((name for name in names if name in row), None)
    if found is None and "reward_model" in row:
        return names[0]
    if found is None:
        raise DataError(
            f"{flag}: none of {', '.join(names)} is a column; found {', '.join(row)}; name one"
        )
    return found


def _count(config: Config) -> int:
    """Prompts that are left to train on. Raises what the data's own check raises."""
    split = read_local(config.data, config.seed)
    if split is None or not split.train:
        raise DataError(f"--data {config.data.source}: holds no prompt to train on")
    for line in left_out_lines(split):
        print(f"  data  {line}")
    return len(split.train)


def _budget(given: str, prompts: int) -> int:
    """A whole number of rounds of whole groups."""
    if given and not (given.isdigit() and int(given) >= GROUP):
        raise ConfigError(f"--rollouts {given}: wanted a whole number of at least {GROUP}")
    total = int(given) if given else max(_PER_PROMPT * prompts, _LEAST_ROUND)
    rounds = _rounds(total)
    return rounds * max(round(total / rounds / GROUP), 1) * GROUP


def _rounds(total: int) -> int:
    return min(max(total // _LEAST_ROUND, 1), _ROUNDS)


def _model_shape(path: str) -> Mapping[str, Any]:
    file = Path(path) / "config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a hub id, or what validation will tell


def _settings(
    said: Mapping[str, str], columns: Mapping[str, str], out: Path, *, total: int
) -> dict[str, Any]:
    shape = _model_shape(said["model"])
    small = shape.get("hidden_size", 4096) <= _SMALL
    window = shape.get("max_position_embeddings", 4096)
    response = min(1024, window // 2)
    rounds = _rounds(total)
    model: dict[str, Any] = {"path": said["model"]}
    if shutil.which("nvidia-smi") is None:
        model["dtype"] = "float32"  # CPUs
    return {
        "name": re.sub(r"[^A-Za-z0-9._-]+|\.\.+", "-", out.stem).strip("._-") or "run",
        "model": model,
        "data": {
            "source": said["data"],
            **columns,
            "max_prompt_tokens": min(1024, window - response),
            "overlong_prompt": "drop",
        },
        "reward": {"function": said["reward"]},
        "rollout": {"max_response_tokens": response},
        "scheduler": {"name": "cero", "rounds": rounds, "rollouts_per_unit": GROUP},
        "budget": {"total_rollouts": total},
        "optimizer": {
            "learning_rate": 1e-4 if small else 1e-6,
            "warmup_steps": max(rounds // 10, 1),
        },
        "evaluation": {
            "every_steps": max(rounds // 4, 1),
            "final_samples_per_prompt": 4,
            "pass_k": [1, 4],
        },
        "checkpoint": {"every_steps": max(rounds // 4, 1)},
    }


_SAID = {
    "source": "a tenth is held out and never trained on; heldout_source names a set of its own",
    "rounds": "rounds of allocation, an optimizer step each",
    "rollouts_per_unit": "the size of a group, GRPO's num_generations",
    "total_rollouts": "every rollout generated for training counts",
    "learning_rate": "AdamW; 1e-6 is usual for pretrained models, tune it first",
    "max_response_tokens": "a longer response is cut and counted",
}


def _written(settings: Mapping[str, Any], out: Path) -> str:
    lines = [
        "# Written by cero-rl init; every key: docs/configuration.md or cero-rl schema.",
        f"# Command:   cero-rl train {out}",
        "# GRPO twin: add scheduler.name=uniform and another name=",
    ]
    for key, value in settings.items():
        if not isinstance(value, dict):
            lines.append(f"{key}: {_scalar(value)}")
            continue
        lines.append(f"{key}:")
        for inner, one in value.items():
            said = f" # {_SAID[inner]}" if inner in _SAID else ""
            lines.append(f"  {inner}: {_scalar(one)}{said}")
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}"
    return json.dumps(value, ensure_ascii=False)
