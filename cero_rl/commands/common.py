"""What every command shares: the parser, the configuration's flags, and errors as one line and an
exit code."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from cero_rl import redact
from cero_rl.config.paths import path_argument
from cero_rl.errors import (
    EXIT_INTERRUPT,
    CeroError,
    CheckpointError,
    ConfigError,
    DataError,
    EngineError,
    NoProgressError,
    RewardError,
    first_line,
    tell,
)

INSTALL_TRAIN = "models and training need pip install 'cero_rl[train]'"
Ended = Callable[[str, str, int], None]
_OF_TRAIN = {"torch", "deepspeed", "transformers", "safetensors", "datasets", "httpx2"}


class UsageExit(SystemExit):
    """The command line cannot be read; `line` is what was said of it."""

    def __init__(self, line: str) -> None:
        super().__init__(ConfigError.exit_code)
        self.line = line


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flag = re.match(r"unrecognized arguments: (-[^\s=]+)", message)
        word = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        near = difflib.get_close_matches(flag[1], _flags(self), n=1) if flag else []
        if word:
            near = difflib.get_close_matches(word[1], re.findall(r"[\w.-]+", word[2]), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        line = f"{redact.text(message)}; {hint}see {self.prog} --help"
        print(f"error: {line}", file=sys.stderr)
        raise UsageExit(line)


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """Every flag of the parser and of its commands."""
    commands = [
        c
        for a in parser._actions
        if isinstance(a, argparse._SubParsersAction)
        for c in a.choices.values()
    ]
    return [
        *parser._option_string_actions,
        *(flag for command in commands for flag in _flags(command)),
    ]


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, e.g. --set scheduler.name=uniform (may be repeated)",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=path_argument,
        required=True,
        metavar="FILE",
        help="run configuration, e.g. recipes/quickstart_cpu.yaml",
    )
    add_overrides(parser)
    add_debug(parser)


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")


def guard(action: Callable[[], int], *, debug: bool, ended: Ended | None = None) -> int:
    """Turn expected errors into one line and an exit code. Errors that every rank meets alike are
    printed by rank 0 alone. `ended` is told the error's type, its line and the exit code."""
    try:
        return action()
    except CeroError as error:
        rank = os.environ.get("RANK", "0")  # known only now where srun started it
        line = redact.text(str(error))
        if debug:
            print(redact.text(traceback.format_exc()), end="", file=sys.stderr, flush=True)
        elif rank == "0" or not isinstance(
            error, (ConfigError, DataError, RewardError, CheckpointError, NoProgressError)
        ):
            tell(f"error: {line}" if rank == "0" else f"error (rank {rank}): {line}")
        kind, code = type(error).__name__, error.exit_code
    except KeyboardInterrupt:
        kind, line, code = "KeyboardInterrupt", "interrupted", EXIT_INTERRUPT
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ModuleNotFoundError) and error.name in _OF_TRAIN:
            kind, code = "EngineError", EngineError.exit_code
            line = f"{error.name} is not installed here; {INSTALL_TRAIN}"
        else:
            kind, code = type(error).__name__, CeroError.exit_code
            line = redact.text(
                f"unexpected {kind}: {first_line(error)}; --debug shows where. Please report it"
            )
        tell(f"error: {line}")
    if ended is not None:
        ended(kind, line, code)
    return code
