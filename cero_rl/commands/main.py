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
from cero_rl.commands.common import Parser, guard


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


def main(argv: Sequence[str] | None = None) -> int:
    what = "Rollout allocation for RL with verifiable rewards: check, evaluate, inspect."
    parser = Parser(prog="cero-rl", description=what, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"cero_rl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    by_name = {command.__name__.rpartition(".")[2]: command for command in COMMANDS}
    for name, command in by_name.items():
        own = commands.add_parser(name, allow_abbrev=False, help=command.HELP)
        command.add_arguments(own)
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["train"]:
        words = train.spelled_out(words)
    arguments = parser.parse_args(words)
    chosen = by_name[arguments.command]
    return guard(lambda: chosen.run(arguments), debug=arguments.debug)
