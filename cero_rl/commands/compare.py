"""`cero-rl compare A B ...`: finished runs of one pool and budget: paired differences with 95 %
intervals, what can be said, and which settings differ. Starts without torch."""

from __future__ import annotations

import argparse

from cero_rl.commands.report import add_output, write_report
from cero_rl.config.paths import path_argument
from cero_rl.errors import ConfigError

HELP = "finished runs side by side: paired differences with intervals, settings that differ"
_EPILOG = """examples:
  cero-rl compare runs/uniform_0 runs/cero_0 runs/uniform_1 runs/cero_1
  cero-rl compare runs/uniform_* runs/cero_* --format html -o cero.html

The first run's arm is the baseline; runs whose settings differ in the seed alone are one arm. What
the words mean: docs/report.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "runs", nargs="+", type=path_argument, metavar="RUN", help="runs' directories"
    )
    add_output(parser, default="md")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")


def run(arguments: argparse.Namespace) -> int:
    if len(arguments.runs) < 2:
        raise ConfigError(
            f"compare {arguments.runs[0]}: one run has nothing beside it; give two or more, or use "
            "cero-rl report"
        )
    return write_report(arguments, None)
