"""`cero-rl view RUN`: a live or finished run in the terminal. Starts without torch."""

from __future__ import annotations

import argparse
import math
import os
import sys

from cero_rl.config.paths import path_argument
from cero_rl.errors import ConfigError

HELP = "a live or finished run in the terminal: prompts, why groups had their size, samples"
_EPILOG = """example:
  cero-rl view runs/quickstart

Needs the extra view: pip install 'cero_rl[view]'. Every key: docs/view.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("run", type=path_argument, metavar="RUN", help="a run's directory")
    parser.add_argument(
        "--every",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="between two looks at whether the run has grown; default 2",
    )
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")


def run(arguments: argparse.Namespace) -> int:
    every = arguments.every
    if not (math.isfinite(every) and every > 0):
        raise ConfigError(f"--every {every:g}: wanted a number of seconds above 0")
    try:
        from cero_rl.view.app import RunView
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"view: {error.name} is not installed; pip install 'cero_rl[view]'; cero-rl report "
            f"{arguments.run} --format md says the same numbers without it"
        ) from None
    from cero_rl.view.picture import look

    picture = look(arguments.run)
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        raise ConfigError(
            f"view: standard input and output are no terminal here; cero-rl report {arguments.run} "
            "--format md prints the numbers"
        )
    app = RunView(arguments.run, picture, every)
    app.run()
    return app.return_code or 0
