"""`cero-rl simulate`: every allocator on one budget, on simulated pools or on the pass
rates of a recorded run.

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

from cero_rl.config.paths import path_argument
from cero_rl.errors import ConfigError, DataError
from cero_rl.files.plain import refuse_link
from cero_rl.job.parent import die_with_parent
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
from cero_rl.scheduler.simulation.replay import Counts

HELP = "allocators against each other on simulated prompt pools, or on a recorded run"

_EPILOG = """examples:
  cero-rl simulate --suite rivals --seeds 20          all allocators at equal budget, two minutes
  cero-rl simulate --suite drift --out runs/simulate  with a picture, and the rows as JSON lines
  cero-rl simulate --replay runs/NAME                 what each would have chosen in a run of yours

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
        help="instead of a suite: a run directory or its evidence.jsonl",
    )
    parser.add_argument(
        "--seeds", type=int, default=20, metavar="N", help="paired seeds, at least 2 (default 20)"
    )
    parser.add_argument("--prompts", type=int, metavar="N", help="size of the pool (default 2400)")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="rounds of the budget (default 160)"
    )
    parser.add_argument(
        "--budget",
        type=int,
        metavar="ROLLOUTS",
        help="of the run; a multiple of 16 (default 81920)",
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
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")


def run(arguments: argparse.Namespace) -> int:
    suite = _suite(arguments)
    if arguments.seeds < 2:
        raise ConfigError(
            f"--seeds {arguments.seeds}: wanted at least 2, an interval needs two runs"
        )
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
    from cero_rl.commands.simulate_report import draw, print_tables, progress, write_jsonl

    try:
        with progress(sys.stderr) as told:
            results = run_suite(suite, arguments.seeds, processes, told, die_with_parent)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    tables = [summarise(result) for result in results]
    print_tables(results, tables, arguments.seeds, sys.stdout)
    if arguments.out is not None:
        stem = arguments.out / f"simulate_{suite.name}"
        write_jsonl(stem.with_suffix(".jsonl"), suite.name, results, tables, arguments.seeds)
        draw(stem.with_suffix(".png"), results, tables, arguments.seeds)
        print(f"written: {stem}.jsonl, {stem}.png")
    return 0


def _suite(arguments: argparse.Namespace) -> Suite:
    for name in ("prompts", "rounds", "budget"):
        value = vars(arguments)[name]
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: wanted an integer >= 1")
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
