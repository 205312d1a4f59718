"""`cero-rl doctor`: is this machine fit to train? One line a check as soon as it is known, with
the remedy; exit 6 if something is bad.

`machine` looks at what is there, `drills` tries what a run depends on: a collective on 2 ranks,
a reward that hangs, a weight sync.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from cero_rl.commands.answers import add_json, answer
from cero_rl.commands.doctor import drills, machine
from cero_rl.commands.doctor.finding import Finding
from cero_rl.config.paths import path_argument
from cero_rl.errors import EngineError, first_line

HELP = "is this machine fit to train? versions, devices, limits, drills"

_COLOURS = {"ok": "32", "note": "33", "bad": "31"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick",
        action="store_true",
        help="look only; leave out the drills (2-rank collective, hanging reward, sync)",
    )
    add_json(parser)
    parser.add_argument(
        "--output-dir",
        type=path_argument,
        default="runs",
        metavar="DIR",
        help="where runs will be written; tried with a file (default: runs)",
    )
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")


def _checks(output_dir: Path, *, quick: bool) -> Iterator[Callable[[], Iterator[Finding]]]:
    yield from (machine.packages, machine.python, machine.devices, machine.native, machine.limits)
    yield lambda: machine.disk(output_dir)
    yield from (machine.port, machine.slurm)
    if not quick:
        yield from (drills.collective, drills.reward, drills.sync)


def _findings(output_dir: Path, *, quick: bool, debug: bool) -> Iterator[Finding]:
    for check in _checks(output_dir, quick=quick):
        try:
            yield from check()
        # a check that cannot be made is a finding, and the others still count
        except Exception as error:
            first = first_line(error)
            yield Finding(
                "bad",
                "doctor",
                f"a check failed itself ({type(error).__name__}: {first}); --debug shows where",
            )
            if debug:
                raise


def run(arguments: argparse.Namespace) -> int:
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    found: list[Finding] = []
    for finding in _findings(arguments.output_dir, quick=arguments.quick, debug=arguments.debug):
        found.append(finding)
        if not arguments.json:
            status = f"{finding.status:<5}"
            shown = f"\033[{_COLOURS[finding.status]}m{status}\033[0m" if coloured else status
            print(f"{shown} {finding.name:<15} {finding.text}", flush=True)
    bad = list(dict.fromkeys(f.name for f in found if f.status == "bad"))
    answer(arguments, fit=not bad, findings=[asdict(finding) for finding in found])
    if bad:
        raise EngineError(
            f"doctor: {', '.join(bad)} not as a run needs it; the lines marked bad say what to do"
        )
    return 0
