"""`cero-rl report RUN [RUN ...]`: what a run says of itself, as one HTML page, JSON or Markdown;
several runs side by side. Starts without torch."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from cero_rl.commands.answers import add_json, answer
from cero_rl.config.paths import path_argument
from cero_rl.errors import ConfigError, tell
from cero_rl.files.durable import beside, replace

HELP = "one page on a run: accuracy, where the rollouts went, what was wasted; several: compared"
_EPILOG = """examples:
  cero-rl report runs/quickstart                       writes runs/quickstart/report.html
  cero-rl report runs/a_seed0 runs/b_seed0 -o ab.html  two runs of paired seeds
  cero-rl report runs/quickstart --format json         the numbers, on standard output

How to read each figure: docs/report.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "runs", nargs="+", type=path_argument, metavar="RUN", help="a run's directory"
    )
    add_output(parser, default="html")
    parser.add_argument(
        "--price-per-gpu-hour",
        type=float,
        metavar="MONEY",
        help="what an hour of one rank costs, for the columns of money",
    )
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")


def add_output(parser: argparse.ArgumentParser, *, default: str) -> None:
    parser.add_argument(
        "--format",
        choices=("html", "json", "md"),
        help=f"default {default}; json and md go to standard output",
    )
    parser.add_argument(
        "--out",
        "-o",
        type=path_argument,
        metavar="FILE",
        help="write there (html: report.html in the run's directory, or here for several runs)",
    )
    add_json(parser)
    parser.set_defaults(usual_format=default)


def wanted_format(arguments: argparse.Namespace) -> str | None:
    """None where --json asks for the numbers on standard output and nothing asks for a file."""
    if arguments.json and arguments.format is None and arguments.out is None:
        return None
    return arguments.format or arguments.usual_format


def run(arguments: argparse.Namespace) -> int:
    price = arguments.price_per_gpu_hour
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise ConfigError(f"--price-per-gpu-hour {price}: wanted a number >= 0")
    return write_report(arguments, price)


def write_report(arguments: argparse.Namespace, price: float | None) -> int:
    """Read everything, then write one file or to standard output."""
    runs: list[Path] = arguments.runs
    how, out = wanted_format(arguments), arguments.out
    from cero_rl.report.drawing import need_matplotlib
    from cero_rl.report.facts import facts_of
    from cero_rl.report.reader import read_run

    if how == "html":
        need_matplotlib()
    facts = [facts_of(read_run(path), price) for path in runs]
    comparison = None
    if len(facts) > 1:
        from cero_rl.report.compare import compare

        comparison = compare(facts)
    said = facts[0].summary if comparison is None else comparison.as_json()
    answer(arguments, **said)
    if how is None:
        return 0
    if how == "json":
        text = json.dumps(said, indent=2, allow_nan=False) + "\n"
    elif how == "md":
        from cero_rl.report.words import comparison_in_words, run_in_words

        text = run_in_words(facts[0]) if comparison is None else comparison_in_words(comparison)
    else:
        from cero_rl.report.page import page_of_comparison, page_of_run

        text = page_of_run(facts[0]) if comparison is None else page_of_comparison(comparison)
        out = out or (runs[0] if comparison is None else Path()) / "report.html"
    return deliver(text, out)


def deliver(text: str, out: Path | None) -> int:
    """To a file, whole or not at all, or to standard output. Raises ConfigError where it cannot."""
    if out is None:
        sys.stdout.write(text)
        return 0
    try:
        replace(out, beside(out, text))
    except OSError as error:
        raise ConfigError(
            f"--out {out}: {error.strerror or error}; name a file that can be written"
        ) from None
    tell(f"wrote {out} ({len(text.encode('utf-8')) / 1e6:.2f} MB)")
    return 0
