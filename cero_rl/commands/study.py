"""`cero-rl study STUDY.yaml`: a paired-seed study; runs what is missing, then tables or a page.

Goes on where it stopped; starts without torch, which its runs need.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cero_rl.commands.answers import answer
from cero_rl.commands.report import add_output, deliver, wanted_format
from cero_rl.config.paths import path_argument
from cero_rl.errors import ConfigError
from cero_rl.study.plan import Chosen, Row, Study, StudyError, read_rows, read_study, refuse_unknown

HELP = "a paired-seed study from a file: run what is missing, then tables with intervals"
_EPILOG = """examples:
  cero-rl study docs/studies/frontier.yaml --seeds 0 1 --jobs 2   runs, then prints the tables
  cero-rl study docs/studies/frontier.yaml --tables               the tables of what is there
  cero-rl study docs/studies/frontier.yaml --tables --format html -o study.html

What a study file says, and what its tables say: docs/report.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("study", type=path_argument, metavar="STUDY", help="its YAML file")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="of these alone")
    parser.add_argument("--pools", nargs="+", metavar="POOL", help="of these alone")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="of these alone")
    parser.add_argument("--budgets", nargs="+", type=int, metavar="N", help="of these alone")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one a core (2)")
    parser.add_argument("--port", type=int, default=29700, help="first rendezvous port (29700)")
    parser.add_argument(
        "--work-dir",
        type=path_argument,
        default=Path("runs/study"),
        metavar="DIR",
        help="where a run lies while it goes on (runs/study)",
    )
    add_output(parser, default="md")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")


def run(arguments: argparse.Namespace) -> int:
    if arguments.jobs < 1:
        raise ConfigError(f"--jobs {arguments.jobs}: wanted at least 1")
    study = read_study(arguments.study)
    chosen = Chosen(arguments.seeds, arguments.budgets, arguments.pools, arguments.arms)
    refuse_unknown(study, chosen)
    if not arguments.tables:
        from cero_rl.study.runner import run_study

        status = run_study(
            study,
            chosen,
            jobs=arguments.jobs,
            port=arguments.port,
            work_dir=arguments.work_dir,
            say=lambda text: print(text, flush=True),
        )
        if status:
            return status
    wanted = {
        "arm": chosen.arms,
        "pool": chosen.pools,
        "seed": chosen.seeds,
        "budget": chosen.budgets,
    }
    rows = [
        row
        for row in read_rows(study.results)
        if all(values is None or row[name] in values for name, values in wanted.items())
    ]
    if not rows:
        raise StudyError(
            f"{study.results}: holds no results of what was asked for; run the study without "
            "--tables first"
        )
    return _show(arguments, study, rows, list(chosen.arms or study.arms))


def _show(arguments: argparse.Namespace, study: Study, rows: list[Row], arms: list[str]) -> int:
    from cero_rl.report.tables import markdown
    from cero_rl.study.tables import as_json, pools_of, table_of, words_of

    how, out = wanted_format(arguments), arguments.out
    found = as_json(rows, study.baseline, arms)
    answer(arguments, **found)
    if how is None:
        return 0
    if how == "html":
        from cero_rl.study.page import page_of_study

        text = page_of_study(study, rows, arms)
        out = out or Path(f"{study.name}.html")
    elif how == "json":
        text = json.dumps(found, indent=2, allow_nan=False) + "\n"
    else:
        tables = [markdown(table_of(rows, pool, study.baseline, arms)) for pool in pools_of(rows)]
        text = "\n\n".join([*tables, *words_of(rows, study.baseline, arms)]) + "\n"
    return deliver(text, out)
