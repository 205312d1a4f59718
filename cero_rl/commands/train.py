"""`cero-rl train CONFIG key=value ...`: the short way to start a run on this machine. The same as
`cero-rl launch`, with settings as plain words and the recipes that ship by their names."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cero_rl.commands import launch
from cero_rl.commands.common import add_debug, add_overrides
from cero_rl.commands.own_server import own_server, wants_server
from cero_rl.config import Config
from cero_rl.config.paths import text_argument
from cero_rl.config.recipes import recipe
from cero_rl.errors import ConfigError

HELP = "train on this machine: cero-rl train CONFIG [key=value ...]"
_SETTING = re.compile(r"[A-Za-z_][\w.]*=")
_EXAMPLES = """examples:
  cero-rl train quickstart_cpu                                a recipe that ships
  cero-rl train my.yaml budget.total_rollouts=20000 seed=1    your file, two keys changed
  cero-rl train my.yaml --resume auto                         go on where it was cut"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "cero-rl train CONFIG [KEY=VALUE ...] [options]"
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "config", type=text_argument, metavar="CONFIG", help="a YAML file, or the name of a recipe"
    )
    add_overrides(parser)
    add_debug(parser)
    launch.add_ranks(parser)
    parser.add_argument(
        "--serve",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="start cero-rl serve beside the ranks and end it with them (default: with "
        "rollout.mode: server, unless rollout.server.urls is set or somebody listens there)",
    )


def spelled_out(words: Sequence[str]) -> list[str]:
    """The words of this command with every KEY=VALUE behind a --set, wherever it stands."""
    return [
        f"--set={word}" if _SETTING.match(word) and before != "--set" else word
        for before, word in zip(["", *words], words)
    ]


def run(arguments: argparse.Namespace) -> int:
    """Exit code of the run."""
    path = Path(arguments.config)
    if not path.exists():
        if not re.fullmatch(r"[\w-]+", arguments.config):
            raise ConfigError(
                f"CONFIG {path}: does not exist; give a YAML file, or the name of a recipe "
                "(cero-rl recipes list)"
            )
        chosen = recipe(arguments.config)
        path = chosen.path
        if absent := next((name for name, _ in chosen.files() if not Path(name).exists()), None):
            raise ConfigError(
                f"recipe {chosen.name} reads {absent}, which is not here; copy it with "
                f"cero-rl recipes copy {chosen.name}"
            )
    arguments.config = path
    return launch.run(arguments, partial(_server, arguments))


def _server(
    arguments: argparse.Namespace, config: Config
) -> contextlib.AbstractContextManager[int | None]:
    if not wants_server(config, arguments.serve):
        return contextlib.nullcontext()
    words = [f"--config={arguments.config}", *(f"--set={text}" for text in arguments.overrides)]
    return own_server(config, [*words, *(["--debug"] if arguments.debug else [])])
