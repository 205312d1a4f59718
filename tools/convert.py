"""Checkpoints into other layouts, and what a directory holds: `python tools/convert.py COMMAND
--help`, docs/tools.md.

Every command reads a piece at a time, writes into a temporary directory that is renamed at the
end, and refuses what it does not know. Exit codes: 0 done, 2 wrong arguments, 4 a checkpoint
that is refused; --debug shows the traceback.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # a conversion needs no GPU
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from cero_rl.commands.common import guard
from cero_rl.config.paths import path_argument
from cero_rl.convert import actions
from cero_rl.convert.inspect_directory import kind_of
from cero_rl.convert.output import refuse_full
from cero_rl.convert.weights import DTYPES
from cero_rl.errors import CheckpointError

Arguments = argparse.Namespace


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _say(text: str) -> None:
    print(text, flush=True)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(KB|MB|GB)", text)
    if not match or float(match.group(1)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for example 500MB or 5GB")
    return int(float(match.group(1)) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[match.group(2)])


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no tolerance; give a number from 0 on")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="convert.py",
        description="Checkpoints into other layouts; docs/tools.md has examples.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, about: str, action: Callable[[Arguments], None], source: str, *, out: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.add_argument("source", type=path_argument, metavar=source)
        if out:
            sub.add_argument(
                "--out",
                type=path_argument,
                required=True,
                metavar="DIR",
                help="directory to write; must be empty or new",
            )
            sub.add_argument(
                "--force",
                action="store_true",
                help="replace an earlier export or conversion in --out",
            )
        sub.add_argument("--debug", action="store_true", help="show a traceback with an error")
        sub.set_defaults(action=action)
        return sub

    def shards(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--max-shard-size",
            type=_size,
            default=5 * 10**9,
            metavar="SIZE",
            help="of a file, e.g. 500MB (default 5GB)",
        )

    def dtype(sub: argparse.ArgumentParser, default: str, *, required: bool = False) -> None:
        sub.add_argument(
            "--dtype",
            choices=sorted(DTYPES),
            required=required,
            help=f"of the written weights ({default})",
        )

    bare = "convert a DeepSpeed directory that no manifest vouches for"
    one = command(
        "zero-to-hf",
        "a run's ZeRO checkpoint to a Hugging Face model",
        actions.zero_to_hf,
        "CHECKPOINT",
    )
    about = "config, tokenizer and, for a LoRA run, base weights (default: the run's start model)"
    one.add_argument("--model", type=path_argument, metavar="DIR", help=about)
    one.add_argument("--bare", action="store_true", help=bare)
    shards(one)
    dtype(one, "default: that of the trained model")
    one = command(
        "zero-to-adapter",
        "a LoRA run's ZeRO checkpoint to a peft adapter",
        actions.zero_to_adapter,
        "CHECKPOINT",
    )
    dtype(one, "default: that of the trained model")
    about = "to DeepSpeed's universal layout, for any number of ranks"
    one = command("zero-to-universal", about, lambda o: actions.resharded(o, None), "CHECKPOINT")
    one.add_argument(
        "--ranks",
        type=_count,
        default=8,
        metavar="N",
        help="random states to provide, at least (default 8)",
    )
    one.add_argument("--bare", action="store_true", help=bare)
    one = command(
        "reshard",
        "a ZeRO-3 checkpoint for another number of ranks",
        lambda o: actions.resharded(o, o.ranks),
        "CHECKPOINT",
    )
    one.add_argument(
        "--ranks", type=_count, required=True, metavar="N", help="that will resume from it"
    )
    one.add_argument("--bare", action="store_true", help=bare)
    one = command(
        "hf-to-start", "a Hugging Face model to a clean start model", actions.hf_to_start, "MODEL"
    )
    one.add_argument(
        "--allow-pickle", action="store_true", help="read pytorch_model.bin, its tensors only"
    )
    one.add_argument(
        "--pad-token",
        metavar="TOKEN",
        help="padding token (default: the tokenizer's, or its end token)",
    )
    shards(one)
    dtype(one, "default: the one that most weights have")
    one = command("cast", "a model in another dtype", actions.cast_model, "MODEL")
    shards(one)
    dtype(one, "required", required=True)
    one = command(
        "megatron-export",
        "a Qwen3, Qwen2.5 or Llama model to Megatron-core's torch_dist format",
        actions.megatron_export,
        "MODEL",
    )
    one.add_argument(
        "--vocab-multiple",
        type=_count,
        default=128,
        metavar="N",
        help="pad the vocabulary to a multiple (default 128)",
    )
    one.add_argument(
        "--iteration",
        type=_count,
        default=1,
        metavar="N",
        help="the iteration it pretends to be (default 1)",
    )
    shards(one)
    dtype(one, "default: as they are")
    one = command(
        "megatron-import",
        "a Megatron-core torch_dist checkpoint to a Hugging Face model",
        actions.megatron_import,
        "CHECKPOINT",
    )
    one.add_argument(
        "--model",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="config and tokenizer of the same model",
    )
    shards(one)
    dtype(one, "default: as they are")
    one = command(
        "merge-lora",
        "a peft LoRA adapter merged into its base model",
        actions.merge_lora,
        "ADAPTER",
    )
    one.add_argument(
        "--base", type=path_argument, required=True, metavar="DIR", help="the base model"
    )
    shards(one)
    dtype(one, "default: the base model's")
    one = command("inspect", "what a directory holds", actions.inspect, "DIR", out=False)
    one.add_argument("--json", action="store_true", help="one JSON object")
    one = command(
        "verify",
        "hashes of a checkpoint; or load a model and compare its logits with another's",
        actions.verify_directory,
        "DIR",
        out=False,
    )
    one.add_argument(
        "--against", type=path_argument, metavar="DIR", help="the model to compare with"
    )
    one.add_argument(
        "--tokens",
        type=_count,
        default=32,
        metavar="N",
        help="length of the compared sequence (default 32)",
    )
    one.add_argument("--seed", type=int, default=0, help="of the compared tokens")
    one.add_argument(
        "--tolerance",
        type=_tolerance,
        default=0.0,
        help="largest allowed difference of a logit (default 0)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    return guard(lambda: _run(options), debug=options.debug)


def _run(options: argparse.Namespace) -> int:
    started = time.perf_counter()
    try:
        if "out" in options:
            given = (options.source, vars(options).get("model"), vars(options).get("base"))
            # what is no model and no checkpoint is refused by the action, with better words
            sources = [p for p in given if p and kind_of(p) not in ("run", "unknown")]
            refuse_full(options.out, force=options.force, sources=sources)
        options.action(options)
    except OSError as error:
        raise CheckpointError(str(error)) from error
    if "out" in options:
        _say(f"{options.command}: wrote {options.out} in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
