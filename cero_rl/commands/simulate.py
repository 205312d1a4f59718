"""`cero-rl simulate`: every allocator on one budget, on simulated pools or on the pass
rates of a recorded run; and whether CERO+ would pay on a pool of measured pass rates.

No torch and no configuration file. Arguments are checked before anything runs; matplotlib is
imported only for --out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from cero_rl.commands.answers import add_json, answer
from cero_rl.commands.simulate_pool import COLUMN, is_pool, read_pool
from cero_rl.config.paths import path_argument
from cero_rl.errors import ConfigError, DataError
from cero_rl.files.plain import refuse_link
from cero_rl.job.parent import dies_with_me
from cero_rl.scheduler.simulation import (
    Recorded,
    Suite,
    make_suites,
    read_evidence,
    replay_suite,
    run_suite,
    smooth,
    summarise,
)
from cero_rl.scheduler.simulation.payoff import USUAL_DRIFT
from cero_rl.scheduler.simulation.replay import Counts

HELP = "allocators against each other on simulated prompt pools, or on a recorded run"

_DRAWS = 6  # of a pool's success rates
_ANSWER = "pays", "column", "samples", "cells", "drift"

_EPILOG = """examples:
  cero-rl simulate --suite rivals --seeds 20          all allocators at equal budget, two minutes
  cero-rl simulate --suite drift --out runs/simulate  with a picture, and the rows as JSON lines
  cero-rl simulate --replay runs/NAME                 what each would have chosen in a run of yours
  cero-rl simulate --replay pool.jsonl --budget 51200 --rounds 400 --cells source,level
                        would it pay on a pool with measured pass rates? In words, within seconds

Simulated ability rests on a model of learning (docs/scheduler-rivals.md); it orders ideas and is
no substitute for training."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Run allocators on simulated prompt pools: spent budget, live groups, surrogate value, "
        "regret, ability."
    )
    parser.epilog = _EPILOG
    suites = make_suites()
    about = "; ".join(f"{suite.name}: {suite.about}" for suite in suites.values())
    parser.add_argument(
        "--suite", default="rivals", metavar="NAME", help=f"{about} (default rivals)"
    )
    parser.add_argument(
        "--replay",
        type=path_argument,
        metavar="PATH",
        help="instead of a suite: a run directory or its evidence.jsonl, for the table; .jsonl or "
        ".parquet data with measured pass rates or a run's posterior.parquet, for the answer "
        "whether CERO+ pays there",
    )
    answer = parser.add_argument_group("whether it pays (--replay with pass rates)")
    answer.add_argument(
        "--pays",
        action="store_true",
        help="that answer for a run directory or an evidence.jsonl, from what the run ended with",
    )
    answer.add_argument(
        "--column", metavar="NAME", help=f"of the measured pass rates (default {COLUMN})"
    )
    answer.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="that each rate was measured with (default: the fewest that the rates allow)",
    )
    answer.add_argument(
        "--cells",
        default="",
        metavar="COL,...",
        help="columns by which prompts resemble each other, as in scheduler.cell_columns",
    )
    answer.add_argument(
        "--drift",
        type=float,
        metavar="LOGITS",
        help="how far the policy moves over the run: every logit rises by it and wanders by as "
        f"much; 0: stands still (default {USUAL_DRIFT:g})",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help=f"paired seeds, at least 2 (default 20; for whether it pays {_DRAWS})",
    )
    parser.add_argument("--prompts", type=int, metavar="N", help="size of the pool (default 2400)")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="rounds of the budget (default 160)"
    )
    parser.add_argument(
        "--budget",
        type=int,
        metavar="ROLLOUTS",
        help="of the run; a multiple of 16 in suites (default 81920)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="only allocators with TEXT in the label; repeatable",
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="worker processes (default: 2, or 1 on one core)"
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="DIR",
        help="write simulate_SUITE.png and simulate_SUITE.jsonl there",
    )
    add_json(parser)
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")


def run(arguments: argparse.Namespace) -> int:
    if _asks_whether_it_pays(arguments):
        return _payoff(arguments)
    for name in _ANSWER:
        if _is_given(arguments, name):
            raise ConfigError(
                f"--{name} has a meaning with --replay FILE only, where FILE holds measured pass "
                "rates; leave it out"
            )
    suite = _suite(arguments)
    seeds = _seeds(arguments, 20)
    processes = (
        arguments.processes if arguments.processes is not None else min(2, os.cpu_count() or 1)
    )
    if processes < 1:
        raise ConfigError(f"--processes {processes}: wanted at least 1")
    if arguments.out is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise ConfigError(
                "--out draws a picture and matplotlib is not installed; install cero_rl[report]"
            )
        try:
            arguments.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--out {arguments.out}: {error.strerror}; name a directory that can be written"
            ) from None
    from cero_rl.commands.simulate_report import (
        draw,
        json_rows,
        print_tables,
        progress,
        write_jsonl,
    )

    try:
        with progress(sys.stderr) as told:
            results = run_suite(suite, seeds, processes, told, dies_with_me())
    except ValueError as error:
        raise ConfigError(str(error)) from None
    tables = [summarise(result) for result in results]
    print_tables(results, tables, seeds, sys.stdout)
    rows = json_rows(suite.name, results, tables, seeds)
    answer(arguments, rows=rows)
    if arguments.out is not None:
        stem = arguments.out / f"simulate_{suite.name}"
        write_jsonl(stem.with_suffix(".jsonl"), rows)
        draw(stem.with_suffix(".png"), results, tables, seeds)
        print(f"written: {stem}.jsonl, {stem}.png")
    return 0


def _seeds(arguments: argparse.Namespace, usual: int) -> int:
    seeds = usual if arguments.seeds is None else arguments.seeds
    if seeds < 2:
        raise ConfigError(f"--seeds {seeds}: wanted at least 2, an interval needs two runs")
    return seeds


def _positive(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = vars(arguments)[name]
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: wanted an integer >= 1")


def _is_given(arguments: argparse.Namespace, name: str) -> bool:
    value = vars(arguments)[name]
    return value is not None and value is not False and value not in ("", [])


def _asks_whether_it_pays(arguments: argparse.Namespace) -> bool:
    if arguments.replay is None:
        return False
    asked = any(_is_given(arguments, name) for name in _ANSWER)
    return asked or is_pool(arguments.replay, arguments.column or COLUMN)


def _payoff(arguments: argparse.Namespace) -> int:
    """Whether CERO+ pays on measured pass rates."""
    from cero_rl.commands.simulate_payoff import Question, ask, payoff_json, tell_answer
    from cero_rl.commands.simulate_report import progress

    for name in ("prompts", "processes", "out", "only"):
        if _is_given(arguments, name):
            raise ConfigError(f"--{name} has no meaning for measured pass rates; leave it out")
    _positive(arguments, "rounds", "budget", "samples")
    draws = _seeds(arguments, _DRAWS)
    if arguments.budget is None:
        raise ConfigError("--budget is missing; wanted the rollouts of the run that is planned")
    drift = USUAL_DRIFT if arguments.drift is None else arguments.drift
    if not 0.0 <= drift <= 20.0:
        raise ConfigError(f"--drift {drift:g}: wanted logits in [0, 20]")
    column = arguments.column or COLUMN
    cells = tuple(filter(None, map(str.strip, arguments.cells.split(","))))
    pool, words = read_pool(arguments.replay, column, arguments.samples, cells)
    rounds = arguments.rounds or max(1, arguments.budget // 128)
    told = column if words.startswith("pass rates") else None
    question = Question(arguments.replay.name, pool, words, arguments.budget, rounds, drift, told)
    try:
        with progress(sys.stderr) as said:
            found = ask(question, draws, said)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    answer(arguments, **payoff_json(question, found))
    tell_answer(question, found, sys.stdout)
    return 0


def _suite(arguments: argparse.Namespace) -> Suite:
    _positive(arguments, "prompts", "rounds", "budget")
    if arguments.replay is not None and not arguments.replay.exists():
        raise DataError(f"--replay {arguments.replay}: does not exist; name a run or a data file")
    if arguments.budget is not None and arguments.budget % 16:
        low = arguments.budget // 16 * 16
        near = f"{low} or {low + 16}" if low else "16"
        raise ConfigError(
            f"--budget {arguments.budget} is not a multiple of 16, the largest unit of the "
            f"entries; nearest: {near}"
        )
    if arguments.replay is not None:
        if arguments.prompts is not None:
            raise ConfigError(
                "--prompts has no meaning with --replay: the pool is the recorded run's; "
                "leave it out"
            )
        suite = replay_suite(_recorded(arguments.replay), arguments.rounds, arguments.budget)
    else:
        given = {
            "prompts": arguments.prompts,
            "rounds": arguments.rounds,
            "budget": arguments.budget,
        }
        suites = make_suites(**{name: value for name, value in given.items() if value is not None})
        if arguments.suite not in suites:
            raise ConfigError(
                f"--suite {arguments.suite}: unknown, wanted one of {', '.join(suites)}"
            )
        suite = suites[arguments.suite]
    return _only(suite, arguments.only) if arguments.only else suite


def _only(suite: Suite, wanted: list[str]) -> Suite:
    """The suite with the entries whose label holds one of `wanted`; the first entry stays, it is
    what others are compared with."""
    cases = []
    for case in suite.cases:
        kept = [entry for entry in case.entries[1:] if any(text in entry.label for text in wanted)]
        cases.append(replace(case, entries=(case.entries[0], *kept)))
    if all(len(case.entries) == 1 for case in cases):
        labels = dict.fromkeys(entry.label for case in suite.cases for entry in case.entries)
        raise ConfigError(
            f"--only {' '.join(wanted)}: no such allocator in suite {suite.name}; it has: "
            f"{'; '.join(labels)}"
        )
    return replace(suite, cases=tuple(cases))


def _recorded(path: Path) -> Recorded:
    """The smoothed rates of a run: DIR with evidence.jsonl or rollouts/*.parquet, or one of those
    files."""
    if path.is_dir():
        found = (
            [path / "evidence.jsonl"]
            if (path / "evidence.jsonl").is_file()
            else sorted(path.glob("rollouts/*.parquet"))
        )
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise DataError(
            f"--replay {path}: found neither evidence.jsonl nor rollouts/*.parquet there; "
            "name a run directory"
        )
    for place in [path / "rollouts", *found] if path.is_dir() else found:
        refuse_link(place, DataError)
    try:
        counts = _read_parquet(found) if found[0].suffix == ".parquet" else read_evidence(found[0])
        return smooth(counts)
    except UnicodeDecodeError:
        raise DataError(f"--replay: {found[0]}: not UTF-8 text") from None
    except (ValueError, OSError) as error:
        raise DataError(f"--replay: {error}") from None


def _read_parquet(paths: list[Path]) -> Counts:
    """Rollouts, one a row: columns prompt_id, reward (null: missing) and round. Rewards count as
    successes in [0, 1]."""
    from pyarrow import ArrowException, parquet, types

    wanted = ("round", "prompt_id", "reward")
    parts = []
    for path in paths:
        try:
            schema = parquet.read_schema(path)
            if absent := [name for name in wanted if name not in schema.names]:
                raise ValueError(
                    f"no column {', '.join(absent)}, it has {', '.join(schema.names) or 'none'}"
                )
            table = parquet.read_table(path, columns=list(wanted))
            for name in wanted:
                kind = table.schema.field(name).type
                number = types.is_floating(kind) if name == "reward" else False
                if not number and not types.is_integer(kind) and not types.is_boolean(kind):
                    raise ValueError(f"column {name} is {kind}, wanted numbers")
                if name != "reward" and table[name].null_count:
                    raise ValueError(f"column {name} has {table[name].null_count} empty entries")
        except (ArrowException, ValueError, KeyError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{path}: {reason}; wanted rollouts, one a row, with columns prompt_id, reward and "
                "round"
            ) from None
        parts.append([table[name].to_numpy() for name in wanted])
    rounds, prompts, rewards = (np.concatenate(part) for part in zip(*parts))
    rewards = rewards.astype(np.float64)  # an empty entry becomes nan
    known = ~np.isnan(rewards)
    return Counts(
        rounds[known].astype(np.int64),
        prompts[known].astype(np.int64),
        np.ones(int(known.sum()), dtype=np.int64),
        np.clip(rewards[known], 0.0, 1.0),
    )
