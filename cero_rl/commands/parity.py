"""`cero-rl parity`: does a server run the weights of this directory?

In: a Hugging Face directory and the address of an OpenAI-compatible server. Out: the gaps, what
they mean, and exit status 0 (it runs them) or 6 (it does not, or could not be asked).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cero_rl import redact
from cero_rl.commands.answers import add_json, answer
from cero_rl.config.paths import path_argument, text_argument
from cero_rl.errors import ConfigError, EngineError
from cero_rl.models.directory import find_model
from cero_rl.types import PARITY_BOUNDS

HELP = "whether a server runs the weights of a model directory"

_EPILOG = """examples:
  cero-rl parity --model runs/a/export --url http://127.0.0.1:8000
  cero-rl parity --model step_40 --url URL --other base=Qwen/Qwen3-0.6B --other previous=step_39
  cero-rl parity --model BASE --adapter step_40 --served policy-adapter --url URL --json

Exit status: 0 it runs these weights, 2 the question is wrong, 6 it runs others or gave no answer.
What each finding means, and what it cannot see: docs/parity.md"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Samples fixed prompts from a server and scores the answers with the weights of a "
        "directory, token by token."
    )
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("--model", type=text_argument, required=True, metavar="DIR", help="the wanted weights")
    add("--url", type=text_argument, required=True, help="the server, with or without /v1")
    add("--served", metavar="NAME", help="the server's name for the policy; default: its first")
    add("--adapter", type=text_argument, metavar="DIR", help="LoRA adapter on --model (peft)")
    add(
        "--other",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="weights it must not run (may be repeated); NAME base or previous names the fault",
    )
    add("--key-file", type=path_argument, metavar="FILE", help="the server's key")
    add(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="that of the training (default 1)",
    )
    add(
        "--logprobs",
        choices=("processed", "raw"),
        default="processed",
        help="what the trainer takes them for: after temperature (default) or before",
    )
    add("--dtype", choices=tuple(PARITY_BOUNDS), help="default: that of config.json")
    add("--device", type=text_argument, default="cpu", help="where --model is scored (cpu, cuda)")
    add("--prompts", type=path_argument, metavar="FILE", help="texts to ask, one a line")
    add("--answers", type=int, default=4, metavar="N", help="of each prompt (default 4)")
    add("--tokens", type=int, default=16, metavar="N", help="of each answer (default 16)")
    add("--bound", type=float, metavar="NATS", help="default: by dtype and what rounding does")
    add("--version", metavar="LABEL", help="the weights' name, where the server tells one")
    add("--timeout", type=float, default=60.0, metavar="S", help="of every call (default 60)")
    add_json(parser)
    add("--debug", action="store_true", help="show a traceback with an error")


def run(arguments: argparse.Namespace) -> int:
    others = dict(_named(text) for text in arguments.other)
    find_model(arguments.model, "--model")
    for name, path in others.items():
        find_model(path, f"--other {name}")
    texts = _texts(arguments.prompts)
    key = _key(arguments.key_file)
    from cero_rl.parity.probe import check_parity
    from cero_rl.parity.questions import ParityOptions, probe_texts
    from cero_rl.parity.samplers import HttpSampler
    from cero_rl.parity.scorers import ModelScorer

    options = ParityOptions(
        temperature=arguments.temperature,
        logps=arguments.logprobs,
        answers=arguments.answers,
        tokens=arguments.tokens,
        bound=arguments.bound,
        dtype=arguments.dtype,
        version=arguments.version,
    )
    sampler = HttpSampler(arguments.url, model=arguments.served, key=key, seconds=arguments.timeout)
    load = lambda path, **how: ModelScorer.load(
        path, dtype=arguments.dtype, device=arguments.device, **how
    )
    wanted = load(arguments.model, adapter=arguments.adapter)
    report = check_parity(
        sampler,
        wanted,
        options,
        prompts=None if texts is None else probe_texts(wanted.tokenizer, texts),
        others={name: load(path, tokenizer=False) for name, path in others.items()},
    )
    if arguments.json:
        answer(arguments, **report.to_json())
    else:
        print("\n".join(redact.text(line) for line in report.lines()), file=sys.stderr)
        verdict = "runs these weights" if report.same else "does NOT run these weights"
        print(redact.text(f"{report.sampler} {verdict} ({report.seconds:g} s)"))
    return 0 if report.same else EngineError.exit_code


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ConfigError(f"--other: got {text!r}, wanted NAME=DIR, such as base=Qwen/Qwen3-0.6B")
    return name, path


def _texts(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ConfigError(f"--prompts: {path} cannot be read ({why}); give a text file") from None
    if not texts:
        raise ConfigError(f"--prompts: {path} holds no text; give a prompt a line")
    return texts


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    from cero_rl.rollout.engines.server_key import read_key

    return read_key(path)
