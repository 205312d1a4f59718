"""`cero-rl` and `python -m cero_rl`: one file a command, each with HELP, `add_arguments` and `run`.

Arguments and the configuration are checked before torch is imported, so a mistyped key is answered
in well under two seconds. Training under another launcher has an entry point of its own,
recipes/train_cero.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from cero_rl import __version__
from cero_rl.commands import (
    answers,
    checkpoints,
    compare,
    diagnose,
    doctor,
    evaluate,
    init,
    launch,
    parity,
    plan,
    recipes,
    report,
    schema,
    serve,
    simulate,
    slurm,
    study,
    train,
    validate,
    view,
)
from cero_rl.commands.common import Parser, UsageExit, guard
from cero_rl.commands.complete import complete
from cero_rl.errors import ConfigError


class Command(Protocol):
    """What main asks of a command's module; its name is the module's."""

    __name__: str

    @property
    def HELP(self) -> str: ...

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


COMMANDS: tuple[Command, ...] = (
    train,
    init,
    launch,
    recipes,
    schema,
    validate,
    plan,
    evaluate,
    diagnose,
    report,
    view,
    compare,
    study,
    simulate,
    checkpoints,
    slurm,
    serve,
    parity,
    doctor,
)


def build_parser() -> Parser:
    what = "RL with verifiable rewards under one rollout budget: train, look, compare."
    parser = Parser(prog="cero-rl", description=what, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"cero_rl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        own = commands.add_parser(_name(command), allow_abbrev=False, help=command.HELP)
        command.add_arguments(own)
    return parser


def _name(command: Command) -> str:
    return command.__name__.rpartition(".")[2]


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    complete(parser)
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["train"]:
        words = train.spelled_out(words)
    by_name = {_name(command): command for command in COMMANDS}
    if not answers.is_wanted(words):
        arguments = parser.parse_args(words)
        chosen = by_name[arguments.command]
        return guard(lambda: chosen.run(arguments), debug=arguments.debug)
    try:
        arguments = parser.parse_args(words)
    except UsageExit as error:
        said = answers.error_of("UsageError", error.line, ConfigError.exit_code)
        answers.write(sys.stdout, None, said)
        raise
    return _in_json(arguments, by_name[arguments.command])


def _in_json(arguments: argparse.Namespace, chosen: Command) -> int:
    """The command's words on standard error, its answer or error as one document."""
    errors: list[dict[str, object]] = []
    ended = lambda kind, line, code: errors.append(answers.error_of(kind, line, code))
    with answers.words_to_stderr() as out:
        status = guard(lambda: chosen.run(arguments), debug=arguments.debug, ended=ended)
    answers.write(out, arguments.answer, errors[0] if errors else None)
    return status
